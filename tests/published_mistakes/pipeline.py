"""What the scripts of this folder share: a plan loaded, page-locked arrays, and a check of what a call answers."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import tensorrt as trt
from cuda.bindings import runtime as cudart

TO_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
TO_HOST = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
INPUT, OUTPUT = (2, 3, 32, 32), (2, 10)
BATCHES = 4


def call(result):
    error, *values = result
    if error != cudart.cudaError_t.cudaSuccess:
        raise RuntimeError(cudart.cudaGetErrorName(error)[1].decode())
    return values[0] if values else None


def load():
    """A context for batches of two images, of the plan that the command names."""
    logger = trt.Logger(trt.Logger.ERROR)
    with open(sys.argv[1], "rb") as plan:
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan.read())
    context = engine.create_execution_context()
    assert context.set_input_shape("images", INPUT)
    return context


def bind(context, device_input, device_output):
    assert context.set_tensor_address("images", device_input)
    assert context.set_tensor_address("logits", device_output)


def page_locked(shape):
    nbytes = 4 * int(np.prod(shape))
    address = call(cudart.cudaMallocHost(nbytes))
    array = np.frombuffer((ctypes.c_byte * nbytes).from_address(address), np.float32).reshape(shape)
    array[...] = 1
    return array


def device(shape):
    return call(cudart.cudaMalloc(4 * int(np.prod(shape))))


def copy_in(target, array, stream):
    call(cudart.cudaMemcpyAsync(target, array.ctypes.data, array.nbytes, TO_DEVICE, stream))


def copy_out(array, source, stream):
    call(cudart.cudaMemcpyAsync(array.ctypes.data, source, array.nbytes, TO_HOST, stream))


def stream():
    return call(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))


def event():
    return call(cudart.cudaEventCreateWithFlags(cudart.cudaEventDisableTiming))


def give_back(*, memory=(), arrays=(), streams=(), events=(), executables=()):
    for kind, items in (
        (cudart.cudaStreamDestroy, streams),
        (cudart.cudaEventDestroy, events),
        (cudart.cudaGraphExecDestroy, executables),
        (cudart.cudaFree, memory),
        (cudart.cudaFreeHost, [array.ctypes.data for array in arrays]),
    ):
        for item in items:
            call(kind(item))
