"""Batches of JPEG files to a plan's input: which decoder, and where the files come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from stat import S_ISREG

import numpy as np

from common import backend, jpeg
from common.decoders import CpuDecoder, Files, GpuDecoder, refused_by
from common.engine import Engine
from common.errors import MissingModule, UsageFault

AT_ONCE = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe is opened, and waited for by nobody
LARGEST = 1 << 30  # bytes of a picture's file


def choose(name: str, engine: Engine | None) -> str:
    """The decoder that ``name`` stands for: itself, or for ``auto`` the fastest that is there and that ``engine``, if it takes
    pictures from the GPU, takes them of; its notes say what it does not. A simulated GPU has a decoder of its own."""
    if name == jpeg.ON_DEVICE and engine is None:
        raise UsageFault(f"--decoder {name} leaves the pictures on the GPU, where 11_jpeg_decode.py takes them, and no other.")
    simulated = backend.current().simulator is not None
    for each in jpeg.MODULES if name == "auto" else [name]:
        if each == jpeg.ON_DEVICE and name == "auto" and engine is not None and (why := refused_by(engine)):
            engine.notes.append(f"not decoded on the GPU: its decoder {why}")
        elif (each != jpeg.ON_DEVICE or engine is not None) and (
            (simulated and each == jpeg.ON_DEVICE) or jpeg.installed(each)
        ):
            return each
    modules, mend = jpeg.MODULES["pillow" if name == "auto" else name]
    raise MissingModule(f"--decoder {name} needs {' and '.join(modules)}: {mend}")


def make(name: str, engine: Engine, unreadable: dict[str, str] | None = None) -> CpuDecoder | GpuDecoder:
    """The decoder called ``name``, for the plan's input. ``unreadable`` gets the files that nobody can decode, with the reason,
    and their pictures are black; without it they raise."""
    decoder = GpuDecoder(engine) if name == jpeg.ON_DEVICE else CpuDecoder(name, engine)
    decoder.load.unreadable = unreadable
    return decoder


class Source:
    """Where the batches of a stage that decodes come from: ``sources`` has each image's file, or what gives its content, by
    name."""

    def __init__(self, sources: Mapping[str, Path | Callable[[], bytes]], decoder: CpuDecoder | GpuDecoder) -> None:
        self._sources, self.decoder = sources, decoder
        # More threads wait for the interpreter's lock: beside an H200 one reads 83,716 files of 51 KB a second from the page
        # cache, two 56,983, eight 27,217 (reports/h200-jpeg/probe.txt)
        self._reader = ThreadPoolExecutor(1)

    def read(self, names: Sequence[str], count: int) -> Future[Files]:
        """Begin to read the files of ``count`` rows, which have the images of ``names`` in turns."""
        return self._reader.submit(lambda: [(name, content(self._sources[name])) for name in islice(cycle(names), count)])

    def fill(self, batch: np.ndarray, names: Iterator[str], skip: Callable[[str, str], None]) -> list[str]:
        """Fill ``batch`` (N×C×H×W or N×H×W×C) with the next images that can be decoded, by the decoder that the run has, and
        with the first ones again where there are no more. Returns their names; ``skip`` gets those of others, and why."""
        found: list[str] = []
        while upcoming := list(islice(names, len(batch) - len(found))):
            rows = batch[len(found) : len(found) + len(upcoming)]
            self.decoder.load.unreadable = unreadable = dict[str, str]()
            self.decoder.to_host(self.read(upcoming, len(upcoming)).result(), rows)
            self.decoder.load.unreadable = None
            taken = [row for row, name in enumerate(upcoming) if name not in unreadable]
            rows[: len(taken)] = rows[taken]
            found += (upcoming[row] for row in taken)
            for name in filter(unreadable.__contains__, upcoming):
                skip(name, unreadable[name])
        if 0 < len(found) < len(batch):
            batch[len(found) :] = np.resize(batch[: len(found)], batch[len(found) :].shape)
        return found


def content(source: Path | Callable[[], bytes]) -> bytes:
    """Empty where there is no file, or none to be read: what that means is the decoder's to say."""
    try:
        return read(source) if isinstance(source, Path) else source()
    except OSError:
        return b""


def read(path: str | Path) -> bytes:
    """Of an ordinary file; of others nothing. Raises ``OSError``, also where it is too large. Few system calls, as after each a
    thread waits for the interpreter's lock: beside a busy one 45 µs a picture, and 53 by ``Path.read_bytes``."""
    file = os.open(path, AT_ONCE)
    try:
        facts = os.fstat(file)
        if facts.st_size > LARGEST:
            raise OSError(f"{facts.st_size:,} bytes are no picture")
        size = facts.st_size if S_ISREG(facts.st_mode) else 0
        found = os.read(file, size)
        while len(found) < size and (more := os.read(file, size)):  # a network's file system may give it in pieces
            found += more
        return found
    finally:
        os.close(file)


def told(left_to_pillow: dict[str, str], names: Sequence[str]) -> list[str]:
    """What a result says of those of its images that its decoder did not take. (A decoder may have met others: it is ahead.)"""
    left = [f"{name} ({left_to_pillow[name]})" for name in names if name in left_to_pillow]
    if not left:
        return []
    return [f"{len(left)} of {len(names)} images were decoded by Pillow: {', '.join(left[:3])}{', …' * (len(left) > 3)}"]
