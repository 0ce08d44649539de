"""What happens before what: one representation, from which work is executed and by which races are found.

Everything that happens, happens on a line: a stream, a host thread, or one branch of an executable graph. What is on one
line happens in turn and is numbered. So all that comes before something is told by a number a line: everything up to it
(a vector clock). Such an order is never changed, so it may be shared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from functools import reduce
from typing import Any


class Line:
    """``count``: the number of the latest thing on it. ``order``: that thing, and all that comes before it."""

    handle = 0  # a stream's
    over = False  # for good, as all threads know: no order has to carry it along

    def __init__(self, name: str = "") -> None:
        self.name, self.count = name, 0
        self.order: Order = {}
        self.queued: deque[Any] = deque()  # operations that are not executed yet

    def advance(self, *before: Order) -> int:
        """The next thing on this line, after all of ``before``; its number."""
        self.count += 1
        self.order = {**join((self.order, *before)), self: self.count}
        return self.count


Order = dict[Line, int]


def join(orders: Iterable[Order]) -> Order:
    """What comes before any of several things."""
    return reduce(_join, orders, {})


def _join(one: Order, other: Order) -> Order:
    few, many = sorted((one, other), key=len)
    if few is many or all(many.get(line, 0) >= number for line, number in few.items()):
        return many
    return {**many, **{line: number for line, number in few.items() if many.get(line, 0) < number}}
