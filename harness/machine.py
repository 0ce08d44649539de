"""What is installed on this machine and what its GPU is: facts only, which harness/doctor.py judges."""

from __future__ import annotations

import contextlib
import glob
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from common import backend, libraries, program
from common.errors import EnvironmentFault
from harness.nsys import NsysError, find
from harness.processes import ask

NVIDIA = "0x10de"  # on the PCI bus
LONGEST = 1000  # characters of what a program says that are quoted
Version = tuple[int, ...]


def numbers(text: str) -> Version:
    """A version to compare by; () for what is none."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found.group().split("."))) if found else ()


@dataclass(frozen=True)
class Machine:
    """A text is "" where there is nothing of that, a version ()."""

    python: Version
    gpu: str = ""
    capability: str = ""
    gpu_free_gb: float | None = None
    driver: str = ""
    driver_fault: str = ""
    driver_cuda: Version = ()  # the newest that the driver runs
    runtime_cuda: Version = ()  # that of cuda-python
    packages: Mapping[str, str] = field(default_factory=dict)  # that pip has installed, and their versions
    tensorrt: Mapping[str, str] = field(default_factory=dict)  # of those that can be imported: ``called`` and version
    broken: Mapping[str, str] = field(default_factory=dict)  # of those that are there and cannot: why
    nsys: str = ""
    lacking: tuple[str, ...] = ()  # what the simulated backend needs
    disk_free_gb: float = 0.0
    backend: str = ""  # what ``auto`` takes
    reason: str = ""


def look() -> Machine:
    facts = {**gpu(), **packages(), "disk_free_gb": shutil.disk_usage(program.ROOT).free / 1e9}
    with contextlib.suppress(NsysError):
        facts["nsys"] = find().version
    try:
        chosen = backend.select()
        facts.update(backend=chosen.name, reason=chosen.reason)
    except Exception as error:  # of whatever is broken
        facts["reason"] = str(error) or type(error).__name__
    return Machine(sys.version_info[:2], **facts)


def cuda_version(cudart: Any, name: str) -> Version:
    """What one of CUDA's version calls answers; () where it does not, or cuda-python before 12.6 finds no driver."""
    with contextlib.suppress(RuntimeError, AttributeError):
        error, number = getattr(cudart, name)()
        return (number // 1000, number % 1000 // 10) if int(error) == 0 and number else ()
    return ()


def gpu() -> dict[str, Any]:
    """The driver, and the first GPU as nvidia-smi knows it; in a container without that, as CUDA does."""
    facts: dict[str, Any] = {}

    def query(fields: str) -> tuple[str, bool]:
        return ask("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")

    with contextlib.suppress(EnvironmentFault):
        cudart, name, capability = libraries.gpu()
        known = cuda_version(cudart, "cudaDriverGetVersion")
        facts.update(gpu=name, capability=capability, driver="of unknown version", driver_cuda=known)
    said, works = ask("nvidia-smi")
    rows, _ = query("name,driver_version,memory.free") if works else ("", False)
    cells = [cell.strip() for cell in rows.partition("\n")[0].rsplit(",", 2)]
    if len(cells) == 3:
        name, driver, free = cells
        cuda = re.search(r"CUDA (?:\w+ )?Version: ([\d.]+)", said)
        facts.update(gpu=name, driver=driver, driver_cuda=numbers(cuda[1]) if cuda else ())
        facts["gpu_free_gb"] = int(free) * 2**20 / 1e9 if free.isdecimal() else None
        capability, works = query("compute_cap")
        if works:  # an old driver does not know the word
            facts["capability"] = capability.partition("\n")[0].strip()
    elif not facts and said:
        facts["driver_fault"] = f"nvidia-smi: {' '.join(said[:LONGEST].split())}"
    elif not facts and any(Path(card).read_text().strip() == NVIDIA for card in glob.glob("/sys/bus/pci/devices/*/vendor")):
        facts["driver_fault"] = "a device of NVIDIA's is in this machine, and no driver answers"
    return facts


def packages() -> dict[str, Any]:
    """cuda-python's runtime, every TensorRT of the table, what the simulated backend lacks, and all that pip knows."""
    cudart = libraries.first("cuda.bindings.runtime", "cuda.cudart")
    facts: dict[str, Any] = {"runtime_cuda": cuda_version(cudart, "cudaRuntimeGetVersion"), "tensorrt": {}, "broken": {}}
    for library in libraries.LIBRARIES:
        try:
            facts["tensorrt"][library.called] = libraries.load(library).__version__
        except EnvironmentFault as fault:
            _, there, why = str(fault).partition("(")
            facts["broken"] |= {library.called: why.removesuffix(").")} if there else {}
    facts["lacking"] = tuple(package for package in ("onnx", "onnxruntime") if libraries.first(package) is None)
    named: dict[str, str] = {}
    for each in metadata.distributions():
        with contextlib.suppress(Exception):  # one that was installed half
            named[str(each.metadata["Name"]).lower().replace("_", "-")] = each.version or ""
    return {**facts, "packages": named}
