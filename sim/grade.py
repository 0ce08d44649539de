"""An exercise's verdict: it is run on the simulated default GPU, and its record is held to the ``TARGET`` that it states."""

from __future__ import annotations

import contextlib
import io
import runpy
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import backend
from common.console import wrapped
from common.record import FAULT, Record

OPTIONS = ("--backend", "simulated", "--device", backend.DEFAULT_DEVICE, "--batch", "2", "--charge-batch", "128")


def grade(script: Path, run: Callable[[Path, list[str]], int]) -> int:
    """Say that the exercise has passed (0), or what is wrong with it (1). ``run`` runs a script as Python does.

    ``TARGET`` has fields of the record, and the most that each may be.
    """
    target = runpy.run_path(str(script)).get("TARGET", {})
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as said:
        path = Path(folder) / "record.json"
        code = run(script, [*OPTIONS, "--json", str(path)])
        record = Record.read(path)
    wrong = [f"race: {race}" for race in backend.current().races() or []]
    if code and not wrong:
        wrong = [said.getvalue().strip().rpartition("\n")[2].replace(f"{script.stem}: error: ", "")]  # what ended it
    elif record is not None:
        wrong += [f"time: {record.per_batch_ms:.3f} ms a batch is faster than its limit, {FAULT}"] if record.faulty else []
        over = {name: getattr(record, name) for name, most in target.items() if getattr(record, name) > most}
        wrong += [f"time: {name} is {found:.3f}, and the target {target[name]}" for name, found in over.items()]
    wrong += [line for line in said.getvalue().splitlines() if "not given back" in line]
    verdict = f"{script.stem}: {'not yet' if wrong else 'passed'}"
    print("\n" + "\n".join([verdict, *(wrapped(f"  {each}", 4) for each in wrong)]))
    return int(bool(wrong))
