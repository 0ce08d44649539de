"""Finds Nsight Systems on this machine and drives the version that is there. Flags and names have changed over the years,
so this asks the program what it has instead of assuming it."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PLACES = [
    "/opt/nvidia/nsight-systems*/*/bin/nsys",
    "/usr/local/cuda*/bin/nsys",
    "/usr/local/bin/nsys",
    "/opt/nvidia/nsight-compute/*/host/target-linux-x64/nsys",
    "~/.local/nsys/usr/lib/*/nsight-systems/target-linux-x64/nsys",
]


class NsysError(Exception):
    """Nsight Systems is missing or failed; the message is one sentence with the remedy."""


@dataclass(frozen=True)
class Nsys:
    path: str
    version: str
    help: str

    def flags(self) -> list[str]:
        """What to record: CUDA and NVTX, kernels inside graphs one by one, memory."""
        found = ["--trace=cuda,nvtx"]
        found += self.first("--cuda-graph-trace=node") + self.first("--cuda-memory-usage=true")
        found += self.first("--cuda-event-trace=false")  # timing events on the GPU may make one stream wait for another
        return found + self.first("--sample=none") + self.first("--cpuctxsw=none")

    def first(self, *flags: str) -> list[str]:
        """The first of several spellings that this version has, or nothing."""
        return next(([flag] for flag in flags if re.search(rf"{flag.split('=')[0]}\b(?!-)", self.help)), [])

    def profile(self, report: Path, command: list[str], log: Path) -> None:
        """Run ``command`` under the profiler; the report is ``report`` with nsys's own suffix."""
        self.run(["profile", *self.flags(), "--force-overwrite=true", f"--output={report}", *command], log)

    def export(self, report: Path, sqlite: Path, log: Path) -> None:
        """Export a report as SQLite."""
        reports = sorted(report.parent.glob(f"{report.name}.nsys-rep")) + sorted(report.parent.glob(f"{report.name}.qdrep"))
        if not reports:
            raise NsysError(f"nsys {self.version} wrote no report for {report.name}; its output is in {log}.")
        sqlite.unlink(missing_ok=True)
        self.run(["export", "--type=sqlite", "--force-overwrite=true", f"--output={sqlite}", str(reports[0])], log)

    def run(self, arguments: list[str], log: Path) -> None:
        with log.open("a", encoding="utf-8") as file:
            code = subprocess.run([self.path, *arguments], stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if code != 0:
            raise NsysError(f"nsys {arguments[0]} ended with exit code {code}; its output is in {log}.")


def find() -> Nsys:
    """The nsys of ``NSYS``, of PATH, or of the usual install folders (the newest); ``NsysError`` where there is none."""
    named = os.environ.get("NSYS")
    candidates = [named] if named else [shutil.which("nsys")]
    if not named:
        candidates += [path for place in PLACES for path in sorted(glob.glob(os.path.expanduser(place)), reverse=True)]
    for path in filter(None, candidates):
        try:
            text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
            manual = subprocess.run([path, "profile", "--help"], capture_output=True, text=True, check=False, timeout=60)
        except (OSError, subprocess.SubprocessError):
            continue
        version = re.search(r"\d{4}\.\d+(\.\d+)*", text)
        return Nsys(path, version.group() if version else "of unknown version", manual.stdout + manual.stderr)
    if named:
        raise NsysError(f"NSYS={named} does not run; the table has no breakdown.")
    raise NsysError(
        "no Nsight Systems found, so the table has no breakdown: install nsight-systems-cli from NVIDIA's package "
        "repository, or set NSYS to its nsys."
    )
