"""What all contenders are given, and the outputs that they are held to, kept for Pythons that can make neither."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from common.errors import UsageFault
from common.files import atomic_path, sha256
from common.pictures import Images
from export import models
from export.train import labelled_files, load
from peers.task import Task


class Labelled(NamedTuple):
    """Images, N×3×S×S FP32; the numbers of their classes, −1 for none of the model's; the reference's logits, N×C; and of
    which files they are."""

    images: np.ndarray
    targets: np.ndarray
    expected: np.ndarray
    key: str


def reference(task: Task, images: np.ndarray) -> np.ndarray:
    """Logits of the FP32 ONNX file on the CPU (N×C), 64 images at a time."""
    parts = np.split(images, range(64, len(images), 64))
    return np.concatenate([models.run_onnx(task.onnx("fp32"), part) for part in parts])


def batch_of(task: Task, directory: Path | None, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The images of the speed test and their reference, kept in ``folder`` for Pythons that can make neither."""

    def make() -> np.ndarray:
        images = Images(directory, task.input_shape[1:], models.SEED, limit=task.batch, option="--calibration-images")
        pixels = np.empty((task.batch, *images.shape), np.float32)
        images.fill(pixels)
        return pixels

    return kept(folder, task, str(task.batch), make)


def labelled(task: Task, directory: Path, folder: Path) -> Labelled:
    """Of a labelled folder; kept likewise, for these files and classes."""
    files, labels = labelled_files(directory)
    if not files:
        fault = "holds no image in a folder of its class" if directory.is_dir() else "is no folder"
        raise UsageFault(f"--labelled {directory} {fault}.")
    classes = models.read_description(task.onnx("fp32")).get("labels") or sorted(set(labels))
    targets = np.array([classes.index(label) if label in classes else -1 for label in labels])
    if targets.max() < 0:
        raise UsageFault(f"--labelled {directory}: no folder is named as a class of the model: {', '.join(classes[:5])}, …")
    key = hashlib.sha256(repr([*map(sha256, files), *targets.tolist()]).encode()).hexdigest()[:12]
    images, expected = kept(folder, task, f"labelled-{key}", lambda: load(files, models.MODELS[task.model]))
    return Labelled(images, targets, expected, key)


def kept(folder: Path, task: Task, name: str, make: Callable[[], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Images and their reference from a file; made and kept there where it has none that can be read."""
    path = folder / "batches" / f"{task.tag}-{name}-{sha256(task.onnx('fp32'))[:12]}.npz"
    with suppress(OSError, EOFError, ValueError, BadZipFile):
        images, expected = np.load(path).values()
        return images, expected
    images = make()
    expected = reference(task, images)
    with atomic_path(path) as temporary, temporary.open("wb") as opened:
        np.savez(opened, images, expected)
    return images, expected
