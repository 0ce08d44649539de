"""What is known of the machine beside a measurement: the core's speed, and what the GPU's driver tells through NVML."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import re
import timeit
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor and the number of cores that this process may use."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {cores()} cores"


def core_us() -> float:
    """How long this core takes just now for a fixed piece of Python (20,000 additions), in µs: the median of five.

    A core is often one of two hardware threads of a physical one, and on a rented machine the other may be somebody else's.
    The time of work that never changes is all that shows it.
    """
    return 1e6 * median(timeit.repeat("for number in range(20_000): total += number", "total = 0", number=1, repeat=5))


THROTTLES = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake"}
"""Of NVML's reasons for lower clocks those that slow a measurement down."""


class Gpu:
    """The first GPU's clocks, temperature, power and energy, by the package nvidia-ml-py; without it nothing is known.

    CUDA's first GPU is NVML's first one unless ``CUDA_VISIBLE_DEVICES`` says otherwise; then nothing is told.
    """

    def __init__(self) -> None:
        self._nvml: Any = None
        with contextlib.suppress(Exception):  # no package, no driver, or a machine that does not let us ask
            if "CUDA_VISIBLE_DEVICES" not in os.environ:
                nvml = importlib.import_module("pynvml")
                nvml.nvmlInit()
                self._nvml, self._gpu = nvml, nvml.nvmlDeviceGetHandleByIndex(0)

    def _ask(self, name: str, *arguments: Any) -> Any:
        """What one of NVML's functions answers; None where this GPU or driver does not."""
        with contextlib.suppress(Exception):
            return getattr(self._nvml, name)(self._gpu, *arguments)

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded."""
        used_mj = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return used_mj / 1e3 if used_mj is not None else None

    def reading(self) -> dict[str, Any] | None:
        """Clocks in MHz, temperature in °C, power in W, and what holds the clocks down."""
        if self._nvml is None:
            return None
        power_mw, reasons = self._ask("nvmlDeviceGetPowerUsage"), self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return {
            "sm_mhz": self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM),
            "memory_mhz": self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_MEM),
            "temperature_c": self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU),
            "power_w": power_mw / 1e3 if power_mw is not None else None,
            "throttled": [name for bit, name in THROTTLES.items() if bit & (reasons or 0)],
        }


def beside(windows: Iterable[Any], processor: str | None) -> str:
    """What is known of the host and the GPU over many ``common.record.Window``s, in a sentence; "" where nothing is."""
    windows = list(windows)
    readings = [window.gpu for window in windows if window.gpu]
    ranges = {
        "a core's piece of work {} µs": [us for window in windows for us in window.core_us or ()],
        "SM clock {} MHz": [reading.get("sm_mhz") for reading in readings],
        "{} °C": [reading.get("temperature_c") for reading in readings],
    }
    said = [processor] if processor else []
    for text, values in ranges.items():
        if known := [value for value in values if isinstance(value, (int, float))]:
            said.append(text.format(f"{min(known):,.0f} to {max(known):,.0f}"))
    throttled = [names for reading in readings if isinstance(names := reading.get("throttled"), list)]
    throttles = {str(name) for names in throttled for name in names}
    if readings:
        said.append(f"clocks held down by {', '.join(sorted(throttles))}" if throttles else "nothing held the clocks down")
    return f"Beside the {len(windows)} windows: {'; '.join(said)}." if said else ""
