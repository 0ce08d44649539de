"""The simulated timeline in Nsight Systems' SQLite schema, so that one reader serves real and modelled runs."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from typing import Any

from sim.device import Device

PUSH_POP, START_END, DOMAIN_CREATE = 59, 60, 75  # NVTX_EVENTS.eventType
COPY_KIND = {"h2d": 1, "d2h": 2, "d2d": 8}
PID = 1 << 24  # a globalTid is a process and a thread; ours are numbers of our own

COMMON = "start INTEGER, end INTEGER"
DEVICE = "deviceId INTEGER, contextId INTEGER, streamId INTEGER, correlationId INTEGER, globalPid INTEGER"
SCHEMA = {
    "StringIds": "id INTEGER PRIMARY KEY, value TEXT",
    "META_DATA_CAPTURE": "name TEXT, value TEXT",
    "TARGET_INFO_GPU": "id INTEGER, name TEXT, totalMemory INTEGER, smCount INTEGER, "
    "computeMajor INTEGER, computeMinor INTEGER",
    "NVTX_EVENTS": f"{COMMON}, eventType INTEGER, rangeId INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER, "
    "textId INTEGER, domainId INTEGER, int64Value INTEGER",
    "CUPTI_ACTIVITY_KIND_RUNTIME": f"{COMMON}, eventClass INTEGER, globalTid INTEGER, correlationId INTEGER, "
    "nameId INTEGER, returnValue INTEGER",
    "CUPTI_ACTIVITY_KIND_KERNEL": f"{COMMON}, {DEVICE}, demangledName INTEGER, shortName INTEGER",
    "CUPTI_ACTIVITY_KIND_MEMCPY": f"{COMMON}, {DEVICE}, bytes INTEGER, copyKind INTEGER",
    "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION": f"{COMMON}, {DEVICE}, syncType INTEGER, eventId INTEGER",
}


@dataclass
class NvtxRange:
    """An NVTX range: ``end`` is None while it is open."""

    start: int
    kind: int
    text: str
    domain: str
    thread: int
    payload: int | None
    end_thread: int
    end: int | None = None
    category: str | None = None


class Trace:
    """What happened when, in memory: each thing with its start and end, and ``correlation``, the latest call's number."""

    def __init__(self) -> None:
        self.correlation = 0
        self.calls: list[tuple[int, int, str, int, int, int]] = []  # name, thread, correlation, error
        self.operations: list[tuple[int, int, str, str, int, int, int]] = []  # unit, name, stream, correlation, bytes
        self.waits: list[tuple[int, int, int, int, int]] = []  # 1 for an event, 3 a stream, 4 the device; stream, event
        self.ranges: list[NvtxRange] = []

    def database(self, device: Device, facts: dict[str, Any]) -> sqlite3.Connection:
        """The trace as an SQLite database in memory. ``facts`` say what was modelled; they go into META_DATA_CAPTURE."""
        strings: dict[str, int] = defaultdict(count(1).__next__)  # numbered as they come
        rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in SCHEMA}
        for start, end, name, thread, correlation, error in self.calls:
            rows["CUPTI_ACTIVITY_KIND_RUNTIME"].append((start, end, 0, PID + thread, correlation, strings[name], error))
        for start, end, unit, name, stream, correlation, nbytes in self.operations:
            where = (start, end, 0, 1, stream, correlation, PID)
            if unit == "compute" and name not in COPY_KIND:
                rows["CUPTI_ACTIVITY_KIND_KERNEL"].append((*where, strings[name], strings[name]))
            else:
                rows["CUPTI_ACTIVITY_KIND_MEMCPY"].append((*where, nbytes, COPY_KIND[name]))
        for start, end, kind, stream, event in self.waits:
            rows["CUPTI_ACTIVITY_KIND_SYNCHRONIZATION"].append((start, end, 0, 1, stream, 0, PID, kind, event))
        domains = {name: number for number, name in enumerate(dict.fromkeys(item.domain for item in self.ranges), 1)}
        for name, number in domains.items():
            rows["NVTX_EVENTS"].append((0, None, DOMAIN_CREATE, None, name, PID, None, None, number, None))
        for item in self.ranges:
            threads = (PID + item.thread, PID + item.end_thread)
            text = (strings[item.text], domains[item.domain], item.payload)
            rows["NVTX_EVENTS"].append((item.start, item.end, item.kind, None, None, *threads, *text))
        rows["TARGET_INFO_GPU"].append((0, device.name, device.memory_bytes, device.multiprocessors, *device.capability))
        rows["META_DATA_CAPTURE"] += [(name, str(value)) for name, value in facts.items()]
        rows["StringIds"] += [(number, value) for value, number in strings.items()]
        connection = sqlite3.connect(":memory:")
        for name, columns in SCHEMA.items():
            connection.execute(f"CREATE TABLE {name} ({columns})")
            if rows[name]:
                connection.executemany(f"INSERT INTO {name} VALUES ({','.join('?' * len(rows[name][0]))})", rows[name])
        connection.commit()
        return connection
