"""The comparison as a table, on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from common.console import out
from common.files import Column, cells, columns, grid
from common.record import Conditions
from harness.advice import advice
from harness.rows import Row

ORDER = """
    stage per_batch_ms fastest_ms lower_quartile_ms upper_quartile_ms slowest_ms images_per_s
    speedup_vs_previous speedup_vs_baseline latency_p99_ms
    energy_j_per_1000 h2d_ms compute_ms d2h_ms postprocess_ms submit_ms overlap copy_hidden gpu_idle launches limit_ms
    percent_of_limit percent_of_ladder_limit limiter peak_device_memory_mb fp32_max_abs_diff outputs_match
"""
COLUMNS = columns(Row, ORDER)
CLOCKS = {"wall_ms": "host's clock", "events_ms": "CUDA events", "nvtx_ms": "NVTX window"}
WORDS = {"stage", "limiter"}


def print_grid(title: str, rows: list[dict[str, Any]], columns: Sequence[Column], width: int) -> None:
    """On a terminal as wide as that is, elsewhere at least ``width`` characters."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1))
    for name, key, _ in columns:
        table.add_column(name, justify="left" if key in WORDS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row, columns))
    wide = out if out.is_terminal else Console(highlight=False, width=max(out.width, width))
    wide.print(table)


def markdown(run: Conditions, rows: list[Row], columns: Sequence[Column] = COLUMNS) -> str:
    """The conditions, the table, the stages' notes and the advice. A note names its stage as the first column does."""
    lines = [f"{run}:", "", *grid([row.shown for row in rows], columns)]
    notes = [f"- {columns[0][2].format(row.stage)}: {note}" for row in rows for note in row.notes]
    return "\n".join([*lines, "", *notes, *[""] * bool(notes), advice(rows), ""])


def clocks(rows: list[Row]) -> str:
    """The profiled run's window by three clocks, ms a batch, in Markdown; "" where no stage has them."""
    found = {row.stage: row.clocks for row in rows if row.clocks}
    if not found:
        return ""
    timed = [{"stage": name, **ms, "apart": max(ms.values()) / min(ms.values()) - 1} for name, ms in found.items()]
    times = [(title, key, "{:.4f}") for key, title in CLOCKS.items()]
    table = grid(timed, [("stage", "stage", "{}"), *times, ("apart", "apart", "{:.2%}")])
    return "\n".join(["", "Three clocks on the same, profiled run, ms a batch:", "", *table, ""])
