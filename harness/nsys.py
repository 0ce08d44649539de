"""Finds Nsight Systems on this machine and drives the version that is there. Flags and names have changed over the years,
so this asks the program what it has instead of assuming it."""

from __future__ import annotations

import glob
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from common.errors import EnvironmentFault
from harness.processes import ask, call

PLACES = [
    "/opt/nvidia/nsight-systems*/*/bin/nsys",
    "/usr/local/cuda*/bin/nsys",
    "/usr/local/bin/nsys",
    "/opt/nvidia/nsight-compute/*/host/target-linux-x64/nsys",
    "~/.local/nsys/usr/lib/*/nsight-systems/target-linux-x64/nsys",
]
WANTED = [
    "--cuda-graph-trace=node",  # kernels inside graphs one by one
    "--cuda-memory-usage=true",
    "--cuda-event-trace=false",  # timing events on the GPU may make one stream wait for another
    "--sample=none",
    "--cpuctxsw=none",
]


class NsysError(EnvironmentFault):
    """Nsight Systems is missing or failed; the message is one sentence with the remedy."""


@dataclass(frozen=True)
class Nsys:
    path: str
    version: str
    help: str

    def flags(self) -> list[str]:
        """What to record: CUDA and NVTX, and of ``WANTED`` what this version has."""
        return ["--trace=cuda,nvtx", *(flag for flag in WANTED if re.search(rf"{flag.split('=')[0]}\b(?!-)", self.help))]

    def trace(self, command: list[str], sqlite: Path, log: Path) -> None:
        """Run ``command`` under the profiler and export its report, which is kept beside ``sqlite``."""
        self.run(["profile", *self.flags(), "--force-overwrite=true", f"--output={sqlite.with_suffix('')}", *command], log)
        reports = [path for suffix in (".nsys-rep", ".qdrep") if (path := sqlite.with_suffix(suffix)).exists()]
        if not reports:
            raise NsysError(f"nsys {self.version} wrote no report for {sqlite.stem}; its output is in {log}.")
        sqlite.unlink(missing_ok=True)
        self.run(["export", "--type=sqlite", "--force-overwrite=true", f"--output={sqlite}", str(reports[0])], log)

    def run(self, arguments: list[str], log: Path) -> None:
        if code := call([self.path, *arguments], log):
            raise NsysError(f"nsys {arguments[0]} ended with exit code {code}; its output is in {log}.")


def find() -> Nsys:
    """The nsys of ``NSYS``, of PATH, or of the usual install folders (the newest); ``NsysError`` where there is none."""
    named = os.environ.get("NSYS")
    usual = (path for place in PLACES for path in sorted(glob.glob(os.path.expanduser(place)), reverse=True))
    for path in filter(None, [named] if named else [shutil.which("nsys"), *usual]):
        text, works = ask(path, "--version")
        if works:
            version = re.search(r"\d{4}\.\d+(\.\d+)*", text)
            return Nsys(path, version.group() if version else "of unknown version", ask(path, "profile", "--help")[0])
    if named:
        raise NsysError(f"NSYS={named} does not run; the table has no breakdown.")
    remedy = "install nsight-systems-cli from NVIDIA's package repository, or set NSYS to its nsys"
    raise NsysError(f"no Nsight Systems found, so the table has no breakdown: {remedy}.")
