"""A drop-in for the part of ``tensorrt`` that builds and runs an ONNX CNN, under TensorRT's own names.

A plan is a hash, a JSON header and the ONNX bytes. ONNX Runtime computes the outputs on the CPU; the time is charged from the
work of the fused layers. It is like TensorRT 11 in what exists (networks are strongly typed, precision is the ONNX
file's) and enforces what TensorRT was seen to enforce. ``__version__`` says that it is not TensorRT.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import reason
from sim.enums import DataType, LayerInformationFormat, TensorIOMode
from sim.names import Enumeration, Ours, lack
from sim.network import layers
from sim.runtime import MAGIC, EngineInspector, ICudaEngine, IExecutionContext, Runtime, nptype, volume

__getattr__ = lack
globals().update(zip(("float32", "float16", "int8", "int32", "bool", "uint8", "int64"), DataType))
__version__ = "11.4.0+simulated.4"
__all__ = ["Builder", "BuilderFlag", "IBuilderConfig", "IHostMemory", "IOptimizationProfile", "IProgressMonitor"]
__all__ += ["ITimingCache", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser", "ProfilingVerbosity"]
__all__ += ["DataType", "EngineInspector", "ICudaEngine", "IExecutionContext", "ILogger", "LayerInformationFormat"]
__all__ += ["Logger", "Runtime", "TensorIOMode", "nptype", "volume"]

BuilderFlag = Enumeration("BuilderFlag", {"TF32": 6})
MemoryPoolType = Enumeration("MemoryPoolType", {"WORKSPACE": 0})
NetworkDefinitionCreationFlag = Enumeration("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 0})
ProfilingVerbosity = Enumeration("ProfilingVerbosity", {"LAYER_NAMES_ONLY": 0, "NONE": 1, "DETAILED": 2})


class ILogger(Ours):
    """Base of user-defined loggers: implement ``log(severity, msg)``."""

    Severity = Enumeration("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4})
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        raise NotImplementedError

    def _error(self, code: int, where: str, kind: str, what: str) -> None:
        """Log an error in TensorRT's form: ``where`` is a place in its sources, ``kind`` what it calls ``code``."""
        self.log(ILogger.ERROR, f"{code}: [{where}] Error Code {code}: {kind} ({what})")


class Logger(ILogger):
    """Prints messages of ``min_severity`` and above to stderr, in TensorRT's form."""

    def __init__(self, min_severity: ILogger.Severity = ILogger.Severity.WARNING) -> None:
        self.min_severity = min_severity

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        if severity <= self.min_severity:
            print(f"[TRT] [{'FEWIV'[severity]}] {msg}", file=sys.stderr)


class IHostMemory(Ours, bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class IProgressMonitor(Ours):
    """Base of user-defined progress monitors; ``step_complete`` returning False cancels the build."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool:
        return True

    def phase_finish(self, phase_name: str) -> None: ...


class ITimingCache(Ours, bytes):
    def serialize(self) -> IHostMemory:
        return IHostMemory(self)


class IOptimizationProfile(Ours):
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        shapes = [tuple(int(size) for size in shape) for shape in (min, opt, max)]
        if not all(a <= b <= c for a, b, c in zip(*shapes)):
            raise ValueError(f"Shape provided for optimization profile of {input} is inconsistent.")
        self._shapes[input] = shapes

    def get_shape(self, input: str) -> list[tuple[int, ...]]:
        return self._shapes.get(input, [])


class IBuilderConfig(Ours):
    create_timing_cache = ITimingCache

    def __init__(self) -> None:
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.progress_monitor: IProgressMonitor | None = None
        self.max_aux_streams, self.builder_optimization_level = -1, 3
        self._profiles: list[IOptimizationProfile] = []
        flags = {BuilderFlag.TF32}
        self.set_flag, self.clear_flag, self.get_flag = flags.add, flags.discard, flags.__contains__
        self._cache: ITimingCache | None = None

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None: ...

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        """False for one of another TensorRT. (There are no timings here; the cache of a build only has its builder's name.)"""
        self._cache = ITimingCache(__version__, "ascii")
        return ignore_mismatch or cache in (b"", self._cache)

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class ITensor(Ours):
    def __init__(self, facts: dict[str, Any]) -> None:
        self.name, self.shape, self.dtype = facts["name"], tuple(facts["shape"]), DataType[facts["dtype"]]


class INetworkDefinition(Ours):
    """The parsed ONNX model. ``_tensors`` describes the inputs, then the outputs, as the plan does."""

    def __init__(self) -> None:
        self.name, self._model = "unnamed", b""
        self.num_inputs = self.num_outputs = 0
        self._tensors: list[dict[str, Any]] = []

    def get_input(self, index: int) -> ITensor:
        return ITensor(self._tensors[index])

    def get_output(self, index: int) -> ITensor:
        return ITensor(self._tensors[self.num_inputs + index])


class ParserError(Ours, str):
    def desc(self) -> str:
        return str(self)


class OnnxParser(Ours):
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[str] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._errors[index])

    def parse_from_file(self, model: str) -> bool:
        return self.parse(Path(model).read_bytes(), model)

    def parse(self, model: bytes, path: str | None = None) -> bool:
        """Fill the network; False, with the reasons in ``get_error``, for what is no ONNX or has no batch dimension."""
        import onnx

        try:
            proto = onnx.load_from_string(bytes(model))
            if path is not None:
                onnx.load_external_data_for_model(proto, str(Path(path).parent))
            onnx.checker.check_model(proto, full_check=True)
        except Exception as error:  # protobuf and the checker have no common base
            self._errors.append(f"{type(error).__name__}: {reason(error)}")
            return False
        constants = {weight.name for weight in proto.graph.initializer}
        inputs = [value for value in proto.graph.input if value.name not in constants]
        types = {np.dtype(each.meaning): each.name for each in DataType}
        domains = {"", "ai.onnx", *(function.domain for function in proto.functions)}
        self._errors += [f"{node.op_type}: no operator of ONNX's" for node in proto.graph.node if node.domain not in domains]
        for mode, value in [*(("INPUT", each) for each in inputs), *(("OUTPUT", each) for each in proto.graph.output)]:
            tensor = value.type.tensor_type
            shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
            if -1 in shape[1:]:
                self._errors.append(f"{value.name}: only the first dimension may be dynamic, not {shape}")
            dtype = types.get(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
            readers = {node.op_type for node in proto.graph.node if value.name in node.input}
            if (mode, dtype) == ("INPUT", "UINT8") and not readers <= {"Cast", "Identity"}:
                self._errors.append(f"{value.name}: a uint8 input may only be cast, not read by {readers}")
            if dtype is None:
                self._errors.append(f"{value.name}: a type that this does not know")
            self._network._tensors.append({"name": value.name, "mode": mode, "shape": shape, "dtype": dtype})
        self._network._model, self._network.name = proto.SerializeToString(), proto.graph.name
        self._network.num_inputs, self._network.num_outputs = len(inputs), len(proto.graph.output)
        return not self._errors


def _mismatch(network: INetworkDefinition, config: IBuilderConfig) -> str | None:
    """What TensorRT refuses of a network and its profiles: each dimension that is not dynamic is the same in all of them."""
    for name, shape in ((tensor["name"], tensor["shape"]) for tensor in network._tensors[: network.num_inputs]):
        if -1 in shape and not config._profiles:
            return "Network has dynamic or shape inputs, but no optimization profile has been defined."
        for index, profile in enumerate(config._profiles):
            if not profile.get_shape(name) and -1 in shape:
                return f"Dynamic input tensor {name} is missing dimensions in profile {index}."
            for axis, (size, low, opt, high) in enumerate(zip(shape, *profile.get_shape(name))):
                if size != -1 and {low, opt, high} != {size}:
                    return f"Dimension mismatch for tensor {name} and profile {index}, at axis {axis}: {size} is not dynamic."
    return None


class Builder(Ours):
    create_builder_config, create_optimization_profile = IBuilderConfig, IOptimizationProfile

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        """A plan; None, with a message, when profiles are not what the inputs need, or weights, or the monitor cancels."""
        import onnx

        fixed = {tensor["name"]: [tensor["shape"]] * 3 for tensor in network._tensors if tensor["mode"] == "INPUT"}
        profiles = [{**fixed, **profile._shapes} for profile in config._profiles] or [fixed]
        if wrong := _mismatch(network, config):
            self.logger._error(4, "network.cpp::validate", "API Usage Error", wrong)
            return None
        try:
            found = layers(onnx.load_from_string(network._model))
        except ValueError as error:
            self.logger._error(4, "network.cpp::validate", "Internal Error", str(error))
            return None
        monitor = config.progress_monitor or IProgressMonitor()
        monitor.phase_start("Building", None, 1)
        go_on = monitor.step_complete("Building", 0)
        monitor.phase_finish("Building")
        if not go_on:
            return None
        facts = {"name": network.name, "tensors": network._tensors, "layers": list(map(asdict, found)), "profiles": profiles}
        content = json.dumps(facts).encode() + b"\n" + network._model
        return IHostMemory(MAGIC + hashlib.sha256(content).digest() + content)
