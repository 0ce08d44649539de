"""Which CUDA runtime and which TensorRT this process uses. Nothing else decides, and nothing else imports the simulator.

The choice is made once, by ``select``, from the table of ``common/libraries.py``; the rest of ``common/`` asks ``current()``.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from common.errors import EnvironmentFault, UsageFault
from common.libraries import LIBRARIES, SIMULATED, Library, first, gpu, load
from common.trace import Reader, Trace, TraceError

NAMES = ("auto", *dict.fromkeys(library.backend for library in LIBRARIES), SIMULATED.backend)
DEFAULT_DEVICE = "h200"
PUBLISHED_BATCH = 128
SIMULATED_BATCH = 8  # what a laptop computes in a fifth of a second
SIMULATED_MEASURED = 48  # batches: modelled time has no noise, and every pipeline of up to four slots goes into it


@dataclass(frozen=True)
class Backend:
    """The two vendor APIs of this process, or their drop-ins, and what to call them in a report. Defaults are a GPU's."""

    name: str
    reason: str
    device: str
    library: str  # the TensorRT that runs the plans, with its version
    kind: Library
    cudart: Any  # a module; None where there is no GPU, and a library that builds without one
    tensorrt: Any  # a module
    nvtx: ModuleType | None
    time_base: str = "wall clock"
    clock_ns: Callable[[], int] = time.perf_counter_ns
    scale: float = 1.0  # how many times each byte, operation and image is charged (simulated backend)
    simulator: Any = None

    def charged(self, batch: int) -> int:
        """How many images a computed batch counts as."""
        return round(batch * self.scale)

    def trace(self) -> Trace | None:
        """The timeline so far of a simulated run; None on a GPU, or before there is a whole window."""
        if self.simulator is None:
            return None
        with contextlib.closing(self.simulator.database()) as connection, contextlib.suppress(TraceError):
            return Reader(connection, Path("the simulator's trace")).trace()
        return None

    def versions(self) -> dict[str, str]:
        """Of Python, NumPy and the TensorRT, by the name of its module; CUDA's are ``cuda.versions``."""
        library = self.tensorrt.__name__.rpartition(".")[2]
        return {"python": platform.python_version(), "numpy": np.__version__, library: self.tensorrt.__version__}

    def races(self) -> list[str] | None:
        """The races found so far, a sentence each (simulated backend); None where nobody looks for them."""
        return None if self.simulator is None else self.simulator.gpu.races.found()

    def stands_in(self, precision: str) -> list[str]:
        """What a modelled time in ``precision`` does not know (simulated backend)."""
        rates = self.simulator and self.simulator.device.arithmetic_rates
        if not rates or precision != "int8" or rates["int8"] != rates["fp16"]:
            return []
        return [f"{self.device} has no rate for INT8, and is charged FP16's: what INT8 gains in compute is not to be seen here"]

    def leaks(self) -> list[str]:
        """What was not given back (simulated backend), with the line that made it."""
        if self.simulator is None:
            return []
        gc.collect()  # what only a cycle of references still holds is on its way back
        return self.simulator.leaks()


_current: Backend | None = None


def current() -> Backend:
    """The backend in use; ``auto`` where nobody has selected one."""
    return _current if _current is not None else select()


def select(name: str = "auto", device: str | None = None, scale: float = 1.0, build: bool = False) -> Backend:
    """Choose the backend of this process, to run plans or to ``build`` them.

    ``device`` and ``scale`` are for the simulated one. Raises ``EnvironmentFault`` where the backend asked for cannot
    work here, ``UsageFault`` for an unknown device or a simulated device on a real GPU.
    """
    global _current
    reason = "asked for"
    if name != "simulated":
        try:
            _current = _real(name, build)
        except EnvironmentFault as fault:
            if name != "auto":
                raise EnvironmentFault(f"--backend {name}: {fault} What to install: python -m scripts.doctor") from None
            reason = str(fault).rstrip(".")
        else:
            if device is None:
                return _current
            raise UsageFault(f"--device {device} is a GPU to simulate, and here is a real one: add --backend simulated.")
    _current = _simulated(reason, device, scale)
    return _current


def select_cuda() -> Backend:
    """A real GPU by CUDA alone, for a process whose work is not TensorRT's. Raises ``EnvironmentFault`` without a GPU."""
    global _current
    cudart, device, _ = gpu()
    cuda = Library("cuda", "CUDA", (), "cuda-python", "", builds=False)
    _current = Backend("cuda", "a GPU answers", device, "no TensorRT", cuda, cudart, None, first("nvtx"))
    return _current


def _real(name: str, build: bool) -> Backend:
    """The first library of the table that works here."""
    wanted = [library for library in LIBRARIES if name in ("auto", library.backend)]
    alone = [library for library in wanted if build and library.without_gpu and library.backend == name]
    missing: list[str] = []
    try:
        cudart, device, capability = gpu()
    except EnvironmentFault:
        if not alone:
            raise
        cudart, device, capability, wanted = None, "no GPU", "", alone
    for library in wanted:
        runs = cudart is not None and capability.startswith(library.capabilities)
        try:
            tensorrt = load(library)
        except EnvironmentFault as fault:
            missing.append(str(fault).rstrip("."))
            continue
        if build and not library.builds:
            missing.append(f"the {library.called} runs plans and builds none")
        elif not runs and library not in alone:
            missing.append(f"{library.called} does not run on a GPU of compute capability {capability} ({device})")
        else:
            how = f"a GPU and {library.called} answer" if runs else f"{library.called} builds without a GPU"
            names = library.backend, "; ".join([how, *missing]), device, f"{library.called} {tensorrt.__version__}"
            return Backend(*names, library, cudart if runs else None, tensorrt, first("nvtx"))
    raise EnvironmentFault("; ".join(missing) + ".")


def _simulated(reason: str, device: str | None, scale: float) -> Backend:
    from sim import cudart, nvtx, tensorrt
    from sim import device as devices
    from sim.simulator import start

    key = device or DEFAULT_DEVICE
    if key not in devices.available():
        raise UsageFault(f"--device {key}: unknown; there are {', '.join(devices.available())}.")
    simulator = start(key, scale)
    onnxruntime = importlib.import_module("onnxruntime").__version__
    name = f"{simulator.device.name} (modelled)"
    library = f"simulated TensorRT (outputs by ONNX Runtime {onnxruntime} on the CPU)"
    own = ("simulated time", lambda: simulator.clock.thread().now, scale, simulator)
    return Backend("simulated", reason, name, library, SIMULATED, cudart, tensorrt, nvtx, *own)
