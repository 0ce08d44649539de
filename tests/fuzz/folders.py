"""Folders of records and traces that do not belong together, some of them odd: a table of what fits, a name for each thing
that does not, exit code 0; or one sentence. Records are the committed reports', traces a simulated stage's and a real GPU's."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.console import printable
from tests.conftest import ROOT
from tests.fuzz.files import VALUES
from tests.fuzz.place import Draw, Place, Try, endlessly, program, refused

NAMES = ("1_baseline", "4_use_fp16", "5_multi_streams", "10_more", "dev", "[red]", "=1+1", "a b", "<b>", "é", "new\nline", "-x")
NUMBERS = (float("inf"), float("-inf"), float("nan"), 0, -1, 1e308, 1e-308, 10**400, *VALUES)
CONTENTS = (
    b"",
    b"null",
    b"[]",
    b"3",
    b'{"stage": "dev"}',
    b'{"stage": "dev", "per_batch_ms": Infinity}',
    b"\xff\xfe",
    b"[" * 9999,
)
TIMES = ("NULL", "9e999", "-9e999", "0", "-5", "9223372036854775807", "-9223372036854775808", "'soon'", "x'00'", "end", "start")


def tries(place: Place, draw: Draw) -> Iterator[Try]:
    traces, records = place.folder / "traces", []
    traces.mkdir()
    for packed in sorted((ROOT / "tests" / "traces").glob("*.gz")):
        (traces / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    for script in ("4_use_fp16.py", "5_multi_streams.py"):
        code, said = place.stage(script, "--trace", str(traces / f"{script}.sqlite"), "--json", str(traces / f"{script}.json"))
        assert code == 0, said
    for path in [*traces.glob("*.json"), *sorted(ROOT.glob("reports/*/*.json"))]:
        records += [content] if "per_batch_ms" in (content := json.loads(path.read_text(encoding="utf-8"))) else []
    pool = sorted(traces.glob("*.sqlite"))

    def one() -> Try:
        number = draw.randrange(10**9)
        return f"folder {number}", lambda: compare(place, records, pool, Draw(number))

    return endlessly(one)


def compare(place: Place, records: list[dict[str, Any]], traces: list[Path], draw: Draw) -> str:
    folder = place.folder / "mixed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in draw.sample(NAMES, draw.randrange(1, 7)):
        kind = draw.choice(("record", "record", "trace", "both", "both", "content", "folder", "pipe"))
        if kind in ("record", "both"):
            write_record(folder / f"{name}.json", draw.choice(records), draw)
        if kind in ("trace", "both"):
            write_trace(draw.choice(traces), folder / f"{name}.sqlite", draw)
        path = folder / f"{name}.{draw.choice(('json', 'sqlite'))}"
        if kind == "content":
            path.write_bytes(draw.choice(CONTENTS))
        elif kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
    there = sorted(path.name for path in folder.iterdir())
    more = [option for option in ("--wide", "--figures", "--perfetto") if draw.random() < 0.3]
    code, said = program("harness.compare", str(folder), *more)
    assert "Traceback" not in said, said[-900:]
    if code != 0:
        return refused(code, said)
    table = json.loads((folder / "comparison.json").read_text(encoding="utf-8"), parse_constant=NUMBERS.index)
    shown = {row["stage"] for row in table["stages"]}
    lost = [name for name in there if name.rpartition(".")[0] not in shown and printable(name.rpartition(".")[0]) not in said]
    assert shown and not lost, f"nothing is said of {lost}: {said[-600:]}"
    return "right"


def write_record(path: Path, content: dict[str, Any], draw: Draw) -> None:
    content = json.loads(json.dumps(content))
    for _ in range(draw.choice((0, 0, 1, 3))):
        inside = draw.choice([content, *(value for value in content.values() if value and isinstance(value, dict))])
        inside[draw.choice([*inside])] = copy.deepcopy(draw.choice(NUMBERS))  # or a later one is put into this very value
    path.write_text(json.dumps(content), encoding="utf-8")


def write_trace(trace: Path, path: Path, draw: Draw) -> None:
    shutil.copy(trace, path)
    if draw.random() < 0.1:
        os.truncate(path, draw.randrange(path.stat().st_size))
        return
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        for _ in range(draw.choice((0, 0, 1, 3))):
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            table = draw.choice(tables)
            column = draw.choice([row[1] for row in database.execute(f"PRAGMA table_info({table})")])
            rows = draw.choice(("", "", f"WHERE rowid % 7 = {draw.randrange(7)}"))
            with contextlib.suppress(sqlite3.Error):  # a trace that does not take this stays as it is
                database.execute(
                    draw.choice(
                        (
                            f"UPDATE {table} SET {column} = {draw.choice(TIMES)} {rows}",
                            f"UPDATE {table} SET {column} = {draw.choice(TIMES)} {rows}",
                            f"DELETE FROM {table} {rows}",
                            f"DROP TABLE {table}",
                            f"ALTER TABLE {table} RENAME COLUMN {column} TO other",
                        )
                    )
                )
