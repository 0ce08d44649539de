"""What a timeline says of a stage: the parts of a batch, overlap, idle time, the limit, and what stands in its way.

Operations belong to the batch whose `infer` range submitted them. A batch's parts are whole operations, never cut at
the window's edges; overlap and idle time are of the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import numpy as np

from scripts.intervals import clip, overlap, total
from scripts.trace_reader import Operations, Trace, batch_copies, batches_of

PARTS = ("h2d", "compute", "d2h", "postprocess")
NEAR = 90.0
"""Percent of the limit from which on a stage is said to be at it."""


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
    measured = measured_batches(trace)
    kernel_batches = batches_of(trace.kernels, trace)
    h2d_batches, d2h_batches = batches_of(trace.h2d, trace), batches_of(trace.d2h, trace)
    kernels, gaps = [], []
    for batch in measured:
        own = trace.kernels.intervals[kernel_batches == batch]
        kernels.append(total(own))
        gaps.append(own[:, 1].max() - own[:, 0].min() - kernels[-1] if len(own) else 0)
    in_window = {name: clip(operations.intervals, start, end) for name, operations in
                 (("h2d", trace.h2d), ("compute", trace.kernels), ("d2h", trace.d2h))}
    shorter = min(total(in_window["h2d"]), total(in_window["compute"]))
    busy = total(np.concatenate(list(in_window.values())))
    carried = trace.h2d.intervals[batch_copies(trace.h2d, h2d_batches)]
    nbytes = trace.h2d.nbytes[batch_copies(trace.h2d, h2d_batches)]
    rates = nbytes / np.maximum(carried[:, 1] - carried[:, 0], 1)
    return Analysis(
        per_batch_ms=(end - start) / 1e6 / len(measured),
        h2d_ms=copy_ms(trace.h2d, h2d_batches, trace),
        compute_ms=median(kernels) / 1e6,
        d2h_ms=copy_ms(trace.d2h, d2h_batches, trace),
        postprocess_ms=median(durations_ms(trace.postprocess[-len(measured):])),
        submit_ms=median(durations_ms(trace.infer[measured])),
        launch_gaps_ms=median(gaps) / 1e6,
        overlap=overlap(in_window["h2d"], in_window["compute"]) / shorter if shorter else 0.0,
        gpu_idle=1 - busy / (end - start),
        launches=round(median(launches(trace, measured))),
        allocations=allocations(trace, inside=False) / len(measured),
        library_allocations=allocations(trace, inside=True) / len(measured),
        h2d_gb_s=float(np.median(rates)) if len(rates) else 0.0,
    )


def measured_batches(trace: Trace) -> list[int]:
    """Numbers of the `infer` ranges of the batches that were finished inside the window.

    Batches are finished in the order in which they are submitted, so the n-th `postprocess` is of the n-th `infer`.
    """
    start, end = trace.window
    finished = (trace.postprocess[:, 1] > start) & (trace.postprocess[:, 1] <= end)
    measured = [int(number) for number in np.flatnonzero(finished) if number < len(trace.infer)]
    if not measured:
        raise ValueError(f"{trace.path}: no batch was finished inside the measured window")
    return measured


def copy_ms(copies: Operations, batch_of: np.ndarray, trace: Trace) -> float:
    """Median duration of the run's batch copies × copies a batch (a first one may be submitted before any range)."""
    carried = batch_copies(copies, batch_of)
    if not carried.any():
        return 0.0
    return median(durations_ms(copies.intervals[carried])) * max(1, round(carried.sum() / len(trace.infer)))


def durations_ms(intervals: np.ndarray) -> list[float]:
    return ((intervals[:, 1] - intervals[:, 0]) / 1e6).tolist()


def launches(trace: Trace, batches: list[int]) -> list[int]:
    """How many calls that launch kernels or graphs each batch's `infer` range holds."""
    wanted = [(start, thread) for start, _, name, thread in trace.calls.values() if "Launch" in name and "HostFunc" not in name]
    calls = np.array(wanted, np.int64).reshape(-1, 2)
    return [int(((calls[:, 1] == trace.infer_threads[batch]) & (trace.infer[batch][0] <= calls[:, 0])
                 & (calls[:, 0] <= trace.infer[batch][1])).sum()) for batch in batches]


def allocations(trace: Trace, inside: bool) -> int:
    """Calls in the window that allocate or free: inside `infer` ranges (TensorRT's own), or between two of a thread's
    (the script's). What a thread frees after its last batch is no business of the batches."""
    count = 0
    for thread in np.unique(trace.infer_threads):
        own = trace.infer[trace.infer_threads == thread]
        for first, _, name, caller in trace.calls.values():
            if caller == thread and name.startswith(("cudaMalloc", "cudaFree")) and trace.window[0] <= first <= trace.window[1]:
                position = int(np.searchsorted(own[:, 0], first, side="right")) - 1
                within = position >= 0 and first < own[position, 1]
                count += within if inside else 0 <= position < len(own) - 1 and not within
    return count


def limiter(analysis: Analysis, per_batch_ms: float) -> str:
    """What a stage is limited by: a part of the batch, or, well above the limit, what keeps it there.

    ``launch``: the gaps between a batch's own kernels, in which the GPU waits for the host's next launch, make up half
    of what is lost or more. ``serialized``: parts wait for one another that could run side by side.
    """
    limit_ms, part = analysis.limit
    if 100 * limit_ms / per_batch_ms >= NEAR:
        return part
    return "launch" if analysis.launch_gaps_ms >= 0.5 * (per_batch_ms - limit_ms) else "serialized"
