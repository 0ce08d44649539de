"""What users would do instead, measured beside the ladder: the loops of peers/pytorch.py.

    scripts/profile_all.sh --out out/run --batches 60 --measure 50
    python -m scripts.peers out/run

Runs every loop with the batches that the stages in DIR were run with, and writes DIR/peers.json and DIR/peers.md: each as a
ratio to the fastest stage. PyTorch may live in another Python: --torch-python.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import program
from common.console import out
from common.errors import EnvironmentFault
from common.files import write_json, write_text
from common.record import Record
from peers.processes import run_quietly
from peers.pytorch import LOOPS


def table(best: Record, peers: list[Record], problem: str | None) -> str:
    lines = [f"{best}; {best.measured} measured batches:", ""]
    lines += [f"| instead of `{best.stage}` | ms a batch | times as long | engine | precision |", "|---|---:|---:|---|---|"]
    for name, each in [(f"`{best.stage}`, the fastest stage", best), *((peer.stage, peer) for peer in peers)]:
        ratio = each.per_batch_ms / best.per_batch_ms
        lines.append(f"| {name} | {each.per_batch_ms:.3f} | {ratio:.2f} | {each.engine} | {each.precision} |")
    return "\n".join([*lines, "", *([f"Not run: {problem}", ""] if problem else [])])


def main() -> int:
    p = program.parser(__doc__)
    p.add_argument("directory", type=Path, metavar="DIR")
    p.add_argument("--torch-python", default=sys.executable, metavar="PATH", help="the Python that has PyTorch")
    p.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each loop (default: %(default)s)")
    p.add_argument("--table-only", action="store_true", help="make the table again from the records that are there")
    p.add_argument("loops", nargs="*", metavar="NAME", help=f"only these (default: {', '.join(LOOPS)})")
    options = p.parse_args()
    folder, problem = options.directory / "peers", None
    stages = Record.read_all(options.directory)  # but none whose batches are of other sizes as well: the peers run one
    stages = [stage for stage in stages if round((stage.images_per_s or 0) * stage.per_batch_ms / 1e3) == (stage.batch or 0)]
    if not stages:
        raise EnvironmentFault(f"{options.directory} holds no record. Run scripts/profile_all.sh first.")
    best = min(stages, key=lambda stage: stage.per_batch_ms)
    if not options.table_only:
        size = ["--batch", best.batch, "--batches", best.batches, "--measure", best.measured, "--repeats", options.repeats]
        where = ["--out", folder.resolve(), "--device", "cpu" if best.backend == "simulated" else "cuda"]
        problem = run_quietly("-m", "peers.pytorch", *options.loops, *size, *where, python=options.torch_python)
    peers = Record.read_all(folder)
    text, facts = table(best, peers, problem), {"best": vars(best), "peers": [vars(peer) for peer in peers]}
    write_json(options.directory / "peers.json", {**facts, "problem": problem})
    write_text(options.directory / "peers.md", text)
    out.print(text, markup=False)
    return 1 if problem else 0


if __name__ == "__main__":
    program.run(main)
