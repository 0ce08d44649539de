"""The files of a folder that no window measures, decoded once, in one pipeline from the disk to the answers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import islice

import numpy as np

from common import backend
from common.decoders import Files
from common.feed import MEMORY, Feed, shown
from common.run import Infer, Session
from common.tensors import unpacked
from common.verify import check, races, run_serially

LOOKED_AT = 256
"""Files of a run, drawn from all of it, whose pictures are held to Pillow's, and whose outputs to a serial run's."""


class Once(Session):
    """A run of ``count`` batches that come once each: those of ``names``, and then the ``others``, whose names are made while
    batches before them are decoded. Files that nobody can decode have no row in its names and outputs."""

    def __init__(self, measured: Session, count: int, names: list[list[str]], others: Iterator[list[str]], feed: Feed) -> None:
        batches = [measured.batches[0]] * count  # only their shape is asked for
        super().__init__(measured.engine, batches, names, measured.options, measured=0, source=measured.source)
        self.names: list[list[str]] = names
        self._others, self._feed, self._unreadable = others, feed, dict[str, str]()
        self.decoder.load.unreadable = self._unreadable

    @property
    def distinct(self) -> int:
        return len(self.batches)

    def read_files(self, index: int) -> Future[Files]:
        if index == len(self.names):
            self.names.append(next(self._others))
        return super().read_files(index)

    def postprocess(self, index: int, host_output: np.ndarray) -> None:
        names = self.names[index]
        if gone := {name: self._unreadable.pop(name) for name in names if name in self._unreadable}:
            kept = [row for row, name in enumerate(names) if name not in gone]
            whole, host_output = host_output, host_output.copy()
            for own, rows in zip(unpacked(host_output), unpacked(whole)) if kept else ():
                own[:] = rows[np.resize(kept, len(own))]  # in turns, as the files of a batch that is not full are read
            self.names[index] = [names[row] for row in kept]
            for name, why in gone.items():
                self._feed.images.skip(name, why)
        super().postprocess(index, host_output)


def runs(measured: Session, feed: Feed, infer: Infer) -> Iterator[Once]:
    """Runs of the images that are left: one, or several where there are so many that their outputs would fill ``MEMORY``."""
    names, size = feed.images.names(len(feed.images) - feed.left), len(measured.batches[0])
    most, left = max(len(feed.batches), MEMORY // measured.outputs[0].nbytes), -(-feed.left // size)
    others = iter(shown(iter(lambda: list(islice(names, size)), []), "the other images", left))
    while left:
        count, known, work = min(left, most), -1, list[list[str]]()
        left -= count
        while known != (known := len(measured.decoder.apart)):
            work = [names for names in work if names]
            run = Once(measured, len(work) or count, work, others, feed)
            infer(run)
            for race in races(backend.current()):
                raise race
            if not measured.options.no_verify:
                held(run, feed.batches)
        yield run
    next(others, None)  # there is none: the progress ends


def held(run: Once, batches: Sequence[np.ndarray]) -> None:
    """Hold some of a run's batches, decoded once more into ``batches``, to a serial run. Raises ``WrongOutputs``."""
    filled, size = [index for index, names in enumerate(run.names) if names], len(batches[0])
    drawn = random.Random(run.options.seed).sample(filled, min(len(filled), len(batches), max(1, LOOKED_AT // size)))
    apart = len(run.decoder.apart)
    for index, batch in zip(drawn, batches):
        run.decoder.to_host(run.read_files(index).result(), batch)
    if drawn and len(run.decoder.apart) == apart:
        check([run.outputs[index] for index in drawn], run_serially(run.engine, batches[: len(drawn)]))
