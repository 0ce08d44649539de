"""trtexec beside the table: its command for each of our rows, and its measurements read as one more row.

    python -m peers.trtexec times.json --model resnet50 --precision fp16 --batch 1 --out out/engines
    python -m scripts.compare_engines --out out/engines --engines none      the tables again, with that row in them

times.json is what `trtexec --exportTimes=times.json` wrote. Its percentiles are made anew from the single times, as all others
are. Its latency is the sum of a batch's H2D, compute and D2H, without what the host adds; its compute holds against ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from common import program
from common.errors import UsageFault
from common.files import write_json
from common.options import positive
from common.plans import ROOT
from export import models
from peers.rows import Result

PARTS = {"h2d_ms": "h2dMs", "compute_ms": "computeMs", "d2h_ms": "d2hMs"}
SHORTEST_MS, LONGEST_MS = 1e-4, 1e9  # what a row can tell from nothing, and adds up


def row_of(times: Any, name: str) -> Result:
    """A row of what ``--exportTimes`` wrote. Raises ``UsageFault`` for anything else, ``name`` being the file's."""
    try:
        found = {ours: [float(each[theirs]) for each in times] for ours, theirs in PARTS.items()}
        latencies = [float(each["latencyMs"]) for each in times]
        enqueued = [each["endEnqMs"] - each["startEnqMs"] for each in times if "endEnqMs" in each]
        spans = [(float(each["startH2dMs"]), float(each["endD2hMs"])) for each in times]
        span_ms = spans[-1][1] - spans[0][0]
        told = np.array([*latencies, span_ms, *enqueued, *(ms for values in found.values() for ms in values)], float)
        if not (told.min() >= 0 and told.max() <= LONGEST_MS and min(span_ms, *latencies) >= SHORTEST_MS):  # nor NaN
            raise ValueError
    except (LookupError, TypeError, ValueError, OverflowError):
        raise UsageFault(f"{name} is not what trtexec --exportTimes writes.") from None
    medians = {ours: float(np.median(values)) for ours, values in {**found, "enqueue_ms": enqueued}.items() if values}
    row = Result("trtexec", version="trtexec")
    # not where copies and compute took turns, as by --exposeDMA
    ahead = any(begun < ended for (_, ended), (begun, _) in zip(spans, spans[1:]))
    row.add_run(latencies, ahead_ms=span_ms / len(times) if ahead else None, **medians)
    return row


def main() -> None:
    p = program.parser(__doc__)
    p.add_argument("times", type=Path, metavar="TIMES.json", help="what trtexec --exportTimes wrote")
    p.add_argument("--model", choices=models.MODELS, default="resnet18")
    p.add_argument("--weights", default="random", metavar="random|imagenet|FILE", help="as the other rows' (default: random)")
    p.add_argument("--precision", choices=("fp32", "fp16", "int8"), required=True)
    p.add_argument("--batch", type=positive, required=True, metavar="N")
    p.add_argument("--device", default="GPU", metavar="NAME", help="of the GPU that it ran on (default: %(default)s)")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "engines", metavar="DIR", help="default: out/engines")
    options = p.parse_args()
    try:
        times = json.loads(options.times.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        times = None
    row = row_of(times, str(options.times))
    row.model, row.weights_name, row.precision = options.model, Path(options.weights).name, options.precision
    row.batch, row.device = options.batch, options.device
    row.settle()
    name = f"trtexec-{options.model}-{options.precision}-b{options.batch}.json"
    write_json(options.out / "rows" / name, row.facts, indent=None)


if __name__ == "__main__":
    program.run(main)
