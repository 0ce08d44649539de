"""What all of Python's primitives share in virtual time: something is given at a time, somebody takes it, no earlier than that.

What the giver knows to be over, the taker then knows as well.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from sim.clock import Clock, HostThread
from sim.order import Order

POLL_S = 0.1  # how often a waiting thread looks by itself, should something have been given behind the hooks' back
OPEN = "open"  # what an event that is set, and a future that is done, give: to everybody, again and again


class Waiter:
    """A thread that waits to take one thing; whoever gives it makes the ``attempt`` for it."""

    def __init__(self, thread: HostThread, attempt: Callable[[HostThread], bool]) -> None:
        self.thread, self.attempt, self.taken = thread, attempt, False


class Patience:
    """Who waits on one primitive, and of each thing that it has to give, when it was given and what came before that."""

    def __init__(self, given: int = 0) -> None:
        self.waiting: deque[Waiter] = deque()
        self.given: deque[tuple[int, Order]] = deque([(0, {})] * given)


class Exchange:
    """``wake_ns``: a thread that had to wait goes on so long after it was given something."""

    def __init__(self, clock: Clock, wake_ns: int) -> None:
        self.clock, self.wake_ns = clock, wake_ns
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

    def take(
        self, primitive: Any, side: str, attempt: Callable[[HostThread], bool], block: bool, timeout: float | None
    ) -> bool:
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
