"""A drop-in for ``cuda.bindings.runtime``: the names, argument orders and results that TensorRT scripts use.

Every call returns ``(error, *results)``, as cuda-python's do. The rules are CUDA's; ``tests/test_cudart_rules.py`` runs
the same checks on this module and, where there is a GPU, on the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from common.sim.enums import (
    ERROR_TEXT,
    FLAGS,
    cudaError_t,
    cudaEvent_t,
    cudaGraph_t,
    cudaGraphExec_t,
    cudaMemcpyKind,
    cudaStream_t,
    cudaStreamCaptureMode,
    cudaStreamCaptureStatus,
)
from common.sim.memory import Span, address_of
from common.sim.simulator import cuda_call, simulator, site
from common.sim.work import CudaFailure, Event, Graph, Operation, Piece, Stream, Work

globals().update(FLAGS)
INVALID_VALUE = cudaError_t.cudaErrorInvalidValue


# -- device


@cuda_call(1)
def cudaGetDeviceCount() -> int:
    return 1


@cuda_call(1)
def cudaGetDevice() -> int:
    return 0


@cuda_call()
def cudaSetDevice(device: int) -> None:
    if device != 0:
        raise CudaFailure(cudaError_t.cudaErrorInvalidDevice)


@cuda_call(1)
def cudaGetDeviceProperties(device: int) -> SimpleNamespace:
    if device != 0:
        raise CudaFailure(cudaError_t.cudaErrorInvalidDevice)
    model = simulator().device
    return SimpleNamespace(
        name=model.name.encode(), major=model.capability[0], minor=model.capability[1], asyncEngineCount=2,
        multiProcessorCount=model.multiprocessors, totalGlobalMem=model.memory_bytes,
    )


@cuda_call(1)
def cudaDriverGetVersion() -> int:
    return 12080


@cuda_call(1)
def cudaRuntimeGetVersion() -> int:
    return 12080


@cuda_call()
def cudaDeviceSynchronize() -> None:
    sim = simulator()
    sim.gpu.forbid_while_capturing(anywhere=True)
    _wait(4, sim.gpu.everything())


@cuda_call(2)
def cudaMemGetInfo() -> tuple[int, int]:
    space = simulator().space
    return space.device_bytes - space.charged, space.device_bytes


# -- errors


def cudaGetLastError() -> tuple[cudaError_t]:
    error = cudaPeekAtLastError()
    simulator().last_error = cudaError_t.cudaSuccess
    return error


def cudaPeekAtLastError() -> tuple[cudaError_t]:
    return (simulator().last_error,)


def cudaGetErrorName(error: cudaError_t) -> tuple[cudaError_t, bytes]:
    return cudaError_t.cudaSuccess, cudaError_t(error).name.encode()


def cudaGetErrorString(error: cudaError_t) -> tuple[cudaError_t, bytes]:
    return cudaError_t.cudaSuccess, ERROR_TEXT[int(error)].encode()


# -- memory


def _allocate(size: int, kind: str) -> int:
    sim = simulator()
    sim.gpu.forbid_while_capturing()
    sim.clock.thread().now += round(size * sim.scale * sim.device.allocate_per_byte)
    allocation = sim.space.allocate(int(size), kind, site())
    if allocation is None:
        raise CudaFailure(cudaError_t.cudaErrorMemoryAllocation)
    return allocation.address


def _free(pointer: Any, kind: str) -> None:
    """Freeing waits for the device: whatever still uses the memory is over before it goes."""
    sim = simulator()
    address = address_of(pointer)
    if address == 0:
        return
    sim.gpu.forbid_while_capturing()
    sim.gpu.wait(sim.gpu.everything())
    allocation = sim.space.find(address)
    if allocation is None or not sim.space.free(address, kind):
        raise CudaFailure(INVALID_VALUE)
    sim.clock.thread().now += round(allocation.size * sim.scale * sim.device.allocate_per_byte)


@cuda_call(1)
def cudaMalloc(size: int) -> int:
    return _allocate(size, "device") if size else 0


@cuda_call()
def cudaFree(devPtr: Any) -> None:
    _free(devPtr, "device")


@cuda_call(1)
def cudaMallocHost(size: int) -> int:
    return _allocate(size, "pinned")


@cuda_call(1)
def cudaHostAlloc(size: int, flags: int) -> int:
    return _allocate(size, "pinned")


@cuda_call()
def cudaFreeHost(ptr: Any) -> None:
    _free(ptr, "pinned")


def _copy(dst: Any, src: Any, count: int, kind: cudaMemcpyKind, stream: Stream) -> tuple[Operation | None, Span, Span]:
    """Enqueue a copy. Of memory that CUDA knows it takes the direction from the pointers, whatever ``kind`` says (seen on
    an H200); with pageable memory ``kind`` must be right."""
    sim = simulator()
    target, source = sim.space.span(address_of(dst), int(count)), sim.space.span(address_of(src), int(count))
    if target is None or source is None:
        raise CudaFailure(INVALID_VALUE)
    on_device = (source.kind == "device", target.kind == "device")
    directions = {(False, False): 0, (False, True): 1, (True, False): 2, (True, True): 3}
    if "pageable" in (source.kind, target.kind) and kind not in (cudaMemcpyKind.cudaMemcpyDefault, directions[on_device]):
        raise CudaFailure(INVALID_VALUE)
    data = source.view
    if source.kind == "pageable" and stream.capture is None:
        data = data.copy()  # staged before the call returns: the caller may reuse its memory at once

    def run() -> None:
        target.view[:] = data

    nbytes = round(int(count) * sim.scale)
    host = target if on_device == (True, False) else source
    if on_device[0] == on_device[1]:
        engine, name, duration = "compute", "d2d", 2 * nbytes / sim.device.memory_rate
    else:
        engine = name = "h2d" if on_device[1] else "d2h"
        duration = nbytes / sim.device.copy_rates[name, host.kind]
    pieces = (Piece(name, sim.device.copy_latency + round(duration)),)
    work = Work(engine, pieces, run, (source,), (target,), nbytes)
    return sim.gpu.enqueue(stream, work), target, source


@cuda_call()
def cudaMemcpy(dst: Any, src: Any, count: int, kind: cudaMemcpyKind) -> None:
    sim = simulator()
    sim.gpu.check_legacy(sim.gpu.legacy)
    sim.gpu.forbid_while_capturing()
    operation, target, source = _copy(dst, src, count, kind, sim.gpu.legacy)
    if operation is not None and not (target.kind == source.kind == "device"):
        sim.gpu.wait([operation])


@cuda_call()
def cudaMemcpyAsync(dst: Any, src: Any, count: int, kind: cudaMemcpyKind, stream: Any) -> None:
    operation, target, source = _copy(dst, src, count, kind, simulator().stream(stream))
    if operation is not None and "pageable" in (target.kind, source.kind):
        if target.kind == "pageable":
            simulator().gpu.wait([operation])
        else:  # staging ends with the copy, near enough; the copy itself may still be executed late
            thread = simulator().clock.thread()
            thread.now = max(thread.now, operation.end)


def _set(pointer: Any, value: int, count: int, stream: Stream) -> None:
    sim = simulator()
    target = sim.space.span(address_of(pointer), int(count))
    if target is None or target.kind != "device":
        raise CudaFailure(INVALID_VALUE)

    def run() -> None:
        target.view[:] = value & 0xFF

    duration = sim.device.kernel_floor + round(count * sim.scale / sim.device.memory_rate)
    sim.gpu.enqueue(stream, Work("compute", (Piece("memset", duration),), run, (), (target,)))


@cuda_call()
def cudaMemset(devPtr: Any, value: int, count: int) -> None:
    _set(devPtr, value, count, simulator().gpu.legacy)


@cuda_call()
def cudaMemsetAsync(devPtr: Any, value: int, count: int, stream: Any) -> None:
    _set(devPtr, value, count, simulator().stream(stream))


# -- streams


def _wait(kind: int, operations: list[Operation], stream: int = 0, event: int = 0) -> None:
    """Wait on the host and note it as a synchronization (kinds: see ``Trace.wait``)."""
    sim = simulator()
    thread = sim.clock.thread()
    start = thread.now
    sim.gpu.wait(operations)
    sim.trace.wait(kind, start, thread.now, stream, event)


@cuda_call(1)
def cudaStreamCreate() -> cudaStream_t:
    return _create_stream(0)


@cuda_call(1)
def cudaStreamCreateWithFlags(flags: int) -> cudaStream_t:
    return _create_stream(flags)


@cuda_call(1)
def cudaStreamCreateWithPriority(flags: int, priority: int) -> cudaStream_t:
    return _create_stream(flags)


def _create_stream(flags: int) -> Any:
    sim = simulator()
    stream = Stream(0, flags != FLAGS["cudaStreamNonBlocking"], site())
    sim.gpu.streams.append(stream)
    return sim.register(cudaStream_t, stream)


@cuda_call()
def cudaStreamDestroy(stream: Any) -> None:
    sim = simulator()
    item = sim.lookup(stream, Stream)
    if item.capture is not None:
        item.capture.invalidated = True
    sim.gpu.destroy(item)
    del sim.handles[int(stream)]


@cuda_call()
def cudaStreamSynchronize(stream: Any) -> None:
    sim = simulator()
    item = sim.stream(stream)
    _refuse_captured(item)
    _wait(3, sim.gpu.pending(item), item.handle)


@cuda_call()
def cudaStreamQuery(stream: Any) -> None:
    sim = simulator()
    item = sim.stream(stream)
    _refuse_captured(item)
    _ready(sim.gpu.pending(item))


def _refuse_captured(stream: Stream) -> None:
    if stream.capture is not None:
        stream.capture.invalidated = True
        raise CudaFailure(cudaError_t.cudaErrorStreamCaptureUnsupported)


def _ready(operations: list[Operation]) -> None:
    now = simulator().clock.thread().now
    if any(operation.end > now for operation in operations):
        raise CudaFailure(cudaError_t.cudaErrorNotReady)
    simulator().gpu.wait(operations)


@cuda_call()
def cudaStreamWaitEvent(stream: Any, event: Any, flags: int) -> None:
    sim = simulator()
    sim.gpu.wait_event(sim.stream(stream), sim.lookup(event, Event))


# -- events


@cuda_call(1)
def cudaEventCreate() -> cudaEvent_t:
    return simulator().register(cudaEvent_t, Event(0, True, site()))  # type: ignore[return-value]


@cuda_call(1)
def cudaEventCreateWithFlags(flags: int) -> cudaEvent_t:
    return simulator().register(cudaEvent_t, Event(0, not flags & FLAGS["cudaEventDisableTiming"], site()))  # type: ignore


@cuda_call()
def cudaEventDestroy(event: Any) -> None:
    simulator().lookup(event, Event)
    del simulator().handles[int(event)]


@cuda_call()
def cudaEventRecord(event: Any, stream: Any) -> None:
    sim = simulator()
    sim.gpu.record(sim.lookup(event, Event), sim.stream(stream))


def _recorded(event: Any) -> list[Operation]:
    """What an event stands for: nothing, and so nothing to wait for, if it was never recorded."""
    item = simulator().lookup(event, Event)
    if item.captured is not None:
        item.captured[0].invalidated = True
        raise CudaFailure(cudaError_t.cudaErrorCapturedEvent)
    return [item.operation] if item.operation is not None else []


@cuda_call()
def cudaEventSynchronize(event: Any) -> None:
    _wait(1, _recorded(event), event=int(event))


@cuda_call()
def cudaEventQuery(event: Any) -> None:
    _ready(_recorded(event))


@cuda_call(1)
def cudaEventElapsedTime(start: Any, end: Any) -> float:
    events = [simulator().lookup(event, Event) for event in (start, end)]
    if any(not event.timing or event.operation is None for event in events):
        raise CudaFailure(cudaError_t.cudaErrorInvalidResourceHandle)
    _ready([event.operation for event in events])
    return (events[1].operation.end - events[0].operation.end) / 1e6


# -- graphs


@cuda_call()
def cudaStreamBeginCapture(stream: Any, mode: cudaStreamCaptureMode) -> None:
    simulator().gpu.begin_capture(simulator().stream(stream), mode)


@cuda_call(1)
def cudaStreamEndCapture(stream: Any) -> cudaGraph_t:
    sim = simulator()
    return sim.register(cudaGraph_t, sim.gpu.end_capture(sim.stream(stream), site()))  # type: ignore[return-value]


@cuda_call(1)
def cudaStreamIsCapturing(stream: Any) -> cudaStreamCaptureStatus:
    capture = simulator().stream(stream).capture
    return cudaStreamCaptureStatus(0 if capture is None else 2 if capture.invalidated else 1)


@cuda_call(1)
def cudaGraphInstantiate(graph: Any, flags: int) -> cudaGraphExec_t:
    sim = simulator()
    nodes = list(sim.lookup(graph, Graph).nodes)
    return sim.register(cudaGraphExec_t, Graph(nodes, site()))  # type: ignore[return-value]


@cuda_call()
def cudaGraphUpload(graphExec: Any, stream: Any) -> None:
    simulator().lookup(graphExec, Graph), simulator().stream(stream)


@cuda_call()
def cudaGraphLaunch(graphExec: Any, stream: Any) -> None:
    sim = simulator()
    sim.gpu.launch(sim.lookup(graphExec, Graph), sim.stream(stream))


def _destroy_graph(handle: Any) -> None:
    simulator().lookup(handle, Graph)
    del simulator().handles[int(handle)]


@cuda_call()
def cudaGraphDestroy(graph: Any) -> None:
    _destroy_graph(graph)


@cuda_call()
def cudaGraphExecDestroy(graphExec: Any) -> None:
    _destroy_graph(graphExec)


# -- for the simulated TensorRT


def launch_kernels(stream: Stream, kernels: tuple[Piece, ...], run: Callable[[], None], reads: tuple[Span, ...],
                   writes: tuple[Span, ...]) -> None:
    """Enqueue kernels that together do ``run``; each costs the host a launch."""
    simulator().gpu.enqueue(stream, Work("compute", kernels, run, reads, writes), launches=True)


def span_of(address: int, nbytes: int) -> Span:
    """The memory a kernel is given; what is not device-accessible would be an illegal access."""
    span = simulator().space.span(address, nbytes)
    if span is None or span.kind == "pageable":
        raise CudaFailure(cudaError_t.cudaErrorIllegalAddress)
    return span


def view_as(span: Span, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    return span.view.view(dtype).reshape(shape)
