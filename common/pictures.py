"""Images one after the other, photographs from files or synthetic ones, read ahead in memory that does not grow with them."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from importlib import import_module
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from common.console import err, printable
from common.errors import UsageFault, reason
from common.host import cores
from common.images import channels_first, converted, noise_image, write
from common.photographs import Loader, synthetic_jpeg

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


class Images:
    """A sequence of images, of which those are read that somebody asks for; ``unreadable`` names the files that were skipped,
    with the reason."""

    def __init__(
        self,
        directory: Path | None,
        shape: tuple[int, ...],
        seed: int,
        limit: int | None = None,
        decoder: str = "pillow",
        encoded: bool = False,
        option: str = "--images",
    ) -> None:
        """``directory``: a folder of photographs, or one of them; None: synthetic images. ``shape``: of an image, C×H×W or
        H×W×C; of four channels three are read. ``limit``: at most so many of the folder's photographs, drawn by ``seed``.
        ``encoded``: somebody else decodes them, asks for ``names`` instead of ``read``, and finds in ``sources`` where each
        image is; synthetic ones are made as JPEG files in memory. ``option``: what the user called the directory."""
        first = channels_first(shape)
        assert first is not None, f"images of {shape}"
        self.shape, self.seed, self.directory, self.encoded = (min(first[0], 3), *first[1:]), seed, directory, encoded
        self.unreadable, self.option = list[str](), option
        self.sources: dict[str, Path | Callable[[], bytes]] = {}
        self.load = Loader(decoder, *first[1:])
        self._files: list[Path] = []
        if directory is None and not encoded:
            return
        import_module("PIL")  # without it no picture can be read, which is no fault of theirs
        if self.shape[0] != 3:
            raise UsageFault(f"{option}: the model takes {self.shape[0]} channel(s), and photographs are read as RGB.")
        if directory is None:
            return
        if directory.is_file():
            self._files, directory = [directory], directory.parent
        elif directory.is_dir():
            self._files = sorted(path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES)
        else:
            raise UsageFault(f"{option} {directory}: no such file or folder.")
        self.directory, self._within = directory, len((directory / "_").as_posix()) - 1  # where names begin in paths
        if not self._files:
            raise UsageFault(f"{option} {directory}: it holds no {', '.join(sorted(SUFFIXES))} file.")
        if limit is not None and limit < len(self._files):
            self._files = sorted(random.Random(seed).sample(self._files, limit))
        warnings.simplefilter("ignore")  # what is wrong with a picture is said by its name

    def __len__(self) -> int:
        """Number of files, some of which may prove to be unreadable; 0 for synthetic images, of which there is no end."""
        return len(self._files)

    def _sources(self, first: int) -> Iterator[tuple[str, Path | int]]:
        """Name and file of each image from the ``first`` on; of a synthetic one its number."""
        if self.directory is None:
            yield from ((f"synthetic-{index:06d}", index) for index in count(first))
        for path in self._files[first:]:  # Python 3.12's ``relative_to`` takes a hundred times as long
            yield printable(path.as_posix()[self._within :]), path

    def names(self, first: int = 0) -> Generator[str, None, None]:
        """Of the images of an ``encoded`` sequence, from the ``first`` on; each is in ``sources`` before its name is."""
        for name, source in self._sources(first):
            if isinstance(source, Path):
                name += f" ({len(self.sources)})" * (self.sources.get(name, source) != source)  # two names may print alike
            self.sources[name] = source if isinstance(source, Path) else cache(partial(synthetic_jpeg, source, self.seed))
            yield name

    def skip(self, name: str, why: str) -> None:
        """An image cannot be read."""
        self.unreadable.append(f"{name}: {why}")
        err.print(f"skipped {self.unreadable[-1]}", markup=False)

    def none_read(self) -> UsageFault:
        return UsageFault(f"{self.option} {self.directory}: none of its {len(self)} images can be read.")

    def read(self, dtype: Any, first: int = 0) -> Generator[tuple[str, np.ndarray], None, None]:
        """Name and pixels of each from the ``first`` on, C×H×W of a type that ``converted`` knows. A thread a core reads ahead,
        twice as many images as there are threads. Raises ``UsageFault`` at the end where no file could be read."""
        threads, found = cores(), first
        pool = ThreadPoolExecutor(threads)

        def made(name: str, source: Path | int) -> np.ndarray:
            image = self.load(name, source) if isinstance(source, Path) else noise_image(source, self.shape, self.seed)
            return converted(image, dtype)

        try:
            ahead: deque[tuple[str, Future[np.ndarray]]] = deque()
            submitted = ((name, pool.submit(made, name, source)) for name, source in self._sources(first))
            ahead.extend(islice(submitted, 2 * threads))
            while ahead:
                name, image = ahead.popleft()
                ahead.extend(islice(submitted, 1))
                try:
                    pixels = image.result()
                except Exception as error:  # Pillow raises as many types as there are ways to break a file
                    self.skip(name, reason(error))
                    continue
                found += 1
                yield name, pixels
        finally:
            pool.shutdown(cancel_futures=True)
        if not found:
            raise self.none_read()

    def fill(self, destination: np.ndarray) -> list[str]:
        """``fill`` ``destination`` with the first ones."""
        with contextlib.closing(self.read(destination.dtype)) as images:
            return fill(destination, images)


def fill(destination: np.ndarray, images: Iterable[tuple[str, np.ndarray]]) -> list[str]:
    """Write the next of ``images`` into ``destination`` (N×C×H×W or N×H×W×C); returns their names. When there are no more, its
    first ones are repeated, without a name."""
    names: list[str] = []
    for row, (name, pixels) in zip(range(len(destination)), images):
        write(pixels[None], destination[row : row + 1])
        names.append(name)
    for index in range(len(names), len(destination) * bool(names)):
        destination[index] = destination[index % len(names)]
    return names
