"""The simulated TensorRT's execution contexts: what is set before an enqueue, and what an enqueue puts on a stream."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.enums import CudaFailure, TensorIOMode, cudaError_t, require
from sim.memory import Span
from sim.names import Ours
from sim.races import Cells, Range
from sim.simulator import simulator
from sim.sites import site
from sim.work import Event, Stream, Work, disturb

if TYPE_CHECKING:
    from sim.runtime import ICudaEngine


def setting_takes_time() -> None:
    sim = simulator()
    with sim.clock.turn() as thread:
        sim.interpret(thread, sim.device.tensorrt_call)


class IExecutionContext(Ours):
    """Shapes, addresses and the consumed event are set first; ``execute_async_v3`` takes them as they are then."""

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine, self._space = engine, simulator().space
        self._cells = Cells(f"the activations of the execution context made at {site()}")
        self.active_optimization_profile = 0
        self._shapes = self._fixed_shapes()
        self._addresses: dict[str, int] = {}
        self._consumed: int = 0
        self._initialised: Any = None
        self._activations: dict[str, np.ndarray] = {}  # one set a context: two enqueues at a time would share it

    def __del__(self) -> None:
        self._cells.gone = site()
        self._space.charge(-self.engine.device_memory_size_v2)

    def _fixed_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {name: self.engine.get_tensor_shape(name) for name in self.engine._names(TensorIOMode.INPUT)}
        return {name: shape for name, shape in shapes.items() if -1 not in shape}

    def _misused(self, what: str, function: str = "") -> bool:
        self.engine._logger._error(3, f"executionContext.cpp{function}", "API Usage Error", what)
        return False

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        setting_takes_time()
        if self.engine.get_tensor_mode(name) != TensorIOMode.INPUT:
            return self._misused(f"{name} is no input", "::setInputShape")
        low, _, high = self.engine.get_tensor_profile_shape(name, self.active_optimization_profile)
        shape = tuple(int(size) for size in shape)
        if len(shape) != len(low) or not all(a <= size <= b for a, size, b in zip(low, shape, high)):
            failed = "Parameter check failed, condition: engineDims.d[i] <= profileMaxDims.d[i]. Supplied dimensions"
            allowed = f"{list(low)} to {list(high)} of optimization profile {self.active_optimization_profile}"
            return self._misused(f"{failed} {list(shape)} for {name} are outside {allowed}.", "::validateInputBindings")
        self._shapes[name] = shape
        return True

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return self._misused(f"there is no profile {profile_index}")
        if profile_index != self.active_optimization_profile:
            self.active_optimization_profile = profile_index
            self._shapes = self._fixed_shapes()
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        setting_takes_time()
        if self.engine.get_tensor_mode(name) == TensorIOMode.NONE:
            return self._misused(f"no tensor {name}", "::setTensorAddress")
        self._addresses[name] = int(memory)
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """An input's shape as set, an output's as it follows; -1 where it does not follow yet."""
        if name in self._shapes:
            return self._shapes[name]
        batch = next((shape[0] for shape in self._shapes.values()), -1)
        return tuple(batch if size < 0 else size for size in self.engine.get_tensor_shape(name))

    def set_input_consumed_event(self, event: int) -> bool:
        setting_takes_time()
        self._consumed = int(event)
        return True

    def get_input_consumed_event(self) -> int:
        return self._consumed

    def infer_shapes(self) -> list[str]:
        """Names of the inputs whose shape is not set."""
        return [name for name in self.engine._names(TensorIOMode.INPUT) if name not in self._shapes]

    def execute_async_v3(self, stream_handle: int) -> bool:
        sim = simulator()
        with sim.clock.turn() as thread:
            unset = [*self.infer_shapes(), *(name for name in self.engine._tensors if not self._addresses.get(name))]
            if unset:
                names = ", ".join(dict.fromkeys(unset))
                return self._misused(f"Parameter check failed: address or shape is not set for {names}", "::enqueueV3")
            try:
                stream = sim.stream(stream_handle)
                wanted = (self.active_optimization_profile, tuple(self._shapes.values()))
                if self._initialised != wanted:  # this makes CUDA calls that are illegal during capture, and break it
                    if stream.capture is not None:
                        sim.remark(f"captured too early: at {site()} TensorRT prepares itself for a shape")
                    disturb(cudaError_t.cudaErrorStreamCaptureUnsupported, stream.capture)
                    self._initialised = wanted
                    thread.now += sim.device.shape_change
                thread.now += sim.device.enqueue
                self._launch(stream)
            except CudaFailure as failure:
                thread.last_error = failure.error
                where = "caskUtils.cpp::createCaskHardwareInfo::852"
                self.engine._logger._error(1, where, "Cuda Runtime", failure.error.meaning)
                return False
        return True

    def _span(self, name: str) -> Span:
        """The memory of a tensor, as the kernels see it; what is not device-accessible would be an illegal access."""
        shape, dtype = self.get_tensor_shape(name), np.dtype(self.engine.get_tensor_dtype(name).meaning)
        span = simulator().space.span(self._addresses[name], prod(shape) * dtype.itemsize, cudaError_t.cudaErrorIllegalAddress)
        require(span.kind != "pageable", cudaError_t.cudaErrorIllegalAddress)
        return Span(span.kind, span.view.view(dtype).reshape(shape), span.ranges)

    def _launch(self, stream: Stream) -> None:
        sim = simulator()
        modes = TensorIOMode.INPUT, TensorIOMode.OUTPUT
        sources, targets = ({name: self._span(name) for name in self.engine._names(mode)} for mode in modes)
        inputs, outputs = ({name: span.view for name, span in spans.items()} for spans in (sources, targets))
        read, written = (tuple(each for span in spans.values() for each in span.ranges) for spans in (sources, targets))
        memory, what = (Range(self._cells, 0, 1),), ("the inference", site())

        activations, engine = self._activations, self.engine  # not self: a graph does not keep its context

        def take() -> None:
            activations.update((name, view.copy()) for name, view in inputs.items())

        def compute() -> None:
            for name, values in engine._arithmetic.outputs(activations).items():
                outputs[name][:] = values

        batch = self.get_tensor_shape(next(iter(inputs)))[0]
        first, *rest = self.engine._kernels(batch, self.active_optimization_profile)
        consume = Work("compute", (first,), take, 0, *what, reads=read, writes=memory)
        sim.gpu.enqueue(stream, consume, launches=True)
        if self._consumed:
            sim.gpu.record(sim.lookup(self._consumed, Event), stream)
        sim.gpu.enqueue(stream, Work("compute", tuple(rest), compute, 0, *what, reads=memory, writes=written), launches=True)
