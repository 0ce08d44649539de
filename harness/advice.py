"""One sentence a stage: what limits it, and which stage of the ladder, or what beyond it, attacks that."""

from __future__ import annotations

from common.record import FAULT
from harness.rows import Row, steps

BUSY = 0.97  # share of a batch's time from which on its kernels leave nothing between them
OVERLAPPED = 0.5  # share of the shorter of copy and compute from which on a stage counts as one that overlaps them
PINNED_SHARE = 0.6  # a copy slower than this share of the run's fastest is taken for one from pageable memory


def remedy(stage: Row, rows: list[Row]) -> str:
    """What to try next for one stage, given the others of its run."""
    what, percent = stage.limiter, min(stage.percent_of_limit or 0, 100)
    pageable = (stage.h2d_gb_s or 0) < PINNED_SHARE * max(row.h2d_gb_s or 0 for row in rows)
    if what == "serialized":
        if stage.allocations:
            done = f"{stage.allocations:.0f} allocations and frees a batch"
            return f"{done} stand between the batches: allocate once (stage 2)"
        if pageable:
            return "the input is copied from pageable memory, slowly and with the host waiting: page-lock it (stage 3)"
        if (stage.library_allocations or 0) >= 1:
            cause = "as it does whenever the profile or the shape changes"
            return f"TensorRT allocates inside the submission, {cause}: keep a context for each, or sort the batches by size"
        if (stage.overlap or 0) < OVERLAPPED:
            shorter = "make compute shorter with FP16 (stage 4), and " if stage.precision == "fp32" else ""
            return f"copies and compute take turns: {shorter}overlap them (stage 5)"
        return "the GPU waits for the host between batches: submit ahead and post-process on a thread (stage 6)"
    if what == "launch" and stage.launches == 1:
        cause = "the kernels of one graph have gaps between them although nothing is left to launch"
        return f"{cause}: see in the timeline what runs beside them"
    if what == "launch":
        return "the GPU waits for single launches: capture them into a CUDA graph (stage 7), or use larger batches"
    if what == "postprocess":
        return "the host's post-processing is the longest part: several workers, or do it on the GPU"
    if what == "compute":
        if stage.precision == "fp32":
            return f"compute-bound at {percent:.0f} % of its limit: FP16 (stage 4)"
        rest = "; no schedule helps"
        if (stage.compute_ms or 0) < BUSY * stage.per_batch_ms and (stage.launches or 0) > 1:
            rest = ", and a CUDA graph (stage 7) for the gaps between kernels"
        return f"compute-bound at {percent:.0f} % of its limit: a faster engine (INT8) or a smaller model{rest}"
    if what == "h2d":
        if pageable:
            return "bound by copies from pageable memory: page-lock it (stage 3)"
        cause = f"bound by the input copy at {percent:.0f} % of its limit"
        fewer = "send fewer bytes (uint8 or compressed images, decoded on the GPU)"
        return f"{cause}: {fewer}; neither a faster engine nor another schedule helps"
    if what == "d2h":
        return "bound by the output copy: send back less (top-1 instead of all logits, FP16)"
    return "no timeline: profile it to see what limits it"


def advice(rows: list[Row]) -> str:
    """The line that ends the table: the fastest stage, and what stands in its way."""
    right = [row for row in steps(rows) if not row.faulty]
    if not right:
        return f"No stage counts: {FAULT}."
    best = max(right, key=lambda row: row.speedup_vs_baseline)
    faster = f"{best.speedup_vs_baseline:.1f} times the first stage"
    gain = faster if best is not rows[0] else "no stage is faster than the first"
    return f"Fastest: {best.stage} ({best.per_batch_ms:.3f} ms a batch, {gain}). Next: {remedy(best, rows)}."
