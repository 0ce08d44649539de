"""What a timeline says of a stage: the parts of a batch, overlap, idle time, the limit, and what stands in its way.

Operations belong to the batch whose `infer` range submitted them. A batch's parts are whole operations, never cut at
the window's edges; overlap and idle time are of the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from common.trace import Operations, Trace
from harness.intervals import clip, overlap, total

NEAR, DECODER = 90.0, 50.0
"""Percent of a limit from which on a stage is said to be at it; at a decoder's, from where a faster one brings most."""
SMALL = 0.005
"""Share of the largest of the measured batches' copies, in bytes, under which a copy is the library's own business."""


@dataclass(frozen=True)
class Analysis:
    """Milliseconds a batch unless named otherwise; ``overlap``, ``copy_hidden`` and ``gpu_idle`` are shares of 0 to 1.

    ``overlap`` is of the shorter of input copies and compute, ``copy_hidden`` of the copies. A batch's figures are medians over
    the measured batches; of batches of several sizes, the mean of each size's median.
    """

    per_batch_ms: float
    h2d_ms: float
    compute_ms: float
    d2h_ms: float
    postprocess_ms: float
    submit_ms: float
    launch_gaps_ms: float
    overlap: float
    copy_hidden: float
    gpu_idle: float
    launches: int
    allocations: float
    library_allocations: float
    h2d_gb_s: float


def analyse(trace: Trace) -> Analysis:
    start, end = trace.window
    measured, batch_of_kernel = trace.measured, trace.batches_of(trace.kernels)
    own = [trace.kernels.intervals[batch_of_kernel == batch] for batch in measured]
    kernels = np.array([total(intervals) for intervals in own])
    spans = np.array([intervals[:, 1].max() - intervals[:, 0].min() if len(intervals) else 0 for intervals in own])
    h2d, compute, d2h = (clip(part.intervals, start, end) for part in (trace.h2d, trace.kernels, trace.d2h))
    hidden, shorter = overlap(h2d, compute), min(total(h2d), total(compute))
    copied_in, copied_out = batch_copies(trace.h2d, trace), batch_copies(trace.d2h, trace)
    calls = trace.ranges_of(np.arange(len(trace.calls.names)))
    launches = [name for name in set(trace.calls.names) if "Launch" in name and "HostFunc" not in name]
    launched = calls[np.isin(trace.calls.names, launches)]
    between, inside = allocations(trace)
    _, sizes = copied_out  # outputs are copied in their own batch's range; some inputs in that of the batch before

    def typical(values: Any) -> float:
        """Of one value a measured batch."""
        values = np.asarray(values)
        return float(sum(np.median(values[sizes == size]) * np.mean(sizes == size) for size in np.unique(sizes)))

    return Analysis(
        per_batch_ms=(end - start) / 1e6 / len(measured),
        h2d_ms=typical(copied_in[0]) / 1e6,
        compute_ms=typical(kernels) / 1e6,
        d2h_ms=typical(copied_out[0]) / 1e6,
        postprocess_ms=typical(np.diff(trace.postprocess[measured])[:, 0]) / 1e6,
        submit_ms=typical(np.diff(trace.infer[measured])[:, 0]) / 1e6,
        launch_gaps_ms=typical(spans - kernels) / 1e6,
        overlap=hidden / shorter if shorter else 0.0,
        copy_hidden=hidden / total(h2d) if total(h2d) else 0.0,
        gpu_idle=1 - total(np.concatenate([h2d, compute, d2h])) / (end - start),
        launches=round(typical([int((launched == batch).sum()) for batch in measured])),
        allocations=between / len(measured),
        library_allocations=inside / len(measured),
        h2d_gb_s=copied_in[1].sum() / copied_in[0].sum() if copied_in[0].any() else 0.0,
    )


def batch_copies(copies: Operations, trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Time (ns) and bytes of the copies that each measured batch's range submitted, but for the library's few bytes."""
    batch_of, lengths = trace.batches_of(copies), np.diff(copies.intervals)[:, 0]
    carried = np.isin(batch_of, trace.measured)
    carried &= copies.nbytes >= SMALL * max(copies.nbytes[carried], default=0)
    own = [carried & (batch_of == batch) for batch in trace.measured]
    times, nbytes = (np.array([values[batch].sum() for batch in own]) for values in (lengths, copies.nbytes))
    if len(times) > 1 and not times[-1]:  # a pipeline submits an input in the range of the batch before: the last has none
        times[-1], nbytes[-1] = times[-2], nbytes[-2]
    return times, nbytes


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


def limiter(limit_ms: float, part: str, per_batch_ms: float, waits_ms: float) -> str:
    """What a stage is limited by: its longest ``part``, or, well above that limit, what keeps it there.

    ``launch``: the time in which the GPU waits for the host's next launch, ``waits_ms``, makes up half of what is lost or
    more. ``serialized``: parts wait for one another that could run side by side. A decoder that takes half of the time limits:
    without all the waiting that is left less would be gained than by a faster one.
    """
    if 100 * limit_ms / per_batch_ms >= (DECODER if part == "decode" else NEAR):
        return part
    return "launch" if waits_ms >= 0.5 * (per_batch_ms - limit_ms) else "serialized"
