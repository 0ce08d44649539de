"""The timelines as pictures, SVG and PNG, for pages that cannot embed HTML."""

from __future__ import annotations

from pathlib import Path

from scripts.drawing import COLOURS, TITLES, Timeline


def draw(drawn: list[Timeline], ms_wide: float, path: Path) -> None:
    """Write ``path`` (.svg and .png): the timelines above one another, all to one time scale of ``ms_wide`` ms."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "ladder", "font.size": 9, "svg.fonttype": "none"})
    figure, axes = pyplot.subplots(len(drawn), 1, figsize=(10, 1.9 * len(drawn) + 0.4), sharex=True, squeeze=False)
    for axis, one in zip(axes[:, 0], drawn):
        for position, (name, row) in enumerate(one.rows.items()):
            for bar in row:
                axis.barh(position, bar.end - bar.start, left=bar.start, height=0.7, color=COLOURS[name],
                          alpha=0.62 if bar.batch % 2 and bar.batch >= 0 else 1.0,
                          fill=name != "limit", edgecolor="#666666" if name == "limit" else "none")
                if bar.end - bar.start > ms_wide / 40 and bar.batch >= 0:
                    axis.text((bar.start + bar.end) / 2, position, str(bar.batch), ha="center", va="center", fontsize=7)
        axis.axvspan(0, one.length_ms, color="#000000", alpha=0.05, linewidth=0)
        axis.set_yticks(range(len(one.rows)), [TITLES[name] for name in one.rows])
        axis.invert_yaxis()
        axis.set_xlim(0, ms_wide)
        axis.spines[["top", "right"]].set_visible(False)
        title = f"{one.stage}: {one.length_ms / one.batches:.3f} ms a batch, limit {one.limit_ms:.3f}"
        axis.set_title(title, loc="left", fontsize=10)
    axes[-1, 0].set_xlabel("ms from the start of the measured window; a number is a batch's")
    figure.tight_layout()
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=110)
    pyplot.close(figure)
