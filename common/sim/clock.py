"""Virtual time: a clock for every host thread, a schedule for every engine of the GPU.

A host thread's clock moves when it calls CUDA (the call's cost), does modelled host work, or waits (to the end of what
it waits for). Threads take their turns in the order of their clocks: a call at virtual time t runs only when no other
running thread could still make one before t. So the timeline of a script with threads does not depend on how the
operating system happened to schedule them, as long as they wait for one another with the primitives in ``threads``.
"""

from __future__ import annotations

import contextlib
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

STALL_S = 1.0
"""Real seconds after which a thread that neither calls CUDA nor waits in a known primitive is no longer waited for."""


class HostThread:
    """Virtual time of one host thread, in nanoseconds since the start of the process."""

    def __init__(self, index: int, now: int) -> None:
        self.index = index
        self.now = now
        self.running = True  # False while it waits for another thread, has ended, or was given up on


class Clock:
    """The host threads and whose turn it is. ``lock`` guards the whole simulator."""

    def __init__(self) -> None:
        self.lock = threading.Condition(threading.RLock())
        self.threads: dict[int, HostThread] = {}
        self._count = 0

    def thread(self) -> HostThread:
        """The calling thread's clock; a thread nobody announced starts at the time of the earliest running one."""
        with self.lock:
            ident = threading.get_ident()
            if ident not in self.threads:
                self.threads[ident] = self.announce()
            return self.threads[ident]

    def announce(self, now: int | None = None) -> HostThread:
        """A clock for a thread that is about to start at ``now``: from here on the others wait for it."""
        with self.lock:
            if now is None:
                now = min((thread.now for thread in self.threads.values() if thread.running), default=0)
            self._count += 1
            return HostThread(self._count, now)

    @contextlib.contextmanager
    def turn(self) -> Iterator[HostThread]:
        """Wait for the calling thread's turn, and hold it: nobody else calls meanwhile."""
        thread = self.thread()
        with self.lock:
            thread.running = True
            self.lock.notify_all()  # its clock may have moved since its last call: others may be earlier now
            while not self._is_earliest(thread):
                if not self.lock.wait(STALL_S):
                    for other in self.threads.values():
                        if (other.now, other.index) < (thread.now, thread.index):
                            other.running = False
            try:
                yield thread
            finally:
                self.lock.notify_all()

    def _is_earliest(self, thread: HostThread) -> bool:
        turn = (thread.now, thread.index)
        return all(other is thread or not other.running or turn < (other.now, other.index)
                   for other in self.threads.values())

    def pause(self, thread: HostThread) -> None:
        """``thread`` is about to wait for another thread."""
        with self.lock:
            thread.running = False
            self.lock.notify_all()

    def resume(self, thread: HostThread, not_before: int) -> None:
        """``thread`` goes on, at the earliest at ``not_before``."""
        with self.lock:
            thread.now = max(thread.now, not_before)
            thread.running = True
            self.lock.notify_all()

    def retire(self) -> HostThread:
        """The calling thread has ended."""
        with self.lock:
            thread = self.thread()
            thread.running = False
            del self.threads[threading.get_ident()]
            self.lock.notify_all()
            return thread


class Engine:
    """One engine of the GPU (H2D copies, D2H copies or compute): one operation at a time, the first that is ready first."""

    KEPT = 4096

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def reserve(self, ready: int, duration: int) -> tuple[int, int]:
        """Book ``duration`` ns in the first gap at or after ``ready`` that holds it; return its start and end."""
        position = bisect_right(self._ends, ready)
        start = ready
        while position < len(self._starts) and start + duration > self._starts[position]:
            start = max(start, self._ends[position])
            position += 1
        self._starts.insert(position, start)
        self._ends.insert(position, start + duration)
        if len(self._starts) > 2 * self.KEPT:
            del self._starts[: self.KEPT], self._ends[: self.KEPT]
        return start, start + duration

    def busy_between(self, start: int, end: int) -> int:
        """Nanoseconds of [start, end) that are booked."""
        total = 0
        for position in range(bisect_right(self._ends, start), bisect_left(self._starts, end)):
            total += min(end, self._ends[position]) - max(start, self._starts[position])
        return total
