"""The batches of a run, filled with its images: the first ones before the clock starts, the others in turns."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice, takewhile
from math import ceil
from typing import Any, TypeVar

import numpy as np
from rich.progress import track

from common.console import err
from common.decode import Source
from common.images import DISTINCT
from common.pictures import Images, fill

MEMORY = 512 << 20
"""Bytes of batches that are filled and run in turns, where the measured ones are fewer: a pipeline does not start for a few
small ones."""
T = TypeVar("T")


class Feed:
    """The images of a run in batches: ``batches``, the first ones, are measured; ``turns`` has the others. ``names`` are those
    of each batch's images, in order; rows beyond them are repeated images."""

    def __init__(
        self, images: Images, arrays: Iterator[np.ndarray], sizes: Sequence[int], most: int | None, source: Source | None = None
    ) -> None:
        """As many batches, of ``sizes`` in turn, as the photographs fill, ``DISTINCT`` at most and ``most`` at most.
        ``arrays`` gives them. ``source``: what decodes ``encoded`` images, once here and once in the run."""
        distinct = min(-(-len(images) * len(sizes) // sum(sizes)) or DISTINCT, DISTINCT)
        distinct = min(-(-distinct // len(sizes)) * len(sizes), most or sys.maxsize)  # whole turns of the sizes
        self.batches, self.images, self._arrays, self._source = list(islice(arrays, distinct)), images, arrays, source
        with contextlib.closing(self._upcoming(0)) as read:
            names = [self._fill(batch, read) for batch in shown(self.batches, "preparing batches", distinct)]
        if not any(names):
            raise images.none_read()
        filled = -(-sum(map(bool, names)) // len(sizes)) * len(sizes)  # fewer where files could not be read
        self.batches, self.names = self.batches[:filled], names[:filled]
        for batch, own in zip(self.batches, self.names):
            if not own:
                batch[:] = np.resize(self.batches[0], batch.shape)
        self.left = max(0, len(images) - len(images.unreadable) - sum(map(len, names)))
        """How many files are still to be read."""
        self.answered = sum(map(len, names))

    def _upcoming(self, first: int) -> Generator[Any, None, None]:
        """The images from the ``first`` on, as ``_fill`` takes them."""
        return self.images.read(self.batches[0].dtype, first) if self._source is None else self.images.names(first)

    def _fill(self, batch: np.ndarray, upcoming: Iterator[Any]) -> list[str]:
        return fill(batch, upcoming) if self._source is None else self._source.fill(batch, upcoming, self.images.skip)

    @property
    def left_to_pillow(self) -> dict[str, str]:
        """Names of images that the decoder did not take, so far, and why."""
        return (self._source.decoder if self._source is not None else self.images.load).left_to_pillow

    def turns(self) -> Iterator[list[tuple[np.ndarray, list[str]]]]:
        """Batches of the images that are left, with their names; small ones are many. A thread fills one half of them while the
        other is in use, and then again."""
        if not self.left:
            return
        rows, nbytes = sum(map(len, self.batches)), sum(batch.nbytes for batch in self.batches)
        wanted = ceil(len(self.batches) * min(MEMORY / nbytes, self.left / rows))
        batches = [*self.batches, *islice(self._arrays, max(0, wanted - len(self.batches)))]
        halves = batches[: len(batches) // 2], batches[len(batches) // 2 :]
        yield from shown(self._filled(halves), "the other images", ceil(self.left / rows * len(self.batches) / len(halves[1])))

    def _filled(self, halves: Sequence[list[np.ndarray]]) -> Iterator[list[tuple[np.ndarray, list[str]]]]:
        read, stopped = self._upcoming(len(self.images) - self.left), threading.Event()
        going_on = takewhile(lambda _: not stopped.is_set(), read)

        def fill_all(half: list[np.ndarray]) -> list[tuple[np.ndarray, list[str]]]:
            return [(batch, names) for batch in half if (names := self._fill(batch, going_on))]

        with contextlib.closing(read), ThreadPoolExecutor(1) as reader:
            try:
                ahead = reader.submit(fill_all, halves[0])
                for turn in count(1):
                    if not (ready := ahead.result()):
                        return
                    ahead = reader.submit(fill_all, halves[turn % 2])
                    yield ready
            finally:
                stopped.set()


def shown(steps: Iterable[T], title: str, total: int) -> Iterable[T]:
    """``steps`` with a progress bar, where there is a terminal."""
    return track(steps, title, total=total, console=err, transient=True, disable=not err.is_terminal)
