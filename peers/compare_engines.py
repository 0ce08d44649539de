"""Which engine? PyTorch, torch.compile, ONNX Runtime and TensorRT on the same model, with accuracy beside speed.

    python -m scripts.compare_engines --batches 1,10,32,128
    python -m scripts.compare_engines --model resnet50 --transfers out --out out/resnet50
    python -m scripts.compare_engines --weights models/resnet18-digits.pt --labelled models/digits/test

Every contender gets the same inputs and the same warm-up, is synchronized where it must be, and has its outputs held to those
of the FP32 ONNX file on the CPU before a time is reported. What this machine lacks is said below the table. Finished rows
stay in --out and are not run again, so an interrupted comparison goes on where it stopped, and contenders that live in
different Pythons fill one table: run it once with each.
"""

from __future__ import annotations

import datetime
import re
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import program
from common.clock import undisturbed
from common.console import out
from common.errors import Fault, WrongOutputs
from common.files import write_json
from common.host import processor
from common.options import positives
from common.pictures import Images
from export import models
from export.train import labelled_files, load
from peers.contenders import CONTENDERS, Contender, Missing, Ready, Task, pipeline
from peers.processes import ROOT
from peers.rows import Result, report

TOLERANCE = {"fp32": 1e-3, "tf32": 3e-2, "fp16": 3e-2, "int8": 0.6}
"""Share of the largest logit by which outputs may be off the FP32 file's on the CPU. On a GPU, convolutions of FP32 work in
TF32, whose mantissa is FP16's. What INT8 costs is the accuracy's to say."""
LEAST, MOST = 20, 2000  # timed inferences


def reference(task: Task, images: np.ndarray) -> np.ndarray:
    """Logits of the FP32 ONNX file on the CPU (N×C), 64 images at a time."""
    parts = np.split(images, range(64, len(images), 64))
    return np.concatenate([models.run_onnx(task.onnx("fp32"), part) for part in parts])


def labelled(task: Task, directory: Path) -> tuple[np.ndarray, ...]:
    """The images of a labelled folder (N×3×S×S FP32), their classes' numbers (−1: none of the model's) and the reference's
    logits (N×C)."""
    files, labels = labelled_files(directory)
    if not files:
        raise Fault(f"--labelled {directory} holds no image in a folder of its class.")
    images = load(files, models.MODELS[task.model])
    classes = models.read_description(task.onnx("fp32")).get("labels") or sorted(set(labels))
    targets = np.array([classes.index(label) if label in classes else -1 for label in labels])
    return images, targets, reference(task, images)


def timed(ready: Ready, loaded: Any, seconds: float, least: int) -> list[float]:
    """Milliseconds of single inferences, for so many seconds."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < least or (time.perf_counter() < until and len(times) < MOST):
        started = time.perf_counter()
        ready.infer(loaded)
        times.append((time.perf_counter() - started) * 1e3)
    return times


def check(row: Result, ready: Ready, images: np.ndarray, expected: np.ndarray) -> Any:
    """Run the images once and write how far the outputs are off into the row; raises ``WrongOutputs``. Gives what it loaded."""
    loaded = ready.load(images)
    output = ready.output(ready.infer(loaded))
    row.largest_difference = models.largest_difference(output, expected)
    row.top1_agreement = float((output.argmax(axis=1) == expected.argmax(axis=1)).mean())
    arithmetic = "tf32" if row.precision == "fp32" and ready.device != "CPU" else row.precision
    if not row.largest_difference <= TOLERANCE[arithmetic]:
        raise WrongOutputs(f"off by {row.largest_difference:.2g} of the largest logit")
    return loaded


def speed(row: Result, ready: Ready, loaded: Any, seconds: float) -> None:
    """Write its times into its row."""
    if ready.rate:
        record = ready.rate()
        row.median_ms, row.count = record.per_batch_ms, record.measured
        row.images_per_s, row.memory_mb = record.images_per_s, record.peak_device_memory_mb
        return
    timed(ready, loaded, seconds / 5, least=0)  # warm-up
    with undisturbed():
        times = timed(ready, loaded, seconds, LEAST)
    row.memory_mb, row.count = ready.memory_mb(), len(times)
    row.min_ms, row.median_ms, row.p90_ms, row.p99_ms, row.max_ms = np.percentile(times, [0, 50, 90, 99, 100]).tolist()
    row.images_per_s = row.batch * len(times) / sum(times) * 1e3


def accuracy(row: Result, ready: Ready, images: np.ndarray, targets: np.ndarray, expected: np.ndarray) -> None:
    """Write top-1, top-5, and how the logits compare with the reference's, into its row."""
    parts = []
    for batch in np.split(images, range(row.batch, len(images), row.batch)):
        full = np.resize(batch, (row.batch, *batch.shape[1:]))  # the last one is filled up with its own images
        parts.append(ready.output(ready.infer(ready.load(full)))[: len(batch)].copy())
    found = np.concatenate(parts)
    ranked = np.argsort(-found, axis=1)[:, :5]
    row.images = len(images)
    row.top5 = float((ranked == targets[:, None]).any(axis=1).mean())
    row.agreement = float((ranked[:, 0] == expected.argmax(axis=1)).mean())
    row.largest_logit_difference, row.largest_logit = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    row.top1 = float((ranked[:, 0] == targets).mean())


def compare(
    task: Task,
    contender: Contender,
    images: np.ndarray,
    expected: np.ndarray,
    photographs: Sequence[np.ndarray] | None,
    options: Namespace,
) -> None:
    """Make a contender's row unless it is there: its speed, and where there are labelled ``photographs`` its accuracy. What it
    lacks, or fails at, is said in its row; it is not the end of the comparison."""
    transfers = "in" if task.transfers else "out"
    words = f"{task.tag} b{task.batch} {contender.name} {contender.precision} {transfers}"
    path = options.out / "rows" / f"{re.sub('[^A-Za-z0-9]+', '-', words)}.json"
    photographs = None if contender.prepare is pipeline else photographs  # its plan's accuracy is TensorRT's
    before, weights = Result.read(path), task.weights_sha256
    if before.weights_sha256 == weights and before.median_ms and (before.top1 is not None or not photographs):
        return
    row = Result(contender.name, contender.precision, task.model, Path(task.weights).name, weights, transfers, batch=task.batch)
    row.host, row.date = processor(), datetime.date.today().isoformat()
    try:
        started = time.perf_counter()
        with contender.prepare(task, contender.precision) as ready:
            row.version, row.device, row.build_s = ready.version, ready.device, ready.build_s
            loaded = check(row, ready, images, expected)
            row.prepare_s = time.perf_counter() - started
            speed(row, ready, loaded, options.seconds)
            if photographs:
                accuracy(row, ready, *photographs)
    except Missing as missing:
        row.problem = f"needs {missing}"
    except Exception as error:
        row.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    write_json(path, row.facts, indent=None)
    said = [] if row.median_ms is None else [f"{row.median_ms:9.3f} ms"]
    said += [] if row.top1 is None else [f"top-1 {row.top1:.2%}"]
    said += [] if row.problem is None else [row.problem]
    who = f"{task.model:<18} batch {task.batch:<4} {contender.name:<30} {contender.precision}"
    out.print(f"  {who}  {', '.join(said)}", markup=False)


def chosen(words: str) -> list[Contender]:
    """All contenders with one of these comma-separated words in their name or precision."""
    wanted = [word.strip().lower() for word in words.split(",")]
    return [each for each in CONTENDERS if any(word in f"{each.name} {each.precision}".lower() for word in wanted)]


def parse_options() -> Namespace:
    p = program.parser(__doc__)
    p.add_argument("--model", choices=models.MODELS, action="append", dest="models", help="repeatable (default: resnet18)")
    p.add_argument("--weights", default="random", metavar="random|imagenet|FILE", help="default: %(default)s")
    p.add_argument("--batches", type=positives, default="1,32", metavar="A,B,…", help="default: %(default)s")
    p.add_argument("--engines", default="", metavar="WORDS", help="only those with one of these in their name or precision")
    transfers = "copies to and from the device in the time or out of it, for all engines alike (default: %(default)s)"
    p.add_argument("--transfers", choices=("in", "out"), default="in", help=transfers)
    p.add_argument("--seconds", type=float, default=2.0, help="time spent on each row, warm-up aside (default: %(default)s)")
    p.add_argument("--labelled", type=Path, metavar="DIR", help="labelled images, a folder a class: accuracy as well")
    p.add_argument("--calibration-images", type=Path, metavar="DIR", help="for INT8, see 0_build.py")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "engines", metavar="DIR", help="default: out/engines")
    options = p.parse_args()
    options.models = options.models or ["resnet18"]
    return options


def main() -> None:
    options = parse_options()
    kinds = [(model, batch) for model in options.models for batch in options.batches]
    for model, batch in kinds:
        task = Task(model, options.weights, batch, options.transfers == "in")
        task.export(options.calibration_images)
        side = models.MODELS[model]
        images = Images(options.calibration_images, (3, side, side), models.SEED, limit=batch, option="--calibration-images")
        pixels = np.empty((batch, *images.shape), np.float32)
        images.fill(pixels)
        expected = reference(task, pixels)
        photographs = labelled(task, options.labelled) if options.labelled and (model, batch) == kinds[-1] else None
        for contender in chosen(options.engines):
            with out.status(f"{model}, batch {batch}: {contender.name} {contender.precision}"):
                compare(task, contender, pixels, expected, photographs, options)
    report(options.out)


if __name__ == "__main__":
    program.run(main)
