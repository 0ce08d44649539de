"""PyTorch as a contender: eager, or compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np

from common.buffers import DeviceBuffer
from common.cuda import Stream
from common.libraries import first
from export import models
from export.networks import create_model
from peers.lane import Enqueue, Lane, gpu, growth_mb
from peers.task import Missing, Ready, Task


@contextlib.contextmanager
def pytorch(task: Task, precision: str, **how: str) -> Iterator[Ready]:
    """Eager, or compiled as torch.compile is told ``how``. FP16 means weights and activations in half, channels last; the
    input comes in FP32 and is converted on the device, by the compiler's own kernel where there is one."""
    torch, half = first("torch"), precision == "fp16"
    if not torch:
        raise Missing("pip install torch torchvision")
    version = f"PyTorch {torch.__version__}"
    form = {"dtype": torch.half, "memory_format": torch.channels_last} if half else {}
    if not torch.cuda.is_available():
        if half:
            raise Missing("an NVIDIA GPU (FP16 convolutions on a CPU are emulated)")
        network = create_model(task.model, task.weights, models.SEED)[0]
        run = torch.compile(network, **how) if how else network
        yield Ready.on_cpu(version, torch.inference_mode()(lambda images: run(torch.from_numpy(images)).numpy()))
        return
    here = gpu()
    torch.cuda.empty_cache()  # what another contender has left there would be used without being counted
    memory_mb = growth_mb()
    network = create_model(task.model, task.weights, models.SEED)[0].to("cuda", **form)

    def whole(images: Any) -> Any:
        return network(images.to(**form) if half else images).float()

    model = torch.compile(whole, **how) if how else whole

    def runner(device_input: DeviceBuffer, device_output: DeviceBuffer) -> Enqueue:
        images = as_tensor(torch, device_input, task.input_shape)
        logits = as_tensor(torch, device_output, (task.batch, task.classes))

        def enqueue() -> None:
            with torch.inference_mode():
                logits.copy_(model(images))

        return enqueue

    with ExitStack() as resources:
        stream = resources.enter_context(Stream())
        lane = Lane(resources, stream, task.input_shape, (task.batch, task.classes), runner)
        external = torch.cuda.ExternalStream(stream.handle)

        def load(images: np.ndarray) -> None:
            torch.cuda.set_stream(external)  # which the contender before may have left to its own
            lane.load(images)

        try:
            yield Ready(version, load, lane.infer, lane.output, here.device, lane, memory_mb)
        finally:
            stream.synchronize()
            torch.cuda.set_stream(torch.cuda.default_stream())
            model = network = None  # of which ``whole`` knows as well
            if how:
                torch._dynamo.reset()
            torch.cuda.empty_cache()


def as_tensor(torch: Any, memory: DeviceBuffer, shape: tuple[int, ...]) -> Any:
    """An FP32 tensor that is ``memory``."""
    told = {"shape": shape, "typestr": "<f4", "data": (memory.address, False), "version": 3}
    return torch.as_tensor(SimpleNamespace(__cuda_array_interface__=told), device="cuda")
