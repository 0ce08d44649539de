"""Which CUDA runtime and which TensorRT this process uses. Nothing else decides, and nothing else imports the simulator.

The choice is made once, by ``select``; the rest of ``common/`` asks ``current()``.
"""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from common.errors import EnvironmentFault, UsageFault

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
    engine: str
    time_base: str
    plan_suffix: str
    clock_ns: Callable[[], int]
    scale: float = 1.0  # how many times each byte, operation and image is charged (simulated backend)
    simulator: Any = None

    def write_trace(self, path: Path, **facts: Any) -> None:
        """Write the timeline as SQLite; a real one is Nsight Systems' business."""
        if self.simulator is None:
            raise UsageFault("--trace writes the simulator's timeline; on a GPU run the stage under `nsys profile`.")
        self.simulator.write_trace(path, **facts)

    def activity(self) -> list[tuple[str, int, int, int]]:
        """(row, start, end, batch) of all simulated work; empty on a GPU."""
        return [] if self.simulator is None else self.simulator.trace.activity()

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
            raise UsageFault(f"--device {device} names a GPU to simulate, and this machine has a real one: "
                             "add --backend simulated.")
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
        name="tensorrt", reason="a GPU and TensorRT answer", cudart=cudart, tensorrt=tensorrt, nvtx=nvtx,
        device=cudart.cudaGetDeviceProperties(0)[1].name.decode(), engine=f"TensorRT {tensorrt.__version__}",
        time_base="wall clock", plan_suffix=".plan", clock_ns=time.perf_counter_ns,
    )


def _simulated(reason: str, device: str | None, scale: float) -> Backend:
    from common.sim import cudart, nvtx, tensorrt
    from common.sim import device as devices
    from common.sim.simulator import start

    key = device or DEFAULT_DEVICE
    if key not in devices.available():
        raise UsageFault(f"--device {key}: unknown; there are {', '.join(devices.available())}.")
    simulator = start(key, scale)
    try:
        onnxruntime = importlib.import_module("onnxruntime").__version__
    except ImportError:
        raise EnvironmentFault("the simulated backend computes with ONNX Runtime: pip install onnxruntime.") from None
    return Backend(
        name="simulated", reason=reason, cudart=cudart, tensorrt=tensorrt, nvtx=nvtx,
        device=f"{simulator.device.name} (modelled)",
        engine=f"simulated TensorRT (outputs by ONNX Runtime {onnxruntime} on the CPU)",
        time_base="simulated time", plan_suffix=".simulated.plan", clock_ns=lambda: simulator.clock.thread().now,
        scale=scale, simulator=simulator,
    )
