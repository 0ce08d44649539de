"""What a stage prints: the timeline of a simulated run, the window, the limit, whether the outputs are right."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from common import backend
from common.console import out, wrapped
from common.options import Size
from common.parts import ALL_PARTS
from common.record import FAULT, Record
from common.timeline import TITLES, timeline
from common.verify import Reference

if TYPE_CHECKING:
    from common.run import Session

FAR = 0.2  # share of the largest logit by which no rounding moves a logit
UNEVEN = 1.1
"""Mean over median from which on some batches took much longer than the others."""


def print_result(record: Record, session: Session, size: Size, reference: Reference | None) -> None:
    """The window, the time of a batch, the limit, and whether the outputs are right."""
    out.print(f"\n[bold]{record.stage}[/]  {record.precision}, {size}, {record.device}")
    print_timeline()

    def line(name: str, text: str) -> None:
        out.print(wrapped(f"  {name:<12}{text}", 14))

    line("window", f"{session.window_ms:9.3f} ms   {record.measured} of {record.batches} batches, {record.time_base}")
    rate = f"[yellow]faster than its limit, {FAULT}[/]" if record.faulty else f"{record.images_per_s:,.0f} images/s"
    line("per batch", f"{record.per_batch_ms:9.3f} ms   {rate}")
    typical = median(session.intervals_ms)
    if record.per_batch_ms > UNEVEN * typical and len({len(batch) for batch in session.batches}) == 1:
        line("uneven", f"{typical:9.3f} ms   the median batch; the slowest took {max(session.intervals_ms):.3f}")
    times, late, parts = record.repeats_ms, record.latency_ms or {}, record.parts_ms or {}
    if len(times) > 1:
        line("windows", f"{len(times)}, the median one above; {min(times):.3f} to {max(times):.3f} ms a batch")
    line("latency", f"{late['median']:9.3f} ms   from submission to post-processed; p99 {late['p99']:.3f}")
    if parts:
        part = max(parts, key=lambda name: parts[name])
        reached = "" if record.faulty else f"; {100 * parts[part] / record.per_batch_ms:.0f} % reached"
        line("limit", f"{parts[part]:9.3f} ms   {ALL_PARTS[part]}, the longest part by itself{reached}")
        line("parts", ", ".join(f"{ALL_PARTS[name]} {ms:.3f}" for name, ms in parts.items()) + " ms")
    line("memory", f"{record.peak_device_memory_mb:9.1f} MB   on the device: engine, contexts, buffers")
    if reference is None:
        line("outputs", "[yellow]not verified[/] (--no-verify)")
    else:
        same = "identical to" if record.max_abs_diff == 0 else f"within {record.max_abs_diff:.2g} of"
        line("outputs", f"[green]right[/]: {same} the same plan run serially, one batch at a time")
        if (away := reference.from_fp32) is not None:
            share = f"within {away.largest:.2g} of fp32 ({away.largest / (away.scale or 1):.2%} of the largest logit)"
            share = f"[yellow]far from right[/], {share}" if away.largest > FAR * away.scale else share
            line(str(record.precision), f"{share}, the same top-1 on {away.same_top1:.1%} of the images")
    for note in record.notes:
        line("note", note)


def print_timeline() -> None:
    """The measured window of a simulated run: each row's digit is the number of the batch that it works for."""
    trace, width = backend.current().trace(), min(96, out.width - 18)
    if trace is None:
        return
    drawn = timeline("", trace)
    cell = drawn.length_ms / width
    legend = f"  the measured window, {cell * 1e3:.0f} µs a character: the last digit of a batch's number, ' a short piece"
    out.print(f"\n{wrapped(legend, 2)}")
    for name, bars in drawn.rows.items():
        characters = ["·"] * width
        for bar in bars:
            first, last = int(bar.start / cell), int(bar.end / cell)
            if bar.end - bar.start >= cell / 4:
                for position in range(first, min(max(last, first + 1), width)):
                    characters[position] = str(bar.batch % 10) if bar.batch >= 0 else "?"
            elif first < width and characters[first] == "·":
                characters[first] = "'"
        out.print(f"  {TITLES[name]:<16}{''.join(characters)}", markup=False)
    out.print()
