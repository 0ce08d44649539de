"""Python's own synchronisation in virtual time: thread start and join, queues, futures, events, semaphores.

While installed, waiting in one of these, or asking one that says yes, takes the thread's clock to the moment at which the
other let it go on; a thread that waits is not waited for by others. Other primitives still work; they only carry no time.
"""

from __future__ import annotations

import functools
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from sim.clock import Clock, HostThread
from sim.exchange import OPEN, Exchange
from sim.sites import NOT_THE_SCRIPT

EXECUTORS = os.path.join("concurrent", "futures")
POLLS = {"done", "is_set", "is_alive"}  # hooked where the script asks; the library asks for its own purposes


class Hooks(Exchange):
    """Replaces the methods of the standard primitives; ``remove`` puts the originals back. A hook is found by its name, here or
    in ``Exchange``: ``_future_result`` takes the place of ``Future.result``, and gets that as ``original``."""

    def __init__(self, clock: Clock, interpret: Callable[[HostThread, int], None], queue_ns: int, wake_ns: int) -> None:
        super().__init__(clock, interpret, queue_ns, wake_ns)
        self.undo = ExitStack()
        self.remove = self.undo.close
        self._starting = threading.local()
        self._outsiders = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
        known = [(module, getattr(module, "__dict__", {})) for module in [*sys.modules.values()]]
        self._script = [each for each in known if not (each[1].get("__file__") or "<").startswith(NOT_THE_SCRIPT)]
        semaphores = threading.Semaphore, threading.BoundedSemaphore
        for owner in (threading.Thread, queue.Queue, Future, ThreadPoolExecutor, threading.Event, *semaphores):
            prefix = f"_{owner.__name__.lower()}_"
            for hook in [name for name in dir(self) if name.startswith(prefix)]:
                self._replace(owner, hook[len(prefix) :], getattr(self, hook))
        self.put(queue, "SimpleQueue", queue.Queue)  # executors keep their work in one; it is C
        self.put(futures, "wait", functools.partial(self._wait, futures.wait))
        self.put(futures, "as_completed", functools.partial(self._as_completed, futures.as_completed))

    def put(self, library: Any, name: str, new: Any) -> None:
        """A library's name means ``new`` from now on; so does what the script's modules have imported of it already."""
        original = getattr(library, name)
        bound = [(module, key) for module, names in self._script for key, value in [*names.items()] if value is original]
        for owner, key in [(library, name), *bound]:
            self.undo.callback(setattr, owner, key, original)
            setattr(owner, key, new)

    def _replace(self, owner: type, name: str, hook: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        self.undo.callback(setattr, owner, name, original)

        def replacement(primitive: Any, /, *args: Any, **kwargs: Any) -> Any:
            # Not our business: threads older than the script, Thread.start's own Event, progress bars, which sleep on one.
            ident = threading.get_ident()
            outside = ident in self._outsiders or (owner is threading.Event and ident not in self.clock.threads)
            outside |= name in POLLS and sys._getframe(1).f_code.co_filename.startswith(NOT_THE_SCRIPT)
            if outside or getattr(self._starting, "now", False):
                return original(primitive, *args, **kwargs)
            return hook(original, primitive, *args, **kwargs)

        setattr(owner, name, replacement)

    def _thread_start(self, original: Any, thread: threading.Thread) -> None:
        with self.clock.lock:
            virtual = self.clock.announce(self.clock.thread())
            virtual.name = f"thread {thread.name}"
            if not thread.daemon:  # daemon threads (progress bars) join the order with their first CUDA call
                self.clock.threads[-virtual.index] = virtual  # waited for from now on, under its own number once it runs
        thread.run = lambda run=thread.run: self._run(thread, virtual, run)  # type: ignore[method-assign, misc]
        self._starting.now = True
        try:
            original(thread)
        finally:
            self._starting.now = False

    def _run(self, thread: threading.Thread, virtual: HostThread, run: Any) -> None:
        self._outsiders.discard(threading.get_ident())  # the system may have given it the number of one that has ended
        with self.clock.lock:
            running = self.clock.threads.pop(-virtual.index, None)
            (self.clock.born if running is None else self.clock.threads)[threading.get_ident()] = virtual
        try:
            run()
        finally:
            vars(thread)["_virtual_end"] = self.clock.retire()

    def _thread_join(self, original: Any, thread: threading.Thread, timeout: float | None = None) -> None:
        me = self.clock.thread()
        self.clock.pause(me)
        original(thread, timeout)
        ended = None if thread.is_alive() else vars(thread).get("_virtual_end")
        self.clock.resume(me, ended.now if ended else 0)
        me.learn(ended.order if ended else {})

    def _thread_is_alive(self, original: Any, thread: threading.Thread) -> bool:
        with self.clock.turn() as me:
            ended = vars(thread).get("_virtual_end")
            me.now = max(me.now, ended.now) if ended else me.now + self.wake_ns
            me.learn(ended.order if ended else {})
            return not ended and original(thread)

    def _threadpoolexecutor_submit(self, original: Any, pool: Any, /, *args: Any, **kwargs: Any) -> Future:
        """In its turn, and then at once: there is one lock for all executors, which it holds meanwhile."""
        self._interpret_queue()
        with self.clock.turn() as thread:
            pass
        thread.hurries = True
        try:
            return original(pool, *args, **kwargs)
        finally:
            thread.hurries = False

    # -- queues: an item is given by put and taken by get; in a bounded queue so is a free place, the other way round

    def _queue_put(self, original: Any, q: queue.Queue, item: Any, block: bool = True, timeout: float | None = None) -> None:
        def attempt(thread: HostThread) -> bool:
            try:
                original(q, item, False)
            except queue.Full:
                return False
            self.give(q, "items", thread)
            return True

        self._interpret_queue()
        self.side(q, "places", q.maxsize)
        if not self.take(q, "places", attempt, block, timeout):
            raise queue.Full

    def _queue_get(self, original: Any, q: queue.Queue, block: bool = True, timeout: float | None = None) -> Any:
        items: list[Any] = []

        def attempt(thread: HostThread) -> bool:
            try:
                items.append(original(q, False))
            except queue.Empty:
                return False
            if q.maxsize > 0:
                self.give(q, "places", thread)
            return True

        self._interpret_queue()
        if not self.take(q, "items", attempt, block, timeout):
            raise queue.Empty
        return items[0]

    def _queue_task_done(self, original: Any, q: queue.Queue) -> None:
        self._open(q, lambda: original(q))

    def _queue_join(self, original: Any, q: queue.Queue) -> None:
        self.take(q, OPEN, lambda _: q.unfinished_tasks == 0, True, None)

    # -- semaphores give permits

    def _semaphore_acquire(self, original: Any, semaphore: Any, blocking: bool = True, timeout: float | None = None) -> bool:
        thread = self.clock.thread()
        known, now = thread.order, thread.now
        self.side(semaphore, "permits", semaphore._value)
        taken = self.take(semaphore, "permits", lambda _: original(semaphore, False), blocking, timeout)
        if timeout == 0 and EXECUTORS in sys._getframe(2).f_code.co_filename:
            thread.order = known  # whether one of its threads happens to be idle orders nothing, and takes no time
            thread.now = thread.now if taken else now
        return taken

    def _semaphore_release(self, original: Any, semaphore: Any, n: int = 1) -> None:
        with self.clock.turn() as thread:
            self.side(semaphore, "permits", semaphore._value)
            original(semaphore, n)
            for _ in range(n):
                self.give(semaphore, "permits", thread)

    _boundedsemaphore_release = _semaphore_release
