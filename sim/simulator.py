"""The state of the simulated process: one device, its memory and streams, the clocks, the trace, the last error."""

from __future__ import annotations

import contextlib
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.backend import DEFAULT_DEVICE
from common.errors import UsageFault
from common.files import atomic_path
from sim import device as devices
from sim import enums, locks, views
from sim.clock import Clock, HostThread, Timetable
from sim.enums import FLAGS, HANDLES, Handle, cudaError_t, require
from sim.gpu import Gpu
from sim.memory import AddressSpace
from sim.races import HOST
from sim.sites import site
from sim.threads import Hooks
from sim.trace import Trace
from sim.work import Event, Graph, Stream, Work


class Simulator:
    """A fresh simulated process with the given device.

    ``scale``: every byte, operation and image is charged this many times (``--charge-batch`` over ``--batch``).
    """

    def __init__(self, device: str = DEFAULT_DEVICE, scale: float = 1.0) -> None:
        self.device, self.scale = devices.load(device), scale
        self.clock = Clock()
        self.clock.thread()  # the thread that makes the simulator is a host thread from the start
        self.trace = Trace()
        self.space = AddressSpace(self.device.memory_bytes, scale)
        self.gpu = Gpu(self.device, self.clock, self.trace)
        self.hooks = Hooks(self.clock, self.interpret, self.device.queue, self.device.thread_wake_up)
        self.close = self.hooks.remove
        self.hooks.before_waiting = self.gpu.serve_the_host
        locks.install(self.hooks)
        views.install(self.hooks.put, self.space.is_page_locked, self._host_touches)
        self._interpreter, self._decoder = Timetable(), Timetable()
        self.handles: dict[int, Stream | Event | Graph] = {}
        self.remarks: list[str] = []
        self.waited: dict[Event, str] = {}  # events waited for before they were recorded, and where
        self.failed: list[str] = []  # calls that were made to fail
        self.calls = 0
        self.failures: dict[int, cudaError_t] = {}  # by the number of the call
        if failing:
            self.fail_at(failing)
        self._next_handle = 0x1000
        self._own: dict[HostThread, Stream] = {}  # each thread's default stream

    def interpret(self, thread: HostThread, duration: int) -> None:
        """``thread`` runs Python for ``duration`` ns: it needs the interpreter lock, which one thread has at a time."""
        if duration:
            _, thread.now = self._interpreter.reserve(thread.now, duration)

    def _host_touches(self, start: int, stop: int, write: bool) -> None:
        """The calling thread reads or writes page-locked memory."""
        found = self.space.find(start)
        if found is not None and not found.live:
            verb = "written" if write else "read"
            self.remark(f"freed too early: page-locked memory made at {found.site} is {verb} at {site()}, after it was freed")
        elif found is not None:
            ranges = found.range(start - found.address, min(stop, found.address + found.size) - start)
            with self.clock.lock:
                thread = self.clock.thread()
                thread.advance()
                self.gpu.races.note(ranges, thread, write, HOST, site())

    def decoded(self, images: int, decoder: str, now: int) -> int:
        """When a decoder has decoded so many JPEG files that it gets ``now``."""
        if decoder not in self.device.decode_rates:
            raise UsageFault(f"--device {self.device.name}: its file has no rate of the decoder {decoder}.")
        return self._decoder.reserve(now, round(images * self.scale / self.device.decode_rates[decoder]))[1]

    def place(self, pixels: np.ndarray, address: int, stream: int) -> None:
        """What the GPU's decoder writes: ``pixels`` to device memory, in the stream's order. (Its time is ``decoded``'s.)"""
        with self.clock.turn():
            target, data = self.space.span(address, pixels.nbytes), pixels.reshape(-1).view(np.uint8)
            run = partial(np.copyto, target.view, data)
            self.gpu.enqueue(self.stream(stream), Work("", (), run, what="the decoder", site=site(), writes=target.ranges))

    def fail_at(self, n: int, error: cudaError_t = cudaError_t.cudaErrorUnknown) -> None:
        """Make the n-th CUDA call from now fail with ``error``."""
        self.failures = {self.calls + n: error}

    def register(self, kind: str, item: Stream | Event | Graph) -> Handle:
        """A new handle, of the type that CUDA calls ``kind``."""
        self._next_handle += 0x10
        item.handle, item.site = self._next_handle, site()
        self.handles[item.handle] = item
        if isinstance(item, Stream):
            item.name = f"the stream made at {item.site}"
        return HANDLES[kind](item.handle)

    def lookup(self, handle: Any, kind: type) -> Any:
        item = self.handles.get(int(handle or 0))
        require(isinstance(item, kind), cudaError_t.cudaErrorInvalidResourceHandle)
        return item

    def release(self, handle: Any, kind: type) -> Any:
        """Forget a handle; what it stood for."""
        self.lookup(handle, kind)
        return self.handles.pop(int(handle))

    def stream(self, handle: Any) -> Stream:
        """The stream of a handle; 0, None and ``cudaStreamLegacy`` are the default one, ``cudaStreamPerThread`` a thread's."""
        number = int(handle or 0)
        if number == FLAGS["cudaStreamPerThread"]:
            thread = self.clock.thread()
            if thread not in self._own:
                self._own[thread] = Stream(True)
                self._own[thread].name = f"the default stream of {thread.name}"
                self.gpu.streams.append(self._own[thread])
            return self._own[thread]
        return self.gpu.legacy if number in (0, 1) else self.lookup(number, Stream)

    def ignored(self, thread: HostThread) -> None:
        """Remark that nobody has looked at the error that a thread's last call answered, if that is so."""
        unseen, thread.unseen = thread.unseen, None
        if unseen is not None and unseen[0] == enums.looks:
            self.remark(f"ignored: {unseen[1]}, and nothing looked at it")

    def all_remarks(self) -> list[str]:
        """Also those that only the end of the script shows."""
        for thread in self.clock.threads.values():
            self.ignored(thread)
        for event, where in self.waited.items():
            if event.operation is None and event.captured is None:
                self.remark(f"waits for nothing: {where} waits for the event made at {event.site}, which is never recorded")
        for cells in self.space.unread():
            self.remark(f"copied for nothing: {cells.filled} copies into {cells.name}, which nothing reads")
        return self.remarks

    def remark(self, text: str) -> None:
        """Note once what is no error, and hardly meant."""
        if text not in self.remarks:
            self.remarks.append(text)

    def leaks(self) -> list[str]:
        """What the script has not given back, with the line that made it."""
        found = [f"{a.size:,} bytes of {a.kind} memory, {a.site}" for a in self.space.live()]
        return found + [f"{item.kind}, {item.site}" for item in self.handles.values()]

    def database(self, **facts: Any) -> sqlite3.Connection:
        """The timeline so far as an SQLite database in memory, in Nsight Systems' schema."""
        return self.trace.database(self.device, {"SIMULATED": "true", "CHARGE_SCALE": self.scale, **facts})

    def write_trace(self, path: Path, **facts: Any) -> None:
        closing = contextlib.closing
        with atomic_path(path) as new, closing(self.database(**facts)) as database, closing(sqlite3.connect(new)) as file:
            database.backup(file)


_current: Simulator | None = None
failing: int | None = None  # the number of the call that fails in every simulated process


def simulator() -> Simulator:
    """The simulated process; made with the default device by whoever asks first."""
    return _current if _current is not None else start()


def start(device: str = DEFAULT_DEVICE, scale: float = 1.0) -> Simulator:
    """Forget the simulated process, if there is one, and begin a new one."""
    global _current
    if _current is not None:
        _current.close()
    _current = Simulator(device, scale)
    return _current
