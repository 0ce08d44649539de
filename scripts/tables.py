"""The comparison as a table: on the terminal, in Markdown, and of two runs against each other."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.advice import advice

console = Console(highlight=False, soft_wrap=True)

COLUMNS = [
    ("stage", "stage", "{}"), ("ms a batch", "per_batch_ms", "{:.3f}"), ("spread", "spread", "{:.1%}"),
    ("images/s", "images_per_s", "{:,.0f}"), ("× before", "speedup_vs_previous", "{:.2f}"),
    ("× baseline", "speedup_vs_baseline", "{:.2f}"),
    ("H2D", "h2d_ms", "{:.3f}"), ("compute", "compute_ms", "{:.3f}"), ("D2H", "d2h_ms", "{:.3f}"),
    ("post", "postprocess_ms", "{:.3f}"), ("submit", "submit_ms", "{:.3f}"), ("overlap", "overlap", "{:.0%}"),
    ("GPU idle", "gpu_idle", "{:.0%}"), ("launches", "launches", "{}"), ("limit", "limit_ms", "{:.3f}"),
    ("% of limit", "percent_of_limit", "{:.0f}"), ("limited by", "limiter", "{}"),
    ("memory MB", "peak_device_memory_mb", "{:,.0f}"), ("vs FP32", "fp32_max_abs_diff", "{:.2g}"),
    ("outputs", "outputs_match", "{}"),
]

CLOCKS = [("stage", "stage", "{}"), ("host's clock", "wall_ms", "{:.4f}"), ("CUDA events", "events_ms", "{:.4f}"),
          ("NVTX window", "nvtx_ms", "{:.4f}"), ("apart", "apart", "{:.2%}")]


def cells(row: dict[str, Any], columns: list[tuple[str, str, str]] = COLUMNS) -> list[str]:
    """A row as text, in the order of ``columns``; what it does not have is a dash."""
    shown = dict(row)
    if "outputs_match" in row:
        shown["outputs_match"] = {True: "right", False: "WRONG", None: "not verified"}[row["outputs_match"]]
    return [form.format(shown[key]) if shown.get(key) is not None else "–" for _, key, form in columns]


def grid(rows: list[dict[str, Any]], columns: list[tuple[str, str, str]], words: int = 1) -> list[str]:
    """The lines of a Markdown table, whose first ``words`` columns are words and the others numbers."""
    titles = [title for title, *_ in columns]
    lines = [titles, *(cells(row, columns) for row in rows)]
    drawn = ["| " + " | ".join(line) + " |" for line in lines]
    return [drawn[0], "|" + "---|" * words + "---:|" * (len(columns) - words), *drawn[1:]]


def conditions(run: dict[str, Any]) -> str:
    """The line beside every table: what ran where."""
    batch = f"batch {run['batch']}"
    if run.get("computed_batch") not in (None, run["batch"]):
        batch += f" (computed at {run['computed_batch']})"
    parts = [run["device"], run["engine"] or "TensorRT", batch]
    if run["backend"] == "simulated":
        return ", ".join(parts) + "; times are modelled, outputs are computed"
    versions = run.get("versions") or {}
    parts += [f"CUDA {versions['runtime']}"] if "runtime" in versions else []
    parts += [run["date"]] if isinstance(run.get("date"), str) else []
    return ", ".join(parts)


def print_table(run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    table = Table(title=conditions(run), title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1))
    for title, key, _ in COLUMNS:
        table.add_column(title, justify="left" if key in ("stage", "limiter") else "right", no_wrap=True)
    for stage in rows:
        table.add_row(*cells(stage))
    wide = Console(highlight=False, width=max(console.width, 205)) if not console.is_terminal else console
    wide.print(table)


def markdown(run: dict[str, Any], rows: list[dict[str, Any]], columns: list[tuple[str, str, str]] = COLUMNS,
             name: str = "{}") -> str:
    """The conditions, the table, the stages' notes and the advice; ``name`` is how a note names its stage."""
    lines = [conditions(run) + ":", "", *grid(rows, columns)]
    notes = [f"- {name.format(stage['stage'])}: {note}" for stage in rows for note in stage["notes"] or []]
    notes += [f"- {note}" for note in quietness(rows)]
    return "\n".join([*lines, "", *notes, *[""] * bool(notes), advice(rows), ""])


def quietness(rows: list[dict[str, Any]]) -> list[str]:
    """What the host did to the runs, in a sentence; nothing where it left them alone."""
    known = [stage for stage in rows if stage.get("runs")]
    left_out, slowed = (sum(stage["runs"][key] for stage in known) for key in ("not_counted", "slowed"))
    if not left_out + slowed:
        return []
    every = sum(stage["runs"]["counted"] for stage in known) + left_out
    text = f"{left_out} of {every} unprofiled runs do not count: something else slowed their core down (`core_us`)"
    return [text + (f"; {slowed} of those that do were slowed down less" if slowed else "")]


def clocks(rows: list[dict[str, Any]]) -> str:
    """The profiled run's window by three clocks, ms a batch, in Markdown; "" where no stage has them."""
    timed = [{"stage": stage["stage"], **read, "apart": max(read.values()) / min(read.values()) - 1}
             for stage in rows if (read := stage.get("clocks"))]
    if not timed:
        return ""
    return "\n".join(["", "Three clocks on the same, profiled run, ms a batch:", "", *grid(timed, CLOCKS), ""])


def versus(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two runs by stage: the times, how many times faster the second is, and which part changed most (ms)."""
    before = {stage["stage"]: stage for stage in one}
    rows = []
    for stage in other:
        earlier = before.get(stage["stage"])
        if earlier is None:
            continue
        changes = {part: stage[f"{part}_ms"] - earlier[f"{part}_ms"] for part in ("h2d", "compute", "d2h", "postprocess")
                   if stage.get(f"{part}_ms") is not None and earlier.get(f"{part}_ms") is not None}
        part = max(changes, key=lambda name: abs(changes[name])) if changes else None
        rows.append({"stage": stage["stage"], "before_ms": earlier["per_batch_ms"], "after_ms": stage["per_batch_ms"],
                     "times_faster": earlier["per_batch_ms"] / stage["per_batch_ms"], "part": part,
                     "part_change_ms": changes.get(part) if part else None,
                     "limiter_before": earlier["limiter"], "limiter_after": stage["limiter"]})
    return rows


def print_versus(titles: tuple[str, str], rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    console.print(f"A: {titles[0]}\nB: {titles[1]}\n", markup=False)
    for title in ("stage", "A, ms", "B, ms", "B is", "most changed part", "limited by"):
        is_number = title in ("A, ms", "B, ms", "B is")
        table.add_column(title, justify="right" if is_number else "left", no_wrap=True)
    for row in rows:
        change = f"{row['part']} {row['part_change_ms']:+.3f} ms" if row["part"] else "–"
        limits = row["limiter_after"] or "–"
        if row["limiter_before"] != row["limiter_after"]:
            limits = f"{row['limiter_before'] or '–'} → {limits}"
        times = [f"{row['before_ms']:.3f}", f"{row['after_ms']:.3f}", f"{row['times_faster']:.2f} ×"]
        table.add_row(row["stage"], *times, change, limits)
    wide = console if console.is_terminal else Console(highlight=False, width=max(console.width, 150))
    wide.print(table)
