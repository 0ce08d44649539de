"""Which engine? PyTorch, torch.compile, ONNX Runtime and TensorRT on the same model, with accuracy beside speed.

    python -m scripts.compare_engines --batches 1,10,32,128
    python -m scripts.compare_engines --model resnet50 --transfers out --out out/resnet50
    python -m scripts.compare_engines --weights models/resnet18-digits.pt --labelled models/digits/test

Every contender gets the same inputs and the same warm-up, is synchronized where it must be, and has its outputs held to
PyTorch's in FP32 before a time is reported. What this machine lacks is a row that says what it needs. Finished rows stay
in --out and are not run again, so an interrupted comparison goes on where it stopped, and contenders that live in
different Pythons fill one table: run it once with each.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from common import program
from common.clock import undisturbed
from common.console import out
from common.errors import EnvironmentFault, Fault
from common.files import atomic_path, read_json, write_json
from common.images import Images
from common.options import positives
from common.record import from_json
from export import models
from export.networks import create_model, logits
from export.train import labelled_files, load
from peers.contenders import Contender, Missing, Pipeline, Task, contenders, installed
from peers.processes import ROOT
from peers.rows import Row, report

TOLERANCE = {"fp32": 1e-3, "tf32": 3e-2, "fp16": 3e-2, "int8": 0.6}
"""Share of the largest logit by which outputs may be off PyTorch's in FP32 on the CPU. On a GPU, convolutions of FP32 work in
TF32, whose mantissa is FP16's. What INT8 costs is the accuracy's to say."""
LEAST, MOST = 20, 2000  # timed inferences


def reference(task: Task, images: np.ndarray, names: Sequence[str], folder: Path) -> np.ndarray:
    """PyTorch's logits in FP32 on the CPU (N×C), kept in ``folder`` for Pythons without PyTorch: once for these weights and
    the images of these names."""
    of = "\n".join([task.weights_sha256, str(task.seed), *names])
    path = folder / f"reference-{task.tag}-{hashlib.sha256(of.encode()).hexdigest()[:12]}.npy"
    if path.exists():
        return np.load(path)
    if not installed("torch"):
        raise EnvironmentFault("the first run needs PyTorch, for the reference outputs.")
    expected = logits(create_model(task.model, task.weights, task.seed)[0], images)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, expected)
    return expected


@functools.lru_cache(maxsize=1)
def labelled(task: Task, directory: Path, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images of a labelled folder (N×3×S×S FP32), their classes' numbers (−1: none of the model's) and PyTorch's logits
    (N×C); read once for all contenders."""
    files, labels = labelled_files(directory)
    if not files:
        raise Fault(f"--labelled {directory} holds no image in a folder of its class.")
    images = load(files, models.MODELS[task.model])
    classes = models.read_description(task.onnx("fp32")).get("labels") or sorted(set(labels))
    targets = np.array([classes.index(label) if label in classes else -1 for label in labels])
    return images, targets, reference(task, images, [str(path.relative_to(directory)) for path in files], folder)


def timed(contender: Contender, seconds: float, least: int) -> list[float]:
    """Milliseconds of single inferences, for so many seconds."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < least or (time.perf_counter() < until and len(times) < MOST):
        started = time.perf_counter()
        contender.infer()
        times.append((time.perf_counter() - started) * 1e3)
    return times


@contextlib.contextmanager
def noted(row: Row) -> Iterator[None]:
    """What a contender lacks, or fails at, is said in its row; it is not the end of the comparison."""
    try:
        yield
    except Missing as missing:
        row.needs = str(missing)
    except Exception as error:
        row.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def speed(row: Row, contender: Contender, task: Task, images: np.ndarray, expected: np.ndarray, options: Namespace) -> None:
    """Prepare the contender and write its times into its row, or what was wrong with its outputs."""
    started = time.perf_counter()
    contender.prepare(task)
    contender.load(images)
    contender.infer()
    row.prepare_s = time.perf_counter() - started
    row.version, row.device, row.build_s = contender.version, contender.device, contender.build_s
    output = contender.output()
    row.largest_difference = models.largest_difference(output, expected)
    row.top1_agreement = float((output.argmax(axis=1) == expected.argmax(axis=1)).mean())
    arithmetic = "tf32" if row.precision == "fp32" and row.device != "CPU" else row.precision
    if not row.largest_difference <= TOLERANCE[arithmetic]:
        row.problem = f"wrong outputs: off by {row.largest_difference:.2g} of the largest logit"
    elif isinstance(contender, Pipeline):
        record = contender.rate(options.seconds, options.out)
        row.median_ms, row.count, row.rate_only = record.per_batch_ms, record.measured, True
        row.images_per_s, row.memory_mb = record.images_per_s, record.peak_device_memory_mb
    else:
        timed(contender, options.seconds / 5, least=0)  # warm-up
        with undisturbed():
            times = timed(contender, options.seconds, LEAST)
        row.memory_mb, row.count, row.times_ms = contender.memory_mb(), len(times), [round(each, 4) for each in times]
        row.min_ms, row.median_ms, row.p90_ms, row.p99_ms, row.max_ms = np.percentile(times, [0, 50, 90, 99, 100]).tolist()
        row.images_per_s = task.batch * len(times) / sum(times) * 1e3


def accuracy(row: Row, contender: Contender, images: np.ndarray, targets: np.ndarray, expected: np.ndarray) -> None:
    """Write top-1, top-5, and how the logits compare with PyTorch's, into the row of a contender that is prepared."""
    parts = []
    for batch in np.split(images, range(row.batch, len(images), row.batch)):
        contender.load(np.resize(batch, (row.batch, *batch.shape[1:])))  # the last one is filled up with its own images
        contender.infer()
        parts.append(contender.output()[: len(batch)].copy())
    found = np.concatenate(parts)
    ranked = np.argsort(-found, axis=1)[:, :5]
    cosine = (found * expected).sum(axis=1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1))
    row.version, row.device, row.images = contender.version, contender.device, len(images)
    row.top5 = float((ranked == targets[:, None]).any(axis=1).mean())
    row.agreement = float((ranked[:, 0] == expected.argmax(axis=1)).mean())
    row.largest_logit_difference, row.largest_logit = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    row.cosine, row.smallest_cosine = float(cosine.mean()), float(cosine.min())
    row.top1 = float((ranked[:, 0] == targets).mean())


def compare(task: Task, contender: Contender, images: np.ndarray, expected: np.ndarray, options: Namespace) -> None:
    """Make a contender's row, and at the last model's last batch size its row of accuracy, unless they are there."""
    words = f"{task.tag} b{task.batch} {contender.name} {contender.precision} {'in' if task.transfers else 'out'}"
    name = re.sub(r"[\W_]", "-", words).replace("--", "-")
    speed_path, accuracy_path = (options.out / "rows" / f"{kind}{name}.json" for kind in ("", "accuracy-"))
    wants_speed = options.force or not finished(speed_path, task)
    last = (task.model, task.batch) == (options.models[-1], options.batches[-1]) and not isinstance(contender, Pipeline)
    wants_accuracy = options.labelled and last and (options.force or not finished(accuracy_path, task))
    if not (wants_speed or wants_accuracy):
        return
    photographs = labelled(task, options.labelled, options.out) if wants_accuracy else None
    row, exact = Row.of(task, contender), Row.of(task, contender)
    with noted(row), contextlib.closing(contender):
        speed(row, contender, task, images, expected, options)
        if photographs and not row.problem:
            with noted(exact):
                accuracy(exact, contender, *photographs)
    said = row.problem or "not here" if row.median_ms is None else f"{row.median_ms:9.3f} ms"
    if wants_speed:
        write_json(speed_path, row.facts, indent=None)
    if exact.top1 is not None or exact.problem:
        write_json(accuracy_path, exact.facts, indent=None)
        said += f", top-1 {exact.top1:.2%}" if exact.top1 is not None else f", no accuracy: {exact.problem}"
    out.print(f"  {task.model:<18} batch {task.batch:<4} {contender.name:<30} {contender.precision}  {said}", markup=False)


def finished(path: Path, task: Task) -> bool:
    """Whether a row is there, was made of the same weights and is no gap that this Python might fill."""
    row = from_json(Row, read_json(path))
    return row.weights_sha256 == task.weights_sha256 and not (row.needs or row.problem)


def parse_options() -> Namespace:
    p = program.parser(__doc__)
    p.add_argument("--model", choices=models.MODELS, action="append", dest="models", help="repeatable (default: resnet18)")
    p.add_argument("--weights", default="random", metavar="random|imagenet|FILE", help="default: %(default)s")
    p.add_argument("--seed", type=int, default=models.SEED)
    p.add_argument("--batches", type=positives, default="1,32", metavar="A,B,…", help="default: %(default)s")
    p.add_argument("--engines", default="", metavar="WORDS", help="only those with one of these in their name or precision")
    transfers = "copies to and from the device in the time or out of it, for all engines alike (default: %(default)s)"
    p.add_argument("--transfers", choices=("in", "out"), default="in", help=transfers)
    p.add_argument("--seconds", type=float, default=2.0, help="time spent on each row, warm-up aside (default: %(default)s)")
    p.add_argument("--labelled", type=Path, metavar="DIR", help="labelled images, a folder a class: accuracy as well")
    p.add_argument("--calibration-images", type=Path, metavar="DIR", help="for INT8, see 0_build.py")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "engines", metavar="DIR", help="default: out/engines")
    p.add_argument("--force", action="store_true", help="run rows again that are there")
    options = p.parse_args()
    options.models = options.models or ["resnet18"]
    return options


def main() -> None:
    options = parse_options()
    (options.out / "rows").mkdir(parents=True, exist_ok=True)
    kinds = [(model, batch) for model in options.models for batch in options.batches]
    calibrated = ["--int8", "--calibration-images", options.calibration_images] if options.calibration_images else []
    for model, batch in kinds:
        task = Task(model, options.weights, options.seed, batch, options.transfers == "in")
        if batch == options.batches[0] and (problem := task.build("--export-only", *calibrated)):
            out.print(f"no ONNX files: {problem}", style="yellow", markup=False)
        side = models.MODELS[model]
        images = Images(options.calibration_images, (3, side, side), options.seed, limit=batch)
        pixels = np.empty((batch, *images.shape), np.float32)
        images.fill(pixels, 0)
        expected = reference(task, pixels, [images.name(row) for row in range(batch)], options.out)
        for contender in contenders(options.engines):
            with out.status(f"{model}, batch {batch}: {contender.name} {contender.precision}"):
                compare(task, contender, pixels, expected, options)
    report(options.out)


if __name__ == "__main__":
    program.run(main)
