"""A trace's measured window as rows of bars, to be drawn as text (``report``) or as SVG (``harness/svg.py``)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.trace import Trace

TITLES = {
    "decode": "decode",
    "h2d": "H2D copy",
    "compute": "compute",
    "d2h": "D2H copy",
    "postprocess": "post-process",
    "infer": "infer (submit)",
}
SHOWN = 8


@dataclass(frozen=True)
class Bar:
    """[start, end) in ms from the window's start, the number of the batch it works for (-1: none), and the share of it in
    which something runs."""

    start: float
    end: float
    batch: int
    busy: float = 1.0


@dataclass(frozen=True)
class Timeline:
    """Rows of bars over a window of ``length_ms``, in which ``batches`` batches were finished that could take ``limit_ms``."""

    stage: str
    length_ms: float
    batches: int
    limit_ms: float | None
    rows: dict[str, list[Bar]]


def timeline(stage: str, trace: Trace, limit_ms: float | None = None) -> Timeline:
    """The measured window of a trace, or its last ``SHOWN`` batches.

    Neighbouring kernels of a batch are one bar where nothing lies between.
    """
    start, end = trace.window
    if len(trace.measured) > SHOWN:
        start = int(trace.postprocess[trace.measured[-SHOWN - 1], 1])
    resolution = (end - start) / 2000
    rows = {"decode": bars(trace.decode, np.arange(len(trace.decode)), start, end, 0)} if len(trace.decode) else {}
    for name, operations in (("h2d", trace.h2d), ("compute", trace.kernels), ("d2h", trace.d2h)):
        batches = trace.batches_of(operations)
        if name == "h2d":  # a pipeline submits the next batch's copy together with this batch's work
            batches = np.where(batches >= 0, np.cumsum(batches >= 0) - 1, -1)
        rows[name] = bars(operations.intervals, batches, start, end, resolution)
    rows["postprocess"] = bars(trace.postprocess, np.arange(len(trace.postprocess)), start, end, 0)
    rows["infer"] = bars(trace.infer, np.arange(len(trace.infer)), start, end, 0)
    return Timeline(stage, (end - start) / 1e6, min(len(trace.measured), SHOWN), limit_ms, rows)


def bars(intervals: np.ndarray, batches: np.ndarray, start: int, end: int, resolution: float) -> list[Bar]:
    """The intervals inside the window, those of one batch joined across gaps shorter than ``resolution`` ns."""
    made: list[list[int]] = []
    order = np.argsort(intervals[:, 0], kind="stable")
    for (first, last), batch in zip(intervals[order], batches[order]):
        first, last = max(int(first), start), min(int(last), end)
        if last <= first:
            continue
        if made and made[-1][2] == batch and first - made[-1][1] <= resolution:
            made[-1][3] += max(last - max(first, made[-1][1]), 0)
            made[-1][1] = max(made[-1][1], last)
        else:
            made.append([first, last, int(batch), last - first])
    return [Bar((first - start) / 1e6, (last - start) / 1e6, batch, busy / (last - first)) for first, last, batch, busy in made]
