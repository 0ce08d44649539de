"""The repository's own scripts in processes of their own, of this Python."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from common.errors import EnvironmentFault
from common.record import Record


def output_of(*arguments: object) -> str:
    """What Python prints with these arguments. Raises ``EnvironmentFault`` with the last line that it said where it fails."""
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise EnvironmentFault(last_line(done.stderr or done.stdout))
    return done.stdout


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


def record_of(*arguments: object, path: Path | None = None) -> Record:
    """The record that a stage, or what has its ``--json``, writes (to ``path``). Raises as ``output_of`` does."""
    with tempfile.TemporaryDirectory() as folder:
        path = path or Path(folder) / "record.json"
        path.unlink(missing_ok=True)
        said = output_of(*arguments, "--json", path)
        if (record := Record.read(path)) is None:
            raise EnvironmentFault(f"no record: {last_line(said)}")
    return record
