"""What all of Python's primitives share in virtual time: something is given at a time, somebody takes it, no earlier than that.

What the giver knows to be over, the taker then knows as well.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from sim.clock import Clock, HostThread
from sim.order import Order, join

Attempt = Callable[[HostThread], bool]
POLL_S = 0.1  # how often a waiting thread looks by itself, should something have been given behind the hooks' back
OPEN = "open"  # what an event that is set, and a future that is done, give: to everybody, again and again


class Waiter:
    """A thread that waits to take one thing; whoever gives it makes the ``attempt`` for it."""

    def __init__(self, thread: HostThread, attempt: Attempt) -> None:
        self.thread, self.attempt, self.taken = thread, attempt, False


class Patience:
    """Who waits on one primitive, and of each thing that it has to give, when it was given and what came before that."""

    def __init__(self, given: int = 0) -> None:
        self.waiting: deque[Waiter] = deque()
        self.given: deque[tuple[int, Order]] = deque([(0, {})] * given)


class Exchange:
    """``wake_ns``: how long after it was given something a waiting thread goes on. ``queue_ns``: a call of a queue."""

    def __init__(self, clock: Clock, interpret: Callable[[HostThread, int], None], queue_ns: int, wake_ns: int) -> None:
        self.clock, self.interpret, self.queue_ns, self.wake_ns = clock, interpret, queue_ns, wake_ns
        self.before_waiting: Callable[[], None] = lambda: None

    def side(self, primitive: Any, side: str, given: int = 0) -> Patience:
        """``given``: how many things it has to give when first used (free places, permits)."""
        # Kept on the primitive itself: a weak dictionary's callbacks would swallow a Ctrl-C that comes in one of them.
        return vars(primitive).setdefault("_virtual", {}).setdefault((id(self), side), Patience(given))

    def give(self, primitive: Any, side: str, thread: HostThread) -> None:
        """``thread`` gives one thing (an item, a free place, a permit): note when, and hand it to the first who waits."""
        patience = self.side(primitive, side)
        patience.given.append((thread.now, thread.order))
        self._serve(patience, side)

    def _serve(self, patience: Patience, side: str) -> None:
        while patience.waiting and self._attempt(patience, side, patience.waiting[0]):
            patience.waiting.popleft()

    def _attempt(self, patience: Patience, side: str, waiter: Waiter) -> bool:
        """Take one thing for a thread, which goes on no earlier than it was given; False where there is none."""
        thread, asked = waiter.thread, waiter.thread.now
        at, order = patience.given[0] if patience.given else (0, {})
        before = thread.order
        thread.now = max(asked, at + self.wake_ns) if at >= asked > 0 else max(asked, at)
        thread.learn(order)
        waiter.taken = waiter.attempt(thread)
        if waiter.taken:
            if side != OPEN and patience.given:
                patience.given.popleft()
            self.clock.resume(thread)
        else:
            thread.now, thread.order = asked, before
        return waiter.taken

    def take(self, primitive: Any, side: str, attempt: Attempt, block: bool, timeout: float | None) -> bool:
        """``attempt`` takes one thing or returns False: in the thread's turn, and if there is nothing whenever something is
        given, first come, first served. False where time runs out.

        All of this happens under the clock's lock, so that what is given and its time cannot come apart.
        """
        patience = self.side(primitive, side)
        deadline = None if timeout is None else time.monotonic() + timeout
        with self.clock.turn() as thread:
            waiter = Waiter(thread, attempt)
            if not patience.waiting or side == OPEN:
                self._attempt(patience, side, waiter)
            if waiter.taken or not block:
                thread.now += 0 if waiter.taken else self.wake_ns  # or who asks in a loop would be first for ever
                return waiter.taken
            patience.waiting.append(waiter)
            self.before_waiting()
            try:
                while not waiter.taken and (deadline is None or time.monotonic() < deadline):
                    self.clock.pause(thread)
                    self.clock.lock.wait(POLL_S)
                    self._serve(patience, side)
            finally:
                if not waiter.taken:
                    patience.waiting.remove(waiter)
                    thread.now += self.wake_ns
                self.clock.resume(thread)
        return waiter.taken

    def _interpret_queue(self) -> None:
        if self.queue_ns and not self.clock.thread().hurries:
            with self.clock.turn() as thread:
                self.interpret(thread, self.queue_ns)

    # -- what is opened stays open for everybody: events that are set, futures that are done

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
