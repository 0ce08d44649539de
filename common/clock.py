"""A second clock for the measured window: the GPU's own."""

from __future__ import annotations

from contextlib import ExitStack

from common.cuda import Event, Stream


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
