"""Which CUDA runtime and which TensorRT this process uses. Nothing else decides, and nothing else imports the simulator.

The choice is made once, by ``select``; the rest of ``common/`` asks ``current()``.
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
from common.trace import Reader, Trace, TraceError

NAMES = ("auto", "tensorrt", "simulated")
DEFAULT_DEVICE = "v100-sxm2-32gb"
PUBLISHED_BATCH = 128
SIMULATED_BATCH = 8  # what a laptop computes in a fifth of a second


@dataclass(frozen=True)
class Backend:
    """The two vendor APIs of this process, or their drop-ins, and what to call them in a report."""

    name: str
    reason: str
    cudart: ModuleType
    tensorrt: ModuleType
    nvtx: ModuleType | None
    device: str
    library: str  # the TensorRT that runs the plans, with its version
    time_base: str
    plan_suffix: str
    clock_ns: Callable[[], int]
    scale: float = 1.0  # how many times each byte, operation and image is charged (simulated backend)
    simulator: Any = None

    def trace(self) -> Trace | None:
        """The timeline so far of a simulated run; None on a GPU, or before there is a whole window."""
        if self.simulator is None:
            return None
        with contextlib.closing(self.simulator.database()) as connection:
            try:
                return Reader(connection, Path("the simulator's trace")).trace()
            except TraceError:
                return None

    def versions(self) -> dict[str, str]:
        """Of Python, NumPy, TensorRT, the CUDA runtime and the driver."""
        found = {"python": platform.python_version(), "numpy": np.__version__, "tensorrt": self.tensorrt.__version__}
        for name in ("cudaRuntimeGetVersion", "cudaDriverGetVersion"):
            error, version = getattr(self.cudart, name)()
            if int(error) == 0:
                found[name[4:-10].lower()] = f"{version // 1000}.{version % 1000 // 10}"
        return found

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


def select(name: str = "auto", device: str | None = None, scale: float = 1.0) -> Backend:
    """Choose the backend of this process.

    ``device`` and ``scale`` are for the simulated one. Raises ``EnvironmentFault`` where the backend asked for cannot
    work here, ``UsageFault`` for an unknown device or a simulated device on a real GPU.
    """
    global _current
    if name == "simulated":
        _current = _simulated("asked for", device, scale)
        return _current
    try:
        _current = _real()
    except EnvironmentFault as fault:
        if name == "tensorrt":
            raise EnvironmentFault(f"--backend tensorrt: {fault}") from None
        _current = _simulated(str(fault).rstrip("."), device, scale)
    else:
        if device is not None:
            raise UsageFault(f"--device {device} is a GPU to simulate, and here is a real one: add --backend simulated.")
    return _current


def _real() -> Backend:
    try:
        cudart = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        try:
            cudart = importlib.import_module("cuda.cudart")  # cuda-python before 12.6
        except ImportError:
            raise EnvironmentFault("cuda-python is not installed (pip install cuda-python).") from None
    error, *count = cudart.cudaGetDeviceCount()
    if int(error) != 0 or count[0] == 0:
        raise EnvironmentFault(f"no NVIDIA GPU answers ({cudart.cudaGetErrorName(error)[1].decode()}).")
    try:
        tensorrt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise EnvironmentFault(f"TensorRT is not installed ({error}).") from None
    try:
        nvtx = importlib.import_module("nvtx")
    except ImportError:
        nvtx = None
    return Backend(
        name="tensorrt",
        reason="a GPU and TensorRT answer",
        cudart=cudart,
        tensorrt=tensorrt,
        nvtx=nvtx,
        device=cudart.cudaGetDeviceProperties(0)[1].name.decode(),
        library=f"TensorRT {tensorrt.__version__}",
        time_base="wall clock",
        plan_suffix=".plan",
        clock_ns=time.perf_counter_ns,
    )


def _simulated(reason: str, device: str | None, scale: float) -> Backend:
    from sim import cudart, nvtx, tensorrt
    from sim import device as devices
    from sim.simulator import start

    key = device or DEFAULT_DEVICE
    if key not in devices.available():
        raise UsageFault(f"--device {key}: unknown; there are {', '.join(devices.available())}.")
    simulator = start(key, scale)
    try:
        onnxruntime = importlib.import_module("onnxruntime").__version__
    except ImportError:
        raise EnvironmentFault("the simulated backend computes with ONNX Runtime: pip install onnxruntime.") from None
    return Backend(
        name="simulated",
        reason=reason,
        cudart=cudart,
        tensorrt=tensorrt,
        nvtx=nvtx,
        device=f"{simulator.device.name} (modelled)",
        library=f"simulated TensorRT (outputs by ONNX Runtime {onnxruntime} on the CPU)",
        time_base="simulated time",
        plan_suffix=".simulated.plan",
        clock_ns=lambda: simulator.clock.thread().now,
        scale=scale,
        simulator=simulator,
    )
