"""Runs stages: without a profiler for their times, under Nsight Systems for their timelines."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from common.console import out
from common.errors import ENVIRONMENT
from common.plans import ROOT
from common.record import Record
from common.trace import TraceError, read
from harness.in_turn import InTurn
from harness.nsys import Nsys, NsysError
from harness.processes import call

WINDOWS = 2  # measured windows in each process but the first: nine in all have a middle one
PROFILED = 50  # batches in the window of a profiled run
PASSED_ON = ("batch", "charge_batch", "batches", "measure", "seed", "device", "images", "plan", "precision")


class Profiler:
    """Runs stages into ``options.out``: in rounds, a run of each stage in every round, and then each once under nsys.

    In the first round, which builds plans, and under nsys each stage has a process of its own; in another round all have one.
    """

    def __init__(self, options: argparse.Namespace, backend: str, nsys: Nsys | None) -> None:
        self.options, self.nsys, self.simulated = options, nsys, backend == "simulated"
        self.repeats = 1 if self.simulated else options.repeats
        self.runs: dict[Path, list[Record]] = {}
        self.call = call
        self.steps_s: list[float] = []
        self.problems: list[str] = []
        self.failed = 0  # the first exit code that was not 0
        self.arguments = ["--backend", backend]
        for name in PASSED_ON:
            if getattr(options, name) is not None:
                self.arguments += [f"--{name.replace('_', '-')}", str(getattr(options, name))]

    def file(self, script: Path, suffix: str) -> Path:
        return self.options.out / f"{script.stem}{suffix}"

    def run(self, scripts: list[Path]) -> None:
        """Run the stages whose results are not there; what goes wrong ends a stage, and is kept in ``problems``."""
        for script in scripts:
            if not self.options.force and self.is_current(script):
                out.print(f"  {script.stem:<20} results are there and current (--force runs it again)")
                continue
            for stale in (".json", ".sqlite", ".log"):
                self.file(script, stale).unlink(missing_ok=True)
            self.runs[script] = []
        rounds = [(self.measure, f"round {number} of {self.repeats}") for number in range(1, self.repeats + 1)]
        rounds += [(self.profile, f"under nsys {self.nsys.version}")] if self.nsys is not None else []
        for number, (step, title) in enumerate(rounds):
            if not self.runs:
                return
            if len(rounds) > 1:
                out.print(title + self.remaining(len(self.runs) * (len(rounds) - number)))
            shared = InTurn()
            self.call = shared.call if number and step == self.measure else call
            for script in list(self.runs):
                self.attempt(step, script)
            shared.close()

    def remaining(self, steps: int) -> str:
        """For how long so many more steps will take; "" before there was one. A step with a build is not the usual one."""
        return f", about {max(1, round(median(self.steps_s) * steps / 60))} min to go" if self.steps_s else ""

    def attempt(self, step: Callable[[Path], str], script: Path) -> None:
        """One step of one stage, with a line of what came of it."""
        started, name = time.perf_counter(), script.stem
        try:
            with out.status(f"{name}: running"):
                done = step(script)
            self.steps_s.append(time.perf_counter() - started)
            out.print(f"  {name:<20} {done}   ({self.steps_s[-1]:.0f} s)")
            return
        except subprocess.CalledProcessError as error:
            log = self.file(script, ".log")
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
            out.print(f"  {name:<20} [red]failed[/] (exit code {error.returncode})")
            for line in lines[-5:]:
                out.print(f"      {line}", markup=False)
            self.problems.append(f"{name}: exit code {error.returncode}; its output is in {log}")
            self.failed = self.failed or max(error.returncode, ENVIRONMENT * (error.returncode < 0))
        except (NsysError, TraceError) as error:
            self.file(script, ".sqlite").unlink(missing_ok=True)  # or it would pass for a current one the next time
            out.print(f"  {name:<20} no timeline: {error}", markup=False)
            self.problems.append(str(error))
            self.failed = self.failed or ENVIRONMENT
        del self.runs[script]

    def command(self, script: Path, *more: object) -> list[str]:
        return [sys.executable, str(script), *self.arguments, *map(str, more)]

    def is_current(self, script: Path) -> bool:
        needed = [self.file(script, ".json")]
        needed += [self.file(script, ".sqlite")] if self.nsys is not None or self.simulated else []
        record = Record.read(needed[0])
        if record is None or record.arguments != self.arguments or not all(path.exists() for path in needed):
            return False
        plan = ROOT / str(record.plan)
        oldest = min(path.stat().st_mtime for path in needed)
        newer = plan.exists() and oldest > max(script.stat().st_mtime, plan.stat().st_mtime)
        return newer and len(record.windows) >= (self.repeats if self.simulated else WINDOWS * self.repeats - 1)

    def measure(self, script: Path) -> str:
        """An unprofiled run. The record of all runs is written after each, so that what is interrupted can be compared too.

        Each verifies its outputs and times its parts; controls are the first one's.
        """
        path, runs = self.file(script, ".json"), self.runs[script]
        more = ["--windows", WINDOWS, "--no-controls"] if runs else ["--windows", 1]
        more = ["--trace", self.file(script, ".sqlite")] if self.simulated else more
        if code := self.call(command := self.command(script, "--json", path, *more), self.file(script, ".log")):
            raise subprocess.CalledProcessError(code, command)
        runs.append(recorded(path))
        record = replace(Record.of(runs), arguments=self.arguments)
        record.profiled = clocks(record) if self.simulated else None
        record.write(path)
        return f"{runs[-1].per_batch_ms:9.3f} ms a batch, outputs right"

    def profile(self, script: Path) -> str:
        """One more run under nsys: the trace, and what the same run's other two clocks say of its window."""
        assert self.nsys is not None
        path, trace, log = (self.file(script, suffix) for suffix in (".json", ".sqlite", ".log"))
        profiled = trace.with_suffix(".profiled")
        window = [] if self.options.measure or self.options.batches else ["--measure", PROFILED]
        self.nsys.trace(self.command(script, "--no-verify", "--no-parts", *window, "--json", profiled), trace, log)
        run = recorded(profiled)
        replace(recorded(path), profiled=clocks(run)).write(path)
        profiled.unlink()
        read(trace)
        return f"{run.per_batch_ms:9.3f} ms a batch"


def recorded(path: Path) -> Record:
    """The record that a stage has just written."""
    record = Record.read(path)
    assert record is not None, f"{path} is no record"
    return record


def clocks(run: Record) -> dict[str, float]:
    """The measured window by the host's clock and by CUDA events, ms a batch."""
    assert run.window_ms and run.window_event_ms and run.measured
    return {"wall_ms": run.window_ms / run.measured, "events_ms": run.window_event_ms / run.measured}
