"""CUDA's rules, one by one. The same checks run on the simulated runtime and, where there is a GPU, on the real one."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tests.conftest import real_runtime

N = 1 << 20


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def cuda(request):
    """A CUDA runtime module: the simulated one, fresh, or the real one."""
    if request.param == "real":
        runtime = real_runtime()
        if runtime is None:
            pytest.skip("no GPU")
        yield runtime
        runtime.cudaDeviceSynchronize()
        runtime.cudaGetLastError()
        return
    from sim import cudart, simulator

    simulator.start()
    yield cudart
    simulator.start().close()


def ok(result):
    """The results of a call that must succeed."""
    error, *values = result
    assert int(error) == 0, error
    return values[0] if len(values) == 1 else tuple(values)


def name(result) -> str:
    return result[0].name


class Memory:
    """Device memory and page-locked arrays, given back at the end of the test."""

    def __init__(self, cuda) -> None:
        self.cuda, self.device_memory, self.pinned_memory = cuda, [], []

    def device(self, nbytes=N) -> int:
        self.device_memory.append(ok(self.cuda.cudaMalloc(nbytes)))
        return self.device_memory[-1]

    def pinned(self, nbytes=N) -> np.ndarray:
        import ctypes

        address = ok(self.cuda.cudaMallocHost(nbytes))
        self.pinned_memory.append(address)
        return np.frombuffer((ctypes.c_ubyte * nbytes).from_address(address), np.uint8)

    def free(self) -> None:
        for address in self.device_memory:
            self.cuda.cudaFree(address)
        for address in self.pinned_memory:
            self.cuda.cudaFreeHost(address)


@pytest.fixture
def memory(cuda):
    owner = Memory(cuda)
    yield owner
    owner.free()


@pytest.fixture
def streams(cuda):
    made = [ok(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking)) for _ in range(2)]
    yield made
    for stream in made:
        cuda.cudaStreamDestroy(stream)


def h2d(cuda):
    return cuda.cudaMemcpyKind.cudaMemcpyHostToDevice


def d2h(cuda):
    return cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost


def test_a_stream_runs_in_order(cuda, memory, streams):
    source, target, device = memory.pinned(), memory.pinned(), memory.device()
    source[:] = np.random.default_rng(0).integers(0, 256, N)
    ok(cuda.cudaMemcpyAsync(device, source.ctypes.data, N, h2d(cuda), streams[0]))
    ok(cuda.cudaMemcpyAsync(target.ctypes.data, device, N, d2h(cuda), streams[0]))
    ok(cuda.cudaStreamSynchronize(streams[0]))
    assert (target == source).all()


def test_an_event_orders_two_streams(cuda, memory, streams):
    source, target, device = memory.pinned(), memory.pinned(), memory.device()
    source[:], event = 7, ok(cuda.cudaEventCreate())
    ok(cuda.cudaMemsetAsync(device, 0, N, streams[0]))
    ok(cuda.cudaMemcpyAsync(device, source.ctypes.data, N, h2d(cuda), streams[0]))
    ok(cuda.cudaEventRecord(event, streams[0]))
    ok(cuda.cudaStreamWaitEvent(streams[1], event, 0))
    ok(cuda.cudaMemcpyAsync(target.ctypes.data, device, N, d2h(cuda), streams[1]))
    ok(cuda.cudaStreamSynchronize(streams[1]))
    assert (target == 7).all()
    ok(cuda.cudaEventDestroy(event))


def test_waiting_for_an_event_that_was_never_recorded_does_nothing(cuda, streams):
    event = ok(cuda.cudaEventCreate())
    ok(cuda.cudaStreamWaitEvent(streams[0], event, 0))
    ok(cuda.cudaEventSynchronize(event))
    ok(cuda.cudaEventQuery(event))
    ok(cuda.cudaEventDestroy(event))


def test_a_wait_is_for_what_was_recorded_before_it(cuda, memory, streams):
    """Recording an event again later does not change what an earlier wait waits for."""
    device, event = memory.device(), ok(cuda.cudaEventCreate())
    ok(cuda.cudaEventRecord(event, streams[0]))
    ok(cuda.cudaStreamWaitEvent(streams[1], event, 0))
    ok(cuda.cudaMemsetAsync(device, 1, N, streams[0]))
    ok(cuda.cudaEventRecord(event, streams[0]))
    ok(cuda.cudaStreamSynchronize(streams[1]))
    ok(cuda.cudaStreamSynchronize(streams[0]))
    ok(cuda.cudaEventDestroy(event))


def test_the_default_stream_waits_for_blocking_streams_and_they_for_it(cuda, memory):
    blocking = ok(cuda.cudaStreamCreate())
    source, device, target = memory.pinned(), memory.device(), np.zeros(N, np.uint8)
    source[:] = 3
    ok(cuda.cudaMemcpyAsync(device, source.ctypes.data, N, h2d(cuda), blocking))
    ok(cuda.cudaMemcpy(target.ctypes.data, device, N, d2h(cuda)))
    assert (target == 3).all()
    ok(cuda.cudaMemset(device, 9, N))
    ok(cuda.cudaMemcpyAsync(source.ctypes.data, device, N, d2h(cuda), blocking))
    ok(cuda.cudaStreamSynchronize(blocking))
    assert (source == 9).all()
    ok(cuda.cudaStreamDestroy(blocking))


def test_pageable_memory_may_be_reused_when_the_asynchronous_copy_returns(cuda, memory, streams):
    source, target, device = np.full(N, 5, np.uint8), np.zeros(N, np.uint8), memory.device()
    ok(cuda.cudaMemcpyAsync(device, source.ctypes.data, N, h2d(cuda), streams[0]))
    source[:] = 6
    ok(cuda.cudaMemcpyAsync(target.ctypes.data, device, N, d2h(cuda), streams[0]))
    assert (target == 5).all()  # a copy into pageable memory returns when it is over


def test_an_unfinished_event_is_not_ready_and_that_is_no_error(cuda, memory, streams):
    source, device, event = memory.pinned(64 * N), memory.device(64 * N), ok(cuda.cudaEventCreate())
    ok(cuda.cudaMemcpyAsync(device, source.ctypes.data, 64 * N, h2d(cuda), streams[0]))
    ok(cuda.cudaEventRecord(event, streams[0]))
    assert name(cuda.cudaEventQuery(event)) == "cudaErrorNotReady"
    assert name(cuda.cudaStreamQuery(streams[0])) == "cudaErrorNotReady"
    ok(cuda.cudaEventSynchronize(event))
    ok(cuda.cudaEventQuery(event))
    ok(cuda.cudaEventDestroy(event))


def test_elapsed_time_needs_timing_and_completion(cuda, memory, streams):
    start, end, untimed = ok(cuda.cudaEventCreate()), ok(cuda.cudaEventCreate()), ok(cuda.cudaEventCreateWithFlags(2))
    assert name(cuda.cudaEventElapsedTime(start, end)) == "cudaErrorInvalidResourceHandle"
    source, device = memory.pinned(64 * N), memory.device(64 * N)
    ok(cuda.cudaEventRecord(start, streams[0]))
    ok(cuda.cudaMemcpyAsync(device, source.ctypes.data, 64 * N, h2d(cuda), streams[0]))
    ok(cuda.cudaEventRecord(end, streams[0]))
    ok(cuda.cudaEventRecord(untimed, streams[0]))
    assert name(cuda.cudaEventElapsedTime(start, end)) == "cudaErrorNotReady"
    ok(cuda.cudaStreamSynchronize(streams[0]))
    assert ok(cuda.cudaEventElapsedTime(start, end)) > 0.5  # 67 MB do not cross any link faster
    assert name(cuda.cudaEventElapsedTime(start, untimed)) == "cudaErrorInvalidResourceHandle"
    for event in (start, end, untimed):
        ok(cuda.cudaEventDestroy(event))


def test_freeing_twice_or_what_was_never_allocated_is_an_error(cuda):
    device = ok(cuda.cudaMalloc(N))
    ok(cuda.cudaFree(device))
    assert name(cuda.cudaFree(device)) == "cudaErrorInvalidValue"
    pinned = ok(cuda.cudaMallocHost(N))
    ok(cuda.cudaFreeHost(pinned))
    assert name(cuda.cudaFreeHost(pinned)) == "cudaErrorInvalidValue"
    ok(cuda.cudaFree(0))


def test_device_memory_is_not_host_memory_to_free(cuda, memory):
    assert name(cuda.cudaFreeHost(memory.device())) == "cudaErrorInvalidValue"


def test_a_copy_beyond_an_allocation_is_an_error(cuda, memory):
    device, host = memory.device(), np.zeros(4 * N, np.uint8)
    assert name(cuda.cudaMemcpy(device, host.ctypes.data, 4 * N, h2d(cuda))) == "cudaErrorInvalidValue"


def test_a_copy_from_freed_memory_is_an_error(cuda):
    device, host = ok(cuda.cudaMalloc(N)), np.zeros(N, np.uint8)
    ok(cuda.cudaFree(device))
    assert name(cuda.cudaMemcpy(host.ctypes.data, device, N, d2h(cuda))) == "cudaErrorInvalidValue"


def test_a_copy_against_its_direction_is_an_error_with_pageable_memory(cuda, memory):
    device, host = memory.device(), np.zeros(N, np.uint8)
    assert name(cuda.cudaMemcpy(device, host.ctypes.data, N, d2h(cuda))) == "cudaErrorInvalidValue"
    assert name(cuda.cudaMemcpy(host.ctypes.data, device, N, h2d(cuda))) == "cudaErrorInvalidValue"


def test_page_locked_memory_is_copied_as_its_pointers_say(cuda, memory, streams):
    """CUDA knows both pointers then, and believes them rather than the direction it is told."""
    device, source, target = memory.device(), memory.pinned(), memory.pinned()
    source[:], target[:] = 21, 0
    ok(cuda.cudaMemcpyAsync(device, source.ctypes.data, N, d2h(cuda), streams[0]))
    ok(cuda.cudaMemcpyAsync(target.ctypes.data, device, N, d2h(cuda), streams[0]))
    ok(cuda.cudaStreamSynchronize(streams[0]))
    assert (target == 21).all()


def test_the_last_error_is_remembered_until_asked_for(cuda):
    cuda.cudaGetLastError()
    assert name(cuda.cudaFree(1 << 45)) == "cudaErrorInvalidValue"
    assert name(cuda.cudaPeekAtLastError()) == "cudaErrorInvalidValue"
    assert name(cuda.cudaGetLastError()) == "cudaErrorInvalidValue"
    assert name(cuda.cudaGetLastError()) == "cudaSuccess"


def test_more_memory_than_there_is_is_out_of_memory(cuda):
    assert name(cuda.cudaMalloc(1 << 50)) == "cudaErrorMemoryAllocation"


def test_freeing_waits_for_the_device(cuda, memory, streams):
    source, target, device = memory.pinned(64 * N), memory.pinned(64 * N), memory.device(64 * N)
    source[:] = 11
    other = ok(cuda.cudaMalloc(N))
    ok(cuda.cudaMemcpyAsync(device, source.ctypes.data, 64 * N, h2d(cuda), streams[0]))
    ok(cuda.cudaMemcpyAsync(target.ctypes.data, device, 64 * N, d2h(cuda), streams[0]))
    ok(cuda.cudaFree(other))
    assert (target == 11).all()
    ok(cuda.cudaStreamQuery(streams[0]))


# -- capture


def thread_local(cuda):
    return cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal


def begin(cuda, stream, mode="cudaStreamCaptureModeThreadLocal"):
    ok(cuda.cudaStreamBeginCapture(stream, getattr(cuda.cudaStreamCaptureMode, mode)))


def test_captured_work_runs_when_the_graph_is_launched(cuda, memory, streams):
    source, target, device = memory.pinned(), memory.pinned(), memory.device()
    source[:], target[:] = 1, 0
    begin(cuda, streams[0])
    ok(cuda.cudaMemcpyAsync(device, source.ctypes.data, N, h2d(cuda), streams[0]))
    ok(cuda.cudaMemcpyAsync(target.ctypes.data, device, N, d2h(cuda), streams[0]))
    graph = ok(cuda.cudaStreamEndCapture(streams[0]))
    executable = ok(cuda.cudaGraphInstantiate(graph, 0))
    ok(cuda.cudaStreamSynchronize(streams[0]))
    assert (target == 0).all()
    for value in (1, 2, 3):
        source[:] = value
        ok(cuda.cudaGraphLaunch(executable, streams[0]))
        ok(cuda.cudaStreamSynchronize(streams[0]))
        assert (target == value).all()
    ok(cuda.cudaGraphExecDestroy(executable))
    ok(cuda.cudaGraphDestroy(graph))


def test_events_take_a_capture_to_another_stream_and_back(cuda, memory, streams):
    source, target, device = memory.pinned(), memory.pinned(), memory.device()
    source[:], target[:] = 4, 0
    forked, joined = ok(cuda.cudaEventCreate()), ok(cuda.cudaEventCreate())
    begin(cuda, streams[0])
    ok(cuda.cudaMemcpyAsync(device, source.ctypes.data, N, h2d(cuda), streams[0]))
    ok(cuda.cudaEventRecord(forked, streams[0]))
    ok(cuda.cudaStreamWaitEvent(streams[1], forked, 0))
    ok(cuda.cudaMemcpyAsync(target.ctypes.data, device, N, d2h(cuda), streams[1]))
    ok(cuda.cudaEventRecord(joined, streams[1]))
    ok(cuda.cudaStreamWaitEvent(streams[0], joined, 0))
    graph = ok(cuda.cudaStreamEndCapture(streams[0]))
    executable = ok(cuda.cudaGraphInstantiate(graph, 0))
    ok(cuda.cudaGraphLaunch(executable, streams[0]))
    ok(cuda.cudaStreamSynchronize(streams[0]))
    assert (target == 4).all()
    for event in (forked, joined):
        ok(cuda.cudaEventDestroy(event))
    ok(cuda.cudaGraphExecDestroy(executable))
    ok(cuda.cudaGraphDestroy(graph))


def test_a_forked_stream_must_be_joined(cuda, memory, streams):
    device, forked = memory.device(), ok(cuda.cudaEventCreate())
    begin(cuda, streams[0])
    ok(cuda.cudaMemsetAsync(device, 0, N, streams[0]))
    ok(cuda.cudaEventRecord(forked, streams[0]))
    ok(cuda.cudaStreamWaitEvent(streams[1], forked, 0))
    ok(cuda.cudaMemsetAsync(device, 1, N, streams[1]))
    assert name(cuda.cudaStreamEndCapture(streams[0])) == "cudaErrorStreamCaptureUnjoined"
    ok(cuda.cudaEventDestroy(forked))


@pytest.mark.parametrize(
    "call, error",
    [("cudaStreamSynchronize", "cudaErrorStreamCaptureUnsupported"), ("cudaStreamQuery", "cudaErrorStreamCaptureUnsupported")],
)
def test_a_capturing_stream_cannot_be_waited_for(cuda, streams, call, error):
    begin(cuda, streams[0])
    assert name(getattr(cuda, call)(streams[0])) == error
    assert name(cuda.cudaStreamEndCapture(streams[0])) == "cudaErrorStreamCaptureInvalidated"


def test_synchronizing_the_device_breaks_a_capture(cuda, streams):
    begin(cuda, streams[0])
    assert name(cuda.cudaDeviceSynchronize()) == "cudaErrorStreamCaptureUnsupported"
    assert name(cuda.cudaStreamEndCapture(streams[0])) == "cudaErrorStreamCaptureInvalidated"


def test_allocating_breaks_a_capture_of_the_same_thread(cuda, streams):
    begin(cuda, streams[0])
    assert name(cuda.cudaMalloc(N)) == "cudaErrorStreamCaptureUnsupported"
    assert name(cuda.cudaStreamEndCapture(streams[0])) == "cudaErrorStreamCaptureInvalidated"


def test_allocating_is_allowed_in_a_relaxed_capture(cuda, streams):
    begin(cuda, streams[0], "cudaStreamCaptureModeRelaxed")
    device = ok(cuda.cudaMalloc(N))
    ok(cuda.cudaGraphDestroy(ok(cuda.cudaStreamEndCapture(streams[0]))))
    ok(cuda.cudaFree(device))


def test_a_captured_event_is_not_for_the_host(cuda, memory, streams):
    event = ok(cuda.cudaEventCreate())
    begin(cuda, streams[0])
    ok(cuda.cudaEventRecord(event, streams[0]))
    assert name(cuda.cudaEventSynchronize(event)) == "cudaErrorCapturedEvent"
    assert name(cuda.cudaStreamEndCapture(streams[0])) == "cudaErrorStreamCaptureInvalidated"
    ok(cuda.cudaEventDestroy(event))


def test_a_capture_cannot_depend_on_work_outside_it(cuda, memory, streams):
    device, event = memory.device(), ok(cuda.cudaEventCreate())
    ok(cuda.cudaMemsetAsync(device, 0, N, streams[1]))
    ok(cuda.cudaEventRecord(event, streams[1]))
    begin(cuda, streams[0])
    assert name(cuda.cudaStreamWaitEvent(streams[0], event, 0)) == "cudaErrorStreamCaptureIsolation"
    assert name(cuda.cudaStreamEndCapture(streams[0])) == "cudaErrorStreamCaptureInvalidated"
    ok(cuda.cudaEventDestroy(event))


def test_the_default_stream_cannot_be_captured(cuda):
    assert name(cuda.cudaStreamBeginCapture(0, thread_local(cuda))) == "cudaErrorStreamCaptureUnsupported"


def test_ending_a_capture_that_was_not_begun_is_an_error(cuda, streams):
    error = name(cuda.cudaStreamEndCapture(streams[0]))
    assert error in ("cudaErrorInvalidValue", "cudaErrorIllegalState")


def test_the_default_stream_breaks_the_capture_of_a_blocking_stream(cuda, memory):
    device, blocking = memory.device(), ok(cuda.cudaStreamCreate())
    begin(cuda, blocking)
    assert name(cuda.cudaMemsetAsync(device, 0, N, 0)) == "cudaErrorStreamCaptureImplicit"
    assert name(cuda.cudaStreamEndCapture(blocking)) == "cudaErrorStreamCaptureInvalidated"
    ok(cuda.cudaStreamDestroy(blocking))


def test_the_capture_status_can_be_asked(cuda, streams):
    status = cuda.cudaStreamCaptureStatus
    assert ok(cuda.cudaStreamIsCapturing(streams[0])) == status.cudaStreamCaptureStatusNone
    begin(cuda, streams[0])
    assert ok(cuda.cudaStreamIsCapturing(streams[0])) == status.cudaStreamCaptureStatusActive
    cuda.cudaStreamSynchronize(streams[0])
    assert ok(cuda.cudaStreamIsCapturing(streams[0])) == status.cudaStreamCaptureStatusInvalidated
    cuda.cudaStreamEndCapture(streams[0])


def test_a_destroyed_stream_finishes_its_work(cuda, memory):
    source, target, device = memory.pinned(), memory.pinned(), memory.device()
    source[:], stream = 8, ok(cuda.cudaStreamCreate())
    ok(cuda.cudaMemcpyAsync(device, source.ctypes.data, N, h2d(cuda), stream))
    ok(cuda.cudaMemcpyAsync(target.ctypes.data, device, N, d2h(cuda), stream))
    ok(cuda.cudaStreamDestroy(stream))
    ok(cuda.cudaDeviceSynchronize())
    assert (target == 8).all()


def test_the_host_does_not_wait_for_a_page_locked_copy(cuda, memory, streams):
    """Submitting takes microseconds, the copy milliseconds."""
    source, device = memory.pinned(256 * N), memory.device(256 * N)
    ok(cuda.cudaMemcpyAsync(device, source.ctypes.data, 256 * N, h2d(cuda), streams[0]))
    assert name(cuda.cudaStreamQuery(streams[0])) == "cudaErrorNotReady"
    started = time.perf_counter()
    ok(cuda.cudaStreamSynchronize(streams[0]))
    assert time.perf_counter() - started < 10
