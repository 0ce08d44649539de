"""NumPy views of page-locked memory that tell what the host reads and writes there, so that races with the host are seen.

What NumPy's functions, operators, indexing and methods touch is seen; a pointer that goes elsewhere is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

try:
    from numpy.lib.array_utils import byte_bounds
except ImportError:  # NumPy before 2
    byte_bounds = np.byte_bounds  # type: ignore[attr-defined]

Note = Callable[[int, int, bool], None]
WRITES = {"fill", "sort", "partition", "put", "itemset", "byteswap"}
READS = {"all", "any", "argmax", "argmin", "argpartition", "argsort", "astype", "choose", "clip", "compress", "conj", "copy"}
READS |= {"cumprod", "cumsum", "diagonal", "dot", "dump", "dumps", "flatten", "item", "max", "mean", "min", "nonzero", "prod"}
READS |= {"repeat", "round", "searchsorted", "std", "sum", "take", "tobytes", "tofile", "tolist", "trace", "var"}
READS |= {"__bool__", "__bytes__", "__complex__", "__contains__", "__copy__", "__deepcopy__", "__float__", "__format__"}
READS |= {"__index__", "__int__", "__iter__", "__reduce__", "__reduce_ex__", "__repr__", "__str__"}


class Seen(np.ndarray):
    """A view of page-locked memory. What is made of its data is an ordinary array."""

    note: Note = staticmethod(lambda start, stop, write: None)  # type: ignore[assignment]

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **kwargs: Any) -> Any:
        touch(inputs, False)
        touch((inputs[:1] if method == "at" else out), True)
        if out:
            kwargs["out"] = tuple(map(plain, out))
        result = getattr(ufunc, method)(*map(plain, inputs), **kwargs)
        return out[0] if len(out) == 1 else result

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        written = {np.copyto: args[:1], np.put: args[:1], np.place: args[:1]}.get(func, (kwargs.get("out"),))
        touch([each for each in (*args, *kwargs.values()) if not any(each is other for other in written)], False)
        touch(written, True)
        return func(*map(plain, args), **{name: plain(value) for name, value in kwargs.items()})

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if not (isinstance(found, Seen) and np.may_share_memory(plain(found), plain(self))):
            touch([self], False)
            return plain(found)
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        target = plain(self)[key]
        whole = not isinstance(target, np.ndarray) or not np.may_share_memory(target, plain(self))
        touch([value], False)
        touch([self if whole else target.view(Seen)], True)
        plain(self)[key] = plain(value)


def _method(name: str, write: bool) -> Callable[..., Any]:
    def method(self: Seen, *args: Any, **kwargs: Any) -> Any:
        touch([self], write)
        return getattr(plain(self), name)(*map(plain, args), **{key: plain(value) for key, value in kwargs.items()})

    return method


for _name in READS | WRITES:
    if hasattr(np.ndarray, _name):
        setattr(Seen, _name, _method(_name, _name in WRITES))


def plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
    return value.view(np.ndarray) if isinstance(value, Seen) else value


def touch(values: Iterable[Any], write: bool) -> None:
    for value in values:
        if isinstance(value, (list, tuple)):
            touch(value, write)
        elif isinstance(value, Seen) and value.size:
            Seen.note(*byte_bounds(value), write)


def install(put: Callable[[Any, str, Any], None], is_page_locked: Callable[[int], bool], note: Note) -> None:
    """From now on NumPy's views of page-locked memory are seen. ``put``: see ``Hooks``."""

    def seeing(original: Callable[..., Any]) -> Callable[..., Any]:
        def view(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            return made.view(Seen) if is_page_locked(made.__array_interface__["data"][0]) else made

        return view

    def reading(original: Callable[..., Any]) -> Callable[..., Any]:
        """Of functions that drop the subclass: what still is the same memory stays seen, what is a copy has read it."""

        def made_of(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            if not args or not isinstance(args[0], Seen) or not made.size:
                return made
            if np.shares_memory(made, args[0]):
                return made.view(Seen)
            Seen.note(*byte_bounds(args[0]), False)
            return made

        return made_of

    put(Seen, "note", staticmethod(note))
    for owner, name in ((np, "frombuffer"), (np.ctypeslib, "as_array")):
        put(owner, name, seeing(getattr(owner, name)))
    for name in ("array", "asarray", "ascontiguousarray"):
        put(np, name, reading(getattr(np, name)))
