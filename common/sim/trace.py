"""The simulated timeline in Nsight Systems' SQLite schema, so that one reader serves real and modelled runs."""

from __future__ import annotations

import os
import sqlite3
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import atomic_path

if TYPE_CHECKING:
    from common.sim.device import Device
    from common.sim.work import Work

PUSH_POP, START_END, DOMAIN_CREATE = 59, 60, 75  # NVTX_EVENTS.eventType
COPY_KIND = {"h2d": 1, "d2h": 2, "d2d": 8}
PID = 1 << 24  # a globalTid is a process and a thread; ours are numbers of our own

COMMON = "start INTEGER, end INTEGER"
DEVICE = "deviceId INTEGER, contextId INTEGER, streamId INTEGER, correlationId INTEGER, globalPid INTEGER"
SCHEMA = {
    "StringIds": "id INTEGER PRIMARY KEY, value TEXT",
    "META_DATA_CAPTURE": "name TEXT, value TEXT",
    "TARGET_INFO_GPU": "id INTEGER, name TEXT, totalMemory INTEGER, smCount INTEGER, computeMajor INTEGER, "
                       "computeMinor INTEGER",
    "NVTX_EVENTS": f"{COMMON}, eventType INTEGER, rangeId INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER, "
                   "textId INTEGER, domainId INTEGER, int64Value INTEGER",
    "CUPTI_ACTIVITY_KIND_RUNTIME": f"{COMMON}, eventClass INTEGER, globalTid INTEGER, correlationId INTEGER, "
                                   "nameId INTEGER, returnValue INTEGER",
    "CUPTI_ACTIVITY_KIND_KERNEL": f"{COMMON}, {DEVICE}, demangledName INTEGER, shortName INTEGER",
    "CUPTI_ACTIVITY_KIND_MEMCPY": f"{COMMON}, {DEVICE}, bytes INTEGER, copyKind INTEGER",
    "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION": f"{COMMON}, {DEVICE}, syncType INTEGER, eventId INTEGER",
}


@dataclass
class Range:
    """An NVTX range: ``end`` is None while it is open."""

    start: int
    end: int | None
    kind: int
    text: str
    domain: str
    thread: int
    end_thread: int
    payload: int | None


class Trace:
    """What happened when. Rows are kept in memory and written at the end."""

    def __init__(self) -> None:
        self.correlation = 0
        self.calls: list[tuple[int, int, str, int, int, int]] = []
        self.operations: list[tuple[int, int, str, str, int, int, int]] = []
        self.waits: list[tuple[int, int, int, int, int]] = []
        self.ranges: list[Range] = []

    def call(self, name: str, start: int, end: int, thread: int, correlation: int, error: int = 0) -> None:
        self.calls.append((start, end, name, thread, correlation, error))

    def operation(self, work: Work, name: str, start: int, end: int, stream: int, correlation: int) -> None:
        self.operations.append((start, end, work.engine, name, stream, correlation, work.nbytes))

    def wait(self, kind: int, start: int, end: int, stream: int, event: int = 0) -> None:
        """``kind``: 1 event, 2 stream waits for event, 3 stream, 4 device."""
        self.waits.append((start, end, kind, stream, event))

    def activity(self) -> list[tuple[str, int, int, int]]:
        """(row, start, end, batch) of every operation and closed range, for drawing.

        Rows are the engines and the ranges' names. The batch is the payload of the range ``infer`` that submitted the
        operation, a ``postprocess`` range's own number, or -1.
        """
        submits: dict[int, list[Range]] = {}  # by thread, in order: a thread's own ranges do not overlap
        for item in self.ranges:
            if item.text == "infer":
                submits.setdefault(item.thread, []).append(item)
        starts = {thread: [item.start for item in own] for thread, own in submits.items()}
        call_of = {call[4]: call for call in self.calls}

        def batch(correlation: int) -> int:
            start, _, _, thread, *_ = call_of.get(correlation, (-1, 0, "", -1))
            position = bisect_right(starts.get(thread, []), start) - 1
            if position < 0 or start > (submits[thread][position].end or start):
                return -1
            return submits[thread][position].payload  # type: ignore[return-value]

        rows, finished = [], Counter[str]()
        for start, end, engine, _, _, correlation, _ in self.operations:
            number = batch(correlation)
            if number >= 0 and engine == "h2d":  # a pipeline submits the next batch's copy with this batch's work
                number, finished[engine] = finished[engine], finished[engine] + 1
            rows.append((engine, start, end, number))
        for item in self.ranges:
            if item.end is not None:
                number = item.payload if item.text == "infer" else finished[item.text]
                rows.append((item.text, item.start, item.end, number))
                finished[item.text] += 1
        return rows

    def write(self, path: Path, device: Device, facts: dict[str, Any]) -> None:
        """Write the trace as SQLite. ``facts`` say what was modelled; they go into META_DATA_CAPTURE."""
        strings: dict[str, int] = {}

        def string(value: str) -> int:
            return strings.setdefault(value, len(strings) + 1)

        rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in SCHEMA}
        for start, end, name, thread, correlation, error in self.calls:
            rows["CUPTI_ACTIVITY_KIND_RUNTIME"].append((start, end, 0, PID + thread, correlation, string(name), error))
        for start, end, engine, name, stream, correlation, nbytes in self.operations:
            where = (start, end, 0, 1, stream, correlation, PID)
            if engine == "compute" and name not in COPY_KIND:
                rows["CUPTI_ACTIVITY_KIND_KERNEL"].append((*where, string(name), string(name)))
            else:
                rows["CUPTI_ACTIVITY_KIND_MEMCPY"].append((*where, nbytes, COPY_KIND[name]))
        for start, end, kind, stream, event in self.waits:
            rows["CUPTI_ACTIVITY_KIND_SYNCHRONIZATION"].append((start, end, 0, 1, stream, 0, PID, kind, event))
        domains: dict[str, int] = {}
        for item in self.ranges:
            if item.domain not in domains:
                domains[item.domain] = len(domains) + 1
                rows["NVTX_EVENTS"].append((0, None, DOMAIN_CREATE, None, item.domain, PID, None, None,
                                            domains[item.domain], None))
            rows["NVTX_EVENTS"].append((item.start, item.end, item.kind, None, None, PID + item.thread,
                                        PID + item.end_thread, string(item.text), domains[item.domain], item.payload))
        rows["TARGET_INFO_GPU"].append((0, device.name, device.memory_bytes, device.multiprocessors, *device.capability))
        rows["META_DATA_CAPTURE"] += [(name, str(value)) for name, value in facts.items()]
        rows["StringIds"] += [(number, value) for value, number in strings.items()]
        with atomic_path(path) as temporary:
            os.unlink(temporary)  # SQLite wants to make the file itself
            connection = sqlite3.connect(temporary)
            for name, columns in SCHEMA.items():
                connection.execute(f"CREATE TABLE {name} ({columns})")
                if rows[name]:
                    connection.executemany(f"INSERT INTO {name} VALUES ({','.join('?' * len(rows[name][0]))})", rows[name])
            connection.commit()
            connection.close()
