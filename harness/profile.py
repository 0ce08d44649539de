"""Profile every stage and compare them.

On a GPU each stage runs in --repeats processes without a profiler, in nine measured windows in all: their median is the
time. Once more it runs under Nsight Systems, which gives the breakdown. On the simulated backend, whose times have no noise,
it runs once, and the simulator writes the timeline. The table is printed and written into --out, beside each stage's result
record, trace and log.

The repeats are dealt in rounds of all stages: what a host does besides lasts for seconds, and the runs of one stage, made
one after the other, would all meet the same of it. All of them count.

A stage whose results are newer than its script and its plan, and were made with the same options, is not run again.

    scripts/profile_all.sh                                 all stages, on the GPU if there is one
    scripts/profile_all.sh --batch 1 --out out/one         small batches
    scripts/profile_all.sh --plan plans/mine.plan 4 5 6 7  your own plan
    scripts/profile_all.sh --backend simulated --device v100-sxm2-32gb
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from common import program
from common.backend import NAMES, select
from common.console import err, out, printable
from common.errors import ENVIRONMENT, EnvironmentFault
from common.files import check_writable
from common.options import positive
from common.plans import ROOT, default_plan
from common.record import Record
from common.trace import TraceError, read
from harness import tables
from harness.compare import Comparison
from harness.nsys import Nsys, NsysError, call, find

WINDOWS = 2  # measured windows in each process but the first: nine in all have a middle one
PROFILED = 50  # batches in the window of a profiled run
PASSED_ON = ("batch", "charge_batch", "batches", "measure", "seed", "device", "images", "plan", "precision")


def stages() -> list[Path]:
    """The numbered scripts that run a pipeline, in order."""
    return sorted(ROOT.glob("[1-9]*_*.py"))


def parse_options() -> argparse.Namespace:
    p = program.parser(__doc__, prog="scripts/profile_all.sh")
    p.add_argument("stages", nargs="*", metavar="STAGE", help="names or numbers of stages (default: all)")
    p.add_argument("--backend", choices=NAMES, default="auto")
    p.add_argument("--out", type=Path, default=ROOT / "out", metavar="DIR", help="where results go (default: out/)")
    for name in PASSED_ON:
        p.add_argument(f"--{name.replace('_', '-')}", metavar="X", help="passed on to the stages, whose --help explains it")
    repeats = f"unprofiled runs of a stage on a GPU, of {WINDOWS} windows each (default: %(default)s)"
    p.add_argument("--repeats", type=positive, default=5, metavar="N", help=repeats)
    p.add_argument("--force", action="store_true", help="run stages again whose results are there")
    p.add_argument("--no-nsys", action="store_true", help="no profiler: times only")
    p.add_argument("--wide", action="store_true", help="print all columns (comparison.csv has them anyway)")
    p.add_argument("--figures", action="store_true", help="the timelines as SVG too")
    p.add_argument("--perfetto", action="store_true", help="each trace as JSON for ui.perfetto.dev too")
    options = p.parse_args()
    known = stages()
    by_name = {name: path for path in known for name in (path.stem, path.stem.split("_")[0])}
    for name in options.stages:
        if name not in by_name:
            p.error(f"there is no stage {name}; there are {', '.join(path.stem for path in known)}")
    options.chosen = sorted({by_name[name] for name in options.stages}) or known
    return options


class Profiler:
    """Runs stages into ``options.out``: in rounds, a run of each stage in every round, and then each once under nsys."""

    def __init__(self, options: argparse.Namespace, backend: str, nsys: Nsys | None) -> None:
        self.options, self.nsys, self.simulated = options, nsys, backend == "simulated"
        self.repeats = 1 if self.simulated else options.repeats
        self.runs: dict[Path, list[Record]] = {}
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
        for number in range(self.repeats if self.runs else 0):
            if self.repeats > 1:
                out.print(f"round {number + 1} of {self.repeats}")
            for script in list(self.runs):
                self.attempt(self.measure, script)
        if self.nsys is not None and self.runs:
            out.print(f"under nsys {self.nsys.version}")
            for script in list(self.runs):
                self.attempt(self.profile, script)

    def attempt(self, step: Callable[[Path], str], script: Path) -> None:
        """One step of one stage, with a line of what came of it."""
        started, name = time.perf_counter(), script.stem
        try:
            with out.status(f"{name}: running"):
                done = step(script)
            out.print(f"  {name:<20} {done}   ({time.perf_counter() - started:.0f} s)")
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
        """An unprofiled run. The record of all runs is written after each, so that what is interrupted can be compared too."""
        path, runs = self.file(script, ".json"), self.runs[script]
        more = ["--trace", self.file(script, ".sqlite")] if self.simulated else ["--windows", WINDOWS if runs else 1]
        if code := call(command := self.command(script, "--json", path, *more), self.file(script, ".log")):
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
        self.nsys.trace(self.command(script, "--no-verify", *window, "--json", profiled), trace, log)
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


def decide_backend(name: str) -> str:
    """What ``auto`` comes to, asked of a process of its own: this one stays out of CUDA."""
    said = f"print(backend.select({name!r}).name, '|', backend.current().reason)"
    code = f"from common import backend, program; program.run(lambda: {said})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise EnvironmentFault(done.stderr.strip().rpartition("error: ")[2] or f"{sys.executable} ended without a word")
    chosen, _, reason = done.stdout.strip().partition(" | ")
    out.print(f"backend: {chosen} ({reason})", markup=False)
    return chosen


def main() -> int:
    options = parse_options()
    options.out = options.out.resolve()  # the stages run elsewhere
    options.out.mkdir(parents=True, exist_ok=True)
    check_writable(options.out / "comparison.json")
    backend, nsys = decide_backend(options.backend), None
    if backend != "simulated" and not options.no_nsys:
        try:
            nsys = find()
            out.print(f"profiler: nsys {nsys.version}, {nsys.path}", markup=False)
        except NsysError as error:
            err.print(f"profiler: {error}", style="yellow", markup=False)
    failed = profile(options, backend, nsys, tables.ALL if options.wide else tables.SHORT)
    given = options.stages or [name for name in PASSED_ON if name != "device" and getattr(options, name) is not None]
    if failed or given or backend != "simulated":
        return failed
    out.print("\nWhere launches count: images one by one, on a plan for batch 1")
    return profile(one_by_one(options), backend, nsys, tables.LAUNCHES)


def one_by_one(options: argparse.Namespace) -> argparse.Namespace:
    """Batch 1 for the stages around the CUDA graph: at 128 its gain is hidden. Simulated; a GPU takes a minute for the plan."""
    select("simulated", options.device)
    plan = default_plan("fp16", [1]).resolve().relative_to(ROOT)
    chosen = [script for script in options.chosen if script.stem[0] in "4567"]
    return argparse.Namespace(**{**vars(options), "chosen": chosen, "out": options.out / "batch1", "batch": 1, "plan": plan})


def profile(options: argparse.Namespace, backend: str, nsys: Nsys | None, order: str) -> int:
    """Run the chosen stages and compare what the folder holds; the exit code of the first that failed."""
    profiler = Profiler(options, backend, nsys)
    options.out.mkdir(parents=True, exist_ok=True)
    program.alone(options.out)
    profiler.run(options.chosen)
    found = Comparison(options.out, options.chosen[0].stem)
    if found.rows:
        out.print()
        found.report(options.figures, options.perfetto, order)
    for problem in dict.fromkeys([*profiler.problems, *found.problems]):
        err.print(f"problem: {printable(problem)}", style="yellow", markup=False)
    return profiler.failed or (0 if found.rows else ENVIRONMENT)


if __name__ == "__main__":
    program.run(main)
