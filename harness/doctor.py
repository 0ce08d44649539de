"""What this machine has for the ladder, how it fits together, and what to install.

    python -m scripts.doctor

A part that is missing or does not fit the others has an ✗, and the reason beside it; the commands that mend it stand at the
end. Where there is no GPU, nothing of NVIDIA's is missed: the simulated backend does without.
The exit code is 0 where a backend works, else 3.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from common import program
from common.console import out
from common.errors import ENVIRONMENT, VERIFIED
from common.libraries import LIBRARIES, Library
from harness.machine import Machine, look, numbers

WIDTH, INDENT = 80, 24
GPU_GB, DISK_GB = 2, 2
"""Free memory to have: at batch 128 the largest stage was seen to take 1.6 GB; plans, traces and their exports take 2 GB."""
LAST_PYTHON, FIRST_GPU = (3, 10), (7, 5)
"""TensorRT 8.6 ends with this Python, and TensorRT 10.5 begins with this compute capability."""
OLD_NSYS, NEW_NVTX, OLD_NVTX_PYTHON = (2023, 4), (0, 2, 12), (3, 13)
"""nsys up to this one records nothing of nvtx from this one on, nor most of CUDA 13; there is older nvtx up to this Python."""
DRIVER = "# install NVIDIA's driver, 580 or later: https://www.nvidia.com/drivers"
TOO_OLD = "the driver is too old for it, and fits CUDA {}"
NSYS = "apt-get install nsight-systems-cli  # from NVIDIA's package repository"


@dataclass(frozen=True)
class Finding:
    """A part of the machine: what was found, why that will not do ("": it does), and the commands that would mend that."""

    part: str
    found: str
    fault: str = ""
    mend: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{'✗' if self.fault else '·'} {self.part:<{INDENT - 2}}{self.found}" + f": {self.fault}" * bool(self.fault)
        return textwrap.fill(text, WIDTH, subsequent_indent=" " * INDENT, break_on_hyphens=False)


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version)) or "?"


def pip(*packages: str) -> str:
    return " ".join(["pip install", *(f"'{each}'" if "<" in each else each for each in packages)])


def major(here: Machine) -> int:
    """Of the driver's CUDA."""
    return (here.driver_cuda or (12,))[0]


def cuda_python(here: Machine) -> str:
    return f"cuda-python>={major(here)},<{major(here) + 1}"


def needs_8_6(here: Machine) -> bool:
    """Whether the GPU is older than those of today's TensorRT."""
    return () < numbers(here.capability) < FIRST_GPU


def tensorrt(here: Machine) -> tuple[str, ...]:
    """The commands that install the TensorRT that is made for this GPU."""
    rtx = next(library for library in LIBRARIES if library.backend == "rtx")
    if needs_8_6(here) and here.python > LAST_PYTHON:
        return "python3.10 -m venv .venv && . .venv/bin/activate", pip("-e .", "tensorrt==8.6.0", cuda_python(here))
    if needs_8_6(here):
        return (pip("tensorrt==8.6.0"),)
    if re.search("GeForce|RTX", here.gpu) and here.capability.startswith(rtx.capabilities):
        return (pip(rtx.package),)
    return (pip(f"tensorrt-cu{major(here)}"),)


def examine(here: Machine) -> Iterator[Finding]:
    """Every part, those first that others build upon."""
    yield from system(here)
    yield cuda(here)
    yield from (library(here, each) for each in LIBRARIES)
    yield nvtx(here)
    yield nsys(here)
    if here.lacking:
        yield Finding("simulated GPU", f"needs {' and '.join(here.lacking)}", "not installed", (pip(*here.lacking),))
    full = here.disk_free_gb < DISK_GB
    yield Finding("disk", f"{here.disk_free_gb:.1f} GB free", f"plans, traces and reports want {DISK_GB}" * full)
    unused = "but here is a GPU" if here.gpu and here.backend == "simulated" else ""
    takes = f"takes {here.backend}, as {here.reason}" if here.backend else "takes none"
    yield Finding("--backend auto", takes, unused if here.backend else here.reason)


def system(here: Machine) -> Iterator[Finding]:
    too_new = here.python > LAST_PYTHON
    found = dotted(here.python) + f", where TensorRT 8.6 ends with {dotted(LAST_PYTHON)}" * too_new
    why = f"and TensorRT 10.5 begins with newer GPUs than the {here.gpu}"
    yield Finding("Python", found, why * (needs_8_6(here) and too_new), tensorrt(here))
    found, free_gb = f"{here.gpu}, compute capability {here.capability or '?'}" if here.gpu else "none", here.gpu_free_gb
    found += "" if free_gb is None else f", {free_gb:.1f} GB free"
    mend = ("nvidia-smi  # shows who holds its memory", "python 5_multi_streams.py --batch 16  # takes less of it")
    yield Finding("GPU", found, f"batches of 128 want {GPU_GB}" * (free_gb is not None and free_gb < GPU_GB), mend)
    found = f"{here.driver}, for CUDA up to {dotted(here.driver_cuda)}" if here.driver else "none"
    too_old = "the ladder wants CUDA 12 or later" * (() < here.driver_cuda < (12,))
    yield Finding("driver", found, here.driver_fault or too_old, (DRIVER,))


def cuda(here: Machine) -> Finding:
    number = here.packages.get("cuda-bindings") or here.packages.get("cuda-python")
    found, mend = f"{number}, of CUDA {dotted(here.runtime_cuda)}" if number else "not installed", (pip(cuda_python(here)),)
    fault = TOO_OLD.format(dotted(here.driver_cuda)) * (here.runtime_cuda[:1] > here.driver_cuda[:1] > ())
    return Finding("cuda-python", found, "it is what calls CUDA" if here.gpu and not number else fault, mend)


def library(here: Machine, which: Library) -> Finding:
    """One TensorRT. Where none of them runs on this GPU, the first of the table has the fault."""
    name, package = which.called, which.package.partition("-cu")[0]
    built = {each: int(found[1]) for each in here.packages if (found := re.match(rf"{package}-cu(\d+)", each))}
    if newer := [each for each, made_for in built.items() if (made_for,) > here.driver_cuda[:1] > ()]:
        mend = (f"pip uninstall -y {' '.join(newer)}", *tensorrt(here))
        return Finding(name, newer[0], TOO_OLD.format(dotted(here.driver_cuda)), mend)
    if why := here.broken.get(name):
        number = here.packages.get(package, "")
        if number.startswith("8.") and here.python > LAST_PYTHON:
            return Finding(name, number, f"it ends with Python {dotted(LAST_PYTHON)}", tensorrt(here))
        return Finding(name, f"{number} cannot be imported".strip(), why, (pip("--force-reinstall", which.package),))
    runs = [each for each in LIBRARIES if each.called in here.tensorrt and here.capability.startswith(each.capabilities)]
    number = here.tensorrt.get(name, "")
    if which is LIBRARIES[0] and needs_8_6(here) and numbers(number) >= (10, 5):
        return Finding(name, number, f"10.5 and later do not run on compute capability {here.capability}", tensorrt(here))
    if which is LIBRARIES[0] and here.gpu and not runs:
        return Finding(name, number or "not installed", "nor is another that runs on this GPU", tensorrt(here))
    if number:
        return Finding(name, number if which in runs or not here.gpu else f"{number}, which does not run on this GPU")
    alone = f"; it builds without a GPU: {pip(which.package)}" * (which.without_gpu and not here.gpu)
    return Finding(name, f"not installed{alone}")


def nvtx(here: Machine) -> Finding:
    found, outdated = here.packages.get("nvtx", ""), () < numbers(here.nsys)[:2] <= OLD_NSYS
    if outdated and numbers(found) >= NEW_NVTX:
        mend = NSYS if here.python > OLD_NVTX_PYTHON else pip("nvtx<0.2.12")
        return Finding("nvtx", found, f"nsys {here.nsys} records none of its ranges", (mend,))
    missing = "without its ranges no profile has batches" * bool(here.gpu and not found)
    return Finding("nvtx", found or "not installed", missing, (pip("nvtx"),))


def nsys(here: Machine) -> Finding:
    missing = "without it the table has no breakdown" * bool(here.gpu and not here.nsys)
    loses = () < numbers(here.nsys)[:2] <= OLD_NSYS and here.runtime_cuda >= (13,)
    return Finding("nsys", here.nsys or "not installed", "it loses most of what CUDA 13 does" * loses or missing, (NSYS,))


def main() -> int:
    program.parser(__doc__, "scripts.doctor").parse_args()
    here = look()
    lines = list(examine(here))
    for line in lines:
        out.print(str(line), style="red" if line.fault else None, markup=False)
    commands = dict.fromkeys(command for line in lines if line.fault for command in line.mend)
    where = "" if here.gpu else ", for a machine without a GPU"
    last = "see the ✗ above" if any(line.fault for line in lines) else f"everything is here{where}"
    out.print("\n".join(["", "to mend it:" if commands else last, *(f"    {command}" for command in commands)]), markup=False)
    return VERIFIED if here.backend else ENVIRONMENT


if __name__ == "__main__":
    program.run(main)
