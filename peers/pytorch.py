"""What users write in PyTorch instead of a TensorRT pipeline: the ladder's workload, host to host, in eight loops.

    scripts/profile_all.sh --out out/run
    python -m peers.pytorch out/run                 with a Python that has PyTorch; it needs no TensorRT

Same model, seed, batches, post-processing and measured window as the stages in DIR; nine windows of each loop in five
processes, dealt in rounds, none left out. (A loop is compiled once: PyTorch keeps what it made for the processes after it.)
Writes DIR/peers/NAME.json for each loop and DIR/peers.md: each as a ratio to the fastest stage that is sent the same, floats
or bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import program
from common.children import record_of
from common.console import err, show
from common.errors import EnvironmentFault, UsageFault
from common.files import grid, write_text
from common.options import positive
from common.record import Record
from peers.loops import LOOPS

WINDOWS = 2  # in each process but the first, as the harness has the stages
COLUMNS = [
    ("instead of the ladder", "name", "{}"),
    ("ms a batch", "per_batch_ms", "{:.3f}"),
    ("times as long", "ratio", "{:.2f}"),
    ("fastest", "fastest", "{:.3f}"),
    ("slowest", "slowest", "{:.3f}"),
    ("windows", "windows", "{}"),
]


def table(stages: list[Record], peers: list[Record]) -> str:
    """Every loop beside the fastest stage that is sent the same, in Markdown, and how much longer the best loops take."""
    best = {stage.input: stage for stage in sorted(stages, key=lambda stage: -stage.per_batch_ms)}
    fastest, several = min(stages, key=lambda stage: stage.per_batch_ms), len(best) > 1
    lines = [line(f"`{one.stage}`, the fastest stage" + f" sent {kind}" * several, one, one) for kind, one in best.items()]
    lines += [line(peer.stage, peer, best.get(peer.input, fastest)) for peer in peers]
    said = []
    for kind, stage in best.items():
        alike = [peer for peer in peers if best.get(peer.input, fastest) is stage]
        for first in sorted(alike, key=lambda peer: peer.per_batch_ms)[:1]:
            ratio = f"takes {first.per_batch_ms / stage.per_batch_ms:.2f} times as long."
            said += [f"The best loop{f' sent {kind}' * several}, {first.stage}, {ratio}", ""]
    title = f"{fastest}; {', '.join(dict.fromkeys(str(peer.engine) for peer in peers))}:"
    return "\n".join([title, "", *grid(lines, COLUMNS), "", *said])


def line(name: str, record: Record, best: Record) -> dict[str, object]:
    times, ms = record.repeats_ms or [record.per_batch_ms], record.per_batch_ms
    found = {"name": name, "per_batch_ms": ms, "ratio": ms / best.per_batch_ms}
    return {**found, "fastest": min(times), "slowest": max(times), "windows": len(times)}


def main() -> int:
    p = program.parser(__doc__)
    p.add_argument("directory", type=Path, metavar="DIR")
    p.add_argument("loops", nargs="*", metavar="LOOP", help=f"default: all of {', '.join(LOOPS)}")
    processes = f"of each loop, with {WINDOWS} windows each, the first with one (default: %(default)s)"
    p.add_argument("--processes", type=positive, default=5, metavar="N", help=processes)
    p.add_argument("--measure", type=positive, metavar="N", help="batches in a window (default: 1 s, at least 100)")
    p.add_argument("--table-only", action="store_true", help="make the table again from the records that are there")
    options = p.parse_args()
    if unknown := set(options.loops) - set(LOOPS):
        p.error(f"there is no loop {', '.join(sorted(unknown))}")
    stages = Record.read_all(options.directory)  # but none whose batches are of other sizes as well: the peers run one
    stages = [stage for stage in stages if round((stage.images_per_s or 0) * stage.per_batch_ms / 1e3) == (stage.batch or 0)]
    stages = [stage for stage in stages if not stage.faulty]
    if not stages:
        raise EnvironmentFault(f"{options.directory} holds no record. Run scripts/profile_all.sh first.")
    one = stages[0]
    if one.backend == "simulated" and not (options.measure or options.table_only):
        raise UsageFault(f"{options.directory} is of a modelled GPU, and these loops want a real one; --measure 2 tries a CPU.")
    options.batch, options.device = one.batch or 1, "cpu" if one.backend == "simulated" else "cuda"
    place = "cpu" if one.backend == "simulated" else one.device
    failed = 0 if options.table_only else run_all(options)
    peers = [peer for peer in Record.read_all(options.directory / "peers") if peer.batch == one.batch and peer.device == place]
    text = table(stages, peers)
    write_text(options.directory / "peers.md", text)
    show(text)
    return failed


def run_all(options: argparse.Namespace) -> int:
    """Run the loops in rounds and write their records; 1 where one could not be run."""
    runs: dict[str, list[Record]] = {name: [] for name in options.loops or LOOPS}
    failed, measure = 0, ["--measure", options.measure] if options.measure else []
    for _ in range(options.processes):
        for name in list(runs):
            windows = WINDOWS if runs[name] else 1
            what = ["--batch", options.batch, "--device", options.device, "--windows", windows, *measure]
            try:
                record = record_of("-m", "peers.loops", name, *what)
            except EnvironmentFault as fault:  # compilers fail in ways of their own; the others are still worth their time
                err.print(f"  {name:<32} not run: {fault}", style="red", markup=False)
                failed = 1
                del runs[name]
                continue
            runs[name].append(record)
            Record.of(runs[name]).write(options.directory / "peers" / f"{name}.json")
            err.print(f"  {name:<32} {record.per_batch_ms:9.3f} ms a batch")
    return failed


if __name__ == "__main__":
    program.run(main)
