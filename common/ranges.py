"""The NVTX ranges that the reports are made from, all in our own domain. Without the nvtx package they do nothing.

measured batches   start/end   the measured window
infer              push/pop    the host's work to submit one batch; payload: the batch's number
postprocess        push/pop    softmax, top-1 and the predictions of one batch; payload: its number of images
decode             push/pop    JPEG files of one batch to pixels; payload: their number; category: the decoder
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from common import backend
from common.trace import DECODE, INFER, MEASURED, POSTPROCESS

DOMAIN = "trt_ladder"
COLOURS = {MEASURED: "white", INFER: "blue", POSTPROCESS: "green", DECODE: "orange"}


@contextlib.contextmanager
def pushed(name: str, payload: int, category: str | None = None) -> Iterator[None]:
    """A range around the body, on the calling thread."""
    nvtx = backend.current().nvtx
    if nvtx is None:
        yield
        return
    nvtx.push_range(name, color=COLOURS[name], domain=DOMAIN, category=category, payload=payload)
    try:
        yield
    finally:
        nvtx.pop_range(domain=DOMAIN)


def start(name: str) -> Any:
    """Open a range that another thread may end; hand the result to ``end``."""
    nvtx = backend.current().nvtx
    return nvtx and nvtx.start_range(name, color=COLOURS[name], domain=DOMAIN)


def end(range_id: Any) -> None:
    nvtx = backend.current().nvtx
    if nvtx is not None and range_id is not None:
        nvtx.end_range(range_id)
