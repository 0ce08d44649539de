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


def figures(found: np.ndarray, targets: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Top-1, top-5, and how both compare with the reference's, by the names that a row has for them; of ``found`` and
    ``expected`` logits (N×C each) and the numbers of the right classes (N)."""
    ranked = np.argsort(-found, axis=1)[:, :5]
    right, before = ranked[:, 0] == targets, expected.argmax(axis=1) == targets
    return {
        "images": len(targets),
        "agreement": float((ranked[:, 0] == expected.argmax(axis=1)).mean()),
        **dict(zip(("top1", "top1_low", "top1_high"), share(right))),
        **dict(zip(("gained", "gained_low", "gained_high"), difference(right, before))),
        "top5": float((ranked == targets[:, None]).any(axis=1).mean()),
        "largest_logit_difference": float(np.abs(found - expected).max()),
        "largest_logit": float(np.abs(expected).max()),
    }
