"""A trace as Chrome's trace event JSON, which ui.perfetto.dev opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.files import write_json
from common.trace import Trace

GPU, HOST = 1, 2  # process ids of the two groups of rows


def events(trace: Trace) -> list[dict[str, Any]]:
    """Complete events ("X") in µs from the window's start, and the names of their rows ("M")."""
    origin = trace.window[0]
    found: list[dict[str, Any]] = []

    def name(process: int, thread: int, text: str) -> None:
        found.append({"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": text}})

    def add(process: int, thread: int, text: str, start: int, end: int, **arguments: Any) -> None:
        found.append(
            {
                "ph": "X",
                "name": text,
                "pid": process,
                "tid": thread,
                "ts": (int(start) - origin) / 1e3,
                "dur": (int(end) - int(start)) / 1e3,
                "args": arguments,
            }
        )

    for process, text in ((GPU, f"GPU: {trace.device}"), (HOST, "host")):
        found.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": text}})
    for row, (text, operations) in enumerate((("H2D copy", trace.h2d), ("compute", trace.kernels), ("D2H copy", trace.d2h)), 1):
        name(GPU, row, text)
        for (start, end), batch in zip(operations.intervals, trace.batches_of(operations)):
            add(GPU, row, text, start, end, batch=int(batch))
    threads = {int(thread): row for row, thread in enumerate(dict.fromkeys(trace.infer_threads.tolist()), 1)}
    for thread, row in threads.items():
        name(HOST, row, f"thread {thread}")
    for number, ((start, end), thread) in enumerate(zip(trace.infer, trace.infer_threads)):
        add(HOST, threads[int(thread)], "infer", start, end, batch=number)
    name(HOST, 100, "post-processing")
    for number, (start, end) in enumerate(trace.postprocess):
        add(HOST, 100, "postprocess", start, end, batch=number)
    name(HOST, 101, "measured window")
    add(HOST, 101, "measured batches", *trace.window)
    return found


def write(trace: Trace, path: Path) -> None:
    write_json(path, {"traceEvents": events(trace), "displayTimeUnit": "ms"}, indent=None)
