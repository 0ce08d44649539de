"""What every stage shares: options, batches, the measured window, verification, the result.

A stage is ``session.main(parser, infer, …)``; its ``infer(run)`` is the lesson. It submits every batch of ``run.batches``
inside ``run.submit(index)`` and gives each batch's outputs, in order, to ``run.finish(index, outputs)``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import platform
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from itertools import chain, cycle, islice
from math import ceil, lcm
from pathlib import Path
from statistics import median
from typing import NoReturn

import numpy as np

from common import answers, backend, decode, just_in_time, options, program, report
from common.buffers import page_locked, pageable
from common.clock import Instruments, undisturbed
from common.console import err, wrapped
from common.cuda import versions
from common.engine import Engine
from common.errors import UsageFault, WrongOutputs
from common.feed import Feed
from common.files import check_writable
from common.host import processor
from common.layers import precision_of
from common.parts import Allocate, parts_ms
from common.pictures import Images
from common.plans import ROOT, check_memory, check_sizes, default_plan, sidecar
from common.record import Record, Window
from common.run import Infer, Session, used_memory
from common.verify import Reference

KEPT = 100
"""Intervals between batches in a record: enough to see whether the window was steady."""
WARM_UP, PILOT = 10, 20
"""Batches before a window, and in the window of the run that finds out how many there should be in the others."""
PILOT_MS, WINDOW_MS, LEAST = 100, 1200, 100
"""A window on a GPU has a hundred batches and lasts a second: planned for a fifth more, from a pilot of a tenth."""
MOST = 1_000_000
SHORT = 10
"""A window shorter than so many times what the pipeline holds at once says as much of its ends as of its rate."""


def main(parser: ArgumentParser, infer: Infer, *, precision: str, page_lock: bool, encoded: bool = False) -> NoReturn:
    """Run a stage as a script; its exit code is the process's.

    ``precision`` names the default plan, ``page_lock`` says where the batches lie. A parser with ``--sizes`` makes batches of
    several sizes in turn, and the default plan has a profile for each; with ``--layout`` the default plan takes bytes.
    ``encoded``: the stage decodes its images itself (``run.read_files``, ``run.decoder``).
    """

    def stage() -> None:
        chosen, name = parser.parse_args(), Path(sys.argv[0]).stem
        chosen.precision = chosen.precision or (precision if chosen.plan is None else None)
        here, size = options.select_backend(chosen)
        err.print(wrapped(f"{name}: {here.name} backend ({here.reason}), {here.device}, {here.library}", 2, err))
        check_writable(*answers.results(chosen), kept=[] if chosen.plan is None else [chosen.plan, sidecar(chosen.plan)])
        measure(infer, name, size, page_locked if page_lock else pageable, chosen, encoded)
        for leak in here.leaks():
            err.print(f"{name}: not given back: {leak}", style="yellow")
        if chosen.trace:
            facts = {"STAGE": name, "ENGINE": here.library, "COMPUTED_BATCH": size.batch, "CHARGED_BATCH": size.charged}
            here.simulator.write_trace(chosen.trace, **facts)

    program.run(stage)


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


def measured_batches(chosen: Namespace, pilot: Callable[[int], Session], turn: int) -> int:
    """How many batches the window has: as asked for, or on a GPU as many as take a second.

    Those begin and end with the pipeline equally full: whole turns of its slots, and of the ``turn`` batch sizes.
    """
    if chosen.measure or chosen.batches:
        return chosen.measure or max(chosen.batches - WARM_UP, chosen.batches // 2, 1)
    if backend.current().simulator is not None:
        return backend.SIMULATED_MEASURED
    run = pilot(PILOT)
    if run.window_ms < PILOT_MS:  # too few batches to tell: a process's first ones are slow
        run = pilot(ceil(PILOT * PILOT_MS / run.window_ms))
    turn = lcm(turn, run.depth)
    return -(-max(LEAST, int(WINDOW_MS / (run.window_ms / run.measured))) // turn) * turn


def measure(infer: Infer, stage: str, size: options.Size, allocate: Allocate, chosen: Namespace, encoded: bool = False) -> None:
    """Run the pipeline, verify it, report it. What it holds on the GPU is given back when this returns."""
    here, sizes = backend.current(), batch_sizes(chosen, size)
    memory_before, engine = used_memory(), load(chosen, sizes)
    decoder = decode.choose(chosen.decoder, engine if encoded else None) if chosen.images or encoded else "pillow"
    images = Images(chosen.images, engine.input_shape(1)[1:], chosen.seed, decoder=decoder, encoded=encoded)
    allocated = (allocate(engine.input_shape(batch), engine.input_type) for batch in cycle(sizes))
    source = decode.Source(images.sources, decode.make(decoder, engine)) if encoded else None
    feed = Feed(images, allocated, sizes, chosen.batches, source)

    def run(count: int, measured: int, instruments: Instruments | None = None) -> Session:
        if count > MOST:
            raise UsageFault(f"{count:,} batches are too many: each one's outputs are kept, so at most {MOST:,}.")
        if count <= measured:
            raise UsageFault(f"--measure {measured} leaves none to warm up with: --batches must be at least {measured + 1}.")
        batches, names = list(islice(cycle(feed.batches), count)), list(islice(cycle(feed.names), count))
        session = Session(engine, batches, names, chosen, measured, instruments, source)
        with undisturbed(timed=here.simulator is None) as core_us:
            infer(session)
        session.read["core_us"] = core_us or None
        return session

    with contextlib.ExitStack() as resources:
        instruments, records, reference = Instruments(resources), [], None
        measured = measured_batches(chosen, lambda count: run(WARM_UP + count, count), len(sizes))
        count = chosen.batches or max(measured + WARM_UP, len(feed.batches))
        for _ in range(chosen.windows):
            session = run(count, measured, instruments)
            races = here.races() or []
            for race in races:
                err.print(f"{stage}: race: {race}", style="red", markup=False)
            if not chosen.no_verify:
                reference = reference or Reference(session)
            records.append(describe(session, stage, size, reference))
            if races:
                if chosen.json:  # untimed
                    Record(here.name, here.device, here.library, stage=stage, races=len(races)).write(chosen.json)
                raise WrongOutputs(f"{len(races)} race(s), whatever the outputs are. No timing is reported.")
            chosen.no_controls = True  # once is enough
    just_in_time.keep(engine.runtime_config, engine.plan)
    record = Record.of(records)
    record.races = 0 if here.simulator else None
    record.parts_ms = None if chosen.no_parts else parts_ms(session, allocate, record.notes)
    record.notes += decode.told(feed.left_to_pillow, list(chain.from_iterable(feed.names)))
    record.peak_device_memory_mb = (session.used_memory - memory_before) / 1e6
    record.host = {"processor": processor(), "system": platform.platform()}
    report.print_result(record, session, size, reference)
    record.folder_images_per_s = answers.answer(session, feed, infer)
    if chosen.json:
        record.write(chosen.json)


def load(chosen: Namespace, sizes: list[int]) -> Engine:
    """The plan that the options name, or the stage's own, with everything asked of it checked: batches of ``sizes``, precision,
    memory. Settles ``chosen.precision``."""
    opts = {backend.current().charged(batch) for batch in sizes} if hasattr(chosen, "sizes") else ()
    layout = (chosen.layout or "nchw") if hasattr(chosen, "layout") else None
    plan = chosen.plan or default_plan(chosen.precision, sorted(opts), layout)
    engine = Engine(plan, chosen.trust_plan)
    if chosen.precision and (chosen.plan or chosen.precision != "fp32"):  # the ladder's FP32 plan is as its file says
        engine.require_precision(chosen.precision)
    chosen.precision = chosen.precision or precision_of(engine.precisions()) or "unknown precision"
    answers.check_asked(engine, chosen)
    check_sizes(engine, sizes)
    check_memory(engine, max(sizes))
    return engine


def describe(session: Session, stage: str, size: options.Size, reference: Reference | None) -> Record:
    """The run's record, as far as the session knows it. Raises ``WrongOutputs`` where its outputs are not the reference's."""
    here, today = backend.current(), datetime.date.today().isoformat()
    difference = reference.check(session) if reference is not None else None
    images = sum(map(len, session.batches[-session.measured :])) * here.scale
    window = Window.between(session.done_ns, session.measured, images, **session.read)
    window.intervals_ms = [round(interval, 4) for interval in session.intervals_ms[-KEPT:]]
    window.submit_ms = median(session.submit_ms[-session.measured :])
    window.latency_ms = dict(zip(("median", "p95", "p99"), np.percentile(session.latencies_ms, [50, 95, 99]).tolist()))
    record = Record(here.name, here.device, here.library, size.charged, size.batch, session.measured, today)
    record = dataclasses.replace(record, **vars(window), windows=[window])
    record.versions = {**here.versions(), **versions()}
    record.stage, record.plan, record.precision = stage, os.path.relpath(session.engine.plan, ROOT), session.precision
    record.batches, record.time_base, record.notes = len(session.batches), here.time_base, session.notes
    record.input = str(session.batches[0].dtype)
    session.notes += here.stands_in(session.precision)
    if session.measured < SHORT * session.depth:
        session.notes.append(f"a short window: {session.measured} batches, with up to {session.depth} on their way at once")
    if difference is not None and reference is not None:
        record.outputs_match, record.max_abs_diff, record.top1_agreement = True, difference.largest, difference.same_top1
        if (away := reference.from_fp32) is not None:
            record.fp32_max_abs_diff, record.fp32_top1_agreement = away.largest, away.same_top1
    return record
