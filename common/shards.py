"""The pictures of a run that is too large for one process: where they lie, in which shards, and which of those are done.

A shard is a range of the pictures' numbers; its predictions are a file that is there whole or not at all. So a run that was
ended, however, is begun again by the same command, and does what is not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

from common.console import err, printable
from common.errors import EnvironmentFault, UsageFault, reason
from common.files import atomic_path, read_json, write_csv, write_json
from common.pictures import SUFFIXES
from common.reader import read

COLUMNS = ("index", "image", "class", "probability", "error")
WORK = "work.json"  # beside the shards: what they are of
PARQUET = ".parquet"
ROW = re.compile(rf"(.*{re.escape(PARQUET)})?#(\d+)", re.DOTALL | re.IGNORECASE)
"""The name of a picture in a file of Parquet, or in ``root`` itself."""


def stored(system: Any, path: str) -> bytes:
    """A file of one of Arrow's file systems: a bucket's, for one."""
    with system.open_input_stream(path) as file:
        return file.read()


class Pictures:
    """A folder of pictures, a folder or file of Parquet that has them in its first column of bytes (or of structs with a field
    ``bytes``), or either in a bucket, by its address (``s3://…``). ``names`` are the files', or ``FILE.parquet#ROW``, in an
    order that is always the same. Raises a ``Fault`` that names what cannot be read."""

    def __init__(self, root: str) -> None:
        self.root = root

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system of Arrow's, None for this machine's own, and the path in it."""
        if "://" not in self.root:
            return None, self.root
        try:
            return import_module("pyarrow.fs").FileSystem.from_uri(self.root)
        except (ValueError, OSError) as error:
            raise UsageFault(f"--images {self.root}: {reason(error)}") from None

    @cached_property
    def names(self) -> list[str]:
        system, path = self._place
        if system:
            choose = import_module("pyarrow.fs").FileSelector(path, recursive=True)
            try:
                found = [] if system.get_file_info(path).is_file else system.get_file_info(choose)
            except OSError as error:
                raise EnvironmentFault(f"--images {self.root}: {reason(error)}") from None
            files = [each.path[len(path) :].lstrip("/") for each in found if each.is_file] if found else [""]
        else:
            root, own = Path(self.root), len(Path(self.root, "_").as_posix()) - 1  # where names begin in paths
            inside = (Path(folder, each) for folder, _, found in os.walk(root, onerror=self._not_listed) for each in found)
            files = [""] if root.is_file() else [each.as_posix()[own:] for each in inside if each.is_file()]
        kinds = {name: Path(name or self.root).suffix.lower() for name in files}
        kept = sorted(name for name, kind in kinds.items() if kind in SUFFIXES | {PARQUET})
        if not (found := [each for name in kept for each in (self._rows(name) if kinds[name] == PARQUET else [name])]):
            raise UsageFault(f"--images {self.root}: there is no {', '.join(sorted(SUFFIXES))} file, nor a row of Parquet.")
        return found

    def _not_listed(self, error: OSError) -> None:
        if error.filename == self.root:
            raise UsageFault(f"--images {self.root}: {error.strerror}.")
        err.print(f"skipped {printable(error.filename)}: {error.strerror}", markup=False)

    def _rows(self, name: str) -> list[str]:
        with self._table(name) as table:
            if self._column(table.schema_arrow)[0] < 0:
                raise UsageFault(f"--images {self.root}: {name or 'it'} has no column of bytes.")
            return [f"{name}#{row}" for row in range(table.metadata.num_rows)]

    def _path(self, name: str) -> str:
        return "/".join(filter(None, (self._place[1], name)))

    @contextlib.contextmanager
    def _table(self, name: str) -> Iterator[Any]:
        try:
            yield import_module("pyarrow.parquet").ParquetFile(self._path(name), filesystem=self._place[0])
        except (ValueError, OSError) as error:  # Arrow's are both
            what = f"{name or 'it'} cannot be read as Parquet ({reason(error)})"
            raise EnvironmentFault(f"--images {self.root}: {what}.") from None

    def sources(self, names: Sequence[str]) -> Iterator[Callable[[], bytes]]:
        """What reads each of ``names``. Rows of Parquet are read here; they follow one another."""
        of_file = partial(stored, self._place[0]) if self._place[0] else read
        for table, group in groupby(names, lambda name: (row := ROW.fullmatch(name)) and (row[1] or "")):
            if table is not None:
                yield from self._contents(table, [int(name.rpartition("#")[2]) for name in group])
            else:
                yield from (partial(of_file, self._path(name)) for name in group)

    def _contents(self, name: str, rows: list[int]) -> Iterator[Callable[[], bytes]]:
        with self._table(name) as table:
            start, (_, column) = 0, self._column(table.schema_arrow)
            for group in range(table.num_row_groups):
                end = start + table.metadata.row_group(group).num_rows
                if inside := [row - start for row in rows if start <= row < end]:
                    yield from self._of_group(name, table, group, column, inside)
                start = end
        yield from [partial(gone, f"{name or 'the file'} has {start} rows")] * sum(row >= start for row in rows)

    def _of_group(self, name: str, table: Any, group: int, column: str, rows: list[int]) -> list[Callable[[], bytes]]:
        """What gives each of ``rows`` of a row group; where that is damaged, who reads hears of it, as of a file."""
        try:
            found = table.read_row_group(group, columns=[column])
            values = found.column(self._column(found.schema)[0]).take(rows).to_pylist()  # names may be there twice
        except (ValueError, OSError, LookupError, TypeError) as error:
            return [partial(gone, f"{name or 'the file'} is damaged: {reason(error)}")] * len(rows)
        return [partial(bytes, (each["bytes"] if isinstance(each, dict) else each) or b"") for each in values]

    def _column(self, schema: Any) -> tuple[int, str]:
        """Where the first of bytes is, or of structs with a field ``bytes``, and its name; -1 where there is none."""
        kinds = import_module("pyarrow.types")
        for index, field in enumerate(schema):
            name, kind = field.name, field.type
            if kinds.is_struct(kind) and (own := kind.get_field_index("bytes")) >= 0:
                name, kind = f"{name}.bytes", kind.field(own).type
            if kinds.is_binary(kind) or kinds.is_large_binary(kind):
                return index, name
        return -1, ""


def gone(why: str) -> bytes:
    raise OSError(why)


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
    """All shards of ``size`` pictures, and those still to be done. Raises ``UsageFault`` where ``out`` has another run's."""
    names = pictures.names
    if out.exists() and not out.is_dir():
        raise EnvironmentFault(f"cannot write into {out}: it is no folder.")
    if "://" not in pictures.root and Path(pictures.root).resolve() in (out.resolve(), *out.resolve().parents):
        raise UsageFault(f"--predictions {out} lies in --images: the shards would be taken for pictures the next time.")
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    work = {"images": pictures.root, "pictures": len(names), "names_sha256": digest, "shard": size, "suffix": suffix, **facts}
    before = read_json(out / WORK)
    if changed := [key for key in work if before and before.get(key) != work[key]]:
        what = ", ".join(f"{key} {before.get(key)} and not {work[key]}" for key in changed)
        raise UsageFault(f"{out} has the predictions of another run ({what}): name another folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / WORK, work)
    parts = ((first, names[first : first + size]) for first in range(0, len(names), size))
    found = [Shard(first, own, str(out / f"{first:09d}-{first + len(own) - 1:09d}{suffix}")) for first, own in parts]
    return found, [shard for shard in found if not Path(shard.path).exists()]


def tidy(out: Path, done: list[Shard]) -> None:
    """Remove what workers that were killed had begun to write of shards that are there."""
    names = {Path(shard.path).name for shard in done if Path(shard.path).exists()}
    for begun in [path for path in out.glob(".*") if path.stem[1:] in names]:
        begun.unlink(missing_ok=True)
