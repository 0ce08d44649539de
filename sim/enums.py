"""Constants with the names and values of ``cuda.bindings.runtime`` and ``tensorrt`` (tests compare them)."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.names import Enumeration


class Described(Enumeration):
    """Members that stand for something besides their number: ``NAME = number, meaning``."""

    meaning: Any

    def __new__(cls, number: int, meaning: Any = None) -> Described:
        member = int.__new__(cls, number)
        member._value_, member.meaning = number, meaning
        return member


looks = 0  # how often a script has looked at an error code


def _looking(compare: Any) -> Any:
    def look(*values: Any) -> Any:
        global looks
        looks += 1
        return compare(*values)

    return look


class cudaError_t(Described):
    """Each with CUDA's text. Who compares or converts one has looked at it."""

    __eq__, __ne__ = _looking(int.__eq__), _looking(int.__ne__)
    __bool__, __int__, __hash__ = _looking(int.__bool__), _looking(int.__int__), int.__hash__  # type: ignore[assignment]

    cudaSuccess = 0, "no error"
    cudaErrorInvalidValue = 1, "invalid argument"
    cudaErrorMemoryAllocation = 2, "out of memory"
    cudaErrorInitializationError = 3, "initialization error"
    cudaErrorCudartUnloading = 4, "driver shutting down"
    cudaErrorInvalidMemcpyDirection = 21, "invalid copy direction for memcpy"
    cudaErrorInsufficientDriver = 35, "CUDA driver version is insufficient for CUDA runtime version"
    cudaErrorDevicesUnavailable = 46, "CUDA-capable device(s) is/are busy or unavailable"
    cudaErrorInvalidDeviceFunction = 98, "invalid device function"
    cudaErrorNoDevice = 100, "no CUDA-capable device is detected"
    cudaErrorInvalidDevice = 101, "invalid device ordinal"
    cudaErrorNoKernelImageForDevice = 209, "no kernel image is available for execution on the device"
    cudaErrorInvalidResourceHandle = 400, "invalid resource handle"
    cudaErrorIllegalState = 401, "the operation cannot be performed in the present state"
    cudaErrorNotReady = 600, "device not ready"
    cudaErrorIllegalAddress = 700, "an illegal memory access was encountered"
    cudaErrorHostMemoryAlreadyRegistered = 712, "part or all of the requested memory range is already mapped"
    cudaErrorHostMemoryNotRegistered = 713, "pointer does not correspond to a registered memory region"
    cudaErrorLaunchFailure = 719, "unspecified launch failure"
    cudaErrorCooperativeLaunchTooLarge = 720, "too many blocks in cooperative launch"
    cudaErrorNotSupported = 801, "operation not supported"
    cudaErrorStreamCaptureUnsupported = 900, "operation not permitted when stream is capturing"
    cudaErrorStreamCaptureInvalidated = 901, "operation failed due to a previous error during capture"
    cudaErrorStreamCaptureMerge = 902, "operation would result in a merge of separate capture sequences"
    cudaErrorStreamCaptureUnmatched = 903, "capture was not ended in the same stream as it began"
    cudaErrorStreamCaptureUnjoined = 904, "capturing stream has unjoined work"
    cudaErrorStreamCaptureIsolation = 905, "dependency created on uncaptured work in another stream"
    cudaErrorStreamCaptureImplicit = 906, "operation would make the legacy stream depend on a capturing blocking stream"
    cudaErrorCapturedEvent = 907, "operation not permitted on an event last recorded in a capturing stream"
    cudaErrorStreamCaptureWrongThread = 908, "attempt to terminate a thread-local capture sequence from another thread"
    cudaErrorTimeout = 909, "wait operation timed out"
    cudaErrorGraphExecUpdateFailure = (
        910,
        "the graph update was not performed because it included changes which violated constraints specific to instantiated "
        "graph update",
    )
    cudaErrorUnknown = 999, "unknown error"


class CudaFailure(Exception):
    """Ends a simulated call with this error code."""

    def __init__(self, error: cudaError_t) -> None:
        super().__init__(error.name)
        self.error = error


def require(condition: object, error: cudaError_t = cudaError_t.cudaErrorInvalidValue) -> None:
    """End the call with ``error`` unless the condition is met."""
    if not condition:
        raise CudaFailure(error)


class cudaMemcpyKind(Enumeration):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(Enumeration):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class cudaStreamCaptureStatus(Enumeration):
    cudaStreamCaptureStatusNone = 0
    cudaStreamCaptureStatusActive = 1
    cudaStreamCaptureStatusInvalidated = 2


class cudaMemoryType(Enumeration):
    cudaMemoryTypeUnregistered = 0
    cudaMemoryTypeHost = 1
    cudaMemoryTypeDevice = 2
    cudaMemoryTypeManaged = 3


class cudaDeviceAttr(Described):
    """Each with its value, or with the name of the device's property that has it."""

    cudaDevAttrMaxThreadsPerBlock = 1, 1024
    cudaDevAttrWarpSize = 10, 32
    cudaDevAttrMultiProcessorCount = 16, "multiProcessorCount"
    cudaDevAttrIntegrated = 18, 0
    cudaDevAttrCanMapHostMemory = 19, 1
    cudaDevAttrConcurrentKernels = 31, 1
    cudaDevAttrAsyncEngineCount = 40, "asyncEngineCount"
    cudaDevAttrUnifiedAddressing = 41, 1
    cudaDevAttrComputeCapabilityMajor = 75, "major"
    cudaDevAttrComputeCapabilityMinor = 76, "minor"
    cudaDevAttrStreamPrioritiesSupported = 78, 1
    cudaDevAttrManagedMemory = 83, 0
    cudaDevAttrPageableMemoryAccess = 88, 0
    cudaDevAttrHostRegisterSupported = 99, 1
    cudaDevAttrMemoryPoolsSupported = 115, 1


FLAGS = {"cudaStreamDefault": 0, "cudaStreamNonBlocking": 1, "cudaStreamLegacy": 1, "cudaStreamPerThread": 2}
FLAGS |= {"cudaEventDefault": 0, "cudaEventBlockingSync": 1, "cudaEventDisableTiming": 2, "cudaEventWaitDefault": 0}
FLAGS |= {"cudaEventInterprocess": 4, "cudaEventWaitExternal": 1, "cudaEventRecordDefault": 0, "cudaEventRecordExternal": 1}
FLAGS |= {"cudaHostRegisterDefault": 0, "cudaHostRegisterPortable": 1, "cudaHostRegisterMapped": 2}
FLAGS |= {"cudaHostAllocDefault": 0, "cudaHostAllocPortable": 1, "cudaHostAllocMapped": 2, "cudaHostAllocWriteCombined": 4}


class Handle(int):
    """An opaque handle: an integer with a type of its own, as cuda-python's handles convert to one."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {int(self):#x}>"


HANDLES = {n: type(n, (Handle,), {}) for n in map("cuda{}_t".format, ("Stream", "Event", "Graph", "GraphExec", "GraphNode"))}


class DataType(Described):
    """Each with NumPy's type."""

    FLOAT = 0, np.float32
    HALF = 1, np.float16
    INT8 = 2, np.int8
    INT32 = 3, np.int32
    BOOL = 4, np.bool_
    UINT8 = 5, np.uint8
    INT64 = 8, np.int64


TensorIOMode = Enumeration("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
LayerInformationFormat = Enumeration("LayerInformationFormat", {"ONELINE": 0, "JSON": 1})
