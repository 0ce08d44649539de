"""The edge of every program: whatever ends it becomes one sentence and an exit code, here and nowhere else."""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import re
import signal
import sys
import textwrap
import time
import traceback
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from common.console import err, printable
from common.errors import ENVIRONMENT, INTERRUPTED, OURS, VERIFIED, Fault

ROOT = Path(__file__).resolve().parent.parent
LOCKING = {"threading", "queue", "weakref", "_base", "thread", "threads", "exchange", "clock", "<frozen importlib"}
"""The library's and the simulator's code in which an exception out of nowhere leaves a lock held, or is swallowed."""
SOON_S, PATIENCE_S, END_S = 0.01, 1.0, 20.0


class Manual(RawDescriptionHelpFormatter):
    """Breaks paragraphs where their lines are too long for the terminal. Commands stay; what one is for goes under it."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if max(map(len, text.splitlines())) <= width:
            return text
        joined = re.sub(r"(?m)^(\S.*)\n(?=\S)(?!Measured:)", r"\1 ", text)
        fill = partial(textwrap.fill, width=width, break_long_words=False, break_on_hyphens=False)
        joined = re.sub(rf"(?m)^ .{{{width},}}$", lambda line: re.sub(r"(?<=\S) {2,}", f"\n{'':8}", line[0]), joined)
        return "\n".join(line if line[:1].isspace() else fill(line) for line in joined.splitlines())


class Parser(ArgumentParser):
    """Takes no empty argument: as a path it would be this folder, and it is a shell's variable that nobody has set."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for word in sys.argv[1:] if args is None else args:
            if re.fullmatch("(--[^=]+=)?", word):
                self.error(f"{word or 'an argument'} is empty: a variable that is not set?")
        return super().parse_known_args(args, namespace)


def parser(doc: str | None, prog: str | None = None) -> ArgumentParser:
    """A program's manual is its module's docstring."""
    made = Parser(prog=prog, description=doc, formatter_class=Manual)
    made.add_argument("--traceback", action="store_true", help="show where in the code an error comes from")
    return made


class Interruption:
    """Hears Ctrl-C and SIGTERM. ``KeyboardInterrupt`` is raised as soon as the main thread is not in ``LOCKING``, or has
    waited there for ``PATIENCE_S``; once more if it was swallowed; and a program that hangs all the same is ended."""

    def __init__(self) -> None:
        self.since: float | None = None  # when it was heard first
        sys.unraisablehook = self.swallowed
        for name in {"SIGINT", "SIGTERM", "SIGALRM"} & set(dir(signal)):
            signal.signal(getattr(signal, name), self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.since is None:
            self.since = time.monotonic()
            _thread.start_new_thread(self.end, ())
        inside = any(Path(each.f_code.co_filename).stem in LOCKING for each, _ in traceback.walk_stack(frame))
        if not (inside and time.monotonic() < self.since + PATIENCE_S and self.again()):
            raise KeyboardInterrupt

    def again(self) -> bool:
        """Come back soon, where there are such timers."""
        return hasattr(signal, "setitimer") and signal.setitimer(signal.ITIMER_REAL, SOON_S) is not None

    def swallowed(self, error: Any) -> None:
        if error.exc_type is not KeyboardInterrupt or not self.again():
            sys.__unraisablehook__(error)

    def end_hearing(self, code: int) -> None:
        """There is nothing left to be interrupted, nor to be come back to: who is impatient gets the exit code at once, and
        while Python puts itself away, when signals meet no handler, a little later."""
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os._exit(code))
            atexit.register(signal.signal, number, signal.SIG_IGN)

    def end(self) -> None:
        time.sleep(END_S)
        os.write(2, b"interrupted, and it did not end by itself\n")
        os._exit(INTERRUPTED)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a program whose ``main`` returns its exit code (None: 0) or raises; SIGTERM is heard as Ctrl-C is."""
    with contextlib.suppress(AttributeError):  # ASCII terminals get ?
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    interruption = Interruption()
    try:
        code = main() or VERIFIED
        print(end="", flush=True)  # what cannot be written is not lost in silence
        interruption.end_hearing(code)
    except (Exception, KeyboardInterrupt) as error:
        if "--traceback" in sys.argv:
            traceback.print_exc()
        said, code = sentence(KeyboardInterrupt() if interruption.since else error)
        notes: list[str] = getattr(error, "__notes__", [])
        said += f" And then: {notes[0]}" + f", and {len(notes) - 1} more." * (len(notes) > 1) if notes else ""
        err.print(printable(f"{Path(sys.argv[0]).stem}: {' '.join(said.split())}"), style="red", markup=False)
    interruption.end_hearing(code)
    sys.exit(code)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a folder, or a file that is made for it, as soon as no other process holds it; where the system has such locks."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
            held.callback(os.close, opened)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                err.print(f"another one works in {path}: waiting for it", style="yellow", markup=False)
                fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def sentence(error: BaseException) -> tuple[str, int]:
    """What to say of the exception that ended a program, and its exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, Fault):
        return f"error: {error}", error.exit_code
    if isinstance(error, OSError):
        return f"error: {error.filename or 'a file'}: {error.strerror or error}.", ENVIRONMENT
    if isinstance(error, ModuleNotFoundError):
        extra = "ray" if error.name in ("ray", "pyarrow") else "export,peers"
        return f"error: there is no {error.name} in this Python: pip install -e '.[{extra}]'.", ENVIRONMENT
    if isinstance(error, MemoryError):
        return f"error: this machine has too little memory for that ({error}).", ENVIRONMENT
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if str(ROOT) in frame.filename and "site-packages" not in frame.filename][-1]
    what = f"{type(error).__name__}: {error} ({os.path.relpath(ours.filename, ROOT)}:{ours.lineno})"
    return f"error: a mistake of ours, {what}; --traceback shows more.", OURS
