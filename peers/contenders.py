"""What compare_engines compares, behind one face: PyTorch, torch.compile, ONNX Runtime, TensorRT.

Each is given the same batch in host memory and leaves its logits in host memory (transfers in the time), or works from
and to its own device (transfers out of the time). Packages are imported by the contender that needs them.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common import backend
from common.buffers import DeviceBuffer, copy_to_device, copy_to_device_async, copy_to_host, copy_to_host_async, page_locked
from common.cuda import Stream
from common.engine import Engine
from common.errors import EnvironmentFault, Fault
from common.files import sha256
from common.images import write
from common.libraries import first
from common.plans import unusable
from common.record import Record
from common.run import used_memory
from export import models
from export.networks import create_model
from peers.processes import ROOT, run_quietly


@dataclass(frozen=True)
class Task:
    """What every contender is to do: this model with these weights, batches of this size, transfers timed or not."""

    model: str
    weights: str
    batch: int
    transfers: bool

    @property
    def tag(self) -> str:
        return models.tag(self.model, self.weights, models.SEED)

    @property
    def weights_sha256(self) -> str:
        """The hash of a file of weights; `random` and `imagenet` are names already."""
        return sha256(Path(self.weights)) if Path(self.weights).is_file() else self.weights

    def onnx(self, precision: str) -> Path:
        return ROOT / "models" / f"{self.tag}-{precision}.onnx"

    def plan(self, precision: str) -> Path:
        return ROOT / "plans" / f"{self.tag}-{precision}.plan"

    def export(self, calibration_images: Path | None) -> None:
        """Make the ONNX files, the INT8 one too where it can be calibrated; raises ``EnvironmentFault``."""
        calibrated = ["--int8", "--calibration-images", calibration_images] if calibration_images else []
        if problem := self.build("--export-only", *calibrated):
            raise EnvironmentFault(f"no ONNX files: {problem}")

    def build(self, *options: object) -> str | None:
        """Run 0_build.py for the model; what went wrong, or None."""
        return run_quietly("0_build.py", "--model", self.model, "--weights", self.weights, *options)


class Missing(Exception):
    """This machine lacks what the contender needs; the message says what."""


@dataclass
class Ready:
    """A model that can run. ``load`` takes a batch, N×3×S×S FP32: into page-locked memory, or onto the device where transfers
    are not timed. ``infer`` takes what ``load`` made of it, and is what is timed, to its end. ``output`` makes the logits, N×C
    FP32, of what ``infer`` returned; it is called before the next ``infer``."""

    version: str  # the library and its version
    load: Callable[[np.ndarray], Any]
    infer: Callable[[Any], Any]
    output: Callable[[Any], np.ndarray]
    device: str = "CPU"
    memory_mb: Callable[[], float | None] = lambda: None  # device memory that it holds
    build_s: float | None = None  # seconds of an earlier build, whose result was only loaded
    rate: Callable[[], Record] | None = None  # of a pipeline: the record of a measured window


@dataclass(frozen=True)
class Contender:
    """One way to run a model. ``prepare(task, precision)`` loads, compiles or builds it, or raises ``Missing``; everything is
    given back at the end of its context."""

    name: str
    precision: str
    prepare: Callable[[Task, str], AbstractContextManager[Ready]]


@contextlib.contextmanager
def pytorch(task: Task, precision: str, mode: str | None = None) -> Iterator[Ready]:
    """Eager, or compiled in ``mode``. FP16 means weights and activations in half, channels last."""
    torch, half = first("torch"), precision == "fp16"
    if not torch:
        raise Missing("pip install torch torchvision")
    gpu = torch.cuda.is_available()
    if half and not gpu:
        raise Missing("an NVIDIA GPU (FP16 convolutions on a CPU are emulated)")
    where, free_before = ("cuda", torch.cuda.mem_get_info()[0]) if gpu else ("cpu", 0)
    form = {"dtype": torch.half, "memory_format": torch.channels_last} if half else {"dtype": torch.float}
    model = create_model(task.model, task.weights, models.SEED)[0].to(where, **form)
    model = torch.compile(model, mode=mode) if mode else model

    def to_device(images: Any) -> Any:
        return images.to(where, non_blocking=True).to(**form)

    def load(images: np.ndarray) -> Any:
        tensor = torch.from_numpy(images)
        if not task.transfers:
            return to_device(tensor)
        return tensor.pin_memory() if gpu else tensor

    def infer(images: Any) -> Any:
        with torch.inference_mode():
            logits = model(to_device(images)).float().cpu() if task.transfers else model(images)
        if gpu:
            torch.cuda.synchronize()
        return logits

    def memory_mb() -> float | None:
        return (free_before - torch.cuda.mem_get_info()[0]) / 1e6 if gpu else None

    device = torch.cuda.get_device_name() if gpu else "CPU"
    try:
        yield Ready(f"PyTorch {torch.__version__}", load, infer, lambda it: it.float().cpu().numpy(), device, memory_mb)
    finally:
        model = None  # of which ``infer`` knows as well
        if mode:
            torch._dynamo.reset()
        if gpu:
            torch.cuda.empty_cache()


@contextlib.contextmanager
def onnx_runtime(task: Task, precision: str, provider: str) -> Iterator[Ready]:
    """One of ONNX Runtime's execution providers."""
    ort, full_name, file, device = first("onnxruntime"), f"{provider}ExecutionProvider", task.onnx(precision), "CPU"
    if not ort:
        raise Missing("pip install onnxruntime")
    if full_name not in ort.get_available_providers():
        raise Missing(f"an onnxruntime with the {full_name} (pip install onnxruntime-gpu) and an NVIDIA GPU")
    if not file.exists():
        raise Missing(f"{file.name}: python 0_build.py --{precision} --calibration-images DIR")
    torch, place = None, "cpu" if task.transfers or provider == "CPU" else "cuda"
    if provider != "CPU":
        ort.preload_dlls()  # CUDA's and cuDNN's libraries from their Python packages, where those are installed
        torch = first("torch")
        torch = torch if torch and torch.cuda.is_available() else None
        device = torch.cuda.get_device_name() if torch else "GPU 0"
    options = ort.SessionOptions()
    options.log_severity_level = 3
    settings = {"trt_fp16_enable": True} if provider == "Tensorrt" and precision == "fp16" else {}
    session = ort.InferenceSession(str(file), options, providers=[(full_name, settings)])
    if full_name not in session.get_providers():
        raise Missing(f"{full_name}'s libraries, which could not be loaded here")

    def load(images: np.ndarray) -> Any:
        if torch:  # into page-locked memory; from ordinary memory the copies are slower
            images = torch.from_numpy(images).pin_memory().numpy()
        value, binding = ort.OrtValue.ortvalue_from_numpy(images, place, 0), session.io_binding()
        binding.bind_ortvalue_input(models.INPUT, value)
        binding.bind_output(models.OUTPUT, place, 0)
        return binding, value  # which keeps the images

    def infer(loaded: Any) -> Any:
        binding, _ = loaded
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    yield Ready(f"ONNX Runtime {ort.__version__}", load, infer, lambda binding: binding.copy_outputs_to_cpu()[0], device)


@contextlib.contextmanager
def tensorrt(task: Task, precision: str) -> Iterator[Ready]:
    """A plan run serially: copy in, enqueue, copy out, one batch at a time. Built by 0_build.py when missing."""
    try:
        here = backend.select("tensorrt")
    except Fault as fault:
        raise Missing(f"TensorRT and an NVIDIA GPU ({fault})") from None
    plan, wanted = task.plan(precision), [] if precision == "fp32" else [f"--{precision}"]
    if unusable(plan, plan) and (problem := task.build("--backend", "tensorrt", *wanted)):
        raise Missing(f"a plan; the build failed: {problem}")
    used_before, engine = used_memory(), Engine(plan)
    engine.require_precision(precision)
    profile = engine.profile_for(task.batch)
    if profile is None:
        raise Missing(f"a plan for batches of {task.batch}: python 0_build.py --profile 1,{task.batch},{task.batch}")
    context = engine.create_context(profile)
    host_input = page_locked(engine.input_shape(task.batch), engine.input_type)
    host_output = page_locked(engine.output_shape(task.batch), engine.output_type(task.batch))
    with Stream() as stream, DeviceBuffer(host_input.nbytes) as device_input, DeviceBuffer(host_output.nbytes) as device_output:
        context.set_input_shape(host_input.shape)
        context.bind(device_input, device_output)

        def load(images: np.ndarray) -> None:
            write(images, host_input)
            copy_to_device(device_input, host_input)

        def infer(_: None) -> None:
            if task.transfers:
                copy_to_device_async(device_input, host_input, stream)
            context.execute_async_v3(stream)
            if task.transfers:
                copy_to_host_async(host_output, device_output, stream)
            stream.synchronize()

        def output(_: None) -> np.ndarray:
            copy_to_host(host_output, device_output)
            return host_output.astype(np.float32)

        def memory_mb() -> float:
            return (used_memory() - used_before) / 1e6

        yield Ready(here.library, load, infer, output, here.device, memory_mb, engine.facts.get("build_s"))


@contextlib.contextmanager
def pipeline(task: Task, precision: str) -> Iterator[Ready]:
    """The same plan in stage 7's pipeline: several batches in flight. It has a rate; latency is not its subject."""
    if not task.transfers:
        raise Missing("--transfers in: a pipeline without transfers is none")
    with tensorrt(task, precision) as ready, tempfile.TemporaryDirectory() as folder:

        def rate() -> Record:
            path = Path(folder) / "record.json"
            what = ["--backend", "tensorrt", "--plan", task.plan(precision), "--precision", precision, "--batch", task.batch]
            problem, record = run_quietly("7_cuda_graph.py", *what, "--json", path), Record.read(path)
            if problem or record is None:
                raise EnvironmentFault(str(problem))
            return record

        yield replace(ready, rate=rate)


KINDS: list[tuple[str, str, Callable[..., AbstractContextManager[Ready]]]] = [
    ("PyTorch eager", "fp32 fp16", pytorch),
    ("PyTorch compile (default)", "fp32", partial(pytorch, mode="default")),
    ("PyTorch compile (max-autotune)", "fp16", partial(pytorch, mode="max-autotune")),
    ("ONNX Runtime CPU", "fp32 int8", partial(onnx_runtime, provider="CPU")),
    ("ONNX Runtime CUDA", "fp32 fp16", partial(onnx_runtime, provider="CUDA")),
    ("ONNX Runtime Tensorrt", "fp16", partial(onnx_runtime, provider="Tensorrt")),
    ("TensorRT", "fp32 fp16 int8", tensorrt),
    ("TensorRT, stage 7's pipeline", "fp16 int8", pipeline),
]
CONTENDERS = [Contender(name, precision, prepare) for name, precisions, prepare in KINDS for precision in precisions.split()]
"""In the order of the table."""
