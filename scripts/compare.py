"""Compare the stages of a run: what each step bought, what limits it now, what to try next.

    python scripts/compare.py DIR

DIR holds a trace for each stage (NAME.sqlite, from `nsys export --type sqlite` or from the simulator's --trace) and may
hold its result record (NAME.json, from --json), which adds what a trace does not: the time without a profiler, whether
the outputs are right, the memory. Prints the table and writes comparison.json, .csv and .md into DIR.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from common.files import atomic_path
from scripts.advice import advice
from scripts.analysis import Analysis, analyse, limiter
from scripts.trace_reader import Trace, TraceError, read

console = Console(highlight=False, soft_wrap=True)


def load(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """The run, a row a stage in ladder order, and what could not be read."""
    rows, runs, problems = [], [], []
    names = {path.stem for path in directory.glob("*.sqlite")}
    names |= {path.stem for path in directory.glob("*.json") if "stage" in read_json(path)}
    for name in sorted(names, key=ladder_order):
        record = read_json(directory / f"{name}.json")
        trace_path = directory / f"{name}.sqlite"
        try:
            trace = read(trace_path) if trace_path.exists() else None
            analysis = analyse(trace) if trace is not None else None
        except (TraceError, ValueError) as error:
            problems.append(str(error))
            trace = analysis = None
        if trace is None and not record:
            continue
        rows.append(row(name, record, analysis))
        runs.append(describe(record, trace))
    add_speedups(rows)
    run = {key: common(run.get(key) for run in runs) for key in
           ("backend", "device", "engine", "batch", "computed_batch", "versions")}
    return run, rows, problems


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


def describe(record: dict[str, Any], trace: Trace | None) -> dict[str, Any]:
    if record:
        return record
    assert trace is not None
    batch = trace.simulated.get("CHARGED_BATCH")
    return {"backend": "simulated" if trace.simulated else "tensorrt", "device": trace.device,
            "engine": trace.simulated.get("ENGINE"), "batch": int(batch) if batch else None}


def row(name: str, record: dict[str, Any], analysis: Analysis | None) -> dict[str, Any]:
    """One stage. The time is the record's, taken without a profiler, where there is one; the parts are the trace's."""
    per_batch_ms = record.get("per_batch_ms") or (analysis.per_batch_ms if analysis else None)
    found: dict[str, Any] = {
        "stage": name, "precision": record.get("precision"), "per_batch_ms": per_batch_ms,
        "images_per_s": record.get("images_per_s"), "speedup_vs_previous": None, "speedup_vs_baseline": None,
    }
    for key in ("h2d_ms", "compute_ms", "d2h_ms", "postprocess_ms", "submit_ms", "overlap", "gpu_idle", "launches", "h2d_gb_s"):
        found[key] = getattr(analysis, key) if analysis else None
    found["profiled_per_batch_ms"] = analysis.per_batch_ms if analysis else None
    found["limit_ms"] = analysis.limit[0] if analysis else None
    found["percent_of_limit"] = 100 * analysis.limit[0] / per_batch_ms if analysis else None
    found["limiter"] = limiter(analysis, per_batch_ms) if analysis else None
    for key in ("outputs_match", "max_abs_diff", "fp32_max_abs_diff", "fp32_top1_agreement", "peak_device_memory_mb", "notes"):
        found[key] = record.get(key)
    return found


def add_speedups(rows: list[dict[str, Any]]) -> None:
    """Speed-ups by images a second, which also holds for a stage with batches of several sizes."""
    speeds = [stage["images_per_s"] or (1 / stage["per_batch_ms"]) for stage in rows]
    for index, stage in enumerate(rows):
        stage["speedup_vs_baseline"] = speeds[index] / speeds[0]
        stage["speedup_vs_previous"] = speeds[index] / speeds[index - 1] if index else None


COLUMNS = [
    ("stage", "stage", "{}"), ("ms a batch", "per_batch_ms", "{:.3f}"), ("images/s", "images_per_s", "{:,.0f}"),
    ("× before", "speedup_vs_previous", "{:.2f}"), ("× baseline", "speedup_vs_baseline", "{:.2f}"),
    ("H2D", "h2d_ms", "{:.3f}"), ("compute", "compute_ms", "{:.3f}"), ("D2H", "d2h_ms", "{:.3f}"),
    ("post", "postprocess_ms", "{:.3f}"), ("submit", "submit_ms", "{:.3f}"), ("overlap", "overlap", "{:.0%}"),
    ("GPU idle", "gpu_idle", "{:.0%}"), ("launches", "launches", "{}"), ("limit", "limit_ms", "{:.3f}"),
    ("% of limit", "percent_of_limit", "{:.0f}"), ("limited by", "limiter", "{}"),
    ("memory MB", "peak_device_memory_mb", "{:,.0f}"), ("vs FP32", "fp32_max_abs_diff", "{:.2g}"),
    ("outputs", "outputs_match", "{}"),
]


def cells(stage: dict[str, Any]) -> list[str]:
    """A row as text, in the order of ``COLUMNS``."""
    shown = {**stage, "outputs_match": {True: "right", False: "WRONG", None: "not verified"}[stage["outputs_match"]]}
    return [form.format(shown[key]) if shown[key] is not None else "–" for _, key, form in COLUMNS]


def conditions(run: dict[str, Any]) -> str:
    """The line beside every table: what ran where."""
    batch = f"batch {run['batch']}"
    if run.get("computed_batch") not in (None, run["batch"]):
        batch += f" (computed at {run['computed_batch']})"
    modelled = "; times are modelled, outputs are computed" if run["backend"] == "simulated" else ""
    return f"{run['device']}, {run['engine'] or 'TensorRT'}, {batch}{modelled}"


def print_table(run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    table = Table(title=conditions(run), title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1))
    for title, key, _ in COLUMNS:
        table.add_column(title, justify="left" if key in ("stage", "limiter") else "right", no_wrap=True)
    for stage in rows:
        table.add_row(*cells(stage))
    wide = Console(highlight=False, width=max(console.width, 190)) if not console.is_terminal else console
    wide.print(table)


def markdown(run: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    lines = [conditions(run) + ".", "", "| " + " | ".join(title for title, *_ in COLUMNS) + " |",
             "|" + "|".join("---" if index == 0 else "---:" for index in range(len(COLUMNS))) + "|"]
    lines += ["| " + " | ".join(cells(stage)) + " |" for stage in rows]
    notes = [f"- {stage['stage']}: {note}" for stage in rows for note in stage["notes"] or []]
    return "\n".join([*lines, "", *notes, *[""] * bool(notes), advice(rows), ""])


def write(directory: Path, run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """comparison.json, .csv and .md."""
    with atomic_path(directory / "comparison.json") as temporary:
        content = {"run": run, "stages": rows, "advice": advice(rows)}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with atomic_path(directory / "comparison.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [key for key in rows[0] if key != "notes"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    with atomic_path(directory / "comparison.md") as temporary:
        temporary.write_text(markdown(run, rows), encoding="utf-8")


def report(directory: Path, run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Print the table, the stages' notes and the advice; write them into ``directory``."""
    print_table(run, rows)
    for stage in rows:
        for note in stage["notes"] or []:
            console.print(f"{stage['stage']}: {note}", markup=False)
    console.print(f"\n{advice(rows)}", markup=False)
    write(directory, run, rows)
    console.print(f"written: {directory}/comparison.json, .csv, .md", markup=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    options = parser.parse_args()
    if not options.directory.is_dir():
        console.print(f"compare: error: {options.directory} is not a folder.")
        return 2
    run, rows, problems = load(options.directory)
    for problem in problems:
        console.print(f"compare: {problem}", style="yellow", markup=False)
    if not rows:
        console.print(f"compare: error: {options.directory} holds no trace (NAME.sqlite) and no result record (NAME.json). "
                      "Make some: scripts/profile_all.sh", markup=False)
        return 3
    report(options.directory, run, rows)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
