"""Reads a timeline from SQLite: Nsight Systems' export of any age, or the simulator's. Differences end here.

Newer and older exports differ in which tables exist (those without events are absent), in where a range's name is kept
(inline or in StringIds), and in whether the measured script's ranges lie in a domain of their own.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

MEASURED, INFER, POSTPROCESS = "measured batches", "infer", "postprocess"
PUSH_POP, START_END = 59, 60  # NVTX_EVENTS.eventType
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2  # CUPTI_ACTIVITY_KIND_MEMCPY.copyKind
SMALL = 0.005  # share of the largest copy's bytes under which a copy is the library's own business


class TraceError(Exception):
    """The file holds no timeline that could be compared; the message says why and what to do."""


@dataclass
class Operations:
    """Operations of one kind, ordered by start: N×2 intervals in ns, and the id of the API call that submitted each."""

    intervals: np.ndarray
    correlations: np.ndarray
    nbytes: np.ndarray

    def __len__(self) -> int:
        return len(self.intervals)


@dataclass
class Trace:
    """One stage's timeline in ns. ``ranges`` are N×2 by name; ``submitters`` the thread of each `infer` range."""

    path: Path
    device: str
    window: tuple[int, int]
    infer: np.ndarray
    infer_threads: np.ndarray
    postprocess: np.ndarray
    kernels: Operations
    h2d: Operations
    d2h: Operations
    calls: dict[int, tuple[int, int, str, int]]  # correlation id → start, end, name, thread
    simulated: dict[str, str] = field(default_factory=dict)  # what the simulator says of itself


def read(path: Path) -> Trace:
    """Raises ``TraceError`` for a file that is no export, or one without our ranges or any GPU work."""
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return Reader(connection, path).trace()
    except sqlite3.DatabaseError as error:
        raise TraceError(f"{path} is not an SQLite export of Nsight Systems ({error}): "
                         f"nsys export --type sqlite -o {path.stem}.sqlite REPORT.nsys-rep") from None
    finally:
        connection.close()


class Reader:
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
                "record them: nsys 2023.4 and older need nvtx 0.2.11 or older (pip install 'nvtx<0.2.12').")
        window = windows[-1][:2]
        infer = [row for row in infer if row[0] < window[1]]
        kernels = self.operations("CUPTI_ACTIVITY_KIND_KERNEL", "0")
        graphs = self.operations("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", "0")
        if len(graphs):
            kernels = merge(kernels, graphs)
        if not len(kernels):
            raise TraceError(f"{self.path} has no GPU work in it: this nsys is too old for the CUDA driver, or the script "
                             "was traced without `-t cuda`.")
        gpu = self.rows("TARGET_INFO_GPU", "name")
        facts = dict(self.rows("META_DATA_CAPTURE", "name, value", "WHERE name IN ('SIMULATED', 'ENGINE', 'STAGE', "
                               "'COMPUTED_BATCH', 'CHARGED_BATCH')"))
        return Trace(
            path=self.path, device=gpu[0][0] if gpu else "unknown GPU", window=window,
            infer=intervals(infer), infer_threads=np.array([row[2] for row in infer], np.int64),
            postprocess=intervals(row for row in postprocess if row[1] <= window[1]),
            kernels=kernels, h2d=self.copies(HOST_TO_DEVICE), d2h=self.copies(DEVICE_TO_HOST), calls=self.api_calls(),
            simulated=facts if facts.get("SIMULATED") == "true" else {},
        )

    def ranges(self, name: str, kind: int) -> list[tuple[int, int, int]]:
        """(start, end, thread) of the closed ranges of a name, by start; in our domain, or else in the default one."""
        return self.rows("NVTX_EVENTS n", "n.start, n.end, n.globalTid",
                         "LEFT JOIN StringIds s ON s.id = n.textId WHERE COALESCE(n.text, s.value) = "
                         f"'{name}' AND n.eventType = {kind} AND n.end IS NOT NULL ORDER BY n.start")

    def operations(self, table: str, size: str, where: str = "") -> Operations:
        rows = self.rows(table, f"start, end, correlationId, {size}", f"{where} ORDER BY start")
        return Operations(intervals(rows), np.array([row[2] or 0 for row in rows], np.int64),
                          np.array([row[3] for row in rows], np.int64))

    def copies(self, kind: int) -> Operations:
        return self.operations("CUPTI_ACTIVITY_KIND_MEMCPY", "bytes", f"WHERE copyKind = {kind}")

    def api_calls(self) -> dict[int, tuple[int, int, str, int]]:
        rows = self.rows("CUPTI_ACTIVITY_KIND_RUNTIME r", "r.correlationId, r.start, r.end, s.value, r.globalTid",
                         "JOIN StringIds s ON s.id = r.nameId")
        return {correlation: (start, end, name, thread) for correlation, start, end, name, thread in rows}


def intervals(rows: object) -> np.ndarray:
    return np.array([row[:2] for row in rows], np.int64).reshape(-1, 2)  # type: ignore[attr-defined]


def merge(one: Operations, other: Operations) -> Operations:
    order = np.argsort(np.concatenate([one.intervals[:, 0], other.intervals[:, 0]]), kind="stable")
    return Operations(*(np.concatenate([getattr(one, name), getattr(other, name)])[order]
                        for name in ("intervals", "correlations", "nbytes")))


def batch_copies(copies: Operations, batch_of: np.ndarray) -> np.ndarray:
    """Which copies carry batches: submitted from an `infer` range, and not one of the library's few bytes."""
    if not len(copies):
        return np.zeros(0, bool)
    return (batch_of >= 0) & (copies.nbytes >= SMALL * copies.nbytes.max())


def batches_of(operations: Operations, trace: Trace) -> np.ndarray:
    """The number of the `infer` range that submitted each operation; -1 where none did."""
    found = np.full(len(operations), -1, np.int64)
    for thread in np.unique(trace.infer_threads):
        numbers = np.flatnonzero(trace.infer_threads == thread)  # a thread's own ranges do not overlap
        starts, ends = trace.infer[numbers].T
        for position, correlation in enumerate(operations.correlations):
            called, _, _, caller = trace.calls.get(int(correlation), (0, 0, "", None))
            if caller == thread:
                index = int(np.searchsorted(starts, called, side="right")) - 1
                if index >= 0 and called <= ends[index]:
                    found[position] = numbers[index]
    return found
