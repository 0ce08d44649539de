"""A photograph from its file: decoded, the part that is seen, at the size that is wanted."""

from __future__ import annotations

from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from common import jpeg
from common.errors import reason
from common.images import converted, noise_image

BLEED = 1 / 16  # of a picture's width, and of its height, that is not seen on each side
STRIP = 256  # rows of a picture that are converted at a time


def load_pixels(source: Path | jpeg.Content, height: int, width: int) -> np.ndarray:
    """One photograph's bytes, 3×height×width uint8, from a file or its content: scaled until its centre, 7/8 of it, fills that.
    Beside the picture as its file has it there is never a second one of its size, however large, long or thin it is."""
    from PIL import ExifTags, Image, ImageOps

    if isinstance(source, Path) and not source.is_file():
        raise ValueError("no ordinary file")
    size = (width, height)
    with Image.open(source if isinstance(source, Path) else BytesIO(source)) as file:
        file.draft(None, (2 * max(size),) * 2)  # a JPEG is decoded at a half, a quarter or an eighth, if that is enough
        file.load()
        if file.mode[0] in "IF":
            raise ValueError(f"pixels of type {file.mode} instead of 8 bits a channel")
        if file.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # lies on its side, and is turned when it is small
            size = size[::-1]
        picture = file if file.mode in ("RGB", "L") else in_rgb(file, size)  # the others cannot be scaled as they are
        turned = ImageOps.exif_transpose(ImageOps.fit(picture, size, Image.Resampling.BILINEAR, bleed=BLEED))
    return np.asarray(turned.convert("RGB")).transpose(2, 0, 1)


def in_rgb(picture: Any, size: tuple[int, int]) -> Any:
    """The part of a picture that is seen in the shape of ``size``, reduced by a whole number to no less than twice that."""
    from PIL import Image

    seen = [min(own, ceil(other * a / b)) for own, other, a, b in zip(picture.size, picture.size[::-1], size, size[::-1])]
    left, top = ((own - part) // 2 for own, part in zip(picture.size, seen))
    by = max(1, min(part // side for part, side in zip(seen, size)) // 2)
    reduced, step = Image.new("RGB", (-(-seen[0] // by), -(-seen[1] // by))), -(-STRIP // by) * by
    for row in range(0, seen[1], step):
        strip = picture.crop((left, top + row, left + seen[0], top + min(row + step, seen[1])))
        reduced.paste(strip.convert("RGB").reduce(by), (0, row // by))
    reduced.info = picture.info  # which way up it is
    return reduced


def synthetic_jpeg(index: int, seed: int, width: int = 500, height: int = 375) -> bytes:
    """A synthetic picture as a JPEG file, of some 69 kB at 500×375 and 19 kB at 224×224, as photographs of that quality."""
    from PIL import Image

    coarse = (3, height * 3 // 5, width * 9 // 20)
    pixels = converted(noise_image(index, coarse, seed), np.uint8).transpose(1, 2, 0)
    file = BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


class Loader:
    """Loads photographs of one size by a decoder (``common.jpeg``). ``left_to_pillow`` names those that the decoder did not
    take, with the reason."""

    def __init__(self, decoder: str, height: int, width: int) -> None:
        self.size, self._decode, self.left_to_pillow = (height, width), jpeg.decoder(decoder), dict[str, str]()
        self.unreadable: dict[str, str] | None = None  # where somebody goes on without those that not even Pillow can read

    def __call__(self, name: str, source: Path | jpeg.Content) -> np.ndarray:
        """3×height×width uint8, as ``load_pixels`` has it."""
        if self._decode is None:
            return load_pixels(source, *self.size)
        from PIL import Image, ImageOps

        data = source if not isinstance(source, Path) else source.read_bytes() if source.is_file() else b""
        if (why := jpeg.oddity(data)) is None:
            try:
                picture = Image.fromarray(self._decode(data))
                fitted = ImageOps.fit(picture, self.size[::-1], Image.Resampling.BILINEAR, bleed=BLEED)
                return np.asarray(fitted).transpose(2, 0, 1)
            except Exception as error:  # each decoder has its own for a damaged file
                why = reason(error)
        pixels = load_pixels(source, *self.size)
        self.left_to_pillow[name] = why
        return pixels
