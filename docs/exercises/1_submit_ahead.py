"""Exercise 1 · Between stages 5 and 6: submit ahead, without a thread. See docs/exercises/README.md.

In the timeline of stage 5 the GPU waits while the host post-processes. Here the host submits ahead instead: batches are in
their streams before it turns to an older one. One thing is missing, and the outputs are wrong. Replace the HOLE.

    python -m docs.exercises.1_submit_ahead --backend simulated
"""

from __future__ import annotations

from contextlib import ExitStack

from common import options, session
from common.buffers import Slot, copy_to_device_async, copy_to_host_async
from common.cuda import Stream

SLOTS = 3


def infer(run: session.Session) -> None:
    """Submit the batches through three slots, and finish each on this very thread."""
    context = run.engine.create_context()
    context.set_input_shape(run.batch_shape)
    with ExitStack() as resources:
        slots = [Slot(run, resources) for _ in range(SLOTS)]
        copy_in, compute, copy_out = (resources.enter_context(Stream()) for _ in range(3))

        def finish(index: int) -> None:
            slot = slots[index % SLOTS]
            slot.returned.synchronize()
            run.finish(index, slot.host_output)

        for index, host_input in enumerate(run.batches):
            slot = slots[index % SLOTS]
            # HOLE: which batch used this slot before? Its output must be off the slot by now. Two lines.
            with run.submit(index):
                copy_to_device_async(slot.device_input, host_input, copy_in)
                slot.copied.record(copy_in)
                compute.wait(slot.copied)
                context.bind(slot.device_input, slot.device_output)
                context.execute_async_v3(compute)
                slot.computed.record(compute)
                copy_out.wait(slot.computed)
                copy_to_host_async(slot.host_output, slot.device_output, copy_out)
                slot.returned.record(copy_out)
        for index in range(len(run.done_ns), len(run.batches)):
            finish(index)


if __name__ == "__main__":
    session.main(options.parser(__doc__), infer, precision="fp16", page_lock=True)
