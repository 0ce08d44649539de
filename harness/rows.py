"""A comparison's rows, as comparison.json has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from common.files import read_json
from common.record import Conditions, from_json


@dataclass
class Row:
    """One stage: milliseconds a batch, shares of 0 to 1, megabytes. None is what neither record nor trace tells."""

    stage: str
    precision: str | None = None
    per_batch_ms: float = 0.0
    images_per_s: float | None = None
    speedup_vs_previous: float | None = None
    speedup_vs_baseline: float = 1.0
    h2d_ms: float | None = None
    compute_ms: float | None = None
    d2h_ms: float | None = None
    postprocess_ms: float | None = None
    submit_ms: float | None = None
    overlap: float | None = None
    gpu_idle: float | None = None
    launches: int | None = None
    allocations: float | None = None
    library_allocations: float | None = None
    h2d_gb_s: float | None = None
    profiled_per_batch_ms: float | None = None
    clocks: dict[str, float] | None = None
    limit_ms: float | None = None
    percent_of_limit: float | None = None
    limiter: str | None = None
    spread: float | None = None
    outputs_match: bool | None = None
    max_abs_diff: float | None = None
    fp32_max_abs_diff: float | None = None
    fp32_top1_agreement: float | None = None
    peak_device_memory_mb: float | None = None
    repeats_ms: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_rows(path: Path) -> tuple[Conditions, list[Row]] | None:
    """The run's conditions and the rows of a comparison.json; None where there is none."""
    content = read_json(path)
    if not content:
        return None
    return from_json(Conditions, content["run"]), [from_json(Row, stage) for stage in content["stages"]]
