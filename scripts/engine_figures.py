"""Pictures of an engine comparison: a bar chart of rates, and the distribution of each engine's latencies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PALETTE = {"PyTorch": "#D55E00", "ONNX": "#0072B2", "TensorRT": "#009E73"}


def colour(row: dict[str, Any]) -> str:
    return next(value for name, value in PALETTE.items() if row["engine"].startswith(name))


def draw(rows: list[dict[str, Any]], folder: Path) -> list[str]:
    """Write MODEL-rates and MODEL-latency (.svg and .png) for every model; returns their names."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "ladder", "font.size": 9, "svg.fonttype": "none"})
    written = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        batches = sorted({row["batch"] for row in mine})
        for name, title, one in (("rates", "images a second", bars), ("latency", "ms, one batch at a time", boxes)):
            size = (4.2 * len(batches) + 2, 0.34 * len(mine) / len(batches) + 1.2)
            figure, axes = pyplot.subplots(1, len(batches), figsize=size, squeeze=False)
            for axis, batch in zip(axes[0], batches):
                one(axis, [row for row in mine if row["batch"] == batch], first=axis is axes[0, 0])
                axis.set_title(f"{model}, batch {batch}", loc="left", fontsize=10)
                axis.set_xlabel(title)
                axis.spines[["top", "right"]].set_visible(False)
                axis.invert_yaxis()
            figure.tight_layout()
            path = folder / f"{model}-{name}"
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
            figure.savefig(path.with_suffix(".png"), dpi=110)
            pyplot.close(figure)
            written.append(f"{path.name} (.svg, .png)")
    return written


def titles(axis: Any, rows: list[dict[str, Any]], first: bool) -> None:
    axis.set_yticks(range(len(rows)), [f"{row['engine']} {row['precision']}" if first else "" for row in rows])


def bars(axis: Any, rows: list[dict[str, Any]], first: bool) -> None:
    axis.barh(range(len(rows)), [row["images_per_s"] for row in rows], color=[colour(row) for row in rows], height=0.7)
    for position, row in enumerate(rows):
        axis.text(row["images_per_s"], position, f" {row['images_per_s']:,.0f}", va="center", fontsize=8)
    axis.set_xlim(0, 1.2 * max(row["images_per_s"] for row in rows))
    titles(axis, rows, first)


def boxes(axis: Any, rows: list[dict[str, Any]], first: bool) -> None:
    """Box: quartiles; whiskers: 1st and 99th percentile. A rate without latencies (a pipeline) is a diamond."""
    for position, row in enumerate(rows):
        if row.get("times_ms"):
            drawn = axis.boxplot([row["times_ms"]], positions=[position], vert=False, whis=(1, 99), showfliers=False,
                                 widths=0.6, patch_artist=True, medianprops={"color": "black"})
            drawn["boxes"][0].set_facecolor(colour(row))
        else:
            axis.plot(row["median_ms"], position, "D", color=colour(row))
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="x", which="both", labelsize=7)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    titles(axis, rows, first)
