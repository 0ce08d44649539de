"""Places and names in the script that is run, for messages: who called, and what it calls a handle or an address."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

OWN_CODE = tuple(str(Path(__file__).resolve().parent.parent / room) for room in ("common", "sim"))
NOT_THE_SCRIPT = (*OWN_CODE, str(Path(np.__file__).parent), "<")


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
    """``file:line`` of the nearest caller outside this package."""
    frame = next(_frames())
    return f"{frame.f_code.co_filename.replace(chr(92), '/').rpartition('/')[2]}:{frame.f_lineno}"


def name_of(handle: int) -> str | None:
    """What the script, where it is now, calls a handle or an address: ``stream``, ``slots[0].device_input``."""
    for frame in list(_frames())[:6]:
        for scope in (frame.f_locals, frame.f_globals):
            for name, value in list(scope.items()):
                found = None if name.startswith("_") else _within(name, value, handle, 2)
                if found:
                    return found
    return None


def _within(name: str, value: Any, handle: int, depth: int) -> str | None:
    kind = type(value)
    if isinstance(value, int):
        return name if int(value) == handle and handle else None
    if isinstance(value, np.ndarray):
        return name if value.__array_interface__["data"][0] == handle else None
    if kind in (list, tuple):
        inner = [(f"{name}[{index}]", item) for index, item in enumerate(value[:64])]
    elif kind is dict:
        inner = [(f"{name}[{key!r}]", item) for key, item in list(value.items())[:64]]
    elif kind.__module__ not in ("builtins", "numpy") and hasattr(value, "__dict__") and not isinstance(value, type(sys)):
        if getattr(value, "handle", None) == handle:
            return name
        inner = [(f"{name}.{key}", item) for key, item in list(vars(value).items())[:64]]
    else:
        return None
    return next(filter(None, (_within(*item, handle, depth - 1) for item in inner)), None) if depth else None
