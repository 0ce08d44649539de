"""The engines that compare_engines compares, behind one face: PyTorch, torch.compile, ONNX Runtime, TensorRT.

Each is given the same batch in host memory and leaves its logits in host memory (transfers in the time), or works from
and to its own device (transfers out of the time). Packages are imported by the engine that needs them.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import backend, models
from common import engine as plans
from common.buffers import DeviceBuffer, copy_to_device_async, copy_to_host_async, page_locked
from common.cuda import Stream
from common.errors import EnvironmentFault, Fault
from common.session import used_memory
from scripts.processes import run_quietly

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Task:
    """What every engine is to do: this model with these weights, batches of this size, transfers timed or not."""

    model: str
    weights: str
    seed: int
    batch: int
    transfers: bool

    @property
    def tag(self) -> str:
        return models.tag(self.model, self.weights, self.seed)

    def onnx(self, precision: str) -> Path:
        return ROOT / "models" / f"{self.tag}-{precision}.onnx"

    def plan(self, precision: str) -> Path:
        return ROOT / "plans" / f"{self.tag}-{precision}.plan"


class Missing(Exception):
    """This machine lacks what the engine needs; the message says what."""


class Engine:
    """One engine. ``prepare`` may raise ``Missing``; after it ``load``, ``infer``, ``synchronize`` and ``output`` may be
    called in that order, any number of times."""

    name: str
    precision: str

    def prepare(self, task: Task) -> None:
        """Load, compile or build."""
        raise NotImplementedError

    def load(self, images: np.ndarray) -> None:
        """Take the next batch, N×3×S×S FP32: into page-locked memory, or onto the device where transfers are not timed."""
        raise NotImplementedError

    def infer(self) -> None:
        """What is timed."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait until ``infer`` is over; timed as well."""

    def output(self) -> np.ndarray:
        """The logits of the last batch, N×C FP32."""
        raise NotImplementedError

    def memory_mb(self) -> float | None:
        """Device memory that the engine holds; None on a CPU."""
        return None

    def device(self) -> str:
        return "CPU"

    def version(self) -> str:
        raise NotImplementedError

    def build_s(self) -> float | None:
        """Seconds that an earlier build took, where ``prepare`` only loads its result."""
        return None

    def close(self) -> None:
        """Give everything back."""


class PyTorch(Engine):
    """Eager, or compiled in ``mode``. FP16 means weights and activations in half, channels last."""

    def __init__(self, precision: str, mode: str | None = None) -> None:
        self.precision, self.mode = precision, mode
        self.name = f"PyTorch {'eager' if mode is None else f'compile ({mode})'}"

    def prepare(self, task: Task) -> None:
        try:
            import torch
        except ImportError:
            raise Missing("pip install torch torchvision") from None
        self.torch, self.task = torch, task
        self.where = "cuda" if torch.cuda.is_available() else "cpu"
        if self.precision == "fp16" and self.where == "cpu":
            raise Missing("an NVIDIA GPU (FP16 convolutions on a CPU are emulated)")
        self.dtype = {"fp32": torch.float32, "fp16": torch.float16}[self.precision]
        self.format = torch.channels_last if self.precision == "fp16" else torch.contiguous_format
        self.free_before = torch.cuda.mem_get_info()[0] if self.where == "cuda" else 0
        self.model = models.create_model(task.model, task.weights, task.seed)[0]
        self.model = self.model.to(self.where, self.dtype, memory_format=self.format)
        if self.mode is not None:
            self.model = torch.compile(self.model, mode=None if self.mode == "default" else self.mode)
        self.images: Any = None

    def load(self, images: np.ndarray) -> None:
        self.images = self.torch.from_numpy(images)
        if self.where == "cuda" and self.task.transfers:
            self.images = self.images.pin_memory()
        elif not self.task.transfers:
            self.images = self._to_device()

    def _to_device(self) -> Any:
        return self.images.to(self.where, non_blocking=True).to(self.dtype, memory_format=self.format)

    def infer(self) -> None:
        with self.torch.inference_mode():
            if self.task.transfers:
                self.logits = self.model(self._to_device()).float().cpu()
            else:
                self.logits = self.model(self.images)

    def synchronize(self) -> None:
        if self.where == "cuda":
            self.torch.cuda.synchronize()

    def output(self) -> np.ndarray:
        return self.logits.float().cpu().numpy()

    def memory_mb(self) -> float | None:
        return (self.free_before - self.torch.cuda.mem_get_info()[0]) / 1e6 if self.where == "cuda" else None

    def device(self) -> str:
        return self.torch.cuda.get_device_name() if self.where == "cuda" else "CPU"

    def version(self) -> str:
        return f"PyTorch {self.torch.__version__}"

    def close(self) -> None:
        self.model = self.images = self.logits = None
        if self.mode is not None:
            self.torch._dynamo.reset()
        if self.where == "cuda":
            self.torch.cuda.empty_cache()


class OnnxRuntime(Engine):
    """One of ONNX Runtime's execution providers."""

    def __init__(self, precision: str, provider: str) -> None:
        self.precision, self.provider = precision, provider
        self.name = f"ONNX Runtime {provider}"

    def prepare(self, task: Task) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise Missing("pip install onnxruntime") from None
        self.ort, self.task = onnxruntime, task
        wanted = f"{self.provider}ExecutionProvider"
        if wanted not in onnxruntime.get_available_providers():
            raise Missing(f"an onnxruntime with the {wanted} (pip install onnxruntime-gpu) and an NVIDIA GPU")
        if not task.onnx(self.precision).exists():
            raise Missing(f"{task.onnx(self.precision).name}: python 0_build.py --{self.precision} --calibration-images DIR")
        if self.provider != "CPU":
            onnxruntime.preload_dlls()  # CUDA's and cuDNN's libraries from their Python packages, where those are installed
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        settings = {"trt_fp16_enable": True} if self.provider == "Tensorrt" and self.precision == "fp16" else {}
        self.session = onnxruntime.InferenceSession(str(task.onnx(self.precision)), options, providers=[(wanted, settings)])
        if wanted not in self.session.get_providers():
            raise Missing(f"{wanted}'s libraries, which could not be loaded here")
        self.input, self.result = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name

    def load(self, images: np.ndarray) -> None:
        self.images = images
        if self.provider != "CPU":
            torch = torch_with_gpu()
            if torch is not None:  # into page-locked memory; from ordinary memory the copies are slower
                self.images = torch.from_numpy(images).pin_memory().numpy()
            self.binding = self.session.io_binding()
            place = ("cpu", 0) if self.task.transfers else ("cuda", 0)
            self.value = self.ort.OrtValue.ortvalue_from_numpy(self.images, *place)
            self.binding.bind_ortvalue_input(self.input, self.value)
            self.binding.bind_output(self.result, *place)

    def infer(self) -> None:
        if self.provider == "CPU":
            self.logits = self.session.run([self.result], {self.input: self.images})[0]
        else:
            self.session.run_with_iobinding(self.binding)

    def synchronize(self) -> None:
        if self.provider != "CPU":
            self.binding.synchronize_outputs()

    def output(self) -> np.ndarray:
        return self.logits if self.provider == "CPU" else self.binding.copy_outputs_to_cpu()[0]

    def device(self) -> str:
        if self.provider == "CPU":
            return "CPU"
        torch = torch_with_gpu()
        return torch.cuda.get_device_name() if torch is not None else "GPU 0"

    def version(self) -> str:
        return f"ONNX Runtime {self.ort.__version__}"


def torch_with_gpu() -> Any:
    """PyTorch, where it is installed and sees a GPU; else None."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


class TensorRT(Engine):
    """A plan run serially: copy in, enqueue, copy out, one batch at a time. Built by 0_build.py when missing."""

    name = "TensorRT"

    def __init__(self, precision: str) -> None:
        self.precision = precision

    def prepare(self, task: Task) -> None:
        self.task, self.resources = task, contextlib.ExitStack()
        self.plan = build_plan(task, self.precision)
        self.used_before = used_memory()
        self.engine = plans.Engine(self.plan)
        self.engine.require_precision(self.precision)
        if self.engine.profile_for(task.batch) is None:
            raise Missing(f"a plan for batches of {task.batch}: python 0_build.py --profile 1,{task.batch},{task.batch}")
        self.context = self.engine.create_context(self.engine.profile_for(task.batch))
        self.context.set_input_shape(self.engine.input_shape(task.batch))
        self.host_input = page_locked(self.engine.input_shape(task.batch))
        self.host_output = page_locked(self.engine.output_shape(task.batch))
        self.stream = self.resources.enter_context(Stream())
        self.device_input = self.resources.enter_context(DeviceBuffer(self.host_input.nbytes))
        self.device_output = self.resources.enter_context(DeviceBuffer(self.host_output.nbytes))
        self.context.bind(self.device_input, self.device_output)

    def load(self, images: np.ndarray) -> None:
        np.copyto(self.host_input, images)
        copy_to_device_async(self.device_input, self.host_input, self.stream)
        self.stream.synchronize()

    def infer(self) -> None:
        if self.task.transfers:
            copy_to_device_async(self.device_input, self.host_input, self.stream)
        self.context.execute_async_v3(self.stream)
        if self.task.transfers:
            copy_to_host_async(self.host_output, self.device_output, self.stream)

    def synchronize(self) -> None:
        self.stream.synchronize()

    def output(self) -> np.ndarray:
        copy_to_host_async(self.host_output, self.device_output, self.stream)
        self.stream.synchronize()
        return self.host_output.copy()

    def memory_mb(self) -> float | None:
        return (used_memory() - self.used_before) / 1e6

    def device(self) -> str:
        return backend.current().device

    def version(self) -> str:
        return backend.current().engine

    def build_s(self) -> float | None:
        return self.engine.facts.get("build_s")

    def close(self) -> None:
        self.resources.close()


class Pipeline(TensorRT):
    """The same plan in stage 7's pipeline: several batches in flight. It has a rate; latency is not its subject."""

    name = "TensorRT, stage 7's pipeline"

    def rate(self, seconds: float, folder: Path) -> dict[str, Any]:
        """Milliseconds a batch over a measured window of about ``seconds``, from the stage's own record."""
        path = folder / f"stage7-{self.task.tag}-{self.precision}-b{self.task.batch}.json"
        self.synchronize()
        started = time.perf_counter()
        self.infer()
        self.synchronize()
        count = max(20, min(2000, int(seconds / max(1e-4, time.perf_counter() - started))))
        problem = run_quietly(
            [sys.executable, str(ROOT / "7_cuda_graph.py"), "--backend", "tensorrt", "--plan", str(self.plan), "--precision",
             self.precision, "--batch", str(self.task.batch), "--batches", str(count + 10), "--measure", str(count),
             "--json", str(path)])
        if problem:
            raise EnvironmentFault(problem)
        record = json.loads(path.read_text())
        path.unlink()
        return record


def run_build(task: Task, *options: str) -> str | None:
    """Run 0_build.py for the task's model; what went wrong, or None."""
    return run_quietly([sys.executable, str(ROOT / "0_build.py"), "--model", task.model, "--weights", task.weights, "--seed",
                        str(task.seed), *options])


def build_plan(task: Task, precision: str) -> Path:
    """The model's plan for this GPU; ``Missing`` where there is no TensorRT, or where the build lacks something."""
    try:
        backend.select("tensorrt")
    except Fault as fault:
        raise Missing(f"TensorRT and an NVIDIA GPU ({fault})") from None
    plan = task.plan(precision)
    if not plan.exists():
        if not task.onnx(precision).exists():
            raise Missing(f"{task.onnx(precision).name}: python 0_build.py --export-only with a Python that has PyTorch"
                          + (" (INT8: and --int8 --calibration-images DIR)" if precision == "int8" else ""))
        flag = [] if precision == "fp32" else [f"--{precision}"]
        if problem := run_build(task, "--backend", "tensorrt", *flag):
            raise Missing(f"a plan; the build failed: {problem}")
    return plan


def engines() -> list[Engine]:
    """All that are compared, in the order of the table."""
    return [
        PyTorch("fp32"), PyTorch("fp16"), PyTorch("fp32", "default"), PyTorch("fp16", "max-autotune"),
        OnnxRuntime("fp32", "CPU"), OnnxRuntime("int8", "CPU"), OnnxRuntime("fp32", "CUDA"), OnnxRuntime("fp16", "CUDA"),
        OnnxRuntime("fp16", "Tensorrt"),
        TensorRT("fp32"), TensorRT("fp16"), TensorRT("int8"), Pipeline("fp16"), Pipeline("int8"),
    ]
