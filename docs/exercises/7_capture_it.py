"""7 · Capture it. Submitting a batch takes the host 0.15 ms, most of it to launch its kernels. A CUDA graph is one launch.
Replace the line with HOLE. Remember what TensorRT does at the first enqueue, and who gives the graph back.

    python -m sim --grade docs/exercises/7_capture_it.py
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from common import options, session
from common.buffers import Slot, copy_to_device_async, copy_to_host_async
from common.cuda import Stream
from common.engine import Context

TARGET = {"submit_ms": 0.05, "per_batch_ms": 3.2}


def enqueue(context: Context, slot: Slot, stream: Stream) -> None:
    context.execute_async_v3(stream)
    copy_to_host_async(slot.host_output, slot.device_output, stream)


def prepare(context: Context, slot: Slot, stream: Stream, resources: ExitStack) -> Callable[[], None]:
    """What puts the slot's work into the stream."""
    return partial(enqueue, context, slot, stream)  # HOLE


def infer(run: session.Session) -> None:
    """Stage 4 with one stream and a slot."""
    context = run.engine.create_context()
    context.set_input_shape(run.batch_shape)
    with ExitStack() as resources:
        slot, stream = Slot(run, resources), resources.enter_context(Stream())
        context.bind(slot.device_input, slot.device_output)
        launch = prepare(context, slot, stream, resources)
        for index, host_input in enumerate(run.batches):
            with run.submit(index):
                copy_to_device_async(slot.device_input, host_input, stream)
                launch()
            stream.synchronize()
            run.finish(index, slot.host_output)


if __name__ == "__main__":
    session.main(options.parser(__doc__), infer, precision="fp16", page_lock=True)
