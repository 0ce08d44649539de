"""CUDA's calls that allocate, free, copy and set memory."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from sim.calls import Calls
from sim.enums import cudaError_t, cudaMemcpyKind, cudaMemoryType, require
from sim.memory import FREED, Allocation, Span, address_of
from sim.races import TO_DEVICE
from sim.sites import site
from sim.work import Operation, Piece, Stream, Work

PITCH = 512
STAGED = 64 << 10  # pageable bytes that the driver keeps, however busy the stream is; for more the call waits


class MemoryCalls(Calls):
    def cudaMemGetInfo(self) -> tuple[int, int]:
        return self.space.device_bytes - self.space.charged, self.space.device_bytes

    def cudaMalloc(self, size: int) -> int:
        return self._allocate(size, "device")

    def cudaMallocPitch(self, width: int, height: int) -> tuple[int, int]:
        pitch = -(-width // PITCH) * PITCH
        return self._allocate(pitch * height, "device"), pitch

    def cudaMallocHost(self, size: int) -> int:
        return self._allocate(size, "pinned")

    def cudaHostAlloc(self, size: int, flags: int) -> int:
        require(0 <= flags < 8)
        return self._allocate(size, "pinned")

    def cudaFree(self, devPtr: Any) -> None:
        self._free(devPtr, "device")

    def cudaFreeHost(self, ptr: Any) -> None:
        self._free(ptr, "pinned")

    def _allocate(self, size: int, kind: str) -> int:
        self.gpu.forbid_while_capturing()
        self.thread.now += round(size * self.sim.scale * self.device.allocate_per_byte)
        return self.space.allocate(int(size), kind, site()) if size else 0

    def _free(self, pointer: Any, kind: str) -> None:
        """Freeing waits for the device: whatever still uses the memory is over before it goes."""
        self.gpu.forbid_while_capturing()
        if address := address_of(pointer):
            self.gpu.wait(self.gpu.everything())
            allocation = self.space.free(address, kind)
            self._forget(allocation)
            self.thread.now += round(allocation.size * self.sim.scale * self.device.allocate_per_byte)

    def _forget(self, allocation: Allocation) -> None:
        """Who reads freed memory shall see it; device memory is given back to this machine."""
        allocation.data[:] = FREED
        if allocation.kind == "device":
            allocation.data = np.empty(0, np.uint8)

    def cudaMallocAsync(self, size: int, hStream: Any) -> int:
        """Memory that exists from here on in the stream's order."""
        stream = self.sim.stream(hStream)
        require(stream.capture is None, cudaError_t.cudaErrorNotSupported)
        address = self.space.allocate(int(size), "device", site()) if size else 0
        if size:
            made = self.space.span(address, int(size)).ranges
            self.gpu.enqueue(stream, Work("", what="the allocation", site=site(), writes=made))
        return address

    def cudaFreeAsync(self, devPtr: Any, hStream: Any) -> None:
        stream, address = self.sim.stream(hStream), address_of(devPtr)
        require(stream.capture is None, cudaError_t.cudaErrorNotSupported)
        allocation = self.space.free(address, "device")
        gone = allocation.range(0, allocation.size)
        self.gpu.enqueue(stream, Work("", (), partial(self._forget, allocation), what="the freeing", site=site(), writes=gone))

    def cudaHostRegister(self, ptr: Any, size: int, flags: int) -> None:
        self.gpu.forbid_while_capturing()
        self.space.register(address_of(ptr), int(size), site())

    def cudaHostUnregister(self, ptr: Any) -> None:
        self.gpu.forbid_while_capturing()
        self.gpu.wait(self.gpu.everything())
        self.space.free(address_of(ptr), "registered", cudaError_t.cudaErrorHostMemoryNotRegistered)

    def cudaHostGetDevicePointer(self, pHost: Any, flags: int) -> int:
        require(self.space.span(address_of(pHost), 1).kind == "pinned")
        return address_of(pHost)

    def cudaPointerGetAttributes(self, ptr: Any) -> SimpleNamespace:
        found = self.space.find(address_of(ptr))
        if found is None or not found.live:
            kind, on_device, on_host = cudaMemoryType.cudaMemoryTypeUnregistered, 0, address_of(ptr)
        elif found.kind == "device":
            kind, on_device, on_host = cudaMemoryType.cudaMemoryTypeDevice, address_of(ptr), 0
        else:
            kind, on_device, on_host = cudaMemoryType.cudaMemoryTypeHost, address_of(ptr), address_of(ptr)
        return SimpleNamespace(type=kind, device=0 if kind else -2, devicePointer=on_device, hostPointer=on_host)

    # -- copies

    def cudaMemcpy(self, dst: Any, src: Any, count: int, kind: cudaMemcpyKind) -> None:
        self._copy_now(self._flat(dst, count), self._flat(src, count), kind)

    def cudaMemcpyAsync(self, dst: Any, src: Any, count: int, kind: cudaMemcpyKind, stream: Any) -> None:
        self._copy_later(self._flat(dst, count), self._flat(src, count), kind, self.sim.stream(stream))

    def cudaMemcpy2D(self, dst: Any, dpitch: int, src: Any, spitch: int, width: int, height: int, kind: cudaMemcpyKind) -> None:
        self._copy_now(self._rows(dst, dpitch, width, height), self._rows(src, spitch, width, height), kind)

    def cudaMemcpy2DAsync(
        self, dst: Any, dpitch: int, src: Any, spitch: int, width: int, height: int, kind: cudaMemcpyKind, stream: Any
    ) -> None:
        target, source = self._rows(dst, dpitch, width, height), self._rows(src, spitch, width, height)
        self._copy_later(target, source, kind, self.sim.stream(stream))

    def _flat(self, pointer: Any, count: int) -> Span | None:
        """The bytes at a pointer; None where there are none, whatever the pointer."""
        return self.space.span(address_of(pointer), int(count)) if count else None

    def _rows(self, pointer: Any, pitch: int, width: int, height: int) -> Span | None:
        require(width <= pitch)
        whole = self._flat(pointer, width and height and pitch * (height - 1) + width)
        return whole and whole.rows(width, height, pitch)

    def _copy_now(self, target: Span | None, source: Span | None, kind: cudaMemcpyKind) -> None:
        self.gpu.check_legacy(self.gpu.legacy)
        if target is not None and source is not None:
            operation = self._copy(target, source, kind, self.gpu.legacy)
            if operation is not None and (target.kind, source.kind) != ("device", "device"):
                self.gpu.wait([operation])

    def _copy_later(self, target: Span | None, source: Span | None, kind: cudaMemcpyKind, stream: Stream) -> None:
        if target is None or source is None:
            return
        if (operation := self._copy(target, source, kind, stream)) is None:
            return
        if target.kind == "pageable" or "device" not in (target.kind, source.kind):
            self.gpu.wait([operation])
        elif source.kind == "pageable" and source.view.size * self.sim.scale > STAGED:
            # staging ends with the copy, near enough; the copy itself may still be executed late
            self.thread.now = max(self.thread.now, operation.end)

    def _copy(self, target: Span, source: Span, kind: cudaMemcpyKind, on: Stream) -> Operation | None:
        """Enqueue a copy; None if it is captured.

        Of memory that CUDA knows it takes the direction from the pointers, whatever ``kind`` says (seen on an H200). With
        pageable memory ``kind`` must be right, but for page-locked memory, which is the host's and the device's.
        """
        direction = cudaMemcpyKind(2 * (source.kind == "device") + (target.kind == "device"))
        if "pageable" in (source.kind, target.kind) and kind != cudaMemcpyKind.cudaMemcpyDefault:
            sides = ((source, int(kind) // 2), (target, int(kind) % 2))
            require(0 <= kind < 4 and all(side.kind == "pinned" or where == (side.kind == "device") for side, where in sides))
        data = source.view
        if source.kind == "pageable" and on.capture is None:
            data = data.copy()  # staged before the call returns: the caller may reuse its memory at once
        nbytes = round(source.view.size * self.sim.scale)
        unit = name = ("d2d", "h2d", "d2h", "d2d")[direction]
        if name == "d2d":
            unit, rate = "compute", self.device.memory_rate / 2  # it is read and written
        else:
            rate = self.device.copy_rates[name, source.kind if name == "h2d" else target.kind]
        pieces = (Piece(name, self.device.copy_latency + round(nbytes / rate)),)
        if kind not in (cudaMemcpyKind.cudaMemcpyDefault, direction):
            self.sim.remark(f"misnamed: the copy at {site()} is called {cudaMemcpyKind(kind).name} and is {direction.name}")
        what = ("the copy on the host", TO_DEVICE, "the copy to the host", "the copy on the device")[direction]
        run = partial(np.copyto, target.view, data)
        return self.gpu.enqueue(on, Work(unit, pieces, run, nbytes, what, site(), source.ranges, target.ranges))

    def cudaMemset(self, devPtr: Any, value: int, count: int) -> None:
        self._set(devPtr, value, count, self.gpu.legacy)

    def cudaMemsetAsync(self, devPtr: Any, value: int, count: int, stream: Any) -> None:
        self._set(devPtr, value, count, self.sim.stream(stream))

    def _set(self, pointer: Any, value: int, count: int, stream: Stream) -> None:
        target = self._flat(pointer, count)
        if target is None:
            return
        require(target.kind != "pageable")
        pieces = (Piece("memset", self.device.kernel_floor + round(count * self.sim.scale / self.device.memory_rate)),)
        run = partial(target.view.fill, value & 0xFF)
        self.gpu.enqueue(stream, Work("compute", pieces, run, 0, "the memset", site(), writes=target.ranges))
