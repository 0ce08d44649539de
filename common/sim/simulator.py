"""The state of the simulated process: one device, its memory and streams, the clocks, the trace, the last error."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.sim import device as devices
from common.sim.clock import Clock, Engine, HostThread
from common.sim.enums import Handle, cudaError_t
from common.sim.memory import AddressSpace
from common.sim.threads import Hooks
from common.sim.trace import Trace
from common.sim.work import CudaFailure, Event, Gpu, Graph, Stream

DEFAULT_DEVICE = "v100-sxm2-32gb"
OWN_CODE = str(Path(__file__).resolve().parent.parent)


class Simulator:
    """A fresh simulated process with the given device.

    ``scale``: every byte, operation and image is charged this many times (``--charge-batch`` over ``--batch``).
    """

    def __init__(self, device: str = DEFAULT_DEVICE, scale: float = 1.0) -> None:
        self.device = devices.load(device)
        self.scale = scale
        self.clock = Clock()
        self.clock.thread()  # the thread that makes the simulator is a host thread from the start
        self.trace = Trace()
        self.space = AddressSpace(self.device.memory_bytes, scale)
        self.gpu = Gpu(self.device, self.clock, self.trace)
        self.hooks = Hooks(self.clock, self.interpret, self.device.queue, self.device.thread_wake_up)
        self._interpreter = Engine()
        self.handles: dict[int, Stream | Event | Graph] = {}
        self.last_error = cudaError_t.cudaSuccess
        self.calls = 0
        self._failure: tuple[int, cudaError_t] | None = None
        self._next_handle = 0x1000

    def close(self) -> None:
        self.hooks.remove()

    # -- calls

    def call(self, name: str, body: Callable[..., Any], results: int, args: tuple, kwargs: dict) -> tuple:
        """Make one CUDA call: in turn, counted, timed and traced. Returns ``(error, *results)``."""
        with self.clock.turn() as thread:
            start = thread.now
            self.trace.correlation += 1
            correlation = self.trace.correlation
            cost = self.device.call_cost(name)
            self.interpret(thread, min(cost, self.device.call))
            thread.now += max(0, cost - self.device.call)  # inside the driver, which runs without the interpreter lock
            self.calls += 1
            error, values = cudaError_t.cudaSuccess, None
            try:
                if self._failure is not None and self.calls == self._failure[0]:
                    raise CudaFailure(self._failure[1])
                values = body(*args, **kwargs)
            except CudaFailure as failure:
                error = failure.error
                if error != cudaError_t.cudaErrorNotReady:  # a state, not an error: it is not remembered
                    self.last_error = error
            self.trace.call(name, start, thread.now, thread.index, correlation, int(error))
        if error != cudaError_t.cudaSuccess:
            return (error, *([None] * results))
        return (error, *values) if results > 1 else (error, values) if results else (error,)

    def interpret(self, thread: HostThread, duration: int) -> None:
        """``thread`` runs Python for ``duration`` ns: it needs the interpreter lock, which one thread has at a time."""
        if duration:
            _, thread.now = self._interpreter.reserve(thread.now, duration)

    def fail_at(self, n: int, error: cudaError_t = cudaError_t.cudaErrorUnknown) -> None:
        """Make the n-th CUDA call from now fail with ``error``."""
        self._failure = (self.calls + n, error)

    # -- handles and memory

    def register(self, kind: type[Handle], item: Any) -> Handle:
        self._next_handle += 0x10
        self.handles[self._next_handle] = item
        item.handle = self._next_handle
        return kind(self._next_handle)

    def lookup(self, handle: Any, kind: type) -> Any:
        item = self.handles.get(int(handle))
        if not isinstance(item, kind):
            raise CudaFailure(cudaError_t.cudaErrorInvalidResourceHandle)
        return item

    def stream(self, handle: Any) -> Stream:
        """The stream of a handle; 0, None and ``cudaStreamLegacy`` are the default stream."""
        return self.gpu.legacy if handle is None or int(handle) in (0, 1) else self.lookup(handle, Stream)

    def leaks(self) -> list[str]:
        """What the script has not given back, with the line that made it."""
        found = [f"{a.size:,} bytes of {a.kind} memory, {a.site}" for a in self.space.live()]
        return found + [f"{type(item).__name__.lower()}, {item.site}" for item in self.handles.values()]

    def write_trace(self, path: Path, **facts: Any) -> None:
        self.trace.write(path, self.device, {"SIMULATED": "true", "CHARGE_SCALE": self.scale, **facts})


_current: Simulator | None = None


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


def cuda_call(results: int = 0) -> Callable[[Callable[..., Any]], Callable[..., tuple]]:
    """Make a function a CUDA call that returns ``results`` values after its error code."""

    def decorate(body: Callable[..., Any]) -> Callable[..., tuple]:
        @functools.wraps(body)
        def call(*args: Any, **kwargs: Any) -> tuple:
            return simulator().call(body.__name__, body, results, args, kwargs)

        return call

    return decorate


def site() -> str:
    """``file:line`` of the nearest caller outside this package, for messages about what it made."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((OWN_CODE, "<")):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"

