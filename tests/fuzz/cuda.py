"""Every CUDA call of every stage fails: once, or it and all after it. The run ends with the name of the first one that
failed, or goes on without its graph; and what could be given back is given back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from common import plans, session, verify
from sim.enums import cudaError_t
from tests.fuzz.place import SMALL, STAGES, Draw, Place, Prepare, Try, refused

ERROR = cudaError_t.cudaErrorIllegalAddress
TOLERATED = "cudaFreeHost"  # called when the last view of the memory goes, where nothing can be raised
WITHOUT_A_GRAPH = "not captured, so launched one by one", "not captured, so compute by itself was timed with its launches"
GIVES_BACK = ("cudaFree", "cudaStreamDestroy", "cudaEventDestroy", "cudaGraphDestroy", "cudaGraphExecDestroy")


class FromThen(dict):
    """Answers for every call from a number on."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __contains__(self, call: object) -> bool:
        return call >= self.first  # type: ignore[operator]

    def __getitem__(self, call: int) -> cudaError_t:
        return ERROR


def run(place: Place, script: str, prepare: Prepare | None = None) -> tuple[int, str]:
    """A stage with the tiny plan as every default one, so that it also runs its control, and FP16 is held to FP32."""
    with contextlib.ExitStack() as patches:
        for module in (plans, session, verify):
            patches.enter_context(mock.patch.object(module, "default_plan", lambda *_: place.plan))
        return place.run(script, *SMALL, prepare=prepare)


def calls_of(place: Place, script: str) -> int:
    code, said = run(place, script)
    assert code == 0, said
    return place.simulator.calls


def tries(place: Place, draw: Draw) -> Iterator[Try]:
    every = [
        (script, number, lasting)
        for script in STAGES
        for number in range(1, calls_of(place, script) + 1)
        for lasting in (False, True)
    ]
    draw.shuffle(every)
    for script, number, lasting in every:
        words = f"{script}, call {number}{' and all after it' * lasting}"
        yield words, lambda case=(script, number, lasting): fail(place, *case)


def fail(place: Place, script: str, number: int, lasting: bool) -> str:
    def prepare(simulator) -> None:
        simulator.failures = FromThen(number) if lasting else {number: ERROR}

    code, said = run(place, script, prepare)
    failed = [name for *_, name, _, _, error in place.simulator.trace.calls if error == ERROR]
    if not failed:
        assert code == 0, said
        return "not reached"
    kept = [name for name in failed if name.startswith(GIVES_BACK)]
    assert kept or not place.leaks, place.leaks
    if code == 0:
        captured = any(f"{without}: {failed[0]} failed" in said for without in WITHOUT_A_GRAPH)
        assert captured or failed[0] == TOLERATED, f"{failed}: {said[-600:]}"
        return "went on without a graph" if captured else "went on"
    assert f"{failed[0]} failed: {ERROR.name}" in said, f"{failed[:3]}: {said[-600:]}"
    return refused(code, said, 3)
