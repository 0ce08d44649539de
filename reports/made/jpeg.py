"""The parts of jpeg.sh that are Python's: pictures, variants of stage 11, what became of damaged files, the tables' medians."""

from __future__ import annotations

import csv
import json
import os
import random
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from common.errors import Fault
from common.files import write_bytes
from common.jpeg import oddity
from harness.decoders import COLUMNS, SIZES
from reports.made.photographs import cut_out

SCRATCH, RESULTS = Path(os.environ["SCRATCH"]), Path(os.environ["RESULTS"])
COUNT, SEED = int(os.environ["FILES"]), 10088
SHIPPED = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "skimage": tuple(f"data/{name}" for name in ("astronaut.png", "coffee.png", "rocket.jpg", "chelsea.png", "retina.jpg")),
}
FIRST, THEN = COUNT // 20, COUNT // 4 + COUNT // 8  # beside which of the files damaged ones lie: measured, and not


def folder(width: int, height: int) -> Path:
    return SCRATCH / f"cut-photographs-{width}x{height}"


def make(first: int, sources: list[Path], width: int, height: int) -> None:
    for index in range(first, min(first + 64, COUNT)):
        path = folder(width, height) / f"{index:06d}.jpg"
        if not path.exists():
            write_bytes(path, cut_out(sources, index, SEED, width, height))


def files() -> None:
    """Files of two sizes, cut out of photographs that packages ship; some of them again, by many names; and damaged ones."""
    (photographs := SCRATCH / "photographs").mkdir(parents=True, exist_ok=True)
    for package, names in SHIPPED.items():
        for path in (Path(import_module(package).__file__ or "").parent / name for name in names):
            if path.is_file():
                Image.open(path).convert("RGB").save(photographs / f"{path.stem}.bmp")  # which is quick to read
    sources = sorted(photographs.iterdir())
    print(len(sources), "photographs:", *(path.stem for path in sources))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for size in SIZES:
            folder(*size).mkdir(exist_ok=True)
            list(pool.map(partial(make, sources=sources, width=size[0], height=size[1]), range(0, COUNT, 64)))
            written = [path.stat().st_size for path in folder(*size).iterdir()]
            print(folder(*size).name, len(written), "files of", round(sum(written) / len(written)), "bytes")
    paths = sorted(folder(*SIZES[0]).iterdir())
    for index in range(int(os.environ["LINKS"])):
        linked(paths, SCRATCH / "folder" / f"{index:02d}")
    linked(paths[: COUNT // 2], SCRATCH / "damaged")
    for kind, data in damaged(paths[0].read_bytes()).items():
        for place in (FIRST, THEN):
            (SCRATCH / "damaged" / f"{place:06d}-{kind}.jpg").write_bytes(data)


def linked(paths: list[Path], into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    for path in paths:
        if not (into / path.name).exists():
            os.link(path, into / path.name)


def damaged(whole: bytes) -> dict[str, bytes]:
    """Files that are no plain JPEG, by what they are. Nobody but a decoder sees what is wrong with `scan-*`."""
    exif, middle, picture = Image.Exif(), len(whole) * 6 // 10, Image.open(BytesIO(whole))
    exif[0x0112] = 6

    def saved(image: Any, **how: Any) -> bytes:
        image.save(file := BytesIO(), "JPEG", quality=90, **how)
        return file.getvalue()

    noise = bytes(random.Random(SEED).choices(range(1, 255), k=400))
    height_at = whole.index(b"\xff\xc0") + 5
    return {
        "empty": b"",
        "text": b"no picture\n",
        "cut": whole[:middle],
        "scan-cut": whole[:middle] + b"\xff\xd9",
        "scan-noise": whole[:middle] + noise + whole[middle + len(noise) :],
        "scan-short": whole[:height_at] + (3000).to_bytes(2, "big") + whole[height_at + 2 :],
        "progressive": saved(picture, progressive=True),
        "cmyk": saved(picture.convert("CMYK")),
        "grey": saved(picture.convert("L")),
        "lying": saved(picture, exif=exif),
        "large": saved(picture.resize((5000, 4000))),
    }


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def compared(whole: Path, among: Path) -> None:
    """Hold the names of a folder with damaged files to those of the whole ones: no row lost, twice, or shifted."""
    right, found = {row["image"]: row for row in rows(whole)}, rows(among)
    good = [row for row in found if row["image"] in right]
    names, expected = [row["image"] for row in good], sorted(right)[: COUNT // 2]
    apart = [abs(float(row["probability"]) - float(right[row["image"]]["probability"])) for row in good]
    same = sum(row["class"] == right[row["image"]]["class"] for row in good)
    print(
        f"{len(good)} whole files, {same} of the class that they have without damaged ones; probabilities {max(apart):.6f} off"
    )
    for row in found:
        if row["image"] not in right:
            header = oddity((SCRATCH / "damaged" / row["image"]).read_bytes()) or "plain"
            print(f"{row['image']}: class {row['class']}, {float(row['probability']):.4f}; header: {header}")
    if names != expected or [row["image"] for row in found] != sorted(row["image"] for row in found):
        sys.exit("rows are lost, twice or out of order")


def variants(seconds: float, pictures: str, *how: str, into: str = "variants") -> None:
    """Stage 11 with other numbers of slots, batches ahead and batches decoded at a time (SLOTS-AHEAD-THREADS; ``-thread``:
    files are read by a thread instead of a process), in turns."""
    from common import decode, options, session
    from common.buffers import page_locked
    from common.decoders import GpuDecoder

    stage, until, rates = import_module("11_jpeg_decode"), time.monotonic() + seconds, dict[str, list[float]]()
    parser = options.parser("")
    parser.set_defaults(decoder="auto", layout=None)
    chosen = parser.parse_args([*sys.argv[4:], "--images", pictures, "--no-controls", "--no-parts"])
    _, size = options.select_backend(chosen)
    made, took, there = GpuDecoder.__init__, 0.0, decode.THERE
    before = len([*(RESULTS / into).glob(f"{Path(pictures).name}-{how[0]}-turn*.json")])
    for turn in range(before, before + 100):
        for variant in how:
            begun = time.monotonic()
            if begun + took > until:
                return
            stage.SLOTS, stage.AHEAD, threads = map(int, variant.split("-")[:3])
            decode.THERE = there and not variant.endswith("-thread")

            def with_threads(self: GpuDecoder, *arguments: Any, threads: int = threads) -> None:
                made(self, *arguments)
                self.threads = threads if self.threads > 1 else 1

            GpuDecoder.__init__ = with_threads
            chosen.json = RESULTS / into / f"{Path(pictures).name}-{variant}-turn{turn}.json"
            try:
                session.measure(stage.infer, "11_jpeg_decode", size, page_locked, chosen, True)
            except Fault as fault:
                print(f"{variant}: {fault}")
                continue
            rates.setdefault(variant, []).append(json.loads(chosen.json.read_text())["images_per_s"])
            took = max(took, time.monotonic() - begun)
            with (RESULTS / f"{into}.csv").open("a") as file:
                file.write(f"{Path(pictures).name},{variant},{turn},{rates[variant][-1]:.0f}\n")


def steps(seconds: float, pictures: str, *how: str) -> None:
    """Where the decoder's threads are in one variant: ms a batch in each call, those in it included."""
    from common import decoders, jpeg

    codec, cvcuda, spent = import_module("nvidia.nvimgcodec"), import_module("cvcuda"), dict[str, list[float]]()

    def clock(owner: Any, name: str) -> None:
        call, took = getattr(owner, name), spent.setdefault(f"{owner.__name__}.{name}", [])

        def clocked(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                if threading.current_thread() is not threading.main_thread():
                    took.append(time.perf_counter() - begun)

        setattr(owner, name, clocked)

    for owner in (decoders.GpuDecoder, decoders.Lane, codec.Decoder):
        clock(owner, "decode")
    for owner, name in ((jpeg, "oddity"), (codec, "CodeStream"), (decoders.Stream, "synchronize")):
        clock(owner, name)
    for name in ("as_tensor", "as_tensors", "hq_resize_into", "cvtcolor_into", "reformat_into"):
        clock(cvcuda, name)
    variants(seconds, pictures, *how, into="steps")
    batches = len(spent["GpuDecoder.decode"])
    print(f"{Path(pictures).name}, {how}: {batches} batches, and ms of each in")
    for name, took in spent.items():
        print(f"  {name:32} {sum(took) / batches * 1e3:7.3f}   (median of a call {median(took or [0]) * 1e3:.4f})")


def listed(rates: list[float]) -> str:
    return ", ".join(f"{rate:,.0f}" for rate in rates)


def tables() -> None:
    """The rows of all rounds of scripts.decoders in one table, each cell of numbers the median of its rounds; and the rates."""
    from common.files import grid, write_text

    found = [row for path in sorted(RESULTS.glob("decoders-*/decoders.json")) for row in json.loads(path.read_text())["rows"]]
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in found:
        grouped.setdefault((row["pictures"], row["decoder"]), []).append(row)
    merged = []
    for own in grouped.values():
        numbers = {key: median(row[key] for row in own) for key in ("read", "alone", "images_per_s", "share", "busy")}
        merged.append({**own[0], **numbers})
    text = [*grid(merged, COLUMNS, 2), "", "Rounds, images/s, from disk to names:", ""]
    text += [f"- {' '.join(key)}: {listed([row['images_per_s'] for row in own])}" for key, own in grouped.items()]
    for name, key in (("folder", "folder_images_per_s"), ("dali", "alone"), ("dali", "images_per_s")):
        for size in ("", *(f"-{width}" for width, _ in SIZES)):
            rates = [json.loads(path.read_text())[key] for path in sorted(RESULTS.glob(f"{name}{size}-round*.json"))]
            text += [f"- {name}{size} {key}: {listed(rates)}"] * bool(rates)
    per_variant: dict[str, list[float]] = {}
    for line in (RESULTS / "variants.csv").read_text().splitlines() if (RESULTS / "variants.csv").exists() else ():
        pictures, variant, _, rate = line.split(",")
        per_variant.setdefault(f"{pictures}, slots-ahead-threads {variant}", []).append(float(rate))
    text += [f"- {key}: median {median(own):,.0f} of {listed(own)}" for key, own in per_variant.items()]
    write_text(RESULTS / "summary.md", "\n".join([*text, ""]))


if __name__ == "__main__":
    if sys.argv[1] == "files":
        files()
    elif sys.argv[1] == "compared":
        compared(Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1] == "variants":  # SECONDS FOLDER OPTIONS...: VARIANTS has the variants
        variants(float(sys.argv[2]), sys.argv[3], *os.environ["VARIANTS"].split())
    elif sys.argv[1] == "steps":
        steps(float(sys.argv[2]), sys.argv[3], *os.environ["VARIANTS"].split())
    else:
        tables()
