"""The edge of every program: whatever ends it becomes one sentence and an exit code, here and nowhere else."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from common.console import err, printable
from common.errors import ENVIRONMENT, INTERRUPTED, OURS, VERIFIED, Fault

ROOT = Path(__file__).resolve().parent.parent


def parser(doc: str | None, prog: str | None = None) -> ArgumentParser:
    """A program's manual is its module's docstring."""
    made = ArgumentParser(prog=prog, description=doc, formatter_class=RawDescriptionHelpFormatter)
    made.add_argument("--traceback", action="store_true", help="show where in the code an error comes from")
    return made


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a program whose ``main`` returns its exit code (None: 0) or raises; SIGTERM is heard as Ctrl-C is."""
    with contextlib.suppress(AttributeError, ValueError):  # ASCII terminals get ?; only the main thread has signals
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = main() or VERIFIED
    except (Exception, KeyboardInterrupt) as error:
        if "--traceback" in sys.argv:
            traceback.print_exc()
        said, code = sentence(error)
        notes: list[str] = getattr(error, "__notes__", [])
        said += f" And then: {notes[0]}" + f", and {len(notes) - 1} more." * (len(notes) > 1) if notes else ""
        err.print(printable(f"{Path(sys.argv[0]).stem}: {' '.join(said.split())}"), style="red", markup=False)
    sys.exit(code)


def sentence(error: BaseException) -> tuple[str, int]:
    """What to say of the exception that ended a program, and its exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, Fault):
        return f"error: {error}", error.exit_code
    if isinstance(error, OSError):
        return f"error: {error.filename or 'a file'}: {error.strerror or error}.", ENVIRONMENT
    if isinstance(error, ModuleNotFoundError):
        return f"error: there is no {error.name} in this Python: pip install -e '.[export,peers]'.", ENVIRONMENT
    if isinstance(error, MemoryError):
        return f"error: this machine has too little memory for that ({error}).", ENVIRONMENT
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if str(ROOT) in frame.filename and "site-packages" not in frame.filename][-1]
    what = f"{type(error).__name__}: {error} ({os.path.relpath(ours.filename, ROOT)}:{ours.lineno})"
    return f"error: a mistake of ours, {what}; --traceback shows more.", OURS
