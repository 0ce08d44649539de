"""The comparison as a table: on the terminal, in Markdown, and of two runs against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from common.console import out
from common.files import Column, cells, grid
from common.record import Conditions
from harness.advice import advice
from harness.analysis import PARTS
from harness.rows import Row

COLUMNS = [
    ("stage", "stage", "{}"),
    ("ms a batch", "per_batch_ms", "{:.3f}"),
    ("spread", "spread", "{:.1%}"),
    ("images/s", "images_per_s", "{:,.0f}"),
    ("× before", "speedup_vs_previous", "{:.2f}"),
    ("× baseline", "speedup_vs_baseline", "{:.2f}"),
    ("H2D", "h2d_ms", "{:.3f}"),
    ("compute", "compute_ms", "{:.3f}"),
    ("D2H", "d2h_ms", "{:.3f}"),
    ("post", "postprocess_ms", "{:.3f}"),
    ("submit", "submit_ms", "{:.3f}"),
    ("overlap", "overlap", "{:.0%}"),
    ("GPU idle", "gpu_idle", "{:.0%}"),
    ("launches", "launches", "{}"),
    ("limit", "limit_ms", "{:.3f}"),
    ("% of limit", "percent_of_limit", "{:.0f}"),
    ("limited by", "limiter", "{}"),
    ("memory MB", "peak_device_memory_mb", "{:,.0f}"),
    ("vs FP32", "fp32_max_abs_diff", "{:.2g}"),
    ("outputs", "outputs", "{}"),
]
CLOCKS = [
    ("stage", "stage", "{}"),
    ("host's clock", "wall_ms", "{:.4f}"),
    ("CUDA events", "events_ms", "{:.4f}"),
    ("NVTX window", "nvtx_ms", "{:.4f}"),
    ("apart", "apart", "{:.2%}"),
]
VERSUS = [
    ("stage", "stage", "{}"),
    ("A, ms", "before_ms", "{:.3f}"),
    ("B, ms", "after_ms", "{:.3f}"),
    ("B is", "times_faster", "{:.2f} ×"),
    ("most changed part", "change", "{}"),
    ("limited by", "limits", "{}"),
]
WORDS = {"stage", "limiter", "change", "limits"}


def shown(row: Row) -> dict[str, Any]:
    """A row as tables show it: whether its outputs are right, in a word."""
    return {**vars(row), "outputs": {True: "right", False: "WRONG", None: "not verified"}[row.outputs_match]}


def print_grid(title: str, rows: list[dict[str, Any]], columns: Sequence[Column], width: int) -> None:
    """On a terminal as wide as that is, elsewhere at least ``width`` characters."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1))
    for name, key, _ in columns:
        table.add_column(name, justify="left" if key in WORDS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row, columns))
    wide = out if out.is_terminal else Console(highlight=False, width=max(out.width, width))
    wide.print(table)


def print_table(run: Conditions, rows: list[Row]) -> None:
    print_grid(str(run), [shown(row) for row in rows], COLUMNS, 205)


def markdown(run: Conditions, rows: list[Row], columns: Sequence[Column] = COLUMNS, name: str = "{}") -> str:
    """The conditions, the table, the stages' notes and the advice; ``name`` is how a note names its stage."""
    lines = [f"{run}:", "", *grid([shown(row) for row in rows], columns)]
    notes = [f"- {name.format(row.stage)}: {note}" for row in rows for note in row.notes]
    return "\n".join([*lines, "", *notes, *[""] * bool(notes), advice(rows), ""])


def clocks(rows: list[Row]) -> str:
    """The profiled run's window by three clocks, ms a batch, in Markdown; "" where no stage has them."""
    timed = [
        {"stage": row.stage, **row.clocks, "apart": max(row.clocks.values()) / min(row.clocks.values()) - 1}
        for row in rows
        if row.clocks
    ]
    if not timed:
        return ""
    return "\n".join(["", "Three clocks on the same, profiled run, ms a batch:", "", *grid(timed, CLOCKS), ""])


def versus(one: list[Row], other: list[Row]) -> list[dict[str, Any]]:
    """Two runs by stage: the times, how many times faster the second is, and which part changed most."""
    before, found = {row.stage: row for row in one}, []
    for after in other:
        if (earlier := before.get(after.stage)) is None:
            continue
        parts = {part: [getattr(row, f"{part}_ms") for row in (earlier, after)] for part in PARTS}
        changes = {part: ms[1] - ms[0] for part, ms in parts.items() if None not in ms}
        part = max(changes, key=lambda name: abs(changes[name]), default=None)
        limits = list(dict.fromkeys(row.limiter or "–" for row in (earlier, after)))
        found.append(
            {
                "stage": after.stage,
                "before_ms": earlier.per_batch_ms,
                "after_ms": after.per_batch_ms,
                "times_faster": earlier.per_batch_ms / after.per_batch_ms,
                "change": f"{part} {changes[part]:+.3f} ms" if part else None,
                "limits": " → ".join(limits),
            }
        )
    return found


def print_versus(titles: Sequence[str], rows: list[dict[str, Any]]) -> None:
    out.print(f"A: {titles[0]}\nB: {titles[1]}\n", markup=False)
    print_grid("", rows, VERSUS, 150)
