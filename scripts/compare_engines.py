"""Which engine? PyTorch, torch.compile, ONNX Runtime and TensorRT on the same model, with accuracy beside speed.

    python -m scripts.compare_engines --batches 1,10,32,128
    python -m scripts.compare_engines --model resnet50 --transfers out --out out/resnet50
    python -m scripts.compare_engines --weights models/resnet18-digits.pt --labelled models/digits/test

Every engine gets the same inputs and the same warm-up, is synchronized where it must be, and has its outputs held to
PyTorch's in FP32 before a time is reported. What this machine lacks is a row that says what it needs. Finished rows stay
in --out and are not run again, so an interrupted comparison goes on where it stopped, and engines that live in different
Pythons fill one table: run it once with each.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import hashlib
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from common import models
from common.clock import undisturbed
from common.errors import Fault
from common.files import atomic_path, write_json
from common.images import Images
from common.train import labelled_files, load
from scripts.compare import read_json
from scripts.engines import Engine, Missing, Pipeline, Task, engines, run_build
from scripts.host import Host
from scripts.tables import cells, grid

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = {"fp32": 1e-3, "tf32": 3e-2, "fp16": 3e-2, "int8": 0.6}
"""Share of the largest logit by which outputs may be off PyTorch's in FP32 on the CPU. On a GPU, convolutions of FP32 work in
TF32, whose mantissa is FP16's. What INT8 costs is the accuracy's to say."""
LEAST, MOST = 20, 2000  # timed inferences
HOST = Host()
console = Console(highlight=False, soft_wrap=True)


def key(task: Task, engine: Engine) -> str:
    words = f"{task.tag} b{task.batch} {engine.name} {engine.precision} {'in' if task.transfers else 'out'}"
    return "".join(character if character.isalnum() else "-" for character in words).replace("--", "-")


# -- the reference


def reference(task: Task, images: np.ndarray, names: Sequence[str], folder: Path) -> np.ndarray:
    """PyTorch's logits in FP32 on the CPU (N×C), kept in ``folder`` for Pythons without PyTorch: once for these weights and
    the images of these names."""
    of = "\n".join([weights_hash(task.weights), str(task.seed), *names])
    path = folder / f"reference-{task.tag}-{hashlib.sha256(of.encode()).hexdigest()[:12]}.npy"
    if path.exists():
        return np.load(path)
    import torch

    model = models.create_model(task.model, task.weights, task.seed)[0]
    with torch.inference_mode():
        parts = [model(torch.from_numpy(images[first : first + 16])).numpy() for first in range(0, len(images), 16)]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(parts))
    return np.concatenate(parts)


def weights_hash(weights: str) -> str:
    """The hash of a file of weights; `random` and `imagenet` are names already."""
    return models.sha256(Path(weights)) if Path(weights).is_file() else weights


# -- speed


def time_engine(engine: Engine, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of single inferences, each synchronized, after a warm-up of a fifth of the time; and the core's speed."""
    def once() -> float:
        started = time.perf_counter()
        engine.infer()
        engine.synchronize()
        return (time.perf_counter() - started) * 1e3

    until = time.perf_counter() + seconds / 5
    while time.perf_counter() < until:
        once()
    with undisturbed() as readings:
        times, until = [], time.perf_counter() + seconds
        while len(times) < LEAST or (time.perf_counter() < until and len(times) < MOST):
            times.append(once())
    return {"times_ms": times, "core_us": readings}


def summary(times_ms: list[float], batch: int) -> dict[str, Any]:
    low, middle, p90, p99, high = np.percentile(times_ms, [0, 50, 90, 99, 100]).tolist()
    return {"min_ms": low, "median_ms": middle, "p90_ms": p90, "p99_ms": p99, "max_ms": high, "count": len(times_ms),
            "images_per_s": batch / (sum(times_ms) / len(times_ms) / 1e3)}


def run(task: Task, engine: Engine, images: np.ndarray, expected: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """One row: its times, or what was wrong (``problem``), or what is missing (``needs``)."""
    facts: dict[str, Any] = {"engine": engine.name, "precision": engine.precision, "model": task.model, "weights": task.weights,
                             "batch": task.batch, "transfers": "in" if task.transfers else "out",
                             "date": datetime.date.today().isoformat()}
    try:
        if isinstance(engine, Pipeline) and not task.transfers:
            raise Missing("--transfers in: a pipeline without transfers is none")
        started = time.perf_counter()
        engine.prepare(task)
        engine.load(images)
        engine.infer()
        engine.synchronize()
        prepare_s = time.perf_counter() - started
        output = engine.output()
        difference = models.largest_difference(output, expected)
        agreement = float((output.argmax(axis=1) == expected.argmax(axis=1)).mean())
        facts |= {"version": engine.version(), "device": engine.device(), "prepare_s": prepare_s, "build_s": engine.build_s(),
                  "largest_difference": difference, "top1_agreement": agreement}
        arithmetic = "tf32" if engine.precision == "fp32" and engine.device() != "CPU" else engine.precision
        if not difference <= TOLERANCE[arithmetic]:
            return {**facts, "problem": f"wrong outputs: off by {difference:.2g} of the largest logit"}
        if isinstance(engine, Pipeline):
            [record] = HOST.repeated(lambda: engine.rate(options.seconds, options.out), 1)
            return {**facts, "median_ms": record["per_batch_ms"], "count": record["measured"], "rate_only": True,
                    "images_per_s": record["images_per_s"], "memory_mb": record["peak_device_memory_mb"]}
        if engine.device() == "CPU":  # all cores are the engine's; a GPU is served by one
            timed = time_engine(engine, options.seconds)
        else:
            [timed] = HOST.repeated(lambda: time_engine(engine, options.seconds), 1)
        times = timed["times_ms"]
        return {**facts, **summary(times, task.batch), "memory_mb": engine.memory_mb(),
                "times_ms": [round(each, 4) for each in times]}
    except Missing as missing:
        return {**facts, "needs": str(missing)}
    except Exception as error:  # an engine that fails is a row, not the end of the comparison
        return {**facts, "problem": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


# -- accuracy


@functools.lru_cache(maxsize=1)
def labelled_images(directory: Path, side: int) -> tuple[np.ndarray, list[str], list[str]]:
    """The images of a labelled folder (N×3×S×S FP32), their names and their labels; read once for all engines."""
    files, labels = labelled_files(directory)
    if not files:
        raise Fault(f"--labelled {directory} holds no image in a folder of its class.")
    return load(files, side), [str(path.relative_to(directory)) for path in files], labels


def accuracy(task: Task, engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """Top-1, top-5, and how the logits compare with PyTorch's in FP32, over the whole labelled folder; the engine is ready."""
    images, names, labels = labelled_images(options.labelled, models.MODELS[task.model])
    classes = models.read_description(task.onnx("fp32")).get("labels") or sorted(set(labels))
    targets = np.array([classes.index(label) if label in classes else -1 for label in labels])
    expected = reference(task, images, names, options.out)
    parts = []
    for first in range(0, len(images), task.batch):
        batch = images[first : first + task.batch]
        padded = np.concatenate([batch, np.repeat(batch[-1:], task.batch - len(batch), axis=0)])
        engine.load(np.ascontiguousarray(padded))
        engine.infer()
        engine.synchronize()
        parts.append(engine.output()[: len(batch)].copy())
    logits = np.concatenate(parts)
    ranked = np.argsort(-logits, axis=1)[:, :5]
    cosine = (logits * expected).sum(axis=1) / (np.linalg.norm(logits, axis=1) * np.linalg.norm(expected, axis=1))
    return {"engine": engine.name, "precision": engine.precision, "version": engine.version(), "device": engine.device(),
            "images": len(images), "top1": float((ranked[:, 0] == targets).mean()),
            "top5": float((ranked == targets[:, None]).any(axis=1).mean()),
            "agreement": float((ranked[:, 0] == expected.argmax(axis=1)).mean()),
            "largest_logit_difference": float(np.abs(logits - expected).max()), "largest_logit": float(np.abs(expected).max()),
            "cosine": float(cosine.mean()), "smallest_cosine": float(cosine.min())}


# -- the tables


COLUMNS = [
    ("engine", "engine", "{}"), ("precision", "precision", "{}"), ("batch", "batch", "{}"), ("min", "min_ms", "{:.3f}"),
    ("median", "median_ms", "{:.3f}"), ("p90", "p90_ms", "{:.3f}"), ("p99", "p99_ms", "{:.3f}"), ("max", "max_ms", "{:.3f}"),
    ("images/s", "images_per_s", "{:,.0f}"), ("device MB", "memory_mb", "{:,.0f}"), ("prepare, s", "prepare_s", "{:.1f}"),
    ("build, s", "build_s", "{:.1f}"), ("off FP32", "largest_difference", "{:.1e}"), ("same top-1", "top1_agreement", "{:.0%}"),
]
ACCURACY = [
    ("engine", "engine", "{}"), ("precision", "precision", "{}"), ("top-1", "top1", "{:.2%}"), ("top-5", "top5", "{:.2%}"),
    ("agrees with FP32", "agreement", "{:.2%}"), ("largest logit difference", "largest_logit_difference", "{:.3f}"),
    ("of", "largest_logit", "{:.2f}"), ("cosine", "cosine", "{:.6f}"), ("smallest", "smallest_cosine", "{:.6f}"),
]


def report(options: argparse.Namespace) -> None:
    """Print the tables and write them, as JSON, CSV, Markdown and pictures, from the rows that are there."""
    found = [read_json(path) for path in sorted((options.out / "rows").glob("*.json"))]
    order = {(engine.name, engine.precision): index for index, engine in enumerate(engines())}
    found.sort(key=lambda row: (row["model"], row.get("batch", 0), order.get((row["engine"], row["precision"]), 99)))
    rows = [row for row in found if "median_ms" in row]
    exact = [row for row in found if "top1" in row]
    absent = not_run(found)
    lines = [conditions(rows), ""]
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        lines += [f"## {model} ({mine[0]['weights_name']}), transfers {mine[0]['transfers']} the time, ms a batch", "",
                  *grid(mine, COLUMNS, words=2), ""]
        table = Table(title=f"{model}, transfers {mine[0]['transfers']} the time, ms a batch", box=None, title_justify="left")
        for title, *_ in COLUMNS:
            table.add_column(title, justify="left" if title in ("engine", "precision") else "right", no_wrap=True)
        for row in mine:
            table.add_row(*cells(row, COLUMNS))
        (console if console.is_terminal else Console(width=175, highlight=False)).print(table)
    if exact:
        lines += [f"## Accuracy on {exact[0]['images']} labelled images ({exact[0]['weights_name']})", "",
                  *grid(exact, ACCURACY, words=2), ""]
        console.print("\n".join(grid(exact, ACCURACY, words=2)), markup=False)
    lines += ["## Not run", "", *(f"- {line}" for line in absent), ""] * bool(absent)
    for line in absent:
        console.print(f"not run: {line}", markup=False)
    slim = [{name: value for name, value in row.items() if name != "times_ms"} for row in found]
    write_json(options.out / "engines.json", {"conditions": conditions(rows), "rows": slim})
    with atomic_path(options.out / "engines.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    with atomic_path(options.out / "engines.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [name for _, name, _ in [("", "model", ""), *COLUMNS, ("", "transfers", "")]],
                                extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    written = "engines.json, .csv, .md"
    try:
        from scripts import engine_figures

        written += f", {', '.join(engine_figures.draw(rows, options.out))}" if rows else ""
    except ImportError:
        console.print("no pictures: matplotlib is not installed (pip install matplotlib)", style="yellow", markup=False)
    console.print(f"written: {options.out}/{written}", markup=False)


def not_run(found: list[dict[str, Any]]) -> list[str]:
    """A line for each reason, with the engines that it holds up."""
    reasons: dict[str, list[str]] = {}
    for row in found:
        if "problem" in row:
            reasons.setdefault(row["problem"], []).append(
                f"{row['model']} {row['engine']} {row['precision']} at batch {row['batch']}")
        elif "needs" in row:
            reasons.setdefault(f"needs {row['needs']}", []).append(f"{row['engine']} {row['precision']}")
    return [f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in reasons.items()]


def conditions(rows: list[dict[str, Any]]) -> str:
    """What the numbers were obtained on."""
    if not rows:
        return ""
    devices, versions = (list(dict.fromkeys(row[name] for row in rows)) for name in ("device", "version"))
    cpus = list(dict.fromkeys(row["host"] for row in rows))
    dates = sorted({row["date"] for row in rows})
    when = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    return f"{', '.join(devices)}; host: {', '.join(cpus)}; {', '.join(versions)}; {when}:"


def host() -> str:
    """The processor and the number of cores that this process may use."""
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        text = Path("/proc/cpuinfo").read_text()
        model = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    except OSError:
        model = ""
    return f"{model or platform.processor() or platform.machine()}, {cores} cores"


def parse_options() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", choices=models.MODELS, action="append", dest="models", help="repeatable (default: resnet18)")
    p.add_argument("--weights", default="random", metavar="random|imagenet|FILE", help="default: %(default)s")
    p.add_argument("--seed", type=int, default=models.SEED)
    p.add_argument("--batches", default="1,32", metavar="A,B,…", help="default: %(default)s")
    p.add_argument("--engines", metavar="WORDS", help="only engines whose name or precision has one of these, comma-separated")
    p.add_argument("--transfers", choices=("in", "out"), default="in", help="copies to and from the device in the time or out "
                   "of it, for all engines alike (default: %(default)s)")
    p.add_argument("--seconds", type=float, default=2.0, help="time spent on each row, warm-up aside (default: %(default)s)")
    p.add_argument("--labelled", type=Path, metavar="DIR", help="labelled images, a folder a class: accuracy as well")
    p.add_argument("--calibration-images", type=Path, metavar="DIR", help="for INT8, see 0_build.py")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "engines", metavar="DIR", help="default: out/engines")
    p.add_argument("--force", action="store_true", help="run rows again that are there")
    options = p.parse_args()
    options.models = options.models or ["resnet18"]
    try:
        options.batches = [int(part) for part in options.batches.split(",")]
    except ValueError:
        p.error(f"--batches {options.batches}: not a list of numbers")
    return options


def export(task: Task, options: argparse.Namespace) -> None:
    """The model's ONNX files, INT8 included where there are images to calibrate with; not without PyTorch.

    A calibration that is there is used again by 0_build.py, if it is one of this model with these images."""
    more = ["--int8", "--calibration-images", str(options.calibration_images)] if options.calibration_images else []
    if not more and all(task.onnx(precision).exists() for precision in ("fp32", "fp16")):
        return
    problem = run_build(task, "--export-only", *more)
    if problem:
        console.print(f"no ONNX files: {problem}", style="yellow", markup=False)


def inputs(task: Task, directory: Path | None) -> tuple[np.ndarray, list[str]]:
    """The batch that every engine gets, N×3×S×S FP32, and its images' names: of the images that INT8 is calibrated for, else
    seeded noise."""
    images = Images(directory, models.MODELS[task.model], task.seed, limit=task.batch)
    batch = np.empty((task.batch, 3, images.size, images.size), np.float32)
    images.fill(batch, 0)
    return batch, [images.name(row) for row in range(task.batch)]


def chosen_engines(words: str | None) -> list[Engine]:
    wanted = [word.strip().lower() for word in words.split(",")] if words else [""]
    return [engine for engine in engines() if any(word in f"{engine.name} {engine.precision}".lower() for word in wanted)]


def finished(path: Path, options: argparse.Namespace, weights: str) -> bool:
    """Whether a row is there, was made of the same weights and is no gap that this Python might fill."""
    row = read_json(path)
    whole = bool(row) and "needs" not in row and "problem" not in row
    return whole and not options.force and row.get("weights_sha256") == weights


def main() -> int:
    options = parse_options()
    (options.out / "rows").mkdir(parents=True, exist_ok=True)
    file = Path(options.weights)
    common = {"weights_sha256": weights_hash(options.weights), "host": host(),
              "weights_name": file.name if file.is_file() else f"{options.weights} weights"}
    tasks = [Task(model, options.weights, options.seed, batch, options.transfers == "in") for model in options.models
             for batch in options.batches]
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("comparing", total=len(tasks) * len(chosen_engines(options.engines)))
            for task in tasks:
                if task.batch == options.batches[0]:
                    export(task, options)
                images, names = inputs(task, options.calibration_images)
                expected = reference(task, images, names, options.out)
                for engine in chosen_engines(options.engines):
                    doing = f"{task.model}, batch {task.batch}: {engine.name} {engine.precision}"
                    progress.update(bar, advance=1, description=doing)
                    compare(task, engine, images, expected, options, common, labelled=task is tasks[-1])
    except KeyboardInterrupt:
        console.print("compare_engines: interrupted; finished rows are kept and will not run again", style="red")
        return 130
    except ImportError as error:
        console.print(f"compare_engines: error: the first run needs PyTorch, for the reference outputs ({error}).",
                      style="red", markup=False)
        return 3
    except Fault as fault:
        console.print(f"compare_engines: error: {fault}", style="red", markup=False)
        return fault.exit_code
    report(options)
    return 0


def compare(task: Task, engine: Engine, images: np.ndarray, expected: np.ndarray, options: argparse.Namespace,
            common: dict[str, Any], labelled: bool) -> None:
    """Make an engine's row, and at the last batch size its row of accuracy, unless they are there."""
    path = options.out / "rows" / f"{key(task, engine)}.json"
    exact = path.with_name(f"accuracy-{path.name}")
    wants_speed = not finished(path, options, common["weights_sha256"])
    wants_accuracy = bool(labelled and options.labelled and not isinstance(engine, Pipeline)
                          and not finished(exact, options, common["weights_sha256"]))
    if not (wants_speed or wants_accuracy):
        return
    row = run(task, engine, images, expected, options)
    if wants_speed:
        write_json(path, {**row, **common}, indent=None)
    said = f"{row['median_ms']:9.3f} ms" if "median_ms" in row else row.get("problem") or "not here"
    if "median_ms" in row:
        if wants_accuracy:
            found = accuracy(task, engine, options)
            write_json(exact, {**found, **common, "model": task.model}, indent=None)
            said += f", top-1 {found['top1']:.2%}"
        engine.close()
    console.print(f"  {task.model:<18} batch {task.batch:<4} {engine.name:<30} {engine.precision}  {said}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
