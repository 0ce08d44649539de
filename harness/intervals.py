"""Arithmetic on sets of half-open time intervals [start, end), as N×2 integer arrays."""

from __future__ import annotations

import numpy as np


def union(intervals: np.ndarray) -> np.ndarray:
    """The same time covered by disjoint intervals in order."""
    intervals = intervals[intervals[:, 1] > intervals[:, 0]]
    if len(intervals) == 0:
        return intervals
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    reach = np.maximum.accumulate(intervals[:, 1])
    first = np.concatenate([[True], intervals[1:, 0] > reach[:-1]])
    last = np.concatenate([first[1:], [True]])
    return np.stack([intervals[first, 0], reach[last]], axis=1)


def clip(intervals: np.ndarray, start: int, end: int) -> np.ndarray:
    """The part of each interval that lies in [start, end)."""
    clipped = np.stack([np.maximum(intervals[:, 0], start), np.minimum(intervals[:, 1], end)], axis=1)
    return clipped[clipped[:, 1] > clipped[:, 0]]


def total(intervals: np.ndarray) -> int:
    """Time covered by at least one of the intervals."""
    merged = union(intervals)
    return int((merged[:, 1] - merged[:, 0]).sum())


def overlap(one: np.ndarray, other: np.ndarray) -> int:
    """Time covered by both sets: |A| + |B| − |A ∪ B|."""
    return total(one) + total(other) - total(np.concatenate([one, other]))
