"""The run-time half of the simulated TensorRT: plans, engines, execution contexts, inspector."""

from __future__ import annotations

import hashlib
import json
from math import prod
from typing import Any

from sim.arithmetic import Arithmetic
from sim.context import IExecutionContext
from sim.enums import DataType, LayerInformationFormat, TensorIOMode
from sim.kernels import kernel
from sim.names import Ours
from sim.network import Layer
from sim.simulator import simulator
from sim.work import Piece

MAGIC = b"SIMULATED-TENSORRT-PLAN\n"
volume = prod


def nptype(trt_type: DataType) -> type:
    return trt_type.meaning


class Runtime(Ours):
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        """The engine of a plan; None, with a message, for a cut, edited or foreign one."""
        plan = bytes(serialized_engine)
        digest, content = plan[len(MAGIC) :][:32], plan[len(MAGIC) + 32 :]
        if plan.startswith(MAGIC) and digest == hashlib.sha256(content).digest():
            header, _, body = content.partition(b"\n")
            engine = ICudaEngine(json.loads(header), body, digest, self.logger)
            engine._plan = plan
            return engine
        what = "Serialization assertion failed. The plan is cut, edited or not a plan of this engine"
        self.logger._error(1, "stdArchiveReader.cpp::StdArchiveReader::32", "Serialization", what)
        return None


class ICudaEngine(Ours):
    def __init__(self, facts: dict[str, Any], model: bytes, digest: bytes, logger: Any) -> None:
        self.name = facts["name"]
        self._profiles, self._logger = facts["profiles"], logger
        self._tensors = {tensor["name"]: tensor for tensor in facts["tensors"]}
        self._layers = [Layer(**layer) for layer in facts["layers"]]
        self.num_io_tensors, self.num_layers = len(self._tensors), len(self._layers)
        self.num_optimization_profiles = len(self._profiles)
        largest_batch = max(high[0] for profile in self._profiles for _, _, high in profile.values())
        self.device_memory_size_v2 = largest_batch * max(layer.nbytes for layer in self._layers)  # activations of a context
        self._plan = b""
        self._arithmetic = Arithmetic(digest, model, self._names(TensorIOMode.OUTPUT))
        self._durations: dict[tuple[int, int], list[Piece]] = {}
        self._space, self._charged = simulator().space, sum(layer.weight_bytes for layer in self._layers)
        self._space.charge(self._charged)

    def __del__(self) -> None:
        self._space.charge(-self._charged)

    def serialize(self) -> bytes:
        """The plan again."""
        return self._plan

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

    def _kernels(self, batch: int, profile: int) -> list[Piece]:
        """Every layer's kernel, which was chosen for the profile's OPT."""
        if (batch, profile) not in self._durations:
            device, images = simulator().device, batch * simulator().scale
            best_for = next(iter(self._profiles[profile].values()))[1][0]
            self._durations[batch, profile] = [kernel(device, layer, images, best_for) for layer in self._layers]
        return self._durations[batch, profile]


class EngineInspector(Ours):
    """Says of each layer what it is and in which precision it works."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        layers = []
        for layer in self._engine._layers:
            told: dict[str, Any] = {"Name": " + ".join([layer.name, *layer.fused]), "LayerType": layer.kind}
            told["Outputs"] = [{"Name": layer.name, "Format/Datatype": f"{layer.precision.upper()} (simulated)"}]
            told["Weights"] = {"Type": layer.precision.upper(), "Count": layer.weight_bytes * (layer.product is not None)}
            layers.append(told)
        if format == LayerInformationFormat.JSON:
            return json.dumps({"Layers": layers})
        return "\n".join(f"{layer['LayerType']}: {layer['Name']}" for layer in layers)
