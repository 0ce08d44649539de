"""The ladder's input: seeded synthetic images, or a folder of photographs as ImageNet models expect them."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.progress import track

from common.console import err
from common.errors import EnvironmentFault, UsageFault

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # torchvision's ImageNet normalisation, RGB
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
DISTINCT = 8
"""Different batches of synthetic images; longer runs repeat them. More than any pipeline's slots, so that a stale or
swapped batch always shows, and few enough to stay page-locked."""
SUFFIXES = {".jpg", ".jpeg", ".png"}


def noise_images(indices: Sequence[int], size: int, seed: int) -> np.ndarray:
    """Synthetic images, len(indices)×3×size×size FP32 with roughly zero mean and unit deviation.

    Each is a coarse random pattern of random contrast under fine noise. Plain noise would not do: after a network's
    global average pooling all noise looks alike, and a batch swapped for another would pass for the right one.
    """
    images = np.empty((len(indices), 3, size, size), np.float32)

    def fill(image: np.ndarray, index: int) -> None:
        draw = np.random.default_rng((seed, index))
        cell = size // 8
        coarse = draw.standard_normal((3, 8, 8), np.float32) * draw.uniform(0.5, 1.5)
        image[:] = np.kron(coarse, np.ones((cell, cell), np.float32))
        image += draw.standard_normal((3, 1, 1), np.float32)
        image += 0.3 * draw.standard_normal((3, size, size), np.float32)

    with ThreadPoolExecutor() as pool:  # NumPy draws without the interpreter lock
        list(pool.map(fill, images, indices))
    return images


def load_photograph(path: Path, size: int) -> np.ndarray:
    """One photograph, 3×size×size FP32: shorter side to size·256/224, centre crop, ImageNet normalisation."""
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file).convert("RGB")
    scale = size * 256 / 224 / min(picture.size)
    picture = picture.resize([max(size, round(side * scale)) for side in picture.size], Image.Resampling.BILINEAR)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)), np.float32) / 255
    return ((pixels - MEAN) / DEVIATION).transpose(2, 0, 1)


class Images:
    """A numbered sequence of images; ``unreadable`` names the files that were skipped, with the reason."""

    def __init__(self, directory: Path | None, size: int, seed: int, limit: int | None = None) -> None:
        """``limit``: at most so many of the folder's photographs, drawn by ``seed``."""
        self.size, self.seed = size, seed
        self.unreadable: list[str] = []
        self._photographs: list[tuple[str, np.ndarray]] = []  # their files' names, and they themselves
        if directory is not None:
            self._read(directory, limit)

    def _read(self, directory: Path, limit: int | None) -> None:
        try:
            import PIL  # noqa: F401
        except ImportError:
            raise EnvironmentFault("--images needs Pillow: pip install pillow.") from None
        if directory.is_file():
            candidates = [directory]
        elif directory.is_dir():
            candidates = sorted(path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES)
        else:
            raise UsageFault(f"--images {directory}: no such file or folder.")
        if limit is not None and limit < len(candidates):
            candidates = sorted(random.Random(self.seed).sample(candidates, limit))
        for path in candidates:
            try:
                self._photographs.append((path.name, load_photograph(path, self.size)))
            except Exception as error:  # Pillow raises as many types as there are ways to break a file
                self.unreadable.append(f"{path.name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        if not self._photographs:
            found = f"none of its {len(candidates)} images can be read" if candidates else "it holds no .jpg or .png"
            raise UsageFault(f"--images {directory}: {found}.")

    def __len__(self) -> int:
        """Number of photographs; 0 for synthetic images, of which there is no end."""
        return len(self._photographs)

    def name(self, index: int) -> str:
        return self._photographs[index % len(self)][0] if len(self) else f"synthetic-{index:06d}"

    def fill(self, destination: np.ndarray, first: int) -> None:
        """Write images ``first``, ``first + 1``, … into ``destination`` (N×3×S×S); photographs repeat from the start."""
        indices = range(first, first + len(destination))
        if len(self):
            for row, index in zip(destination, indices):
                row[:] = self._photographs[index % len(self)][1]
        else:
            destination[:] = noise_images(indices, self.size, self.seed)


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
