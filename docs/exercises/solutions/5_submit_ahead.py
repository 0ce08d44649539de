"""Solution of 5 · The batch that used this slot before is ``index - SLOTS``. While the host finishes it, the two batches after
it are in their streams, so the GPU has work.
"""

from __future__ import annotations

from contextlib import ExitStack

from common import options, session
from common.buffers import Slot, copy_to_device_async, copy_to_host_async
from common.cuda import Stream

TARGET = {"per_batch_ms": 1.45}
SLOTS = 3


def infer(run: session.Session) -> None:
    """Submit the batches through three slots, and finish each on this very thread."""
    context = run.engine.create_context()
    context.set_input_shape(run.batch_shape)
    with ExitStack() as resources:
        slots = [Slot(run, resources) for _ in range(SLOTS)]
        copy_in, compute = (resources.enter_context(Stream()) for _ in range(2))

        def finish(index: int) -> None:
            slot = slots[index % SLOTS]
            slot.returned.synchronize()
            run.finish(index, slot.host_output)

        for index, host_input in enumerate(run.batches):
            slot = slots[index % SLOTS]
            if index >= SLOTS:
                finish(index - SLOTS)
            with run.submit(index):
                copy_to_device_async(slot.device_input, host_input, copy_in)
                slot.copied.record(copy_in)
                compute.wait(slot.copied)
                context.bind(slot.device_input, slot.device_output)
                context.execute_async_v3(compute)
                copy_to_host_async(slot.host_output, slot.device_output, compute)
                slot.returned.record(compute)
        for index in range(len(run.done_ns), len(run.batches)):
            finish(index)


if __name__ == "__main__":
    session.main(options.parser(__doc__), infer, precision="fp16", page_lock=True)
