"""Profile every stage and compare them.

Each stage runs once (on a GPU: --repeats times) without a profiler, which gives the time, and on a GPU once more under
Nsight Systems, which gives the breakdown. On the simulated backend the simulator writes the timeline. The table is
printed and written into --out, beside each stage's result record, trace and log.

The repeats are dealt in rounds of all stages. On a shared host a run whose core something else slowed down does not count,
and is made up for in a further round (scripts/host.py).

A stage whose results are newer than its script and its plan, and were made with the same options, is not run again.

    scripts/profile_all.sh                                 all stages, on the GPU if there is one
    scripts/profile_all.sh --batch 1 --out out/one         small batches
    scripts/profile_all.sh --plan plans/mine.plan 4 5 6 7  your own plan
    scripts/profile_all.sh 5_multi_streams 6_multi_threads two stages
    scripts/profile_all.sh --backend simulated --device h200
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from common.files import write_json
from scripts import compare
from scripts.host import ATTEMPTS, SLOWED, Host, median_of
from scripts.nsys import Nsys, NsysError, find
from scripts.trace_reader import TraceError, read

ROOT = Path(__file__).resolve().parent.parent
PASSED_ON = ("batch", "charge_batch", "batches", "measure", "seed", "device", "images", "plan", "precision")
console = Console(highlight=False, soft_wrap=True)


def stages() -> list[Path]:
    """The numbered scripts that run a pipeline, in order."""
    return sorted(path for path in ROOT.glob("[1-9]*_*.py"))


def parse_options() -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="scripts/profile_all.sh", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("stages", nargs="*", metavar="STAGE", help="names or numbers of stages (default: all)")
    p.add_argument("--backend", choices=("auto", "tensorrt", "simulated"), default="auto")
    p.add_argument("--out", type=Path, default=ROOT / "out", metavar="DIR", help="where results go (default: out/)")
    for name in PASSED_ON:
        p.add_argument(f"--{name.replace('_', '-')}", metavar="X", help="passed on to the stages, whose --help explains it")
    p.add_argument("--repeats", type=int, default=3, metavar="N", help="unprofiled runs of a stage on a GPU that are to "
                   "count; their median is reported (default: %(default)s)")
    p.add_argument("--force", action="store_true", help="run stages again whose results are there")
    p.add_argument("--no-nsys", action="store_true", help="no profiler: times only")
    p.add_argument("--figures", action="store_true", help="the timelines as SVG and PNG too")
    p.add_argument("--perfetto", action="store_true", help="each trace as JSON for ui.perfetto.dev too")
    p.add_argument("--gpu-metrics", action="store_true", help="nsys: sample the GPU's hardware counters too")
    p.add_argument("--backtraces", action="store_true", help="nsys: OS calls, call stacks of CUDA calls and of Python")
    options = p.parse_args()
    known = stages()
    by_name = {name: path for path in known for name in (path.stem, path.stem.split("_")[0])}
    for name in options.stages:
        if name not in by_name:
            p.error(f"there is no stage {name}; there are {', '.join(path.stem for path in known)}")
    options.chosen = sorted({by_name[name] for name in options.stages}) or known
    return options


class Profiler:
    """Runs stages into ``options.out``: in rounds, a run of each stage in every round, and then each once under nsys.

    What a host does besides lasts for seconds. Runs of one stage made one after the other would all meet the same of it.
    """

    def __init__(self, options: argparse.Namespace, backend: str, nsys: Nsys | None) -> None:
        self.options, self.backend = options, backend
        self.nsys = nsys if backend != "simulated" else None
        self.wanted = 1 if backend == "simulated" else options.repeats
        self.host = Host()
        self.runs: dict[Path, list[dict[str, Any]]] = {}
        self.problems: list[str] = []
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
                console.print(f"  {script.stem:<20} results are there and current (--force runs it again)")
                continue
            for stale in (".json", ".sqlite", ".log"):
                self.file(script, stale).unlink(missing_ok=True)
            self.runs[script] = []
        most = 1 if self.backend == "simulated" else ATTEMPTS * self.wanted
        for number in range(1, most + 1):
            waiting = [script for script, results in self.runs.items() if self.host.counting(results) < self.wanted]
            if not waiting:
                break
            if most > 1:
                console.print(f"round {number}, at most {most}; {self.wanted} runs of a stage count")
            for script in waiting:
                self.attempt(self.measure, script)
        if self.nsys is not None and self.runs:
            console.print(f"under nsys {self.nsys.version}")
            for script in list(self.runs):
                self.attempt(self.profile, script)

    def attempt(self, step: Callable[[Path], str], script: Path) -> None:
        """One step of one stage, with a line of what came of it."""
        started, name = time.perf_counter(), script.stem
        try:
            with console.status(f"{name}: running"), self.host.quick_cores() if self.backend != "simulated" else nullcontext():
                done = step(script)
            console.print(f"  {name:<20} {done}   ({time.perf_counter() - started:.0f} s)")
            return
        except subprocess.CalledProcessError as error:
            log = self.file(script, ".log")
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
            console.print(f"  {name:<20} [red]failed[/] (exit code {error.returncode})")
            for line in lines[-5:]:
                console.print(f"      {line}", markup=False)
            self.problems.append(f"{name}: exit code {error.returncode}; its output is in {log}")
        except (NsysError, TraceError) as error:
            self.file(script, ".sqlite").unlink(missing_ok=True)  # or it would pass for a current one the next time
            console.print(f"  {name:<20} no timeline: {error}", markup=False)
            self.problems.append(str(error))
        del self.runs[script]

    def command(self, script: Path, *more: object) -> list[str]:
        return [sys.executable, str(script), *self.arguments, *map(str, more)]

    def is_current(self, script: Path) -> bool:
        record, trace = self.file(script, ".json"), self.file(script, ".sqlite")
        facts = compare.read_json(record)
        needed = [record] if self.nsys is None and self.backend != "simulated" else [record, trace]
        if facts.get("arguments") != self.arguments or not all(path.exists() for path in needed):
            return False
        plan = ROOT / facts["plan"]
        oldest = min(path.stat().st_mtime for path in needed)
        return (len(facts["repeats_ms"]) >= self.wanted and plan.exists()
                and oldest > max(script.stat().st_mtime, plan.stat().st_mtime))

    def measure(self, script: Path) -> str:
        """An unprofiled run. The record is that of the run with the median time of those that count, with all their times;
        it is written after each run, so that what is interrupted can be compared too."""
        record, results = self.file(script, ".json"), self.runs[script]
        arguments = ["--no-verify"] if results else []
        if self.backend == "simulated":
            arguments += ["--trace", str(self.file(script, ".sqlite"))]
        with self.file(script, ".log").open("a", encoding="utf-8") as file:
            subprocess.run(self.command(script, "--json", record, *arguments), stdout=file, stderr=file, check=True, cwd=ROOT)
        latest = json.loads(record.read_text())
        results.append(latest)
        self.host.note(latest)
        counted = self.host.counted(results, self.wanted)
        typical = median_of(counted)
        timing = {key: typical[key] for key in ("window_ms", "per_batch_ms", "images_per_s", "intervals_ms", "submit_ms",
                                                "repeats_ms")}
        traced = {"profiled": clocks(results[0])} if self.backend == "simulated" else {
            "core_us": [result["core_us"] for result in counted], "quickest_core_us": self.host.quickest_us,
            "not_counted": [{key: result[key] for key in ("per_batch_ms", "core_us")}
                            for result in results if not any(result is one for one in counted)]}
        write_json(record, {**results[0], **timing, **traced, "arguments": self.arguments})
        right = {True: "outputs right", None: "outputs not verified"}[results[0]["outputs_match"]]
        slowed = self.host.slowed(latest)
        return f"{latest['per_batch_ms']:9.3f} ms a batch, {right}" + (
            f", the core {slowed:.1f} times as slow as another: not counted" if slowed > SLOWED else "")

    def profile(self, script: Path) -> str:
        """One more run under nsys: the trace, and what the same run's other two clocks say of its window."""
        assert self.nsys is not None
        record, trace, log = (self.file(script, suffix) for suffix in (".json", ".sqlite", ".log"))
        report, profiled = trace.with_suffix(""), trace.with_suffix(".profiled")
        flags = self.nsys.flags(self.options.gpu_metrics, self.options.backtraces)
        self.nsys.profile(report, self.command(script, "--no-verify", "--json", profiled), flags, log)
        self.nsys.export(report, trace, log)
        facts = json.loads(profiled.read_text())
        write_json(record, {**json.loads(record.read_text()), "profiled": clocks(facts)})
        profiled.unlink()
        read(trace)
        return f"{facts['per_batch_ms']:9.3f} ms a batch"


def clocks(result: dict[str, Any]) -> dict[str, float]:
    """The measured window by the host's clock and by CUDA events, ms a batch."""
    return {"wall_ms": result["window_ms"] / result["measured"], "events_ms": result["window_event_ms"] / result["measured"]}


def decide_backend(name: str) -> str:
    """What ``auto`` comes to, asked of a process of its own: this one stays out of CUDA."""
    code = f"from common import backend; b = backend.select({name!r}); print(b.name, '|', b.reason)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode != 0:
        console.print(f"profile_all: error: {done.stderr.strip().splitlines()[-1]}", style="red", markup=False)
        raise SystemExit(3)
    chosen, _, reason = done.stdout.strip().partition(" | ")
    console.print(f"backend: {chosen} ({reason})", markup=False)
    return chosen


def main() -> int:
    options = parse_options()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / ".writable").touch()
        (options.out / ".writable").unlink()
    except OSError as error:
        console.print(f"profile_all: error: cannot write into {options.out}: {error.strerror}.", style="red", markup=False)
        return 3
    backend, nsys = decide_backend(options.backend), None
    if backend != "simulated" and not options.no_nsys:
        try:
            nsys = find()
            console.print(f"profiler: nsys {nsys.version}, {nsys.path}", markup=False)
        except NsysError as error:
            console.print(f"profiler: {error}", style="yellow", markup=False)
    profiler = Profiler(options, backend, nsys)
    try:
        profiler.run(options.chosen)
    except KeyboardInterrupt:
        console.print("profile_all: interrupted; finished stages are kept and will not run again", style="red")
        return 130
    found = compare.Comparison(options.out)
    if found.rows:
        console.print()
        found.report(options.figures, options.perfetto)
    for problem in dict.fromkeys([*profiler.problems, *found.problems]):
        console.print(f"problem: {problem}", style="yellow", markup=False)
    return 1 if profiler.problems or not found.rows else 0


if __name__ == "__main__":
    sys.exit(main())
