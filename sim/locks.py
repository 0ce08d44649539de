"""A script's own locks, conditions and barriers in virtual time. (Those inside queues and futures order nothing themselves.)"""

from __future__ import annotations

import sys
import threading
from typing import Any

from sim.sites import NOT_THE_SCRIPT
from sim.threads import Hooks

BARRIER = threading.Barrier.__init__.__code__  # it is a condition and a count: everybody's past goes to everybody


def install(hooks: Hooks) -> None:
    """``threading``'s factories make these for a script from now on, until the hooks are removed."""
    own: dict[str, Any] = {"Lock": lambda: Lock(hooks, False), "RLock": lambda: Lock(hooks, True)}
    own["Condition"] = lambda lock=None: Condition(hooks, lock)
    for name, make in own.items():
        original = getattr(threading, name)

        def factory(*args: Any, original: Any = original, make: Any = make, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_code
            scripts = caller is BARRIER or not caller.co_filename.startswith(NOT_THE_SCRIPT)
            return (make if scripts else original)(*args, **kwargs)

        hooks.put(threading, name, factory)


class Lock:
    """What is done before a release comes before what is done after the next acquisition."""

    def __init__(self, hooks: Hooks, reentrant: bool) -> None:
        self._hooks, self._reentrant, self._owner, self._depth = hooks, reentrant, 0, 0
        hooks.side(self, "permits", 1)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = threading.get_ident()

        def attempt(_: Any) -> bool:
            free = not self._owner
            self._owner = me if free else self._owner
            return free

        limit = timeout if timeout >= 0 else None
        taken = (self._reentrant and self._owner == me) or self._hooks.take(self, "permits", attempt, blocking, limit)
        self._depth += taken
        return taken

    __enter__ = acquire

    def release(self) -> None:
        if not self._owner:
            raise RuntimeError("release unlocked lock")
        self._depth -= 1
        if not self._depth:
            with self._hooks.clock.turn() as thread:
                self._owner = 0
                self._hooks.give(self, "permits", thread)

    def locked(self) -> bool:
        return bool(self._owner)

    def __exit__(self, *exception: object) -> None:
        self.release()


class Condition(threading.Condition):
    """What is done before a notice comes before what is done after the wait that it ends."""

    def __init__(self, hooks: Hooks, lock: Any = None) -> None:
        super().__init__(lock or Lock(hooks, True))  # type: ignore[arg-type]
        self._hooks, self._given = hooks, hooks.side(self, "notices").given

    def _is_owned(self) -> bool:
        return self._lock.locked()  # type: ignore[attr-defined]

    def wait(self, timeout: float | None = None) -> bool:
        with self._hooks.clock.turn():
            self.release()
            noticed = self._hooks.take(self, "notices", lambda _: bool(self._given), True, timeout)
        self.acquire()
        return noticed

    def notify(self, n: int = 1) -> None:
        with self._hooks.clock.turn() as thread:
            for _ in range(min(n, len(self._hooks.side(self, "notices").waiting))):
                self._hooks.give(self, "notices", thread)

    def notify_all(self) -> None:
        self.notify(sys.maxsize)
