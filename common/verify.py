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
from common.record import Record

if TYPE_CHECKING:
    from common.session import Session

TOLERANCE = 1e-2
"""Share of the largest logit. Kernels chosen for another profile round differently (TF32 and FP16 have 11 bits of
mantissa); a batch in another's place is off by 10 % or more. The same profile gives the same bits."""


@dataclass(frozen=True)
class Parts:
    """Milliseconds that one batch takes in each of its parts, run by itself; medians over the serial run."""

    h2d: float
    compute: float
    d2h: float
    postprocess: float

    @property
    def limit(self) -> tuple[float, str]:
        """The longest part and its name."""
        return max((value, name) for name, value in vars(self).items())


@dataclass(frozen=True)
class Difference:
    """How outputs differ from a reference: largest absolute difference, and share of images with the same top-1."""

    largest: float
    scale: float
    same_top1: float

    @property
    def within_tolerance(self) -> bool:
        return self.largest <= TOLERANCE * self.scale


def run_serially(
    engine: Engine, batches: Sequence[np.ndarray], allocate: Callable[[tuple[int, ...]], np.ndarray] = page_locked
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
        if not difference.within_tolerance:
            raise WrongOutputs(
                f"wrong outputs: batch {index} differs from the serial run of the same plan by {difference.largest:.3g} "
                f"(largest logit {difference.scale:.3g}), top-1 the same on {difference.same_top1:.0%}. No timing is reported."
            )
    return compare(outputs, reference)


@dataclass(frozen=True)
class Verified:
    """A run whose outputs are right: how near they are, what a batch's parts take, how far a default plan is from FP32's."""

    difference: Difference
    parts: Parts
    from_fp32: Difference | None

    def write_into(self, record: Record) -> None:
        record.outputs_match = self.difference.within_tolerance
        record.max_abs_diff, record.top1_agreement = self.difference.largest, self.difference.same_top1
        if self.from_fp32 is not None:
            record.fp32_max_abs_diff, record.fp32_top1_agreement = self.from_fp32.largest, self.from_fp32.same_top1


def verify(session: Session, allocate: Callable[[tuple[int, ...]], np.ndarray]) -> Verified:
    """Hold a run's outputs to the same plan run serially; raises ``WrongOutputs``. ``allocate`` makes the host outputs."""
    distinct = list({id(batch): batch for batch in session.batches}.values())
    index_of = {id(batch): index for index, batch in enumerate(distinct)}
    with err.status("verifying against the same plan, run serially"):
        expected, times = run_serially(session.engine, distinct, allocate)
        difference = check(session.outputs, [expected[index_of[id(batch)]] for batch in session.batches])
        h2d, compute, d2h = (median(column) for column in zip(*times))
        parts, from_fp32 = Parts(h2d, compute, d2h, median(session.postprocess_ms)), None
        if session.precision != "fp32" and session.options.plan is None:
            engine = Engine(default_plan("fp32"))
            if None not in [engine.profile_for(len(batch)) for batch in distinct]:
                from_fp32 = compare(expected, run_serially(engine, distinct)[0])
    return Verified(difference, parts, from_fp32)
