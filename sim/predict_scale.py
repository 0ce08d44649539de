"""What N GPUs of one host should do, before it is measured: the simulated GPU's rate N times over, until something is shared.

    python -m scripts.predict_scale
    python -m scripts.predict_scale --cores 64 --gpus-a-switch 2
    python -m scripts.predict_scale --out reports/scale              the table in docs/scale.md

Runs stages 7, 10 and 11 on one simulated GPU. What each GPU has for itself (its link, its JPEG engines, its multiprocessors)
grows with N. What the host has once does not: cores, of which each decodes so many pictures a second; a switch, if GPUs share
one. Host memory is no limit in the model, for nobody has measured it: the table says what it would have to read and write.
Ray is not in it either.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from common import program
from common.console import out
from common.files import grid, publish
from common.options import positive
from common.plans import ROOT
from common.record import Record
from sim import device as devices
from sim.predict import modelled

GPUS = (1, 2, 4, 8)
IMAGE = 3 * 224 * 224  # values
JPEG = 71_000  # bytes of a file of 500×375 at quality 90
PILLOW_A_CORE = 462  # images/s: one thread on the H200's host, files of 500×375 (16 threads in one process: 1,840)
WORK = [  # title, stage, its options, bytes over the link, bytes that the host's memory moves, whether cores decode
    ("float batches, no files", "7_cuda_graph", (), 4 * IMAGE, 4 * IMAGE, False),
    ("uint8 batches, no files", "10_uint8_input", (), IMAGE, IMAGE, False),
    ("JPEG by nvImageCodec, uint8", "11_jpeg_decode", ("--decoder", "nvimagecodec"), JPEG, 2 * JPEG, False),
    ("JPEG by Pillow, uint8", "11_jpeg_decode", ("--decoder", "pillow"), IMAGE, 2 * IMAGE + 2 * JPEG, True),
]
NAMES = {
    "h2d": "each GPU's link",
    "compute": "each GPU's compute",
    "decode": "each GPU's JPEG engines",
    "postprocess": "its host thread",
}


def row(work: str, record: Record, link: int, moved: int, cores_decode: bool, options: Namespace) -> dict[str, Any]:
    """Images a second of N GPUs, and what limits the most of them."""
    parts, alone = record.parts_ms or {}, record.images_per_s or 0.0
    longest = max(parts, key=lambda name: parts[name])
    own = "each process's decoder" if cores_decode else NAMES.get(longest, longest)
    link_rate = devices.load(options.device).copy_rates["h2d", "pinned"] * 1e9 / link
    found: dict[str, Any] = {"work": work, "limiter": own}
    for count in GPUS:
        limits = {own: alone * count}
        if options.gpus_a_switch > 1:
            limits["the switch"] = link_rate * -(-count // options.gpus_a_switch)
        if cores_decode:
            limits["the host's cores"] = PILLOW_A_CORE * options.cores
        limiter = min(limits, key=lambda name: limits[name])
        found |= {f"images_per_s_{count}": limits[limiter], "limiter": limiter}
        found |= {"host_gb_s": moved * limits[limiter] / 1e9}
    return found


def main() -> None:
    p = program.parser(__doc__, prog="python -m scripts.predict_scale")
    p.add_argument("--device", choices=devices.available(), default="h200")
    p.add_argument("--cores", type=positive, default=32, metavar="N", help="of the host (default: %(default)s)")
    shared = "how many GPUs share one link to the host (default: %(default)s, each has its own)"
    p.add_argument("--gpus-a-switch", type=positive, default=1, metavar="N", help=shared)
    p.add_argument("--out", type=Path, default=ROOT / "out" / "scale", metavar="DIR", help="default: out/scale/")
    options = p.parse_args()
    rows = []
    for work, stage, own, link, moved, cores_decode in WORK:
        rows.append(row(work, modelled(options.device, stage, *own), link, moved, cores_decode, options))
        out.print(f"{work}: {rows[-1]['images_per_s_1']:,.0f} images/s on one GPU", markup=False)
    counts = [(f"{count} GPU{'s' * (count > 1)}", f"images_per_s_{count}", "{:,.0f}") for count in GPUS]
    memory, limit = ("host memory, GB/s at 8", "host_gb_s", "{:,.0f}"), ("limited by", "limiter", "{}")
    columns = [("work", "work", "{}"), *counts, memory, limit]
    name, switch = devices.load(options.device).name, options.gpus_a_switch
    sharing = f"; {switch} GPUs share a link" if switch > 1 else "; each GPU has its own link"
    above = f"{name} (modelled), batch 128, a host of {options.cores} cores{sharing}; images/s:"
    text = "\n".join([above, "", *grid(rows, columns), ""])
    path = options.out / ("prediction" + f"-{switch}-a-switch" * (switch > 1))
    publish(text, {"conditions": above[:-1], "rows": rows}, path)


if __name__ == "__main__":
    program.run(main)
