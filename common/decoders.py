"""The decoders of JPEG files that a stage can have, on the host's cores or on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache, lru_cache, partial
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from common import backend, jpeg, ranges
from common.buffers import DeviceBuffer, copy_to_host
from common.cuda import Stream, cudart
from common.engine import Engine
from common.errors import EnvironmentFault, UsageFault, reason
from common.host import cores
from common.images import channels_first, planes, write
from common.photographs import BLEED, Loader

Files = Sequence["tuple[str, jpeg.Content]"]  # name and content
APART = 8
"""Levels of 255 by which a row of pixels of the GPU's picture is off Pillow's, on average, where its file is damaged. All rows
of a whole file are off by 1.5 at most, of one whose scan was cut by 43 (reports/h200-jpeg/probe.txt)."""
View = tuple[int, "tuple[int, ...]", "tuple[int, ...] | None"]  # of device memory: address, shape, strides


def refused_by(engine: Engine) -> str:
    """Why a plan does not take the pictures of the GPU's decoder; "" where it does."""
    if engine.input_type == np.uint8 and min(engine.input_shape(1)[1:]) >= 3:
        return ""
    return f"writes uint8 pictures in colour, and {engine.plan} takes {engine.input}: build it with --input bytes"


def shared_out(threads: int, until: ExitStack | None = None) -> Callable[..., Iterable[Any]]:
    """A ``map`` whose work threads share, which have ended when ``until`` is left. On the simulated backend it is Python's, as
    a decoder's time is one figure there, in which the threads' own coming and going is contained."""
    if backend.current().simulator is not None:
        return map
    pool = ThreadPoolExecutor(threads)
    return (until.enter_context(pool) if until else pool).map


class CpuDecoder:
    """Decodes on the host, a thread a core. ``left_to_pillow``: see ``Loader``."""

    threads = 1

    def __init__(self, name: str, engine: Engine) -> None:
        self.name, self.load = name, Loader(name, *height_and_width(engine))
        self.left_to_pillow, self._map = self.load.left_to_pillow, shared_out(cores())
        self.apart = dict[str, str]()  # of none: all decoders of the host are one library's

    def decode(self, files: Files, destination: np.ndarray) -> None:
        """Write each file's picture into its row of ``destination`` (N×C×H×W or N×H×W×C), black where it is unreadable."""

        def decode_row(row: int) -> None:
            write(loaded(self.load, *files[row])[None], destination[row : row + 1])

        with ranges.pushed(ranges.DECODE, len(files), self.name):
            list(self._map(decode_row, range(len(files))))

    to_host = decode


class Lane:
    """What one thread at a time decodes with on a GPU: nvImageCodec's decoder, and what is costly to make and so is kept from
    batch to batch, the pictures in device memory and CV-CUDA's views of memory.

    The stream is never destroyed: both libraries remember it, and enqueue there what gives their memory back."""

    def __init__(self, codec: Any, cvcuda: Any) -> None:
        self._codec, self.cvcuda, self.stream = codec, cvcuda, Stream()
        self.on, self._images = cvcuda.as_stream(self.stream.handle), list[Any]()
        # The engines take what they can, and the multiprocessors the rest; where there are no engines, everything
        self._decoder = codec.Decoder(backends=[codec.Backend(kind) for kind in (codec.HW_GPU_ONLY, codec.HYBRID_CPU_GPU)])
        self._params = codec.DecodeParams(apply_exif_orientation=False)
        rows = cvcuda.TensorLayout("HWC")
        # (A method in the place of the lambda would be a circle, which ends after the libraries)
        self.tensor = lru_cache(8)(lambda shape: cvcuda.Tensor(shape, cvcuda.Type.U8, "NHWC", rowalign=1))
        self.tensors = lru_cache(16)(lambda views: cvcuda.as_tensors([DeviceArray(*each) for each in views], rows))

    def decode(self, contents: dict[int, jpeg.Content], left: dict[int, str]) -> dict[int, View]:
        """Begin to decode a batch's files, by row; where the pictures will be until the next batch. Rows that are refused are
        ``left``, with the reason."""
        streams: dict[int, Any] = {}
        for row, data in contents.items():
            try:
                streams[row] = self._codec.CodeStream(data)
            except RuntimeError as error:
                left[row] = str(error)
        if not streams:
            return {}
        self._images += [None] * (len(streams) - len(self._images))
        images = self._decoder.decode(
            list(streams.values()),
            images=self._images[: len(streams)],  # a new one for None, and more memory where that of an old one is too small
            params=self._params,
            cuda_stream=self.stream.handle,
        )
        found: dict[int, View] = {}
        for index, (row, image) in enumerate(zip(streams, images)):
            if image is None:
                left[row] = "nvImageCodec cannot decode it"
            else:
                self._images[index], facts = image, image.__cuda_array_interface__
                found[row] = facts["data"][0], facts["shape"], facts.get("strides")
        return found


class GpuDecoder:
    """nvImageCodec decodes on the GPU, on its JPEG engines where it has any, and CV-CUDA scales there. On a simulated GPU
    Pillow does both, and takes the time that they took. ``left_to_pillow`` names what nvImageCodec did not take, and why.
    ``threads``: how many batches it decodes at a time, so that the engines work while Python prepares the next."""

    name, threads = jpeg.ON_DEVICE, 1

    def __init__(self, engine: Engine) -> None:
        self._engine, self._size, self.left_to_pillow = engine, height_and_width(engine), dict[str, str]()
        self.apart = dict[str, str]()  # files of which the GPU's picture was seen not to be Pillow's, and how far it was off
        self._simulator, self.load = backend.current().simulator, Loader("pillow", *self._size)
        self._map = shared_out(cores())
        if why := refused_by(engine):
            raise UsageFault(f"--decoder {self.name} {why}, or take a decoder of the host (--decoder pillow).")
        if self._simulator is None:
            self.threads, self._idle = 2, SimpleQueue[Lane]()
            self._lane = partial(Lane, import_module("nvidia.nvimgcodec"), import_module("cvcuda"))

    def decode(self, files: Files, destination: DeviceBuffer, stream: Stream) -> None:
        """Write the files' pictures into device memory that nothing else is using, as the plan takes them; work that ``stream``
        gets later finds them there. Several threads may call this."""
        with ranges.pushed(ranges.DECODE, len(files), self.name):
            odd = [self.apart.get(name) or jpeg.oddity(data) for name, data in files]
            left = {row: why for row, why in enumerate(odd) if why}
            if self._simulator is not None:
                self._simulator.place(self._by_pillow(files), destination.address, stream.handle)
            else:
                try:
                    lane = self._idle.get_nowait()
                except Empty:
                    lane = self._lane()
                try:
                    self._on_device(lane, files, left, destination)
                finally:
                    self._idle.put(lane)
            self._leave({files[row][0]: why for row, why in left.items()})

    def _leave(self, named: dict[str, str]) -> None:
        """To Pillow, who has read them, but for those that nobody can read."""
        self.left_to_pillow.update({name: why for name, why in named.items() if name not in (self.load.unreadable or ())})

    def _on_device(self, lane: Lane, files: Files, left: dict[int, str], destination: DeviceBuffer) -> None:
        """Decode what is not ``left`` to Pillow, which gets what nvImageCodec refuses; scale; arrange as the plan wants it."""
        cvcuda, stream, on, taken = lane.cvcuda, lane.stream, lane.on, self._engine.input_shape(len(files))
        found = lane.decode({row: data for row, (_, data) in enumerate(files) if row not in left}, left)
        (height, width), last = self._size, channels_first(taken[1:]) != taken[1:]
        target = cvcuda.as_tensor(DeviceArray(destination.address, taken), "NHWC" if last else "NCHW")
        own = taken == (len(files), height, width, 3)
        small = target if own else lane.tensor((len(files), height, width, 3))
        address, row_bytes = small.cuda().__cuda_array_interface__["data"][0], height * width * 3
        if found:
            cvcuda.hq_resize_into(
                lane.tensors(tuple((address + row * row_bytes, (height, width, 3), None) for row in found)),
                lane.tensors(tuple(found.values())),
                roi=[seen(*shape[:2], height, width) for _, shape, _ in found.values()],
                antialias=True,  # as Pillow does
                interpolation=cvcuda.Interp.LINEAR,
                stream=on,
            )
        to_device = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        for row, loose in zip(left, self._map(lambda row: loaded(self.load, *files[row]), left)):
            pixels = np.ascontiguousarray(loose.transpose(1, 2, 0))
            cudart.cudaMemcpyAsync(address + row * row_bytes, pixels.ctypes.data, row_bytes, to_device, stream.handle)
        if 4 in (taken[1], taken[-1]):  # the fourth channel is opacity, full everywhere
            wide = target if last else lane.tensor((len(files), height, width, 4))
            small = cvcuda.cvtcolor_into(wide, small, cvcuda.ColorConversion.RGB2RGBA, stream=on)
        if not last:
            cvcuda.reformat_into(target, small, stream=on)
        stream.synchronize()  # the next batch is decoded into the same pictures

    def _by_pillow(self, files: Files) -> np.ndarray:
        """As the plan takes them."""
        found = np.empty(self._engine.input_shape(len(files)), self._engine.input_type)
        for row, pixels in enumerate(self._map(lambda file: loaded(self.load, *file), files)):
            write(pixels[None], found[row : row + 1])
        return found

    def to_host(self, files: Files, destination: np.ndarray) -> None:
        """The same pictures in host memory, where each is held to Pillow's: nvImageCodec says nothing of a scan that is cut.
        Where it is another the file is Pillow's from now on (``apart``)."""
        with DeviceBuffer(destination.nbytes) as buffer, Stream() as stream:
            self.decode(files, buffer, stream)
            stream.synchronize()
            copy_to_host(destination, buffer)
        if self._simulator is not None:
            return
        right = self._by_pillow(files)
        off = np.subtract(np.maximum(right, destination), np.minimum(right, destination))
        for row, worst in enumerate(planes(off).mean(axis=(1, 3)).max(axis=1)):
            if worst > APART:
                name, destination[row] = files[row][0], right[row]
                self.apart[name] = f"{worst:.0f} levels off on the GPU: a damaged scan?"
                self._leave({name: self.apart[name]})


def loaded(load: Loader, name: str, data: jpeg.Content) -> np.ndarray:
    """The pixels of a file. Where it cannot be decoded ``load.unreadable`` gets the reason, and they are black; without such it
    could be before, and ``EnvironmentFault`` with its name is raised."""
    try:
        return load(name, data)
    except Exception as error:  # Pillow raises as many types as there are ways to break a file
        why = jpeg.oddity(data) or reason(error)
        if load.unreadable is None:
            raise EnvironmentFault(f"{name} can no longer be decoded: {why}.") from error
        load.unreadable.setdefault(name, why)
        return np.zeros((3, *load.size), np.uint8)


class DeviceArray:
    """Bytes in device memory, to be wrapped by CV-CUDA, which by -1 for their stream waits for none before it uses them."""

    def __init__(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...] | None = None) -> None:
        facts = {"data": (address, False), "shape": shape, "strides": strides, "typestr": "|u1", "version": 3}
        self.__cuda_array_interface__ = {**facts, "stream": -1}


@cache
def seen(height: int, width: int, rows: int, columns: int) -> tuple[float, float, float, float]:
    """Top, left, bottom and right of what is seen of a picture of ``height``×``width`` at ``rows``×``columns``: its centre, of
    that shape, as large as ``BLEED`` leaves it."""
    scale = (1 - 2 * BLEED) / 2 * min(height / rows, width / columns)
    middle, half = (height / 2, width / 2), (rows * scale, columns * scale)
    return middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1]


def height_and_width(engine: Engine) -> tuple[int, int]:
    """Of the images that a plan takes."""
    shape = channels_first(engine.input_shape(1)[1:])
    assert shape is not None, f"images of {engine.input}"
    return shape[1:]
