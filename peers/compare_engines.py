"""Which engine? PyTorch, torch.compile, ONNX Runtime and TensorRT on the same model, with accuracy beside speed.

    python -m scripts.compare_engines --batches 1,10,32,128
    python -m scripts.compare_engines --model resnet50 --rounds 3 --out out/resnet50
    python -m scripts.compare_engines --weights models/resnet18-digits.pt --labelled models/digits/test

Every contender gets the same inputs and the same warm-up, is synchronized where it must be, and has its outputs held to those
of the FP32 ONNX file on the CPU before a time is reported. Those of one model and batch are loaded together and timed in
rounds, and every run counts. What this machine lacks is said below the table. Rows stay in --out and are run again until they
have their --rounds, so an interrupted comparison goes on where it stopped, and contenders that live in different Pythons fill
one table: run it once with each.
"""

from __future__ import annotations

import datetime
import faulthandler
import re
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common import program
from common.clock import undisturbed
from common.console import out, wrapped
from common.cuda import versions
from common.errors import UsageFault, WrongOutputs
from common.files import write_json
from common.host import processor
from common.options import natural, positives
from common.plans import ROOT
from export import models
from peers.accuracy import figures
from peers.contenders import CONTENDERS
from peers.inputs import Labelled, batch_of, labelled
from peers.rows import WARNING, Result, report
from peers.task import Contender, Missing, Ready, Task

TOLERANCE = {"fp32": 1e-3, "tf32": 3e-2, "fp16": 3e-2, "int8": 0.6}
"""Share of the largest logit by which outputs may be off the FP32 file's on the CPU. On a GPU, convolutions of FP32 work in
TF32, whose mantissa is FP16's. What INT8 costs is the accuracy's to say."""
SURE = 0.99  # share of labelled images of which what is further off must name FP32's class
LOST = "ended the process or gave no answer in time; remove its row to try again"
LEAST, MOST, PARTS = 20, 2000, 100  # timed inferences; at most so many with events between their parts


def timed(ready: Ready, seconds: float, least: int) -> list[float]:
    """Milliseconds of single inferences, for so many seconds."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < least or (time.perf_counter() < until and len(times) < MOST):
        started = time.perf_counter()
        ready.infer()
        times.append((time.perf_counter() - started) * 1e3)
    return times


def check(row: Result, ready: Ready, images: np.ndarray, expected: np.ndarray, photographs: Labelled | None = None) -> None:
    """Run the images, one batch ahead as well, and write how far the outputs are off into the row; raises ``WrongOutputs``.
    Rounding adds up in a deep network: what is further off than the bound may still be right, if the ``photographs`` say so."""
    ready.load(images)
    for _ in range(3 if ready.lane else 1):  # what captures graphs does so in its second or third run
        ready.infer()
    output, others = ready.output(), []
    if ready.lane:
        ready.lane.ahead(2)
        others = [slot.host_output for slot in ready.lane.slots]
    off = [models.largest_difference(each, expected) for each in (output, *others)]
    row.largest_difference = float(np.max(off))  # NaN, if one is
    row.top1_agreement = float((output.argmax(axis=1) == expected.argmax(axis=1)).mean())
    arithmetic = "tf32" if row.precision == "fp32" and ready.device != "CPU" else row.precision
    bound, fault = TOLERANCE[arithmetic], f"off by {row.largest_difference:.2g} of the largest logit"
    if row.largest_difference <= bound:
        return
    if photographs is None or not all(models.largest_difference(each, output) <= bound for each in (output, *others)):
        raise WrongOutputs(fault)
    accuracy(row, ready, photographs)
    if (row.agreement or 0) < SURE:
        raise WrongOutputs(f"{fault}; {row.agreement:.2%} of {row.images} labelled images named alike")


def speed(row: Result, ready: Ready, images: np.ndarray, seconds: float) -> None:
    """Add one run's times to its row: the latencies of single batches; on a GPU their parts, and the pace one batch ahead."""
    if ready.rate:
        row.add_pipeline(ready.rate())
        return
    ready.load(images)
    warm = timed(ready, seconds / 5, least=0)
    read: dict[str, float | None] = {}
    if ready.lane:
        usual_ms = float(np.median(warm or [seconds * 1e3]))
        count = int(min(MOST, max(LEAST, seconds / 2 * 1e3 / usual_ms)))
        read = {**ready.lane.parts(min(count, PARTS)), "ahead_ms": ready.lane.ahead(count)}
    with undisturbed(timed=False):
        times = timed(ready, seconds, LEAST)
    row.add_run(times, **read)


def accuracy(row: Result, ready: Ready, photographs: Labelled) -> None:
    """Write how often the engine names the right class, and the reference's, into its row."""
    (images, targets, expected, key), parts = photographs, []
    for batch in np.split(images, range(row.batch, len(images), row.batch)):
        ready.load(np.resize(batch, (row.batch, *batch.shape[1:])))  # the last one is filled up with its own images
        ready.infer()
        parts.append(ready.output()[: len(batch)])
    vars(row).update(figures(np.concatenate(parts), targets, expected), labelled=key)


class Entry:
    """A contender in a comparison: its row, the file of that, and what has it ready to run."""

    def __init__(self, task: Task, contender: Contender, folder: Path) -> None:
        words = f"{task.tag} b{task.batch} {contender.name} {contender.precision}"
        self.task, self.contender = task, contender
        self.path = folder / "rows" / f"{re.sub('[^A-Za-z0-9]+', '-', words)}.json"
        self.row = Result.read(self.path)
        new = Result(contender.name, contender.precision, task.model, Path(task.weights).name, task.weights_sha256)
        new.batch = task.batch
        if (self.row.name, self.row.batch, self.row.weights_sha256) != (new.name, new.batch, new.weights_sha256):
            self.row = new
        self.ready: Ready | None = None

    def needs(self, rounds: int, photographs: Labelled | None) -> bool:
        """Whether anything is left to be done. A pipeline's accuracy is its plan's."""
        unknown = photographs is not None and self.row.labelled != photographs.key and "pipeline" not in self.contender.name
        return len(self.row.runs) < rounds or unknown

    def attempt(self, limit: float, doing: Callable[..., None], *given: Any) -> None:
        """What it lacks, or fails at, is said in its row, and is not the end of the comparison. Where it is the end of the
        process, by a crash or by ``limit`` seconds without an answer (0: no limit), the row has said so before."""
        write_json(self.path, {**self.row.facts, "problem": LOST}, indent=None)
        if limit:
            faulthandler.dump_traceback_later(min(limit, 1 << 24), exit=True)  # no timer has any time
        try:
            doing(*given)
        except Missing as missing:
            self.row.problem, self.ready = f"needs {missing}", None
        except Exception as error:
            self.row.problem, self.ready = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", None
        finally:
            faulthandler.cancel_dump_traceback_later()
            write_json(self.path, self.row.facts, indent=None)

    def prepare(self, resources: ExitStack, images: np.ndarray, expected: np.ndarray, photographs: Labelled | None) -> None:
        self.row.host, self.row.date, self.row.problem = processor(), datetime.date.today().isoformat(), None
        started = time.perf_counter()
        with ExitStack() as own:
            ready = own.enter_context(self.contender.prepare(self.task, self.row.precision))
            row = self.row
            row.version, row.device, row.build_s, row.command = ready.version, ready.device, ready.build_s, ready.command
            row.driver = versions()["driver"] if ready.lane else None
            check(row, ready, images, expected, photographs)
            row.prepare_s, row.memory_mb = time.perf_counter() - started, ready.memory_mb()
            self.ready = ready
            resources.push(own.pop_all())

    def say(self) -> None:
        row = self.row
        said = [] if row.median_ms is None else [f"{row.median_ms:9.3f} ms{f' {WARNING}' * row.doubtful}"]
        said += [] if row.top1 is None else [f"top-1 {row.top1:.2%}"]
        said += [] if row.problem is None else [row.problem]
        who = f"{row.model:<18} batch {row.batch:<4} {row.engine:<34} {row.precision}"
        out.print(wrapped(f"  {who}  {', '.join(said)}", 4), markup=False)


def compare(task: Task, contenders: Sequence[Contender], photographs: Labelled | None, options: Namespace) -> None:
    """Bring the rows of one model and batch up to ``options.rounds`` runs, dealt in rounds, and find their accuracy where there
    are labelled ``photographs``."""
    images, expected = batch_of(task, options.calibration_images, options.out)
    task = replace(task, classes=expected.shape[1])
    entries = [Entry(task, contender, options.out) for contender in contenders]
    always = options.mark or not options.rounds
    lost = [entry for entry in entries if entry.row.problem == LOST]
    entries = [each for each in entries if each not in lost and (always or each.needs(options.rounds, photographs))]
    with ExitStack() as resources:
        for entry in entries:
            with out.status(f"{task.model}, batch {task.batch}: {entry.contender.name} {entry.contender.precision}"):
                entry.attempt(options.limit, entry.prepare, resources, images, expected, photographs)
        for done in range(options.rounds):
            for entry in entries:
                if entry.ready and len(entry.row.runs) == done:
                    entry.attempt(options.limit, speed, entry.row, entry.ready, images, options.seconds)
        for entry in entries:
            if entry.ready and entry.needs(0, photographs):
                entry.attempt(options.limit, accuracy, entry.row, entry.ready, photographs)
            if entry.ready and entry.ready.lane and options.mark:
                entry.ready.load(images)
                entry.ready.lane.marked(options.mark)
        for entry in [*lost, *entries]:
            entry.say()


def chosen(words: str) -> list[Contender]:
    """All contenders with one of these comma-separated words in their name and precision; `=word`: that begin with it; "none"
    is none of them. Raises ``UsageFault`` for a word that no contender has."""
    wanted = [word.strip() for word in words.split(",")]
    found = {word: [each for each in CONTENDERS if word.lower() in f"={each.name} {each.precision}".lower()] for word in wanted}
    for word in wanted:
        if not found[word] and word != "none":
            names = ", ".join(dict.fromkeys(each.name for each in CONTENDERS))
            raise UsageFault(f"--engines: none has {word!r} in name or precision; there are {names}.")
    return [each for each in CONTENDERS if any(each in some for some in found.values())]


def parse_options() -> Namespace:
    p = program.parser(__doc__)
    p.add_argument("--model", choices=models.MODELS, action="append", dest="models", help="repeatable (default: resnet18)")
    p.add_argument("--weights", default="random", metavar="random|imagenet|FILE", help="default: %(default)s")
    p.add_argument("--batches", type=positives, default="1,32", metavar="A,B,…", help="default: %(default)s")
    words = "only those with one of these in name or precision; =WORD: that begin with it"
    p.add_argument("--engines", default="", metavar="WORDS", help=words)
    seconds = f"of a run of a row, {LEAST} to {MOST} batches; warmed up a fifth longer (default: %(default)s)"
    p.add_argument("--seconds", type=float, default=2.0, metavar="S", help=seconds)
    rounds = "runs of each row, dealt in rounds; 0: load, check and find the accuracy only (default: %(default)s)"
    p.add_argument("--rounds", type=natural, default=3, metavar="N", help=rounds)
    p.add_argument("--labelled", type=Path, metavar="DIR", help="labelled images, a folder a class: accuracy as well")
    p.add_argument("--calibration-images", type=Path, metavar="DIR", help="for INT8, see 0_build.py")
    mark = "then N more batches of each, with the ladder's ranges around them: for nsys, and scripts.compare"
    p.add_argument("--mark", type=natural, default=0, metavar="N", help=mark)
    p.add_argument("--limit", type=natural, default=0, metavar="S", help="end if an engine takes longer; again: without it")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "engines", metavar="DIR", help="default: out/engines")
    options = p.parse_args()
    if not 0 <= options.seconds <= 3600:  # nor NaN
        p.error(f"--seconds {options.seconds}: from 0 to 3600")
    options.models = options.models or ["resnet18"]
    return options


def main() -> None:
    options = parse_options()
    contenders = chosen(options.engines)
    options.out.mkdir(parents=True, exist_ok=True)
    with program.alone(options.out):
        for model in options.models if contenders else ():
            task = Task(model, options.weights, options.batches[0])
            task.export(options.calibration_images)
            photographs = labelled(task, options.labelled, options.out) if options.labelled else None
            for batch in options.batches:
                compare(replace(task, batch=batch), contenders, photographs, options)
        report(options.out)


if __name__ == "__main__":
    program.run(main)
