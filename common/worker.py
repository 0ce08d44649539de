"""A thread whose failure is not lost."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Worker(threading.Thread):
    """Runs ``work`` on a thread of its own.

    Leaving the ``with`` block, for whatever reason, calls ``stop``, waits for the thread and raises what it raised.
    ``stop`` must make ``work`` return.
    """

    def __init__(self, work: Callable[[], None], stop: Callable[[], None]) -> None:
        super().__init__(name="worker")
        self._work, self._stop_work = work, stop
        self._exception: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as exception:  # whatever it is, it is the main thread's to raise
            self._exception = exception

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, exc_type: object, *exception: object) -> None:
        self._stop_work()
        self.join()
        if self._exception is not None and exc_type is None:
            raise self._exception
