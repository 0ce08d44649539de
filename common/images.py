"""Images as numbers: their layout, the types that plans take, and the synthetic ones."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from functools import partial
from math import prod
from typing import Any

import numpy as np

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # torchvision's ImageNet normalisation, RGB
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
DISTINCT = 8
"""Different batches of synthetic images; longer runs repeat them. More than any pipeline's slots, so that a stale or
swapped batch always shows, and few enough to stay page-locked."""
CELLS = 8  # of the coarse pattern, in a row and in a column
SHIFTS = 1 << 16  # places in the fine noise from which an image's may begin
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


def write(images: np.ndarray, batch: np.ndarray) -> None:
    """``images``, N×C×H×W of any type, into ``batch``, of either layout and any type. Where ``batch`` has a fourth channel and
    they do not, it is opacity, full everywhere: 255, of int8 127, of floats 1."""
    there = planes(batch)
    channels = min(images.shape[1], there.shape[1])
    there[:, :channels] = converted(images[:, :channels], batch.dtype)
    there[:, channels:] = 1 if batch.dtype.kind == "f" else np.iinfo(batch.dtype).max


def noise_image(index: int, shape: Shape, seed: int) -> np.ndarray:
    """A synthetic image of ``shape`` (C×H×W), FP32 with roughly zero mean and unit deviation.

    It is a coarse random pattern of random contrast under fine noise. Plain noise would not do: after a network's global
    average pooling all noise looks alike, and a batch swapped for another would pass for the right one. For the same reason
    all images may share their fine noise, each from another place in it: to draw it anew takes twenty times as long.
    """
    draw, size = np.random.default_rng((seed, index)), prod(shape)
    coarse = draw.standard_normal((shape[0], CELLS, CELLS), np.float32) * np.float32(draw.uniform(0.5, 1.5))
    coarse += draw.standard_normal((shape[0], 1, 1), np.float32)
    for axis in (2, 1):
        coarse = np.repeat(coarse, np.bincount(np.arange(shape[axis]) * CELLS // shape[axis], minlength=CELLS), axis)
    begin = int(draw.integers(SHIFTS))
    coarse += fine_noise(size, seed)[begin : begin + size].reshape(shape)
    return coarse


@functools.lru_cache(maxsize=4)
def fine_noise(size: int, seed: int) -> np.ndarray:
    """Normal values of deviation 0.3, FP32, from which ``size`` may be taken at ``SHIFTS`` places."""
    return np.float32(0.3) * np.random.default_rng(seed).standard_normal(size + SHIFTS, np.float32)


def noise_images(indices: Iterable[int], shape: Shape, seed: int) -> np.ndarray:
    """Synthetic images, len(indices)×C×H×W."""
    return np.stack([*map(partial(noise_image, shape=shape, seed=seed), indices)])
