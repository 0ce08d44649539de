"""Work on the GPU: operations in the order of streams, events between them, captures and the graphs they become.

An operation is timed when it is enqueued and executed as late as CUDA permits: only when the host waits for it or for
something behind it. A dependency that a program forgot therefore shows as wrong output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from sim.clock import Clock, HostThread, Timetable
from sim.device import Device
from sim.enums import CudaFailure as CudaFailure
from sim.enums import cudaError_t, cudaStreamCaptureMode, require
from sim.trace import Trace

GLOBAL, THREAD_LOCAL, RELAXED = cudaStreamCaptureMode


class Piece(NamedTuple):
    """A copy or a kernel: its duration in ns, and the share of its unit that it keeps busy."""

    name: str
    duration: int
    share: float = 1.0


@dataclass(frozen=True)
class Work:
    """What an operation does: on which unit of the GPU, in which pieces one after the other."""

    unit: str  # h2d, d2h, compute, or "" for a marker that takes no time
    pieces: tuple[Piece, ...] = ()
    run: Callable[[], object] = lambda: None
    nbytes: int = 0


@dataclass(eq=False)
class Operation:
    """Work in a stream's order: it comes ``after`` others and occupies its unit from ``start`` to ``end`` (ns)."""

    work: Work
    after: tuple[Operation, ...]
    unit: str
    start: int = 0
    end: int = 0
    handed_over: int = 0  # when another unit may take over from it (its own does at ``end``); a marker passes on what it marks
    done: bool = False


def execute(operation: Operation) -> None:
    """Execute everything that ``operation`` comes after, then the operation itself."""
    stack = [operation]
    while stack:
        pending = [earlier for earlier in stack[-1].after if not earlier.done]
        stack.extend(pending)
        if not pending:
            latest = stack.pop()
            if not latest.done:
                latest.done, latest.after = True, ()
                latest.work.run()


@dataclass(eq=False)
class Stream:
    blocking: bool
    handle: int = 0
    site: str = ""  # the line that made it
    tail: Operation | None = None
    waits: list[Operation] = field(default_factory=list)
    capture: Capture | None = None


@dataclass(eq=False)
class Event:
    timing: bool
    handle: int = 0
    site: str = ""
    operation: Operation | None = None
    captured: tuple[Capture, frozenset[int]] | None = None


@dataclass(eq=False)
class Graph:
    """Work and the indices of the nodes that each comes after, in an order in which it may run."""

    nodes: list[tuple[Work, frozenset[int]]]
    handle: int = 0
    site: str = ""


@dataclass(eq=False)
class Capture:
    """A capture in progress: its nodes so far, and by stream those that the stream's next one comes after."""

    origin: Stream
    mode: cudaStreamCaptureMode
    thread: HostThread
    streams: dict[Stream, frozenset[int]]
    nodes: list[tuple[Work, frozenset[int]]] = field(default_factory=list)
    invalidated: bool = False

    def require_valid(self) -> None:
        require(not self.invalidated, cudaError_t.cudaErrorStreamCaptureInvalidated)

    def add(self, stream: Stream, work: Work) -> None:
        self.require_valid()
        self.nodes.append((work, self.streams[stream]))
        self.streams[stream] = frozenset([len(self.nodes) - 1])

    def is_joined(self) -> bool:
        """Whether everything captured comes before what comes next on the stream where the capture began."""
        joined = set(self.streams[self.origin])
        for index in reversed(range(len(self.nodes))):  # a node comes after nodes of smaller index
            if index in joined:
                joined |= self.nodes[index][1]
        return all(tails <= joined for tails in self.streams.values())


def disturb(error: cudaError_t, *captures: Capture | None) -> None:
    """What these captures forbid: the call ends with ``error`` and they are broken. Nothing happens where there are none."""
    broken = [capture for capture in captures if capture is not None]
    for capture in broken:
        capture.invalidated = True
    require(not broken, error)


class Gpu:
    """The streams and units of one device."""

    def __init__(self, device: Device, clock: Clock, trace: Trace) -> None:
        self.device, self.clock, self.trace = device, clock, trace
        self.units = {name: Timetable() for name in ("h2d", "d2h", "compute")}
        self.legacy = Stream(True)
        self.streams: list[Stream] = []
        self.destroyed: list[Stream] = []
        self.captures: list[Capture] = []
        self._launcher = Timetable()  # the driver's lock: one thread launches at a time
        self._launching: set[int] = set()  # indices of the threads that are in the middle of an enqueue
        self._owed = 0.0  # ns by which copies have slowed kernels down and that no kernel has been charged yet

    def enqueue(self, stream: Stream, work: Work, launches: bool = False) -> Operation | None:
        """Put work on a stream (into its capture, if it is capturing); the host may have to launch each piece."""
        if stream.capture is not None:
            self.clock.thread().now += self.device.kernel_launch * len(work.pieces) * launches
            stream.capture.add(stream, work)
            return None
        self.check_legacy(stream)
        return self.submit(stream, work, self.pending(stream), launches)

    def _launch(self, thread: HostThread) -> tuple[int, int]:
        """Make a launch's call, in turn; its number and its end. Threads that launch at once wait for the driver's lock and
        hand it over at a price: a launch takes longer while another thread is in the middle of its own."""
        with self.clock.turn():
            crowded = self._launching - {thread.index} or self._launcher.busy_between(thread.now, thread.now + 1)
            self._launching.add(thread.index)
            cost = self.device.crowded_launch if crowded else self.device.kernel_launch
            called, thread.now = self._launcher.reserve(thread.now, cost)
            self.trace.correlation += 1
            self.trace.calls.append((called, thread.now, "cudaLaunchKernel", thread.index, self.trace.correlation, 0))
            return self.trace.correlation, thread.now

    def submit(self, stream: Stream, work: Work, after: Iterable[Operation], launches: bool = False) -> Operation:
        thread = self.clock.thread()
        operation = Operation(work, tuple(after), work.unit)
        ready = max([one.end if work.unit in ("", one.unit) else one.handed_over for one in operation.after], default=0)
        called = [self._launch(thread) if launches else (self.trace.correlation, thread.now) for _ in work.pieces]
        starts = []
        for (name, duration, share), (correlation, launched) in zip(work.pieces, called):
            start, ready = self._reserve(work.unit, max(ready, launched), duration, share)
            self.trace.operations.append((start, ready, work.unit, name, stream.handle, correlation, work.nbytes))
            starts.append(start)
        self._launching.discard(thread.index)
        operation.start = starts[0] if starts else max(ready, thread.now)
        operation.end = operation.handed_over = max(ready, operation.start)
        if work.unit:
            operation.handed_over += self.device.handover
        elif operation.after:
            latest = max(operation.after, key=lambda earlier: earlier.handed_over)
            operation.unit, operation.handed_over = latest.unit, max(operation.end, latest.handed_over)
        stream.tail, stream.waits = operation, []
        return operation

    def _reserve(self, unit: str, ready: int, duration: int, share: float) -> tuple[int, int]:
        """Book the unit. While copies to the device and kernels run together, the kernels go slower."""
        if unit == "compute":
            charge = min(self._owed, 0.5 * duration)
            self._owed -= charge
            duration += round(charge)
        start, end = self.units[unit].reserve(ready, duration, share)
        other = {"compute": "h2d", "h2d": "compute"}.get(unit)
        if other is not None:
            self._owed += self.device.copy_slows_compute * self.units[other].busy_between(start, end)
        return start, end

    def pending(self, stream: Stream) -> list[Operation]:
        """What must be over for ``stream`` to go on: earlier work, the events it waits for, what the default stream adds."""
        others = [s for s in self.streams if s.blocking] if stream is self.legacy else [self.legacy] * stream.blocking
        return [last for last in (*(s.tail for s in (stream, *others)), *stream.waits) if last is not None]

    def everything(self) -> list[Operation]:
        """What must be over before the device is idle."""
        streams = (self.legacy, *self.streams, *self.destroyed)
        return [last for stream in streams for last in (stream.tail, *stream.waits) if last is not None]

    def wait(self, operations: Iterable[Operation]) -> None:
        """The host waits: execute the operations and take the thread's clock to the end of the last, and on to its waking."""
        thread, end = self.clock.thread(), 0
        for operation in operations:
            execute(operation)
            end = max(end, operation.end)
        if end > thread.now:
            thread.now = end + self.device.wake_up

    def record(self, event: Event, stream: Stream) -> None:
        if stream.capture is not None:
            stream.capture.require_valid()
            event.captured, event.operation = (stream.capture, stream.capture.streams[stream]), None
        else:
            self.check_legacy(stream)
            event.captured, event.operation = None, self.submit(stream, Work(""), self.pending(stream))

    def wait_event(self, stream: Stream, event: Event) -> None:
        """Later work of ``stream`` comes after what the event recorded; nothing happens if it never was recorded."""
        if event.captured is not None:
            capture, nodes = event.captured
            require(capture in self.captures and not capture.invalidated, cudaError_t.cudaErrorCapturedEvent)
            if stream.capture is not capture:
                disturb(cudaError_t.cudaErrorStreamCaptureMerge, stream.capture)
            stream.capture = capture
            capture.streams[stream] = capture.streams.get(stream, frozenset()) | nodes
        elif stream.capture is not None:
            stream.capture.require_valid()
            if event.operation is not None:
                disturb(cudaError_t.cudaErrorStreamCaptureIsolation, stream.capture)
        elif event.operation is not None:
            stream.waits.append(event.operation)

    def forbid_while_capturing(self, *, anywhere: bool = False) -> None:
        """Refuse a call that is unsafe during capture, and break the captures it would have disturbed."""
        thread = self.clock.thread()
        own = [c for c in self.captures if c.mode == GLOBAL or (c.mode == THREAD_LOCAL and c.thread is thread)]
        disturb(cudaError_t.cudaErrorStreamCaptureUnsupported, *(self.captures if anywhere else own))

    def check_legacy(self, stream: Stream) -> None:
        """Work on the default stream would have to wait for the blocking streams that are being captured."""
        if stream is self.legacy:
            disturb(cudaError_t.cudaErrorStreamCaptureImplicit, *(s.capture for s in self.streams if s.blocking))
