"""The run-time half of the simulated TensorRT: logger, plans, engines, execution contexts, inspector."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from enum import IntEnum
from math import prod
from typing import Any

import numpy as np

from common.sim import cudart
from common.sim.kernels import kernel
from common.sim.network import Layer
from common.sim.simulator import simulator
from common.sim.work import CudaFailure, Event, Piece

MAGIC = b"SIMULATED-TENSORRT-PLAN\n"


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    INT64 = 8


NUMPY_TYPES = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT8: np.int8, DataType.INT32: np.int32,
               DataType.BOOL: np.bool_, DataType.UINT8: np.uint8, DataType.INT64: np.int64}


def nptype(trt_type: DataType) -> type:
    return NUMPY_TYPES[trt_type]


def volume(iterable: Sequence[int]) -> int:
    return prod(iterable)


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class LayerInformationFormat(IntEnum):
    ONELINE = 0
    JSON = 1


class ILogger:
    """Base of user-defined loggers: implement ``log(severity, msg)``."""

    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        raise NotImplementedError


class Logger(ILogger):
    """Prints messages of ``min_severity`` and above to stderr, in TensorRT's form."""

    def __init__(self, min_severity: ILogger.Severity = ILogger.Severity.WARNING) -> None:
        self.min_severity = min_severity

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        if severity <= self.min_severity:
            print(f"[TRT] [{'FEWIV'[severity]}] {msg}", file=sys.stderr)


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        """The engine of a plan; None, with a message, for a cut, edited or foreign one."""
        plan = bytes(serialized_engine)
        header, _, body = plan[len(MAGIC):].partition(b"\n") if plan.startswith(MAGIC) else (b"", b"", b"")
        try:
            facts = json.loads(header)
            intact = facts["sha256"] == hashlib.sha256(body).hexdigest()
        except (ValueError, KeyError):
            intact = False
        if not intact:
            self.logger.log(ILogger.ERROR, "1: [stdArchiveReader.cpp::StdArchiveReader::32] Error Code 1: Serialization "
                            "(Serialization assertion failed. The plan is cut, edited or not a plan of this engine)")
            return None
        return ICudaEngine(facts, body, self.logger)


class ICudaEngine:
    def __init__(self, facts: dict[str, Any], model: bytes, logger: ILogger) -> None:
        self.name = facts["name"]
        self._facts, self._model, self._logger = facts, model, logger
        self._tensors = {tensor["name"]: tensor for tensor in facts["tensors"]}
        self._layers = [Layer(**layer) for layer in facts["layers"]]
        self._session: Any = None
        self._durations: dict[tuple[int, int], tuple[Piece, ...]] = {}
        self._space, self._charged = simulator().space, sum(layer.weight_bytes for layer in self._layers)
        self._space.charge(self._charged)

    def __del__(self) -> None:
        self._space.charge(-self._charged)

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._facts["profiles"])

    @property
    def device_memory_size_v2(self) -> int:
        """Bytes of activations of one context: the largest layer's, at the largest batch of any profile."""
        largest = max(prof[name][2][0] for prof in self._facts["profiles"] for name in prof)
        return largest * max(layer.nbytes for layer in self._layers)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode[self._tensors[name]["mode"]] if name in self._tensors else TensorIOMode.NONE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name]["shape"])

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._tensors[name]["dtype"]]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self._facts["profiles"][profile_index][name]]

    def create_execution_context(self) -> IExecutionContext | None:
        if not simulator().space.charge(self.device_memory_size_v2):
            self._logger.log(ILogger.ERROR, "2: [executionContext.cpp] Error Code 2: OutOfMemory (no room for activations)")
            return None
        return IExecutionContext(self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)

    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = os.cpu_count() or 1
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])
        names = [name for name in self._tensors if name not in inputs]
        return dict(zip(names, self._session.run(names, inputs)))

    def _kernels(self, batch: int, profile: int) -> tuple[Piece, ...]:
        """Every layer's kernel, which was chosen for the profile's OPT."""
        sim = simulator()
        if (batch, profile) not in self._durations:
            best_for = next(iter(self._facts["profiles"][profile].values()))[1][0]
            self._durations[batch, profile] = tuple(
                kernel(sim.device, layer, batch * sim.scale, best_for) for layer in self._layers)
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

    def _error(self, message: str) -> bool:
        self.engine._logger.log(ILogger.ERROR, message)
        return False

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        setting_takes_time()
        if self.engine.get_tensor_mode(name) != TensorIOMode.INPUT:
            return self._error(f"3: [executionContext.cpp::setInputShape] Error Code 3: API Usage Error ({name} is no input)")
        low, _, high = self.engine.get_tensor_profile_shape(name, self.active_optimization_profile)
        shape = tuple(int(size) for size in shape)
        if len(shape) != len(low) or not all(a <= size <= b for a, size, b in zip(low, shape, high)):
            return self._error(
                f"3: [executionContext.cpp::validateInputBindings] Error Code 3: API Usage Error (Parameter check failed, "
                f"condition: engineDims.d[i] <= profileMaxDims.d[i]. Supplied dimensions {list(shape)} for {name} are outside "
                f"{list(low)} to {list(high)} of optimization profile {self.active_optimization_profile}.)")
        self._shapes[name] = shape
        return True

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return self._error(f"3: [executionContext.cpp] Error Code 3: API Usage Error (there is no profile {profile_index})")
        if profile_index != self.active_optimization_profile:
            self.active_optimization_profile = profile_index
            self._shapes.clear()
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        setting_takes_time()
        if self.engine.get_tensor_mode(name) == TensorIOMode.NONE:
            return self._error(f"3: [executionContext.cpp::setTensorAddress] Error Code 3: API Usage Error (no tensor {name})")
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
        inputs = (n for n in self.engine._tensors if self.engine.get_tensor_mode(n) == TensorIOMode.INPUT)
        return [name for name in inputs if name not in self._shapes]

    def execute_async_v3(self, stream_handle: int) -> bool:
        sim = simulator()
        with sim.clock.turn() as thread:
            unset = [*self.infer_shapes(), *(name for name in self.engine._tensors if not self._addresses.get(name))]
            if unset:
                return self._error("3: [executionContext.cpp::enqueueV3] Error Code 3: API Usage Error (Parameter check "
                                   f"failed: address or shape is not set for {', '.join(dict.fromkeys(unset))})")
            try:
                stream = sim.stream(stream_handle)
                wanted = (self.active_optimization_profile, tuple(self._shapes.values()))
                if self._initialised != wanted:
                    self._initialise(stream, wanted)
                    thread.now += sim.device.shape_change
                thread.now += sim.device.enqueue
                self._launch(stream)
            except CudaFailure as failure:
                sim.last_error = failure.error
                text = cudart.cudaGetErrorString(failure.error)[1].decode()
                return self._error("1: [caskUtils.cpp::createCaskHardwareInfo::852] Error Code 1: Cuda Runtime "
                                   f"({text})")
        return True

    def _initialise(self, stream: Any, wanted: Any) -> None:
        """The first enqueue for a shape makes CUDA calls that are illegal during capture, and break it."""
        if stream.capture is not None:
            stream.capture.invalidated = True
            raise CudaFailure(cudart.cudaError_t.cudaErrorStreamCaptureUnsupported)
        self._initialised = wanted

    def _launch(self, stream: Any) -> None:
        tensors = {}
        for name in self.engine._tensors:
            shape, dtype = self.get_tensor_shape(name), nptype(self.engine.get_tensor_dtype(name))
            span = cudart.span_of(self._addresses[name], prod(shape) * np.dtype(dtype).itemsize)
            tensors[name] = (span, cudart.view_as(span, dtype, shape))
        modes = {name: self.engine.get_tensor_mode(name) for name in tensors}
        inputs = {name: tensor for name, tensor in tensors.items() if modes[name] == TensorIOMode.INPUT}
        outputs = {name: tensor for name, tensor in tensors.items() if modes[name] == TensorIOMode.OUTPUT}

        def consume() -> None:
            self._activations = {name: view.copy() for name, (_, view) in inputs.items()}

        def compute() -> None:
            for name, values in self.engine._run(self._activations).items():
                outputs[name][1][:] = values

        first, *rest = self.engine._kernels(self.get_tensor_shape(next(iter(inputs)))[0], self.active_optimization_profile)
        cudart.launch_kernels(stream, (first,), consume, tuple(span for span, _ in inputs.values()), ())
        if self._consumed:
            simulator().gpu.record(simulator().lookup(self._consumed, Event), stream)
        cudart.launch_kernels(stream, tuple(rest), compute, (), tuple(span for span, _ in outputs.values()))


class EngineInspector:
    """Says of each layer what it is and in which precision it works."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        layers = [{"Name": " + ".join([layer.name, *layer.fused]), "LayerType": layer.kind,
                   "Outputs": [{"Name": layer.name, "Format/Datatype": f"{layer.precision.upper()} (simulated)"}]}
                  for layer in self._engine._layers]
        if format == LayerInformationFormat.JSON:
            return json.dumps({"Layers": layers})
        return "\n".join(f"{layer['LayerType']}: {layer['Name']}" for layer in layers)
