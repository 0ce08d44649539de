"""CUDA's calls: the device, streams and events. Memory and graphs have their own modules; ``cudart`` makes functions of all.

A method does what the call does in the simulated process while the calling thread has its turn. It returns the results
alone, and raises ``CudaFailure``.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

from sim.clock import HostThread
from sim.enums import FLAGS, Handle, cudaDeviceAttr, cudaError_t, require
from sim.simulator import Simulator
from sim.sites import site
from sim.work import HOST_FUNCTION, Event, Operation, Stream, Work, disturb

LEAST_PRIORITY, GREATEST_PRIORITY = 0, -5


class Calls:
    def __init__(self, sim: Simulator) -> None:
        self.sim, self.device, self.gpu, self.space = sim, sim.device, sim.gpu, sim.space

    @property
    def thread(self) -> HostThread:
        return self.sim.clock.thread()


class DeviceCalls(Calls):
    def cudaGetDeviceCount(self) -> int:
        return 1

    def cudaGetDevice(self) -> int:
        return 0

    def cudaSetDevice(self, device: int) -> None:
        require(device == 0, cudaError_t.cudaErrorInvalidDevice)

    def cudaGetDeviceFlags(self) -> int:
        return 0

    def cudaSetDeviceFlags(self, flags: int) -> None:
        require(0 <= flags < 0x100)

    def cudaGetDeviceProperties(self, device: int) -> SimpleNamespace:
        require(device == 0, cudaError_t.cudaErrorInvalidDevice)
        model = self.device
        found = SimpleNamespace(name=model.name.encode(), totalGlobalMem=model.memory_bytes, asyncEngineCount=2)
        found.multiProcessorCount, (found.major, found.minor) = model.multiprocessors, model.capability
        return found

    def cudaDeviceGetAttribute(self, attr: cudaDeviceAttr, device: int) -> int:
        value = cudaDeviceAttr(attr).meaning
        properties = self.cudaGetDeviceProperties(device)
        return getattr(properties, value) if isinstance(value, str) else value

    def cudaDeviceGetStreamPriorityRange(self) -> tuple[int, int]:
        return LEAST_PRIORITY, GREATEST_PRIORITY

    def cudaDriverGetVersion(self) -> int:
        return 12080

    def cudaRuntimeGetVersion(self) -> int:
        return 12080

    def cudaDeviceSynchronize(self) -> None:
        self.gpu.forbid_while_capturing(anywhere=True)
        self._wait(4, self.gpu.everything())

    def cudaProfilerStart(self) -> None:
        """Nothing to switch on: the whole run is in the trace."""

    def cudaProfilerStop(self) -> None:
        """As ``cudaProfilerStart``."""

    def _wait(self, kind: int, operations: list[Operation], stream: int = 0, event: int = 0) -> None:
        """Wait on the host and note it as a synchronization (kinds: see ``Trace.waits``)."""
        start = self.thread.now
        self.gpu.wait(operations)
        self.sim.trace.waits.append((start, self.thread.now, kind, stream, event))


class StreamCalls(DeviceCalls):
    def cudaStreamCreate(self) -> Handle:
        return self.cudaStreamCreateWithFlags(FLAGS["cudaStreamDefault"])

    def cudaStreamCreateWithFlags(self, flags: int) -> Handle:
        return self.cudaStreamCreateWithPriority(flags, 0)

    def cudaStreamCreateWithPriority(self, flags: int, priority: int) -> Handle:
        require(flags in (FLAGS["cudaStreamDefault"], FLAGS["cudaStreamNonBlocking"]))
        stream = Stream(flags == FLAGS["cudaStreamDefault"], min(max(priority, GREATEST_PRIORITY), LEAST_PRIORITY))
        self.gpu.streams.append(stream)
        return self.sim.register("cudaStream_t", stream)

    def cudaStreamGetPriority(self, hStream: Any) -> int:
        return self.sim.stream(hStream).priority

    def cudaStreamGetFlags(self, hStream: Any) -> int:
        return FLAGS["cudaStreamDefault" if self.sim.stream(hStream).blocking else "cudaStreamNonBlocking"]

    def cudaStreamGetId(self, hStream: Any) -> int:
        return self.sim.stream(hStream).handle

    def cudaStreamDestroy(self, stream: Any) -> None:
        """Forget a stream; what is still on it goes on. A capture that began on it is over."""
        item = self.sim.release(stream, Stream)
        if item.capture is not None:
            item.capture.invalidated = True
            if item.capture.origin is item:
                self.gpu.end(item.capture)
        self.gpu.streams.remove(item)
        self.gpu.retire(item)

    def cudaStreamSynchronize(self, stream: Any) -> None:
        item = self.sim.stream(stream)
        self._wait(3, self._pending(item), item.handle)

    def cudaStreamQuery(self, stream: Any) -> None:
        self._require_ready(self._pending(self.sim.stream(stream)))

    def _pending(self, stream: Stream) -> list[Operation]:
        """What is on a stream, for the host, which may not look at any during capture. On the default stream that is the
        blocking streams' work too; what the default stream still does is not on them."""
        self.gpu.check_legacy(stream)
        disturb(cudaError_t.cudaErrorStreamCaptureUnsupported, stream.capture)
        self.gpu.forbid_while_capturing()
        return self.gpu.pending(stream) if stream is self.gpu.legacy else stream.last

    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> None:
        item = self.sim.stream(stream)
        require(flags in (FLAGS["cudaEventWaitDefault"], FLAGS["cudaEventWaitExternal"]))
        found = self.sim.lookup(event, Event)
        require(flags == 0 or item.capture is not None, cudaError_t.cudaErrorIllegalState)
        if found.operation is None and found.captured is None:
            self.sim.waited.setdefault(found, site())
        self.gpu.wait_event(item, found)

    def cudaLaunchHostFunc(self, stream: Any, fn: Any, userData: Any) -> None:
        """``fn``: a C function, as ctypes makes one of Python's. It is called when the work before it is over."""
        call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(int(fn))
        work = Work("", (), lambda: call(int(userData or 0)), what=HOST_FUNCTION, site=site())
        self.gpu.enqueue(self.sim.stream(stream), work)
        self.gpu.calls_the_host = True

    def cudaEventCreate(self) -> Handle:
        return self.cudaEventCreateWithFlags(FLAGS["cudaEventDefault"])

    def cudaEventCreateWithFlags(self, flags: int) -> Handle:
        untimed = flags & FLAGS["cudaEventDisableTiming"]
        require(0 <= flags < 8 and (untimed or not flags & FLAGS["cudaEventInterprocess"]))
        return self.sim.register("cudaEvent_t", Event(not untimed))

    def cudaEventDestroy(self, event: Any) -> None:
        self.sim.release(event, Event)

    def cudaEventRecord(self, event: Any, stream: Any) -> None:
        self.gpu.record(self.sim.lookup(event, Event), self.sim.stream(stream))

    def cudaEventRecordWithFlags(self, event: Any, stream: Any, flags: int) -> None:
        require(flags in (FLAGS["cudaEventRecordDefault"], FLAGS["cudaEventRecordExternal"]))
        self.cudaEventRecord(event, stream)

    def cudaEventSynchronize(self, event: Any) -> None:
        self._wait(1, self._recorded(event), event=int(event or 0))

    def cudaEventQuery(self, event: Any) -> None:
        self._require_ready(self._recorded(event))

    def cudaEventElapsedTime(self, start: Any, end: Any) -> float:
        events = [self.sim.lookup(event, Event) for event in (start, end)]
        for event in events:
            if event.captured is not None:
                require(event.captured[0] not in self.gpu.captures, cudaError_t.cudaErrorCapturedEvent)
                require(False)
        require(all(event.timing and event.operation for event in events), cudaError_t.cudaErrorInvalidResourceHandle)
        begun, ended = (event.operation for event in events)
        self._require_ready([begun, ended])
        return (ended.end - begun.end) / 1e6

    def _recorded(self, event: Any) -> list[Operation]:
        """What an event stands for: nothing, and so nothing to wait for, if it was never recorded."""
        item = self.sim.lookup(event, Event)
        if item.captured is not None:
            require(item.captured[0] in self.gpu.captures)
            disturb(cudaError_t.cudaErrorCapturedEvent, item.captured[0])
        self.gpu.forbid_while_capturing()
        if item.operation is None:
            self.sim.waited.setdefault(item, site())
        return [item.operation] if item.operation is not None else []

    def _require_ready(self, operations: list[Operation]) -> None:
        require(all(operation.end <= self.thread.now for operation in operations), cudaError_t.cudaErrorNotReady)
        self.gpu.wait(operations)
