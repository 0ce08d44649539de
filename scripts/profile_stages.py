"""Profile every stage and compare them.

Each stage runs once (on a GPU: --repeats times) without a profiler, which gives the time, and on a GPU once more under
Nsight Systems, which gives the breakdown. On the simulated backend the simulator writes the timeline. The table is
printed and written into --out, beside each stage's result record, trace and log.

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
from pathlib import Path
from statistics import median_high
from typing import Any

from rich.console import Console

from common.files import write_json
from scripts import compare
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
    p.add_argument("--repeats", type=int, default=3, metavar="N", help="unprofiled runs of a stage on a GPU; the median is "
                   "reported (default: %(default)s)")
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
    """Runs stages one after the other into ``options.out``."""

    def __init__(self, options: argparse.Namespace, backend: str, nsys: Nsys | None) -> None:
        self.options, self.backend, self.nsys = options, backend, nsys
        self.out: Path = options.out
        self.arguments = ["--backend", backend]
        for name in PASSED_ON:
            if getattr(options, name) is not None:
                self.arguments += [f"--{name.replace('_', '-')}", str(getattr(options, name))]

    def run(self, script: Path) -> str | None:
        """Run one stage; what went wrong, or None."""
        name = script.stem
        record, trace, log = (self.out / f"{name}{suffix}" for suffix in (".json", ".sqlite", ".log"))
        if not self.options.force and self.is_current(script, record, trace):
            console.print(f"  {name:<20} results are there and current (--force runs it again)")
            return None
        for stale in (record, trace, log):
            stale.unlink(missing_ok=True)
        started = time.perf_counter()
        try:
            with console.status(f"{name}: running"):
                self.measure(script, record, trace, log)
            if self.nsys is not None and self.backend != "simulated":
                with console.status(f"{name}: under nsys {self.nsys.version}"):
                    self.profile(script, record, trace, log)
        except subprocess.CalledProcessError as error:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
            console.print(f"  {name:<20} [red]failed[/] (exit code {error.returncode})")
            for line in lines[-5:]:
                console.print(f"      {line}", markup=False)
            return f"{name}: exit code {error.returncode}; its output is in {log}"
        except (NsysError, TraceError) as error:
            trace.unlink(missing_ok=True)  # or it would pass for a current one the next time
            console.print(f"  {name:<20} no timeline: {error}", markup=False)
            return str(error)
        result = json.loads(record.read_text())
        right = {True: "outputs right", None: "outputs not verified"}[result["outputs_match"]]
        seconds = time.perf_counter() - started
        console.print(f"  {name:<20} {result['per_batch_ms']:9.3f} ms a batch, {right}   ({seconds:.0f} s)")
        return None

    def command(self, script: Path, *more: object) -> list[str]:
        return [sys.executable, str(script), *self.arguments, *map(str, more)]

    def is_current(self, script: Path, record: Path, trace: Path) -> bool:
        facts = compare.read_json(record)
        needed = [record] if self.nsys is None and self.backend != "simulated" else [record, trace]
        if facts.get("arguments") != self.arguments or not all(path.exists() for path in needed):
            return False
        plan = ROOT / facts["plan"]
        oldest = min(path.stat().st_mtime for path in needed)
        return plan.exists() and oldest > max(script.stat().st_mtime, plan.stat().st_mtime)

    def measure(self, script: Path, record: Path, trace: Path, log: Path) -> None:
        """Unprofiled runs; the record is that of the run with the median time, with all the times in it."""
        repeats = 1 if self.backend == "simulated" else self.options.repeats
        tracing = ["--trace", trace] if self.backend == "simulated" else []
        results = []
        for repeat in range(repeats):
            arguments = ["--json", record, *tracing] + (["--no-verify"] if repeat else [])
            with log.open("a", encoding="utf-8") as file:
                subprocess.run(self.command(script, *arguments), stdout=file, stderr=file, check=True, cwd=ROOT)
            results.append(json.loads(record.read_text()))
        times = [result["per_batch_ms"] for result in results]
        typical = results[times.index(median_high(times))]
        timing = {key: typical[key] for key in ("window_ms", "per_batch_ms", "images_per_s", "intervals_ms", "submit_ms")}
        traced = {"profiled": clocks(results[0])} if self.backend == "simulated" else {}
        write_json(record, {**results[0], **timing, **traced, "repeats_ms": times, "arguments": self.arguments})

    def profile(self, script: Path, record: Path, trace: Path, log: Path) -> None:
        """One more run under nsys: the trace, and what the same run's other two clocks say of its window."""
        assert self.nsys is not None
        report, profiled = trace.with_suffix(""), trace.with_suffix(".profiled")
        flags = self.nsys.flags(self.options.gpu_metrics, self.options.backtraces)
        self.nsys.profile(report, self.command(script, "--no-verify", "--json", profiled), flags, log)
        self.nsys.export(report, trace, log)
        write_json(record, {**json.loads(record.read_text()), "profiled": clocks(json.loads(profiled.read_text()))})
        profiled.unlink()
        read(trace)


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
    problems = []
    try:
        for number, script in enumerate(options.chosen, 1):
            console.print(f"\\[{number}/{len(options.chosen)}] {script.stem}")
            problems += filter(None, [profiler.run(script)])
    except KeyboardInterrupt:
        console.print("profile_all: interrupted; finished stages are kept and will not run again", style="red")
        return 130
    found = compare.Comparison(options.out)
    if found.rows:
        console.print()
        found.report(options.figures, options.perfetto)
    for problem in dict.fromkeys([*problems, *found.problems]):
        console.print(f"problem: {problem}", style="yellow", markup=False)
    return 1 if problems or not found.rows else 0


if __name__ == "__main__":
    sys.exit(main())
