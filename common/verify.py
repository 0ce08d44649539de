"""The reference that every pipeline is held to: the same plan, run serially, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common import backend
from common.buffers import DeviceBuffer, copy_to_device, copy_to_host, pageable
from common.console import err
from common.engine import Engine
from common.errors import EnvironmentFault, WrongOutputs
from common.images import planes, write
from common.plans import default_plan
from common.tensors import are_scores, unpacked

if TYPE_CHECKING:
    from common.run import Session

TOLERANCE = 1e-2
"""Share of the largest logit. Kernels chosen for another profile round differently (TF32 and FP16 have 11 bits of
mantissa); a batch in another's place is off by 10 % or more. The same profile gives the same bits."""
NAN = "Its weights may be no numbers, or its activations beyond FP16's 65,504: build it in FP32. --no-verify times it as it is."


@dataclass(frozen=True)
class Difference:
    """How outputs differ from a reference: of the output that is farthest off, the largest absolute difference and the
    reference's largest value (0 of integers, which are not rounded: any difference is wrong); the share of images with the same
    top-1 (None where the outputs are no N×C)."""

    largest: float
    scale: float
    same_top1: float | None


def run_serially(engine: Engine, batches: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Outputs of each batch: copied in, run, copied out, one batch after the other on the default stream."""
    batches, outputs = list(batches), []
    largest = max(len(batch) for batch in batches)
    nbytes, context_of = engine.nbytes(largest), cache(engine.create_context)
    with DeviceBuffer(nbytes[0]) as device_input, DeviceBuffer(nbytes[1]) as device_output:
        for batch in batches:
            context = context_of(engine.profile_for(len(batch)))
            context.set_input_shape(batch.shape)
            context.bind(device_input, device_output)
            copy_to_device(device_input, batch)
            context.execute_async_v3(None)
            outputs.append(pageable(engine.output_shape(len(batch)), engine.output_type(len(batch))))
            copy_to_host(outputs[-1], device_output)
    return outputs


def compare(outputs: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> Difference:
    """Largest difference and top-1 agreement of batches of outputs with as many of a reference."""
    found, same = [], None
    for pairs in zip(*(zip(unpacked(a), unpacked(b)) for a, b in zip(outputs, reference))):  # of one output, all batches
        floats = [b[np.isfinite(b)] for _, b in pairs if b.dtype.kind == "f"]
        scale = max((float(np.abs(b, dtype=np.float32).max(initial=0)) for b in floats), default=0.0)
        found.append((max(distance(a, b) for a, b in pairs), scale))
    if are_scores(outputs[0].shape, outputs[0].dtype):
        same = float(np.concatenate([a.argmax(axis=1) == b.argmax(axis=1) for a, b in zip(outputs, reference)]).mean())
    return Difference(*max(found, key=lambda each: each[0] / (each[1] or 1)), same)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest absolute difference of two arrays of any type; infinite where not all of it is a number."""
    if np.array_equal(one, other):
        return 0.0
    one, other = (array.astype(np.float32 if array.dtype.kind == "f" else np.float64) for array in (one, other))
    return float(np.abs(one - other).max()) if np.isfinite(one).all() and np.isfinite(other).all() else float("inf")


def races(here: backend.Backend) -> Iterator[WrongOutputs]:
    """Those that the simulator has seen: reasons not to believe the outputs. On a GPU nobody looks."""
    return (WrongOutputs(f"a race, whatever the outputs are: {race}") for race in here.races() or [])


def check(outputs: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> Difference:
    """``compare``, raising ``WrongOutputs`` with the first wrong batch where the outputs are not the reference's, and
    ``EnvironmentFault`` where that is NaN itself, which nothing can be held to.

    Nearly always they are the same to the bit, which is seen in a tenth of the time that a difference takes.
    """
    found = []
    for index, (own, right) in enumerate(zip(outputs, reference)):
        if np.array_equal(own, right):
            found.append(Difference(0.0, 0.0, 1.0 if are_scores(own.shape, own.dtype) else None))
            continue
        if any(np.isnan(values).any() for values in unpacked(right) if values.dtype.kind == "f"):
            raise EnvironmentFault(f"the plan itself gives NaN, run serially (batch {index}). {NAN}")
        difference = compare([own], [right])
        if not difference.largest <= TOLERANCE * difference.scale:
            off = f"by {difference.largest:.3g} (largest value {difference.scale:.3g})"
            off += "" if difference.same_top1 is None else f", top-1 the same on {difference.same_top1:.0%}"
            off += ". No timing is reported."
            raise WrongOutputs(f"wrong outputs: batch {index} differs from the serial run of the same plan {off}")
        found.append(difference)
    worst = max(found, key=lambda each: each.largest / (each.scale or 1))
    if worst.same_top1 is None:
        return worst
    return replace(worst, same_top1=float(np.average([each.same_top1 for each in found], weights=[*map(len, outputs)])))


def as_taken_by(engine: Engine, batch: np.ndarray) -> np.ndarray:
    """A batch in the layout and type of another plan; the same array where they are the same."""
    if (batch.shape, batch.dtype) == (engine.input_shape(len(batch)), engine.input_type):
        return batch
    taken = np.empty(engine.input_shape(len(batch)), engine.input_type)
    write(planes(batch), taken)
    return taken


def fp32_plan(session: Session) -> Path | None:
    """The default one; None, and a note, where it is not there and the library builds none."""
    try:
        return default_plan("fp32")
    except EnvironmentFault as fault:
        if backend.current().kind.builds:
            raise
        session.notes.append(f"not compared with the FP32 plan: {fault}")
        return None


class Reference:
    """What a run's outputs are held to; ``from_fp32``: how far a default plan's are from those of the FP32 plan."""

    def __init__(self, session: Session) -> None:
        distinct, self.from_fp32 = {id(batch): batch for batch in session.batches}, None
        with err.status("running the same plan serially"):
            outputs = run_serially(session.engine, distinct.values())
            self._expected = dict(zip(distinct, outputs))
            controlled = session.precision != "fp32" and session.options.plan is None and not session.options.no_controls
            if controlled and (plan := fp32_plan(session)):
                engine = Engine(plan)
                if None not in [engine.profile_for(len(batch)) for batch in distinct.values()]:
                    same = (as_taken_by(engine, batch) for batch in distinct.values())
                    self.from_fp32 = compare(outputs, run_serially(engine, same))

    def check(self, session: Session) -> Difference:
        """Raises ``WrongOutputs``."""
        return check(session.outputs, [self._expected[id(batch)] for batch in session.batches])
