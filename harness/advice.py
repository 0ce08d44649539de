"""One sentence a stage: what limits it; which stage of the ladder, or what beyond it, attacks that; and what the parts of a
batch, each measured by itself, allow that to bring."""

from __future__ import annotations

import re
from collections.abc import Iterable

from common.parts import ALL_PARTS, PARTS
from common.record import FAULT
from harness.rows import Row, steps

BUSY = 0.97  # share of a batch's time from which on its kernels leave nothing between them
OVERLAPPED = 0.5  # share of the shorter of copy and compute from which on a stage counts as one that overlaps them
PINNED_SHARE = 0.6  # a copy slower than this share of the run's fastest is taken for one from pageable memory
NBYTES = {"float32": 4, "float16": 2}  # of what could be sent as bytes instead
FIRST = re.compile(r"stage (\d+)|INT8")  # what a remedy names first


def remedy(stage: Row, rows: list[Row]) -> str:
    """What to try next for one stage, given the others of its run, and what that can bring: by the measured parts, and by the
    simulator where that was asked."""
    said = proposal(stage, rows)
    if stage.modelled_next_ms is None or not (named_first := FIRST.search(said)):
        return said
    return f"{said} (the simulator says {stage.modelled_next_ms:.3g} ms for {named_first[0]})"


def named(stage: Row, rows: list[Row], known: Iterable[str | None]) -> str | None:
    """Which of the runs that are ``known``, as prediction.json calls them, the remedy names first: in the stage's precision,
    unless it names INT8."""
    if not (found := FIRST.search(proposal(stage, rows))):
        return None
    wanted, int8 = f"{found[1]}_" if found[1] else stage.stage, not found[1] or stage.precision == "int8"
    return next((each for each in known if each and each.startswith(wanted) and each.endswith(" int8") == int8), None)


def proposal(stage: Row, rows: list[Row]) -> str:
    what, percent, parts = stage.limiter, min(stage.percent_of_limit or 0, 100), stage.parts_ms or {}
    pinned, returned, half = (fastest(part, stage, rows) for part in ("h2d", "d2h", "fp16"))
    if traced := max(row.h2d_gb_s or 0 for row in rows):
        pageable = (stage.h2d_gb_s or 0) < PINNED_SHARE * traced
    else:
        pageable = PINNED_SHARE * parts.get("h2d", 0) > (pinned or 0)
    if what == "serialized" and "decode" in parts:
        waits = f"the decoder waits for its files{at_best(stage, stage.limit_ms)}"
        return f"{waits}: read them by themselves (python -m scripts.decoders)"
    if what == "serialized":
        if stage.allocations:
            done = f"{stage.allocations:.0f} allocations and frees a batch stand between the batches"
            return f"{done}: allocate once (stage 2{at_best(stage, sum(parts.values()))})"
        if pageable:
            slow = "the input is copied from pageable memory, slowly and with the host waiting"
            turns = sum({**parts, "h2d": pinned, "d2h": returned}.values()) if pinned and returned else None
            return f"{slow}: page-lock it (stage 3{at_best(stage, turns)})"
        if (stage.library_allocations or 0) >= 1:
            cause = "as it does whenever the profile or the shape changes"
            return f"TensorRT allocates inside the submission, {cause}: keep a context for each, or sort the batches by size"
        if (stage.overlap or 0) < OVERLAPPED:
            shorter = "make compute shorter with FP16 (stage 4), and " if stage.precision == "fp32" else ""
            after = {**parts, "compute": half} if shorter and half else parts
            best = at_best(stage, max(after.values(), default=0))
            return f"copies and compute take turns: {shorter}overlap them (stage 5{best})"
        ahead = f"submit ahead and post-process on a thread (stage 6{at_best(stage, stage.limit_ms)})"
        return f"the GPU waits for the host between batches: {ahead}"
    if what == "launch" and stage.launches == 1:
        cause = "the kernels of one graph have gaps between them although nothing is left to launch"
        return f"{cause}: see in the timeline what runs beside them"
    if what == "launch":
        graph = f"capture each context's into a CUDA graph (stage 7{at_best(stage, stage.limit_ms)})"
        return f"the GPU waits for single launches: {graph}, or use larger batches"
    if what == "postprocess":
        gone = becomes(parts, postprocess=0.0)
        return f"the host's post-processing is the longest part: several workers, or do it on the GPU{gone}"
    if what == "compute":
        cause = f"compute-bound at {percent:.0f} % of its limit"
        if stage.precision == "fp32":
            return f"{cause}: FP16 (stage 4{becomes(parts, compute=half)})"
        rest = "; no schedule helps"
        if (stage.compute_ms or 0) < BUSY * stage.per_batch_ms and (stage.launches or 0) > 1:
            rest = ", and a CUDA graph (stage 7) for the gaps between kernels"
        if stage.precision == "int8":
            return f"{cause}: a smaller model{rest}"
        faster = f"a faster engine (INT8{becomes(parts, compute=fastest('int8', stage, rows))})"
        return f"{cause}: {faster} or a smaller model{rest}"
    if what == "h2d" and pageable:
        return f"bound by copies from pageable memory: page-lock it (stage 3{becomes(parts, h2d=pinned)})"
    if what == "h2d":
        cause, fewer = f"bound by the input copy at {percent:.0f} % of its limit", "compressed images, decoded on the GPU"
        if nbytes := NBYTES.get(stage.input):
            fewer = f"uint8 (stage 10{in_bytes(stage, rows, nbytes)}) or {fewer}"
        return f"{cause}: send fewer bytes, {fewer}; neither a faster engine nor another schedule helps"
    if what == "decode":
        return f"bound by the decoder at {percent:.0f} % of its limit: a faster one (--decoder), or more machines"
    if what == "d2h":
        return f"bound by the output copy: send back less (top-1 instead of all logits, FP16{becomes(parts, d2h=0.0)})"
    return "no timeline: profile it to see what limits it"


def fastest(part: str, stage: Row, rows: list[Row]) -> float | None:
    """The shortest of a part of the rows with batches like the stage's, or the shortest compute in a precision."""
    alike = [(row, row.parts_ms) for row in rows if row.parts_ms and row.images == stage.images]
    if part in PARTS:
        return min((parts[part] for row, parts in alike if row.input == stage.input), default=None)
    return min((parts["compute"] for row, parts in alike if row.precision == part), default=None)


def at_best(stage: Row, ms: float | None) -> str:
    """What a stage that is far from its limit can come to; nothing where that is not known, or is no gain."""
    return f"; at best {ms:.3g} ms, {less(stage.per_batch_ms, ms)}" if ms and ms < stage.per_batch_ms else ""


def becomes(parts: dict[str, float], **changed: float | None) -> str:
    """What limits a batch, and at which time, once some of its parts take other times; nothing where those are not known."""
    after = {**parts, **{name: ms for name, ms in changed.items() if ms is not None}}
    if not parts or None in changed.values():
        return ""
    moves = ", ".join(f"{ALL_PARTS[name]} {parts[name]:.3g} → {ms:.3g} ms" for name, ms in changed.items())
    part = max(after, key=lambda name: after[name])
    return f"; {moves}, then {ALL_PARTS[part]} limits: {after[part]:.3g}, {less(max(parts.values()), after[part])}"


def in_bytes(stage: Row, rows: list[Row], nbytes: int) -> str:
    """``becomes`` of a copy of bytes instead of values of ``nbytes``; with an INT8 engine as well, where one was measured.

    Stage 10 sends three bytes a pixel to an INT8 engine, and four to others (``export/bytes_in.py``)."""
    if not stage.parts_ms:
        return ""
    three, int8 = stage.parts_ms["h2d"] / nbytes, fastest("int8", stage, rows)
    if stage.precision == "int8":
        return becomes(stage.parts_ms, h2d=three)
    said = becomes(stage.parts_ms, h2d=three * 4 / 3)
    if int8 is None:
        return said
    ms = max({**stage.parts_ms, "h2d": three, "compute": int8}.values())
    return f"{said}; with INT8 {ms:.3g}, {less(max(stage.parts_ms.values()), ms)}"


def less(before: float, after: float) -> str:
    percent = 100 * (1 - after / before)
    return f"{abs(percent):.0f} % {'less' if percent >= 0 else 'more'}"


def advice(rows: list[Row]) -> str:
    """The line that ends the table: the fastest stage, and what stands in its way."""
    if not (right := [row for row in steps(rows) if not row.faulty]):
        return f"No stage counts: {FAULT}."
    best = max(right, key=lambda row: row.speedup_vs_baseline)
    faster = f", {best.speedup_vs_baseline:.1f} times the first stage"
    gain = faster if best is not rows[0] else ", no stage is faster than the first" * (len(right) > 1)
    said = f"Fastest: {best.stage} ({best.per_batch_ms:.3f} ms a batch{gain}). Next: {remedy(best, rows)}."
    if best.capped_mhz:
        said += f" The power cap held its SM clock down to {best.capped_mhz:,.0f} MHz: fewer bits take less energy, too."
    return said
