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
import dataclasses
import sys
from pathlib import Path
from typing import Any

from common.console import out
from common.files import atomic_path, write_json, write_text
from common.record import Conditions, Record, ladder_order
from common.timeline import Timeline, timeline
from common.trace import Trace, TraceError, read
from harness import page, perfetto, svg, tables
from harness.advice import advice, remedy
from harness.analysis import Analysis, analyse, limiter
from harness.rows import Row, read_rows

ROOT = Path(__file__).resolve().parent.parent


class Comparison:
    """Everything a folder holds: the run's conditions, a row and a timeline a stage, and what could not be read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rows: list[Row] = []
        self.traces: dict[str, Trace] = {}
        self.problems: list[str] = []
        records = {record.stage: record for record in Record.read_all(directory)}
        paths = {path.stem: path for path in directory.glob("*.sqlite")}
        for name in sorted({*records, *paths}, key=ladder_order):
            analysis = None
            try:
                if name in paths:
                    trace = read(paths[name])
                    analysis, self.traces[name] = analyse(trace), trace
                    records.setdefault(name, describe(name, trace, analysis))
            except TraceError as error:
                self.problems.append(str(error))
            if name in records:
                self.rows.append(row(records[name], analysis))
        add_speedups(self.rows)
        runs = [records[row.stage] for row in self.rows]
        names = [each.name for each in dataclasses.fields(Conditions)]
        self.run = Conditions(**{name: common(getattr(record, name) for record in runs) for name in names})
        self.run.versions = self.run.versions if isinstance(self.run.versions, dict) else {}

    def timelines(self) -> dict[str, Timeline]:
        limits = {stage.stage: stage.limit_ms for stage in self.rows}
        return {name: timeline(name, trace, limits[name]) for name, trace in self.traces.items()}

    def parents(self) -> dict[str, str]:
        """The stage that each differs from, by its script's own word; the one before it for anything else."""
        names = [stage.stage for stage in self.rows]
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
            for note in stage.notes:
                out.print(f"{stage.stage}: {note}", markup=False)
        out.print(f"\n{advice(self.rows)}", markup=False)
        self.write()
        written = ["comparison.json", ".csv", ".md", ".html"]
        if with_perfetto:
            for name, trace in self.traces.items():
                perfetto.write(trace, self.directory / f"{name}.perfetto.json")
            written.append("STAGE.perfetto.json (open them at ui.perfetto.dev)")
        if with_figures and self.traces:
            self.draw()
            written.append("timelines.svg and timeline_STAGE.svg")
        out.print(f"written: {self.directory}/{', '.join(written)}", markup=False)

    def write(self) -> None:
        contents = {"run": vars(self.run), "stages": [vars(stage) for stage in self.rows], "advice": advice(self.rows)}
        write_json(self.directory / "comparison.json", contents)
        with atomic_path(self.directory / "comparison.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
            columns = [key for key in vars(self.rows[0]) if key not in ("notes", "repeats_ms", "clocks")]
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(vars(stage) for stage in self.rows)
        markdown = tables.markdown(self.run, self.rows) + tables.clocks(self.rows)
        write_text(self.directory / "comparison.md", markdown)
        html = page.page(self.run, self.rows, self.timelines(), self.parents())
        write_text(self.directory / "comparison.html", html)

    def draw(self) -> None:
        """A picture of all timelines, and of each stage under the one it differs from."""
        drawn, parents = self.timelines(), self.parents()
        write_text(self.directory / "timelines.svg", svg.document(list(drawn.values())))
        for name, one in drawn.items():
            pair = [drawn[parents[name]], one] if parents.get(name) in drawn else [one]
            write_text(self.directory / f"timeline_{name}.svg", svg.document(pair))


def common(values: Any) -> Any:
    """The one value that all stages share, or the list of those that occur."""
    found: list[Any] = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found[0] if len(found) == 1 else found or None


def describe(name: str, trace: Trace, analysis: Analysis) -> Record:
    """What a trace without a record tells of its run."""
    batch = trace.simulated.get("CHARGED_BATCH")
    return Record(
        stage=name,
        backend="simulated" if trace.simulated else "tensorrt",
        device=trace.device,
        engine=trace.simulated.get("ENGINE"),
        batch=int(batch) if batch else None,
        per_batch_ms=analysis.per_batch_ms,
    )


def row(record: Record, analysis: Analysis | None) -> Row:
    """One stage. The time is the record's, taken without a profiler, where there is one; the parts are the trace's."""
    found = Row(**{name: value for name, value in vars(record).items() if name in Row.__dataclass_fields__})
    found.spread = record.spread
    if analysis is not None:
        for name, value in vars(analysis).items():
            if name in Row.__dataclass_fields__ and name not in ("per_batch_ms", *["submit_ms"] * bool(record.submit_ms)):
                setattr(found, name, value)
        found.profiled_per_batch_ms = analysis.per_batch_ms
        found.clocks = {**record.profiled, "nvtx_ms": analysis.per_batch_ms} if record.profiled else None
        found.limit_ms, found.limiter = analysis.limit[0], limiter(analysis, record.per_batch_ms)
        found.percent_of_limit = 100 * found.limit_ms / record.per_batch_ms
    return found


def add_speedups(rows: list[Row]) -> None:
    """Speed-ups by images a second, which also holds for a stage with batches of several sizes."""
    speeds = [stage.images_per_s or (1 / stage.per_batch_ms) for stage in rows]
    for index, stage in enumerate(rows):
        stage.speedup_vs_baseline = speeds[index] / speeds[0]
        stage.speedup_vs_previous = speeds[index] / speeds[index - 1] if index else None


def compare_runs(one: Path, other: Path) -> int:
    """Print how each stage changed from one folder to the other."""
    runs: list[tuple[Conditions, list[Row]]] = []
    for folder in (one, other):
        written = read_rows(folder / "comparison.json")
        runs.append(written or (lambda found: (found.run, found.rows))(Comparison(folder)))
    rows = tables.versus(runs[0][1], runs[1][1])
    if not rows:
        out.print(f"compare: error: {one} and {other} have no stage in common.", markup=False)
        return 3
    tables.print_versus([f"{folder} ({run})" for folder, (run, _) in zip((one, other), runs)], rows)
    for name, (_, stages) in zip("AB", runs):
        fastest = max(stages, key=lambda stage: stage.speedup_vs_baseline)
        out.print(f"{name}: fastest is {fastest.stage}; {remedy(fastest, stages)}", markup=False)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--figures", action="store_true", help="the timelines as SVG")
    parser.add_argument("--perfetto", action="store_true", help="each trace as JSON for ui.perfetto.dev")
    options = parser.parse_args()
    if len(options.directories) > 2:
        parser.error("one folder, or two")
    for directory in options.directories:
        if not directory.is_dir():
            out.print(f"compare: error: {directory} is not a folder.", markup=False)
            return 2
    if len(options.directories) == 2:
        return compare_runs(*options.directories)
    found = Comparison(options.directories[0])
    for problem in found.problems:
        out.print(f"compare: {problem}", style="yellow", markup=False)
    if not found.rows:
        out.print(
            f"compare: error: {found.directory} holds no trace (NAME.sqlite) and no result record (NAME.json). "
            "Make some: scripts/profile_all.sh",
            markup=False,
        )
        return 3
    found.report(options.figures, options.perfetto)
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
