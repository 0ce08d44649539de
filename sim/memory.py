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

DEVICE_BASE, DEVICE_TOP = 0x700_0000_0000, 0xE00_0000_0000  # no operating system maps a process's memory here
ALIGNMENT, FRESH, FREED = 512, 0xCD, 0xDD


@dataclass
class Allocation:
    """``size`` bytes at ``address``; ``kind`` is ``device`` or ``pinned``; ``site`` is the line that made it."""

    address: int
    size: int
    kind: str
    site: str
    data: np.ndarray = field(repr=False)
    live: bool = True


class Span(NamedTuple):
    """A checked range of memory: device, pinned or pageable, and a view of its bytes."""

    kind: str
    view: np.ndarray


class AddressSpace:
    """All memory that CUDA knows of. Sizes of device memory are charged at ``scale`` times their bytes."""

    def __init__(self, device_bytes: int, scale: float) -> None:
        self.device_bytes, self.scale, self.charged = device_bytes, scale, 0
        self._next = DEVICE_BASE
        self._addresses: list[int] = []
        self._by_address: dict[int, Allocation] = {}

    def allocate(self, size: int, kind: str, site: str) -> int:
        """The address of new memory; CUDA's error where the device has no room for it."""
        if kind == "device":
            require(self.charge(size * self.scale), cudaError_t.cudaErrorMemoryAllocation)
            try:
                data = np.full(size, FRESH, np.uint8)
            except MemoryError:  # the modelled GPU has more memory than this machine
                self.charge(-size * self.scale)
                raise CudaFailure(cudaError_t.cudaErrorMemoryAllocation) from None
            address = self._next
            self._next += -(-size // ALIGNMENT) * ALIGNMENT + ALIGNMENT  # a gap, so that overruns hit nothing
        else:
            block = np.zeros(size + ALIGNMENT, np.uint8)
            shift = -block.ctypes.data % ALIGNMENT
            data = block[shift : shift + size]
            address = data.ctypes.data
        if address not in self._by_address:
            insort(self._addresses, address)
        self._by_address[address] = Allocation(address, size, kind, site, data)
        return address

    def charge(self, nbytes: float) -> bool:
        """Count ``nbytes`` of device memory as used; False and nothing counted where there is no room."""
        if self.charged + nbytes > self.device_bytes:
            return False
        self.charged += int(nbytes)
        return True

    def free(self, address: int, kind: str) -> int:
        """The size of what is freed; an invalid value where ``address`` is not the start of a live allocation of ``kind``."""
        allocation = self._by_address.get(address)
        if allocation is None or not allocation.live or allocation.kind != kind:
            raise CudaFailure(cudaError_t.cudaErrorInvalidValue)
        allocation.live = False
        allocation.data[:] = FREED
        if kind == "device":
            self.charged -= int(allocation.size * self.scale)
            allocation.data = np.empty(0, np.uint8)
        return allocation.size

    def span(self, address: int, count: int, error: cudaError_t = cudaError_t.cudaErrorInvalidValue) -> Span:
        """``count`` bytes at ``address``; ``error`` where CUDA would not take them: freed, out of range, unknown, null."""
        position = bisect_right(self._addresses, address) - 1
        if position >= 0:
            allocation = self._by_address[self._addresses[position]]
            offset = address - allocation.address
            if offset < max(allocation.size, 1):
                require(allocation.live and offset + count <= allocation.size, error)
                return Span(allocation.kind, allocation.data[offset : offset + count])
        require(address != 0 and not DEVICE_BASE <= address < DEVICE_TOP, error)
        # Pageable host memory: CUDA cannot check it either. The caller keeps it alive, as for a real copy.
        memory = (ctypes.c_ubyte * count).from_address(address)
        return Span("pageable", np.frombuffer(memory, np.uint8))  # type: ignore[call-overload]

    def live(self) -> list[Allocation]:
        return [allocation for allocation in self._by_address.values() if allocation.live]


def address_of(pointer: Any) -> int:
    """A ``void*`` argument as cuda-python takes it: an integer, a handle, None, or an object with a buffer."""
    if pointer is None or (hasattr(pointer, "__int__") and not isinstance(pointer, np.ndarray)):
        return int(pointer or 0)
    return np.asarray(memoryview(pointer)).ctypes.data
