"""TensorRT engines: loading a plan with its sidecar checked first, and execution contexts whose calls are checked."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import backend
from common.buffers import DeviceBuffer
from common.console import err
from common.cuda import Stream
from common.errors import EnvironmentFault
from common.images import channels_first
from common.plans import check_sidecar, rebuild


class TensorRTError(EnvironmentFault):
    """A TensorRT call failed; the message has the call and what TensorRT logged."""


def logger() -> Any:
    """The process's TensorRT logger. It prints nothing and keeps the last error, for the message that will name it."""
    return _logger(backend.current().tensorrt)


@functools.cache
def _logger(trt: Any) -> Any:
    class LastError(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last = " ".join(msg.split())

    return LastError()


def require(result: Any, call: str) -> Any:
    """Return ``result``, or raise ``TensorRTError`` where TensorRT answered False or None."""
    if result is None or result is False:
        said, logger().last = logger().last, ""
        raise TensorRTError(f"{call} failed: {said or 'TensorRT gave no reason'}.")
    return result


class Context:
    """An execution context: TensorRT's own calls, each raising ``TensorRTError`` instead of returning False.

    Use one from one thread and on one stream at a time: its enqueues share one set of activations.
    """

    def __init__(self, engine: Engine, profile: int) -> None:
        self._engine = engine
        self.trt_context = require(engine.trt_engine.create_execution_context(), "create_execution_context")
        if self.trt_context.active_optimization_profile != profile:
            call = f"set_optimization_profile_async({profile})"
            with Stream() as stream:
                require(self.trt_context.set_optimization_profile_async(profile, stream.handle), call)

    def set_input_shape(self, shape: tuple[int, ...]) -> None:
        require(self.trt_context.set_input_shape(self._engine.input_name, shape), f"set_input_shape({tuple(shape)})")

    def bind(self, device_input: DeviceBuffer, device_output: DeviceBuffer) -> None:
        """``set_tensor_address`` for the input and the output: what later enqueues read and write."""
        for name, buffer in ((self._engine.input_name, device_input), (self._engine.output_name, device_output)):
            require(self.trt_context.set_tensor_address(name, buffer.address), f"set_tensor_address({name!r})")

    def execute_async_v3(self, stream: Stream | None) -> None:
        """Enqueue inference on ``stream``; None is the default stream."""
        require(self.trt_context.execute_async_v3(stream.handle if stream is not None else 0), "execute_async_v3")


End = tuple[str, tuple[int, ...], str]
"""Of an input or output: its name, its shape (-1: dynamic), its data type as TensorRT and ONNX name it."""


def check_ends(file: Path, inputs: Sequence[End], outputs: Sequence[End]) -> tuple[str, str]:
    """Names of a network's input and output; raises ``EnvironmentFault`` where they are not such as the ladder runs."""
    ends = [*inputs, *outputs]
    if len(inputs) == len(outputs) == 1 and all(dtype == "FLOAT" for *_, dtype in ends):
        (name, shape, _), (output, result, _) = ends
        images, scores = channels_first(shape[1:]) is not None, len(result) > 1 and min(result[1:]) > 0
        if images and scores and result[0] in (shape[0], -1):
            return name, output
    found = [f"{name} {dtype} {list(shape)}" for name, shape, dtype in ends]
    raise EnvironmentFault(
        f"{file} takes ({', '.join(found[: len(inputs)])}) and gives ({', '.join(found[len(inputs) :])}), and the ladder runs "
        "one FP32 input of images, N×C×H×W or N×H×W×C with 1, 3 or 4 channels, and one FP32 output of N rows, N alone dynamic."
    )


class Engine:
    """A deserialized plan with one image input and one output; ``facts`` are its sidecar's."""

    def __init__(self, plan: Path) -> None:
        self.plan, self.facts, trt = plan, check_sidecar(plan), backend.current().tensorrt
        self._runtime = runtime = require(trt.Runtime(logger()), "Runtime")  # kept: an engine does not outlive its runtime
        self.trt_engine = runtime.deserialize_cuda_engine(plan.read_bytes())
        if self.trt_engine is None:
            said, logger().last = logger().last, ""
            mend = f"Build it: {rebuild(plan, self.facts)}"
            raise EnvironmentFault(f"{plan} is not a plan that this TensorRT can load ({said}). {mend}")
        found: dict[Any, list[End]] = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
        for name in (self.trt_engine.get_tensor_name(index) for index in range(self.trt_engine.num_io_tensors)):
            end = (name, tuple(self.trt_engine.get_tensor_shape(name)), self.trt_engine.get_tensor_dtype(name).name)
            found[self.trt_engine.get_tensor_mode(name)].append(end)
        self.input_name, self.output_name = check_ends(plan, *found.values())

    def input_shape(self, batch: int) -> tuple[int, ...]:
        return (batch, *tuple(self.trt_engine.get_tensor_shape(self.input_name))[1:])

    def output_shape(self, batch: int) -> tuple[int, ...]:
        return (batch, *tuple(self.trt_engine.get_tensor_shape(self.output_name))[1:])

    @property
    def profiles(self) -> list[tuple[int, int, int]]:
        """(smallest, most common, largest) batch of each optimization profile."""
        indices = range(self.trt_engine.num_optimization_profiles)
        shapes = [self.trt_engine.get_tensor_profile_shape(self.input_name, index) for index in indices]
        return [(low[0], opt[0], high[0]) for low, opt, high in shapes]

    def profile_for(self, batch: int) -> int | None:
        """The profile with the smallest largest batch that takes ``batch``; None where none does.

        A simulated batch needs the profile of the batch that it is charged as.
        """
        batch = backend.current().charged(batch)
        fitting = [(high, index) for index, (low, _, high) in enumerate(self.profiles) if low <= batch <= high]
        return min(fitting)[1] if fitting else None

    def create_context(self, profile: int | None = 0) -> Context:
        """A context for one of the profiles; None is what ``profile_for`` answers where no profile fits."""
        if profile is None:
            raise EnvironmentFault(f"{self.plan} has no profile for these batches: they are for {self.profiles}.")
        return Context(self, profile)

    @property
    def context_memory(self) -> int:
        """Bytes of device memory that each execution context takes for activations."""
        sizes = (getattr(self.trt_engine, name, None) for name in ("device_memory_size_v2", "device_memory_size"))
        return next(size for size in sizes if size is not None)

    def layer_names(self) -> list[str]:
        """The engine's layers; a fused one is named after all the nodes it was made of."""
        return [str(layer["Name"] if isinstance(layer, dict) else layer) for layer in self.layers()]

    def precisions(self) -> Counter[str]:
        """How many layers write fp32, fp16, int8, … outputs, as the engine inspector tells."""
        return Counter(filter(None, map(layer_precision, self.layers())))

    def layers(self) -> list[Any]:
        """The layers in the engine inspector's JSON: objects, or mere names in a plan built without details."""
        trt = backend.current().tensorrt
        inspector = require(self.trt_engine.create_engine_inspector(), "create_engine_inspector")
        try:  # of an engine with dynamic shapes, more is told for a context's shapes
            context = self.create_context()
            context.set_input_shape(self.input_shape(self.profiles[0][0]))
            inspector.execution_context = context.trt_context
        except TensorRTError:
            pass  # a plan too large for this GPU's memory can still be inspected
        text = require(inspector.get_engine_information(trt.LayerInformationFormat.JSON) or None, "get_engine_information")
        return json.loads(text, strict=False)["Layers"]  # 8.6 leaves control characters in its strings

    def require_precision(self, precision: str) -> None:
        """Raise where the engine's layers do not work in ``precision``: a build may have quietly chosen another.

        An inspector that does not tell (a plan built without detailed profiling verbosity, or a TensorRT whose words
        this does not know) proves nothing either way, and that is said.
        """
        found = self.precisions()
        if not found:
            err.print(f"{self.plan}: the engine inspector does not tell its layers' precision: {precision} is not confirmed")
        elif found.most_common(1)[0][0] != precision:
            counts = ", ".join(f"{count} {name}" for name, count in found.most_common())
            mend = f"Build one: python 0_build.py --{precision}"
            raise EnvironmentFault(f"{self.plan} is not a {precision} engine: its layers work in {counts}. {mend}")


TACTIC_NAMES = {"f32f32": "FP32", "f16f16": "FP16", "h1688": "FP16", "h884": "FP16", "i8i8": "INT8", "bf16bf16": "BF16"}
"""What kernels call their inputs: with dynamic shapes TensorRT 8.6 tells a layer's kernel but not its types."""
PRECISION_NAMES = {"fp32": r"FP32|Float\b", "fp16": r"FP16|Half", "bf16": r"BF16", "int8": r"INT8|Int8", "fp8": r"FP8"}


def layer_precision(layer: Any) -> str | None:
    """The precision of a layer's first output in the inspector's JSON; None where it does not say or only reformats."""
    if not isinstance(layer, dict) or layer.get("LayerType") in ("Reformat", "NoOp", "Shape"):
        return None
    text = " ".join(str(output.get(key, "")) for output in layer.get("Outputs", [])[:1] for key in output if key != "Name")
    text += " " + " ".join(TACTIC_NAMES[name] for name in TACTIC_NAMES if name in str(layer.get("TacticName", "")))
    return next((name for name, pattern in PRECISION_NAMES.items() if re.search(pattern, text)), None)
