"""ONNX Runtime as a contender: its execution providers, each bound to memory on its own device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from common.buffers import DeviceBuffer
from common.cuda import Stream
from common.errors import EnvironmentFault
from common.libraries import first
from export import models
from peers.lane import Enqueue, Lane, gpu, growth_mb
from peers.task import Missing, Ready, Task


@contextlib.contextmanager
def on_cpu(task: Task, precision: str) -> Iterator[Ready]:
    """The CPU provider."""
    ort, file = runtime(), present(task, precision)
    session = session_of(ort, file, [("CPUExecutionProvider", {})])
    yield Ready.on_cpu(f"ONNX Runtime {ort.__version__}", lambda images: session.run(None, {models.INPUT: images})[0])


@contextlib.contextmanager
def on_gpu(task: Task, precision: str, provider: str, **settings: str) -> Iterator[Ready]:
    """One of the GPU's providers, told these ``settings``, on the lane's stream and in its memory: ONNX Runtime copies nothing,
    and ``run`` returns when the work is enqueued. One that takes no stream waits for the copy before its work, and for the
    work. The TensorRT provider builds its engine, for this batch, in the first run, and keeps it beside the plans."""
    ort = runtime()
    full_name = f"{provider.replace('RT', 'rt')}ExecutionProvider"
    if full_name not in ort.get_available_providers():
        raise Missing(f"an onnxruntime with the {full_name} (pip install onnxruntime-gpu) and an NVIDIA GPU")
    file = present(task, precision)
    try:
        here = gpu()
    except EnvironmentFault as fault:
        raise Missing(f"an NVIDIA GPU ({fault})") from None
    if hasattr(ort, "preload_dlls"):
        first("torch")  # which brings CUDA's and cuDNN's libraries; without it they are sought in their own packages
        ort.preload_dlls()
    memory_mb, settings["device_id"] = growth_mb(), "0"
    if provider == "TensorRT":
        size, kept = "x".join(map(str, task.input_shape)), task.plan(precision).with_suffix(f".ort-{task.weights_sha256[:12]}")
        shapes = {f"trt_profile_{which}_shapes": f"{models.INPUT}:{size}" for which in ("min", "opt", "max")}
        cache = {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(kept)}
        settings |= {**shapes, **cache, "trt_fp16_enable": str(precision == "fp16")}
    with ExitStack() as resources:
        stream = resources.enter_context(Stream())
        session = session_of(ort, file, [(full_name, {**settings, "user_compute_stream": str(stream.handle)})])
        if not (on_ours := full_name in session.get_providers()):  # before 1.18 TensorRT's takes no stream in Python
            session = session_of(ort, file, [(full_name, settings)])
        if full_name not in session.get_providers():
            raise Missing(f"{full_name}'s libraries, which could not be loaded here")
        shapes_out, numbers = (task.batch, task.classes), iter(range(1, 3))

        def runner(device_input: DeviceBuffer, device_output: DeviceBuffer) -> Enqueue:
            binding, how = session.io_binding(), ort.RunOptions()
            binding.bind_input(models.INPUT, "cuda", 0, np.float32, task.input_shape, device_input.address)
            binding.bind_output(models.OUTPUT, "cuda", 0, np.float32, shapes_out, device_output.address)
            if on_ours:
                how.add_run_config_entry("disable_synchronize_execution_providers", "1")
            if "enable_cuda_graph" in settings:
                how.add_run_config_entry("gpu_graph_id", str(next(numbers)))  # a graph has its addresses in it
            for _ in range(3):  # builds or captures what it does
                session.run_with_iobinding(binding, how)
            stream.synchronize()

            def enqueue() -> None:
                if not on_ours:
                    stream.synchronize()  # its own stream does not know of the copy on ours
                session.run_with_iobinding(binding, how)

            return enqueue

        lane = Lane(resources, stream, task.input_shape, shapes_out, runner)

        yield Ready(f"ONNX Runtime {ort.__version__}", lane.load, lane.infer, lane.output, here.device, lane, memory_mb)
        stream.synchronize()


def runtime() -> Any:
    if not (ort := first("onnxruntime")):
        raise Missing("pip install onnxruntime")
    return ort


def present(task: Task, precision: str) -> Any:
    file = task.onnx(precision)
    if not file.exists():
        raise Missing(f"{file.name}: python 0_build.py --{precision} --calibration-images DIR")
    return file


def session_of(ort: Any, file: Any, providers: list[Any]) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(file), options, providers=providers)
