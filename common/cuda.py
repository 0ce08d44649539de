"""Checked CUDA calls, and the CUDA objects of the ladder as context managers: streams, events, graphs.

``cudart`` has every name of ``cuda.bindings.runtime``. A function called through it raises ``CudaError`` instead of
returning an error code, and returns its result itself: ``stream = cudart.cudaStreamCreate()``.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

from common import backend
from common.errors import EnvironmentFault


class CudaError(EnvironmentFault):
    """A CUDA call failed. ``code`` is the ``cudaError_t``; the message has the call, its name and CUDA's text."""

    def __init__(self, call: str, code: Any, name: str, text: str) -> None:
        super().__init__(f"{call} failed: {name} ({text}).")
        self.call, self.code = call, code


class CaptureError(EnvironmentFault):
    """Work could not be captured into a graph; it can still be enqueued. The message is the reason."""


class CheckedRuntime:
    """``cuda.bindings.runtime`` of the selected backend, with every function checked."""

    failing: CudaError | None = None  # a broken device fails every later call, in any thread: each names the first one

    def __getattr__(self, name: str) -> Any:
        return _checked(backend.current().cudart, name)


@functools.cache
def _checked(runtime: Any, name: str) -> Any:
    attribute = getattr(runtime, name)
    if not callable(attribute) or isinstance(attribute, type):
        return attribute

    def checked(*args: Any) -> Any:
        code, *results = attribute(*args)
        first, cudart.failing = cudart.failing, None
        if int(code) != 0:
            said, text = (ask(code)[1].decode() for ask in (runtime.cudaGetErrorName, runtime.cudaGetErrorString))
            cudart.failing = first if first and first.code == code else CudaError(name, code, said, text)
            raise CudaError(cudart.failing.call, code, said, text)
        return results[0] if len(results) == 1 else tuple(results) or None

    return checked


cudart: Any = CheckedRuntime()


def versions() -> dict[str, str]:
    """Of the CUDA runtime and of the newest that the driver takes: ``{"runtime": "12.8", "driver": "13.0"}``."""
    found = {"runtime": cudart.cudaRuntimeGetVersion(), "driver": cudart.cudaDriverGetVersion()}
    return {name: f"{version // 1000}.{version % 1000 // 10}" for name, version in found.items()}


@contextlib.contextmanager
def giving_back() -> Iterator[None]:
    """Around a clean-up: while an exception is on its way, a CUDA error does not take its place but becomes a note of it."""
    earlier = sys.exc_info()[1]
    try:
        yield
    except CudaError as error:
        if earlier is None:
            raise
        vars(earlier).setdefault("__notes__", []).append(f"not given back: {error}")  # Python 3.11's add_note


class Resource:
    """Something CUDA made that must be destroyed once. ``handle`` is 0 after ``close``, which may be called again."""

    handle: int = 0

    def close(self) -> None:
        handle, self.handle = self.handle, 0
        if handle:
            with giving_back():
                self._destroy(handle)

    def _destroy(self, handle: int) -> None:
        raise NotImplementedError

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Stream(Resource):
    """A stream that does not wait for the default stream, nor the default stream for it."""

    def __init__(self) -> None:
        self.handle = int(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))

    def wait(self, event: Event) -> None:
        """What is enqueued here from now on runs after what ``event`` has recorded; the host does not wait."""
        cudart.cudaStreamWaitEvent(self.handle, event.handle, 0)

    def synchronize(self) -> None:
        cudart.cudaStreamSynchronize(self.handle)

    @contextlib.contextmanager
    def capture(self) -> Iterator[Graph]:
        """What is enqueued here inside the block does not run but is recorded into the graph, ready after the block.

        Raises ``CaptureError`` where that fails, by a CUDA or TensorRT error inside the block as well; the stream is as it
        was before. Other threads may go on allocating and synchronizing; only this one must not.
        """
        graph = Graph()
        try:
            cudart.cudaStreamBeginCapture(self.handle, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
            yield graph
            captured = cudart.cudaStreamEndCapture(self.handle)
            try:
                graph.handle = int(cudart.cudaGraphInstantiate(captured, 0))
            finally:
                with giving_back():
                    cudart.cudaGraphDestroy(captured)  # the executable graph does not need it
            cudart.cudaGraphUpload(graph.handle, self.handle)  # the first launch's preparation
        except BaseException as fault:
            if self._left_capture(graph) and isinstance(fault, EnvironmentFault):
                raise CaptureError(str(fault)) from fault
            raise

    def _left_capture(self, graph: Graph) -> bool:
        """End a broken capture, forget the error that it left, and drain the stream; False: more than the capture is broken."""
        with contextlib.suppress(CudaError):  # it says again what broke the capture, or that none is active
            cudart.cudaGraphDestroy(cudart.cudaStreamEndCapture(self.handle))
        backend.current().cudart.cudaGetLastError()
        try:
            graph.close()
            self.synchronize()
        except CudaError:
            return False
        return True

    def _destroy(self, handle: int) -> None:
        try:
            cudart.cudaStreamSynchronize(handle)  # drained first: what it uses may be freed right after
        finally:
            with giving_back():
                cudart.cudaStreamDestroy(handle)


class Event(Resource):
    """A point in a stream. Without ``timing`` it is cheaper, and cannot tell the time."""

    def __init__(self, timing: bool = False) -> None:
        flags = cudart.cudaEventDefault if timing else cudart.cudaEventDisableTiming
        self.handle = int(cudart.cudaEventCreateWithFlags(flags))

    def record(self, stream: Stream) -> None:
        cudart.cudaEventRecord(self.handle, stream.handle)

    def synchronize(self) -> None:
        """The host waits for what the event has recorded; not at all if it never was recorded."""
        cudart.cudaEventSynchronize(self.handle)

    def ms_since(self, earlier: Event) -> float:
        return cudart.cudaEventElapsedTime(earlier.handle, self.handle)

    def _destroy(self, handle: int) -> None:
        cudart.cudaEventDestroy(handle)


class Graph(Resource):
    """An executable graph, made by ``Stream.capture``: recorded work that one call launches."""

    def launch(self, stream: Stream) -> None:
        cudart.cudaGraphLaunch(self.handle, stream.handle)

    def _destroy(self, handle: int) -> None:
        cudart.cudaGraphExecDestroy(handle)
