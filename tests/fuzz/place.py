"""Where the tries run: this process, with a fresh simulated GPU each, in a folder of their own with a tiny plan."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import random
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from common import backend
from common.cuda import cudart
from export import source
from sim import simulator as simulators
from tests.conftest import ROOT, stage_scripts, write_tiny_model

STAGES = stage_scripts()
SMALL = ("--batch", "2", "--charge-batch", "2048", "--batches", "8", "--measure", "2")
Try = tuple[str, Callable[[], str]]
Draw = random.Random
Prepare = Callable[[simulators.Simulator], None]


class Place:
    """A folder with ``tiny.onnx`` and ``tiny.plan``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.onnx, self.plan = folder, folder / "tiny.onnx", folder / "tiny.plan"
        write_tiny_model(self.onnx)
        code, said = self.run("0_build.py", *self.build_options(self.plan), "--fp16")
        assert code == 0, said

    def build_options(self, output: Path, onnx: Path | None = None) -> tuple[str, ...]:
        files = ("--onnx-file", str(onnx or self.onnx), "--output", str(output), "--timing-cache", str(self.folder / "cache"))
        return ("--profile", "1,2048,2048", *files) if onnx is None else files

    def run(self, script: str, *arguments: str, prepare: Prepare | None = None) -> tuple[int, str]:
        """Exit code and all that was said by a script run here; ``prepare`` is given each simulated process at its start."""

        def start(*options, real=simulators.start):
            made = real(*options)
            if prepare is not None:
                prepare(made)
            return made

        cudart.failing = None
        with (
            mock.patch.object(backend, "_current", None),
            mock.patch.object(simulators, "start", start),
            mock.patch.object(source, "FOLDER", self.folder / "models"),
        ):
            code, said = program(str(ROOT / script), "--backend", "simulated", *arguments)
            self.simulator = simulators.simulator()
            gc.collect()  # an exception and its frames are a cycle
            self.leaks = self.simulator.leaks()
        self.simulator.close()
        return code, said

    def stage(self, script: str, *arguments: str, **options) -> tuple[int, str]:
        return self.run(script, "--plan", str(self.plan), *SMALL, *arguments, **options)


def program(name: str, *arguments: str) -> tuple[int, str]:
    """Exit code and all that was said, on one line, by a script or a module that runs here as a program."""
    said, code, run = io.StringIO(), 0, runpy.run_path if name.endswith(".py") else runpy.run_module
    argv = mock.patch.object(sys, "argv", [name, *arguments])
    with argv, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            run(name, run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
    return code, " ".join(said.getvalue().split())


def refused(code: int, said: str, *codes: int) -> str:
    """One sentence and one of the exit codes."""
    assert code in (codes or (2, 3)) and said.count("error: ") == 1 and "Traceback" not in said, f"{code}: {said[-600:]}"
    return "refused in one sentence"


def right_or_refused(code: int, said: str) -> str:
    if code == 0:
        assert "error:" not in said and "Traceback" not in said, said[-600:]
        return "right"
    return refused(code, said)


def endlessly(one: Callable[[], Try]) -> Iterator[Try]:
    while True:
        yield one()


@contextlib.contextmanager
def memory_bounded(extra_mb: float) -> Iterator[None]:
    """The process's memory does not grow by more at any moment (Linux; elsewhere nobody looks)."""

    def peak_mb() -> float:
        words = Path("/proc/self/status").read_text().split()
        return int(words[words.index("VmHWM:") + 1]) / 1024

    if not os.access("/proc/self/clear_refs", os.W_OK):
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = peak_mb()
    yield
    assert peak_mb() - before < extra_mb, f"{peak_mb() - before:.0f} MB more, and not {extra_mb:.0f}"
