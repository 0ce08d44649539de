"""Rewrite the tables in README.md and reports/ from the committed reports.

    python scripts/update_readme.py            rewrite
    python scripts/update_readme.py --check    exit 1 where a table is not what its report says

Between a mark and `<!-- end -->` stands

    <!-- table: reports/NAME/comparison.json -->      the whole table of a report
    <!-- step: reports/NAME/comparison.json A B -->   two of its stages, before and after
    <!-- file: reports/NAME/peers.md -->              a Markdown file, whole
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from common.files import grid, write_text
from common.record import Conditions
from harness import tables
from harness.rows import Row, read_rows

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- (table|step|file): (\S+)((?: \S+)*?) -->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = [
    ("stage", "stage", "`{}`"),
    ("ms a batch", "per_batch_ms", "{:.2f}"),
    ("images/s", "images_per_s", "{:,.0f}"),
    ("× before", "speedup_vs_previous", "{:.2f}"),
    ("× baseline", "speedup_vs_baseline", "{:.2f}"),
    ("limit, ms", "limit_ms", "{:.2f}"),
    ("% of limit", "percent_of_limit", "{:.0f}"),
    ("limited by", "limiter", "{}"),
    ("copy hidden", "overlap", "{:.0%}"),
    ("outputs", "outputs", "{}"),
]


def table(report: Path) -> str:
    """A report's table in Markdown, with its conditions above and its advice below."""
    run, rows = stages(report)
    return tables.markdown(run, rows, COLUMNS, name="`{}`")


def stages(report: Path) -> tuple[Conditions, list[Row]]:
    found = read_rows(report)
    assert found is not None, f"there is no report {report}"
    return found


STEP = [
    ("stage", "stage", "`{}`"),
    ("ms a batch", "per_batch_ms", "{:.3f}"),
    ("spread", "spread", "{:.1%}"),
    ("H2D", "h2d_ms", "{:.3f}"),
    ("compute", "compute_ms", "{:.3f}"),
    ("post", "postprocess_ms", "{:.3f}"),
    ("submit", "submit_ms", "{:.3f}"),
    ("overlap", "overlap", "{:.0%}"),
    ("GPU idle", "gpu_idle", "{:.0%}"),
    ("limit", "limit_ms", "{:.3f}"),
    ("% of limit", "percent_of_limit", "{:.0f}"),
    ("memory MB", "peak_device_memory_mb", "{:,.0f}"),
]


def step(report: Path, names: list[str]) -> str:
    """Some stages of a report, as rows."""
    rows = {row.stage: vars(row) for row in stages(report)[1]}
    return "\n".join([*grid([rows[name] for name in names], STEP), ""])


def filled(match: re.Match[str]) -> str:
    kind, path = match[2], ROOT / match[3]
    made = table(path) if kind == "table" else step(path, match[4].split()) if kind == "step" else path.read_text()
    return f"{match[1]}{made}{match[5]}"


def rewritten(text: str) -> str:
    return MARKED.sub(filled, text)


def main() -> int:
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "reports").glob("*.md"))]:
        before = path.read_text(encoding="utf-8")
        after = rewritten(before)
        if after != before:
            stale.append(path.name)
            if "--check" not in sys.argv:
                write_text(path, after)
    print(f"{'stale' if '--check' in sys.argv else 'rewritten'}: {', '.join(stale) or 'nothing'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
