"""The pictures of a run that is too large for one process: where they lie, in which shards, and which of those are done.

A shard is a range of the pictures' numbers; its predictions are a file that is there whole or not at all. So a run that was
ended, however, is begun again by the same command, and does what is not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

from common.errors import EnvironmentFault, UsageFault
from common.files import atomic_path, read_json, write_csv, write_json
from common.pictures import SUFFIXES

COLUMNS = ("index", "image", "class", "probability", "error")
WORK = "work.json"  # beside the shards: what they are of


@dataclass(frozen=True)
class Content:
    """A picture's file in memory, or why it could not be read."""

    data: bytes = b""
    why: str | None = None

    def read_bytes(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class File:
    """A picture's file on this machine, or in a file system of Arrow's: a bucket's, for one."""

    path: str
    system: Any = None

    def read_bytes(self) -> bytes:
        with open(self.path, "rb", buffering=0) if self.system is None else self.system.open_input_stream(self.path) as file:
            return file.read()


class Pictures:
    """A folder of pictures, a folder or file of Parquet that has them in its first column of bytes, or either in a bucket, by
    its address (``s3://…``). ``names`` are the files', or ``FILE.parquet#ROW``, in an order that is always the same."""

    def __init__(self, root: str) -> None:
        self.root = root

    @cached_property
    def _remote(self) -> tuple[Any, str] | None:
        """The file system of an address, and the path in it."""
        return import_module("pyarrow.fs").FileSystem.from_uri(self.root) if "://" in self.root else None

    @cached_property
    def names(self) -> list[str]:
        if self._remote:
            system, path = self._remote
            found = system.get_file_info(import_module("pyarrow.fs").FileSelector(path, recursive=True))
            files = [each.path[len(path) :].lstrip("/") for each in found if each.is_file]
        else:
            root = Path(self.root)
            files = [each.relative_to(root).as_posix() for each in root.rglob("*")] if root.is_dir() else [""] * root.is_file()
        kept = sorted(name for name in files if Path(name or self.root).suffix.lower() in SUFFIXES | {".parquet"})
        if not kept:
            raise UsageFault(f"--images {self.root}: there is no {', '.join(sorted(SUFFIXES))} or .parquet file.")
        return [each for name in kept for each in (self._rows(name) if (name or self.root).endswith(".parquet") else [name])]

    def _rows(self, name: str) -> list[str]:
        return [f"{name}#{row}" for row in range(self._table(name).metadata.num_rows)]

    def _table(self, name: str) -> Any:
        parquet = import_module("pyarrow.parquet")
        if self._remote:
            return parquet.ParquetFile("/".join(filter(None, (self._remote[1], name))), filesystem=self._remote[0])
        return parquet.ParquetFile(Path(self.root) / name)

    def sources(self, names: Sequence[str]) -> Iterator[Any]:
        """Something with ``read_bytes`` for each of ``names``. Rows of Parquet are read here; they follow one another."""
        for table, group in groupby(names, lambda name: name.rpartition(".parquet#")[0]):
            if table or self.root.endswith(".parquet"):
                yield from self._contents(f"{table}.parquet" if table else "", [int(name.rpartition("#")[2]) for name in group])
            elif self._remote:
                yield from (File(f"{self._remote[1]}/{name}", self._remote[0]) for name in group)
            else:
                yield from (File(f"{self.root}/{name}" if name else self.root) for name in group)

    def _contents(self, name: str, rows: list[int]) -> Iterator[Content]:
        table, start = self._table(name), 0
        [column, *_] = [field.name for field in table.schema_arrow if "binary" in str(field.type)] or [None]
        if column is None:
            raise UsageFault(f"--images {self.root}: {name} has no column of bytes.")
        for group in range(table.num_row_groups):
            end = start + table.metadata.row_group(group).num_rows
            if inside := [row - start for row in rows if start <= row < end]:
                values = table.read_row_group(group, columns=[column]).column(0)
                yield from (Content(values[row].as_py() or b"") for row in inside)
            start = end


@dataclass(frozen=True)
class Shard:
    """The pictures from number ``first`` on, and the file that their predictions go to."""

    first: int
    names: list[str]
    path: str

    def write(self, *columns: Sequence[Any]) -> None:
        """The values of each of ``COLUMNS``. Written whole or not at all, so that doing a shard twice changes nothing."""
        path = Path(self.path)
        if path.suffix == ".csv":
            write_csv(path, COLUMNS, (dict(zip(COLUMNS, row)) for row in zip(*columns)))
            return
        arrow = import_module("pyarrow")
        kinds = arrow.int64(), arrow.string(), arrow.string(), arrow.float32(), arrow.string()
        table = arrow.table([arrow.array(values, kind) for values, kind in zip(columns, kinds)], COLUMNS)
        with atomic_path(path) as temporary:
            import_module("pyarrow.parquet").write_table(table, temporary)


def shards(pictures: Pictures, out: Path, size: int, suffix: str, facts: dict[str, Any]) -> tuple[list[Shard], list[Shard]]:
    """All shards of ``size`` pictures, and those of them that are still to be done. Raises ``UsageFault`` where ``out`` has
    those of other pictures, of another size or of another plan."""
    names = pictures.names
    if out.exists() and not out.is_dir():
        raise EnvironmentFault(f"cannot write into {out}: it is no folder.")
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    work = {"images": pictures.root, "pictures": len(names), "names_sha256": digest, "shard": size, "suffix": suffix, **facts}
    before = read_json(out / WORK)
    if changed := [key for key in work if before and before.get(key) != work[key]]:
        what = ", ".join(f"{key} {before.get(key)} and not {work[key]}" for key in changed)
        raise UsageFault(f"{out} has the predictions of another run ({what}): name another folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / WORK, work)
    found = []
    for first in range(0, len(names), size):
        part = names[first : first + size]
        found.append(Shard(first, part, str(out / f"{first:09d}-{first + len(part) - 1:09d}{suffix}")))
    return found, [shard for shard in found if not Path(shard.path).exists()]


def tidy(out: Path, done: list[Shard]) -> None:
    """Remove what workers that were killed had begun to write of shards that are there."""
    names = {Path(shard.path).name for shard in done if Path(shard.path).exists()}
    for begun in [path for path in out.glob(".*") if path.stem[1:] in names]:
        begun.unlink(missing_ok=True)
