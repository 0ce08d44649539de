"""JPEG files: which of them any decoder may take, and the CPU's decoders, fastest first."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from struct import Struct
from typing import Union

import numpy as np

Content = Union[bytes, memoryview]
Decode = Callable[[Content], np.ndarray]
ON_DEVICE = "nvimagecodec"
MODULES = {
    ON_DEVICE: (("nvidia.nvimgcodec", "cvcuda"), "pip install -e '.[jpeg]' (or jpeg-cu12)"),
    "opencv": (("cv2",), "pip install opencv-python-headless"),
    "torchvision": (("torch", "torchvision"), "pip install torch torchvision"),
    "pillow": (("PIL",), "pip install pillow"),
}
"""What each decoder needs, in the order of their speed on the host of an H200, and the command that installs it."""
NAMES = ("auto", *MODULES)
LARGE = 1 << 24  # pixels; Pillow decodes a picture of more at a half, a quarter or an eighth
LEAST = 256  # pixels a byte of a picture in one colour: 64 in 2 bits, the shortest codes for its first number and for no others
START, END = b"\xff\xd8", b"\xff\xd9"
BASELINE = (0xC0, 0xC1)  # markers of frames that every decoder takes
TELLING = {*range(0xC0, 0xD0), 0xDA, 0xE1, 0xEE} - {0xC4, 0xC8, 0xCC}  # of frames, scans, EXIF or XMP, and Adobe's
MARKER = Struct(">BBH")  # 255, which, and the length of what follows, itself included


def installed(name: str) -> bool:
    """Whether the modules of a decoder can be imported, and those of their own that they need."""
    try:
        return all(map(import_module, MODULES[name][0]))
    except Exception:  # a torchvision that does not fit its PyTorch raises RuntimeError, others what they like
        return False


def oddity(data: Content) -> str | None:
    """What makes a file one for Pillow, which knows all sorts; None for a JPEG that every decoder decodes alike: baseline,
    three colours of 8 bits, upright, whole, not huge. Only the header is looked at, and the end."""
    if data[:2] != START:
        return "no JPEG" if data else "empty"
    if data[-2:] != END:
        return "its end is no JPEG's"
    place, framed = 2, False
    while place + 4 <= len(data):
        mark, code, length = MARKER.unpack_from(data, place)
        if mark != 0xFF:
            break
        begun, place = place, place + 2 + max(length, 2)
        if code not in TELLING:
            continue
        segment = data[begun + 4 : begun + 2 + length]
        if code == 0xDA:
            return None if framed else "no frame"
        if code in BASELINE:
            height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
            if segment[:1] != b"\x08" or segment[5:6] != b"\x03":
                return "no three colours of 8 bits"
            if segment[6:15:3] == b"RGB":  # so named they are no Y, Cb, Cr to libjpeg, and nobody says what they are to others
                return "colours that are RGB"
            if not 0 < height * width <= LARGE:
                return f"{width}×{height}"
            if height * width > LEAST * len(data):
                return f"too little for {width}×{height}"
            framed = True
        elif code <= 0xCF:
            return "progressive"
        elif code == 0xE1 and orientation(bytes(segment)) != 1:
            return "not upright"
        elif code == 0xEE and segment[:5] == b"Adobe" and segment[11:12] != b"\x01":
            return "colours of Adobe's"
    return "a damaged header"


def orientation(segment: bytes) -> int:
    """Which way up a picture is, by its EXIF or XMP segment; 1 is upright, 0 is not to be made out."""
    from PIL import ExifTags, Image

    exif = Image.Exif()
    try:
        if segment.startswith(b"Exif\0\0"):
            exif.load(segment)
        elif b"tiff:Orientation" in segment:  # XMP, which Pillow heeds where there is no EXIF
            return 0
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged segment meets many different ends in there
        return 0


def decoder(name: str) -> Decode | None:
    """A function from a JPEG file's bytes to its pixels, H×W×3 uint8 RGB, that raises where it cannot, and that several threads
    may call. None for Pillow, which ``common.photographs`` calls by itself."""
    if name == "torchvision":
        torch, io = import_module("torch"), import_module("torchvision.io")

        def decode(data: Content) -> np.ndarray:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return io.decode_jpeg(encoded, mode=io.ImageReadMode.RGB).permute(1, 2, 0).numpy()

        return decode
    if name == "opencv":
        cv2 = import_module("cv2")

        def decode(data: Content) -> np.ndarray:
            found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            if found is None:
                raise ValueError("OpenCV cannot decode it")
            return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)

        return decode
    return None
