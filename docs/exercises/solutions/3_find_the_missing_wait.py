"""Solution of 3 · The compute stream waits for the event behind the copy; the host goes on."""

from __future__ import annotations

from contextlib import ExitStack

from common import options, session
from common.buffers import Slot, copy_to_device_async, copy_to_host_async
from common.cuda import Stream

TARGET = {"per_batch_ms": 1.45}
SLOTS = 3


def infer(run: session.Session) -> None:
    """Copies in on one stream, kernels and copies out on another; the host finishes an older batch meanwhile."""
    context = run.engine.create_context()
    context.set_input_shape(run.batch_shape)
    with ExitStack() as resources:
        slots = [Slot(run, resources) for _ in range(SLOTS)]
        copy_in, compute = (resources.enter_context(Stream()) for _ in range(2))
        for index in range(len(run.batches) + SLOTS):
            slot = slots[index % SLOTS]
            if index >= SLOTS:
                slot.returned.synchronize()
                run.finish(index - SLOTS, slot.host_output)
            if index < len(run.batches):
                with run.submit(index):
                    copy_to_device_async(slot.device_input, run.batches[index], copy_in)
                    slot.copied.record(copy_in)
                    context.bind(slot.device_input, slot.device_output)
                    compute.wait(slot.copied)
                    context.execute_async_v3(compute)
                    copy_to_host_async(slot.host_output, slot.device_output, compute)
                    slot.returned.record(compute)


if __name__ == "__main__":
    session.main(options.parser(__doc__), infer, precision="fp16", page_lock=True)
