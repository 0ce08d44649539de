"""What is done with a batch's outputs: softmax, top-1, one line an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from common.console import printable


def top1(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class (N, int64) and softmax probability (N, FP32) of the largest of each row of N×C logits, FP32 or FP16.

    The largest logit shifted by itself is 0, so its softmax is 1 over the sum; the other C−1 are never divided.
    """
    classes = logits.argmax(axis=1)
    shifted = np.subtract(logits, np.take_along_axis(logits, classes[:, None], axis=1), dtype=np.float32)
    return classes, 1 / np.exp(shifted, out=shifted).sum(axis=1)


def top(logits: np.ndarray, count: int) -> list[tuple[int, float]]:
    """The ``count`` likeliest classes of one row of logits (C) with their softmax probabilities, likeliest first."""
    shifted = np.exp(np.subtract(logits, logits.max(), dtype=np.float32))
    best = np.argsort(-logits, kind="stable")[:count]
    return [(int(number), float(shifted[number] / shifted.sum())) for number in best]


class Predictions:
    """The likeliest class of each image, as they come. ``labels`` are class names; without them a class is its number."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._rows: list[tuple[str, int, float]] = []

    def add(self, names: Sequence[str], logits: np.ndarray) -> None:
        """A row for each of the names, which are those of the first rows of ``logits`` (N×C)."""
        classes, probabilities = top1(logits)
        self._rows.extend(zip(names, classes.tolist(), probabilities.tolist()))

    def label(self, number: int) -> str:
        return printable(self._labels[number]) if number < len(self._labels) else str(number)

    def first(self, count: int) -> Iterator[dict[str, str]]:
        """The first ``count`` of them, as a line of a table."""
        for name, number, probability in self._rows[:count]:
            yield {"image": name, "class": self.label(number), "probability": f"{probability:.6f}"}
