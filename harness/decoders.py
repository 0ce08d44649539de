"""From disk to names: what each decoder of JPEG files does by itself, and with the pipeline behind it, and what limits that.

    python -m scripts.decoders                                 all decoders that are there, synthetic files of two sizes
    python -m scripts.decoders --images photos/                your files
    python -m scripts.decoders --backend simulated --files 64  what is modelled

Runs stage 11 once for each folder and decoder; more options are the stage's. `alone` is the decoder's rate with nothing else
at work; `disk to names` that of the measured window, in which files are read, decoded, copied, inferred and post-processed;
`of the slowest` is how much of the slowest part's own rate that is. A window reads the files of eight batches again and again,
so they come from the page cache; `read` is the rate at which one thread reads the whole folder once. A simulated
decoder has the device file's rate, that of files of 500×375, whatever their size; `read` is this machine's even then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from common import jpeg, program
from common import options as stage_options
from common.backend import NAMES
from common.children import record_of
from common.console import err, printable
from common.errors import EnvironmentFault
from common.feed import shown
from common.files import grid, publish, write_bytes
from common.options import positive
from common.parts import ALL_PARTS
from common.photographs import synthetic_jpeg
from common.pictures import SUFFIXES
from common.plans import ROOT
from common.reader import content
from common.record import Record

STAGE = "11_jpeg_decode"
SIZES = ((500, 375), (224, 224))
COLUMNS = [
    ("pictures", "pictures", "{}"),
    ("decoder", "decoder", "{}"),
    ("read", "read", "{:,.0f}"),
    ("alone", "alone", "{:,.0f}"),
    ("disk to names", "images_per_s", "{:,.0f}"),
    ("limited by", "limiter", "{}"),
    ("of the slowest", "share", "{:.0%}"),
    ("kernels at work", "busy", "{:.0%}"),
]


def make_files(folder: Path, count: int, make: Callable[[int], bytes]) -> Path:
    """``count`` files in ``folder``, each written whole; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [path for index in range(count) if not (path := folder / f"{index:06d}.jpg").exists()]
    pool = ThreadPoolExecutor()
    try:
        made = pool.map(lambda path: write_bytes(path, make(int(path.stem))), paths)
        list(shown(made, f"making {folder.name}", len(paths)))
    finally:
        pool.shutdown(cancel_futures=True)
    return folder


def read_rate(folder: Path) -> float:
    """Files a second, each read once."""
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    started = time.perf_counter()
    read = sum(1 for path in paths if content(path))
    return read / (time.perf_counter() - started)


def row(folder: Path, decoder: str, read: float, record: Record) -> dict[str, object]:
    parts, rate = record.parts_ms or {}, record.images_per_s or 0.0
    images = rate * record.per_batch_ms  # a batch's, in thousandths
    longest = max(parts, key=lambda name: parts[name])
    found = {"pictures": folder.name, "decoder": decoder, "read": read, "alone": images / parts["decode"], "images_per_s": rate}
    shares = {"share": parts[longest] / record.per_batch_ms, "busy": parts["compute"] / record.per_batch_ms}
    return {**found, "limiter": ALL_PARTS[longest], **shares, "notes": record.notes}


def main() -> None:
    p = program.parser(__doc__, prog="python -m scripts.decoders")
    p.add_argument("--images", type=Path, action="append", metavar="DIR", help="a folder of files as they are; repeatable")
    p.add_argument("--files", type=positive, default=5120, metavar="N", help="to make, of each size (default: %(default)s)")
    p.add_argument("--decoders", nargs="+", choices=tuple(jpeg.MODULES), metavar="NAME", help="default: all that are there")
    p.add_argument("--out", type=Path, default=ROOT / "out" / "decoders", metavar="DIR", help="default: out/decoders/")
    p.add_argument("--backend", choices=NAMES, default="auto")
    options, arguments = p.parse_known_args()
    stage_options.parser(None).parse_args(arguments)  # a wrong one is said before the files are made
    options.out.mkdir(parents=True, exist_ok=True)
    folders = options.images or []
    for width, height in () if folders else SIZES:
        make = partial(synthetic_jpeg, seed=10088, width=width, height=height)
        folders.append(make_files(options.out / f"synthetic-{width}x{height}", options.files, make))
    rows, record = [], None
    for folder in folders:
        read = read_rate(folder)
        for decoder in options.decoders or jpeg.MODULES:
            command = [ROOT / f"{STAGE}.py", "--backend", options.backend, "--images", folder, "--decoder", decoder, *arguments]
            try:
                record = record_of(*command, path=options.out / f"{folder.name}-{decoder}.json")
            except EnvironmentFault as fault:
                err.print(f"left out: {folder.name} with {decoder}: {fault}", style="yellow", markup=False)
                continue
            rows.append(row(folder, decoder, read, record))
            err.print(f"{folder.name} with {decoder}: {record.per_batch_ms:.3f} ms a batch", markup=False)
    if record is None:
        raise EnvironmentFault("no decoder ran; see above.")
    notes = [f"{each['pictures']} with {each['decoder']}: {note}" for each in rows for note in each["notes"]]  # type: ignore[attr-defined]
    text = "\n".join([f"{record}, images/s:\n", *grid(rows, COLUMNS, 2), "", *(f"{printable(note)}\n" for note in notes)])
    publish(text, {"conditions": str(record), "rows": rows}, options.out / "decoders")


if __name__ == "__main__":
    program.run(main)
