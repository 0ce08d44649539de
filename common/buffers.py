"""Memory on the device and page-locked memory on the host, and copies whose direction is right by construction."""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from common.cuda import CudaError, Event, Resource, Stream, cudart

if TYPE_CHECKING:
    from common.run import Session


class DeviceBuffer(Resource):
    """``nbytes`` of device memory at ``address``, owned by this object: freed by ``close``, not before."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.handle = int(cudart.cudaMalloc(nbytes))

    @property
    def address(self) -> int:
        return self.handle

    def _destroy(self, handle: int) -> None:
        cudart.cudaFree(handle)


def _free_host(free: Callable[[int], None], address: int) -> None:
    with contextlib.suppress(CudaError):  # the process is ending and the driver has gone first; the memory goes with it
        free(address)


def page_locked(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """An uninitialised array in page-locked ("pinned") host memory, freed when its last view is gone.

    The copy engine reads and writes such memory by itself, so a copy runs at the link's speed and beside the host.
    """
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    address = int(cudart.cudaMallocHost(nbytes))
    memory = (ctypes.c_byte * nbytes).from_address(address)  # what the array and all its views hold on to
    weakref.finalize(memory, _free_host, cudart.cudaFreeHost, address)
    return np.frombuffer(memory, dtype).reshape(shape)


def pageable(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """An array in ordinary host memory, touched once so that no page fault falls into a measurement."""
    array = np.empty(shape, dtype)
    array.fill(0)  # np.zeros would leave the pages to be found at the first write
    return array


def _copy(to: str, host: np.ndarray, device: DeviceBuffer, stream: Stream | None = None) -> None:
    if not host.flags.c_contiguous or host.nbytes > device.nbytes:
        array = "host array" if host.flags.c_contiguous else "non-contiguous host array"
        raise ValueError(f"cannot copy between {device.nbytes} bytes on the device and a {array} of {host.nbytes}")
    if to == "device":
        ends, kind = (device.address, host.ctypes.data), cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
    else:
        ends, kind = (host.ctypes.data, device.address), cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
    if stream is None:
        cudart.cudaMemcpy(*ends, host.nbytes, kind)
    else:
        cudart.cudaMemcpyAsync(*ends, host.nbytes, kind, stream.handle)


def copy_to_device(device: DeviceBuffer, host: np.ndarray) -> None:
    """``cudaMemcpy``: the host waits for it."""
    _copy("device", host, device)


def copy_to_host(host: np.ndarray, device: DeviceBuffer) -> None:
    """``cudaMemcpy``: the host waits for it."""
    _copy("host", host, device)


def copy_to_device_async(device: DeviceBuffer, host: np.ndarray, stream: Stream) -> None:
    """``cudaMemcpyAsync`` on ``stream``. ``host`` must stay as it is until the copy is over."""
    _copy("device", host, device, stream)


def copy_to_host_async(host: np.ndarray, device: DeviceBuffer, stream: Stream) -> None:
    """``cudaMemcpyAsync`` on ``stream``. ``host`` holds the data only once the copy is over."""
    _copy("host", host, device, stream)


class Slot:
    """The buffers of one batch in flight, and an event for each step of its way: 5_multi_streams.py explains them, and not
    every stage needs them all."""

    def __init__(self, run: Session, resources: ExitStack) -> None:
        self.host_output = page_locked(run.output_shape, run.output_type)
        self.device_input = resources.enter_context(DeviceBuffer(run.batches[0].nbytes))
        self.device_output = resources.enter_context(DeviceBuffer(self.host_output.nbytes))
        self.copied, self.computed, self.returned = (resources.enter_context(Event()) for _ in range(3))
