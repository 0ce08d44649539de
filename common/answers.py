"""What a model says of all images: those of the measured run, and those that did not fit into it."""

from __future__ import annotations

import shutil
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from common import backend, folder
from common.console import err, out, wrapped
from common.engine import Engine
from common.errors import UsageFault
from common.feed import Feed
from common.files import atomic_path, write_csv, write_text
from common.postprocess import top
from common.run import Infer, Session
from common.tensors import unpacked
from common.verify import check, races, run_serially


def check_asked(engine: Engine, chosen: Namespace) -> None:
    """Refuse to say of an engine's outputs what only a classifier's have."""
    if engine.classifies:
        return
    given = f"{engine.plan} gives {', '.join(map(str, engine.outputs))}"
    if chosen.top:
        raise UsageFault(f"--top is for classifiers, and {given}.")
    if chosen.predictions and chosen.predictions.suffix != ".npy":
        raise UsageFault(f"--predictions {chosen.predictions}: classes are for classifiers, and {given}: name it .npy.")


def answer(measured: Session, feed: Feed, infer: Infer) -> float | None:
    """Print and write what ``--top`` and ``--predictions`` ask for, of all images. Returns the rate of those that were not
    measured, from the disk to their answers, in images/s of the wall clock; None where there were none. Raises
    ``WrongOutputs``."""
    chosen = measured.options
    if not (chosen.top or chosen.predictions):
        if feed.left:
            looked_at = sum(map(len, feed.names))
            err.print(f"the first {looked_at} of {looked_at + feed.left} images are measured; --predictions or --top takes all")
        return None
    started, first = time.perf_counter(), feed.answered
    sessions: Iterator[Session] = chain([measured], others(measured, feed, infer))
    sessions = printed(sessions, chosen.top) if chosen.top else sessions
    if chosen.predictions is None:
        for _ in sessions:
            pass
    elif chosen.predictions.suffix == ".npy":
        write_outputs(chosen.predictions, sessions)
    else:
        lines = (line for session in sessions for line in session.predictions.first(images(session)))
        write_csv(chosen.predictions, ("image", "class", "probability"), lines)
    rest, seconds = feed.answered - first, time.perf_counter() - started
    if rest:
        rate = f"the other {rest:,} at {rest / seconds:,.0f} images/s, from the disk to their answers, wall clock"
        out.print(wrapped(f"  all images  {rate}", 14))
    return rest / seconds if rest else None


def others(measured: Session, feed: Feed, infer: Infer) -> Iterator[Session]:
    """Runs of the images that are left. Where they come as pixels each is held to a serial one, and what was read for the next
    one overwrites its batches."""
    for session in folder.runs(measured, feed, infer) if measured.source is not None else in_turns(measured, feed, infer):
        feed.answered += images(session)
        yield session
    if feed.left and feed.left_to_pillow:
        err.print(f"of all {feed.answered} images {len(feed.left_to_pillow)} were decoded by Pillow")


def in_turns(measured: Session, feed: Feed, infer: Infer) -> Iterator[Session]:
    for turn in feed.turns():
        batches, names = zip(*turn)
        session = Session(measured.engine, batches, names, measured.options, measured=0)
        infer(session)
        for race in races(backend.current()):
            raise race
        if not measured.options.no_verify:
            check(session.outputs, run_serially(session.engine, batches))
        yield session


def images(session: Session) -> int:
    """How many different ones it has seen."""
    return sum(map(len, session.names[: session.distinct]))


def printed(sessions: Iterator[Session], likeliest: int) -> Iterator[Session]:
    """Passes on what it gets, and prints each image's ``likeliest`` classes."""
    for session in sessions:
        batches = zip(session.names[: session.distinct], session.outputs)
        for name, logits in (image for batch in batches for image in zip(*batch)):
            out.print(f"\n{name}", markup=False)
            for number, probability in top(logits, likeliest):
                out.print(f"  {probability:7.2%}  {session.predictions.label(number)}", markup=False)
        yield session


def names_of(outputs: Path) -> Path:
    """The file with the images' names, beside a .npy file."""
    return outputs.with_name(f"{outputs.name}.txt")


def results(chosen: Namespace) -> list[Path | None]:
    """All files that a stage is asked to write."""
    names = names_of(chosen.predictions) if chosen.predictions and chosen.predictions.suffix == ".npy" else None
    return [chosen.predictions, names, chosen.json, chosen.trace]


def write_outputs(path: Path, sessions: Iterator[Session]) -> None:
    """A .npy file with a row for each image, of one output its own numbers, of several a field for each; and beside it a
    .npy.txt with the images' names, a line each."""
    names: list[str] = []
    with atomic_path(path) as temporary, tempfile.TemporaryFile(dir=path.parent) as numbers:
        for session in sessions:
            ends = session.engine.outputs
            kind = np.dtype([(end.name, end.type, end.shape[1:]) for end in ends])
            for own, outputs in zip(session.names[: session.distinct], session.outputs):
                written = np.empty(len(own), kind)
                for end, values in zip(ends, unpacked(outputs)):
                    written[end.name] = values[: len(own)]
                numbers.write(written.tobytes())
                names += own
        row, shape = (kind, ()) if len(ends) > 1 else (ends[0].type, ends[0].shape[1:])
        # The header has their number, which is known only now, and the version that the outputs' names need.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that names beyond Latin-1 need NumPy 1.17
            begin = np.lib.format.open_memmap(temporary, "w+", row, (len(names), *shape)).offset
        numbers.seek(0)
        with temporary.open("r+b") as file:
            file.seek(begin)
            shutil.copyfileobj(numbers, file)
        write_text(names_of(path), "".join(f"{name}\n" for name in names))
