"""The GPU: its units, its streams, and the rules by which work gets onto them.

An operation is timed when it is enqueued and executed as late as CUDA permits: only when the host waits for it or for
something behind it. What reads too early therefore reads the wrong bytes; what overwrites too early is found as a race.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sim.clock import Clock, HostThread, Timetable
from sim.device import Device
from sim.enums import cudaError_t, require
from sim.order import Line, Order
from sim.races import Races
from sim.sites import name_of
from sim.trace import Trace
from sim.work import GLOBAL, HOST_FUNCTION, RELAXED, Capture, Event, Executable, Operation, Stream, Work, disturb


class Gpu:
    """The streams and units of one device."""

    def __init__(self, device: Device, clock: Clock, trace: Trace) -> None:
        self.device, self.clock, self.trace, self.races = device, clock, trace, Races(name_of)
        self.units = {name: Timetable() for name in ("h2d", "d2h", "compute")}
        self.legacy = Stream(True)
        self.legacy.name = "the default stream"
        self.streams: list[Stream] = []
        self.all = Operation(Work(""), "")  # as if it came after everything on the device
        self.captures: list[Capture] = []
        self._launcher = Timetable()  # the driver's lock: one thread launches at a time
        self._launching: set[int] = set()  # indices of the threads that are in the middle of an enqueue
        self.calls_the_host = False  # host functions are, or were, on its streams
        self._leaving: list[Line] = []
        self.submitted = 0
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

    def submit(
        self, stream: Stream, work: Work, after: Sequence[Operation], launches: bool = False, line: Line | None = None
    ) -> Operation:
        """Put work behind operations; ``line`` is the stream, or a branch of the graph that is launched there."""
        thread, line = self.clock.thread(), line or stream
        ready = max([one.end if work.unit in ("", one.unit) else one.handed_over for one in after], default=0)
        called = [self._launch(thread) if launches else (self.trace.correlation, thread.now) for _ in work.pieces]
        starts = []
        for (name, duration, share), (correlation, launched) in zip(work.pieces, called):
            start, ready = self._reserve(work.unit, max(ready, launched), duration, share)
            self.trace.operations.append((start, ready, work.unit, name, stream.handle, correlation, work.nbytes))
            starts.append(start)
        self._launching.discard(thread.index)
        operation = Operation(work, work.unit, starts[0] if starts else max(ready, thread.now))
        operation.end = operation.handed_over = max(ready, operation.start)
        if work.unit:
            operation.handed_over += self.device.handover
        elif after:
            latest = max(after, key=lambda earlier: earlier.handed_over)
            operation.unit, operation.handed_over = latest.unit, max(operation.end, latest.handed_over)
        self._order(operation, line, [thread.order, *(one.order for one in after)])
        stream.tail, stream.waits = operation, []
        return operation

    def _order(self, operation: Operation, line: Line, before: list[Order]) -> None:
        """Make an operation the next on its line, to be executed once something waits for it; look for races."""
        operation.number, work = line.advance(*before), operation.work
        operation.order = line.order
        line.queued.append(operation)
        self.submitted += 1
        operation.serial = self.submitted
        self.all.order[line] = operation.number
        self.all.end = max(self.all.end, operation.end)
        self.races.note(work.reads, line, False, work.what, work.site)
        self.races.note(work.writes, line, True, work.what, work.site)

    def launch(self, graph: Executable, stream: Stream, site: str) -> None:
        """Run a graph's nodes after the stream's earlier work and the graph's earlier launches; then the stream goes on."""
        self.check_legacy(stream)
        roots = [*self.pending(stream), *([graph.last] if graph.last is not None else [])]
        operations: list[Operation] = []
        for work, dependencies, branch in graph.nodes:
            after = [operations[index] for index in dependencies] or roots
            graph.branches[branch].name = f"the graph launched at {site}"
            operations.append(self.submit(stream, work, after, line=graph.branches[branch]))
        graph.last = self.submit(stream, Work(""), [*roots, *operations])

    def everything(self) -> list[Operation]:
        """What must be over before the device is idle."""
        return [replace(self.all, order=dict(self.all.order))]

    def end(self, capture: Capture) -> None:
        """A capture is over, well or not: its streams do ordinary work again."""
        for member in capture.streams:
            member.capture = None
        self.captures.remove(capture)

    def retire(self, *lines: Line) -> None:
        """Lines on which nothing more will happen. Those that all threads know to be over are taken out of what they know."""
        threads = list(self.clock.threads.values())
        self._leaving += lines
        for line in self._leaving:
            line.over = not line.queued and all(thread.order.get(line, 0) >= line.count for thread in threads)
        if any(line.over for line in self._leaving):
            self._leaving = [line for line in self._leaving if not line.over]
            streams = (self.legacy, *self.streams)
            tails = [stream.tail for stream in streams if stream.tail is not None]
            holders: list[Line | Operation] = [self.all, *threads, *streams, *tails]
            for holder in holders:
                holder.order = {line: number for line, number in holder.order.items() if not line.over}

    def execute(self, order: Order) -> None:
        """Execute what is in an order and has not been yet, as it was submitted."""
        due: list[Operation] = []
        for line, number in order.items():
            while line.queued and line.queued[0].number <= number:
                due.append(line.queued.popleft())
        for operation in sorted(due, key=lambda operation: operation.serial):
            if operation.work.what == HOST_FUNCTION:  # what it tells a thread comes after its work
                thread = self.clock.thread()
                thread.learn(operation.order)
                thread.now = max(thread.now, operation.end)
            operation.work.run()

    def serve_the_host(self) -> None:
        """A thread is about to wait, perhaps for what a host function will say: these are due."""
        if self.calls_the_host:
            self.execute(dict(self.all.order))

    def _reserve(self, unit: str, ready: int, duration: int, share: float) -> tuple[int, int]:
        """Book the unit. While copies to the device and kernels run together, the kernels go slower."""
        if unit == "compute":
            charge = min(self._owed, 0.5 * duration)
            self._owed -= charge
            duration += round(charge)
        start, end = self.units[unit].reserve(ready, duration, share)
        if other := {"compute": "h2d", "h2d": "compute"}.get(unit):
            self._owed += self.device.copy_slows_compute * self.units[other].busy_between(start, end)
        return start, end

    def pending(self, stream: Stream) -> list[Operation]:
        """What comes before the next work of ``stream``: its own, the events it waits for, what the default stream adds."""
        others = [s for s in self.streams if s.blocking] if stream is self.legacy else [self.legacy] * stream.blocking
        return [last for s in (stream, *others) for last in s.last]

    def wait(self, operations: Iterable[Operation]) -> None:
        """The host waits: execute the operations and take the thread's clock to the end of the last, and on to its waking."""
        thread, end = self.clock.thread(), 0
        for operation in operations:
            thread.learn(operation.order)
            end = max(end, operation.end)
        self.execute(thread.order)
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
        self.check_legacy(stream)
        if event.captured is not None:
            capture, nodes = event.captured
            require(capture in self.captures)
            require(not capture.invalidated, cudaError_t.cudaErrorCapturedEvent)
            if stream.capture not in (None, capture):
                disturb(cudaError_t.cudaErrorStreamCaptureMerge, stream.capture, capture)
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
        own = [c for c in self.captures if c.thread is thread and c.mode != RELAXED and thread.capture_mode != RELAXED]
        others = [c for c in self.captures if c.thread is not thread and c.mode == GLOBAL and thread.capture_mode == GLOBAL]
        disturb(cudaError_t.cudaErrorStreamCaptureUnsupported, *(self.captures if anywhere else own + others))

    def check_legacy(self, stream: Stream) -> None:
        """Work on the default stream would have to wait for the blocking streams that are being captured."""
        if stream is self.legacy:
            disturb(cudaError_t.cudaErrorStreamCaptureImplicit, *(s.capture for s in self.streams if s.blocking))
