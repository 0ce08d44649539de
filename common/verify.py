"""The reference that every pipeline is held to: the same plan, run serially, one batch at a time.

The serial run also times what a batch is made of with CUDA events; the largest part is a limit that no schedule of the
same work can beat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from common.buffers import DeviceBuffer, copy_to_device_async, copy_to_host_async, page_locked
from common.console import err
from common.cuda import Event, Stream
from common.engine import Context, Engine
from common.errors import WrongOutputs
from common.plans import default_plan

if TYPE_CHECKING:
    from common.session import Session

TOLERANCE = 1e-2
"""Share of the largest logit. Kernels chosen for another profile round differently (TF32 and FP16 have 11 bits of
mantissa); a batch in another's place is off by 10 % or more. The same profile gives the same bits."""
PARTS = ("host-to-device copy", "compute", "device-to-host copy", "post-processing")
Allocate = Callable[[tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class Difference:
    """How outputs differ from a reference: largest absolute difference, and share of images with the same top-1."""

    largest: float
    scale: float  # the reference's largest logit
    same_top1: float


def run_serially(
    engine: Engine, batches: Sequence[np.ndarray], allocate: Allocate = page_locked
) -> tuple[list[np.ndarray], list[tuple[float, ...]]]:
    """Outputs of each batch, and its (H2D, compute, D2H) milliseconds by CUDA events.

    The first batch of each shape runs twice, so that no initialisation is timed. ``allocate`` makes the host outputs.
    """
    outputs, times = [], []
    largest = max(len(batch) for batch in batches)
    contexts: dict[int | None, Context] = {}
    with ExitStack() as resources:
        stream = resources.enter_context(Stream())
        events = [resources.enter_context(Event(timing=True)) for _ in range(4)]
        device_input = resources.enter_context(DeviceBuffer(4 * int(np.prod(engine.input_shape(largest)))))
        device_output = resources.enter_context(DeviceBuffer(4 * int(np.prod(engine.output_shape(largest)))))
        warmed_up: set[int] = set()
        for batch in batches:
            profile = engine.profile_for(len(batch))
            if profile not in contexts:
                contexts[profile] = engine.create_context(profile)
            context = contexts[profile]
            context.set_input_shape(batch.shape)
            context.bind(device_input, device_output)
            host_output = allocate(engine.output_shape(len(batch)))
            for _ in range(1 if len(batch) in warmed_up else 2):
                events[0].record(stream)
                copy_to_device_async(device_input, batch, stream)
                events[1].record(stream)
                context.execute_async_v3(stream)
                events[2].record(stream)
                copy_to_host_async(host_output, device_output, stream)
                events[3].record(stream)
                stream.synchronize()
            warmed_up.add(len(batch))
            outputs.append(host_output)
            times.append(tuple(after.ms_since(before) for before, after in zip(events, events[1:])))
    return outputs, times


def compare(outputs: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> Difference:
    """Largest difference and top-1 agreement of batches of N×C outputs with as many of a reference."""
    pairs = list(zip(outputs, reference))
    largest = max(float(np.abs(a - b).max()) if np.isfinite(a).all() else float("inf") for a, b in pairs)
    same = np.concatenate([a.argmax(axis=1) == b.argmax(axis=1) for a, b in pairs])
    return Difference(largest, max(float(np.abs(b).max()) for b in reference), float(same.mean()))


def check(outputs: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> Difference:
    """``compare``, raising ``WrongOutputs`` with the first wrong batch where the outputs are not the reference's."""
    for index, pair in enumerate(zip(outputs, reference)):
        difference = compare(*([side] for side in pair))
        if not difference.largest <= TOLERANCE * difference.scale:
            off = f"by {difference.largest:.3g} (largest logit {difference.scale:.3g})"
            off += f", top-1 the same on {difference.same_top1:.0%}. No timing is reported."
            raise WrongOutputs(f"wrong outputs: batch {index} differs from the serial run of the same plan {off}")
    return compare(outputs, reference)


@dataclass(frozen=True)
class Verified:
    """A run whose outputs are right: how near they are, the milliseconds that each of a batch's ``PARTS`` takes by itself, how
    far a default plan is from FP32's."""

    difference: Difference
    parts: dict[str, float]
    from_fp32: Difference | None


def verify(session: Session, allocate: Allocate) -> Verified:
    """Hold a run's outputs to the same plan run serially; raises ``WrongOutputs``. ``allocate`` makes the host outputs."""
    distinct = list({id(batch): batch for batch in session.batches}.values())
    index_of = {id(batch): index for index, batch in enumerate(distinct)}
    with err.status("verifying against the same plan, run serially"):
        expected, times = run_serially(session.engine, distinct, allocate)
        difference = check(session.outputs, [expected[index_of[id(batch)]] for batch in session.batches])
        parts, from_fp32 = dict(zip(PARTS, map(median, [*zip(*times), session.postprocess_ms]))), None
        if session.precision != "fp32" and session.options.plan is None:
            engine = Engine(default_plan("fp32"))
            if None not in [engine.profile_for(len(batch)) for batch in distinct]:
                from_fp32 = compare(expected, run_serially(engine, distinct)[0])
    return Verified(difference, parts, from_fp32)
