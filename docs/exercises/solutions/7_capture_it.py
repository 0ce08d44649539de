"""Solution of 7 · Enqueued once before it is captured, because TensorRT initialises then; given back with the
other resources.
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
    enqueue(context, slot, stream)
    stream.synchronize()
    with stream.capture() as graph:
        enqueue(context, slot, stream)
    return partial(resources.enter_context(graph).launch, stream)


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
