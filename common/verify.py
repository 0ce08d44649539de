"""The reference that every pipeline is held to: the same plan, run serially, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from common.buffers import DeviceBuffer, copy_to_device, copy_to_host, pageable
from common.console import err
from common.engine import Context, Engine
from common.errors import WrongOutputs
from common.plans import default_plan

if TYPE_CHECKING:
    from common.session import Session

TOLERANCE = 1e-2
"""Share of the largest logit. Kernels chosen for another profile round differently (TF32 and FP16 have 11 bits of
mantissa); a batch in another's place is off by 10 % or more. The same profile gives the same bits."""


@dataclass(frozen=True)
class Difference:
    """How outputs differ from a reference: largest absolute difference, and share of images with the same top-1."""

    largest: float
    scale: float  # the reference's largest logit
    same_top1: float


def run_serially(engine: Engine, batches: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Outputs of each batch: copied in, run, copied out, one batch after the other on the default stream."""
    batches, outputs = list(batches), []
    largest = max(len(batch) for batch in batches)
    contexts: dict[int | None, Context] = {}
    nbytes = [4 * prod(shape) for shape in (engine.input_shape(largest), engine.output_shape(largest))]
    with DeviceBuffer(nbytes[0]) as device_input, DeviceBuffer(nbytes[1]) as device_output:
        for batch in batches:
            profile = engine.profile_for(len(batch))
            if profile not in contexts:
                contexts[profile] = engine.create_context(profile)
            contexts[profile].set_input_shape(batch.shape)
            contexts[profile].bind(device_input, device_output)
            copy_to_device(device_input, batch)
            contexts[profile].execute_async_v3(None)
            outputs.append(pageable(engine.output_shape(len(batch))))
            copy_to_host(outputs[-1], device_output)
    return outputs


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


class Reference:
    """What a run's outputs are held to; ``from_fp32``: how far a default plan's are from those of the FP32 plan."""

    def __init__(self, session: Session) -> None:
        distinct, self.from_fp32 = {id(batch): batch for batch in session.batches}, None
        with err.status("running the same plan serially"):
            outputs = run_serially(session.engine, distinct.values())
            self._expected = dict(zip(distinct, outputs))
            if session.precision != "fp32" and session.options.plan is None and not session.options.no_fp32:
                engine = Engine(default_plan("fp32"))
                if None not in [engine.profile_for(len(batch)) for batch in distinct.values()]:
                    self.from_fp32 = compare(outputs, run_serially(engine, distinct.values()))

    def check(self, session: Session) -> Difference:
        """Raises ``WrongOutputs``."""
        return check(session.outputs, [self._expected[id(batch)] for batch in session.batches])
