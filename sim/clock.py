"""Virtual time: a clock for every host thread, a schedule for every unit of the GPU.

A host thread's clock moves when it calls CUDA (the call's cost), does modelled host work, or waits (to the end of what
it waits for). Threads take their turns in the order of their clocks: a call at virtual time t runs only when no other
running thread could still make one before t. So the timeline of a script with threads does not depend on how the
operating system happened to schedule them, as long as they wait for one another with the primitives in ``threads``.
"""

from __future__ import annotations

import contextlib
import threading
from bisect import bisect_left, insort
from collections.abc import Iterator

from sim.order import Line, Order, join

STALL_S = 1.0  # after so long a thread that neither calls CUDA nor waits in a known primitive is no longer waited for
KEPT = 4096  # bookings of a timetable


class HostThread(Line):
    """A host thread: its virtual time (ns since the process began) and, in ``order``, what it knows to be over."""

    def __init__(self, index: int, now: int) -> None:
        super().__init__("the main thread" if index == 1 else f"thread {index}")
        self.index, self.now = index, now
        self.hurries = False  # waits for no turn: it holds a lock of Python's library that an earlier thread may wait for
        self.running = True  # False while it waits for another thread, has ended, or was given up on
        self.capture_mode: int = 0  # how much the thread wants to be kept from disturbing captures
        self.last_error: int = 0
        self.unseen: tuple[int, str] | None = None  # what its last call answered, if an error, and the looks at errors before

    def learn(self, order: Order) -> None:
        """What another line has done is over, and this thread knows."""
        self.order = join((self.order, order))


class Clock:
    """The host threads and whose turn it is. ``lock`` guards the whole simulator."""

    def __init__(self) -> None:
        self.lock = threading.Condition(threading.RLock())
        self.threads: dict[int, HostThread] = {}
        self.born: dict[int, HostThread] = {}  # daemon threads that have made no call yet
        self._count = 0

    def thread(self) -> HostThread:
        """The calling thread's clock; a thread nobody announced starts at the time of the earliest running one."""
        ident = threading.get_ident()
        with self.lock:
            if ident not in self.threads:
                self.threads[ident] = self.born.pop(ident) if ident in self.born else self.announce()
                self.threads[ident].now = max(self.threads[ident].now, self._earliest())
            return self.threads[ident]

    def announce(self, parent: HostThread | None = None) -> HostThread:
        """A clock for a thread that ``parent`` is about to start, now: from here on the others wait for it."""
        self._count += 1
        child = HostThread(self._count, parent.now if parent else 0)
        child.learn(parent.order if parent else {})
        return child

    def _earliest(self) -> int:
        return min((thread.now for thread in self.threads.values() if thread.running), default=0)

    @contextlib.contextmanager
    def turn(self) -> Iterator[HostThread]:
        """Wait for the calling thread's turn, and hold it: nobody else calls meanwhile."""
        thread = self.thread()
        with self.lock:
            self.resume(thread)  # its clock may have moved since its last call: others may be earlier now
            while not thread.hurries and self._earlier(thread):
                if not self.lock.wait(STALL_S):
                    for other in self._earlier(thread):
                        other.running = False
            try:
                yield thread
            finally:
                self.lock.notify_all()

    def _earlier(self, thread: HostThread) -> list[HostThread]:
        """The running threads whose turn comes before ``thread``'s."""
        turn = (thread.now, thread.index)
        return [other for other in self.threads.values() if other.running and (other.now, other.index) < turn]

    def pause(self, thread: HostThread) -> None:
        """``thread`` is about to wait for another thread."""
        with self.lock:
            if thread.running:  # who waits on only looks again: waking the others for it would keep them from seeing a stall
                thread.running = False
                self.lock.notify_all()

    def resume(self, thread: HostThread, not_before: int = 0) -> None:
        """``thread`` goes on, at the earliest at ``not_before``."""
        with self.lock:
            thread.now = max(thread.now, not_before)
            thread.running = True
            self.lock.notify_all()

    def retire(self) -> HostThread:
        """The calling thread has ended."""
        with self.lock:
            thread = self.born.pop(threading.get_ident(), None) or self.threads.pop(threading.get_ident())
            self.pause(thread)
            return thread


class Timetable:
    """When a unit of the GPU (H2D copies, D2H copies, compute) is taken, or the interpreter: what is ready first goes first.

    An operation takes a share of it. Small kernels leave multiprocessors free, and those of another stream may run there.
    """

    def __init__(self) -> None:
        self._booked: list[tuple[int, int, float]] = []  # start, end, share; by start
        self._longest = 0

    def reserve(self, ready: int, duration: int, share: float = 1.0) -> tuple[int, int]:
        """Book ``share`` for ``duration`` ns at the first time at or after ``ready`` at which it is free throughout; return
        start and end."""
        start = ready
        while (beside := self._between(start, start + duration)) and peak(beside) + share > 1 + 1e-9:
            start = min(end for _, end, _ in beside)
        insort(self._booked, (start, start + duration, share))
        self._longest = max(self._longest, duration)
        if len(self._booked) > 2 * KEPT:
            del self._booked[:KEPT]
        return start, start + duration

    def _between(self, start: int, end: int) -> list[tuple[int, int, float]]:
        """What is booked at some time of [start, end)."""
        first, last = bisect_left(self._booked, (start - self._longest,)), bisect_left(self._booked, (end,))
        return [item for item in self._booked[first:last] if item[1] > start]

    def busy_between(self, start: int, end: int) -> int:
        """Nanoseconds of [start, end) in which something is booked."""
        total = 0
        for first, last, _ in self._between(start, end):
            first, last = max(first, start), min(last, end)
            if last > first:
                total, start = total + last - first, last
        return total


def peak(items: list[tuple[int, int, float]]) -> float:
    """The largest sum of shares at any time."""
    return max(sum(share for first, last, share in items if first <= start < last) for start, _, _ in items)
