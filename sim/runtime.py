"""The run-time half of the simulated TensorRT: plans, engines, execution contexts, inspector."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from sim.enums import DataType, LayerInformationFormat, TensorIOMode, cudaError_t
from sim.kernels import kernel
from sim.network import Layer
from sim.simulator import simulator
from sim.work import CudaFailure, Event, Piece, Stream, Work, disturb, require

MAGIC = b"SIMULATED-TENSORRT-PLAN\n"
volume = prod


def nptype(trt_type: DataType) -> type:
    return trt_type.meaning


class Runtime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        """The engine of a plan; None, with a message, for a cut, edited or foreign one."""
        plan = bytes(serialized_engine)
        digest, content = plan[len(MAGIC) :][:32], plan[len(MAGIC) + 32 :]
        if plan.startswith(MAGIC) and digest == hashlib.sha256(content).digest():
            header, _, body = content.partition(b"\n")
            return ICudaEngine(json.loads(header), body, self.logger)
        what = "Serialization assertion failed. The plan is cut, edited or not a plan of this engine"
        self.logger._error(1, "stdArchiveReader.cpp::StdArchiveReader::32", "Serialization", what)
        return None


class ICudaEngine:
    def __init__(self, facts: dict[str, Any], model: bytes, logger: Any) -> None:
        self.name = facts["name"]
        self._profiles, self._model, self._logger = facts["profiles"], model, logger
        self._tensors = {tensor["name"]: tensor for tensor in facts["tensors"]}
        self._layers = [Layer(**layer) for layer in facts["layers"]]
        self.num_io_tensors, self.num_layers = len(self._tensors), len(self._layers)
        self.num_optimization_profiles = len(self._profiles)
        largest_batch = max(high[0] for profile in self._profiles for _, _, high in profile.values())
        self.device_memory_size_v2 = largest_batch * max(layer.nbytes for layer in self._layers)  # activations of a context
        self._session: Any = None
        self._computed: dict[bytes, dict[str, np.ndarray]] = {}
        self._durations: dict[tuple[int, int], list[Piece]] = {}
        self._space, self._charged = simulator().space, sum(layer.weight_bytes for layer in self._layers)
        self._space.charge(self._charged)

    def __del__(self) -> None:
        self._space.charge(-self._charged)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode[self._tensors[name]["mode"]] if name in self._tensors else TensorIOMode.NONE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name]["shape"])

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._tensors[name]["dtype"]]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self._profiles[profile_index][name]]

    def create_execution_context(self) -> IExecutionContext | None:
        if not simulator().space.charge(self.device_memory_size_v2):
            self._logger._error(2, "executionContext.cpp", "OutOfMemory", "no room for activations")
            return None
        return IExecutionContext(self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)

    def _names(self, mode: TensorIOMode) -> list[str]:
        return [name for name in self._tensors if self.get_tensor_mode(name) == mode]

    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs, computed once for the same bytes: a pipeline sends the same few batches over and over."""
        key = hashlib.blake2b(b"".join(array.tobytes() for array in inputs.values())).digest()
        if key not in self._computed:
            self._computed[key] = self._compute(inputs)
        return self._computed[key]

    def _compute(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = os.cpu_count() or 1
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])
        names = self._names(TensorIOMode.OUTPUT)
        return dict(zip(names, self._session.run(names, inputs)))

    def _kernels(self, batch: int, profile: int) -> list[Piece]:
        """Every layer's kernel, which was chosen for the profile's OPT."""
        if (batch, profile) not in self._durations:
            device, images = simulator().device, batch * simulator().scale
            best_for = next(iter(self._profiles[profile].values()))[1][0]
            self._durations[batch, profile] = [kernel(device, layer, images, best_for) for layer in self._layers]
        return self._durations[batch, profile]


def setting_takes_time() -> None:
    sim = simulator()
    with sim.clock.turn() as thread:
        sim.interpret(thread, sim.device.tensorrt_call)


class IExecutionContext:
    """Shapes, addresses and the consumed event are set first; ``execute_async_v3`` takes them as they are then."""

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine, self._space = engine, simulator().space
        self.active_optimization_profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._consumed: int = 0
        self._initialised: Any = None
        self._activations: dict[str, np.ndarray] = {}  # one set a context: two enqueues at a time would share it

    def __del__(self) -> None:
        self._space.charge(-self.engine.device_memory_size_v2)

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
            self._shapes.clear()
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
                    disturb(cudaError_t.cudaErrorStreamCaptureUnsupported, stream.capture)
                    self._initialised = wanted
                    thread.now += sim.device.shape_change
                thread.now += sim.device.enqueue
                self._launch(stream)
            except CudaFailure as failure:
                sim.last_error = failure.error
                where = "caskUtils.cpp::createCaskHardwareInfo::852"
                self.engine._logger._error(1, where, "Cuda Runtime", failure.error.meaning)
                return False
        return True

    def _view(self, name: str) -> np.ndarray:
        """The memory of a tensor, as the kernels see it; what is not device-accessible would be an illegal access."""
        shape, dtype = self.get_tensor_shape(name), np.dtype(self.engine.get_tensor_dtype(name).meaning)
        span = simulator().space.span(self._addresses[name], prod(shape) * dtype.itemsize, cudaError_t.cudaErrorIllegalAddress)
        require(span.kind != "pageable", cudaError_t.cudaErrorIllegalAddress)
        return span.view.view(dtype).reshape(shape)

    def _launch(self, stream: Stream) -> None:
        sim = simulator()
        inputs = {name: self._view(name) for name in self.engine._names(TensorIOMode.INPUT)}
        outputs = {name: self._view(name) for name in self.engine._names(TensorIOMode.OUTPUT)}

        def compute() -> None:
            for name, values in self.engine._run(self._activations).items():
                outputs[name][:] = values

        batch = self.get_tensor_shape(next(iter(inputs)))[0]
        first, *rest = self.engine._kernels(batch, self.active_optimization_profile)
        consume = Work("compute", (first,), lambda: self._activations.update((name, inputs[name].copy()) for name in inputs))
        sim.gpu.enqueue(stream, consume, launches=True)
        if self._consumed:
            sim.gpu.record(sim.lookup(self._consumed, Event), stream)
        sim.gpu.enqueue(stream, Work("compute", tuple(rest), compute), launches=True)


class EngineInspector:
    """Says of each layer what it is and in which precision it works."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        layers = []
        for layer in self._engine._layers:
            outputs = [{"Name": layer.name, "Format/Datatype": f"{layer.precision.upper()} (simulated)"}]
            layers.append({"Name": " + ".join([layer.name, *layer.fused]), "LayerType": layer.kind, "Outputs": outputs})
        if format == LayerInformationFormat.JSON:
            return json.dumps({"Layers": layers})
        return "\n".join(f"{layer['LayerType']}: {layer['Name']}" for layer in layers)
