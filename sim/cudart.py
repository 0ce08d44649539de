"""A drop-in for ``cuda.bindings.runtime``: the names, argument orders and results that TensorRT scripts use.

Every call returns ``(error, *results)``, as cuda-python's do. The rules are CUDA's; ``tests/test_cudart_rules.py`` runs
the same checks on this module and, where there is a GPU, on the real one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from sim import enums
from sim.calls import StreamCalls
from sim.calls_graphs import GraphCalls
from sim.calls_memory import MemoryCalls
from sim.enums import FLAGS, HANDLES, CudaFailure, cudaError_t
from sim.enums import cudaDeviceAttr as cudaDeviceAttr
from sim.enums import cudaMemcpyKind as cudaMemcpyKind
from sim.enums import cudaMemoryType as cudaMemoryType
from sim.enums import cudaStreamCaptureMode as cudaStreamCaptureMode
from sim.enums import cudaStreamCaptureStatus as cudaStreamCaptureStatus
from sim.names import lack
from sim.simulator import simulator
from sim.sites import site


class Calls(StreamCalls, MemoryCalls, GraphCalls):
    """All of them, and the errors' own: these are no calls to the device, take no time, and return the whole result."""

    def cudaGetLastError(self) -> tuple[cudaError_t]:
        [error], self.thread.last_error = self.cudaPeekAtLastError(), cudaError_t.cudaSuccess
        return (error,)

    def cudaPeekAtLastError(self) -> tuple[cudaError_t]:
        return (cudaError_t(self.thread.last_error),)

    def cudaGetErrorName(self, error: cudaError_t) -> tuple[cudaError_t, bytes]:
        return cudaError_t.cudaSuccess, cudaError_t(error).name.encode()

    def cudaGetErrorString(self, error: cudaError_t) -> tuple[cudaError_t, bytes]:
        return cudaError_t.cudaSuccess, cudaError_t(error).meaning.encode()


def _function(method: Callable[..., Any]) -> Callable[..., tuple]:
    """The CUDA call that ``method`` makes: in turn, counted, timed and traced. Returns ``(error, *results)``."""
    name, signature = method.__name__, inspect.signature(method)
    returns = signature.return_annotation
    results = 0 if returns == "None" else 2 if returns.startswith("tuple[") else 1

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> tuple:
        sim = simulator()
        if "cudaError_t" in returns:
            return method(Calls(sim), *args, **kwargs)
        with sim.clock.turn() as thread:
            sim.ignored(thread)
            start = thread.now
            sim.trace.correlation += 1
            correlation, cost = sim.trace.correlation, sim.device.calls.get(name, sim.device.call)
            sim.interpret(thread, min(cost, sim.device.call))
            thread.now += max(0, cost - sim.device.call)  # inside the driver, which runs without the interpreter lock
            sim.calls += 1
            error, found = cudaError_t.cudaSuccess, (None,) * results
            try:
                if sim.calls in sim.failures:
                    sim.failed.append(f"{name} at {site()}")
                    raise CudaFailure(sim.failures[sim.calls])
                value = method(Calls(sim), *args, **kwargs)
                found = value if results > 1 else (value,) * results
            except CudaFailure as failure:
                error = failure.error
                if error != cudaError_t.cudaErrorNotReady:  # a state, not an error: it is not remembered
                    thread.last_error = error
            sim.trace.calls.append((start, thread.now, name, thread.index, correlation, int(error)))
            if thread.last_error is error:
                thread.unseen = (enums.looks, f"{name} at {site()} answered {error.name}")
        return (error, *found)

    call.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return call


UNCALLABLE = """
    cudaCtxResetPersistingL2Cache cudaDeviceReset cudaDeviceSetLimit cudaFuncGetAttributes cudaGraphDebugDotPrint
    cudaMallocManaged cudaMemPrefetchAsync cudaMemcpyPeerAsync cudaStreamAddCallback cudaStreamGetCaptureInfo
"""  # there, as a script may ask (an H200's answers in tests/fuzz), but not to be called
globals().update(FLAGS | HANDLES)
__getattr__ = partial(lack, what="simulated CUDA runtime")
globals().update({name: partial(lack, name) for name in UNCALLABLE.split()})
globals().update({name: _function(getattr(Calls, name)) for name in dir(Calls) if name.startswith("cuda")})
