"""Run a script on the real backend's paths, with test doubles under the vendors' names: ``run.py LIBRARY SCRIPT ARGS…``

The doubles are the simulated CUDA runtime and TensorRT. The latter is made to be 8.6 that builds version-compatible plans
(``tensorrt``); the lean runtime of 10.16 (``lean``), which runs such plans where their code is allowed, and was seen to tell
nothing of them; or TensorRT for RTX (``rtx``), whose contexts take a runtime configuration with a cache of kernels.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import ModuleType

from sim import cudart, nvtx, simulator, tensorrt
from sim.__main__ import run


class LeanRuntime(tensorrt.Runtime):
    engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine):
        if not self.engine_host_code_allowed:
            self.logger.log(tensorrt.ILogger.ERROR, "Plan contains host code, which is not allowed")
            return None
        engine = super().deserialize_cuda_engine(serialized_engine)
        return engine and LeanEngine(engine)


class Engine:
    def __init__(self, engine) -> None:
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)


class LeanEngine(Engine):
    def create_engine_inspector(self):
        raise RuntimeError("Could not activate keep_alive!")

    @property
    def device_memory_size_v2(self) -> int:
        self._logger.log(tensorrt.ILogger.ERROR, "Error Code 3: not supported by this engine")
        return 0


class RtxRuntime(tensorrt.Runtime):
    def deserialize_cuda_engine(self, serialized_engine):
        engine = super().deserialize_cuda_engine(serialized_engine)
        return engine and RtxEngine(engine)


class RtxEngine(Engine):
    def create_runtime_config(self):
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config):
        assert runtime_config.dynamic_shapes_kernel_specialization_strategy == Strategy.EAGER
        runtime_config.cache.contexts += 1
        return self._engine.create_execution_context()


class IRuntimeConfig:
    def create_runtime_cache(self):
        return IRuntimeCache()

    def set_runtime_cache(self, cache) -> bool:
        self.cache = cache
        return True

    def get_runtime_cache(self):
        return self.cache


class IRuntimeCache:
    """Keeps, in place of kernels, how many contexts were made."""

    contexts = 0

    def deserialize(self, blob) -> bool:
        if blob.isdigit():
            self.contexts = int(blob)
        return blob.isdigit()

    def serialize(self) -> bytes:
        return b"%d" % self.contexts


class RtxBuilder(tensorrt.Builder):
    def build_serialized_network(self, network, config):
        assert config.get_flag(vars(sys.modules["tensorrt_rtx"])["BuilderFlag"].REQUIRE_USER_ALLOCATION)
        return super().build_serialized_network(network, config)


Strategy = IntEnum("DynamicShapesKernelSpecializationStrategy", {"LAZY": 0, "EAGER": 1})


def double(name: str, version: str, absent: str = "", **changed: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update({key: thing for key, thing in vars(tensorrt).items() if key not in absent.split()}, **changed)
    vars(module).update(__name__=name, __version__=version)
    return module


def flags(**more: int) -> type:
    return IntEnum("BuilderFlag", {"TF32": 6, **more})


DOUBLES = {
    "tensorrt": lambda: double("tensorrt", "8.6.0+double", BuilderFlag=flags(VERSION_COMPATIBLE=10)),
    "lean": lambda: double(
        "tensorrt_lean",
        "10.16.1+double",
        "Builder OnnxParser EngineInspector NetworkDefinitionCreationFlag",
        Runtime=LeanRuntime,
    ),
    "rtx": lambda: double(
        "tensorrt_rtx",
        "1.7.1+double",
        BuilderFlag=flags(REQUIRE_USER_ALLOCATION=30),
        Builder=RtxBuilder,
        Runtime=RtxRuntime,
        IRuntimeCache=IRuntimeCache,
        DynamicShapesKernelSpecializationStrategy=Strategy,
    ),
}


if __name__ == "__main__":
    which, script, *arguments = sys.argv[1:]
    gpu = simulator.start("h200")
    if which == "rtx":
        gpu.device = replace(gpu.device, capability=(8, 9))
    module = DOUBLES[which]()
    none = dict.fromkeys(("tensorrt", "tensorrt_rtx", "tensorrt_lean", "tensorrt_lean_bindings"))
    sys.modules.update({"cuda.bindings.runtime": cudart, "nvtx": nvtx, **none, module.__name__: module})
    sys.exit(run(Path(script), arguments))
