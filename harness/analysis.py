"""What a timeline says of a stage: the parts of a batch, overlap, idle time, the limit, and what stands in its way.

Operations belong to the batch whose `infer` range submitted them. A batch's parts are whole operations, never cut at
the window's edges; overlap and idle time are of the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import numpy as np

from common.trace import Operations, Trace
from harness.intervals import clip, overlap, total

PARTS = ("h2d", "compute", "d2h", "postprocess")
NEAR = 90.0
"""Percent of the limit from which on a stage is said to be at it."""
SMALL = 0.005
"""Share of the largest copy's bytes under which a copy is the library's own business."""


@dataclass(frozen=True)
class Analysis:
    """Milliseconds a batch unless named otherwise; ``overlap`` and ``gpu_idle`` are shares of 0 to 1."""

    per_batch_ms: float
    h2d_ms: float
    compute_ms: float
    d2h_ms: float
    postprocess_ms: float
    submit_ms: float
    launch_gaps_ms: float
    overlap: float
    gpu_idle: float
    launches: int
    allocations: float
    library_allocations: float
    h2d_gb_s: float

    @property
    def limit(self) -> tuple[float, str]:
        """The longest part and its name: no schedule of the same work can take less than that a batch."""
        return max((getattr(self, f"{part}_ms"), part) for part in PARTS)


def analyse(trace: Trace) -> Analysis:
    start, end = trace.window
    measured, batch_of_kernel = trace.measured, trace.batches_of(trace.kernels)
    kernels, gaps = [], []
    for batch in measured:
        own = trace.kernels.intervals[batch_of_kernel == batch]
        kernels.append(total(own))
        gaps.append(own[:, 1].max() - own[:, 0].min() - kernels[-1] if len(own) else 0)
    h2d, compute, d2h = (clip(part.intervals, start, end) for part in (trace.h2d, trace.kernels, trace.d2h))
    shorter = min(total(h2d), total(compute))
    inputs = batch_copies(trace.h2d, trace)
    lengths = np.maximum(np.diff(trace.h2d.intervals[inputs])[:, 0], 1)
    calls = trace.ranges_of(np.arange(len(trace.calls.names)))
    launches = [name for name in set(trace.calls.names) if "Launch" in name and "HostFunc" not in name]
    launched = calls[np.isin(trace.calls.names, launches)]
    between, inside = allocations(trace)
    return Analysis(
        per_batch_ms=(end - start) / 1e6 / len(measured),
        h2d_ms=copy_ms(trace.h2d, trace),
        compute_ms=median(kernels) / 1e6,
        d2h_ms=copy_ms(trace.d2h, trace),
        postprocess_ms=median_ms(trace.postprocess[-len(measured) :]),
        submit_ms=median_ms(trace.infer[measured]),
        launch_gaps_ms=median(gaps) / 1e6,
        overlap=overlap(h2d, compute) / shorter if shorter else 0.0,
        gpu_idle=1 - total(np.concatenate([h2d, compute, d2h])) / (end - start),
        launches=round(median(int((launched == batch).sum()) for batch in measured)),
        allocations=between / len(measured),
        library_allocations=inside / len(measured),
        h2d_gb_s=float(np.median(trace.h2d.nbytes[inputs] / lengths)) if inputs.any() else 0.0,
    )


def batch_copies(copies: Operations, trace: Trace) -> np.ndarray:
    """Which copies carry batches: submitted from an `infer` range, and not one of the library's few bytes."""
    return (trace.batches_of(copies) >= 0) & (copies.nbytes >= SMALL * max(copies.nbytes, default=0))


def copy_ms(copies: Operations, trace: Trace) -> float:
    """Median duration of the run's batch copies × copies a batch (a first one may be submitted before any range)."""
    carried = batch_copies(copies, trace)
    if not carried.any():
        return 0.0
    return median_ms(copies.intervals[carried]) * max(1, round(carried.sum() / len(trace.infer)))


def median_ms(intervals: np.ndarray) -> float:
    return float(np.median(intervals[:, 1] - intervals[:, 0])) / 1e6


def allocations(trace: Trace) -> tuple[int, int]:
    """Calls in the window that allocate or free: between two `infer` ranges of a thread (the script's), and inside them
    (TensorRT's own). What a thread frees after its last batch is no business of the batches."""
    between, inside, starts = 0, 0, trace.calls.intervals[:, 0]
    named = np.array([name.startswith(("cudaMalloc", "cudaFree")) for name in trace.calls.names], bool)
    in_window = named & (trace.window[0] <= starts) & (starts <= trace.window[1])
    for thread in np.unique(trace.infer_threads):
        own, called = trace.infer[trace.infer_threads == thread], starts[in_window & (trace.calls.threads == thread)]
        called = called[called >= own[0, 0]]
        last_begun = np.searchsorted(own[:, 0], called, side="right") - 1
        within = called < own[last_begun, 1]
        between, inside = between + int((~within & (last_begun < len(own) - 1)).sum()), inside + int(within.sum())
    return between, inside


def limiter(analysis: Analysis, per_batch_ms: float) -> str:
    """What a stage is limited by: a part of the batch, or, well above the limit, what keeps it there.

    ``launch``: the gaps between a batch's own kernels, in which the GPU waits for the host's next launch, make up half
    of what is lost or more. ``serialized``: parts wait for one another that could run side by side.
    """
    limit_ms, part = analysis.limit
    if 100 * limit_ms / per_batch_ms >= NEAR:
        return part
    return "launch" if analysis.launch_gaps_ms >= 0.5 * (per_batch_ms - limit_ms) else "serialized"
