"""The comparison as a table, on the terminal and in Markdown.

A table has a row a step. A side branch of the ladder stands below it: its time is not to be held against the row above.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.console import out, wrapped
from common.files import cells, columns, grid, grouped
from common.record import Conditions
from harness.advice import advice
from harness.rows import Row, parent_of, steps

ALL = """
    stage per_batch_ms fastest_ms lower_quartile_ms upper_quartile_ms slowest_ms images_per_s speedup_vs_previous
    speedup_vs_baseline latency_p99_ms energy_j_per_1000 h2d_ms compute_ms d2h_ms postprocess_ms submit_ms overlap copy_hidden
    gpu_idle launches limit_ms percent_of_limit percent_of_ladder_limit limiter peak_device_memory_mb fp32_max_abs_diff
    outputs_match
"""
SHORT = "stage per_batch_ms speedup_vs_previous speedup_vs_baseline percent_of_ladder_limit limiter"
LAUNCHES = "stage per_batch_ms speedup_vs_previous submit_ms launches gpu_idle"
CLOCKS = {"wall_ms": "host's clock", "events_ms": "CUDA events", "nvtx_ms": "NVTX window"}
WORDS = {"stage", "limiter"}


def below(rows: list[Row], host: str = "") -> list[str]:
    """What stands under a table: whether the outputs are right, side branches, the stages' notes, the host, the advice."""
    wrong = [f"{row.stage} {row.shown['outputs_match']}" for row in rows if not row.outputs_match]
    found = [f"Outputs: {', '.join(wrong) or 'right in every stage'}."]
    for row in rows:
        parent, aside = parent_of(row.stage)
        if aside:
            time = f"{row.per_batch_ms:.3f} ms a batch" + (f", {row.images_per_s:,.0f} images/s" if row.images_per_s else "")
            found.append(f"{row.stage} (a side branch: hold it against {parent}): {time}")
    noted = grouped((note, row.stage) for row in rows for note in row.notes)
    found += [f"{together(stages)}: {note}" for note, stages in noted.items()]
    return [*found, *filter(None, [host]), advice(rows)]


def together(stages: list[str]) -> str:
    """One stage by its name; several by their numbers."""
    numbers = [stage.split("_")[0] for stage in stages]
    return stages[0] if len(stages) == 1 else f"stages {', '.join(numbers[:-1])} and {numbers[-1]}"


def print_rows(run: Conditions, rows: list[Row], host: str, order: str = SHORT) -> None:
    """The table as wide as it is: a terminal that is narrower breaks its lines, and nothing is cut off."""
    table = Table(title=Text(wrapped(str(run)), "bold"), title_justify="left", box=None, pad_edge=False, padding=(0, 1))
    for title, key, _ in (shown := columns(Row, order)):
        table.add_column(title, justify="left" if key in WORDS else "right", no_wrap=True)
    for row in steps(rows):
        table.add_row(*map(Text, cells(row.shown, shown)))
    Console(highlight=False, width=max(out.width, 400)).print(table, soft_wrap=True)  # as wide as the widest table
    for line in ["", *below(rows, host)]:
        out.print(wrapped(line, 2), markup=False)


def markdown(run: Conditions, rows: list[Row], host: str) -> str:
    """The conditions, the table with all columns, and what stands under it."""
    lines = [f"{run}:", "", *grid([row.shown for row in steps(rows)], columns(Row, ALL)), ""]
    return "\n".join([*lines, *(f"- {line}" for line in below(rows, host)), ""])


def clocks(rows: list[Row]) -> str:
    """The profiled run's window by three clocks, ms a batch, in Markdown; "" where no stage has them."""
    found = {row.stage: row.clocks for row in rows if row.clocks and min(row.clocks.values()) > 0}
    if not found:
        return ""
    timed = [{"stage": name, **ms, "apart": max(ms.values()) / min(ms.values()) - 1} for name, ms in found.items()]
    times = [(title, key, "{:.4f}") for key, title in CLOCKS.items()]
    table = grid(timed, [("stage", "stage", "{}"), *times, ("apart", "apart", "{:.2%}")])
    return "\n".join(["", "Three clocks on the same, profiled run, ms a batch:", "", *table, ""])
