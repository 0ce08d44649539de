"""5 · Multiple streams: copy the next batch in while this one computes.

What changes: three streams (copy in, compute, copy out) and two slots, each with its own buffers. Within a stream work
runs in order; between streams only where an event says so. Four events a slot are the whole schedule:

    copied      the input is on the device         the compute stream waits for it
    consumed    inference has read the input       the copy-in stream waits for it before it refills the slot
    computed    the output is on the device        the copy-out stream waits for it
    returned    the output is on the host          the host waits for it

Differs from: 4_use_fp16.py

Why it helps: a GPU has copy engines beside its compute units. A batch then costs the longer of copy and compute, not
their sum.

When it does not: when one of the two is much longer than the other; the shorter is all there is to hide. From pageable
memory it does not work at all: such a copy holds the host up, and the schedule with it.

    python 5_multi_streams.py

Measured: 3.20 → 1.76 ms a batch (reports/h200-trt8.6-batch128).

In the timeline: the input copy of batch i+1 lies under the kernels of batch i. What is left is a gap on the GPU while
the host post-processes batch i: it submits the next batch only then. That gap is the subject of stage 6.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

from common import options, session
from common.buffers import DeviceBuffer, copy_to_device_async, copy_to_host_async, page_locked
from common.cuda import Event, Stream

SLOTS = 2  # one batch computes while the next is copied in


class Slot:
    """The buffers and events of one batch in flight."""

    def __init__(self, run: session.Session, resources: ExitStack) -> None:
        self.host_output = page_locked(run.output_shape)
        self.device_input = resources.enter_context(DeviceBuffer(run.batches[0].nbytes))
        self.device_output = resources.enter_context(DeviceBuffer(self.host_output.nbytes))
        self.copied, self.consumed, self.computed, self.returned = (resources.enter_context(Event()) for _ in range(4))


def infer(run: session.Session) -> None:
    """Run the batches through two slots; each batch is copied in while the one before it computes."""
    run.engine.require_precision(run.precision)
    context = run.engine.create_context()
    context.set_input_shape(run.batch_shape)
    with ExitStack() as resources:
        slots = [Slot(run, resources) for _ in range(SLOTS)]
        copy_in, compute, copy_out = (resources.enter_context(Stream()) for _ in range(3))

        def enqueue_input(index: int) -> None:
            slot = slots[index % SLOTS]
            copy_in.wait(slot.consumed)  # or the copy would overwrite an input that inference still reads
            copy_to_device_async(slot.device_input, run.batches[index], copy_in)
            slot.copied.record(copy_in)

        for index in range(len(run.batches)):
            slot = slots[index % SLOTS]
            with run.submit(index):
                if index == 0:
                    enqueue_input(0)
                compute.wait(slot.copied)
                context.bind(slot.device_input, slot.device_output)
                context.set_input_consumed_event(slot.consumed)  # before the enqueue: only later enqueues record it
                if index + 1 < len(run.batches):
                    enqueue_input(index + 1)  # before this batch's many launches, so that it runs beside all of them
                context.execute_async_v3(compute)
                slot.computed.record(compute)
                copy_out.wait(slot.computed)
                copy_to_host_async(slot.host_output, slot.device_output, copy_out)
                slot.returned.record(copy_out)
            slot.returned.synchronize()
            run.finish(index, slot.host_output)


def main() -> int:
    return session.run(options.parser(__doc__), infer, precision="fp16", page_lock=True)


if __name__ == "__main__":
    sys.exit(main())
