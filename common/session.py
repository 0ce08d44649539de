"""What every stage shares: options, batches, the measured window, verification, the result.

A stage is ``session.run(parser, infer, …)``; its ``infer(run)`` is the lesson. It submits every batch of
``run.batches`` inside ``run.submit(index)`` and gives each batch's outputs, in order, to ``run.finish(index, outputs)``.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from common import backend, ranges
from common.buffers import page_locked, pageable
from common.clock import EventClock, undisturbed
from common.cuda import cudart
from common.engine import Engine
from common.errors import VERIFIED, Fault
from common.images import Images
from common.options import Size, select_backend
from common.postprocess import Predictions
from common.prepare import batch_names, check_memory, check_sizes, check_writable, default_plan, err, prepare
from common.report import Result, print_result, print_top, write_record
from common.verify import Difference, check, compare, parts, run_serially

out = Console(highlight=False, soft_wrap=True)


class Session:
    """One run of one pipeline over its batches.

    ``batches`` are N×3×S×S FP32 arrays, page-locked where the stage asked for it; ``engine`` is the stage's plan.
    """

    def __init__(self, engine: Engine, batches: Sequence[np.ndarray], names: Sequence[Sequence[str]],
                 options: argparse.Namespace, memory_before: int = 0, clock: EventClock | None = None) -> None:
        self.engine, self.batches, self.names, self.options = engine, batches, names, options
        self.predictions = Predictions(engine.facts.get("labels", []))
        self.outputs = [pageable(engine.output_shape(len(batch))) for batch in batches]
        self.done_ns = [0] * len(batches)  # when each batch was finished
        self.submit_ms: list[float] = []
        self.postprocess_ms: list[float] = []
        self.last_warm_up = len(batches) - options.measure - 1
        self.notes: list[str] = []
        self._finished = 0
        self._clock, self._range = clock, None
        self.window_event_ms: float | None = None
        self.core_us: list[float] = []  # before the first batch and after the last
        self._memory_before, self.peak_memory = memory_before, 0

    @property
    def precision(self) -> str:
        """What the plan's layers must work in: ``--precision``, or the stage's own."""
        return self.options.precision

    def repeat(self, engine: Engine) -> Session:
        """Another run over the same batches, for comparison; it leaves no `measured batches` range in the trace."""
        return Session(engine, self.batches, self.names, self.options)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the largest batch; its buffers hold every other."""
        return max((batch.shape for batch in self.batches), key=lambda shape: shape[0])

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.engine.output_shape(self.batch_shape[0])

    @staticmethod
    def charged(batch: int) -> int:
        """The batch whose time is charged for one of ``batch`` images (the same on a GPU)."""
        return round(batch * backend.current().scale)

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
        done = self.done_ns[self.last_warm_up:]
        return [(later - earlier) / 1e6 for earlier, later in zip(done, done[1:])]

    @property
    def measured(self) -> int:
        return len(self.batches) - 1 - self.last_warm_up

    def _sample_memory(self) -> None:
        self.peak_memory = max(self.peak_memory, used_memory() - self._memory_before)


def used_memory() -> int:
    free, total = cudart.cudaMemGetInfo()
    return total - free


def run(parser: argparse.ArgumentParser, infer: Callable[[Session], None], *, precision: str, page_lock: bool = True,
        sizes: Callable[[argparse.Namespace, Size], Sequence[int]] | None = None,
        variant: Callable[[argparse.Namespace, Size], tuple[str, Sequence[str]]] | None = None, name: str | None = None) -> int:
    """Run a stage from the command line and return its exit code.

    ``precision`` names the default plan; ``page_lock`` says where the batches lie. A stage whose batches take several
    sizes in turn says which (``sizes``); one that needs another plan, what its name adds and how to build it (``variant``).
    ``name`` is what the run is called, if not by its script.
    """
    options = parser.parse_args()
    stage = name or Path(sys.argv[0]).stem
    try:
        chosen, size = select_backend(options)
        err.print(f"{stage}: {chosen.name} backend ({chosen.reason}), {chosen.device}, {chosen.engine}")
        check_writable(options.predictions, options.json, options.trace)
        options.precision = options.precision or precision
        plan = options.plan or default_plan(options.precision, *(variant(options, size) if variant else ()))
        measure(plan, infer, stage, size, list(sizes(options, size)) if sizes else [size.batch], page_lock, options)
        for leak in chosen.leaks():
            err.print(f"{stage}: not given back: {leak}", style="yellow")
        if options.trace:
            chosen.write_trace(options.trace, STAGE=stage, ENGINE=chosen.engine, COMPUTED_BATCH=size.batch,
                               CHARGED_BATCH=size.charged)
    except Fault as fault:
        err.print(f"{stage}: error: {fault}", style="red", markup=False)
        return fault.exit_code
    except KeyboardInterrupt:
        err.print(f"{stage}: interrupted", style="red")
        return 130
    return VERIFIED


def measure(plan: Path, infer: Callable[[Session], None], stage: str, size: Size, sizes: Sequence[int], page_lock: bool,
            options: argparse.Namespace) -> None:
    """Run the pipeline, verify it, report it. What it holds on the GPU is given back when this returns."""
    memory_before = used_memory()
    engine = Engine(plan)
    check_sizes(engine, sizes, size)
    check_memory(engine, max(sizes))
    images = Images(options.images, engine.input_shape(1)[-1], options.seed)
    for name in images.unreadable:
        err.print(f"skipped {name}", markup=False)
    batches = prepare(engine, images, sizes, options, page_lock)
    with contextlib.ExitStack() as resources:
        session = Session(engine, batches, batch_names(batches, images), options, memory_before, EventClock(resources))
        with undisturbed() as session.core_us:
            infer(session)
    result = conclude(session, stage, size, page_lock, options)
    print_result(result, session, out)
    if options.top:
        print_top(session, options.top, out)
    if options.json:
        write_record(options.json, result)
    if options.predictions:
        session.predictions.write(options.predictions)


def conclude(session: Session, stage: str, size: Size, page_lock: bool, options: argparse.Namespace) -> Result:
    """Verify the outputs and put the result together."""
    result = Result(stage=stage, backend=backend.current(), precision=session.precision, size=size, session=session)
    if options.no_verify:
        return result
    distinct = list({id(batch): batch for batch in session.batches}.values())
    index_of = {id(batch): index for index, batch in enumerate(distinct)}
    with err.status("verifying against the same plan, run serially"):
        expected, times = run_serially(session.engine, distinct, page_locked if page_lock else pageable)
        reference = [expected[index_of[id(batch)]] for batch in session.batches]
        result.difference = check(session.outputs, reference)
        result.parts = parts(times, session.postprocess_ms)
        if session.precision != "fp32" and options.plan is None:
            result.from_fp32 = difference_from_fp32(distinct, expected)
    return result


def difference_from_fp32(batches: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Difference | None:
    """How far the outputs are from the FP32 plan's on the same batches; None where that does not take them."""
    engine = Engine(default_plan("fp32"))
    if any(engine.profile_for(len(batch)) is None for batch in batches):
        return None
    return compare(outputs, run_serially(engine, batches)[0])
