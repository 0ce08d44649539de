"""Timelines as SVG: the one renderer, for the page (whose colours it follows) and for files that stand alone."""

from __future__ import annotations

from html import escape
from math import floor, log10

from common.timeline import TITLES, Bar, Timeline

# Okabe and Ito's palette: distinguishable with any colour vision, on light and on dark.
COLOURS = {
    "h2d": "#0072B2",
    "compute": "#E69F00",
    "d2h": "#009E73",
    "postprocess": "#CC79A7",
    "infer": "#56B4E9",
    "decode": "#999999",
}
ROW, BAR, LABELS, WIDTH = 26, 18, 120, 900  # SVG units: a row and its bar, the labels, the whole width
NARROWEST = 0.6  # that is seen
STYLE = """
.timeline { font: 12px system-ui, sans-serif } .label { fill: var(--soft) } .batch { fill: #000; font-size: 11px }
.window { fill: var(--line); opacity: .35 } .tick { stroke: var(--line) }
.limit { fill: none; stroke: var(--text); stroke-dasharray: 4 3 }
"""


def height(drawn: Timeline) -> int:
    return ROW * (len(drawn.rows) + 1) + 26


def svg(drawn: Timeline, ms_wide: float, y: int = 0) -> str:
    """A timeline whose whole width stands for ``ms_wide`` ms, so that pictures can be compared by eye.

    Its last row is how long the same batches would take at their limit.
    """
    scale, tall, limit_ms = (WIDTH - LABELS) / ms_wide, height(drawn), drawn.limit_ms
    parts = [
        f'<svg class="timeline" viewBox="0 0 {WIDTH} {tall}" role="img" width="{WIDTH}" height="{tall}" y="{y}" '
        f'aria-label="Timeline of {escape(drawn.stage)}: {drawn.length_ms:.2f} ms for {drawn.batches} batches">',
        f'<rect class="window" x="{LABELS}" y="0" width="{drawn.length_ms * scale:.1f}" height="{tall - 24}"/>',
    ]
    for tick in ticks(ms_wide):
        x = LABELS + tick * scale
        parts.append(
            f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{tall - 20}"/>'
            f'<text class="label" x="{x:.1f}" y="{tall - 6}" text-anchor="middle">{tick:g}</text>'
        )
    limits = [Bar(index * limit_ms, (index + 1) * limit_ms, -1) for index in range(drawn.batches)] if limit_ms else []
    for index, (name, row) in enumerate({**drawn.rows, "limit": limits}.items()):
        title, top = TITLES.get(name, name), index * ROW + (ROW - BAR) // 2
        parts.append(f'<text class="label" x="{LABELS - 8}" y="{top + 13}" text-anchor="end">{title}</text>')
        parts += [rectangle(bar, name, title, top, scale) for bar in row]
    parts.append(f'<text class="label" x="{LABELS - 8}" y="{tall - 6}" text-anchor="end">ms</text></svg>')
    return "".join(parts)


def rectangle(bar: Bar, name: str, title: str, top: int, scale: float) -> str:
    """One bar; every other batch's is paler, and it bears the batch's number where there is room. Kernels that are too narrow
    to be seen or to be told apart are drawn wider and paler by as much, or a lane of gaps would look full."""
    x, true = LABELS + bar.start * scale, (bar.end - bar.start) * scale
    wide, pale = max(true, NARROWEST), 0.62 if bar.batch % 2 and bar.batch >= 0 else 1.0
    pale *= bar.busy * min(true / NARROWEST, 1.0) if name == "compute" else 1.0
    paint = 'class="limit"' if name == "limit" else f'fill="{COLOURS[name]}"'
    paint += f' opacity="{pale:.2g}"' if pale < 0.995 else ""
    what = title + (f", batch {bar.batch}" if bar.batch >= 0 else "")
    busy = f"busy for {bar.busy:.0%} of " if bar.busy < 0.995 else ""
    drawn = (
        f'<rect x="{x:.1f}" y="{top}" width="{wide:.1f}" height="{BAR}" {paint}>'
        f"<title>{what}: {busy}{bar.end - bar.start:.3f} ms</title></rect>"
    )
    if wide > 26 and bar.batch >= 0:
        drawn += f'<text class="batch" x="{x + wide / 2:.1f}" y="{top + 13}" text-anchor="middle">{bar.batch}</text>'
    return drawn


def document(drawn: list[Timeline]) -> str:
    """A file of its own: the timelines above one another, to one scale."""
    ms_wide, y, parts = 1.02 * max(one.length_ms for one in drawn), 0, []
    for one in drawn:
        said = f"{one.stage}: {one.length_ms / one.batches:.3f} ms a batch"
        said += f", limit {one.limit_ms:.3f}" if one.limit_ms else ""
        parts.append(f'<text x="0" y="{y + 16}" class="title">{escape(said)}</text>{svg(one, ms_wide, y + 24)}')
        y += height(one) + 36
    colours = ":root { --text: #1b1f24; --soft: #57606a; --line: #d0d7de } .title { font: bold 13px system-ui, sans-serif }"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}">'
        f'<style>{colours}{STYLE}</style><rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def ticks(length: float, wanted: int = 8) -> list[float]:
    """Round values from 0 to ``length``, about ``wanted`` of them."""
    rough = length / wanted
    unit = 10.0 ** floor(log10(rough))
    step = unit * min((1, 2, 5, 10), key=lambda factor: abs(factor * unit - rough))
    return [round(index * step, 6) for index in range(int(length / step + 1e-9) + 1)]
