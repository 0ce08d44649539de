"""Places and names in the script that is run, for messages: who called, and what it calls a handle or an address."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

OWN_CODE = tuple(str(Path(__file__).resolve().parent.parent / room) for room in ("common", "sim"))
NOT_THE_SCRIPT = (*OWN_CODE, str(Path(np.__file__).parent.parent), str(Path(threading.__file__).parent), "<")


def _frames() -> Iterator[FrameType]:
    """The script's own, the innermost first; the outermost of all where there is none."""
    frame: FrameType | None = sys._getframe(1)
    last, found = frame, False
    while frame is not None:
        if not frame.f_code.co_filename.startswith(NOT_THE_SCRIPT):
            found = True
            yield frame
        last, frame = frame, frame.f_back
    if not found and last is not None:
        yield last


def site() -> str:
    """``file:line`` of the nearest caller that is the script's, and where another file of it called that one."""
    frames = _frames()
    frame = next(frames)
    outer = next((each for each in frames if each.f_code.co_filename != frame.f_code.co_filename), None)
    return _place(frame) + (f" from {_place(outer)}" if outer is not None else "")


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename.replace(chr(92), '/').rpartition('/')[2]}:{frame.f_lineno}"


def name_of(handle: int) -> str | None:
    """What the script, where it is now, calls a handle or an address: ``stream``, ``slots[0].device_input``."""
    for frame in reversed(list(_frames())[:6] if handle else ()):
        for scope in (frame.f_locals, frame.f_globals):
            values = [(name, value) for name, value in list(scope.items()) if name.isidentifier() and not name.startswith("_")]
            for _ in range(3):  # variables, what is in them, and what is in that
                for name, value in values:
                    if _is(value, handle):
                        return name
                values = [inner for item in values for inner in _within(*item)]
    return None


def _is(value: Any, handle: int) -> bool:
    if isinstance(value, int):
        return int(value) == handle
    if isinstance(value, np.ndarray):
        return value.__array_interface__["data"][0] == handle
    return _is_object(value) and getattr(value, "handle", None) == handle


def _is_object(value: Any) -> bool:
    return type(value).__module__ not in ("builtins", "numpy") and hasattr(value, "__dict__") and not isinstance(value, type)


def _within(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, (list, tuple)):
        return [(f"{name}[{index}]", item) for index, item in enumerate(value[:64])]
    if isinstance(value, dict):
        return [(f"{name}[{key!r}]", item) for key, item in list(value.items())[:64]]
    return [(f"{name}.{key}", item) for key, item in list(vars(value).items())[:64]] if _is_object(value) else []
