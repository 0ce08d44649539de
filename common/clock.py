"""What a measured window needs: an interpreter that does not pause, a host whose speed is known, and a second clock, the
GPU's own."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

from common.cuda import Event, Stream


@contextlib.contextmanager
def undisturbed() -> Iterator[list[float]]:
    """Keep what exists now out of the collections of cyclic garbage that happen meanwhile; yields a list that holds the
    core's speed (``core_us``) before, and, once it is over, after.

    A full collection looks at every object there is. With the packages of this project imported that took 10 to 14 ms on
    the host of an H200, once in a run, in the middle of a window of 70 ms (reports/README.md). What the loop itself makes
    is still collected.
    """
    gc.collect()
    gc.freeze()
    try:
        readings = [core_us()]
        yield readings
        readings.append(core_us())
    finally:
        gc.unfreeze()


def core_us() -> float:
    """How long this core takes just now for a fixed piece of Python (20,000 additions), in µs: the median of five.

    A core is often one of two hardware threads of a physical one, and on a rented machine the other may be somebody else's.
    The time of work that never changes is all that shows it.
    """
    times = []
    for _ in range(5):
        started, total = time.perf_counter_ns(), 0
        for number in range(20_000):
            total += number
        times.append((time.perf_counter_ns() - started) / 1e3)
    return median(times)


class EventClock:
    """Two events on a stream that has nothing else to do, so that they are recorded when they are enqueued."""

    def __init__(self, resources: ExitStack) -> None:
        self._stream = resources.enter_context(Stream())
        self._events = [resources.enter_context(Event(timing=True)) for _ in range(2)]

    def start(self) -> None:
        self._events[0].record(self._stream)

    def stop(self) -> float:
        """Milliseconds since ``start``."""
        self._events[1].record(self._stream)
        self._events[1].synchronize()
        return self._events[1].ms_since(self._events[0])
