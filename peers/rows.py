"""The rows of a comparison: a file for each contender and task, and the tables and pictures that are made of them."""

from __future__ import annotations

import datetime
import os
import platform
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from common.console import out
from common.files import cells, column, columns, grid, read_json, write_csv, write_json, write_text
from common.record import from_json
from peers.contenders import Contender, Task, contenders

BOTH, EXACT = ("main", "accuracy"), ("accuracy",)


@dataclass
class Row:
    """What a contender came to on a task: its speed, or its accuracy, or what it ``needs``, or the ``problem`` that it had.

    Differences are shares of the largest logit where they do not say otherwise. What a row does not have is None.
    """

    engine: str = column("engine", tables=BOTH)  # the contender's name
    precision: str = column("precision", tables=BOTH)
    model: str = ""
    weights: str = ""
    weights_name: str = ""
    weights_sha256: str = ""
    transfers: str = ""  # "in" the time or "out" of it
    host: str = ""
    date: str = ""
    batch: int = column("batch")
    version: str | None = None
    device: str | None = None
    count: int | None = None
    rate_only: bool | None = None  # a pipeline: its median is its window's mean
    min_ms: float | None = column("min", "{:.3f}")
    median_ms: float | None = column("median", "{:.3f}")
    p90_ms: float | None = column("p90", "{:.3f}")
    p99_ms: float | None = column("p99", "{:.3f}")
    max_ms: float | None = column("max", "{:.3f}")
    images_per_s: float | None = column("images/s", "{:,.0f}")
    memory_mb: float | None = column("device MB", "{:,.0f}")
    prepare_s: float | None = column("prepare, s", "{:.1f}")
    build_s: float | None = column("build, s", "{:.1f}")
    largest_difference: float | None = column("off FP32", "{:.1e}")
    top1_agreement: float | None = column("same top-1", "{:.0%}")
    times_ms: list[float] | None = None
    images: int | None = None  # that the accuracy is of
    top1: float | None = column("top-1", "{:.2%}", EXACT)
    top5: float | None = column("top-5", "{:.2%}", EXACT)
    agreement: float | None = column("agrees with FP32", "{:.2%}", EXACT)
    largest_logit_difference: float | None = column("largest logit difference", "{:.3f}", EXACT)
    largest_logit: float | None = column("of", "{:.2f}", EXACT)
    cosine: float | None = column("cosine", "{:.6f}", EXACT)
    smallest_cosine: float | None = column("smallest", "{:.6f}", EXACT)
    needs: str | None = None
    problem: str | None = None

    @classmethod
    def of(cls, task: Task, contender: Contender) -> Row:
        """What is known before anything is run."""
        file = Path(task.weights)
        weights = task.weights, file.name if file.is_file() else f"{task.weights} weights", task.weights_sha256
        transfers, today = "in" if task.transfers else "out", datetime.date.today().isoformat()
        return cls(contender.name, contender.precision, task.model, *weights, transfers, host(), today, task.batch)

    @property
    def facts(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value not in (None, "")}


SPEED, ACCURACY = (columns(Row, table=table) for table in BOTH)


def report(folder: Path) -> None:
    """Print the tables and write them, as JSON, CSV, Markdown and pictures, from the rows that are there."""
    found = [from_json(Row, read_json(path)) for path in sorted((folder / "rows").glob("*.json"))]
    order = {(contender.name, contender.precision): index for index, contender in enumerate(contenders())}
    found.sort(key=lambda row: (row.model, row.batch or 0, order.get((row.engine, row.precision), len(order))))
    rows, exact = [row for row in found if row.median_ms is not None], [row for row in found if row.top1 is not None]
    lines = [conditions(rows), ""]
    for model, weights, transfers in dict.fromkeys((row.model, row.weights_name, row.transfers) for row in rows):
        mine = [vars(row) for row in rows if (row.model, row.weights_name, row.transfers) == (model, weights, transfers)]
        what = f"transfers {transfers} the time, ms a batch"
        lines += [f"## {model} ({weights}), {what}", "", *grid(mine, SPEED, words=2), ""]
        table = Table(title=f"{model}, {what}", box=None, title_justify="left")
        for index, (title, *_) in enumerate(SPEED):
            table.add_column(title, justify="left" if index < 2 else "right", no_wrap=True)
        for row in mine:
            table.add_row(*cells(row, SPEED))
        (out if out.is_terminal else Console(width=175, highlight=False)).print(table)
    if exact:
        accuracy = grid([vars(row) for row in exact], ACCURACY, words=2)
        lines += [f"## Accuracy on {exact[0].images} labelled images ({exact[0].weights_name})", "", *accuracy, ""]
        out.print("\n".join(accuracy), markup=False)
    if absent := not_run(found):
        lines += ["## Not run", "", *(f"- {line}" for line in absent), ""]
        out.print("\n".join(f"not run: {line}" for line in absent), markup=False)
    slim = [replace(row, times_ms=None).facts for row in found]
    write_json(folder / "engines.json", {"conditions": lines[0], "rows": slim})
    write_text(folder / "engines.md", "\n".join(lines))
    write_csv(folder / "engines.csv", ["model", *(name for _, name, _ in SPEED), "transfers"], map(vars, rows))
    written = ["engines.json, .csv, .md"]
    try:
        from peers import figures

        written += figures.draw(rows, folder)
    except ImportError:
        out.print("no pictures: matplotlib is not installed (pip install matplotlib)", style="yellow", markup=False)
    out.print(f"written: {folder}/{', '.join(written)}", markup=False)


def not_run(rows: list[Row]) -> list[str]:
    """A line for each reason, with the contenders that it holds up."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        who = f"{row.engine} {row.precision}"
        if row.problem:
            reasons.setdefault(row.problem, []).append(f"{row.model} {who} at batch {row.batch}")
        elif row.needs:
            reasons.setdefault(f"needs {row.needs}", []).append(who)
    return [f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in reasons.items()]


def conditions(rows: list[Row]) -> str:
    """What the numbers were obtained on."""
    if not rows:
        return ""
    facts = ([vars(row)[name] for row in rows] for name in ("device", "host", "version"))
    devices, hosts, versions = (", ".join(dict.fromkeys(values)) for values in facts)
    dates = sorted(row.date for row in rows)
    return f"{devices}; host: {hosts}; {versions}; {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}:"


def host() -> str:
    """The processor and the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {cores} cores"
