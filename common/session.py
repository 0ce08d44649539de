"""What every stage shares: options, batches, the measured window, verification, the result.

A stage is ``session.main(parser, infer, …)``; its ``infer(run)`` is the lesson. It submits every batch of ``run.batches``
inside ``run.submit(index)`` and gives each batch's outputs, in order, to ``run.finish(index, outputs)``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from common import backend, options, ranges, report
from common.buffers import page_locked, pageable
from common.clock import EventClock, undisturbed
from common.console import err
from common.cuda import cudart
from common.engine import Engine
from common.errors import VERIFIED, Fault
from common.files import check_writable
from common.images import Images, batch_names, prepare
from common.plans import ROOT, check_memory, check_sizes, default_plan
from common.postprocess import Predictions
from common.record import Record
from common.verify import check, verify

Infer = Callable[["Session"], None]
KEPT = 100
"""Intervals between batches in a record: enough to see whether the window was steady."""


class Session:
    """One run of one pipeline over its batches.

    ``batches`` are N×3×S×S FP32 arrays, page-locked where the stage asked for it; ``engine`` is the stage's plan.
    """

    def __init__(
        self,
        engine: Engine,
        batches: Sequence[np.ndarray],
        names: Sequence[Sequence[str]],
        options: argparse.Namespace,
        clock: EventClock | None = None,
    ) -> None:
        self.engine, self.batches, self.names, self.options = engine, batches, names, options
        self.predictions = Predictions(engine.facts.get("labels", []))
        self.outputs = [pageable(engine.output_shape(len(batch))) for batch in batches]
        self.done_ns = [0] * len(batches)  # when each batch was finished
        self.submit_ms: list[float] = []
        self.postprocess_ms: list[float] = []
        self.measured = options.measure
        self.last_warm_up = len(batches) - options.measure - 1
        self.notes: list[str] = []
        self._finished = 0
        self._clock, self._range = clock, None
        self.window_event_ms: float | None = None
        self.used_memory = 0  # on the whole GPU, the largest seen

    @property
    def precision(self) -> str:
        """What the plan's layers must work in: ``--precision``, or the stage's own."""
        return self.options.precision

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the largest batch; its buffers hold every other."""
        return max((batch.shape for batch in self.batches), key=lambda shape: shape[0])

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.engine.output_shape(self.batch_shape[0])

    @contextlib.contextmanager
    def submit(self, index: int) -> Iterator[None]:
        """The NVTX range ``infer``: the host's work to submit batch ``index``, whenever the GPU does it."""
        clock_ns = backend.current().clock_ns
        started = clock_ns()
        with ranges.pushed(ranges.INFER, index):
            yield
        self.submit_ms.append((clock_ns() - started) / 1e6)
        if index == 0:
            self._sample_memory()

    def finish(self, index: int, host_output: np.ndarray) -> None:
        """Post-process batch ``index``, whose outputs are on the host now. Batches are finished in order."""
        assert index == self._finished, f"batch {index} finished after {self._finished - 1}"
        self._finished += 1
        clock_ns = backend.current().clock_ns
        started = clock_ns()
        with ranges.pushed(ranges.POSTPROCESS, len(host_output)):
            self.predictions.add(self.names[index], host_output)
            np.copyto(self.outputs[index], host_output)  # kept for the verification
        self.postprocess_ms.append((clock_ns() - started) / 1e6)
        if index == self.last_warm_up and self._clock is not None:
            self._clock.start()
            self._range = ranges.start(ranges.MEASURED)
        self.done_ns[index] = clock_ns()
        if index == len(self.batches) - 1:
            ranges.end(self._range)
            self.window_event_ms = self._clock.stop() if self._clock is not None else None
            self._sample_memory()

    @property
    def window_ms(self) -> float:
        """From the end of the last warm-up batch to the end of the last measured one, both finished on the host."""
        return (self.done_ns[-1] - self.done_ns[self.last_warm_up]) / 1e6

    @property
    def intervals_ms(self) -> list[float]:
        """From the end of each batch to the end of the next, over the measured window."""
        done = self.done_ns[self.last_warm_up :]
        return [(later - earlier) / 1e6 for earlier, later in zip(done, done[1:])]

    def control(self, infer: Infer, engine: Engine, where: str) -> None:
        """Run the same batches on another engine too, outside the measured window; note both runs' times by batch size."""
        other = Session(engine, self.batches, self.names, self.options)
        infer(other)
        if not self.options.no_verify:
            check(self.outputs, other.outputs)
        sizes = [len(batch) for batch in self.batches[-self.measured :]]
        for size in sorted(set(sizes)):
            own, control = (median(ms for ms, batch in zip(run.intervals_ms, sizes) if batch == size) for run in (self, other))
            charged = round(size * backend.current().scale)
            self.notes.append(f"batch {charged}: {own:.3f} ms on its own profile, {control:.3f} ms {where}")

    def _sample_memory(self) -> None:
        self.used_memory = max(self.used_memory, used_memory())


def used_memory() -> int:
    free, total = cudart.cudaMemGetInfo()
    return total - free


def main(parser: argparse.ArgumentParser, infer: Infer, **stage: Any) -> None:
    """Run a stage as a script: ``run``, whose result is the exit code."""
    sys.exit(run(parser, infer, **stage))


def run(parser: argparse.ArgumentParser, infer: Infer, *, precision: str, page_lock: bool) -> int:
    """Run a stage from the command line and return its exit code.

    ``precision`` names the default plan, ``page_lock`` says where the batches lie. A parser with ``--sizes`` makes batches of
    several sizes in turn, and the default plan has a profile for each.
    """
    chosen = parser.parse_args()
    name = Path(sys.argv[0]).stem
    try:
        here, size = options.select_backend(chosen)
        err.print(f"{name}: {here.name} backend ({here.reason}), {here.device}, {here.library}")
        check_writable(chosen.predictions, chosen.json, chosen.trace)
        chosen.precision = chosen.precision or precision
        sizes = batch_sizes(chosen, size)
        opts = [round(batch * size.scale) for batch in sizes] if len(sizes) > 1 else []
        plan = chosen.plan or default_plan(chosen.precision, opts)
        measure(plan, infer, name, size, page_lock, chosen)
        for leak in here.leaks():
            err.print(f"{name}: not given back: {leak}", style="yellow")
        if chosen.trace:
            facts = {"STAGE": name, "ENGINE": here.library, "COMPUTED_BATCH": size.batch, "CHARGED_BATCH": size.charged}
            here.simulator.write_trace(chosen.trace, **facts)
    except Fault as fault:
        err.print(f"{name}: error: {fault}", style="red", markup=False)
        return fault.exit_code
    except KeyboardInterrupt:
        err.print(f"{name}: interrupted", style="red")
        return 130
    return VERIFIED


def batch_sizes(chosen: argparse.Namespace, size: options.Size) -> list[int]:
    """The sizes that the batches have in turn: ``--batch``; in a stage with ``--sizes``, these, or an eighth of it and it."""
    if not hasattr(chosen, "sizes"):
        return [size.batch]
    return chosen.sizes or [max(1, size.batch // 8), size.batch]


def measure(plan: Path, infer: Infer, stage: str, size: options.Size, page_lock: bool, chosen: argparse.Namespace) -> None:
    """Run the pipeline, verify it, report it. What it holds on the GPU is given back when this returns."""
    memory_before, sizes, engine = used_memory(), batch_sizes(chosen, size), Engine(plan)
    if chosen.precision != "fp32":
        engine.require_precision(chosen.precision)
    check_sizes(engine, sizes, size)
    check_memory(engine, max(sizes))
    images = Images(chosen.images, engine.input_shape(1)[-1], chosen.seed)
    for name in images.unreadable:
        err.print(f"skipped {name}", markup=False)
    allocate = page_locked if page_lock else pageable
    batches = prepare(images, [engine.input_shape(batch) for batch in sizes], allocate, chosen)
    with contextlib.ExitStack() as resources:
        session = Session(engine, batches, batch_names(batches, images), chosen, EventClock(resources))
        with undisturbed() as core_us:
            infer(session)
    verified = None if chosen.no_verify else verify(session, allocate)
    record = describe(session, stage, size)
    record.core_us = None if backend.current().simulator else core_us
    record.peak_device_memory_mb = (session.used_memory - memory_before) / 1e6
    if verified is not None:
        verified.write_into(record)
    report.print_result(record, session, size, verified)
    if chosen.top:
        report.print_top(session, chosen.top)
    if chosen.json:
        record.write(chosen.json)
    if chosen.predictions:
        session.predictions.write(chosen.predictions)


def describe(session: Session, stage: str, size: options.Size) -> Record:
    """The run's record, as far as its times go."""
    here, measured = backend.current(), session.batches[-session.measured :]
    return Record(
        stage=stage,
        backend=here.name,
        device=here.device,
        engine=here.library,
        batch=size.charged,
        computed_batch=size.batch,
        measured=session.measured,
        date=datetime.date.today().isoformat(),
        versions=here.versions(),
        per_batch_ms=session.window_ms / session.measured,
        images_per_s=sum(len(batch) for batch in measured) * size.scale / (session.window_ms / 1e3),
        precision=session.precision,
        batches=len(session.batches),
        window_ms=session.window_ms,
        window_event_ms=session.window_event_ms,
        intervals_ms=[round(interval, 4) for interval in session.intervals_ms[-KEPT:]],
        submit_ms=median(session.submit_ms[-session.measured :]),
        plan=os.path.relpath(session.engine.plan, ROOT),
        time_base=here.time_base,
        notes=session.notes,
    )
