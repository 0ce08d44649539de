"""GPUs of one host side by side: what each does alone, and what they do at once.

    python -m scripts.side_by_side link --gpus 2               copies of page-locked memory, in and out
    python -m scripts.side_by_side 7_cuda_graph --gpus 2       a stage, a process a GPU; more options are the stage's
    python -m scripts.side_by_side 12_many_gpus --gpus 2 …     the same shards by N processes without Ray

What the GPUs share (the host's cores, its memory, a switch between it and them) shows as less than N times the first one's
rate. A copy is measured for the same seconds on all of them, a stage by its windows, of which the median counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import backend, program
from common.buffers import DeviceBuffer, copy_to_device_async, copy_to_host_async, page_locked
from common.children import last_line
from common.console import out
from common.cuda import Stream
from common.errors import EnvironmentFault, UsageFault
from common.files import grid, publish, read_json
from common.options import positive
from common.plans import ROOT
from harness.processes import killed_with_us

LINK, NBYTES, QUEUED = "link", 64 << 20, 8
WARM_S, MEASURED_S, MODELLED_S = 0.5, 1.0, 0.02  # of copies
READY_S, WAYS_S = 6.0, 2.5  # in which a process has begun to copy, and from one way to the other
WAYS = ("h2d", "d2h")
COLUMNS = [("what", "what", "{}"), ("GPUs", "gpus", "{}"), ("each", "each", "{}"), ("together", "together", "{:,.1f}")]
COLUMNS += [("unit", "unit", "{}"), ("of N × alone", "efficiency", "{:.1%}")]


def copy_for(way: str, start_s: float) -> float:
    """GB/s of copies one way from ``start_s`` of the system's clock on, for ``MEASURED_S``; of modelled time where it is."""
    host, here = page_locked((NBYTES,), "u1"), backend.current()
    clock_ns, modelled = here.clock_ns, here.simulator is not None  # there time has no noise, and memory is copied all the same
    warm_s, measured_s = (MODELLED_S, MODELLED_S) if modelled else (WARM_S, MEASURED_S)
    with DeviceBuffer(NBYTES) as device, Stream() as stream:

        def copies() -> None:
            for _ in range(QUEUED):
                if way == "h2d":
                    copy_to_device_async(device, host, stream)
                else:
                    copy_to_host_async(host, device, stream)
            stream.synchronize()

        time.sleep(0.0 if modelled else max(0.0, start_s - warm_s - time.time()))
        warm = clock_ns() + warm_s * 1e9
        while clock_ns() < warm:
            copies()
        started, count = clock_ns(), 0
        while (now := clock_ns()) < started + measured_s * 1e9:
            copies()
            count += QUEUED
        return count * NBYTES / (now - started)


def at_once(commands: dict[int, list[str]]) -> dict[int, str]:
    """Run a command on each GPU at the same time; what each said. Raises ``EnvironmentFault`` where one failed."""
    started, pipes = {}, {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    how: dict[str, Any] = {"cwd": ROOT, "start_new_session": True, **pipes}
    with ExitStack() as ended:
        for gpu, command in commands.items():
            surroundings = {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)}
            started[gpu] = subprocess.Popen([sys.executable, *command], env=surroundings, **how)
            ended.enter_context(killed_with_us(started[gpu]))
        found = {gpu: process.communicate() for gpu, process in started.items()}
    for gpu, process in started.items():
        if process.returncode:
            raise EnvironmentFault(f"on GPU {gpu}: exit code {process.returncode}: {last_line(found[gpu][1])}")
    return {gpu: said for gpu, (said, _) in found.items()}


def rates(options: Namespace, gpus: list[int], index: str) -> list[tuple[str, str, list[float]]]:
    """What, its unit, and the rate of each of ``gpus`` at work at once."""
    if options.what == LINK:
        words = ["-m", "harness.side_by_side", LINK, "--backend", options.backend, "--copy-at", str(time.time() + READY_S)]
        said = {gpu: json.loads(text) for gpu, text in at_once(dict.fromkeys(gpus, words)).items()}
        return [(f"copy {way}", "GB/s", [said[gpu][way] for gpu in gpus]) for way in WAYS]
    records = {gpu: options.out / f"{options.what}-{index}-gpu{gpu}.json" for gpu in gpus}
    base = [f"{options.what}.py", "--backend", options.backend, *options.arguments]
    own: dict[int, list[str]] = {gpu: [] for gpu in gpus}
    with tempfile.TemporaryDirectory(prefix="predictions-", dir=options.out) as folder:  # done shards would not be done again
        if options.what.startswith("12_"):
            own = {gpu: ["--predictions", folder, "--part", f"{place}/{len(gpus)}"] for place, gpu in enumerate(gpus)}
        at_once({gpu: [*base, *own[gpu], "--json", str(record)] for gpu, record in records.items()})
    found = [float(read_json(path)["images_per_s"]) for path in records.values()]
    if not all(found):
        raise UsageFault(f"{len(gpus)} GPUs, and not a shard for each: give more pictures, or fewer a shard (--shard N).")
    return [(options.what, "images/s", found)]


def compare(options: Namespace) -> list[dict[str, Any]]:
    """A row for each GPU alone and one for all of them."""
    found, alone = [], dict[str, float]()
    single = [[gpu] for gpu in range(options.gpus if options.each else 1)]
    for gpus in [*single, list(range(options.gpus))] if options.gpus > 1 else single:
        for what, unit, each in rates(options, gpus, "-".join(map(str, gpus))):
            alone.setdefault(what, each[0])
            shown = ", ".join(f"{rate:,.1f}" for rate in each)
            names = ", ".join(map(str, gpus))
            share = sum(each) / (alone[what] * len(gpus))
            found.append({"what": what, "gpus": names, "each": shown, "together": sum(each), "unit": unit, "efficiency": share})
            out.print(f"{what} on {names}: {shown} {unit}", markup=False)
    return found


def main() -> None:
    p = program.parser(__doc__, prog="python -m scripts.side_by_side")
    p.add_argument("what", help="link, or a stage's name")
    p.add_argument("--gpus", type=positive, default=2, metavar="N", help="default: %(default)s")
    p.add_argument("--each", action="store_true", help="each of them alone, not only the first")
    p.add_argument("--backend", choices=backend.NAMES, default="auto")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "side_by_side", metavar="DIR", help="default: out/side_by_side/")
    copy_at = "of one process: only copy, from this second of the system's clock on, and print the rates"
    p.add_argument("--copy-at", type=float, metavar="S", help=copy_at)
    options, arguments = p.parse_known_args()
    options.arguments = arguments
    if options.copy_at is not None:
        backend.select(options.backend)
        print(json.dumps({way: copy_for(way, options.copy_at + WAYS_S * place) for place, way in enumerate(WAYS)}))
        return
    if options.what != LINK and not (ROOT / f"{options.what}.py").is_file():
        raise UsageFault(f"there is no stage {options.what}.")
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = compare(options)
    publish("\n".join([*grid(rows, COLUMNS), ""]), {"rows": rows}, options.out / options.what)


if __name__ == "__main__":
    program.run(main)
