"""The result of one run: on the terminal, and as the record that ``--json`` writes."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from common import ranges
from common.backend import Backend
from common.files import write_json
from common.options import Size
from common.postprocess import top
from common.verify import Difference, Parts

if TYPE_CHECKING:
    from common.session import Session

ROOT = Path(__file__).resolve().parent.parent
KEPT = 100
"""Intervals between batches in a record: enough to see whether the window was steady."""
UNEVEN = 1.1
"""Mean over median from which on some batches took much longer than the others."""
PART_NAMES = {"h2d": "host-to-device copy", "compute": "compute", "d2h": "device-to-host copy",
              "postprocess": "post-processing"}


@dataclass
class Result:
    """A finished run. ``difference``, ``parts`` and ``from_fp32`` are None where nothing was verified."""

    stage: str
    backend: Backend
    precision: str
    size: Size
    session: Session
    difference: Difference | None = None
    parts: Parts | None = None
    from_fp32: Difference | None = None

    @property
    def per_batch_ms(self) -> float:
        return self.session.window_ms / self.session.measured

    @property
    def images_per_s(self) -> float:
        images = sum(len(batch) for batch in self.session.batches[-self.session.measured:]) * self.size.scale
        return images / (self.session.window_ms / 1e3)

    def record(self) -> dict[str, Any]:
        """The result record. ``batch`` is the batch that the times are of; a simulated run may compute a smaller one."""
        session, difference = self.session, self.difference
        return {
            "stage": self.stage, "backend": self.backend.name, "device": self.backend.device, "engine": self.backend.engine,
            "precision": self.precision, "batch": self.size.charged, "computed_batch": self.size.batch,
            "batches": len(session.batches), "measured": session.measured,
            "window_ms": session.window_ms, "window_event_ms": session.window_event_ms,
            "per_batch_ms": self.per_batch_ms, "images_per_s": self.images_per_s,
            "intervals_ms": [round(interval, 4) for interval in session.intervals_ms[-KEPT:]],
            "submit_ms": median(session.submit_ms[-session.measured:]),
            "core_us": None if self.backend.simulator else session.core_us,
            "outputs_match": None if difference is None else difference.within_tolerance,
            "max_abs_diff": None if difference is None else difference.largest,
            "top1_agreement": None if difference is None else difference.same_top1,
            "fp32_max_abs_diff": None if self.from_fp32 is None else self.from_fp32.largest,
            "fp32_top1_agreement": None if self.from_fp32 is None else self.from_fp32.same_top1,
            "races": None,  # nobody looks for them yet
            "peak_device_memory_mb": session.peak_memory / 1e6,
            "plan": os.path.relpath(session.engine.plan, ROOT), "time_base": self.backend.time_base,
            "date": datetime.date.today().isoformat(), "notes": session.notes, "versions": versions(self.backend),
        }


def versions(backend: Backend) -> dict[str, str]:
    found = {"python": platform.python_version(), "numpy": np.__version__, "tensorrt": backend.tensorrt.__version__}
    for name in ("cudaRuntimeGetVersion", "cudaDriverGetVersion"):
        error, version = getattr(backend.cudart, name)()
        if int(error) == 0:
            found[name[4:-10].lower()] = f"{version // 1000}.{version % 1000 // 10}"
    return found


def write_record(path: Path, result: Result) -> None:
    write_json(path, result.record())


def print_result(result: Result, session: Session, console: Console) -> None:
    """The window, the time of a batch, the limit, and whether the outputs are right."""
    backend, difference = result.backend, result.difference
    console.print(f"\n[bold]{result.stage}[/]  {result.precision}, {result.size}, {backend.device}")
    print_timeline(backend, session, console)

    def line(name: str, text: str) -> None:
        console.print(f"  {name:<12}{text}")

    line("window", f"{session.window_ms:9.3f} ms   {session.measured} of {len(session.batches)} batches, {backend.time_base}")
    line("per batch", f"{result.per_batch_ms:9.3f} ms   {result.images_per_s:,.0f} images/s")
    typical = median(session.intervals_ms)
    if result.per_batch_ms > UNEVEN * typical and len({len(batch) for batch in session.batches}) == 1:
        line("uneven", f"{typical:9.3f} ms   the median batch; the slowest took {max(session.intervals_ms):.3f}")
    if result.parts is not None:
        limit, name = result.parts.limit
        reached = 100 * limit / result.per_batch_ms
        line("limit", f"{limit:9.3f} ms   {PART_NAMES[name]}, the longest part of a batch run by itself; " + (
            f"this run is at {reached:.0f} % of it" if reached <= 101 else
            "run alone it waits for its own launches, which this run hides"))
        others = ", ".join(f"{PART_NAMES[part]} {value:.3f}" for part, value in vars(result.parts).items())
        line("parts", f"{others} ms")
    line("memory", f"{session.peak_memory / 1e6:9.1f} MB   on the device: engine, contexts, buffers")
    if difference is None:
        line("outputs", "[yellow]not verified[/] (--no-verify)")
    else:
        same = "identical to" if difference.largest == 0 else f"within {difference.largest:.2g} of"
        line("outputs", f"[green]right[/]: {same} the same plan run serially, one batch at a time")
    if result.from_fp32 is not None:
        away = result.from_fp32
        line(result.precision, f"within {away.largest:.2g} of fp32 ({away.largest / away.scale:.2%} of the largest logit), "
                               f"the same top-1 on {away.same_top1:.1%} of the images")
    for note in session.notes:
        line("note", note)


def print_top(session: Session, count: int, console: Console) -> None:
    """Each image's ``count`` likeliest classes, once for each image."""
    seen = set()
    for names, logits in zip(session.names, session.outputs):
        for name, row in zip(names, logits):
            if name not in seen:
                seen.add(name)
                console.print(f"\n{name}", markup=False)
                for number, probability in top(row, count):
                    console.print(f"  {probability:7.2%}  {session.predictions.label(number)}", markup=False)


def print_timeline(backend: Backend, session: Session, console: Console, width: int = 96) -> None:
    """The measured window of a simulated run: each row's digit is the number of the batch that it works for."""
    activity = backend.activity()
    if not activity:
        return
    start, end = session.done_ns[session.last_warm_up], session.done_ns[-1]
    cell = (end - start) / width
    console.print(f"\n  the measured window, {cell / 1e3:.0f} µs a character; a digit is a batch's number")
    rows = [("h2d", "H2D copy"), ("compute", "compute"), ("d2h", "D2H copy"), (ranges.POSTPROCESS, "postprocess"),
            (ranges.INFER, "infer")]
    for key, title in rows:
        characters = ["·"] * width
        for row, begin, finish, batch in activity:
            if row == key and finish > start and begin < end:
                first, last = int((begin - start) / cell), int((finish - start) / cell)
                if finish - begin >= cell / 4:
                    for position in range(max(first, 0), min(max(last, first + 1), width)):
                        characters[position] = str(batch % 10) if batch >= 0 else "?"
                elif 0 <= first < width and characters[first] == "·":
                    characters[first] = "'"
        console.print(f"  {title:<12}{''.join(characters)}", markup=False)
    console.print()
