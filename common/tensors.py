"""What a network takes and gives: which input is the images', and how a batch's outputs lie in one buffer."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import EnvironmentFault
from common.images import channels_first

TYPES = {"FLOAT": "f4", "HALF": "f2", "FLOAT16": "f2", "UINT8": "u1", "INT8": "i1", "INT32": "i4", "INT64": "i8", "BOOL": "?"}
"""NumPy's types by the names of TensorRT and ONNX."""
IMAGES = ("FLOAT", "HALF", "FLOAT16", "UINT8", "INT8")
ALIGNED = 256  # bytes, as cudaMalloc's addresses: kernels may count on it


class End(NamedTuple):
    """An input or output. -1 in ``shape``: dynamic; ``dtype`` is TensorRT's or ONNX's name of the type."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def type(self) -> np.dtype:
        return np.dtype(TYPES[self.dtype])

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape)}"


def check_ends(file: Path, inputs: Sequence[End], outputs: Sequence[End]) -> tuple[End, list[End]]:
    """A network's input and outputs; raises ``EnvironmentFault`` where they are not such as the ladder runs."""
    pictures = [end for end in inputs if end.dtype in IMAGES and channels_first(end.shape[1:])]
    others = [end.name for end in inputs if end not in pictures[:1]]
    batch = pictures[0].shape[0] if pictures else 0
    rows = [end.dtype in TYPES and min(end.shape[1:], default=1) > 0 and end.shape[:1] in ((batch,), (-1,)) for end in outputs]
    if pictures and not others and outputs and all(rows):
        return pictures[0], list(outputs)
    what = f"{file} takes ({', '.join(map(str, inputs))}) and gives ({', '.join(map(str, outputs))}), and the ladder runs "
    if pictures and others:
        raise EnvironmentFault(
            f"{what}networks whose images are the only input: {', '.join(others)} must be constant, which an initializer of "
            "that name in the ONNX file makes it."
        )
    raise EnvironmentFault(
        f"{what}one input of images in FP32, FP16, uint8 or int8, N×C×H×W or N×H×W×C with 1, 3 or 4 channels, and outputs of "
        f"N rows ({', '.join(dict.fromkeys(TYPES))}), N alone dynamic."
    )


def packed(ends: Sequence[End], batch: int) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array that holds the outputs of a batch as they lie in a buffer, so that one copy takes them all.

    Of one output its own, N×…; of several one record (shape 1) with a field for each, which begins at a multiple of
    ``ALIGNED`` bytes.
    """
    shapes = [(batch, *end.shape[1:]) for end in ends]
    if len(ends) == 1:
        return shapes[0], ends[0].type
    offsets = [0]
    for end, shape in zip(ends, shapes):
        offsets.append(offsets[-1] + -(-prod(shape) * end.type.itemsize // ALIGNED) * ALIGNED)
    names, formats = [end.name for end in ends], [(end.type, shape) for end, shape in zip(ends, shapes)]
    return (1,), np.dtype({"names": names, "formats": formats, "offsets": offsets[:-1], "itemsize": offsets[-1]})


def are_scores(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether a batch's outputs are a score for each class: one array of N×C floats."""
    return len(shape) == 2 and dtype.kind == "f"


def unpacked(outputs: np.ndarray) -> list[np.ndarray]:
    """The outputs in an array that is ``packed``, N×… each."""
    return [outputs[name][0] for name in outputs.dtype.names] if outputs.dtype.names else [outputs]


def first_rows(outputs: np.ndarray, ends: Sequence[End], batch: int) -> np.ndarray:
    """The beginning of an array that is ``packed`` for a larger batch, as one for ``batch``."""
    shape, dtype = packed(ends, batch)
    return outputs.reshape(-1).view(np.uint8)[: prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
