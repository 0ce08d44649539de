"""The address space: device memory at addresses of its own, page-locked host memory at its real ones.

Nothing is ever given out twice, so that a use after free is always found. Fresh device memory holds a pattern, and so
does freed memory: whoever reads what nobody wrote gets wrong outputs, not lucky ones.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right, insort
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DEVICE_BASE, DEVICE_TOP = 0x700_0000_0000, 0xE00_0000_0000  # no operating system maps a process's memory here
ALIGNMENT = 512
FRESH, FREED = 0xCD, 0xDD


@dataclass
class Allocation:
    """``size`` bytes at ``address``; ``kind`` is ``device`` or ``pinned``; ``site`` is the line that made it."""

    address: int
    size: int
    kind: str
    site: str
    data: np.ndarray = field(repr=False)
    live: bool = True


@dataclass(frozen=True)
class Span:
    """A checked range of memory: where it lies and a view of its bytes."""

    kind: str  # device, pinned or pageable
    allocation: Allocation | None
    offset: int
    view: np.ndarray = field(repr=False)


class AddressSpace:
    """All memory that CUDA knows of. Sizes of device memory are charged at ``scale`` times their bytes."""

    def __init__(self, device_bytes: int, scale: float) -> None:
        self.device_bytes, self.scale = device_bytes, scale
        self.charged = 0
        self._next = DEVICE_BASE
        self._addresses: list[int] = []
        self._by_address: dict[int, Allocation] = {}

    def allocate(self, size: int, kind: str, site: str) -> Allocation | None:
        """New memory, or None where the device has no room for it."""
        if kind == "device":
            if not self.charge(size * self.scale):
                return None
            try:
                data = np.full(size, FRESH, np.uint8)
            except MemoryError:  # the modelled GPU has more memory than this machine
                self.charge(-size * self.scale)
                return None
            address = self._next
            self._next += -(-size // ALIGNMENT) * ALIGNMENT + ALIGNMENT  # a gap, so that overruns hit nothing
        else:
            block = np.zeros(size + ALIGNMENT, np.uint8)
            shift = -block.ctypes.data % ALIGNMENT
            data = block[shift : shift + size]
            address = data.ctypes.data
        allocation = Allocation(address, size, kind, site, data)
        if address not in self._by_address:
            insort(self._addresses, address)
        self._by_address[address] = allocation
        return allocation

    def charge(self, nbytes: float) -> bool:
        """Count ``nbytes`` of device memory as used; False and nothing counted where there is no room."""
        if self.charged + nbytes > self.device_bytes:
            return False
        self.charged += int(nbytes)
        return True

    def free(self, address: int, kind: str) -> bool:
        """False where ``address`` is not the start of a live allocation of that kind."""
        allocation = self._by_address.get(address)
        if allocation is None or not allocation.live or allocation.kind != kind:
            return False
        allocation.live = False
        allocation.data[:] = FREED
        if kind == "device":
            self.charged -= int(allocation.size * self.scale)
            allocation.data = np.empty(0, np.uint8)
        return True

    def find(self, address: int) -> Allocation | None:
        """The allocation, live or freed, that ``address`` lies in."""
        position = bisect_right(self._addresses, address) - 1
        if position < 0:
            return None
        allocation = self._by_address[self._addresses[position]]
        return allocation if address < allocation.address + max(allocation.size, 1) else None

    def span(self, address: int, count: int) -> Span | None:
        """``count`` bytes at ``address``; None where CUDA would not take them: freed, out of range, unknown, null."""
        allocation = self.find(address)
        if allocation is not None:
            offset = address - allocation.address
            if not allocation.live or offset + count > allocation.size:
                return None
            return Span(allocation.kind, allocation, offset, allocation.data[offset : offset + count])
        if address == 0 or DEVICE_BASE <= address < DEVICE_TOP:
            return None
        # Pageable host memory: CUDA cannot check it either. The caller keeps it alive, as for a real copy.
        memory = (ctypes.c_ubyte * count).from_address(address)
        return Span("pageable", None, 0, np.frombuffer(memory, np.uint8))

    def live(self) -> list[Allocation]:
        return [allocation for allocation in self._by_address.values() if allocation.live]


def address_of(pointer: Any) -> int:
    """A ``void*`` argument as cuda-python takes it: an integer, a handle, None, or an object with a buffer."""
    if pointer is None:
        return 0
    if hasattr(pointer, "__int__") and not isinstance(pointer, np.ndarray):
        return int(pointer)
    return np.asarray(memoryview(pointer)).ctypes.data
