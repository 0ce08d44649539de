"""Rewrite the tables in README.md and reports/ from the committed reports.

    python scripts/update_readme.py            rewrite
    python scripts/update_readme.py --check    exit 1 where a table is not what its report says

A table stands between `<!-- table: reports/NAME/comparison.json -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from scripts import tables

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = [
    ("stage", "stage", "`{}`"), ("ms a batch", "per_batch_ms", "{:.2f}"), ("images/s", "images_per_s", "{:,.0f}"),
    ("× before", "speedup_vs_previous", "{:.2f}"), ("× baseline", "speedup_vs_baseline", "{:.2f}"),
    ("limit, ms", "limit_ms", "{:.2f}"), ("% of limit", "percent_of_limit", "{:.0f}"), ("limited by", "limiter", "{}"),
    ("copy hidden", "overlap", "{:.0%}"), ("outputs", "outputs_match", "{}"),
]


def table(report: Path) -> str:
    """A report's table in Markdown, with its conditions above and its advice below."""
    content = json.loads(report.read_text(encoding="utf-8"))
    return tables.markdown(content["run"], content["stages"], COLUMNS, name="`{}`")


def rewritten(text: str) -> str:
    return MARKED.sub(lambda match: f"{match[1]}{table(ROOT / match[2])}{match[3]}", text)


def main() -> int:
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "reports").glob("*.md"))]:
        before = path.read_text(encoding="utf-8")
        after = rewritten(before)
        if after != before:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(after, encoding="utf-8")
    print(f"{'stale' if '--check' in sys.argv else 'rewritten'}: {', '.join(stale) or 'nothing'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
