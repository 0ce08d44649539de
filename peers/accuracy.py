"""How often an engine is right on labelled images, and how far a sample of that size can be trusted."""

from __future__ import annotations

from math import sqrt

import numpy as np

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
