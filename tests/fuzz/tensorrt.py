"""Every TensorRT call of every stage and of the build answers None or False, or raises. The run ends with its name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from sim import tensorrt as trt
from tests.fuzz.place import STAGES, Draw, Place, Try, refused

ANSWERS = {
    "Builder": dict.fromkeys(
        ("create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network")
    ),
    "IBuilderConfig": {
        "create_timing_cache": None,
        "set_timing_cache": False,
        "get_timing_cache": None,
        "add_optimization_profile": -1,
    },
    "OnnxParser": {"parse_from_file": False},
    "Runtime": {"deserialize_cuda_engine": None},
    "ICudaEngine": {"create_execution_context": None, "create_engine_inspector": None},
    "EngineInspector": {"get_engine_information": None},
    "IExecutionContext": {
        **dict.fromkeys(("set_input_shape", "set_tensor_address", "execute_async_v3"), False),
        "set_optimization_profile_async": False,
    },
}
"""What each call answers where it fails, as TensorRT's own signatures have it."""


class Failing:
    """One of a method's calls, the ``number``-th, answers ``answer`` or raises."""

    def __init__(self, real, number: int, answer: object) -> None:
        self.real, self.number, self.answer, self.calls = real, number, answer, 0

    def __get__(self, owner, kind):
        def call(*arguments, **named):
            self.calls += 1
            if self.calls != self.number:
                return self.real(owner, *arguments, **named)
            if self.answer is RuntimeError:
                raise RuntimeError("injected")
            return self.answer

        return call


def tries(place: Place, draw: Draw) -> Iterator[Try]:
    every = [
        (script, kind, method, number, answer)
        for script in [*STAGES, "0_build.py"]
        for (kind, method), calls in run(place, script, {})[2].items()
        for number in range(1, calls + 1)
        for answer in (ANSWERS[kind][method], RuntimeError)
    ]
    draw.shuffle(every)
    for case in every:
        script, _, method, number, answer = case
        yield f"{script}, {method} {number}: {answer!r}", lambda case=case: fail(place, *case)


def run(place: Place, script: str, failing: dict[str, tuple[int, object]]) -> tuple[int, str, dict[tuple[str, str], int]]:
    """Exit code, all that was said, and how often each method was called."""
    with contextlib.ExitStack() as patches:
        patched = {}
        for kind, method in ((kind, method) for kind, answers in ANSWERS.items() for method in answers):
            real = vars(getattr(trt, kind))[method]
            plain = (lambda _, *given, make=real: make(*given)) if isinstance(real, type) else real
            patched[kind, method] = Failing(plain, *failing.get(method, (0, None)))
            patches.enter_context(mock.patch.object(getattr(trt, kind), method, patched[kind, method]))
        if script == "0_build.py":
            code, said = place.run(script, *place.build_options(place.folder / "again.plan"), "--fp16")
        else:
            code, said = place.stage(script)
    return code, said, {name: each.calls for name, each in patched.items()}


def fail(place: Place, script: str, kind: str, method: str, number: int, answer: object) -> str:
    code, said, calls = run(place, script, {method: (number, answer)})
    if calls[kind, method] < number:
        return "not reached"
    assert not place.leaks, place.leaks
    if code == 0:
        went_on = "not captured" in said or (method.endswith("timing_cache") and answer is not RuntimeError)
        assert went_on or (method in ("create_execution_context", "set_input_shape") and answer in (None, False)), said[-600:]
        return "went on without it"  # a graph, timings for the next build, or shapes for the inspector
    cause = "injected" if answer is RuntimeError else "not a plan" if method.startswith("deser") else method
    assert cause in said or (method == "parse_from_file" and "cannot parse" in said), said[-600:]
    return refused(code, said, 70 if answer is RuntimeError else 3)
