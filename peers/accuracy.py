"""How often an engine is right on labelled images, and how far a sample of that size can be trusted."""

from __future__ import annotations

from math import sqrt

import numpy as np

from peers.inputs import Labelled
from peers.rows import Result
from peers.task import Ready

Z = 1.959964  # of the normal distribution: 95 % lie within


def share(right: np.ndarray) -> tuple[float, float, float]:
    """The share of true values (N), and Wilson's 95 % interval of what it would be on all such images: never empty, also where
    all are right."""
    count, found = len(right), float(right.mean())
    middle = (found + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * sqrt(found * (1 - found) / count + Z * Z / (4 * count * count))
    return found, max(0.0, middle - half), min(1.0, middle + half)


def difference(right: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """By how much the share of ``right`` is above ``reference``'s on the same images (N each), and Agresti and Min's 95 %
    interval for pairs: only images count on which the two differ, and half an image is added to each of the four kinds."""
    count = len(right)
    better, worse = (float((one & ~other).sum()) for one, other in ((right, reference), (reference, right)))
    low = (better - worse) / (count + 2)
    spread = sqrt(better + worse + 1 - (better - worse) ** 2 / (count + 2)) / (count + 2)
    return (better - worse) / count, low - Z * spread, low + Z * spread


def accuracy(row: Result, ready: Ready, photographs: Labelled) -> None:
    """Write top-1, top-5, and how both compare with the reference's, into its row."""
    (images, targets, expected, files), parts = photographs, []
    for batch in np.split(images, range(row.batch, len(images), row.batch)):
        ready.load(np.resize(batch, (row.batch, *batch.shape[1:])))  # the last one is filled up with its own images
        ready.infer()
        parts.append(ready.output()[: len(batch)])
    found = np.concatenate(parts)
    ranked = np.argsort(-found, axis=1)[:, :5]
    right, before = ranked[:, 0] == targets, expected.argmax(axis=1) == targets
    row.images, row.agreement = len(images), float((ranked[:, 0] == expected.argmax(axis=1)).mean())
    row.top1, row.top1_low, row.top1_high = share(right)
    row.gained, row.gained_low, row.gained_high = difference(right, before)
    row.top5 = float((ranked == targets[:, None]).any(axis=1).mean())
    row.largest_logit_difference, row.largest_logit = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    row.labelled = files  # last: an engine that fails above is asked again
