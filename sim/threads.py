"""Python's own synchronisation in virtual time: thread start and join, queues, futures, events, semaphores.

While installed, waiting in one of these takes the waiter's clock to the moment at which the other thread let it go on,
and a thread that waits is not waited for by others. Other primitives still work; they only carry no time.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

from sim.clock import Clock, HostThread

POLL_S = 0.1  # how often a waiting thread looks by itself, should something have been given behind the hooks' back
OPEN = "open"  # what an event that is set, and a future that is done, give: to everybody, again and again


class Patience:
    """Who waits on one primitive, and when each thing it has to give was given."""

    def __init__(self, given: int = 0) -> None:
        self.waiting: deque[HostThread] = deque()
        self.times: deque[int] = deque([0] * given)


class Hooks:
    """Replaces the methods of the standard primitives; ``remove`` puts the originals back.

    A queue operation costs ``queue_ns`` of the interpreter's time, and a thread that had to wait goes on ``wake_ns`` after it
    was given something.
    """

    def __init__(self, clock: Clock, interpret: Callable[[HostThread, int], None], queue_ns: int, wake_ns: int) -> None:
        self.clock, self.interpret, self.queue_ns, self.wake_ns = clock, interpret, queue_ns, wake_ns
        self._undo = ExitStack()
        self.remove = self._undo.close
        self._starting = threading.local()
        self._outsiders = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
        for owner in (threading.Thread, queue.Queue, Future, threading.Event, threading.Semaphore):
            prefix = f"_{owner.__name__.lower()}_"
            for hook in [name for name in dir(self) if name.startswith(prefix)]:
                self._replace(owner, hook[len(prefix) :], getattr(self, hook))
        self._undo.callback(setattr, queue, "SimpleQueue", queue.SimpleQueue)
        queue.SimpleQueue = queue.Queue  # type: ignore[misc, assignment]  # executors keep their work in one; it is C

    def _replace(self, owner: type, name: str, hook: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        self._undo.callback(setattr, owner, name, original)

        def replacement(primitive: Any, *args: Any, **kwargs: Any) -> Any:
            # Not our business: threads older than the script, Thread.start's own Event, progress bars, which sleep on one.
            ident = threading.get_ident()
            outside = ident in self._outsiders or (owner is threading.Event and ident not in self.clock.threads)
            if outside or getattr(self._starting, "now", False):
                return original(primitive, *args, **kwargs)
            return hook(original, primitive, *args, **kwargs)

        setattr(owner, name, replacement)

    # -- what all primitives share: something is given at a time, somebody takes it, no earlier than that

    def _side(self, primitive: Any, side: str, given: int = 0) -> Patience:
        """``given``: how many things it has to give when first used (free places, permits)."""
        # Kept on the primitive itself: a weak dictionary's callbacks would swallow a Ctrl-C that comes in one of them.
        return vars(primitive).setdefault("_virtual", {}).setdefault((id(self), side), Patience(given))

    def _give(self, primitive: Any, side: str) -> None:
        """The calling thread gives one thing (an item, a free place, a permit): note when, let one who waits go on."""
        patience, now = self._side(primitive, side), self.clock.thread().now
        patience.times.append(now)
        if patience.waiting:
            self.clock.resume(patience.waiting.popleft(), now)

    def _take(self, primitive: Any, side: str, attempt: Callable[[], bool], block: bool, timeout: float | None) -> bool:
        """Repeat ``attempt``, which takes one thing or returns False, until it succeeds or time runs out.

        The thread goes on no earlier than what it took was given. All of this happens under the clock's lock, so that
        what is given and its time cannot come apart.
        """
        thread, patience = self.clock.thread(), self._side(primitive, side)
        asked = thread.now
        deadline = None if timeout is None else time.monotonic() + timeout
        with self.clock.lock:
            taken = attempt()
            while not taken and block and (deadline is None or time.monotonic() < deadline):
                if thread not in patience.waiting:
                    patience.waiting.append(thread)
                    self.clock.pause(thread)
                self.clock.lock.wait(POLL_S)
                taken = attempt()
            if thread in patience.waiting:
                patience.waiting.remove(thread)
            given = 0
            if taken and patience.times:
                given = patience.times[0] if side == OPEN else patience.times.popleft()
            self.clock.resume(thread, given + self.wake_ns if given >= asked > 0 else 0)
        return taken

    def _thread_start(self, original: Any, thread: threading.Thread) -> None:
        if not thread.daemon:  # daemon threads (progress bars) join the order with their first CUDA call
            with self.clock.lock:
                virtual = self.clock.announce(self.clock.thread().now)
                self.clock.threads[-virtual.index] = virtual  # waited for from now on, under its own number once it runs
            thread.run = lambda run=thread.run: self._run(thread, virtual, run)  # type: ignore[method-assign, misc]
        self._starting.now = True
        try:
            original(thread)
        finally:
            self._starting.now = False

    def _run(self, thread: threading.Thread, virtual: HostThread, run: Any) -> None:
        with self.clock.lock:
            self.clock.threads[threading.get_ident()] = self.clock.threads.pop(-virtual.index)
        try:
            run()
        finally:
            vars(thread)["_virtual_end"] = self.clock.retire()

    def _thread_join(self, original: Any, thread: threading.Thread, timeout: float | None = None) -> None:
        me = self.clock.thread()
        self.clock.pause(me)
        original(thread, timeout)
        ended = vars(thread).get("_virtual_end")
        self.clock.resume(me, ended.now if ended is not None and not thread.is_alive() else 0)

    def _interpret_queue(self) -> None:
        if self.queue_ns:
            with self.clock.turn() as thread:
                self.interpret(thread, self.queue_ns)

    # -- queues: an item is given by put and taken by get; in a bounded queue so is a free place, the other way round

    def _queue_put(self, original: Any, q: queue.Queue, item: Any, block: bool = True, timeout: float | None = None) -> None:
        def attempt() -> bool:
            try:
                original(q, item, False)
            except queue.Full:
                return False
            self._give(q, "items")
            return True

        self._interpret_queue()
        self._side(q, "places", q.maxsize)
        if not self._take(q, "places", attempt, block, timeout):
            raise queue.Full

    def _queue_get(self, original: Any, q: queue.Queue, block: bool = True, timeout: float | None = None) -> Any:
        items: list[Any] = []

        def attempt() -> bool:
            try:
                items.append(original(q, False))
            except queue.Empty:
                return False
            if q.maxsize > 0:
                self._give(q, "places")
            return True

        self._interpret_queue()
        if not self._take(q, "items", attempt, block, timeout):
            raise queue.Empty
        return items[0]

    # -- semaphores give permits

    def _semaphore_acquire(self, original: Any, semaphore: Any, blocking: bool = True, timeout: float | None = None) -> bool:
        self._side(semaphore, "permits", semaphore._value)
        return self._take(semaphore, "permits", lambda: original(semaphore, False), blocking, timeout)

    def _semaphore_release(self, original: Any, semaphore: Any, n: int = 1) -> None:
        with self.clock.lock:
            self._side(semaphore, "permits", semaphore._value)
            original(semaphore, n)
            for _ in range(n):
                self._give(semaphore, "permits")

    def _open(self, primitive: Any, is_open: Callable[[], bool], opening: Callable[[], None]) -> None:
        """Do ``opening``, noting when if it is the first; let all who wait go on."""
        with self.clock.lock:
            patience, now = self._side(primitive, OPEN), self.clock.thread().now
            if not is_open():
                patience.times = deque([now])
            opening()
            while patience.waiting:
                self.clock.resume(patience.waiting.popleft(), now)

    def _event_set(self, original: Any, event: threading.Event) -> None:
        self._open(event, event.is_set, lambda: original(event))

    def _event_wait(self, original: Any, event: threading.Event, timeout: float | None = None) -> bool:
        return self._take(event, OPEN, event.is_set, True, timeout)

    def _future_set_result(self, original: Any, future: Future, *args: Any, **kwargs: Any) -> None:
        self._interpret_queue()
        self._open(future, future.done, lambda: original(future, *args, **kwargs))

    _future_set_exception = _future_set_result

    def _future_result(self, original: Any, future: Future, timeout: float | None = None) -> Any:
        self._interpret_queue()
        return self._future_exception(original, future, timeout)

    def _future_exception(self, original: Any, future: Future, timeout: float | None = None) -> Any:
        self._take(future, OPEN, future.done, True, timeout)
        return original(future, 0 if timeout is not None else None)
