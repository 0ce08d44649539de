"""A drop-in for the part of ``nvtx`` that marks ranges, in virtual time.

What a host does between two CUDA calls is invisible to a simulator. The two pieces of it that the ladder has are marked
by ranges whose payload is their number of images, ``postprocess`` and ``decode``, and their modelled time is charged when the
range ends. Post-processing is Python; decoding is done by what the range's category names, one batch at a time.
"""

from __future__ import annotations

import contextlib
from typing import Any

from sim.simulator import simulator
from sim.trace import PUSH_POP, START_END, NvtxRange

_open: dict[tuple[int, str | None], list[NvtxRange]] = {}  # a stack for each thread and domain, as in NVTX itself


def _begin(kind: int, message: str | None, domain: str | None, payload: int | None) -> NvtxRange:
    thread = simulator().clock.thread()
    item = NvtxRange(thread.now, kind, message or "", domain or "NVTX", thread.index, payload, thread.index)
    simulator().trace.ranges.append(item)
    return item


def push_range(message: Any = None, color: Any = "blue", domain: Any = None, category: Any = None, payload: Any = None) -> None:
    sim = simulator()
    with sim.clock.turn() as thread:
        sim.interpret(thread, sim.device.range)
    item = _begin(PUSH_POP, message, domain, payload)
    item.category = category
    _open.setdefault((thread.index, domain), []).append(item)


def pop_range(domain: str | None = None) -> None:
    sim = simulator()
    with sim.clock.turn() as thread:
        item = _open[thread.index, domain].pop()
        if item.text == "postprocess" and item.payload:
            images_ns = item.payload * sim.scale * sim.device.postprocess_per_image
            sim.interpret(thread, sim.device.postprocess + round(images_ns))
        if item.text == "decode" and item.payload:
            thread.now = sim.decoded(item.payload, item.category or "", thread.now)
        item.end = thread.now
        sim.interpret(thread, sim.device.range)


class annotate(contextlib.ContextDecorator):
    """A range around a block or a function."""

    def __init__(self, message: Any = None, color: Any = None, domain: Any = None, category: Any = None, payload: Any = None):
        self._message, self._domain, self._payload = message, domain, payload

    def __enter__(self) -> annotate:
        push_range(self._message, domain=self._domain, payload=self._payload)
        return self

    def __exit__(self, *exception: object) -> None:
        pop_range(self._domain)


def start_range(
    message: Any = None, color: Any = None, domain: Any = None, category: Any = None, payload: Any = None
) -> NvtxRange:
    return _begin(START_END, message, domain, payload)


def end_range(range_id: NvtxRange) -> None:
    thread = simulator().clock.thread()
    range_id.end, range_id.end_thread = thread.now, thread.index
