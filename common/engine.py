"""TensorRT engines: loading a plan with its sidecar checked first, and execution contexts whose calls are checked."""

from __future__ import annotations

import functools
import json
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from common import backend, just_in_time, layers
from common.buffers import DeviceBuffer
from common.checked import TensorRTError, logger, require, started
from common.cuda import Stream
from common.errors import EnvironmentFault
from common.plans import check_sidecar, rebuild
from common.tensors import End, are_scores, check_ends, packed


class Context:
    """An execution context: TensorRT's own calls, each raising ``TensorRTError`` instead of returning False.

    Use one from one thread and on one stream at a time: its enqueues share one set of activations.
    """

    def __init__(self, engine: Engine, profile: int) -> None:
        self._engine = engine
        create = "create_execution_context"
        self.trt_context = require(engine.trt_engine.create_execution_context(*engine.runtime_config), create)
        if self.trt_context.active_optimization_profile != profile:
            call = f"set_optimization_profile_async({profile})"
            with Stream() as stream:
                require(self.trt_context.set_optimization_profile_async(profile, stream.handle), call)

    def set_input_shape(self, shape: tuple[int, ...]) -> None:
        require(self.trt_context.set_input_shape(self._engine.input_name, shape), f"set_input_shape({tuple(shape)})")
        self._offsets = self._engine.offsets(shape[0])

    def bind(self, device_input: DeviceBuffer, device_output: DeviceBuffer) -> None:
        """``set_tensor_address`` for the input, and for the outputs, which lie behind one another: what later enqueues read
        and write. The shape must be set before."""
        addresses = {name: device_output.address + offset for name, offset in self._offsets.items()}
        for name, address in {self._engine.input_name: device_input.address, **addresses}.items():
            require(self.trt_context.set_tensor_address(name, address), f"set_tensor_address({name!r})")

    def execute_async_v3(self, stream: Stream | None) -> None:
        """Enqueue inference on ``stream``; None is the default stream."""
        require(self.trt_context.execute_async_v3(stream.handle if stream is not None else 0), "execute_async_v3")


class Engine:
    """A deserialized plan whose input are images; ``facts`` are its sidecar's, ``notes`` what it does not tell.

    A version-compatible plan holds a runtime of its own, a program that runs in this process with all its rights. That is
    allowed only where the sidecar proves that the plan is what ``0_build.py`` wrote, byte for byte, or where it is ``trusted``.
    ``built`` is the plan in the process that has just built it, when it has no sidecar yet.
    """

    def __init__(self, plan: Path, trusted: bool = False, built: bytes | None = None) -> None:
        self.plan, self.notes, trt = plan, list[str](), backend.current().tensorrt
        self.facts = check_sidecar(plan) if built is None else {}
        self.has_code = trusted or self.facts.get("version_compatible") is True
        self._runtime = runtime = started(trt.Runtime, "Runtime")  # kept: an engine does not outlive its runtime
        if self.has_code:
            runtime.engine_host_code_allowed = True
        self.trt_engine = runtime.deserialize_cuda_engine(plan.read_bytes() if built is None else built)
        if self.trt_engine is None:
            mend = f"Build it: {rebuild(plan, self.facts)}"
            if not self.facts and not trusted:
                mend += ", or, if it is a version-compatible one of your own, add --trust-plan"
            raise EnvironmentFault(f"{plan} is not a plan that this TensorRT can load ({logger().said()}). {mend}")
        self.runtime_config = just_in_time.runtime_config(self.trt_engine, plan)
        found: dict[Any, list[End]] = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
        for name in (self.trt_engine.get_tensor_name(index) for index in range(self.trt_engine.num_io_tensors)):
            end = End(name, tuple(self.trt_engine.get_tensor_shape(name)), self.trt_engine.get_tensor_dtype(name).name)
            found[self.trt_engine.get_tensor_mode(name)].append(end)
        self.input, self.outputs = check_ends(plan, *found.values())
        self.input_name, self.input_type = self.input.name, self.input.type

    def input_shape(self, batch: int) -> tuple[int, ...]:
        return packed([self.input], batch)[0]

    def output_shape(self, batch: int) -> tuple[int, ...]:
        """Of the array that takes a batch's outputs (see ``common.tensors.packed``), as is ``output_type``."""
        return packed(self.outputs, batch)[0]

    def output_type(self, batch: int) -> np.dtype:
        return packed(self.outputs, batch)[1]

    def offsets(self, batch: int) -> dict[str, int]:
        """Where in a batch's buffer each output begins."""
        fields = self.output_type(batch).fields
        return {end.name: fields[end.name][1] if fields else 0 for end in self.outputs}

    def nbytes(self, batch: int) -> tuple[int, int]:
        """Bytes of a batch's input, and of its outputs."""
        (shape, dtype), (output_shape, output_type) = packed([self.input], batch), packed(self.outputs, batch)
        return prod(shape) * dtype.itemsize, prod(output_shape) * output_type.itemsize

    @property
    def classifies(self) -> bool:
        """Whether the outputs are one score for each class."""
        return are_scores(*packed(self.outputs, 1))

    @property
    def profiles(self) -> list[tuple[int, int, int]]:
        """(smallest, most common, largest) batch of each optimization profile."""
        indices = range(self.trt_engine.num_optimization_profiles)
        shapes = [self.trt_engine.get_tensor_profile_shape(self.input_name, index) for index in indices]
        return [(low[0], opt[0], high[0]) for low, opt, high in shapes]

    def profile_for(self, batch: int) -> int | None:
        """The profile with the smallest largest batch that takes ``batch``; of two, that with the nearer OPT. None without one.

        A simulated batch needs the profile of the batch that it is charged as.
        """
        batch = backend.current().charged(batch)
        shapes = enumerate(self.profiles)
        fitting = [(high, abs(opt - batch), index) for index, (low, opt, high) in shapes if low <= batch <= high]
        return min(fitting)[-1] if fitting else None

    def create_context(self, profile: int | None = 0) -> Context:
        """A context for one of the profiles; None is what ``profile_for`` answers where no profile fits."""
        if profile is None:
            raise EnvironmentFault(f"{self.plan} has no profile for these batches: they are for {self.profiles}.")
        return Context(self, profile)

    def graph_contexts(self, count: int, shape: tuple[int, ...]) -> list[Context]:
        """Contexts for as many graphs, with the shape set: one for all, but one each with TensorRT for RTX."""
        contexts = [self.create_context() for _ in range(count if self.runtime_config else 1)]
        for context in contexts:
            context.set_input_shape(shape)
        return (contexts * count)[:count]

    @property
    def context_memory(self) -> int:
        """Bytes of device memory that each execution context takes for activations; 0 where TensorRT does not tell."""
        sizes = (getattr(self.trt_engine, name, None) for name in ("device_memory_size_v2", "device_memory_size"))
        size = next((size for size in sizes if size), 0)
        if size == 0 and self.has_code:
            self.untold("the memory that a context takes", logger().said() or "it says 0")
        return size

    def untold(self, what: str, why: object) -> None:
        """Note what this TensorRT does not tell of an engine that another version has built."""
        note = f"{backend.current().library} does not tell {what} of this version-compatible engine: {str(why).rstrip('.')}"
        self.notes += [] if note in self.notes else [note]

    def precisions(self) -> Counter[str]:
        """How many layers work in fp32, fp16, int8, …, as the engine inspector tells, or the one of the builder has told."""
        return layers.precisions(self.layers) or Counter(self.facts.get("precisions", {}))

    @functools.cached_property
    def layers(self) -> list[Any]:
        """The layers in the engine inspector's JSON: objects, or mere names in a plan built without details."""
        try:
            return self.inspect()
        except (RuntimeError, ValueError, TensorRTError) as error:
            if not self.has_code:
                raise
            known = " (their precision is what the builder told the sidecar)" * ("precisions" in self.facts)
            self.untold("the layers", f"{error}{known}")
            return []

    def inspect(self) -> list[Any]:
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
        layers.require_precision(self.precisions(), precision, self.plan)
