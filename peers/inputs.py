"""What all contenders are given, and the outputs that they are held to, kept for Pythons that can make neither."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

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
    path = folder / "batches" / f"{task.tag}-{task.batch}-{sha256(task.onnx('fp32'))[:12]}.npz"
    if not path.exists():
        images = Images(directory, task.input_shape[1:], models.SEED, limit=task.batch, option="--calibration-images")
        pixels = np.empty((task.batch, *images.shape), np.float32)
        images.fill(pixels)
        keep(path, images=pixels, expected=reference(task, pixels))
    kept = np.load(path)
    return kept["images"], kept["expected"]


def labelled(task: Task, directory: Path, folder: Path) -> Labelled:
    """Of a labelled folder; kept likewise, until it has other files."""
    files, labels = labelled_files(directory)
    if not files:
        fault = "holds no image in a folder of its class" if directory.is_dir() else "is no folder"
        raise UsageFault(f"--labelled {directory} {fault}.")
    facts = [(str(path.relative_to(directory)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    named = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    path = folder / "batches" / f"{task.tag}-labelled-{named}-{sha256(task.onnx('fp32'))[:12]}.npz"
    if not path.exists():
        images = load(files, models.MODELS[task.model])
        classes = models.read_description(task.onnx("fp32")).get("labels") or sorted(set(labels))
        targets = np.array([classes.index(label) if label in classes else -1 for label in labels])
        keep(path, images=images, targets=targets, expected=reference(task, images))
    kept = np.load(path)
    return Labelled(kept["images"], kept["targets"], kept["expected"], named)


def keep(path: Path, **arrays: Any) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
