"""5 · Multiple streams: copy the next batch in while this one computes.

What changes: three streams (copy in, compute, copy out) and two slots, each with its own buffers. Within a stream work
runs in order; between streams only where an event says so. Three events a slot are the whole schedule:

    copied      the input is on the device     the compute stream waits for it
    computed    the output is on the device    the copy-out stream waits for it
    returned    the output is on the host      the host waits for it

Only then is the slot refilled: a batch whose output is on the host has read its input. (``set_input_consumed_event`` would
say so earlier; that is for pipelines that refill inputs before the outputs are back.)

Differs from: 4_use_fp16.py

Why it helps: a GPU has copy engines beside its compute units. A batch then costs the longer of copy and compute, not
their sum.

When it does not: when one of the two is much longer than the other; the shorter is all there is to hide. From pageable
memory it does not work at all: such a copy holds the host up, and the schedule with it.

    python 5_multi_streams.py

Measured: 3.32 → 1.87 ms a batch (reports/h200-trt8.6-batch128).

In the timeline: the input copy of batch i+1 lies under the kernels of batch i. What is left is a gap on the GPU while
the host post-processes batch i: it submits the next batch only then. That gap is the subject of stage 6.

Try (simulated H200): ``page_lock=False`` in the last line: 11.6 ms instead of 1.76, the copies hold the host up. Delete the
line with ``compute.wait``: the kernels read what is not there yet, and no time is reported. ``--batch 1``: 0.38 ms, stage 4
takes 0.39.
"""

from __future__ import annotations

from contextlib import ExitStack

from common import options, session
from common.buffers import Slot, copy_to_device_async, copy_to_host_async
from common.cuda import Stream

SLOTS = 2  # one batch computes while the next is copied in


def infer(run: session.Session) -> None:
    """Run the batches through two slots; each batch is copied in while the one before it computes."""
    context = run.engine.create_context()
    context.set_input_shape(run.batch_shape)
    with ExitStack() as resources:
        slots = [Slot(run, resources) for _ in range(SLOTS)]
        copy_in, compute, copy_out = (resources.enter_context(Stream()) for _ in range(3))

        def enqueue_input(index: int) -> None:
            slot = slots[index % SLOTS]
            run.begin(index)
            copy_to_device_async(slot.device_input, run.batches[index], copy_in)
            slot.copied.record(copy_in)

        for index in range(len(run.batches)):
            slot = slots[index % SLOTS]
            with run.submit(index):
                if index == 0:
                    enqueue_input(0)
                compute.wait(slot.copied)
                context.bind(slot.device_input, slot.device_output)
                if index + 1 < len(run.batches):
                    enqueue_input(index + 1)  # before this batch's many launches, so that it runs beside all of them
                context.execute_async_v3(compute)
                slot.computed.record(compute)
                copy_out.wait(slot.computed)
                copy_to_host_async(slot.host_output, slot.device_output, copy_out)
                slot.returned.record(copy_out)
            slot.returned.synchronize()
            run.finish(index, slot.host_output)


if __name__ == "__main__":
    session.main(options.parser(__doc__), infer, precision="fp16", page_lock=True)
