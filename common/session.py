"""What every stage shares: options, batches, the measured window, verification, the result.

A stage is ``session.main(parser, infer, …)``; its ``infer(run)`` is the lesson. It submits every batch of ``run.batches``
inside ``run.submit(index)`` and gives each batch's outputs, in order, to ``run.finish(index, outputs)``.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median

import numpy as np

from common import backend, options, ranges, report
from common.buffers import page_locked, pageable
from common.clock import EventClock, undisturbed
from common.console import err
from common.cuda import cudart
from common.engine import Engine
from common.errors import VERIFIED, Fault, UsageFault, WrongOutputs
from common.files import check_writable
from common.images import Images, prepare
from common.plans import ROOT, check_memory, check_sizes, default_plan
from common.postprocess import Predictions
from common.record import Record
from common.verify import Allocate, Verified, check, verify

Infer = Callable[["Session"], None]
Names = Sequence[Sequence[str]]
KEPT = 100
"""Intervals between batches in a record: enough to see whether the window was steady."""


class Session:
    """One run of one pipeline over its batches.

    ``batches`` are N×3×S×S FP32 arrays, page-locked where the stage asked for it; ``engine`` is the stage's plan.
    """

    def __init__(
        self, engine: Engine, batches: Sequence[np.ndarray], names: Names, options: Namespace, clock: EventClock | None = None
    ) -> None:
        self.engine, self.batches, self.names, self.options = engine, batches, names, options
        self.measured, self._clock, self._range = options.measure, clock, None
        self.predictions = Predictions(engine.facts.get("labels", []))
        self.outputs = [pageable(engine.output_shape(len(batch))) for batch in batches]
        self.done_ns: list[int] = []  # when each batch was finished
        self.submit_ms: list[float] = []
        self.postprocess_ms: list[float] = []
        self.notes: list[str] = []
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
            self.used_memory = used_memory()

    def finish(self, index: int, host_output: np.ndarray) -> None:
        """Post-process batch ``index``, whose outputs are on the host now. Batches are finished in order."""
        assert index == len(self.done_ns), f"batch {index} finished after {len(self.done_ns) - 1}"
        clock_ns = backend.current().clock_ns
        started = clock_ns()
        with ranges.pushed(ranges.POSTPROCESS, len(host_output)):
            self.predictions.add(self.names[index], host_output)
            np.copyto(self.outputs[index], host_output)  # kept for the verification
        self.postprocess_ms.append((clock_ns() - started) / 1e6)
        left = len(self.batches) - 1 - index
        if left == self.measured and self._clock is not None:
            self._clock.start()
            self._range = ranges.start(ranges.MEASURED)
        self.done_ns.append(clock_ns())
        if left == 0 and self._clock is not None:
            ranges.end(self._range)
            self.window_event_ms = self._clock.stop()
            self.used_memory = max(self.used_memory, used_memory())

    @property
    def window_ms(self) -> float:
        """From the end of the last warm-up batch to the end of the last measured one, both finished on the host."""
        return (self.done_ns[-1] - self.done_ns[-1 - self.measured]) / 1e6

    @property
    def intervals_ms(self) -> list[float]:
        """From the end of each batch to the end of the next, over the measured window."""
        done = self.done_ns[-1 - self.measured :]
        return [(later - earlier) / 1e6 for earlier, later in zip(done, done[1:])]

    def control(self, infer: Infer, engine: Engine, where: str) -> None:
        """Run the same batches on another engine too, outside the measured window; note both runs' times by batch size."""
        if None in [engine.profile_for(len(batch)) for batch in self.batches]:
            self.notes.append(f"no run {where}: {engine.plan} takes batches of {engine.profiles}")
            return
        other = Session(engine, self.batches, self.names, self.options)
        infer(other)
        if not self.options.no_verify:
            check(self.outputs, other.outputs)
        sizes = [len(batch) for batch in self.batches[-self.measured :]]
        for size in sorted(set(sizes)):
            own, control = (median(ms for ms, batch in zip(run.intervals_ms, sizes) if batch == size) for run in (self, other))
            charged = backend.current().charged(size)
            self.notes.append(f"batch {charged}: {own:.3f} ms on its own profile, {control:.3f} ms {where}")


def used_memory() -> int:
    free, total = cudart.cudaMemGetInfo()
    return total - free


def main(parser: ArgumentParser, infer: Infer, *, precision: str, page_lock: bool) -> None:
    """Run a stage as a script; its exit code is the process's.

    ``precision`` names the default plan, ``page_lock`` says where the batches lie. A parser with ``--sizes`` makes batches of
    several sizes in turn, and the default plan has a profile for each.
    """
    parser.set_defaults(precision=precision)
    chosen, name, code = parser.parse_args(), Path(sys.argv[0]).stem, VERIFIED
    try:
        here, size = options.select_backend(chosen)
        err.print(f"{name}: {here.name} backend ({here.reason}), {here.device}, {here.library}")
        check_writable(chosen.predictions, chosen.json, chosen.trace)
        measure(infer, name, size, page_locked if page_lock else pageable, chosen)
        for leak in here.leaks():
            err.print(f"{name}: not given back: {leak}", style="yellow")
        if chosen.trace:
            facts = {"STAGE": name, "ENGINE": here.library, "COMPUTED_BATCH": size.batch, "CHARGED_BATCH": size.charged}
            here.simulator.write_trace(chosen.trace, **facts)
    except Fault as fault:
        err.print(f"{name}: error: {fault}", style="red", markup=False)
        code = fault.exit_code
    except KeyboardInterrupt:
        err.print(f"{name}: interrupted", style="red")
        code = 130
    sys.exit(code)


def batch_sizes(chosen: Namespace, size: options.Size) -> list[int]:
    """The sizes that the batches have in turn: ``--batch``; in a stage with ``--sizes``, these, or an eighth of it and it.

    Sizes are named as they are charged; what is computed may be less.
    """
    if not hasattr(chosen, "sizes"):
        return [size.batch]
    if not chosen.sizes:
        return [max(1, size.batch // 8), size.batch]
    share = size.charged // size.batch
    if odd := [each for each in chosen.sizes if each % share]:
        raise UsageFault(f"--sizes {odd[0]}: here one computed image counts as {share}; add --batch {max(chosen.sizes)}.")
    return [each // share for each in chosen.sizes]


def measure(infer: Infer, stage: str, size: options.Size, allocate: Allocate, chosen: Namespace) -> None:
    """Run the pipeline, verify it, report it. What it holds on the GPU is given back when this returns."""
    here, sizes = backend.current(), batch_sizes(chosen, size)
    opts = {here.charged(batch) for batch in sizes} if hasattr(chosen, "sizes") else ()
    plan = chosen.plan or default_plan(chosen.precision, sorted(opts))
    memory_before, engine = used_memory(), Engine(plan)
    if chosen.precision != "fp32":
        engine.require_precision(chosen.precision)
    check_sizes(engine, sizes)
    check_memory(engine, max(sizes))
    images = Images(chosen.images, engine.input_shape(1)[-1], chosen.seed)
    for name in images.unreadable:
        err.print(f"skipped {name}", markup=False)
    batches, names = zip(*prepare(images, (allocate(engine.input_shape(batch)) for batch in cycle(sizes)), sizes, chosen))
    with contextlib.ExitStack() as resources:
        session = Session(engine, batches, names, chosen, EventClock(resources))
        with undisturbed() as core_us:
            infer(session)
    races = here.races()
    for race in races or ():
        err.print(f"{stage}: race: {race}", style="red", markup=False)
    verified = None if chosen.no_verify else verify(session, allocate)
    record = describe(session, stage, size, verified)
    record.races = None if races is None else len(races)
    record.core_us = None if here.simulator else core_us
    record.peak_device_memory_mb = (session.used_memory - memory_before) / 1e6
    if races:
        if chosen.json:
            record.write(chosen.json)
        raise WrongOutputs(f"{len(races)} race(s), whatever the outputs are. No timing is reported.")
    report.print_result(record, session, size, verified)
    if chosen.top:
        report.print_top(session, chosen.top)
    if chosen.json:
        record.write(chosen.json)
    if chosen.predictions:
        session.predictions.write(chosen.predictions)


def describe(session: Session, stage: str, size: options.Size, verified: Verified | None) -> Record:
    """The run's record, as far as the session knows it."""
    here, window_ms, today = backend.current(), session.window_ms, datetime.date.today().isoformat()
    record = Record(here.name, here.device, here.library, size.charged, size.batch, session.measured, today, here.versions())
    record.stage, record.plan, record.precision = stage, os.path.relpath(session.engine.plan, ROOT), session.precision
    record.batches, record.time_base, record.notes = len(session.batches), here.time_base, session.notes
    record.window_ms, record.per_batch_ms = window_ms, window_ms / session.measured
    record.window_event_ms = session.window_event_ms
    record.images_per_s = sum(map(len, session.batches[-session.measured :])) * here.scale / (window_ms / 1e3)
    record.intervals_ms = [round(interval, 4) for interval in session.intervals_ms[-KEPT:]]
    record.submit_ms = median(session.submit_ms[-session.measured :])
    if verified is not None:
        difference, away = verified.difference, verified.from_fp32
        record.outputs_match, record.max_abs_diff, record.top1_agreement = True, difference.largest, difference.same_top1
        if away is not None:
            record.fp32_max_abs_diff, record.fp32_top1_agreement = away.largest, away.same_top1
    return record
