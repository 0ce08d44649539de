"""Run a script on the real backend's paths, with test doubles under the vendors' names: ``run.py tensorrt|lean SCRIPT ARGS…``

The doubles are the simulated CUDA runtime and TensorRT. The latter is made to be 8.6 that builds version-compatible plans,
or the lean runtime of 10.16: that runs such plans where their code is allowed, and was seen to tell nothing of them.
"""

from __future__ import annotations

import sys
from enum import IntEnum
from pathlib import Path
from types import ModuleType

from sim import cudart, nvtx, simulator, tensorrt
from sim.__main__ import run


class Runtime(tensorrt.Runtime):
    engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine):
        if not self.engine_host_code_allowed:
            self.logger.log(tensorrt.ILogger.ERROR, "Plan contains host code, which is not allowed")
            return None
        engine = super().deserialize_cuda_engine(serialized_engine)
        return engine and Engine(engine)


class Engine:
    def __init__(self, engine) -> None:
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def create_engine_inspector(self):
        raise RuntimeError("Could not activate keep_alive!")

    @property
    def device_memory_size_v2(self) -> int:
        self._logger.log(tensorrt.ILogger.ERROR, "Error Code 3: not supported by this engine")
        return 0


def lean() -> ModuleType:
    double = ModuleType("tensorrt_lean")
    absent = {"Builder", "OnnxParser", "EngineInspector", "NetworkDefinitionCreationFlag"}
    vars(double).update({name: thing for name, thing in vars(tensorrt).items() if name not in absent})
    vars(double).update(__name__="tensorrt_lean", __version__="10.16.1+double", Runtime=Runtime)
    return double


def builder() -> ModuleType:
    tensorrt.BuilderFlag = IntEnum("BuilderFlag", {"TF32": 6, "VERSION_COMPATIBLE": 10})
    tensorrt.__version__ = "8.6.0+double"
    return tensorrt


if __name__ == "__main__":
    which, script, *arguments = sys.argv[1:]
    simulator.start("h200")
    found = {"tensorrt": builder()} if which == "tensorrt" else {"tensorrt": None, "tensorrt_lean": lean()}
    sys.modules.update({"cuda.bindings.runtime": cudart, "nvtx": nvtx, "tensorrt_rtx": None, **found})
    sys.exit(run(Path(script), arguments))
