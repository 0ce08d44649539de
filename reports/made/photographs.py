"""JPEG files that are parts of photographs: for jpeg.py, and for the tests of decoders."""

from __future__ import annotations

import random
from io import BytesIO
from pathlib import Path

from PIL import Image


def cut_out(photographs: list[Path], index: int, seed: int, width: int, height: int) -> bytes:
    """A JPEG file of a part of one of the photographs, of the quality of ``synthetic_jpeg``."""
    draw, path, file = random.Random(f"{seed} {index}"), photographs[index % len(photographs)], BytesIO()
    with Image.open(path) as picture:
        scale = draw.uniform(0.5, 1) * min(picture.width / width, picture.height / height)
        left, top = draw.uniform(0, picture.width - scale * width), draw.uniform(0, picture.height - scale * height)
        box = (left, top, left + scale * width, top + scale * height)
        part = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC, box)
    part.save(file, "JPEG", quality=90)
    return file.getvalue()
