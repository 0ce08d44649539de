"""A timeline in Nsight Systems' SQLite form, read: an export of any age, or the simulator's own. Differences end here.

Newer and older exports differ in which tables exist (those without events are absent), in where a range's name is kept
(inline or in StringIds), and in whether the measured script's ranges lie in a domain of their own.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from common.errors import UsageFault

MEASURED, INFER, POSTPROCESS, DECODE = "measured batches", "infer", "postprocess", "decode"  # ranges (``common/ranges.py``)
LAST = 2**60  # ns that a trace can be of
PUSH_POP, START_END = 59, 60  # NVTX_EVENTS.eventType
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2  # CUPTI_ACTIVITY_KIND_MEMCPY.copyKind


class TraceError(UsageFault):
    """The file holds no timeline that could be compared; the message says why and what to do."""


@dataclass
class Operations:
    """Operations of one kind by start: N×2 intervals in ns, bytes, and the id of the API call that submitted each."""

    intervals: np.ndarray
    correlations: np.ndarray
    nbytes: np.ndarray

    def __len__(self) -> int:
        return len(self.intervals)


@dataclass
class Calls:
    """CUDA API calls by correlation id: starts and ends in ns, names, threads."""

    correlations: np.ndarray
    intervals: np.ndarray
    names: np.ndarray
    threads: np.ndarray


@dataclass
class Trace:
    """One stage's timeline in ns: ranges and operations as N×2 intervals; ``simulated`` is what a simulator says of itself.

    ``whole_graphs``: a graph is one operation among the kernels, its copies included (nsys without --cuda-graph-trace=node).
    """

    path: Path
    device: str
    window: tuple[int, int]
    infer: np.ndarray
    infer_threads: np.ndarray
    postprocess: np.ndarray
    decode: np.ndarray
    kernels: Operations
    h2d: Operations
    d2h: Operations
    calls: Calls
    simulated: dict[str, str]
    whole_graphs: bool = False

    @cached_property
    def measured(self) -> list[int]:
        """Numbers of the `infer` ranges of the batches that were finished inside the window.

        Batches are finished in the order in which they are submitted, so the n-th `postprocess` is of the n-th `infer`.
        """
        start, end = self.window
        finished = (self.postprocess[:, 1] > start) & (self.postprocess[:, 1] <= end)
        measured = [int(number) for number in np.flatnonzero(finished) if number < len(self.infer)]
        if not measured or end <= start:
            raise TraceError(f"{self.path}: no batch was finished inside the measured window")
        return measured

    def batches_of(self, operations: Operations) -> np.ndarray:
        """The number of the `infer` range that submitted each operation; -1 where none did."""
        return self.ranges_of(self.calls_of(operations))

    def calls_of(self, operations: Operations) -> np.ndarray:
        """The index in ``calls`` of the call that submitted each operation; -1 where the trace has none."""
        found = np.searchsorted(self.calls.correlations, operations.correlations)
        return np.where(np.isin(operations.correlations, self.calls.correlations), found, -1)

    def ranges_of(self, calls: np.ndarray) -> np.ndarray:
        """The number of the `infer` range that each call, by its index, was made in; -1 for a call outside them."""
        found = np.full(len(calls), -1)
        for thread in np.unique(self.infer_threads) if len(self.calls.correlations) else ():
            numbers = np.flatnonzero(self.infer_threads == thread)  # a thread's own ranges do not overlap
            starts, ends = self.infer[numbers].T
            called = self.calls.intervals[calls, 0]
            index = np.searchsorted(starts, called, side="right") - 1
            own = (calls >= 0) & (index >= 0) & (called <= ends[index]) & (self.calls.threads[calls] == thread)
            found[own] = numbers[index[own]]
        return found


def read(path: Path) -> Trace:
    """Raises ``TraceError`` for a file that is no export, or one without our ranges or any GPU work."""
    with opened(path) as reader:
        return reader.trace()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Reader]:
    """A trace's reader; whatever is raised inside of what the file holds is a ``TraceError``."""
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            yield Reader(connection, path)
    except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
        mend = f"nsys export --type sqlite -o {path.stem}.sqlite REPORT.nsys-rep"
        raise TraceError(f"{path} is not an SQLite export of Nsight Systems ({error}): {mend}") from None


class Reader:
    """Reads one database; ``path`` is what its errors call it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection, self.path = connection, path
        self.tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def rows(self, table: str, columns: str) -> list[tuple]:
        """Rows of a table, whose name may have clauses behind it; none where the export has no such table, i.e. no such
        events."""
        known = table.split()[0] in self.tables
        return self.connection.execute(f"SELECT {columns} FROM {table}").fetchall() if known else []

    def trace(self) -> Trace:
        windows = self.ranges(MEASURED, START_END)
        infer, postprocess = self.ranges(INFER, PUSH_POP), self.ranges(POSTPROCESS, PUSH_POP)
        if not windows or not infer:
            raise TraceError(
                f"{self.path} has no `{INFER if windows else MEASURED}` range. Either the script has none, or nsys did not "
                "record them: nsys 2023.4 and older need nvtx 0.2.11 or older (pip install 'nvtx<0.2.12')."
            )
        ((start, end),) = intervals(windows[-1:]).tolist()
        infer = [row for row in infer if row[0] < end]
        postprocess = [row for row in postprocess if row[1] <= end]
        kernels = self.operations("correlationId, 0", "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_GRAPH_TRACE")
        if not len(kernels):
            why = "this nsys is too old for the CUDA driver, or the script was traced without `-t cuda`"
            raise TraceError(f"{self.path} has no GPU work in it: {why}.")
        copied = (f"CUPTI_ACTIVITY_KIND_MEMCPY WHERE copyKind = {kind}" for kind in (HOST_TO_DEVICE, DEVICE_TO_HOST))
        h2d, d2h = (self.operations("correlationId, bytes", copies) for copies in copied)
        device = next((str(name) for (name,) in self.rows("TARGET_INFO_GPU", "name") if name), "unknown GPU")
        wanted = "('SIMULATED', 'ENGINE', 'STAGE', 'COMPUTED_BATCH', 'CHARGED_BATCH')"
        facts = {name: str(value) for name, value in self.rows(f"META_DATA_CAPTURE WHERE name IN {wanted}", "name, value")}
        simulated, threads = facts if facts.get("SIMULATED") == "true" else {}, numbers(infer, 2)
        decode = [row for row in self.ranges(DECODE, PUSH_POP) if row[0] < end]
        decode = decode[-len(infer) :]  # one a batch; before them are those that filled the batches for the serial run
        ranges = (intervals(infer), threads, intervals(postprocess), intervals(decode))
        whole_graphs = bool(self.rows("CUPTI_ACTIVITY_KIND_GRAPH_TRACE LIMIT 1", "start"))
        return Trace(self.path, device, (start, end), *ranges, kernels, h2d, d2h, self.calls(), simulated, whole_graphs)

    def ranges(self, name: str | None, kind: int) -> list[tuple]:
        """(start, end, thread, name) of the closed ranges of a name, or of all, by start; whatever their domain."""
        text, joined = "COALESCE(n.text, s.value)", "NVTX_EVENTS n LEFT JOIN StringIds s ON s.id = n.textId"
        closed = f"n.eventType = {kind} AND n.end IS NOT NULL" + (f" AND {text} = '{name}'" if name else "")
        return self.rows(f"{joined} WHERE {closed} ORDER BY n.start", f"n.start, n.end, n.globalTid, {text}")

    def operations(self, columns: str, *tables: str) -> Operations:
        """Of all the tables; ``columns`` are the correlation id and the bytes."""
        rows = [row for table in tables for row in self.rows(f"{table} ORDER BY start", f"start, end, {columns}")]
        rows.sort(key=lambda row: row[0])
        return Operations(intervals(rows), numbers(rows, 2), numbers(rows, 3))

    def calls(self) -> Calls:
        named = "CUPTI_ACTIVITY_KIND_RUNTIME r JOIN StringIds s ON s.id = r.nameId ORDER BY COALESCE(r.correlationId, 0)"
        rows = self.rows(named, "r.start, r.end, r.correlationId, r.globalTid, s.value")
        return Calls(numbers(rows, 2), intervals(rows), np.array([str(row[4]) for row in rows], object), numbers(rows, 3))


def intervals(rows: list[tuple]) -> np.ndarray:
    found = np.array([row[:2] for row in rows], np.int64).reshape(-1, 2)
    if (found[:, 1] < found[:, 0]).any() or (found != found.clip(-LAST, LAST)).any():
        raise ValueError("something ends before it starts, or centuries later")
    return found


def numbers(rows: list[tuple], column: int) -> np.ndarray:
    return np.array([row[column] or 0 for row in rows], np.int64)
