"""Work on the GPU: operations on streams, events between them, and graphs captured from both.

An operation is timed when it is enqueued and executed as late as CUDA permits: only when the host waits for it or for
something behind it. A dependency that a program forgot therefore shows as wrong output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from common.sim.clock import Clock, Engine, HostThread
from common.sim.device import Device
from common.sim.enums import cudaError_t, cudaStreamCaptureMode
from common.sim.memory import Span
from common.sim.trace import Trace


class CudaFailure(Exception):
    """Ends a simulated call with this error code."""

    def __init__(self, error: cudaError_t) -> None:
        super().__init__(error.name)
        self.error = error


class Piece(NamedTuple):
    """A copy or a kernel: its duration in ns, and the share of its engine that it keeps busy."""

    name: str
    duration: int
    share: float = 1.0


@dataclass(frozen=True)
class Work:
    """What an operation does: its engine, its pieces one after the other, and the bytes it touches."""

    engine: str  # h2d, d2h, compute, or "" for a marker that takes no time
    pieces: tuple[Piece, ...] = ()
    run: Callable[[], None] | None = None
    reads: tuple[Span, ...] = ()
    writes: tuple[Span, ...] = ()
    nbytes: int = 0


@dataclass(eq=False)
class Operation:
    """Work in a stream's order: it comes ``after`` others and occupies its engine from ``start`` to ``end`` (ns).

    An ``engine`` takes over from itself at once, from another at ``handed_over``. A marker passes on what it marks.
    """

    work: Work
    after: tuple[Operation, ...]
    engine: str
    start: int = 0
    end: int = 0
    handed_over: int = 0
    done: bool = False

    def ready_for(self, engine: str) -> int:
        """When work of ``engine`` that comes after this one may begin."""
        return self.end if engine in ("", self.engine) else self.handed_over


@dataclass(eq=False)
class Capture:
    """A capture in progress: the nodes so far and the streams that take part."""

    origin: Stream
    mode: cudaStreamCaptureMode
    thread: HostThread
    nodes: list[tuple[Work, frozenset[int]]] = field(default_factory=list)
    streams: dict[Stream, frozenset[int]] = field(default_factory=dict)
    invalidated: bool = False


@dataclass(eq=False)
class Stream:
    handle: int
    blocking: bool
    site: str
    tail: Operation | None = None
    waits: list[Operation] = field(default_factory=list)
    capture: Capture | None = None


@dataclass(eq=False)
class Event:
    handle: int
    timing: bool
    site: str
    operation: Operation | None = None
    captured: tuple[Capture, frozenset[int]] | None = None


@dataclass(eq=False)
class Graph:
    """Work and the indices of the nodes that each comes after, in an order in which it may run."""

    nodes: list[tuple[Work, frozenset[int]]]
    site: str


def execute(operation: Operation) -> None:
    """Execute everything that ``operation`` comes after, then the operation itself."""
    stack = [operation]
    while stack:
        pending = [earlier for earlier in stack[-1].after if not earlier.done]
        if pending:
            stack.extend(pending)
            continue
        latest = stack.pop()
        if not latest.done:
            latest.done, latest.after = True, ()
            if latest.work.run is not None:
                latest.work.run()


class Gpu:
    """The streams and engines of one device."""

    def __init__(self, device: Device, clock: Clock, trace: Trace) -> None:
        self.device, self.clock, self.trace = device, clock, trace
        self.engines = {name: Engine() for name in ("h2d", "d2h", "compute")}
        self.legacy = Stream(0, True, "the default stream")
        self.streams: list[Stream] = []
        self.destroyed: list[Stream] = []
        self.captures: list[Capture] = []
        self._launcher = Engine()  # the driver's lock: one thread launches at a time
        self._launching: set[int] = set()  # indices of the threads that are in the middle of an enqueue
        self._owed = 0.0  # ns by which copies have slowed kernels down and that no kernel has been charged yet

    # -- operations

    def enqueue(self, stream: Stream, work: Work, launches: bool = False) -> Operation | None:
        """Put work on a stream (into its capture, if it is capturing); the host may have to launch each piece."""
        if stream.capture is not None:
            self.clock.thread().now += self.device.kernel_launch * len(work.pieces) * launches
            self._capture(stream, work)
            return None
        self.check_legacy(stream)
        return self._submit(stream, work, self.pending(stream), launches)

    def _launch(self, thread: HostThread) -> tuple[int, int]:
        """Make a launch's call, in turn; its number and its end.

        Threads that launch at once wait for the driver's lock and hand it over at a price: a launch takes longer while
        another thread is in the middle of its own."""
        with self.clock.turn():
            crowded = self._launching - {thread.index} or self._launcher.busy_between(thread.now, thread.now + 1)
            self._launching.add(thread.index)
            cost = self.device.crowded_launch if crowded else self.device.kernel_launch
            called, thread.now = self._launcher.reserve(thread.now, cost)
            self.trace.correlation += 1
            self.trace.call("cudaLaunchKernel", called, thread.now, thread.index, self.trace.correlation)
            return self.trace.correlation, thread.now

    def _submit(self, stream: Stream, work: Work, after: Iterable[Operation], launches: bool = False) -> Operation:
        thread = self.clock.thread()
        operation = Operation(work, tuple(after), work.engine)
        ready = max([earlier.ready_for(work.engine) for earlier in operation.after], default=0)
        called = [self._launch(thread) if launches else (self.trace.correlation, thread.now) for _ in work.pieces]
        starts = []
        for (name, duration, share), (correlation, launched) in zip(work.pieces, called):
            start, ready = self._reserve(work.engine, max(ready, launched), duration, share)
            self.trace.operation(work, name, start, ready, stream.handle, correlation)
            starts.append(start)
        self._launching.discard(thread.index)
        operation.start = starts[0] if starts else max(ready, thread.now)
        operation.end = operation.handed_over = max(ready, operation.start)
        if work.engine:
            operation.handed_over += self.device.handover
        elif operation.after:
            latest = max(operation.after, key=lambda earlier: earlier.handed_over)
            operation.engine, operation.handed_over = latest.engine, max(operation.end, latest.handed_over)
        stream.tail = operation
        stream.waits.clear()
        return operation

    def _reserve(self, engine: str, ready: int, duration: int, share: float) -> tuple[int, int]:
        """Book the engine. While copies to the device and kernels run together, the kernels go slower."""
        if engine == "compute":
            charge = min(self._owed, 0.5 * duration)
            self._owed -= charge
            duration += round(charge)
        start, end = self.engines[engine].reserve(ready, duration, share)
        other = {"compute": "h2d", "h2d": "compute"}.get(engine)
        if other is not None:
            self._owed += self.device.copy_slows_compute * self.engines[other].busy_between(start, end)
        return start, end

    def pending(self, stream: Stream) -> list[Operation]:
        """What must be over before ``stream`` is idle or its next operation begins: its earlier work, the events it
        waits for, and what the default stream's rule adds."""
        others = [s for s in self.streams if s.blocking] if stream is self.legacy else [self.legacy] * stream.blocking
        tails = [s.tail for s in (stream, *others) if s.tail is not None]
        return [*tails, *stream.waits]

    def wait(self, operations: Iterable[Operation]) -> None:
        """The host waits: execute the operations and take the thread's clock to the end of the last, and on to its waking."""
        thread, end = self.clock.thread(), 0
        for operation in operations:
            execute(operation)
            end = max(end, operation.end)
        if end > thread.now:
            thread.now = end + self.device.wake_up

    def everything(self) -> list[Operation]:
        """What must be over before the device is idle."""
        return [operation for stream in (self.legacy, *self.streams, *self.destroyed)
                for operation in (stream.tail, *stream.waits) if operation is not None]

    def destroy(self, stream: Stream) -> None:
        """Forget a stream; what is still on it goes on."""
        self.streams.remove(stream)
        self.destroyed = [s for s in (*self.destroyed, stream) if s.tail is not None and not s.tail.done]

    # -- events

    def record(self, event: Event, stream: Stream) -> None:
        if stream.capture is not None:
            capture = self._active(stream)
            event.captured, event.operation = (capture, capture.streams[stream]), None
            return
        self.check_legacy(stream)
        event.captured = None
        event.operation = self._submit(stream, Work(""), self.pending(stream))

    def wait_event(self, stream: Stream, event: Event) -> None:
        """Later work of ``stream`` comes after what the event recorded; nothing happens if it never was recorded."""
        if event.captured is not None:
            capture, nodes = event.captured
            if capture.invalidated or capture not in self.captures:
                raise CudaFailure(cudaError_t.cudaErrorCapturedEvent)
            if stream.capture not in (None, capture):
                self._invalidate(stream, cudaError_t.cudaErrorStreamCaptureMerge)
            stream.capture = capture
            capture.streams[stream] = capture.streams.get(stream, frozenset()) | nodes
        elif stream.capture is not None:
            self._active(stream)
            if event.operation is not None:
                self._invalidate(stream, cudaError_t.cudaErrorStreamCaptureIsolation)
        elif event.operation is not None:
            stream.waits.append(event.operation)

    # -- capture and graphs

    def begin_capture(self, stream: Stream, mode: cudaStreamCaptureMode) -> None:
        if stream is self.legacy:
            raise CudaFailure(cudaError_t.cudaErrorStreamCaptureUnsupported)
        if stream.capture is not None:
            raise CudaFailure(cudaError_t.cudaErrorInvalidValue)
        capture = Capture(stream, mode, self.clock.thread(), streams={stream: frozenset()})
        stream.capture = capture
        self.captures.append(capture)

    def end_capture(self, stream: Stream, site: str) -> Graph:
        capture = stream.capture
        if capture is None:
            raise CudaFailure(cudaError_t.cudaErrorInvalidValue)
        if capture.mode != cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed and capture.thread is not self.clock.thread():
            raise CudaFailure(cudaError_t.cudaErrorStreamCaptureWrongThread)
        if capture.origin is not stream:
            self._invalidate(stream, cudaError_t.cudaErrorStreamCaptureUnmatched)
        for member in capture.streams:
            member.capture = None
        self.captures.remove(capture)
        if capture.invalidated:
            raise CudaFailure(cudaError_t.cudaErrorStreamCaptureInvalidated)
        joined = self._ancestors(capture, capture.streams[stream])
        if any(not tails <= joined for tails in capture.streams.values()):
            raise CudaFailure(cudaError_t.cudaErrorStreamCaptureUnjoined)
        return Graph(capture.nodes, site)

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Run a graph's nodes after the stream's earlier work; the stream goes on after all of them."""
        if stream.capture is not None:
            raise CudaFailure(cudaError_t.cudaErrorNotSupported)  # child graphs: CUDA has them, the ladder does not
        self.check_legacy(stream)
        roots, operations = self.pending(stream), []
        for work, dependencies in graph.nodes:
            after = [operations[index] for index in dependencies] or roots
            operations.append(self._submit(stream, work, after))
        self._submit(stream, Work(""), [*roots, *operations])

    def forbid_while_capturing(self, *, anywhere: bool = False) -> None:
        """Refuse a call that is unsafe during capture, and break the captures it would have disturbed."""
        thread = self.clock.thread()
        relaxed, unsafe = cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed, False
        for capture in self.captures:
            concerned = capture.mode == cudaStreamCaptureMode.cudaStreamCaptureModeGlobal or capture.thread is thread
            if anywhere or (concerned and capture.mode != relaxed):
                capture.invalidated = unsafe = True
        if unsafe:
            raise CudaFailure(cudaError_t.cudaErrorStreamCaptureUnsupported)

    def check_legacy(self, stream: Stream) -> None:
        """Work on the default stream would have to wait for the blocking streams that are being captured."""
        if stream is self.legacy:
            broken = [s.capture for s in self.streams if s.blocking and s.capture is not None]
            for capture in broken:
                capture.invalidated = True
            if broken:
                raise CudaFailure(cudaError_t.cudaErrorStreamCaptureImplicit)

    def _active(self, stream: Stream) -> Capture:
        assert stream.capture is not None
        if stream.capture.invalidated:
            raise CudaFailure(cudaError_t.cudaErrorStreamCaptureInvalidated)
        return stream.capture

    def _capture(self, stream: Stream, work: Work) -> None:
        capture = self._active(stream)
        capture.nodes.append((work, capture.streams[stream]))
        capture.streams[stream] = frozenset([len(capture.nodes) - 1])

    def _invalidate(self, stream: Stream, error: cudaError_t) -> None:
        if stream.capture is not None:
            stream.capture.invalidated = True
        raise CudaFailure(error)

    @staticmethod
    def _ancestors(capture: Capture, tails: frozenset[int]) -> frozenset[int]:
        found, frontier = set(tails), list(tails)
        while frontier:
            for earlier in capture.nodes[frontier.pop()][1] - found:
                found.add(earlier)
                frontier.append(earlier)
        return frozenset(found)
