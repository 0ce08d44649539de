"""What a measured window needs: an interpreter that does not pause, and a second clock, the GPU's own."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from common import backend
from common.cuda import Event, Stream
from common.host import Gpu, core_us


@contextlib.contextmanager
def undisturbed(timed: bool = True) -> Iterator[list[float]]:
    """Keep what exists now out of the collections of cyclic garbage that happen meanwhile; yields a list that holds the
    core's speed (``core_us``) before, and, once it is over, after, if it is ``timed``.

    A full collection looks at every object there is. With the packages of this project imported that took 10 to 14 ms on
    the host of an H200, once in a run, in the middle of a window of 70 ms (reports/README.md). What the loop itself makes
    is still collected.
    """
    gc.collect()
    gc.freeze()
    try:
        readings = [core_us()] if timed else []
        yield readings
        readings += [core_us()] if timed else []
    finally:
        gc.unfreeze()


class Instruments:
    """What is read at both ends of a measured window: two events on a stream that has nothing else to do, so that they are
    recorded when they are enqueued, and on a real GPU what its driver tells."""

    def __init__(self, resources: ExitStack) -> None:
        self._stream = resources.enter_context(Stream())
        self._events = [resources.enter_context(Event(timing=True)) for _ in range(2)]
        self._gpu = None if backend.current().simulator else Gpu()
        self._energy_j: float | None = None

    def start(self) -> None:
        self._energy_j = self._gpu.energy_j() if self._gpu is not None else None
        self._events[0].record(self._stream)

    def stop(self) -> dict[str, Any]:
        """``window_event_ms``, ``energy_j`` and ``gpu`` of a ``common.record.Window``."""
        self._events[1].record(self._stream)
        self._events[1].synchronize()
        found: dict[str, Any] = {"window_event_ms": self._events[1].ms_since(self._events[0])}
        if self._gpu is not None:
            found["gpu"], now_j = self._gpu.reading(), self._gpu.energy_j()
            found["energy_j"] = now_j - self._energy_j if now_j is not None and self._energy_j is not None else None
        return found
