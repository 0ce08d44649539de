"""A drop-in for ``cuda.bindings.runtime``: the names, argument orders and results that TensorRT scripts use.

Every call returns ``(error, *results)``, as cuda-python's do. The rules are CUDA's; ``tests/test_cudart_rules.py`` runs
the same checks on this module and, where there is a GPU, on the real one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any

import numpy as np

from sim.clock import HostThread
from sim.enums import FLAGS, HANDLES, Handle, cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode, cudaStreamCaptureStatus
from sim.memory import address_of
from sim.simulator import Simulator, simulator, site
from sim.work import RELAXED, Capture, CudaFailure, Event, Graph, Operation, Piece, Stream, Work, disturb, require


class Calls:
    """CUDA's calls as methods: what each does in the simulated process while the calling thread has its turn.

    They return the results alone, and raise ``CudaFailure``. The module's functions are made of them, below.
    """

    def __init__(self, sim: Simulator) -> None:
        self.sim, self.device, self.gpu, self.space = sim, sim.device, sim.gpu, sim.space

    @property
    def thread(self) -> HostThread:
        return self.sim.clock.thread()

    def cudaGetDeviceCount(self) -> int:
        return 1

    def cudaGetDevice(self) -> int:
        return 0

    def cudaSetDevice(self, device: int) -> None:
        require(device == 0, cudaError_t.cudaErrorInvalidDevice)

    def cudaGetDeviceProperties(self, device: int) -> SimpleNamespace:
        require(device == 0, cudaError_t.cudaErrorInvalidDevice)
        model = self.device
        found = SimpleNamespace(name=model.name.encode(), totalGlobalMem=model.memory_bytes, asyncEngineCount=2)
        found.multiProcessorCount, (found.major, found.minor) = model.multiprocessors, model.capability
        return found

    def cudaDriverGetVersion(self) -> int:
        return 12080

    def cudaRuntimeGetVersion(self) -> int:
        return 12080

    def cudaDeviceSynchronize(self) -> None:
        self.gpu.forbid_while_capturing(anywhere=True)
        self._wait(4, self.gpu.everything())

    def cudaMemGetInfo(self) -> tuple[int, int]:
        return self.space.device_bytes - self.space.charged, self.space.device_bytes

    def cudaMalloc(self, size: int) -> int:
        return self._allocate(size, "device") if size else 0

    def cudaFree(self, devPtr: Any) -> None:
        self._free(devPtr, "device")

    def cudaMallocHost(self, size: int) -> int:
        return self._allocate(size, "pinned")

    def cudaHostAlloc(self, size: int, flags: int) -> int:
        return self._allocate(size, "pinned")

    def cudaFreeHost(self, ptr: Any) -> None:
        self._free(ptr, "pinned")

    def _allocate(self, size: int, kind: str) -> int:
        self.gpu.forbid_while_capturing()
        self.thread.now += round(size * self.sim.scale * self.device.allocate_per_byte)
        return self.space.allocate(int(size), kind, site())

    def _free(self, pointer: Any, kind: str) -> None:
        """Freeing waits for the device: whatever still uses the memory is over before it goes."""
        address = address_of(pointer)
        if address != 0:
            self.gpu.forbid_while_capturing()
            self.gpu.wait(self.gpu.everything())
            size = self.space.free(address, kind)
            self.thread.now += round(size * self.sim.scale * self.device.allocate_per_byte)

    def cudaMemcpy(self, dst: Any, src: Any, count: int, kind: cudaMemcpyKind) -> None:
        self.gpu.check_legacy(self.gpu.legacy)
        self.gpu.forbid_while_capturing()
        operation, *memory = self._copy(dst, src, count, kind, self.gpu.legacy)
        if operation is not None and memory != ["device", "device"]:
            self.gpu.wait([operation])

    def cudaMemcpyAsync(self, dst: Any, src: Any, count: int, kind: cudaMemcpyKind, stream: Any) -> None:
        operation, target, source = self._copy(dst, src, count, kind, self.sim.stream(stream))
        if operation is not None and target == "pageable":
            self.gpu.wait([operation])
        elif operation is not None and source == "pageable":
            # staging ends with the copy, near enough; the copy itself may still be executed late
            self.thread.now = max(self.thread.now, operation.end)

    def _copy(self, dst: Any, src: Any, count: int, kind: cudaMemcpyKind, on: Stream) -> tuple[Operation | None, str, str]:
        """Enqueue a copy; the operation (None if it is captured) and the kinds of memory that it goes to and comes from.

        Of memory that CUDA knows it takes the direction from the pointers, whatever ``kind`` says (seen on an H200); with
        pageable memory ``kind`` must be right.
        """
        target, source = (self.space.span(address_of(pointer), int(count)) for pointer in (dst, src))
        direction = cudaMemcpyKind(2 * (source.kind == "device") + (target.kind == "device"))
        if "pageable" in (source.kind, target.kind):
            require(kind in (cudaMemcpyKind.cudaMemcpyDefault, direction))
        data = source.view
        if source.kind == "pageable" and on.capture is None:
            data = data.copy()  # staged before the call returns: the caller may reuse its memory at once
        nbytes = round(int(count) * self.sim.scale)
        unit = name = ("d2d", "h2d", "d2h", "d2d")[direction]
        if name == "d2d":
            unit, rate = "compute", self.device.memory_rate / 2  # it is read and written
        else:
            rate = self.device.copy_rates[name, source.kind if name == "h2d" else target.kind]
        pieces = (Piece(name, self.device.copy_latency + round(nbytes / rate)),)
        return self.gpu.enqueue(on, Work(unit, pieces, partial(np.copyto, target.view, data), nbytes)), target.kind, source.kind

    def cudaMemset(self, devPtr: Any, value: int, count: int) -> None:
        self._set(devPtr, value, count, self.gpu.legacy)

    def cudaMemsetAsync(self, devPtr: Any, value: int, count: int, stream: Any) -> None:
        self._set(devPtr, value, count, self.sim.stream(stream))

    def _set(self, pointer: Any, value: int, count: int, stream: Stream) -> None:
        target = self.space.span(address_of(pointer), int(count))
        require(target.kind == "device")
        duration = self.device.kernel_floor + round(count * self.sim.scale / self.device.memory_rate)
        self.gpu.enqueue(stream, Work("compute", (Piece("memset", duration),), partial(target.view.fill, value & 0xFF)))

    # -- what the host may wait for

    def _pending(self, stream: Stream) -> list[Operation]:
        """What is on a stream, for the host, which may not look at it during capture."""
        disturb(cudaError_t.cudaErrorStreamCaptureUnsupported, stream.capture)
        return self.gpu.pending(stream)

    def _recorded(self, event: Any) -> list[Operation]:
        """What an event stands for: nothing, and so nothing to wait for, if it was never recorded."""
        item = self.sim.lookup(event, Event)
        disturb(cudaError_t.cudaErrorCapturedEvent, item.captured and item.captured[0])
        return [item.operation] if item.operation is not None else []

    def _wait(self, kind: int, operations: list[Operation], stream: int = 0, event: int = 0) -> None:
        """Wait on the host and note it as a synchronization (kinds: see ``Trace.waits``)."""
        start = self.thread.now
        self.gpu.wait(operations)
        self.sim.trace.waits.append((start, self.thread.now, kind, stream, event))

    def _require_ready(self, operations: list[Operation]) -> None:
        require(all(operation.end <= self.thread.now for operation in operations), cudaError_t.cudaErrorNotReady)
        self.gpu.wait(operations)

    def cudaStreamCreate(self) -> Handle:
        return self.cudaStreamCreateWithFlags(FLAGS["cudaStreamDefault"])

    def cudaStreamCreateWithPriority(self, flags: int, priority: int) -> Handle:
        return self.cudaStreamCreateWithFlags(flags)

    def cudaStreamCreateWithFlags(self, flags: int) -> Handle:
        stream = Stream(flags != FLAGS["cudaStreamNonBlocking"])
        self.gpu.streams.append(stream)
        return self.sim.register("cudaStream_t", stream)

    def cudaStreamDestroy(self, stream: Any) -> None:
        """Forget a stream; what is still on it goes on."""
        item = self.sim.release(stream, Stream)
        if item.capture is not None:
            item.capture.invalidated = True
        self.gpu.streams.remove(item)
        self.gpu.destroyed = [s for s in (*self.gpu.destroyed, item) if s.tail is not None and not s.tail.done]

    def cudaStreamSynchronize(self, stream: Any) -> None:
        item = self.sim.stream(stream)
        self._wait(3, self._pending(item), item.handle)

    def cudaStreamQuery(self, stream: Any) -> None:
        self._require_ready(self._pending(self.sim.stream(stream)))

    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> None:
        self.gpu.wait_event(self.sim.stream(stream), self.sim.lookup(event, Event))

    def cudaEventCreate(self) -> Handle:
        return self.cudaEventCreateWithFlags(FLAGS["cudaEventDefault"])

    def cudaEventCreateWithFlags(self, flags: int) -> Handle:
        return self.sim.register("cudaEvent_t", Event(not flags & FLAGS["cudaEventDisableTiming"]))

    def cudaEventDestroy(self, event: Any) -> None:
        self.sim.release(event, Event)

    def cudaEventRecord(self, event: Any, stream: Any) -> None:
        self.gpu.record(self.sim.lookup(event, Event), self.sim.stream(stream))

    def cudaEventSynchronize(self, event: Any) -> None:
        self._wait(1, self._recorded(event), event=int(event))

    def cudaEventQuery(self, event: Any) -> None:
        self._require_ready(self._recorded(event))

    def cudaEventElapsedTime(self, start: Any, end: Any) -> float:
        events = [self.sim.lookup(event, Event) for event in (start, end)]
        require(all(event.timing and event.operation for event in events), cudaError_t.cudaErrorInvalidResourceHandle)
        begun, ended = (event.operation for event in events)
        self._require_ready([begun, ended])
        return (ended.end - begun.end) / 1e6

    def cudaStreamBeginCapture(self, stream: Any, mode: cudaStreamCaptureMode) -> None:
        item = self.sim.stream(stream)
        require(item is not self.gpu.legacy, cudaError_t.cudaErrorStreamCaptureUnsupported)
        require(item.capture is None)
        item.capture = Capture(item, mode, self.thread, {item: frozenset()})
        self.gpu.captures.append(item.capture)

    def cudaStreamEndCapture(self, stream: Any) -> Handle:
        item: Any = self.sim.stream(stream)
        capture = item.capture
        require(capture is not None)
        if capture.mode != RELAXED:
            require(capture.thread is self.thread, cudaError_t.cudaErrorStreamCaptureWrongThread)
        if capture.origin is not item:
            disturb(cudaError_t.cudaErrorStreamCaptureUnmatched, capture)
        for member in capture.streams:
            member.capture = None
        self.gpu.captures.remove(capture)
        capture.require_valid()
        require(capture.is_joined(), cudaError_t.cudaErrorStreamCaptureUnjoined)
        return self.sim.register("cudaGraph_t", Graph(capture.nodes))

    def cudaStreamIsCapturing(self, stream: Any) -> cudaStreamCaptureStatus:
        capture = self.sim.stream(stream).capture
        return cudaStreamCaptureStatus(0 if capture is None else 2 if capture.invalidated else 1)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Handle:
        return self.sim.register("cudaGraphExec_t", Graph(list(self.sim.lookup(graph, Graph).nodes)))

    def cudaGraphUpload(self, graphExec: Any, stream: Any) -> None:
        self.sim.lookup(graphExec, Graph), self.sim.stream(stream)

    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> None:
        """Run a graph's nodes after the stream's earlier work; the stream goes on after all of them."""
        graph, item = self.sim.lookup(graphExec, Graph), self.sim.stream(stream)
        require(item.capture is None, cudaError_t.cudaErrorNotSupported)  # CUDA has child graphs, the ladder does not
        self.gpu.check_legacy(item)
        roots = self.gpu.pending(item)
        operations: list[Operation] = []
        for work, dependencies in graph.nodes:
            after = [operations[index] for index in dependencies] or roots
            operations.append(self.gpu.submit(item, work, after))
        self.gpu.submit(item, Work(""), [*roots, *operations])

    def cudaGraphDestroy(self, graph: Any) -> None:
        self.sim.release(graph, Graph)

    def cudaGraphExecDestroy(self, graphExec: Any) -> None:
        self.sim.release(graphExec, Graph)

    # -- errors: these are no calls to the device, take no time, and return the whole result

    def cudaGetLastError(self) -> tuple[cudaError_t]:
        error, self.sim.last_error = self.sim.last_error, cudaError_t.cudaSuccess
        return (error,)

    def cudaPeekAtLastError(self) -> tuple[cudaError_t]:
        return (self.sim.last_error,)

    def cudaGetErrorName(self, error: cudaError_t) -> tuple[cudaError_t, bytes]:
        return cudaError_t.cudaSuccess, cudaError_t(error).name.encode()

    def cudaGetErrorString(self, error: cudaError_t) -> tuple[cudaError_t, bytes]:
        return cudaError_t.cudaSuccess, cudaError_t(error).meaning.encode()


def _function(method: Callable[..., Any]) -> Callable[..., tuple]:
    """The CUDA call that ``method`` makes: in turn, counted, timed and traced. Returns ``(error, *results)``."""
    name, signature = method.__name__, inspect.signature(method)
    results = {"None": 0, "tuple[int, int]": 2}.get(signature.return_annotation, 1)

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> tuple:
        sim = simulator()
        if "cudaError_t" in signature.return_annotation:
            return method(Calls(sim), *args, **kwargs)
        with sim.clock.turn() as thread:
            start = thread.now
            sim.trace.correlation += 1
            correlation, cost = sim.trace.correlation, sim.device.call_cost(name)
            sim.interpret(thread, min(cost, sim.device.call))
            thread.now += max(0, cost - sim.device.call)  # inside the driver, which runs without the interpreter lock
            sim.calls += 1
            error, found = cudaError_t.cudaSuccess, (None,) * results
            try:
                if sim.calls in sim.failures:
                    raise CudaFailure(sim.failures[sim.calls])
                value = method(Calls(sim), *args, **kwargs)
                found = value if results > 1 else (value,) * results
            except CudaFailure as failure:
                error = failure.error
                if error != cudaError_t.cudaErrorNotReady:  # a state, not an error: it is not remembered
                    sim.last_error = error
            sim.trace.calls.append((start, thread.now, name, thread.index, correlation, int(error)))
        return (error, *found)

    call.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return call


globals().update(FLAGS | HANDLES)
globals().update({name: _function(method) for name, method in vars(Calls).items() if name.startswith("cuda")})
