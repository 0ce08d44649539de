"""The rows of a comparison: a file for each contender and task, and the tables and pictures that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.console import out, show
from common.errors import EnvironmentFault
from common.files import Column, atomic_path, column, columns, grid, grouped, read_json, write_json, write_text
from common.record import Record, from_json
from peers.contenders import CONTENDERS

PALETTE = {"PyTorch": "#D55E00", "Torch-TensorRT": "#CC79A7", "ONNX": "#0072B2", "TensorRT": "#009E73"}
ORDER = {f"{each.name} {each.precision}": number for number, each in enumerate(CONTENDERS)}  # of the rows; others come last
ALL, PARTS, EXACT = ("main", "parts", "accuracy"), ("parts",), ("accuracy",)
ENOUGH = 1000  # samples that a p99 is of at least: ten lie beyond it
AGREES = 0.9
"""Share of images on which an engine must name the reference's class; below it, its time is that of another computation."""
WARNING = "⚠"


@dataclass
class Result:
    """What a contender came to on a task: its speed, its accuracy if that was asked for, the ``problem`` that it had.

    Latencies are of single batches, over all ``runs``, whose every sample is in ``times_us``. What is measured once a run (the
    parts of a batch, and batches one ahead) is the median of the runs. Differences are shares of the largest logit where they
    do not say otherwise. What a row does not have is None.
    """

    engine: str = column("engine", tables=ALL)  # the contender's name
    precision: str = column("precision", tables=ALL)
    model: str = ""
    weights_name: str = ""
    weights_sha256: str = ""
    host: str = ""
    date: str = ""
    batch: int = column("batch", tables=ALL)
    version: str | None = None
    device: str | None = None
    driver: str | None = None  # the newest CUDA that it takes
    count: int | None = column("samples")
    min_ms: float | None = column("min", "{:.3f}")
    median_ms: float | None = column("median", "{:.3f}")
    p90_ms: float | None = column("p90", "{:.3f}")
    p95_ms: float | None = column("p95", "{:.3f}")
    p99_ms: float | None = column("p99", "{:.3f}")
    max_ms: float | None = column("max", "{:.3f}")
    images_per_s: float | None = column("images/s", "{:,.0f}")
    ahead_ms: float | None = column("one ahead", "{:.3f}")
    ahead_images_per_s: float | None = column("images/s, one ahead", "{:,.0f}")
    enqueue_ms: float | None = column("enqueue", "{:.3f}", PARTS)
    h2d_ms: float | None = column("H2D", "{:.3f}", PARTS)
    compute_ms: float | None = column("compute", "{:.3f}", PARTS)
    d2h_ms: float | None = column("D2H", "{:.3f}", PARTS)
    memory_mb: float | None = column("device MB", "{:,.0f}", PARTS)
    prepare_s: float | None = column("prepare, s", "{:.1f}", PARTS)
    build_s: float | None = column("build, s", "{:.1f}", PARTS)
    largest_difference: float | None = column("off FP32", "{:.1e}", PARTS)
    top1_agreement: float | None = column("same top-1", "{:.0%}", PARTS)
    images: int | None = None  # that the accuracy is of
    labelled: str | None = None  # which these were
    top1: float | None = column("top-1", "{:.2%}", EXACT)
    top1_low: float | None = column("95 %: from", "{:.1%}", EXACT)
    top1_high: float | None = column("to", "{:.1%}", EXACT)
    gained: float | None = column("against FP32", "{:+.2%}", EXACT)
    gained_low: float | None = column("95 %: from", "{:+.1%}", EXACT)
    gained_high: float | None = column("to", "{:+.1%}", EXACT)
    top5: float | None = column("top-5", "{:.2%}", EXACT)
    agreement: float | None = column("agrees with FP32", "{:.2%}", EXACT)
    largest_logit_difference: float | None = column("largest logit difference", "{:.3f}", EXACT)
    largest_logit: float | None = column("of", "{:.2f}", EXACT)
    command: str | None = None
    problem: str | None = None
    runs: list[Any] = field(default_factory=list)
    times_us: list[Any] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Result:
        """The row in a file; one without times where there is none."""
        return from_json(cls, read_json(path))

    @property
    def facts(self) -> dict[str, Any]:
        """What is there. NaN, which equals nothing, is no JSON."""
        return {name: value for name, value in vars(self).items() if value not in (None, "", []) and value == value}

    def add_run(self, times_ms: list[float], **read: float | None) -> None:
        """One more run: its latencies, and what else was read in it, under the names of this class's fields."""
        own = {name: value for name, value in read.items() if value is not None}
        self.runs.append({"count": len(times_ms), "median_ms": float(np.median(times_ms)), **own})
        self.times_us.append([round(ms * 1e3, 1) for ms in times_ms])
        self.settle()

    def add_pipeline(self, record: Record) -> None:
        """One more run of a pipeline, which has several batches in flight: its pace is the window's over its batches."""
        told = {f"{name}_ms": value for name, value in {**(record.latency_ms or {}), **(record.parts_ms or {})}.items()}
        self.runs.append({"count": record.measured, **told, "ahead_ms": record.per_batch_ms})
        self.memory_mb = record.peak_device_memory_mb
        self.settle()

    def settle(self) -> None:
        """Make the row's figures of its runs."""
        for name in ("ahead_ms", "enqueue_ms", "h2d_ms", "compute_ms", "d2h_ms", "median_ms", "p95_ms", "p99_ms"):
            if values := [run[name] for run in self.runs if name in run]:
                setattr(self, name, float(np.median(values)))
        self.count = sum(run["count"] for run in self.runs)
        if self.times_us:
            times = np.concatenate(self.times_us) / 1e3
            self.images_per_s = (self.batch or 0) * 1e3 / float(times.mean())
            quantiles = np.percentile(times, [0, 50, 90, 95, 99, 100]).tolist()
            self.min_ms, self.median_ms, self.p90_ms, self.p95_ms, self.p99_ms, self.max_ms = quantiles
        if self.count < ENOUGH:
            self.p99_ms = None
        self.ahead_images_per_s = (self.batch or 0) * 1e3 / self.ahead_ms if self.ahead_ms else None

    @property
    def doubtful(self) -> bool:
        """Whether its time must not be read without a warning."""
        agreement = self.agreement if self.agreement is not None else self.top1_agreement
        return agreement is not None and agreement < AGREES

    @property
    def name(self) -> str:
        return f"{self.engine} {self.precision}"

    @property
    def trained(self) -> str:
        """The weights, told apart from others of the same name."""
        return self.weights_name + f", SHA-256 {self.weights_sha256[:8]}…" * (self.weights_sha256 != self.weights_name)

    @property
    def shown(self) -> dict[str, Any]:
        return {**vars(self), "engine": f"{self.engine} {WARNING}" if self.doubtful else self.engine}


SPEED, WHERE, ACCURACY = (columns(Result, table=table) for table in ALL)
WIDE = 144  # characters that a terminal needs for all columns; a narrower one has the rest in engines.md
NARROW = (
    columns(Result, "engine precision batch median_ms p99_ms images_per_s ahead_ms"),
    columns(Result, "engine precision batch enqueue_ms h2d_ms compute_ms d2h_ms largest_difference", table="parts"),
)
DOUBT = f"{WARNING} names the class of FP32 for less than {AGREES:.0%} of the images: the time of another computation."


def report(folder: Path) -> None:
    """Print the tables and write them, as JSON, Markdown and pictures, from the rows that are there."""
    found = [Result.read(path) for path in sorted((folder / "rows").glob("*.json"))]
    if not found:
        raise EnvironmentFault(f"{folder / 'rows'} has no engine's row.")
    found.sort(key=lambda row: (row.model, row.batch, ORDER.get(row.name, len(ORDER))))
    timed = [row for row in found if row.median_ms is not None]
    lines = page(found, SPEED, WHERE)
    show("\n".join(page(found, *NARROW) if out.is_terminal and out.width < WIDE else lines))
    kept = [{name: value for name, value in row.facts.items() if name != "times_us"} for row in found]
    write_json(folder / "engines.json", {"conditions": lines[0], "rows": kept})
    write_text(folder / "engines.md", "\n".join(lines))
    written = ["engines.json, .md"]
    try:
        for (model, weights), mine in grouped(((row.model, row.weights_name), row) for row in timed).items():
            stem = Path(weights).stem
            written.append(draw(stem if stem.startswith(model) else f"{model}-{stem}", mine, folder))
    except ImportError:
        out.print("no pictures: matplotlib is not installed (pip install matplotlib)", style="yellow", markup=False)
    out.print(f"written: {folder}/{', '.join(written)}", markup=False)


def page(found: Sequence[Result], speed: Sequence[Column], where: Sequence[Column]) -> list[str]:
    """The tables with these columns, in Markdown."""
    rows, exact = [row for row in found if row.median_ms is not None], [row for row in found if row.top1 is not None]
    lines = [conditions(rows), ""]
    for (model, weights), mine in grouped(((row.model, row.weights_name), row) for row in rows).items():
        cells = [row.shown for row in mine]
        lines += [f"## {model} (weights: {weights}), ms a batch", "", *grid(cells, speed, words=2), ""]
        lines += [f"{DOUBT}\n"] * any(row.doubtful for row in mine)
        lines += [f"### {model}: where a batch's time goes, ms", "", *grid(cells, where, words=2), ""]
    for (model, weights, *_), mine in grouped(
        ((row.model, row.trained, row.labelled, row.images), row) for row in exact
    ).items():
        accuracy = grid([row.shown for row in mine], ACCURACY, words=2)
        lines += [f"## Accuracy of {model} on {mine[0].images} labelled images (weights: {weights})", "", *accuracy, ""]
    if commands := [f"- {row.model} {row.precision}: `{row.command}`" for row in rows if row.command]:
        lines += ["## The same by trtexec", "", *dict.fromkeys(commands), ""]
    if whose := grouped((row.problem, (row.name, f"{row.model} {row.batch}")) for row in found if row.problem):
        listed = {problem: [", ".join(dict.fromkeys(names)) for names in zip(*own)] for problem, own in whose.items()}
        problems = (f"- {engines} ({tasks}): {problem}" for problem, (engines, tasks) in listed.items())
        lines += ["## Not run", "", *problems, ""]
    return lines


def draw(name: str, rows: list[Result], folder: Path) -> str:
    """Write NAME.svg, for every batch size the time of a batch one ahead and of one by itself; returns its name."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("Agg")
    pyplot.rcParams.update({"svg.hashsalt": "ladder", "svg.fonttype": "none", "text.parse_math": False})
    pyplot.rcParams.update({"font.size": 9, "axes.titlesize": 9, "figure.titlesize": 9, "axes.ymargin": 0.02})
    batches = sorted({row.batch for row in rows})
    names = sorted(dict.fromkeys(row.name for row in rows), key=lambda name: ORDER.get(name, len(ORDER)))
    size = (3.5 + 2.2 * len(batches), 0.25 * len(names) + 0.8)
    figure, charts = pyplot.subplots(1, len(batches), sharey=True, squeeze=False, layout="constrained", figsize=size)
    for axes, batch in zip(charts[0], batches):
        for row in (each for each in rows if each.batch == batch):
            level, how = names.index(row.name), {"color": PALETTE.get(row.engine.split()[0], "#999999")}
            ahead = row.ahead_ms or 0.0
            alone = 0.0 if row.min_ms is None else row.median_ms or 0.0  # a pipeline's is the latency of several in flight
            axes.barh(level, alone, height=0.8, alpha=0.35, **how)
            axes.barh(level, ahead, height=0.4, **how)
            first, second = (f"{ms:.3g}" if ms < 999.5 else f"{ms:,.0f}" for ms in (ahead or alone, alone))
            said = f"{first} ({second})" if ahead and alone else first
            axes.text(max(ahead, alone), level, f" {said}{' (!)' * row.doubtful}", va="center", fontsize=8)
        axes.set_xlim(0, 1.5 * axes.dataLim.x1)
        axes.set_title(f"batch {batch}", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(left=False)
    charts[0][0].set_yticks(range(len(names)), names)
    charts[0][0].invert_yaxis()
    which = ", the next one always submitted before it; pale, in (): by itself" * any(row.ahead_ms for row in rows)
    figure.suptitle(f"{name}, ms a batch{which}")
    with atomic_path(folder / f"{name}.svg") as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return f"{name}.svg"


def conditions(rows: list[Result]) -> str:
    """What the numbers were obtained on."""
    if not rows:
        return "No engine has been timed."
    devices, hosts, versions = (
        ", ".join(dict.fromkeys(vars(row)[name] for row in rows if vars(row)[name])) for name in ("device", "host", "version")
    )
    drivers = [f"driver for CUDA {driver}" for driver in dict.fromkeys(row.driver for row in rows if row.driver)]
    dates = sorted({row.date for row in rows if row.date})
    days = " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]]))
    return "; ".join([", ".join([devices, *drivers]), f"host: {hosts}", versions, f"{days}:"])
