"""A drop-in for the part of ``nvtx`` that marks ranges, in virtual time.

What a host does between two CUDA calls is invisible to a simulator. The one piece of it that the ladder has is marked
by the range ``postprocess``, whose payload is its number of images; its modelled time is charged when the range ends.
"""

from __future__ import annotations

from common.sim.simulator import simulator
from common.sim.trace import PUSH_POP, START_END, Range

_open: dict[tuple[int, str | None], list[Range]] = {}  # a stack for each thread and domain, as in NVTX itself


def push_range(message: str | None = None, color: object = "blue", domain: str | None = None, category: object = None,
               payload: int | None = None) -> None:
    sim = simulator()
    with sim.clock.turn() as thread:
        sim.interpret(thread, sim.device.range)
    item = Range(thread.now, None, PUSH_POP, message or "", domain or "NVTX", thread.index, thread.index, payload)
    _open.setdefault((thread.index, domain), []).append(item)
    sim.trace.ranges.append(item)


def pop_range(domain: str | None = None) -> None:
    sim = simulator()
    with sim.clock.turn() as thread:
        item = _open[thread.index, domain].pop()
        if item.text == "postprocess" and item.payload:
            images = item.payload * sim.scale
            sim.interpret(thread, sim.device.postprocess + round(images * sim.device.postprocess_per_image))
        item.end = thread.now
        sim.interpret(thread, sim.device.range)


def start_range(message: str | None = None, color: object = None, domain: str | None = None, category: object = None,
                payload: int | None = None) -> tuple[int, int]:
    sim = simulator()
    thread = sim.clock.thread()
    sim.trace.ranges.append(Range(thread.now, None, START_END, message or "", domain or "NVTX", thread.index,
                                  thread.index, payload))
    return len(sim.trace.ranges) - 1, 0


def end_range(range_id: tuple[int, int]) -> None:
    thread = simulator().clock.thread()
    item = simulator().trace.ranges[range_id[0]]
    item.end, item.end_thread = thread.now, thread.index
