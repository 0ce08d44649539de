"""Compare the stages of a run: what each step bought, what limits it now, what to try next.

    python scripts/compare.py DIR            the table, and comparison.json, .csv, .md and .html in DIR
    python scripts/compare.py A B            two runs, stage by stage: my GPU against yours, yesterday against today
    python scripts/compare.py DIR --figures --perfetto

DIR holds a trace for each stage (NAME.sqlite, from `nsys export --type sqlite` or from the simulator's --trace) and may
hold its result record (NAME.json, from --json), which adds what a trace does not: the time without a profiler, whether
the outputs are right, the memory. For two runs their comparison.json is enough.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from common.files import atomic_path, write_json
from scripts import drawing, figures, host, html_report, perfetto, tables
from scripts.advice import advice, remedy
from scripts.analysis import Analysis, analyse, limiter
from scripts.trace_reader import Trace, TraceError, read

ROOT = Path(__file__).resolve().parent.parent
FROM_TRACE = ("h2d_ms", "compute_ms", "d2h_ms", "postprocess_ms", "submit_ms", "overlap", "gpu_idle", "launches",
              "allocations", "library_allocations", "h2d_gb_s")
FROM_RECORD = ("outputs_match", "max_abs_diff", "fp32_max_abs_diff", "fp32_top1_agreement", "peak_device_memory_mb",
               "repeats_ms", "notes")
console = Console(highlight=False, soft_wrap=True)


class Comparison:
    """Everything a folder holds: the run's conditions, a row and a timeline a stage, and what could not be read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rows: list[dict[str, Any]] = []
        self.traces: dict[str, Trace] = {}
        self.problems: list[str] = []
        runs = []
        names = {path.stem for path in directory.glob("*.sqlite")}
        names |= {path.stem for path in directory.glob("*.json") if "stage" in read_json(path)}
        for name in sorted(names, key=ladder_order):
            record, analysis = read_json(directory / f"{name}.json"), None
            path = directory / f"{name}.sqlite"
            try:
                if path.exists():
                    trace = read(path)
                    analysis, self.traces[name] = analyse(trace), trace
            except (TraceError, ValueError) as error:
                self.problems.append(str(error))
            if record or analysis:
                self.rows.append(row(name, record, analysis))
                runs.append(record or describe(self.traces[name]))
        add_speedups(self.rows)
        self.run = {key: common(run.get(key) for run in runs) for key in
                    ("backend", "device", "engine", "batch", "computed_batch", "measured", "date", "versions")}

    def timelines(self) -> dict[str, drawing.Timeline]:
        limits = {stage["stage"]: stage["limit_ms"] for stage in self.rows}
        return {name: drawing.timeline(name, trace, limits[name]) for name, trace in self.traces.items()}

    def parents(self) -> dict[str, str]:
        """The stage that each differs from, by its script's own word; the one before it for anything else."""
        names = [stage["stage"] for stage in self.rows]
        found = dict(zip(names[1:], names))
        for name in names:
            script = ROOT / f"{name}.py"
            if script.exists() and "Differs from: " in (text := script.read_text(encoding="utf-8")):
                found[name] = text.split("Differs from: ")[1].split(".py")[0]
        return found

    def report(self, with_figures: bool, with_perfetto: bool) -> None:
        """Print the table, the stages' notes and the advice, and write all of it into the folder."""
        tables.print_table(self.run, self.rows)
        for stage in self.rows:
            for note in stage["notes"] or []:
                console.print(f"{stage['stage']}: {note}", markup=False)
        for note in tables.quietness(self.rows):
            console.print(note, markup=False)
        console.print(f"\n{advice(self.rows)}", markup=False)
        self.write()
        written = ["comparison.json", ".csv", ".md", ".html"]
        if with_perfetto:
            for name, trace in self.traces.items():
                perfetto.write(trace, self.directory / f"{name}.perfetto.json")
            written.append("STAGE.perfetto.json (open them at ui.perfetto.dev)")
        if with_figures:
            written += self.draw()
        console.print(f"written: {self.directory}/{', '.join(written)}", markup=False)

    def contents(self) -> dict[str, Any]:
        return {"run": self.run, "stages": self.rows}

    def write(self) -> None:
        write_json(self.directory / "comparison.json", {**self.contents(), "advice": advice(self.rows)})
        with atomic_path(self.directory / "comparison.csv") as temporary, \
                temporary.open("w", newline="", encoding="utf-8") as file:
            columns = [key for key in self.rows[0] if key not in ("notes", "repeats_ms", "clocks", "runs")]
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)
        with atomic_path(self.directory / "comparison.md") as temporary:
            temporary.write_text(tables.markdown(self.run, self.rows) + tables.clocks(self.rows), encoding="utf-8")
        html_report.write(self.directory / "comparison.html", self.run, self.rows, self.timelines(), self.parents())

    def draw(self) -> list[str]:
        """A picture of all timelines, and of each stage under the one it differs from."""
        drawn, parents = self.timelines(), self.parents()
        if not drawn:
            return []
        try:
            longest = max(one.length_ms for one in drawn.values()) * 1.02
            figures.draw(list(drawn.values()), longest, self.directory / "timelines")
            for name, one in drawn.items():
                pair = [drawn[parents[name]], one] if parents.get(name) in drawn else [one]
                figures.draw(pair, max(each.length_ms for each in pair) * 1.02, self.directory / f"timeline_{name}")
        except ImportError:
            console.print("no pictures: matplotlib is not installed (pip install matplotlib)", style="yellow", markup=False)
            return []
        return ["timelines and timeline_STAGE (.svg, .png)"]


def ladder_order(name: str) -> tuple[int, str]:
    """Stages by their number; anything else after them, by name."""
    number = name.split("_")[0]
    return (int(number) if number.isdigit() else sys.maxsize, name)


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def common(values: Any) -> Any:
    """The one value that all stages share, or the list of those that occur."""
    found: list[Any] = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found[0] if len(found) == 1 else found or None


def describe(trace: Trace) -> dict[str, Any]:
    """What a trace without a record tells of its run."""
    batch = trace.simulated.get("CHARGED_BATCH")
    return {"backend": "simulated" if trace.simulated else "tensorrt", "device": trace.device,
            "engine": trace.simulated.get("ENGINE"), "batch": int(batch) if batch else None}


def row(name: str, record: dict[str, Any], analysis: Analysis | None) -> dict[str, Any]:
    """One stage. The time is the record's, taken without a profiler, where there is one; the parts are the trace's."""
    per_batch_ms = record.get("per_batch_ms") or (analysis.per_batch_ms if analysis else None)
    assert per_batch_ms is not None
    limit_ms = analysis.limit[0] if analysis else None
    return {
        "stage": name, "precision": record.get("precision"), "per_batch_ms": per_batch_ms,
        "images_per_s": record.get("images_per_s"), "speedup_vs_previous": None, "speedup_vs_baseline": None,
        **{key: getattr(analysis, key) if analysis else None for key in FROM_TRACE},
        **({"submit_ms": record["submit_ms"]} if "submit_ms" in record else {}),
        "profiled_per_batch_ms": analysis.per_batch_ms if analysis else None,
        "clocks": {**record["profiled"], "nvtx_ms": analysis.per_batch_ms} if analysis and "profiled" in record else None,
        "limit_ms": limit_ms, "percent_of_limit": 100 * limit_ms / per_batch_ms if limit_ms is not None else None,
        "limiter": limiter(analysis, per_batch_ms) if analysis else None,
        "spread": spread(record.get("repeats_ms")), "runs": runs(record), **{key: record.get(key) for key in FROM_RECORD},
    }


def runs(record: dict[str, Any]) -> dict[str, int] | None:
    """Of a stage's unprofiled runs on a GPU: how many count, how many of those were slowed down, how many do not count."""
    if not record.get("quickest_core_us"):
        return None
    slowed = sum(max(readings) > host.SLOWED * record["quickest_core_us"] for readings in record["core_us"])
    return {"counted": len(record["core_us"]), "slowed": slowed, "not_counted": len(record["not_counted"])}


def spread(repeats_ms: list[float] | None) -> float | None:
    """How far apart the repeated runs of a stage are, as a share of their median; None without a repeat."""
    return (max(repeats_ms) - min(repeats_ms)) / median(repeats_ms) if repeats_ms and len(repeats_ms) > 1 else None


def add_speedups(rows: list[dict[str, Any]]) -> None:
    """Speed-ups by images a second, which also holds for a stage with batches of several sizes."""
    speeds = [stage["images_per_s"] or (1 / stage["per_batch_ms"]) for stage in rows]
    for index, stage in enumerate(rows):
        stage["speedup_vs_baseline"] = speeds[index] / speeds[0]
        stage["speedup_vs_previous"] = speeds[index] / speeds[index - 1] if index else None


def compare_runs(one: Path, other: Path) -> int:
    """Print how each stage changed from one folder to the other."""
    runs = [read_json(folder / "comparison.json") or Comparison(folder).contents() for folder in (one, other)]
    stages = [run["stages"] for run in runs]
    rows = tables.versus(*stages)
    if not rows:
        console.print(f"compare: error: {one} and {other} have no stage in common.", markup=False)
        return 3
    tables.print_versus(tuple(f"{folder} ({tables.conditions(run['run'])})" for folder, run in zip((one, other), runs)), rows)
    fastest = [max(each, key=lambda stage: stage["speedup_vs_baseline"]) for each in stages]
    for name, stage, each in zip("AB", fastest, stages):
        console.print(f"{name}: fastest is {stage['stage']}; {remedy(stage, each)}", markup=False)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--figures", action="store_true", help="the timelines as SVG and PNG (needs matplotlib)")
    parser.add_argument("--perfetto", action="store_true", help="each trace as JSON for ui.perfetto.dev")
    options = parser.parse_args()
    if len(options.directories) > 2:
        parser.error("one folder, or two")
    for directory in options.directories:
        if not directory.is_dir():
            console.print(f"compare: error: {directory} is not a folder.", markup=False)
            return 2
    if len(options.directories) == 2:
        return compare_runs(*options.directories)
    found = Comparison(options.directories[0])
    for problem in found.problems:
        console.print(f"compare: {problem}", style="yellow", markup=False)
    if not found.rows:
        console.print(f"compare: error: {found.directory} holds no trace (NAME.sqlite) and no result record (NAME.json). "
                      "Make some: scripts/profile_all.sh", markup=False)
        return 3
    found.report(options.figures, options.perfetto)
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
