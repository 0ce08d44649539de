"""Files that are either whole or not there, and what is written into them: JSON, tables in Markdown."""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import html
import json
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any, TypeVar

from common.console import show
from common.errors import EnvironmentFault, UsageFault

K = TypeVar("K")
V = TypeVar("V")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in ``path``'s folder; rename it to ``path`` on success, remove it otherwise. A link stays one.
    Raises ``EnvironmentFault`` where the file cannot be written, in the body as well."""
    target, temporary = Path(os.path.realpath(path)), None
    try:
        check_ordinary(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        new.touch(exist_ok=False)
        temporary = new
        yield temporary
        os.replace(temporary, target)
    except (OSError, sqlite3.OperationalError) as error:
        raise EnvironmentFault(f"cannot write {path}: {getattr(error, 'strerror', None) or error}.") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_ordinary(path: Path) -> None:
    """What is no file, but a folder, a device or a pipe, is not written to, and never replaced."""
    if path.exists() and not path.is_file():
        raise EnvironmentFault(f"cannot write {path}: it is there, and it is not an ordinary file.")


def check_writable(*paths: Path | None, kept: Sequence[Path] = ()) -> None:
    """Find out before the run that a result cannot be written after it, or would be written over another or a ``kept`` one."""
    named = [Path(os.path.realpath(path)) for path in paths if path is not None]
    if len({*named}) < len(named):
        raise UsageFault(f"two results cannot be one file: {', '.join(map(str, named))}.")
    if lost := [path for path in kept if Path(os.path.realpath(path)) in named]:
        raise UsageFault(f"{lost[0]} is what the run reads: write its results elsewhere.")
    for path in filter(None, paths):
        check_ordinary(path)
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise EnvironmentFault(f"cannot write {path}: there is no folder {path.parent} that can be written to.")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    write_text(path, json.dumps(content, indent=indent) + "\n")


def publish(page: str, facts: Any, path: Path) -> None:
    """Show a page, and write it and what it was made of: PATH.md and PATH.json."""
    show(page)
    write_text(Path(f"{path}.md"), page)
    write_json(Path(f"{path}.json"), facts)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """The columns of the rows; a text that a spreadsheet would take for a formula gets a quote in front."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            formulas = {name: f"'{cell}" for name, cell in row.items() if isinstance(cell, str) and cell[:1] in {*"=+-@"}}
            writer.writerow({**row, **formulas})


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8") if path.is_file() else "")  # a pipe would be waited for
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def sha256(path: Path) -> str:
    """The file's hash; read once in a process, and again when the file has changed."""
    state = path.stat()
    return _sha256(path, state.st_ino, state.st_size, state.st_mtime_ns)


@functools.cache
def _sha256(path: Path, *state: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """The second ones of each first one, all in their order."""
    found: dict[K, list[V]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


Column = tuple[str, str, str]
"""Of a table: title, key of the row, format."""


def column(title: str, form: str = "{}", tables: Sequence[str] = ("main",), default: Any = None) -> Any:
    """A dataclass's field that ``tables`` show under ``title``."""
    return field(default=default, metadata=dict.fromkeys(tables, (title, form)))


def columns(kind: type, names: str = "", otherwise: Mapping[str, tuple[str, str]] = {}, table: str = "main") -> list[Column]:
    """A table's columns: the fields ``names``, or all that it shows; some under another title, in another format."""
    shown = {each.name: each.metadata[table] for each in fields(kind) if table in each.metadata}
    shown.update(otherwise)
    return [(shown[name][0], name, shown[name][1]) for name in names.split() or shown]


def cells(row: Mapping[str, Any], columns: Sequence[Column]) -> list[str]:
    """A row as text, in the order of ``columns``; what it does not have is a dash."""
    return [form.format(row[key]) if row.get(key) is not None else "–" for _, key, form in columns]


def grid(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], words: int = 1) -> list[str]:
    """The lines of a Markdown table whose first ``words`` columns are words and the others numbers."""
    escaped = ([html.escape(cell, quote=False).replace("|", "\\|") for cell in cells(row, columns)] for row in rows)
    lines = [[title for title, *_ in columns], *escaped]
    drawn = ["| " + " | ".join(line) + " |" for line in lines]
    return [drawn[0], "|" + "---|" * words + "---:|" * (len(columns) - words), *drawn[1:]]
