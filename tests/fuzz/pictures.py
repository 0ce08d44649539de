"""Folders of odd pictures under odd names: each is read within bounded memory, or skipped by a name that fits on a line."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from common.console import printable
from common.pictures import Images
from tests.fuzz.place import Draw, Place, Try, endlessly, memory_bounded

MODES = ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16", "I", "F")
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tiff"}
NAMES = (
    b"plain",
    b"with space",
    b"-dash",
    b"=1+1",
    b"[red]",
    b"new\nline",
    b"\x1b[2J",
    b"caf\xc3\xa9",
    b"\xff\xfe",
    b'a,b"c',
    b"%s",
)
SHAPES = ((3, 224, 224), (3, 1, 1), (3, 7, 300), (224, 224, 3), (3, 300, 7), (64, 32, 3))
LONG = (1, 2, 16, 65_000)


def tries(place: Place, draw: Draw) -> Iterator[Try]:
    def one() -> Try:
        sizes = LONG if draw.random() < 0.3 else (*range(1, 40), 500, 3000)
        size = draw.choice(sizes), draw.choice(sizes)
        size = size if size[0] * size[1] < 10**8 else (size[0], 1)
        picture = (draw.choice(MODES), size, draw.choice([*FORMATS]), draw.choice(NAMES), draw.randrange(12))
        damage, shape = draw.choice(("none", "none", "cut", "flipped", "pipe", "folder")), draw.choice(SHAPES)
        return f"{picture}, {damage}, as {shape}", lambda: read(place, *picture, damage, shape, draw.random())

    return endlessly(one)


def encoded(mode: str, size: tuple[int, int], form: str, orientation: int) -> bytes:
    """The file; of another mode where the format does not have that one."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    for each in (mode, "RGB"):
        try:
            Image.new(each, size, 1).save(file, form, exif=exif)
            return file.getvalue()
        except (OSError, ValueError, KeyError):
            file.seek(0)
    return b""


def read(place: Place, mode: str, size, form: str, name: bytes, orientation: int, damage: str, shape, where: float) -> str:
    folder = place.folder / "pictures"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "sub").mkdir(parents=True)
    path = Path(os.fsdecode(os.fsencode(folder / "sub") + b"/" + name + FORMATS[form].encode()))
    content = encoded(mode, size, form, orientation)
    if damage == "cut":
        content = content[: int(len(content) * where)]
    elif damage == "flipped" and content:
        at = int(len(content) * where)
        content = content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]
    if damage == "pipe":
        os.mkfifo(path)
    elif damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(content)
    Image.new("RGB", (8, 8)).save(folder / "good.png")
    with memory_bounded(64 + 8 * size[0] * size[1] / 1e6):
        images, batch = Images(folder, shape, 1), np.full((3, *shape), np.nan, np.float32)
        names = images.fill(batch)
    assert len(names) + len(images.unreadable) == 2
    assert all(text == printable(text) and "\n" not in text for text in [*images.unreadable, *names])
    assert np.isfinite(batch).all() and np.abs(batch).max() < 3
    return "skipped by name" if images.unreadable else "right"
