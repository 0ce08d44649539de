"""A stage's timeline as rows of bars over its measured window, and as SVG that follows the page's colours."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np

from scripts.analysis import measured_batches
from scripts.trace_reader import Trace, batches_of

# Okabe and Ito's palette: distinguishable with any colour vision, on light and on dark.
COLOURS = {"h2d": "#0072B2", "compute": "#E69F00", "d2h": "#009E73", "postprocess": "#CC79A7", "infer": "#56B4E9",
           "limit": "#999999"}
TITLES = {"h2d": "H2D copy", "compute": "compute", "d2h": "D2H copy", "postprocess": "post-process", "infer": "infer (submit)",
          "limit": "limit"}
SHOWN = 8
ROW, BAR, LABELS = 26, 18, 120  # SVG units: height of a row and of its bar, width of the labels


@dataclass(frozen=True)
class Bar:
    """[start, end) in ms from the window's start, and the number of the batch it works for (-1: none)."""

    start: float
    end: float
    batch: int


@dataclass(frozen=True)
class Timeline:
    """Rows of bars over a window of ``length_ms``; ``limit_ms`` a batch, over ``batches`` batches."""

    stage: str
    length_ms: float
    batches: int
    limit_ms: float
    rows: dict[str, list[Bar]]


def timeline(stage: str, trace: Trace, limit_ms: float) -> Timeline:
    """The measured window of a trace, or its last ``SHOWN`` batches.

    Neighbouring kernels of a batch are drawn as one bar where nothing lies between.
    """
    measured = measured_batches(trace)
    start, end = trace.window
    if len(measured) > SHOWN:
        start = int(trace.postprocess[measured[-SHOWN - 1], 1])
    resolution = (end - start) / 2000
    rows = {}
    for name, operations in (("h2d", trace.h2d), ("compute", trace.kernels), ("d2h", trace.d2h)):
        batches = batches_of(operations, trace)
        if name == "h2d":  # a pipeline submits the next batch's copy together with this batch's work
            batches = np.where(batches >= 0, np.cumsum(batches >= 0) - 1, -1)
        rows[name] = bars(operations.intervals, batches, start, end, resolution)
    rows["postprocess"] = bars(trace.postprocess, np.arange(len(trace.postprocess)), start, end, 0)
    rows["infer"] = bars(trace.infer, np.arange(len(trace.infer)), start, end, 0)
    count = min(len(measured), SHOWN)
    rows["limit"] = [Bar(index * limit_ms, (index + 1) * limit_ms, -1) for index in range(count)]
    return Timeline(stage, (end - start) / 1e6, count, limit_ms, rows)


def bars(intervals: np.ndarray, batches: np.ndarray, start: int, end: int, resolution: float) -> list[Bar]:
    """The intervals inside the window, those of one batch joined across gaps shorter than ``resolution`` ns."""
    found: list[list[float]] = []
    order = np.argsort(intervals[:, 0], kind="stable")
    for (first, last), batch in zip(intervals[order], batches[order]):
        first, last = max(int(first), start), min(int(last), end)
        if last <= first:
            continue
        if found and found[-1][2] == batch and first - found[-1][1] <= resolution:
            found[-1][1] = max(found[-1][1], last)
        else:
            found.append([first, last, int(batch)])
    return [Bar((first - start) / 1e6, (last - start) / 1e6, int(batch)) for first, last, batch in found]


def svg(drawn: Timeline, ms_wide: float, width: int = 900) -> str:
    """SVG of a timeline whose whole width stands for ``ms_wide`` ms, so that pictures can be compared by eye."""
    scale = (width - LABELS) / ms_wide
    height = ROW * len(drawn.rows) + 26
    parts = [f'<svg class="timeline" viewBox="0 0 {width} {height}" role="img" width="{width}" height="{height}" '
             f'aria-label="Timeline of {escape(drawn.stage)}: {drawn.length_ms:.2f} ms for {drawn.batches} batches">']
    parts.append(f'<rect class="window" x="{LABELS}" y="0" width="{drawn.length_ms * scale:.1f}" height="{height - 24}"/>')
    for tick in ticks(ms_wide):
        x = LABELS + tick * scale
        parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 20}"/>'
                     f'<text class="label" x="{x:.1f}" y="{height - 6}" text-anchor="middle">{tick:g}</text>')
    for index, (name, row) in enumerate(drawn.rows.items()):
        y = index * ROW + (ROW - BAR) / 2
        parts.append(f'<text class="label" x="{LABELS - 8}" y="{y + 13:.0f}" text-anchor="end">{TITLES[name]}</text>')
        for bar in row:
            what = TITLES[name] + (f", batch {bar.batch}" if bar.batch >= 0 else "")
            x, wide = LABELS + bar.start * scale, max((bar.end - bar.start) * scale, 0.6)
            shade = ' opacity="0.62"' if bar.batch % 2 and bar.batch >= 0 else ""
            hollow = ' class="limit"' if name == "limit" else f' fill="{COLOURS[name]}"'
            parts.append(f'<rect x="{x:.1f}" y="{y:.0f}" width="{wide:.1f}" height="{BAR}"{hollow}{shade}>'
                         f"<title>{what}: {bar.end - bar.start:.3f} ms</title></rect>")
            if wide > 26 and bar.batch >= 0:
                middle = f'x="{x + wide / 2:.1f}" y="{y + 13:.0f}" text-anchor="middle"'
                parts.append(f'<text class="batch" {middle}>{bar.batch}</text>')
    parts.append(f'<text class="label" x="{LABELS - 8}" y="{height - 6}" text-anchor="end">ms</text></svg>')
    return "".join(parts)


def ticks(length: float, wanted: int = 8) -> list[float]:
    """Round values from 0 to ``length``, about ``wanted`` of them."""
    rough = length / wanted
    unit = 10.0 ** np.floor(np.log10(rough))
    step = unit * min((1, 2, 5, 10), key=lambda factor: abs(factor * unit - rough))
    return [round(index * step, 6) for index in range(int(length / step + 1e-9) + 1)]
