"""The ladder's input: seeded synthetic images, or a folder of photographs as ImageNet models expect them."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from common.console import err, printable
from common.errors import UsageFault

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # torchvision's ImageNet normalisation, RGB
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
DISTINCT = 8
"""Different batches of synthetic images; longer runs repeat them. More than any pipeline's slots, so that a stale or
swapped batch always shows, and few enough to stay page-locked."""
CELLS = 8  # of the coarse pattern, in a row and in a column
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
Shape = tuple[int, int, int]


def channels_first(shape: tuple[int, ...]) -> Shape | None:
    """C×H×W of an image's shape, C×H×W or H×W×C with 1, 3 or 4 channels; None for any other."""
    ways = (shape, (*shape[2:], *shape[:2])) if len(shape) == 3 and min(shape) > 0 else ()
    return next((each for each in ways if each[0] in (1, 3, 4)), None)  # type: ignore[misc]


def planes(images: np.ndarray) -> np.ndarray:
    """A batch of either layout as N×C×H×W: a view."""
    return images if channels_first(images.shape[1:]) == images.shape[1:] else np.moveaxis(images, -1, 1)


def converted(images: np.ndarray, dtype: Any) -> np.ndarray:
    """Images, …×C×H×W, in another of the types that a plan may take; the same array where they are of that type.

    FP32 and FP16 are normalised: (byte / 255 − MEAN) / DEVIATION. uint8 is a picture's bytes, 0 … 255, RGB. int8 is these
    less 128. From a normalised image to bytes is the nearest one: what came from bytes comes back, synthetic images are
    rounded and clipped.
    """
    wanted = np.dtype(dtype)
    if images.dtype == wanted:
        return images
    if images.dtype == np.int8:
        return converted(images.view(np.uint8) ^ np.uint8(128), wanted)
    if wanted == np.int8:
        return (converted(images, np.uint8) ^ np.uint8(128)).view(np.int8)
    if images.dtype.kind == wanted.kind:
        return images.astype(wanted)
    mean, deviation = (np.resize(values, (images.shape[-3], 1, 1)) for values in (MEAN, DEVIATION))
    if wanted == np.uint8:
        pixels = images.astype(np.float32) * deviation
        pixels += mean
        return np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
    pixels = images.astype(np.float32) / 255
    pixels -= mean
    pixels /= deviation
    return pixels.astype(wanted, copy=False)


def noise_images(indices: Sequence[int], shape: Shape, seed: int) -> np.ndarray:
    """Synthetic images of ``shape`` (C×H×W), len(indices)×C×H×W FP32 with roughly zero mean and unit deviation.

    Each is a coarse random pattern of random contrast under fine noise. Plain noise would not do: after a network's
    global average pooling all noise looks alike, and a batch swapped for another would pass for the right one.
    """
    images = np.empty((len(indices), *shape), np.float32)
    rows, columns = (np.arange(side) * CELLS // side for side in shape[1:])

    def fill(image: np.ndarray, index: int) -> None:
        draw = np.random.default_rng((seed, index))
        coarse = draw.standard_normal((shape[0], CELLS, CELLS), np.float32) * draw.uniform(0.5, 1.5)
        image[:] = coarse[:, rows][:, :, columns]
        image += draw.standard_normal((shape[0], 1, 1), np.float32)
        image += 0.3 * draw.standard_normal(shape, np.float32)

    with ThreadPoolExecutor() as pool:  # NumPy draws without the interpreter lock
        list(pool.map(fill, images, indices))
    return images


def load_photograph(path: Path, height: int, width: int | None = None) -> np.ndarray:
    """One photograph, 3×height×width FP32, normalised as for ImageNet (width: as the height)."""
    return converted(load_pixels(path, height, width or height), np.float32)


def load_pixels(path: Path, height: int, width: int) -> np.ndarray:
    """One photograph's bytes, 3×height×width uint8: scaled until its centre, 7/8 of it, fills that. Only what is seen of it is
    copied, however long and thin it is."""
    from PIL import ExifTags, Image, ImageOps

    size = (width, height)
    with Image.open(path) as file:
        file.load()
        if file.mode[0] in "IF":
            raise ValueError(f"pixels of type {file.mode} instead of 8 bits a channel")
        if file.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # lies on its side, and is turned when it is small
            size = size[::-1]
        picture: Image.Image = file
        if file.mode not in ("RGB", "L"):  # the others cannot be scaled as they are
            seen = [min(own, ceil(other * a / b)) for own, other, a, b in zip(file.size, file.size[::-1], size, size[::-1])]
            left, top = ((own - part) // 2 for own, part in zip(file.size, seen))
            picture = file.crop((left, top, left + seen[0], top + seen[1])).convert("RGB")
        small = ImageOps.fit(picture, size, Image.Resampling.BILINEAR, bleed=1 / 16)  # on each side
    return np.asarray(ImageOps.exif_transpose(small).convert("RGB")).transpose(2, 0, 1)


class Images:
    """A numbered sequence of images; ``unreadable`` names the files that were skipped, with the reason."""

    def __init__(self, directory: Path | None, shape: tuple[int, ...], seed: int, limit: int | None = None) -> None:
        """``shape``: of an image, C×H×W or H×W×C. ``limit``: at most so many of the folder's photographs, drawn by ``seed``."""
        first = channels_first(shape)
        assert first is not None, f"images of {shape}"
        self.shape, self.seed = first, seed
        self.unreadable: list[str] = []
        self._photographs: list[tuple[str, np.ndarray]] = []  # their files' names, and they themselves
        if directory is not None:
            self._read(directory, limit)

    def _read(self, directory: Path, limit: int | None) -> None:
        import_module("PIL")  # without it no picture can be read, which is no fault of theirs
        if self.shape[0] != 3:
            raise UsageFault(f"--images: the model takes {self.shape[0]} channels, and photographs are read as RGB.")
        if directory.is_file():
            directory, candidates = directory.parent, [directory]
        elif directory.is_dir():
            candidates = sorted(path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES)
        else:
            raise UsageFault(f"--images {directory}: no such file or folder.")
        if limit is not None and limit < len(candidates):
            candidates = sorted(random.Random(self.seed).sample(candidates, limit))
        warnings.simplefilter("ignore")  # what is wrong with a picture is said by its name
        for path in candidates:
            name = printable(path.relative_to(directory).as_posix())
            try:
                if not path.is_file():
                    raise ValueError("no ordinary file")
                self._photographs.append((name, load_pixels(path, *self.shape[1:])))
            except Exception as error:  # Pillow raises as many types as there are ways to break a file
                self.unreadable.append(f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        if not self._photographs:
            kinds = f"it holds no {', '.join(sorted(SUFFIXES))} file"
            found = f"none of its {len(candidates)} images can be read" if candidates else kinds
            raise UsageFault(f"--images {directory}: {found}.")

    def __len__(self) -> int:
        """Number of photographs; 0 for synthetic images, of which there is no end."""
        return len(self._photographs)

    def name(self, index: int) -> str:
        """A photograph's path in its folder."""
        return self._photographs[index % len(self)][0] if len(self) else f"synthetic-{index:06d}"

    def fill(self, destination: np.ndarray, first: int) -> None:
        """Write images ``first``, ``first + 1``, … into ``destination`` (N×shape, of either layout and any type that
        ``converted`` knows); photographs repeat from the start."""
        indices = range(first, first + len(destination))
        rows = planes(destination)
        if len(self):
            for row, index in zip(rows, indices):
                row[:] = converted(self._photographs[index % len(self)][1], row.dtype)
        else:
            rows[:] = converted(noise_images(indices, self.shape, self.seed), rows.dtype)


def prepare(
    images: Images, allocated: Iterator[np.ndarray], sizes: Sequence[int], most: int | None
) -> list[tuple[np.ndarray, list[str]]]:
    """The distinct batches, of ``sizes`` in turn, each with its images' names, before the clock starts: reading images is not
    the subject. As many as the photographs fill, or ``DISTINCT``; at most ``most``. ``allocated`` gives the arrays."""
    needed = -(-len(images) * len(sizes) // sum(sizes))
    distinct = min(needed or DISTINCT, most or sys.maxsize)
    distinct = -(-distinct // len(sizes)) * len(sizes)  # whole turns of the sizes
    batches, first = [], 0
    for _ in track(range(distinct), "preparing batches", console=err, transient=True, disable=not err.is_terminal):
        batch = next(allocated)
        images.fill(batch, first)
        batches.append((batch, [images.name(first + row) for row in range(len(batch))]))
        first += len(batch)
    if len(images) > first:
        err.print(f"{first} of {len(images)} images fit into {distinct} batches; --batches {needed} takes them all")
    return batches
