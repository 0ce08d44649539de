"""A timeline in Nsight Systems' SQLite form, read: an export of any age, or the simulator's own. Differences end here.

Newer and older exports differ in which tables exist (those without events are absent), in where a range's name is kept
(inline or in StringIds), and in whether the measured script's ranges lie in a domain of their own.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

MEASURED, INFER, POSTPROCESS = "measured batches", "infer", "postprocess"  # the ranges (see ``common/ranges.py``)
PUSH_POP, START_END = 59, 60  # NVTX_EVENTS.eventType
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2  # CUPTI_ACTIVITY_KIND_MEMCPY.copyKind


class TraceError(Exception):
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
    """One stage's timeline in ns: ranges and operations as N×2 intervals; ``simulated`` is what a simulator says of itself."""

    path: Path
    device: str
    window: tuple[int, int]
    infer: np.ndarray
    infer_threads: np.ndarray
    postprocess: np.ndarray
    kernels: Operations
    h2d: Operations
    d2h: Operations
    calls: Calls
    simulated: dict[str, str]

    @cached_property
    def measured(self) -> list[int]:
        """Numbers of the `infer` ranges of the batches that were finished inside the window.

        Batches are finished in the order in which they are submitted, so the n-th `postprocess` is of the n-th `infer`.
        """
        start, end = self.window
        finished = (self.postprocess[:, 1] > start) & (self.postprocess[:, 1] <= end)
        measured = [int(number) for number in np.flatnonzero(finished) if number < len(self.infer)]
        if not measured:
            raise TraceError(f"{self.path}: no batch was finished inside the measured window")
        return measured

    def batches_of(self, operations: Operations) -> np.ndarray:
        """The number of the `infer` range that submitted each operation; -1 where none did."""
        return self.ranges_of(self.calls_of(operations))

    def calls_of(self, operations: Operations) -> np.ndarray:
        """The index in ``calls`` of the call that submitted each operation; -1 where the trace has none."""
        if not len(self.calls.correlations):
            return np.full(len(operations), -1)
        found = np.searchsorted(self.calls.correlations, operations.correlations)
        found = np.minimum(found, len(self.calls.correlations) - 1)
        return np.where(self.calls.correlations[found] == operations.correlations, found, -1)

    def ranges_of(self, calls: np.ndarray) -> np.ndarray:
        """The number of the `infer` range that each call, by its index, was made in; -1 for a call outside them."""
        found = np.full(len(calls), -1)
        for thread in np.unique(self.infer_threads):
            numbers = np.flatnonzero(self.infer_threads == thread)  # a thread's own ranges do not overlap
            starts, ends = self.infer[numbers].T
            called = self.calls.intervals[calls, 0] if len(self.calls.intervals) else np.zeros(len(calls), np.int64)
            index = np.searchsorted(starts, called, side="right") - 1
            own = (calls >= 0) & (index >= 0) & (called <= ends[index]) & (self.calls.threads[calls] == thread)
            found[own] = numbers[index[own]]
        return found


def read(path: Path) -> Trace:
    """Raises ``TraceError`` for a file that is no export, or one without our ranges or any GPU work."""
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return Reader(connection, path).trace()
    except sqlite3.DatabaseError as error:
        raise TraceError(
            f"{path} is not an SQLite export of Nsight Systems ({error}): "
            f"nsys export --type sqlite -o {path.stem}.sqlite REPORT.nsys-rep"
        ) from None
    finally:
        connection.close()


class Reader:
    """Reads one database; ``path`` is what its errors call it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection, self.path = connection, path
        self.tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def rows(self, table: str, columns: str, rest: str = "") -> list[tuple]:
        """Rows of a table; none where the export has no such table, i.e. no such events."""
        if table.split()[0] not in self.tables:
            return []
        return self.connection.execute(f"SELECT {columns} FROM {table} {rest}").fetchall()

    def trace(self) -> Trace:
        windows = self.ranges(MEASURED, START_END)
        infer, postprocess = self.ranges(INFER, PUSH_POP), self.ranges(POSTPROCESS, PUSH_POP)
        if not windows or not infer:
            raise TraceError(
                f"{self.path} has no `{INFER if windows else MEASURED}` range. Either the script has none, or nsys did not "
                "record them: nsys 2023.4 and older need nvtx 0.2.11 or older (pip install 'nvtx<0.2.12')."
            )
        window = windows[-1][:2]
        infer = [row for row in infer if row[0] < window[1]]
        kernels = self.operations("CUPTI_ACTIVITY_KIND_KERNEL", "0")
        graphs = self.operations("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", "0")
        kernels = merge(kernels, graphs) if len(graphs) else kernels
        if not len(kernels):
            raise TraceError(
                f"{self.path} has no GPU work in it: this nsys is too old for the CUDA driver, or the script was traced "
                "without `-t cuda`."
            )
        gpu = self.rows("TARGET_INFO_GPU", "name")
        wanted = "('SIMULATED', 'ENGINE', 'STAGE', 'COMPUTED_BATCH', 'CHARGED_BATCH')"
        facts = dict(self.rows("META_DATA_CAPTURE", "name, value", f"WHERE name IN {wanted}"))
        return Trace(
            path=self.path,
            device=gpu[0][0] if gpu else "unknown GPU",
            window=window,
            infer=intervals(infer),
            infer_threads=np.array([row[2] for row in infer], np.int64),
            postprocess=intervals([row for row in postprocess if row[1] <= window[1]]),
            kernels=kernels,
            h2d=self.copies(HOST_TO_DEVICE),
            d2h=self.copies(DEVICE_TO_HOST),
            calls=self.calls(),
            simulated=facts if facts.get("SIMULATED") == "true" else {},
        )

    def ranges(self, name: str, kind: int) -> list[tuple[int, int, int]]:
        """(start, end, thread) of the closed ranges of a name, by start; in our domain, or else in the default one."""
        return self.rows(
            "NVTX_EVENTS n",
            "n.start, n.end, n.globalTid",
            "LEFT JOIN StringIds s ON s.id = n.textId WHERE COALESCE(n.text, s.value) = "
            f"'{name}' AND n.eventType = {kind} AND n.end IS NOT NULL ORDER BY n.start",
        )

    def operations(self, table: str, size: str, where: str = "") -> Operations:
        rows = self.rows(table, f"start, end, correlationId, {size}", f"{where} ORDER BY start")
        numbers = (np.array([row[column] or 0 for row in rows], np.int64) for column in (2, 3))
        return Operations(intervals(rows), *numbers)

    def copies(self, kind: int) -> Operations:
        return self.operations("CUPTI_ACTIVITY_KIND_MEMCPY", "bytes", f"WHERE copyKind = {kind}")

    def calls(self) -> Calls:
        rows = self.rows(
            "CUPTI_ACTIVITY_KIND_RUNTIME r",
            "r.start, r.end, r.correlationId, r.globalTid, s.value",
            "JOIN StringIds s ON s.id = r.nameId ORDER BY r.correlationId",
        )
        correlations, threads = (np.array([row[column] for row in rows], np.int64) for column in (2, 3))
        return Calls(correlations, intervals(rows), np.array([row[4] for row in rows], object), threads)


def intervals(rows: list[tuple]) -> np.ndarray:
    return np.array([row[:2] for row in rows], np.int64).reshape(-1, 2)


def merge(one: Operations, other: Operations) -> Operations:
    order = np.argsort(np.concatenate([one.intervals[:, 0], other.intervals[:, 0]]), kind="stable")
    names = ("intervals", "correlations", "nbytes")
    return Operations(*(np.concatenate([getattr(one, name), getattr(other, name)])[order] for name in names))
