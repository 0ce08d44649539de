"""A comparison's rows, as comparison.json has them, and how a table shows their fields."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from common.files import column, read_json
from common.plans import ROOT
from common.record import Conditions, from_json
from harness.analysis import Analysis

RULES = 3
"""Of the figures in a comparison.json: raised when one of them comes to mean something else."""


@dataclass
class Row:
    """One stage: milliseconds a batch, shares of 0 to 1, megabytes. None is what neither record nor trace tells."""

    stage: str = column("stage")
    precision: str | None = None
    input: str = "float32"  # NumPy's name of what an image's values are sent as
    per_batch_ms: float = column("ms a batch", "{:.3f}", default=0.0)
    images_per_s: float | None = column("images/s", "{:,.0f}")
    speedup_vs_previous: float | None = column("× before", "{:.2f}")
    speedup_vs_baseline: float = column("× baseline", "{:.2f}", default=1.0)
    h2d_ms: float | None = column("H2D", "{:.3f}")
    compute_ms: float | None = column("compute", "{:.3f}")
    d2h_ms: float | None = column("D2H", "{:.3f}")
    postprocess_ms: float | None = column("post", "{:.3f}")
    submit_ms: float | None = column("submit", "{:.3f}")
    overlap: float | None = column("overlap", "{:.0%}")
    copy_hidden: float | None = column("copy hidden", "{:.0%}")
    gpu_idle: float | None = column("GPU idle", "{:.0%}")
    launches: int | None = column("launches")
    allocations: float | None = None
    library_allocations: float | None = None
    h2d_gb_s: float | None = None
    profiled_per_batch_ms: float | None = None
    clocks: dict[str, float] | None = None
    parts_ms: dict[str, float] | None = None
    limit_ms: float | None = column("own limit", "{:.3f}")
    percent_of_limit: float | None = column("% of own limit")
    faulty: bool = False  # faster than its own limit: no speed, but a fault of the measurement
    ladder_limit_ms: float | None = column("limit", "{:.3f}")
    percent_of_ladder_limit: float | None = column("% of limit")
    limiter: str | None = column("limited by")
    fastest_ms: float | None = column("fastest", "{:.3f}")
    lower_quartile_ms: float | None = column("25 %", "{:.3f}")
    upper_quartile_ms: float | None = column("75 %", "{:.3f}")
    slowest_ms: float | None = column("slowest", "{:.3f}")
    latency_ms: dict[str, float] | None = None
    latency_p99_ms: float | None = column("latency p99", "{:.3f}")
    energy_j_per_1000: float | None = column("J / 1,000", "{:.1f}")
    outputs_match: bool | None = column("outputs")
    max_abs_diff: float | None = None
    fp32_max_abs_diff: float | None = column("vs FP32", "{:.2g}")
    fp32_top1_agreement: float | None = None
    peak_device_memory_mb: float | None = column("memory MB", "{:,.0f}")
    repeats_ms: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    modelled_next_ms: float | None = None  # what its remedy would take, by the simulator (sim/predict.py)
    capped_mhz: float | None = None  # the SM clock, where the power cap held it down in most windows

    @property
    def images(self) -> int | None:
        """Images a batch, on average."""
        return round(self.images_per_s * self.per_batch_ms / 1e3) if self.images_per_s else None

    @property
    def shown(self) -> dict[str, Any]:
        """As tables show it: in words whether its outputs are right."""
        found = {**vars(self), "outputs_match": {True: "right", False: "WRONG", None: "not verified"}[self.outputs_match]}
        for name in ("percent_of_limit", "percent_of_ladder_limit"):
            found[name] = f"{found[name]:.0f}{' !' * self.faulty}" if found[name] is not None else None
        return found


@functools.cache
def parent_of(stage: str) -> tuple[str | None, bool]:
    """The stage that one differs from, by its script's own word, and whether it is a side branch of the ladder."""
    script = ROOT / f"{stage}.py"
    text = script.read_text(encoding="utf-8") if script.exists() else ""
    found = re.search(r"Differs from: (\w+)\.py(; a side branch)?", text)
    return (found[1], bool(found[2])) if found else (None, False)


def read_rows(path: Path) -> tuple[Conditions, list[Row]] | None:
    """The run's conditions and the rows of a comparison.json; None where there is none."""
    content = read_json(path)
    run, stages = content.get("run"), content.get("stages")
    if not isinstance(run, dict) or not isinstance(stages, list):
        return None
    return from_json(Conditions, run), [from_json(Row, stage) for stage in stages if isinstance(stage, dict)]


TRACED = {each.name for each in fields(Row)} & {each.name for each in fields(Analysis)}
TRACED |= {"profiled_per_batch_ms", "clocks", "parts_ms", "limit_ms", "percent_of_limit"}
"""What a row has of a trace."""


def kept(path: Path, rows: list[Row]) -> list[str]:
    """Fill in what a comparison.json tells of the traces of these rows, which are gone; names of those that it is of. It was
    made of the same runs where their times are the same."""
    _, earlier = (read_rows(path) if read_json(path).get("rules") == RULES else None) or (None, [])
    traced = {(each.stage, each.per_batch_ms): each for each in earlier if each.profiled_per_batch_ms is not None}
    same = [(row, before) for row in rows if (before := traced.get((row.stage, row.per_batch_ms)))]
    for row, before in same:
        for name in TRACED:
            setattr(row, name, getattr(before, name) if getattr(row, name) is None else getattr(row, name))
        if row.limit_ms == before.limit_ms:
            row.limiter = before.limiter  # of which the trace tells whether launches are awaited
    return [row.stage for row, _ in same]


def pairs(rows: list[Row]) -> list[tuple[Row, Row]]:
    """What each row but the first is held against, and it: the row of the stage that it differs from, or the one above it."""
    named = {row.stage: row for row in rows}
    return [(named.get(parent_of(row.stage)[0] or "", above), row) for above, row in zip(rows, rows[1:])]


def steps(rows: list[Row]) -> list[Row]:
    """The rows that are held against one another: all but side branches, unless there is nothing else."""
    return [row for row in rows if not parent_of(row.stage)[1]] or rows
