"""The rows of a comparison: a file for each contender and task, and the tables and pictures that are made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from common.console import out
from common.files import column, columns, grid, read_json, write_json, write_text
from common.record import from_json
from peers.contenders import CONTENDERS

PALETTE = {"PyTorch": "#D55E00", "ONNX": "#0072B2", "TensorRT": "#009E73"}
BOTH, EXACT = ("main", "accuracy"), ("accuracy",)


@dataclass
class Result:
    """What a contender came to on a task: its speed, its accuracy if that was asked for, the ``problem`` that it had.

    Differences are shares of the largest logit where they do not say otherwise. What a row does not have is None.
    """

    engine: str = column("engine", tables=BOTH)  # the contender's name
    precision: str = column("precision", tables=BOTH)
    model: str = ""
    weights_name: str = ""
    weights_sha256: str = ""
    transfers: str = ""  # "in" the time or "out" of it
    host: str = ""
    date: str = ""
    batch: int = column("batch")
    version: str | None = None
    device: str | None = None
    count: int | None = None
    min_ms: float | None = column("min", "{:.3f}")
    median_ms: float | None = column("median", "{:.3f}")  # of a pipeline, which has a rate alone: its window's mean
    p90_ms: float | None = column("p90", "{:.3f}")
    p99_ms: float | None = column("p99", "{:.3f}")
    max_ms: float | None = column("max", "{:.3f}")
    images_per_s: float | None = column("images/s", "{:,.0f}")
    memory_mb: float | None = column("device MB", "{:,.0f}")
    prepare_s: float | None = column("prepare, s", "{:.1f}")
    build_s: float | None = column("build, s", "{:.1f}")
    largest_difference: float | None = column("off FP32", "{:.1e}")
    top1_agreement: float | None = column("same top-1", "{:.0%}")
    images: int | None = None  # that the accuracy is of
    top1: float | None = column("top-1", "{:.2%}", EXACT)
    top5: float | None = column("top-5", "{:.2%}", EXACT)
    agreement: float | None = column("agrees with FP32", "{:.2%}", EXACT)
    largest_logit_difference: float | None = column("largest logit difference", "{:.3f}", EXACT)
    largest_logit: float | None = column("of", "{:.2f}", EXACT)
    problem: str | None = None

    @classmethod
    def read(cls, path: Path) -> Result:
        """The row in a file; one without times where there is none."""
        return from_json(cls, read_json(path))

    @property
    def facts(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value not in (None, "")}


SPEED, ACCURACY = (columns(Result, table=table) for table in BOTH)


def report(folder: Path) -> None:
    """Print the tables and write them, as JSON, Markdown and pictures, from the rows that are there."""
    found = [Result.read(path) for path in sorted((folder / "rows").glob("*.json"))]
    order = [(contender.name, contender.precision) for contender in CONTENDERS]
    found.sort(key=lambda row: (row.model, row.batch, order.index((row.engine, row.precision))))
    rows, exact = [row for row in found if row.median_ms is not None], [row for row in found if row.top1 is not None]
    lines, kinds = [conditions(rows), ""], dict[tuple[str, ...], list[Result]]()
    for row in rows:
        kinds.setdefault((row.model, row.weights_name, row.transfers), []).append(row)
    for (model, weights, transfers), mine in kinds.items():
        lines += [
            f"## {model} (weights: {weights}), transfers {'in' if transfers == 'in' else 'out of'} the time, ms a batch",
            "",
        ]
        lines += [*grid(list(map(vars, mine)), SPEED, words=2), ""]
    if exact:
        accuracy = grid([vars(row) for row in exact], ACCURACY, words=2)
        lines += [f"## Accuracy on {exact[0].images} labelled images (weights: {exact[0].weights_name})", "", *accuracy, ""]
    if problems := not_run(found):
        lines += ["## Not run", "", *problems, ""]
    (out if out.is_terminal else Console(width=175, highlight=False)).print(Markdown("\n".join(lines)))
    write_json(folder / "engines.json", {"conditions": lines[0], "rows": [row.facts for row in found]})
    write_text(folder / "engines.md", "\n".join(lines))
    written = ["engines.json, .md"]
    try:
        written += draw(kinds, folder)
    except ImportError:
        out.print("no pictures: matplotlib is not installed (pip install matplotlib)", style="yellow", markup=False)
    out.print(f"written: {folder}/{', '.join(written)}", markup=False)


def draw(kinds: dict[tuple[str, ...], list[Result]], folder: Path) -> list[str]:
    """Write MODEL-rates.svg for every table, a second one of a model as MODEL-rates-2.svg: bar charts, one for each batch size;
    returns the files' names."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("Agg")
    pyplot.rcParams.update({"svg.hashsalt": "ladder", "font.size": 9, "svg.fonttype": "none"})
    written: list[str] = []
    for (model, _, transfers), rows in kinds.items():
        batches = sorted({row.batch for row in rows})
        groups = [[row for row in rows if row.batch == batch] for batch in batches]
        names = [[f"{row.engine} {row.precision}" for row in mine] for mine in groups]
        size = (4.2 * len(groups) + 2, 0.34 * sum(map(len, groups)) / len(groups) + 1.2)
        figure, charts = pyplot.subplots(1, len(groups), figsize=size, squeeze=False)
        for axes, batch, mine, labels in zip(charts[0], batches, groups, names):
            rates = [row.images_per_s or 0 for row in mine]
            colours = [PALETTE[row.engine.split()[0].rstrip(",")] for row in mine]
            bars = axes.barh(range(len(mine)), rates, color=colours, height=0.7)
            axes.bar_label(bars, [f" {rate:,.0f}" for rate in rates], fontsize=8)
            axes.set_xlim(0, 1.2 * max(rates))
            axes.set_yticks(range(len(mine)), labels)
            axes.tick_params(labelleft=axes is charts[0, 0] or labels != names[0])
            axes.set_title(f"{model}, batch {batch}" + ", transfers out" * (transfers == "out"), loc="left", fontsize=10)
            axes.set_xlabel("images a second")
            axes.spines[["top", "right"]].set_visible(False)
            axes.invert_yaxis()
        figure.tight_layout()
        earlier = sum(name.startswith(f"{model}-rates") for name in written)
        written.append(f"{model}-rates{f'-{earlier + 1}' * bool(earlier)}.svg")
        figure.savefig(folder / written[-1], metadata={"Date": None})
        pyplot.close(figure)
    return written


def not_run(rows: list[Result]) -> list[str]:
    """A line for each problem, with the contenders that had it."""
    whose: dict[str, list[str]] = {}
    for row in rows:
        if row.problem:
            whose.setdefault(row.problem, []).append(f"{row.engine} {row.precision}")
    return [f"- {', '.join(dict.fromkeys(names))}: {problem}" for problem, names in whose.items()]


def conditions(rows: list[Result]) -> str:
    """What the numbers were obtained on."""
    devices, hosts, versions = (
        ", ".join(dict.fromkeys(vars(row)[name] for row in rows)) for name in ("device", "host", "version")
    )
    dates = sorted({row.date for row in rows})
    return f"{devices}; host: {hosts}; {versions}; {' to '.join(dict.fromkeys([*dates[:1], *dates[-1:]]))}:"
