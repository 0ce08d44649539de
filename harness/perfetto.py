"""A trace as Chrome's trace event JSON, which ui.perfetto.dev opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_json
from common.timeline import TITLES
from common.trace import Trace

GPU, HOST = 1, 2  # process ids of the two groups of rows


def events(trace: Trace) -> list[dict[str, Any]]:
    """Complete events ("X") in µs from the window's start, and the names of their rows ("M")."""
    rows: list[tuple[int, int, str, str, np.ndarray, Any]] = []  # where, its title, what its events are called, their batches
    for row, (name, part) in enumerate({"h2d": trace.h2d, "compute": trace.kernels, "d2h": trace.d2h}.items(), 1):
        rows.append((GPU, row, TITLES[name], TITLES[name], part.intervals, trace.batches_of(part)))
    for row, thread in enumerate(dict.fromkeys(trace.infer_threads.tolist()), 1):
        numbers = np.flatnonzero(trace.infer_threads == thread)
        rows.append((HOST, row, f"thread {thread}", "infer", trace.infer[numbers], numbers))
    rows.append((HOST, 100, "post-processing", "postprocess", trace.postprocess, np.arange(len(trace.postprocess))))
    rows.append((HOST, 101, "measured window", "measured batches", np.array([trace.window]), [None]))
    found: list[dict[str, Any]] = []
    for process, text in ((GPU, f"GPU: {trace.device}"), (HOST, "host")):
        found.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": text}})
    for process, row, title, text, intervals, batches in rows:
        place = {"pid": process, "tid": row}
        found.append({"ph": "M", "name": "thread_name", **place, "args": {"name": title}})
        for start, length, batch in zip(intervals[:, 0] - trace.window[0], np.diff(intervals)[:, 0], batches):
            time = {"ts": int(start) / 1e3, "dur": int(length) / 1e3}
            found.append({"ph": "X", "name": text, **place, **time, "args": {} if batch is None else {"batch": int(batch)}})
    return found


def write(trace: Trace, path: Path) -> None:
    write_json(path, {"traceEvents": events(trace), "displayTimeUnit": "ms"}, indent=None)
