"""All the hostile tries, or as many as fit into a time, and a count of what came of them by kind.

python -m tests.fuzz                           all of them that end, and a thousand of each kind that does not
python -m tests.fuzz --seconds 60 --seed 7     a minute in all, the same one every time
python -m tests.fuzz cuda models --write docs/robustness.md
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from random import Random

from tests.fuzz.place import Place

KINDS = ("cuda", "tensorrt", "pictures", "models", "files", "options", "folders")
MARKS = ("<!-- counts -->\n", "<!-- end -->")


def outcomes(kind: str, place: Place, seed: int, seconds: float, most: int) -> Iterator[tuple[str, str | None]]:
    """What came of each try, and what was wrong with it, if anything was."""
    until = time.monotonic() + seconds
    for words, attempt in islice(import_module(f"tests.fuzz.{kind}").tries(place, Random(seed)), most):
        try:
            yield attempt(), None
        except AssertionError as error:
            yield "WRONG", f"{kind}: {words}: {error}"
        if time.monotonic() > until:
            return


def table(counts: dict[str, Counter[str]]) -> str:
    names = sorted({name for each in counts.values() for name in each})
    lines = [["kind", "tries", *names], ["---", *["---:"] * (len(names) + 1)]]
    lines += [[kind, f"{sum(each.values()):,}", *(f"{each[name]:,}" for name in names)] for kind, each in counts.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("kinds", nargs="*", metavar="KIND", help=f"default: {', '.join(KINDS)}")
    p.add_argument("--seconds", type=float, help="in all (default: until the tries end)")
    p.add_argument("--most", type=int, default=1000, help="of a kind without end (default: %(default)s)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    options = p.parse_args()
    counts, wrong, kinds = {}, [], options.kinds or KINDS
    for kind in kinds:
        counts[kind] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            most = sys.maxsize if kind in ("cuda", "tensorrt") else options.most
            seconds = options.seconds / len(kinds) if options.seconds else 1e9
            for outcome, problem in outcomes(kind, Place(Path(folder)), options.seed, seconds, most):
                counts[kind][outcome] += 1
                if problem:
                    wrong.append(problem)
                    print(problem, file=sys.stderr, flush=True)
    made = table(counts)
    print(made)
    if options.write:
        before, _, rest = options.write.read_text(encoding="utf-8").partition(MARKS[0])
        options.write.write_text(before + MARKS[0] + made + MARKS[1] + rest.partition(MARKS[1])[2], encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
