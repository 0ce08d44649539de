"""What is opened stays open, for everybody: events that are set, futures that are done. Waiting for them, and asking."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from sim.clock import HostThread
from sim.exchange import OPEN, Exchange
from sim.order import join


class Openings(Exchange):
    """A queue's or a future's operation costs ``queue_ns`` of the interpreter's time."""

    interpret: Callable[[HostThread, int], None]
    queue_ns: int

    def _interpret_queue(self) -> None:
        if self.queue_ns:
            with self.clock.turn() as thread:
                self.interpret(thread, self.queue_ns)

    def _open(self, primitive: Any, opening: Callable[[], Any], is_open: Callable[[], bool] = bool) -> Any:
        """Do ``opening``, noting when if it is the first; let all who wait go on. They know of all that have opened it."""
        with self.clock.turn() as thread:
            patience = self.side(primitive, OPEN)
            first = not (is_open() and patience.given)
            at, order = (thread.now, thread.order) if first else patience.given[0]
            earlier = [order for _, order in patience.given]
            patience.given = deque([(at, join([order, thread.order, *earlier]))])
            result = opening()
            self._serve(patience, OPEN)
        return result

    def _event_set(self, original: Any, event: threading.Event) -> None:
        self._open(event, lambda: original(event), event.is_set)

    def _event_wait(self, original: Any, event: threading.Event, timeout: float | None = None) -> bool:
        return self.take(event, OPEN, lambda _: event.is_set(), True, timeout)

    def _future_set_result(self, original: Any, future: Future, *args: Any, **kwargs: Any) -> None:
        self._interpret_queue()
        self._open(future, lambda: original(future, *args, **kwargs), future.done)

    _future_set_exception = _future_set_result

    def _future_result(self, original: Any, future: Future, timeout: float | None = None) -> Any:
        self._interpret_queue()
        return self._future_exception(original, future, timeout)

    def _future_exception(self, original: Any, future: Future, timeout: float | None = None) -> Any:
        self.take(future, OPEN, lambda _: future.done(), True, timeout)
        return original(future, 0 if timeout is not None else None)

    def _future_done(self, original: Any, asked: Any) -> bool:
        return self.take(asked, OPEN, lambda _: original(asked), False, None)

    _event_is_set = _future_done

    def _wait(self, original: Any, fs: Iterable[Future], *args: Any, **kwargs: Any) -> Any:
        fs = list(fs)
        found = original(fs, *args, **kwargs)
        for future in fs:
            self._future_done(found.done.__contains__, future)
        return found

    def _as_completed(self, original: Any, *args: Any, **kwargs: Any) -> Iterator[Future]:
        for future in original(*args, **kwargs):
            self._future_done(Future.done, future)
            yield future
