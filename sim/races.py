"""Races: two accesses to the same bytes, one of them a write, and no order between them, whatever happened to come first.

Each byte remembers its latest write and the reads since, one a line (what is ordered after the latest on a line is ordered
after the earlier ones). Memory is therefore cut into cells, pieces whose bytes were always used together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from sim.order import Line, Order

MANY = 8


class Range(NamedTuple):
    """Bytes of a memory (offsets)."""

    memory: Cells
    start: int
    stop: int


class Access(NamedTuple):
    """What is done to the bytes, by which line of the script, and the ``number`` that it has on its ``line``."""

    line: Line
    number: int
    write: bool
    what: str
    site: str


@dataclass
class Cell:
    write: Access | None = None
    reads: dict[Line, Access] = field(default_factory=dict)


class Cells:
    """The accesses to one piece of memory, which is called ``name`` and, in the script, by its ``address``."""

    def __init__(self, name: str, address: int = 0) -> None:
        self.name, self.address = name, address
        self.filled = ""  # the line that last copied into it from the host
        self.read = False  # by anything on the device
        self.gone = ""  # the line that freed it
        self._starts, self._cells = [0], [Cell()]

    def _cut(self, at: int) -> int:
        """The index of the cell that begins at ``at``; there is one now."""
        index = bisect_right(self._starts, at) - 1
        if self._starts[index] != at:
            index += 1
            old = self._cells[index - 1]
            self._starts.insert(index, at)
            self._cells.insert(index, replace(old, reads=dict(old.reads)))
        return index

    def note(self, start: int, stop: int, access: Access, order: Order) -> Access | None:
        """Note an access, which comes after ``order``; an earlier one that it races with."""
        first, last = self._cut(start), self._cut(stop)
        found = None
        for cell in self._cells[first:last]:
            others = [cell.write] if cell.write else []
            if access.write:
                others += cell.reads.values()
            else:
                if len(cell.reads) > MANY:  # those that come before this one say no more than this one
                    known = [line for line, read in cell.reads.items() if order.get(line, 0) >= read.number or line.over]
                    for line in known:
                        del cell.reads[line]
                cell.reads[access.line] = access
            unordered = (other for other in others if order.get(other.line, 0) < other.number and not other.line.over)
            found = found or next(unordered, None)
        if access.write and last > first:
            self._starts[first:last], self._cells[first:last] = [start], [Cell(access)]
        return found


HOST, TO_DEVICE = "the host", "the copy to the device"


class Race(NamedTuple):
    memory: str
    earlier: Access
    later: Access

    def __str__(self) -> str:
        one, two = self.earlier, self.later
        first, second = ("write" if access.write else "read" for access in (one, two))
        text = f"nothing orders the {second} of {self.memory} by {two.what} ({two.site}, {two.line.name}) "
        text += f"after its {first} by {one.what} ({one.site}, {one.line.name}): "
        if one.what == HOST:
            return text + f"go on only after {one.line.name} has said so, through a queue or a future"
        if two.what == HOST:
            return text + "wait first for an event recorded after it, or for its stream"
        return text + f"let {two.line.name} wait for an event recorded after it"


class Races:
    """All that were found, each pair of places once. ``name_of`` tells what the script calls a handle or an address."""

    def __init__(self, name_of: Callable[[int], str | None]) -> None:
        self._name_of = name_of
        self._found: dict[tuple[str, str, str, str], Race] = {}

    def note(self, ranges: tuple[Range, ...], line: Line, write: bool, what: str, site: str) -> None:
        """The latest thing on ``line`` reads or writes these ranges."""
        access = Access(line, line.count, write, what, site)
        for memory, start, stop in ranges:
            memory.read |= not write
            memory.filled = site if what == TO_DEVICE and write else memory.filled
            if (earlier := memory.note(start, stop, access, line.order)) is not None:
                key = (earlier.site, earlier.what, site, what)
                if key not in self._found:
                    self._found[key] = Race(self._name_of(memory.address) or memory.name, earlier, access)
                    for each in (earlier.line, line):
                        found = self._name_of(each.handle)
                        each.name = found if found and "stream" in found else f"stream {found}" if found else each.name

    def found(self) -> list[str]:
        return [str(race) for race in self._found.values()]
