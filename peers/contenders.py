"""What compare_engines compares, behind one face: PyTorch, torch.compile, ONNX Runtime, TensorRT.

Each is given the same batch in host memory and leaves its logits in host memory (transfers in the time), or works from
and to its own device (transfers out of the time). Packages are imported by the contender that needs them.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common import backend
from common.buffers import DeviceBuffer, copy_to_device, copy_to_device_async, copy_to_host, copy_to_host_async, page_locked
from common.cuda import Stream
from common.engine import Engine
from common.errors import EnvironmentFault, Fault
from common.files import sha256
from common.plans import unusable
from common.record import Record
from common.session import used_memory
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
    def weights_name(self) -> str:
        file = Path(self.weights)
        return file.name if file.is_file() else f"{self.weights} weights"

    @property
    def weights_sha256(self) -> str:
        """The hash of a file of weights; `random` and `imagenet` are names already."""
        return sha256(Path(self.weights)) if Path(self.weights).is_file() else self.weights

    def onnx(self, precision: str) -> Path:
        return ROOT / "models" / f"{self.tag}-{precision}.onnx"

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


class Contender(Protocol):
    """One way to run a model: ``prepare``, then ``load``, ``infer`` and ``output`` in that order, any number of times.

    ``prepare`` loads, compiles or builds, or raises ``Missing``. ``load`` takes the next batch, N×3×S×S FP32: into
    page-locked memory, or onto the device where transfers are not timed. ``infer`` is what is timed, to its end. ``output``
    is the last batch's logits, N×C FP32. ``close`` gives everything back, however far ``prepare`` came.
    """

    name: str
    precision: str
    version: str  # the library and its version
    device: str = "CPU"
    build_s: float | None = None  # seconds of an earlier build, whose result ``prepare`` only loads

    def prepare(self, task: Task) -> None: ...
    def load(self, images: np.ndarray) -> None: ...
    def infer(self) -> None: ...
    def output(self) -> np.ndarray: ...
    def close(self) -> None:
        return

    def memory_mb(self) -> float | None:
        """Device memory that it holds; None on a CPU, or where it cannot tell."""
        return None


def installed(package: str) -> Any:
    """The package, or None where this Python does not have it."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(package)


class PyTorch(Contender):
    """Eager, or compiled in ``mode``. FP16 means weights and activations in half, channels last."""

    torch: Any = None
    gpu = False

    def __init__(self, precision: str, mode: str | None = None) -> None:
        self.precision, self.mode = precision, mode
        self.name = f"PyTorch compile ({mode})" if mode else "PyTorch eager"

    def prepare(self, task: Task) -> None:
        torch, half = installed("torch"), self.precision == "fp16"
        if not torch:
            raise Missing("pip install torch torchvision")
        self.torch, self.transfers, self.version = torch, task.transfers, f"PyTorch {torch.__version__}"
        self.gpu = torch.cuda.is_available()
        if self.gpu:
            self.device, self.free_before = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
        elif half:
            raise Missing("an NVIDIA GPU (FP16 convolutions on a CPU are emulated)")
        self.where = "cuda" if self.gpu else "cpu"
        self.form = {"dtype": torch.half, "memory_format": torch.channels_last} if half else {"dtype": torch.float}
        self.model = create_model(task.model, task.weights, models.SEED)[0].to(self.where, **self.form)
        if self.mode:
            self.model = torch.compile(self.model, mode=None if self.mode == "default" else self.mode)

    def load(self, images: np.ndarray) -> None:
        self.images = self.torch.from_numpy(images)
        if not self.transfers:
            self.images = self._on_device()
        elif self.gpu:
            self.images = self.images.pin_memory()

    def _on_device(self) -> Any:
        return self.images.to(self.where, non_blocking=True).to(**self.form)

    def infer(self) -> None:
        with self.torch.inference_mode():
            self.logits = self.model(self._on_device()).float().cpu() if self.transfers else self.model(self.images)
        if self.gpu:
            self.torch.cuda.synchronize()

    def output(self) -> np.ndarray:
        return self.logits.float().cpu().numpy()

    def memory_mb(self) -> float | None:
        return (self.free_before - self.torch.cuda.mem_get_info()[0]) / 1e6 if self.gpu else None

    def close(self) -> None:
        for name in ("model", "images", "logits"):
            vars(self).pop(name, None)
        if self.mode and self.torch:
            self.torch._dynamo.reset()
        if self.gpu:
            self.torch.cuda.empty_cache()


class OnnxRuntime(Contender):
    """One of ONNX Runtime's execution providers."""

    def __init__(self, precision: str, provider: str) -> None:
        self.precision, self.provider = precision, provider
        self.name = f"ONNX Runtime {provider}"

    def prepare(self, task: Task) -> None:
        ort, provider, file = installed("onnxruntime"), f"{self.provider}ExecutionProvider", task.onnx(self.precision)
        if not ort:
            raise Missing("pip install onnxruntime")
        if provider not in ort.get_available_providers():
            raise Missing(f"an onnxruntime with the {provider} (pip install onnxruntime-gpu) and an NVIDIA GPU")
        if not file.exists():
            raise Missing(f"{file.name}: python 0_build.py --{self.precision} --calibration-images DIR")
        self.ort, self.torch, self.version = ort, None, f"ONNX Runtime {ort.__version__}"
        self.place = "cpu" if task.transfers or self.provider == "CPU" else "cuda"
        if self.provider != "CPU":
            ort.preload_dlls()  # CUDA's and cuDNN's libraries from their Python packages, where those are installed
            torch = installed("torch")
            self.torch = torch if torch and torch.cuda.is_available() else None
            self.device = self.torch.cuda.get_device_name() if self.torch else "GPU 0"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        settings = {"trt_fp16_enable": True} if self.provider == "Tensorrt" and self.precision == "fp16" else {}
        self.session = ort.InferenceSession(str(file), options, providers=[(provider, settings)])
        if provider not in self.session.get_providers():
            raise Missing(f"{provider}'s libraries, which could not be loaded here")

    def load(self, images: np.ndarray) -> None:
        if self.torch:  # into page-locked memory; from ordinary memory the copies are slower
            images = self.torch.from_numpy(images).pin_memory().numpy()
        self.images = self.ort.OrtValue.ortvalue_from_numpy(images, self.place, 0)
        self.binding = self.session.io_binding()
        self.binding.bind_ortvalue_input(models.INPUT, self.images)
        self.binding.bind_output(models.OUTPUT, self.place, 0)

    def infer(self) -> None:
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()

    def output(self) -> np.ndarray:
        return self.binding.copy_outputs_to_cpu()[0]


class TensorRT(Contender):
    """A plan run serially: copy in, enqueue, copy out, one batch at a time. Built by 0_build.py when missing."""

    name = "TensorRT"

    def __init__(self, precision: str) -> None:
        self.precision, self.resources = precision, contextlib.ExitStack()

    def prepare(self, task: Task) -> None:
        try:
            here = backend.select("tensorrt")
        except Fault as fault:
            raise Missing(f"TensorRT and an NVIDIA GPU ({fault})") from None
        self.task, self.plan = task, ROOT / "plans" / f"{task.tag}-{self.precision}.plan"
        precision = [] if self.precision == "fp32" else [f"--{self.precision}"]
        if unusable(self.plan, self.plan) and (problem := task.build("--backend", "tensorrt", *precision)):
            raise Missing(f"a plan; the build failed: {problem}")
        self.device, self.version, self.used_before = here.device, here.library, used_memory()
        engine = Engine(self.plan)
        engine.require_precision(self.precision)
        self.build_s, profile = engine.facts.get("build_s"), engine.profile_for(task.batch)
        if profile is None:
            raise Missing(f"a plan for batches of {task.batch}: python 0_build.py --profile 1,{task.batch},{task.batch}")
        self.context = engine.create_context(profile)
        self.host_input, self.host_output = map(page_locked, (engine.input_shape(task.batch), engine.output_shape(task.batch)))
        self.stream = self.resources.enter_context(Stream())
        buffers = (DeviceBuffer(host.nbytes) for host in (self.host_input, self.host_output))
        self.device_input, self.device_output = map(self.resources.enter_context, buffers)
        self.context.set_input_shape(self.host_input.shape)
        self.context.bind(self.device_input, self.device_output)

    def load(self, images: np.ndarray) -> None:
        np.copyto(self.host_input, images)
        copy_to_device(self.device_input, self.host_input)

    def infer(self) -> None:
        if self.task.transfers:
            copy_to_device_async(self.device_input, self.host_input, self.stream)
        self.context.execute_async_v3(self.stream)
        if self.task.transfers:
            copy_to_host_async(self.host_output, self.device_output, self.stream)
        self.stream.synchronize()

    def output(self) -> np.ndarray:
        copy_to_host(self.host_output, self.device_output)
        return self.host_output.copy()

    def memory_mb(self) -> float | None:
        return (used_memory() - self.used_before) / 1e6

    def close(self) -> None:
        self.resources.close()


class Pipeline(TensorRT):
    """The same plan in stage 7's pipeline: several batches in flight. It has a rate; latency is not its subject."""

    name = "TensorRT, stage 7's pipeline"

    def prepare(self, task: Task) -> None:
        if not task.transfers:
            raise Missing("--transfers in: a pipeline without transfers is none")
        super().prepare(task)

    def rate(self, seconds: float, folder: Path) -> Record:
        """The stage's own record of a measured window of about ``seconds``."""
        path = folder / f"stage7-{self.task.tag}-{self.precision}-b{self.task.batch}.json"
        started = time.perf_counter()
        self.infer()
        count = max(20, min(2000, int(seconds / max(1e-4, time.perf_counter() - started))))
        what = ["--backend", "tensorrt", "--plan", self.plan, "--precision", self.precision, "--batch", self.task.batch]
        problem = run_quietly("7_cuda_graph.py", *what, "--batches", count + 10, "--measure", count, "--json", path)
        record = Record.read(path)
        path.unlink(missing_ok=True)
        if problem or record is None:
            raise EnvironmentFault(str(problem))
        return record


def contenders(words: str = "") -> list[Contender]:
    """In the order of the table, all with one of these comma-separated words in their name or precision."""
    torch = PyTorch("fp32"), PyTorch("fp16"), PyTorch("fp32", "default"), PyTorch("fp16", "max-autotune")
    onnx_cpu = OnnxRuntime("fp32", "CPU"), OnnxRuntime("int8", "CPU")
    onnx_gpu = OnnxRuntime("fp32", "CUDA"), OnnxRuntime("fp16", "CUDA"), OnnxRuntime("fp16", "Tensorrt")
    tensorrt = TensorRT("fp32"), TensorRT("fp16"), TensorRT("int8"), Pipeline("fp16"), Pipeline("int8")
    found, wanted = [*torch, *onnx_cpu, *onnx_gpu, *tensorrt], [word.strip().lower() for word in words.split(",")]
    return [each for each in found if any(word in f"{each.name} {each.precision}".lower() for word in wanted)]
