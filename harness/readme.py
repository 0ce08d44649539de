"""Rewrite the tables in README.md, docs/ and reports/ from the committed reports.

    python scripts/update_readme.py            rewrite
    python scripts/update_readme.py --check    exit 1 where a table is not what its report says, or of older rules

Between a mark and `<!-- end -->` stands

    <!-- table: reports/NAME/comparison.json -->      a report in five columns, and its advice
    <!-- step: reports/NAME/comparison.json A B -->   two of its stages, before and after
    <!-- file: reports/NAME/peers.md -->              a Markdown file, whole
"""

from __future__ import annotations

import re

from common import program
from common.errors import EnvironmentFault
from common.files import columns, grid, read_json, write_text
from common.plans import ROOT
from harness import tables
from harness.rows import RULES, Row, read_rows, steps

MARKED = re.compile(r"(<!-- (table|step|file): (\S+)((?: \S+)*?) -->\n).*?(<!-- end -->)", re.DOTALL)
QUOTED = {"stage": ("stage", "`{}`")}
ROUGH = {"per_batch_ms": ("ms a batch", "{:.2f}")}
TABLE = "stage per_batch_ms speedup_vs_previous speedup_vs_baseline limiter"
STEP = """
    stage per_batch_ms h2d_ms compute_ms postprocess_ms submit_ms overlap gpu_idle limit_ms percent_of_limit
    peak_device_memory_mb
"""


def filled(match: re.Match[str]) -> str:
    """A mark and what belongs between it and its end."""
    kind, path = match[2], ROOT / match[3]
    if kind == "file":
        made = path.read_text(encoding="utf-8")
    else:
        found = read_rows(path)
        assert found is not None, f"there is no report {path}"
        run, rows = found
        if read_json(path).get("rules") != RULES:
            raise EnvironmentFault(f"{match[3]} was made by other rules than {RULES}: run its stages again.")
        if kind == "table":
            outputs, *_, advice = tables.below(rows)
            shown = grid([row.shown for row in steps(rows)], columns(Row, TABLE, QUOTED | ROUGH))
            made = "\n".join([f"{run}:", "", *shown, "", outputs, advice, ""])
        else:
            stages = {row.stage: row.shown for row in rows}
            made = "\n".join([*grid([stages[name] for name in match[4].split()], columns(Row, STEP, QUOTED)), ""])
    return f"{match[1]}{made}{match[5]}"


def main() -> int:
    p = program.parser(__doc__)
    p.add_argument("--check", action="store_true", help="rewrite nothing")
    stale, only_check = [], p.parse_args().check
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "reports").glob("*.md"))]:
        before = path.read_text(encoding="utf-8")
        after = MARKED.sub(filled, before)
        if after != before:
            stale.append(path.name)
            if not only_check:
                write_text(path, after)
    print(f"{'stale' if only_check else 'rewritten'}: {', '.join(stale) or 'nothing'}")
    return 1 if stale and only_check else 0


if __name__ == "__main__":
    program.run(main)
