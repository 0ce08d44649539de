"""A trace as Chrome's trace event JSON, which ui.perfetto.dev opens, with an arrow from each call to what it started."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.timeline import TITLES
from common.trace import Trace, opened

GPU, HOST = 1, 2  # process ids of the two groups of rows
POSTPROCESS, WINDOW = 1 << 20, 1 << 21  # rows of the host below its threads'


def events(trace: Trace) -> dict[str, Any]:
    """The file's content: complete events ("X") in µs from the first one, their rows' names ("M"), and arrows ("s" to "f")."""
    with opened(trace.path) as reader:
        kernels = dict(reader.rows("CUPTI_ACTIVITY_KIND_KERNEL k JOIN StringIds s ON s.id = k.shortName", "k.start, s.value"))
    rows: list[tuple[int, int, str, np.ndarray, Any, Any]] = []  # process, row, its title; intervals, names, batches
    arrows: list[tuple[np.ndarray, np.ndarray, int]] = []  # the calls' numbers, their operations' intervals and row
    for row, (part, found) in enumerate({"h2d": trace.h2d, "compute": trace.kernels, "d2h": trace.d2h}.items(), 1):
        names = [kernels.get(start, TITLES[part]) if part == "compute" else TITLES[part] for start in found.intervals[:, 0]]
        rows.append((GPU, row, TITLES[part], found.intervals, names, trace.batches_of(found)))
        arrows.append((trace.calls_of(found), found.intervals, row))
    threads = {thread: row for row, thread in enumerate(dict.fromkeys([*trace.infer_threads, *trace.calls.threads]), 1)}
    for thread, row in threads.items():
        infer, calls = np.flatnonzero(trace.infer_threads == thread), np.flatnonzero(trace.calls.threads == thread)
        title = f"thread {row}"
        rows.append((HOST, row, title, trace.infer[infer], ["infer"] * len(infer), infer))
        rows.append((HOST, row, title, trace.calls.intervals[calls], trace.calls.names[calls], trace.ranges_of(calls)))
    finished = np.arange(len(trace.postprocess))
    rows.append((HOST, POSTPROCESS, "post-processing", trace.postprocess, ["postprocess"] * len(finished), finished))
    rows.append((HOST, WINDOW, "measured window", np.array([trace.window]), ["measured batches"], [-1]))
    first = min(intervals[:, 0].min() for _, _, _, intervals, _, _ in rows if len(intervals))
    made: list[dict[str, Any]] = []
    for process, text in ((GPU, f"GPU: {trace.device}"), (HOST, "host")):
        made.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": text}})
    for process, row, title, intervals, names, batches in rows:
        place = {"pid": process, "tid": row}
        made.append({"ph": "M", "name": "thread_name", **place, "args": {"name": title}})
        for (start, end), name, batch in zip(intervals, names, batches):
            time = {"ts": int(start - first) / 1e3, "dur": int(end - start) / 1e3}
            made.append({"ph": "X", "name": name, **place, **time, "args": {"batch": int(batch)} if batch >= 0 else {}})
    for calls, intervals, row in arrows:
        for call, start in zip(calls[calls >= 0], intervals[calls >= 0, 0]):
            arrow, called = {"name": "starts", "cat": "cuda", "id": len(made)}, trace.calls.intervals[call, 0]
            thread = threads[trace.calls.threads[call]]
            made.append({"ph": "s", **arrow, "pid": HOST, "tid": thread, "ts": int(called - first) / 1e3})
            made.append({"ph": "f", "bp": "e", **arrow, "pid": GPU, "tid": row, "ts": int(start - first) / 1e3})
    return {"traceEvents": made, "displayTimeUnit": "ms"}
