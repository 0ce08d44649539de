"""Solution of 8 · A context holds the activations of one inference, so it serves one stream; each lane has its own."""

from __future__ import annotations

from contextlib import ExitStack

from common import options, session
from common.buffers import Slot, copy_to_device_async, copy_to_host_async
from common.cuda import Stream

TARGET = {"per_batch_ms": 1.45}
LANES, SLOTS = 2, 4


def infer(run: session.Session) -> None:
    """Deal the batches to two lanes, in turn; the host finishes the oldest."""
    contexts = [run.engine.create_context() for _ in range(LANES)]
    for context in contexts:
        context.set_input_shape(run.batch_shape)
    with ExitStack() as resources:
        slots = [Slot(run, resources) for _ in range(SLOTS)]
        streams = [resources.enter_context(Stream()) for _ in range(LANES)]
        for index in range(len(run.batches) + SLOTS):
            slot, context, stream = slots[index % SLOTS], contexts[index % LANES], streams[index % LANES]
            if index >= SLOTS:
                slot.returned.synchronize()
                run.finish(index - SLOTS, slot.host_output)
            if index < len(run.batches):
                with run.submit(index):
                    copy_to_device_async(slot.device_input, run.batches[index], stream)
                    context.bind(slot.device_input, slot.device_output)
                    context.execute_async_v3(stream)
                    copy_to_host_async(slot.host_output, slot.device_output, stream)
                    slot.returned.record(stream)


if __name__ == "__main__":
    session.main(options.parser(__doc__), infer, precision="fp16", page_lock=True)
