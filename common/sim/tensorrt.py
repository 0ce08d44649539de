"""A drop-in for the part of ``tensorrt`` that builds and runs an ONNX CNN, under TensorRT's own names.

A plan is a JSON header and the ONNX bytes. ONNX Runtime computes the outputs on the CPU; the time is charged from the
work of the fused layers. It is like TensorRT 11 in what exists (networks are strongly typed, precision is the ONNX
file's) and enforces what TensorRT was seen to enforce. ``__version__`` says that it is not TensorRT.
"""

from __future__ import annotations

import hashlib
import json
from enum import IntEnum
from pathlib import Path
from typing import Any

from common.sim.engine import (
    MAGIC,
    DataType,
    EngineInspector,
    ICudaEngine,
    IExecutionContext,
    ILogger,
    LayerInformationFormat,
    Logger,
    Runtime,
    TensorIOMode,
    nptype,
    volume,
)
from common.sim.network import layers

__version__ = "11.4.0+simulated.3"
__all__ = [
    "Builder", "BuilderFlag", "DataType", "EngineInspector", "IBuilderConfig", "ICudaEngine", "IExecutionContext",
    "IHostMemory", "ILogger", "IOptimizationProfile", "IProgressMonitor", "ITimingCache", "LayerInformationFormat",
    "Logger", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser", "ProfilingVerbosity", "Runtime",
    "TensorIOMode", "nptype", "volume",
]
ONNX_TYPES = {1: DataType.FLOAT, 10: DataType.HALF, 3: DataType.INT8, 6: DataType.INT32, 7: DataType.INT64,
              9: DataType.BOOL, 2: DataType.UINT8}


class BuilderFlag(IntEnum):
    TF32 = 6


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 0


class ProfilingVerbosity(IntEnum):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class IProgressMonitor:
    """Base of user-defined progress monitors; ``step_complete`` returning False cancels the build."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool:
        return True

    def phase_finish(self, phase_name: str) -> None: ...


class ITimingCache:
    def __init__(self, serialized: bytes) -> None:
        self._bytes = bytes(serialized)

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._bytes)


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        shapes = [tuple(int(size) for size in shape) for shape in (min, opt, max)]
        if not all(a <= b <= c for a, b, c in zip(*shapes)):
            raise ValueError(f"Shape provided for optimization profile of {input} is inconsistent.")
        self._shapes[input] = shapes

    def get_shape(self, input: str) -> list[tuple[int, ...]]:
        return self._shapes.get(input, [])


class IBuilderConfig:
    def __init__(self) -> None:
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.progress_monitor: IProgressMonitor | None = None
        self.max_aux_streams = -1
        self.builder_optimization_level = 3
        self._profiles: list[IOptimizationProfile] = []
        self._flags: set[BuilderFlag] = {BuilderFlag.TF32}
        self._cache: ITimingCache | None = None

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag in self._flags

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None: ...

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class INetworkDefinition:
    """The parsed ONNX model; ``_tensors`` describes inputs and outputs."""

    def __init__(self) -> None:
        self.name = "unnamed"
        self._model = b""
        self._tensors: list[dict[str, Any]] = []

    @property
    def num_inputs(self) -> int:
        return sum(tensor["mode"] == "INPUT" for tensor in self._tensors)

    @property
    def num_outputs(self) -> int:
        return len(self._tensors) - self.num_inputs

    def get_input(self, index: int) -> ITensor:
        return ITensor(self._tensors[index])

    def get_output(self, index: int) -> ITensor:
        return ITensor(self._tensors[self.num_inputs + index])


class ITensor:
    def __init__(self, facts: dict[str, Any]) -> None:
        self.name = facts["name"]
        self.shape = tuple(facts["shape"])
        self.dtype = DataType[facts["dtype"]]


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text

    def __str__(self) -> str:
        return self._text


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._logger = network, logger
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        return self.parse(Path(model).read_bytes(), model)

    def parse(self, model: bytes, path: str | None = None) -> bool:
        """Fill the network; False, with the reasons in ``get_error``, for what is no ONNX or has no batch dimension."""
        import onnx

        try:
            proto = onnx.load_from_string(bytes(model))
            onnx.checker.check_model(proto)
        except Exception as error:  # protobuf and the checker have no common base
            self._errors.append(ParserError(f"{type(error).__name__}: {str(error).splitlines()[0]}"))
            return False
        constants = {weight.name for weight in proto.graph.initializer}
        for mode, values in (("INPUT", proto.graph.input), ("OUTPUT", proto.graph.output)):
            for value in values:
                tensor = value.type.tensor_type
                shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
                if value.name in constants:
                    continue
                if -1 in shape[1:]:
                    self._errors.append(ParserError(f"{value.name}: only the first dimension may be dynamic, not {shape}"))
                self._network._tensors.append(
                    {"name": value.name, "mode": mode, "shape": shape, "dtype": ONNX_TYPES[tensor.elem_type].name})
        self._network._model, self._network.name = bytes(model), proto.graph.name
        return not self._errors


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        """A plan; None, with a message, when a dynamic input has no profile, or the monitor cancels."""
        import onnx

        dynamic = [t["name"] for t in network._tensors if t["mode"] == "INPUT" and -1 in t["shape"]]
        if any(not profile.get_shape(name) for name in dynamic for profile in config._profiles or [IOptimizationProfile()]):
            self.logger.log(ILogger.ERROR, "4: [network.cpp::validate] Error Code 4: Internal Error (Network has dynamic "
                            "inputs, but no optimization profile has been defined.)")
            return None
        monitor = config.progress_monitor or IProgressMonitor()
        monitor.phase_start("Building", None, 1)
        found = layers(onnx.load_from_string(network._model))
        go_on = monitor.step_complete("Building", 0)
        monitor.phase_finish("Building")
        if not go_on:
            return None
        fixed = {t["name"]: [t["shape"]] * 3 for t in network._tensors if t["mode"] == "INPUT"}
        facts = {
            "name": network.name, "tensors": network._tensors, "layers": [layer.as_json() for layer in found],
            "profiles": [{**fixed, **profile._shapes} for profile in config._profiles] or [fixed],
            "sha256": hashlib.sha256(network._model).hexdigest(),
        }
        return IHostMemory(MAGIC + json.dumps(facts).encode() + b"\n" + network._model)
