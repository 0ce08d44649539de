"""Batches of JPEG files to a plan's input: which decoder, and where the files come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from common import backend, jpeg
from common.decoders import CpuDecoder, Files, GpuDecoder, refused_by
from common.engine import Engine
from common.errors import MissingModule, UsageFault
from common.reader import THERE, Reader, content


def choose(name: str, engine: Engine | None) -> str:
    """The decoder that ``name`` stands for: itself, or for ``auto`` the fastest that is there and that ``engine``, if it takes
    pictures from the GPU, takes them of; its notes say what it does not. A simulated GPU has a decoder of its own."""
    if name == jpeg.ON_DEVICE and engine is None:
        raise UsageFault(f"--decoder {name} leaves the pictures on the GPU, where 11_jpeg_decode.py takes them, and no other.")
    simulated = backend.current().simulator is not None
    for each in jpeg.MODULES if name == "auto" else [name]:
        on_device = each == jpeg.ON_DEVICE
        if on_device and name == "auto" and engine is not None and (why := refused_by(engine)):
            engine.notes.append(f"not decoded on the GPU: its decoder {why}")
        elif (not on_device or engine is not None) and ((simulated and on_device) or jpeg.installed(each)):
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
        # Asks the process. Where there is none it reads: several threads would read less (reports/h200-jpeg/probe.txt)
        self._thread = ThreadPoolExecutor(1)

    @cached_property
    def _reader(self) -> Reader | None:
        with suppress(OSError, TypeError):  # where there can be no process the thread reads
            return Reader() if THERE and backend.current().simulator is None else None
        return None

    def read(self, names: Sequence[str], count: int) -> Future[Files]:
        """Begin to read the files of ``count`` rows, which have the images of ``names`` in turns."""

        def contents() -> Files:
            wanted = list(islice(cycle(names), count))
            sources = [self._sources[name] for name in wanted]
            paths = [source for source in sources if isinstance(source, Path)]
            if len(paths) == len(sources) and self._reader is not None:
                return list(zip(wanted, self._reader.read(paths)))
            return [(name, content(each) if isinstance(each, Path) else each()) for name, each in zip(wanted, sources)]

        return self._thread.submit(contents)

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


def told(left_to_pillow: dict[str, str], names: Sequence[str]) -> list[str]:
    """What a result says of those of its images that its decoder did not take. (A decoder may have met others: it is ahead.)"""
    if not (left := [f"{name} ({left_to_pillow[name]})" for name in names if name in left_to_pillow]):
        return []
    return [f"{len(left)} of {len(names)} images were decoded by Pillow: {', '.join(left[:3])}{', …' * (len(left) > 3)}"]
