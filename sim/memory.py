"""The address space: device memory at addresses of its own, page-locked host memory at its real ones.

Nothing is ever given out twice, so that a use after free is always found. Fresh device memory holds a pattern, and so
does freed memory: whoever reads what nobody wrote gets wrong outputs, not lucky ones.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right, insort
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sim.enums import CudaFailure, cudaError_t, require
from sim.races import Cells, Range
from sim.sites import site

DEVICE_BASE, DEVICE_TOP = 0x700_0000_0000, 0xE00_0000_0000  # no operating system maps a process's memory here
ALIGNMENT, FRESH, FREED = 512, 0xCD, 0xDD


@dataclass
class Allocation:
    """``size`` bytes at ``address``: ``device``, ``pinned`` or ``registered`` memory, made by the line ``site``."""

    address: int
    size: int
    kind: str
    site: str
    data: np.ndarray = field(repr=False)
    live: bool = True

    def __post_init__(self) -> None:
        kind = "device" if self.kind == "device" else "page-locked"
        self.cells = Cells(f"{self.size:,} bytes of {kind} memory ({self.site})", self.address)

    def range(self, offset: int, count: int) -> tuple[Range, ...]:
        return (Range(self.cells, offset, offset + count),)


class Span(NamedTuple):
    """A checked range of memory: device, pinned or pageable, a view of its bytes, and what to look for races in."""

    kind: str
    view: np.ndarray
    ranges: tuple[Range, ...] = ()

    def rows(self, width: int, height: int, pitch: int) -> Span:
        """``height`` rows of ``width`` bytes, ``pitch`` apart."""
        view = np.lib.stride_tricks.as_strided(self.view, (height, width), (pitch, 1))
        starts = [(memory, start + pitch * row) for memory, start, _ in self.ranges for row in range(height)]
        return Span(self.kind, view, tuple(Range(memory, start, start + width) for memory, start in starts))


class AddressSpace:
    """All memory that CUDA knows of. Sizes of device memory are charged at ``scale`` times their bytes."""

    def __init__(self, device_bytes: int, scale: float) -> None:
        self.device_bytes, self.scale, self.charged = device_bytes, scale, 0
        self._next = DEVICE_BASE
        self._addresses: list[int] = []
        self._by_address: dict[int, Allocation] = {}

    def allocate(self, size: int, kind: str, site: str) -> int:
        """The address of new memory; CUDA's error where the device has no room for it."""
        on_device = kind == "device"
        require(self.charge(on_device * size * self.scale), cudaError_t.cudaErrorMemoryAllocation)
        try:
            block = np.full(size + ALIGNMENT * (not on_device), FRESH * on_device, np.uint8)
        except MemoryError:  # the modelled GPU has more memory than this machine
            self.charge(-on_device * size * self.scale)
            raise CudaFailure(cudaError_t.cudaErrorMemoryAllocation) from None
        if on_device:
            address, data = self._next, block
            self._next += -(-size // ALIGNMENT) * ALIGNMENT + ALIGNMENT  # a gap, so that overruns hit nothing
        else:
            data = block[-block.ctypes.data % ALIGNMENT :][:size]
            address = data.ctypes.data
        return self._add(Allocation(address, size, kind, site, data))

    def register(self, address: int, size: int, site: str) -> None:
        """Page-lock memory that the script has allocated."""
        require(address and size)
        known = self.find(address)
        require(not (known and known.live), cudaError_t.cudaErrorHostMemoryAlreadyRegistered)
        self._add(Allocation(address, size, "registered", site, host_bytes(address, size)))

    def _add(self, allocation: Allocation) -> int:
        if allocation.address not in self._by_address:
            insort(self._addresses, allocation.address)
        self._by_address[allocation.address] = allocation
        return allocation.address

    def find(self, address: int) -> Allocation | None:
        """The allocation, live or freed, that ``address`` lies in."""
        position = bisect_right(self._addresses, address) - 1
        found = self._by_address[self._addresses[position]] if position >= 0 else None
        return found if found and address - found.address < max(found.size, 1) else None

    def charge(self, nbytes: float) -> bool:
        """Count ``nbytes`` of device memory as used; False and nothing counted where there is no room."""
        if self.charged + nbytes > self.device_bytes:
            return False
        self.charged += int(nbytes)
        return True

    def is_page_locked(self, address: int) -> bool:
        found = self.find(address)
        return found is not None and found.live and found.kind != "device"

    def free(self, address: int, kind: str, error: cudaError_t = cudaError_t.cudaErrorInvalidValue) -> Allocation:
        """What is freed; ``error`` where ``address`` is not the start of a live allocation of ``kind``."""
        allocation = self._by_address.get(address)
        if allocation is None or not allocation.live or allocation.kind != kind:
            raise CudaFailure(error)
        allocation.live, allocation.cells.gone = False, site()
        if kind == "device":
            self.charged -= int(allocation.size * self.scale)
        return allocation

    def span(self, address: int, count: int, error: cudaError_t = cudaError_t.cudaErrorInvalidValue) -> Span:
        """``count`` bytes at ``address``; ``error`` where CUDA would not take them: freed, out of range, unknown, null."""
        allocation = self.find(address)
        if allocation is not None and (allocation.live or allocation.kind != "registered"):
            offset = address - allocation.address
            require(allocation.live and offset + count <= allocation.size, error)
            kind = "device" if allocation.kind == "device" else "pinned"
            return Span(kind, allocation.data[offset : offset + count], allocation.range(offset, count))
        require(address != 0 and not DEVICE_BASE <= address < DEVICE_TOP, error)
        return Span("pageable", host_bytes(address, count))  # CUDA cannot check it either

    def unread(self) -> list[Cells]:
        """Device memory that something was copied into and nothing has read."""
        return [each.cells for each in self._by_address.values() if each.cells.filled and not each.cells.read]

    def live(self) -> list[Allocation]:
        return [allocation for allocation in self._by_address.values() if allocation.live]


def host_bytes(address: int, count: int) -> np.ndarray:
    """A view of the process's memory. The caller keeps it alive, as for a real copy."""
    return np.ctypeslib.as_array((ctypes.c_ubyte * count).from_address(address))


def address_of(pointer: Any) -> int:
    """A ``void*`` argument as cuda-python takes it: an integer, a handle, None, or an object with a buffer."""
    if pointer is None or (hasattr(pointer, "__int__") and not isinstance(pointer, np.ndarray)):
        return int(pointer or 0)
    return np.asarray(memoryview(pointer)).ctypes.data
