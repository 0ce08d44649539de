"""Pictures of a comparison: for each model a bar chart of its engines' rates."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib import pyplot

from peers.rows import Row

PALETTE = {"PyTorch": "#D55E00", "ONNX": "#0072B2", "TensorRT": "#009E73"}


def draw(rows: list[Row], folder: Path) -> list[str]:
    """Write MODEL-rates.svg for every model, a chart for each batch size; returns the files' names."""
    matplotlib.use("Agg")
    pyplot.rcParams.update({"svg.hashsalt": "ladder", "font.size": 9, "svg.fonttype": "none"})
    written = []
    for model in dict.fromkeys(row.model for row in rows):
        batches = sorted({row.batch for row in rows if row.model == model})
        groups = [[row for row in rows if (row.model, row.batch) == (model, batch)] for batch in batches]
        size = (4.2 * len(groups) + 2, 0.34 * sum(map(len, groups)) / len(groups) + 1.2)
        figure, charts = pyplot.subplots(1, len(groups), figsize=size, squeeze=False)
        for axes, batch, mine in zip(charts[0], batches, groups):
            rates = [row.images_per_s or 0 for row in mine]
            colours = [PALETTE[row.engine.split()[0].rstrip(",")] for row in mine]
            bars = axes.barh(range(len(mine)), rates, color=colours, height=0.7)
            axes.bar_label(bars, [f" {rate:,.0f}" for rate in rates], fontsize=8)
            axes.set_xlim(0, 1.2 * max(rates))
            axes.set_yticks(range(len(mine)), [f"{row.engine} {row.precision}" for row in mine])
            axes.tick_params(labelleft=axes is charts[0, 0])
            axes.set_title(f"{model}, batch {batch}", loc="left", fontsize=10)
            axes.set_xlabel("images a second")
            axes.spines[["top", "right"]].set_visible(False)
            axes.invert_yaxis()
        figure.tight_layout()
        figure.savefig(folder / f"{model}-rates.svg", metadata={"Date": None})
        pyplot.close(figure)
        written.append(f"{model}-rates.svg")
    return written
