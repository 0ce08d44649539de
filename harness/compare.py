"""Compare the stages of a run: what each step bought, what limits it now, what to try next.

    python scripts/compare.py DIR            the table, and comparison.json, .csv, .md and .html in DIR
    python scripts/compare.py DIR --wide --figures --perfetto

DIR holds a trace for each stage (NAME.sqlite, from `nsys export --type sqlite` or from the simulator's --trace) and may
hold its result record (NAME.json, from --json), which adds what a trace does not: the time without a profiler, the limit,
whether the outputs are right, the memory.
"""

from __future__ import annotations

import os
from dataclasses import fields, replace
from functools import cached_property
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from common import program
from common.console import err, out, printable, wrapped
from common.errors import EnvironmentFault, UsageFault
from common.files import read_json, write_csv, write_json, write_text
from common.host import beside
from common.parts import ALL_PARTS, PARTS
from common.record import FAULT, Conditions, Record, fits, from_json, ladder_order
from common.timeline import Timeline, timeline
from common.trace import Trace, TraceError, read
from harness import page, perfetto, svg, tables
from harness.advice import advice, named
from harness.analysis import Analysis, analyse, limiter
from harness.rows import RULES, Row, kept, pairs, steps

ALIKE = 0.9  # share of the images on which a plan names FP32's class, below which that is told
AHEAD = 1.2  # latency over the time of a batch from which on submission is no waiting for the batch
WHOLE_GRAPHS = "traced with graphs as wholes, so compute has their copies in it; --cuda-graph-trace=node tells them apart"
SHARED = ("backend", "device", "engine", "batch")  # by the rows of a table


class Comparison:
    """The run's conditions, a row and a timeline for each stage of a folder that shares ``wanted``'s conditions, or those of
    the most; ``problems`` has a line for each other thing."""

    def __init__(self, directory: Path, wanted: str | None = None) -> None:
        self.directory = directory
        self.traces: dict[str, Trace] = {}
        self.problems: list[str] = []
        records = {record.stage: record for record in Record.read_all(directory, self.problems)}
        analyses = {}
        for path in sorted(directory.glob("*.sqlite")):
            name = path.stem
            try:
                analysis = analyse(trace := read(path))
            except TraceError as error:
                self.problems.append(str(error))
                continue
            record = records.setdefault(name, traced := describe(name, trace, analysis))
            if not alike(record, traced if trace.simulated else replace(traced, device=None)):  # nsys lists all GPUs
                self.problems.append(f"{path.name} is left out: it is of {conditions(traced)}, its record is not")
                continue
            analyses[name], self.traces[name] = analysis, trace
            if trace.whole_graphs:
                self.problems.append(f"{name}: {WHOLE_GRAPHS}")
        runs = sorted(records.values(), key=lambda run: ladder_order(run.stage))
        sizes = {run.stage: sum(shared(other).items() <= shared(run).items() for other in runs) for run in runs}
        model = records.get(wanted or "") or max(runs, key=lambda run: sizes[run.stage], default=Record())
        for run in [run for run in runs if not alike(model, run)]:
            self.problems.append(f"{run.stage} is left out: {conditions(run)}; the table is of {conditions(model)}")
            self.traces.pop(run.stage, None)
            runs.remove(run)
        self.rows = [row(run, analyses.get(run.stage)) for run in runs]
        self.kept = kept(directory / "comparison.json", [row for row in self.rows if row.stage not in analyses])
        if self.kept:
            self.problems.append(f"no trace of {', '.join(self.kept)} is here: what it told is left as comparison.json has it")
        relate(self.rows)
        modelled: dict[str | None, float] = read_json(directory / "prediction.json").get("modelled_ms", {})
        for each in self.rows if fits("dict[str, float]", modelled) else []:
            each.modelled_next_ms = modelled.get(named(each, self.rows, modelled))
        self.run = Conditions(**{each.name: agreed([getattr(run, each.name) for run in runs]) for each in fields(Conditions)})
        windows = [window for run in runs for window in run.windows if run.backend != "simulated"]
        self.host = beside(windows, next((run.host.get("processor") for run in runs if run.host), None)) if windows else ""
        self.run.versions = self.run.versions if isinstance(self.run.versions, dict) else {}

    @cached_property
    def timelines(self) -> dict[str, Timeline]:
        limits = {stage.stage: stage.limit_ms for stage in self.rows}
        return {name: timeline(name, trace, limits[name]) for name, trace in self.traces.items()}

    def parents(self) -> dict[str, str]:
        """The stage that each is held against."""
        return {row.stage: before.stage for before, row in pairs(self.rows)}

    def report(self, with_figures: bool, with_perfetto: bool, order: str = tables.SHORT) -> None:
        """Print the table, the stages' notes and the advice, and write all of it into the folder."""
        tables.print_rows(self.run, self.rows, self.host, order)
        self.write()
        written = ["comparison.json", ".csv", ".md", *([] if self.kept else [".html"])]
        if with_perfetto:
            for name, trace in self.traces.items():
                write_json(self.directory / f"{name}.perfetto.json", perfetto.events(trace), indent=None)
            written.append("STAGE.perfetto.json (open them at ui.perfetto.dev)")
        if with_figures and self.traces:
            self.draw(self.timelines, self.parents())
            written.append("timelines.svg and timeline_STAGE.svg")
        out.print(wrapped(f"written: {os.path.relpath(self.directory)}/{', '.join(written)}", 2), markup=False)

    def write(self) -> None:
        run = {"rules": RULES, "run": vars(self.run), "host": self.host}
        stages = {"stages": [vars(stage) for stage in self.rows], "advice": advice(self.rows)}
        write_json(self.directory / "comparison.json", {**run, **stages})
        keys = [key for key, value in vars(self.rows[0]).items() if not isinstance(value, (list, dict))]
        write_csv(self.directory / "comparison.csv", keys, map(vars, self.rows))
        markdown = tables.markdown(self.run, self.rows, self.host) + tables.clocks(self.rows)
        write_text(self.directory / "comparison.md", markdown)
        if not self.kept:  # or its timelines would be lost
            write_text(self.directory / "comparison.html", page.page(self.run, self.rows, self.timelines, self.parents()))

    def draw(self, drawn: dict[str, Timeline], parents: dict[str, str]) -> None:
        """A picture of all timelines, and of each stage under the one it differs from."""
        write_text(self.directory / "timelines.svg", svg.document(list(drawn.values())))
        for name, one in drawn.items():
            pair = [drawn[parents[name]], one] if parents.get(name) in drawn else [one]
            write_text(self.directory / f"timeline_{name}.svg", svg.document(pair))


def agreed(values: list[Any]) -> Any:
    """The one value that all stages share, or the list of those that occur."""
    found = [value for index, value in enumerate(values) if value is not None and value not in values[:index]]
    return found[0] if len(found) == 1 else found or None


def shared(run: Record) -> dict[str, Any]:
    return {name: value for name in SHARED if (value := getattr(run, name)) is not None}


def alike(one: Record, other: Record) -> bool:
    """Whether two runs share all conditions that are known of both; a trace alone does not tell its engine and batch."""
    return all(shared(one)[name] == shared(other)[name] for name in shared(one).keys() & shared(other).keys())


def conditions(run: Record) -> str:
    return ", ".join(f"batch {value}" if name == "batch" else str(value) for name, value in shared(run).items())


def describe(name: str, trace: Trace, analysis: Analysis) -> Record:
    """What a trace without a record tells of its run."""
    facts, backend = trace.simulated, "simulated" if trace.simulated else "tensorrt"
    batch = int(facts["CHARGED_BATCH"]) if facts.get("CHARGED_BATCH", "").isdecimal() else None
    device = f"{trace.device} (modelled)" if facts else trace.device
    return Record(backend, device, facts.get("ENGINE"), batch, stage=name, per_batch_ms=analysis.per_batch_ms)


def row(record: Record, analysis: Analysis | None) -> Row:
    """One stage. What the record has, taken without a profiler, is the record's; what happened inside is the trace's.

    The limit is the longest of the parts that the record's own run timed by themselves; without them, of the trace's.
    """
    known = {name: value for name, value in vars(record).items() if value is not None}
    found = from_json(Row, {**(vars(analysis) if analysis else {}), **known})
    found.notes = list(record.notes)
    if times := record.repeats_ms:
        found.repeats_ms, found.fastest_ms, found.slowest_ms = times, min(times), max(times)
        found.lower_quartile_ms, found.upper_quartile_ms = np.percentile(times, [25, 75]).tolist()
    found.latency_p99_ms = (record.latency_ms or {}).get("p99")
    if told := [each for each in record.windows if each.energy_j and each.images_per_s and each.window_ms]:
        images = sum(each.images_per_s * each.window_ms / 1e3 for each in told)
        found.energy_j_per_1000 = sum(each.energy_j for each in told) / images * 1e3
    found.capped_mhz = capped_mhz(record)
    parts = record.parts_ms or {name: getattr(analysis, f"{name}_ms") for name in PARTS if analysis is not None}
    found.parts_ms = None
    if parts.keys() >= set(PARTS):
        found.parts_ms, found.faulty = parts, replace(record, parts_ms=parts).faulty
        part = max((name for name in ALL_PARTS if name in parts), key=lambda name: parts[name])
        found.limit_ms, found.percent_of_limit = parts[part], 100 * parts[part] / record.per_batch_ms
        found.limiter = limiter(parts[part], part, record.per_batch_ms, waits_ms(record, analysis, parts[part]))
    if record.fp32_top1_agreement is not None and record.fp32_top1_agreement < ALIKE:
        found.notes.append(f"names the FP32 plan's class on {record.fp32_top1_agreement:.0%} of the images only")
    if found.faulty:
        found.notes.append(f"{record.per_batch_ms:.3f} ms is less than its limit of {found.limit_ms:.3f}: {FAULT}")
    if analysis is not None:
        found.profiled_per_batch_ms = analysis.per_batch_ms
        found.clocks = {**record.profiled, "nvtx_ms": analysis.per_batch_ms} if record.profiled else None
    return found


def capped_mhz(record: Record) -> float | None:
    """The SM clock in MHz, the median of the windows in which the power cap held it down; None where those are not most."""
    capped = [each.gpu for each in record.windows if each.gpu and "power cap" in (each.gpu.get("throttled") or ())]
    clocks = [gpu["sm_mhz"] for gpu in capped if isinstance(gpu.get("sm_mhz"), (int, float))]
    return median(clocks) if len(clocks) > len(record.windows) / 2 else None


def waits_ms(record: Record, analysis: Analysis | None, limit_ms: float) -> float:
    """Milliseconds a batch in which the GPU waits for the host's launches: between a batch's own kernels, or, where batches
    are on their way side by side, because submitting one takes longer than its longest part."""
    gaps_ms = analysis.launch_gaps_ms if analysis is not None else 0.0
    late_ms = (record.latency_ms or {}).get("median", 0.0)
    ahead = late_ms > AHEAD * record.per_batch_ms
    return max(gaps_ms, (record.submit_ms or 0.0) - limit_ms if ahead else 0.0)


def relate(rows: list[Row]) -> None:
    """Fill in what follows from the other rows: speed-ups by images a second, which also holds for a stage with batches of
    several sizes, and one limit for all stages with batches of the same size."""
    told = all(stage.images_per_s for stage in rows)  # a trace alone does not tell its images

    def speed(stage: Row) -> float:
        return stage.images_per_s if told and stage.images_per_s else 1 / stage.per_batch_ms

    for stage in rows:
        stage.speedup_vs_baseline = speed(stage) / speed(rows[0])
    for before, stage in pairs(rows):
        stage.speedup_vs_previous = speed(stage) / speed(before)
    alike = [stage for stage in steps(rows) if stage.parts_ms and stage.images == rows[0].images]
    for stage in alike:
        fastest = (min(other.parts_ms.get(name, inf) for other in alike if other.parts_ms) for name in stage.parts_ms or {})
        stage.ladder_limit_ms = max(fastest)
        stage.percent_of_ladder_limit = 100 * stage.ladder_limit_ms / stage.per_batch_ms


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--wide", action="store_true", help="all columns")
    parser.add_argument("--figures", action="store_true", help="the timelines as SVG")
    parser.add_argument("--perfetto", action="store_true", help="each trace as JSON for ui.perfetto.dev")
    options = parser.parse_args()
    if not options.directory.is_dir():
        raise UsageFault(f"{options.directory} is not a folder.")
    found = Comparison(options.directory)
    for problem in found.problems:
        err.print(f"compare: {printable(problem)}", style="yellow", markup=False)
    if not found.rows:
        raise EnvironmentFault(f"no trace or record in {found.directory} can be compared: run scripts/profile_all.sh first.")
    found.report(options.figures, options.perfetto, tables.ALL if options.wide else tables.SHORT)


if __name__ == "__main__":
    program.run(main)
