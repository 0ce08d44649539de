"""Pictures of a comparison: a bar chart of rates, and the distribution of each contender's latencies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

from peers.rows import Row

PALETTE = {"PyTorch": "#D55E00", "ONNX": "#0072B2", "TensorRT": "#009E73"}
BOX = {"vert": False, "whis": (1, 99), "showfliers": False, "widths": 0.6, "patch_artist": True, "medianprops": {"color": "k"}}


def draw(rows: list[Row], folder: Path) -> list[str]:
    """Write MODEL-rates and MODEL-latency (.svg and .png) for every model; returns their names."""
    matplotlib.use("Agg")
    pyplot.rcParams.update({"svg.hashsalt": "ladder", "font.size": 9, "svg.fonttype": "none"})
    written = []
    for model in dict.fromkeys(row.model for row in rows):
        batches = sorted({row.batch for row in rows if row.model == model})
        groups = [[row for row in rows if (row.model, row.batch) == (model, batch)] for batch in batches]
        size = (4.2 * len(groups) + 2, 0.34 * sum(map(len, groups)) / len(groups) + 1.2)
        for name, label, fill in (("rates", "images a second", bars), ("latency", "ms, one batch at a time", boxes)):
            figure, axes = pyplot.subplots(1, len(groups), figsize=size, squeeze=False)
            for axis, batch, mine in zip(axes[0], batches, groups):
                fill(axis, mine, [PALETTE[row.engine.split()[0].rstrip(",")] for row in mine])
                axis.set_yticks(range(len(mine)), [f"{row.engine} {row.precision}" for row in mine])
                axis.tick_params(labelleft=axis is axes[0, 0])
                axis.set_title(f"{model}, batch {batch}", loc="left", fontsize=10)
                axis.set_xlabel(label)
                axis.spines[["top", "right"]].set_visible(False)
                axis.invert_yaxis()
            figure.tight_layout()
            path = folder / f"{model}-{name}"
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
            figure.savefig(path.with_suffix(".png"), dpi=110)
            pyplot.close(figure)
            written.append(f"{path.name} (.svg, .png)")
    return written


def bars(axis: Any, rows: list[Row], colours: list[str]) -> None:
    rates = [row.images_per_s or 0 for row in rows]
    drawn = axis.barh(range(len(rows)), rates, color=colours, height=0.7)
    axis.bar_label(drawn, [f" {rate:,.0f}" for rate in rates], fontsize=8)
    axis.set_xlim(0, 1.2 * max(rates))


def boxes(axis: Any, rows: list[Row], colours: list[str]) -> None:
    """Box: quartiles; whiskers: 1st and 99th percentile. A rate without latencies (a pipeline) is a diamond."""
    for position, (row, colour) in enumerate(zip(rows, colours)):
        if row.times_ms:
            axis.boxplot([row.times_ms], positions=[position], boxprops={"facecolor": colour}, **BOX)
        else:
            axis.plot(row.median_ms, position, "D", color=colour)
    axis.set(xscale="log", ylim=(-0.6, len(rows) - 0.4))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="x", which="both", labelsize=7)
