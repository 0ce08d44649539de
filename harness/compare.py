"""Compare the stages of a run: what each step bought, what limits it now, what to try next.

    python scripts/compare.py DIR            the table, and comparison.json, .csv, .md and .html in DIR
    python scripts/compare.py DIR --wide --figures --perfetto

DIR holds a trace for each stage (NAME.sqlite, from `nsys export --type sqlite` or from the simulator's --trace) and may
hold its result record (NAME.json, from --json), which adds what a trace does not: the time without a profiler, whether
the outputs are right, the memory.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

from common.console import out, wrapped
from common.files import atomic_path, write_json, write_text
from common.record import Conditions, Record, from_json, ladder_order
from common.timeline import Timeline, timeline
from common.trace import Trace, TraceError, read
from harness import page, perfetto, svg, tables
from harness.advice import advice
from harness.analysis import Analysis, analyse, limiter
from harness.rows import Row


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
        self.run = from_json(
            Conditions, {each.name: common([getattr(run, each.name) for run in runs]) for each in fields(Conditions)}
        )
        self.run.versions = self.run.versions if isinstance(self.run.versions, dict) else {}

    @cached_property
    def timelines(self) -> dict[str, Timeline]:
        limits = {stage.stage: stage.limit_ms for stage in self.rows}
        return {name: timeline(name, trace, limits[name]) for name, trace in self.traces.items()}

    def parents(self) -> dict[str, str]:
        """The stage that each differs from, by its script's own word; the one before it for anything else."""
        return {row.stage: row.parent[0] or before.stage for before, row in zip(self.rows, self.rows[1:])}

    def report(self, with_figures: bool, with_perfetto: bool, order: str = tables.SHORT) -> None:
        """Print the table, the stages' notes and the advice, and write all of it into the folder."""
        tables.print_rows(self.run, self.rows, order)
        self.write()
        written = ["comparison.json", ".csv", ".md", ".html"]
        if with_perfetto:
            for name, trace in self.traces.items():
                perfetto.write(trace, self.directory / f"{name}.perfetto.json")
            written.append("STAGE.perfetto.json (open them at ui.perfetto.dev)")
        if with_figures and self.traces:
            self.draw(self.timelines, self.parents())
            written.append("timelines.svg and timeline_STAGE.svg")
        out.print(wrapped(f"written: {os.path.relpath(self.directory)}/{', '.join(written)}", 2), markup=False)

    def write(self) -> None:
        contents = {"run": vars(self.run), "stages": [vars(stage) for stage in self.rows], "advice": advice(self.rows)}
        write_json(self.directory / "comparison.json", contents)
        with atomic_path(self.directory / "comparison.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
            keys = [key for key in vars(self.rows[0]) if key not in ("notes", "repeats_ms", "clocks")]
            writer = csv.DictWriter(file, keys, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(vars(stage) for stage in self.rows)
        markdown = tables.markdown(self.run, self.rows) + tables.clocks(self.rows)
        write_text(self.directory / "comparison.md", markdown)
        html = page.page(self.run, self.rows, self.timelines, self.parents())
        write_text(self.directory / "comparison.html", html)

    def draw(self, drawn: dict[str, Timeline], parents: dict[str, str]) -> None:
        """A picture of all timelines, and of each stage under the one it differs from."""
        write_text(self.directory / "timelines.svg", svg.document(list(drawn.values())))
        for name, one in drawn.items():
            pair = [drawn[parents[name]], one] if parents.get(name) in drawn else [one]
            write_text(self.directory / f"timeline_{name}.svg", svg.document(pair))


def common(values: list[Any]) -> Any:
    """The one value that all stages share, or the list of those that occur."""
    found = [value for index, value in enumerate(values) if value is not None and value not in values[:index]]
    return found[0] if len(found) == 1 else found or None


def describe(name: str, trace: Trace, analysis: Analysis) -> Record:
    """What a trace without a record tells of its run."""
    facts, backend = trace.simulated, "simulated" if trace.simulated else "tensorrt"
    batch = int(facts["CHARGED_BATCH"]) if facts.get("CHARGED_BATCH") else None
    return Record(backend, trace.device, facts.get("ENGINE"), batch, stage=name, per_batch_ms=analysis.per_batch_ms)


def row(record: Record, analysis: Analysis | None) -> Row:
    """One stage. What the record has, taken without a profiler, is the record's; the parts are the trace's."""
    known = {name: value for name, value in vars(record).items() if value is not None}
    found = from_json(Row, {**(vars(analysis) if analysis else {}), **known, "spread": record.spread})
    if analysis is not None:
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


def failed(why: str, code: int) -> int:
    out.print(f"compare: error: {why}", markup=False)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--wide", action="store_true", help="all columns")
    parser.add_argument("--figures", action="store_true", help="the timelines as SVG")
    parser.add_argument("--perfetto", action="store_true", help="each trace as JSON for ui.perfetto.dev")
    options = parser.parse_args()
    if not options.directory.is_dir():
        return failed(f"{options.directory} is not a folder.", 2)
    found = Comparison(options.directory)
    for problem in found.problems:
        out.print(f"compare: {problem}", style="yellow", markup=False)
    if not found.rows:
        nothing = "no trace (NAME.sqlite) and no result record (NAME.json)"
        return failed(f"{found.directory} holds {nothing}. Make some: scripts/profile_all.sh", 3)
    found.report(options.figures, options.perfetto, tables.ALL if options.wide else tables.SHORT)
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
