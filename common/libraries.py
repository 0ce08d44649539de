"""Every TensorRT there is: its names, how it is installed, what it can do; and which of them this machine has.

Plans and timing caches of different libraries have different names, so that a folder holds all of them. The lean runtime's are
the version-compatible plans that TensorRT builds.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
from dataclasses import dataclass
from typing import Any

from common.errors import EnvironmentFault


@dataclass(frozen=True)
class Library:
    """One TensorRT. ``capabilities``: what the compute capabilities of the GPUs that it runs on begin with."""

    backend: str  # what --backend calls it
    called: str
    modules: tuple[str, ...]  # its names in Python; the first that can be imported is taken
    package: str  # what pip installs
    plan_suffix: str
    compatible_suffix: str = ""  # of plans that newer versions run too, where it can build such
    builds: bool = True  # plans, and does not only run them
    without_gpu: bool = False  # builds on a machine that has none
    capabilities: tuple[str, ...] = ("",)


RTX = ("7.5", "8.", "12.")
LEAN = ("tensorrt_lean", "tensorrt_lean_bindings"), "tensorrt-lean-cu12-bindings==10.* tensorrt-lean-cu12-libs==10.*"
LIBRARIES = (
    Library("tensorrt", "TensorRT", ("tensorrt",), "tensorrt", ".plan", ".vc.plan"),
    Library("rtx", "TensorRT for RTX", ("tensorrt_rtx",), "tensorrt-rtx-cu12", ".rtx.plan", without_gpu=True, capabilities=RTX),
    Library("tensorrt", "TensorRT lean runtime", *LEAN, ".vc.plan", builds=False),
)
"""The real ones, in the order in which ``auto`` tries them."""
SIMULATED = Library("simulated", "simulated TensorRT", ("sim.tensorrt",), "onnxruntime", ".simulated.plan", without_gpu=True)


def first(*modules: str) -> Any:
    """The first of the modules that this Python has; None without any."""
    for module in modules:
        with contextlib.suppress(Exception):  # what is broken raises anything
            return importlib.import_module(module)
    return None


def gpu() -> tuple[Any, str, str]:
    """The CUDA runtime, the GPU's name and its compute capability. Raises ``EnvironmentFault`` where no GPU answers."""
    cudart = first("cuda.bindings.runtime", "cuda.cudart")  # the second is cuda-python's before 12.6
    if cudart is None:
        mend = " (pip install cuda-python)" if shutil.which("nvidia-smi") else ", nor is an NVIDIA driver"
        raise EnvironmentFault(f"cuda-python is not installed{mend}.")
    try:
        error, *count = cudart.cudaGetDeviceCount()
    except (RuntimeError, AttributeError) as fault:  # cuda-python before 12.6 loads the driver here
        raise EnvironmentFault(f"no NVIDIA GPU answers ({fault}).") from None
    if int(error) != 0 or count[0] == 0:
        raise EnvironmentFault(f"no NVIDIA GPU answers ({cudart.cudaGetErrorName(error)[1].decode()}).")
    error, properties = cudart.cudaGetDeviceProperties(0)
    if int(error) != 0:
        raise EnvironmentFault(f"the NVIDIA GPU does not answer ({cudart.cudaGetErrorName(error)[1].decode()}).")
    return cudart, properties.name.decode(errors="replace"), f"{properties.major}.{properties.minor}"


def load(library: Library) -> Any:
    """The library's module. Raises ``EnvironmentFault`` where this Python has none that can be imported."""
    wrong = []
    for module in library.modules:
        try:
            found = importlib.import_module(module)
            if hasattr(found, "__version__"):
                return found
            wrong.append(f"{getattr(found, '__file__', None) or module} is something else")
        except ModuleNotFoundError as error:
            wrong += [] if error.name == module else [str(error)]
        except Exception as error:  # it is there, and broken, or its libraries are not
            wrong.append(str(error) or type(error).__name__)
    raise EnvironmentFault(f"{library.called} is not installed" + f" ({'; '.join(wrong)})" * bool(wrong) + ".")
