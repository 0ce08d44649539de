"""6 · A worker thread: post-process one batch while the next ones are on the GPU.

What changes: a worker thread waits for each batch's output and post-processes it; the main thread only submits. A third
slot holds the batch that is being post-processed. Two queues hand the slots around: a slot goes to the worker when its
work is submitted, and comes back, to be refilled, only after its output has been read.

Differs from: 5_multi_streams.py

Why it helps: the host no longer stands between two batches. The GPU always has the next batch's work in its streams, so
the batch costs what its longest part costs. (Submitting ahead without a thread hides the post-processing as well, as
long as that is shorter than the batch's work on the GPU, as it is here: 0.35 ms against 1.39 ms in the report named below.
With a thread the two need not fit.)

When it does not: in Python, when the post-processing holds the interpreter lock and the submission waits for it. NumPy
and CUDA calls release the lock; a loop over pixels in pure Python would not.

    python 6_multi_threads.py

Measured: 1.76 → 1.39 ms a batch (reports/h200-trt8.6-batch128), the input copy's limit.

In the timeline: kernels follow kernels without a gap. `infer` ranges run ahead of the GPU: they time the submission, and
the main thread's waiting for a free slot lies between them.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from queue import Queue

from common import options, session
from common.buffers import DeviceBuffer, copy_to_device_async, copy_to_host_async, page_locked
from common.cuda import Event, Stream
from common.worker import Worker

SLOTS = 3  # one batch is post-processed, one computes, the next is copied in


class Slot:
    """The buffers and events of one batch in flight."""

    def __init__(self, run: session.Session, resources: ExitStack) -> None:
        self.host_output = page_locked(run.output_shape)
        self.device_input = resources.enter_context(DeviceBuffer(run.batches[0].nbytes))
        self.device_output = resources.enter_context(DeviceBuffer(self.host_output.nbytes))
        self.copied, self.consumed, self.computed, self.returned = (resources.enter_context(Event()) for _ in range(4))


def infer(run: session.Session) -> None:
    """Submit the batches through three slots; a worker thread finishes them in the same order."""
    run.engine.require_precision(run.precision)
    context = run.engine.create_context()
    context.set_input_shape(run.batch_shape)
    with ExitStack() as resources:
        slots = [Slot(run, resources) for _ in range(SLOTS)]
        copy_in, compute, copy_out = (resources.enter_context(Stream()) for _ in range(3))
        free: Queue[Slot | None] = Queue()
        submitted: Queue[tuple[int, Slot] | None] = Queue(SLOTS + 1)  # every slot, and the None that ends the worker
        for slot in slots:
            free.put(slot)

        def finish_batches() -> None:
            try:
                while (item := submitted.get()) is not None:
                    index, slot = item
                    slot.returned.synchronize()
                    run.finish(index, slot.host_output)
                    free.put(slot)  # only now may the next batch's output overwrite this one's
            finally:
                free.put(None)  # if the worker fails, the main thread must not wait for its slot

        with Worker(finish_batches, stop=lambda: submitted.put(None)):
            for index, host_input in enumerate(run.batches):
                if (slot := free.get()) is None:
                    break
                with run.submit(index):
                    copy_in.wait(slot.consumed)  # or the copy would overwrite an input that inference still reads
                    copy_to_device_async(slot.device_input, host_input, copy_in)
                    slot.copied.record(copy_in)
                    compute.wait(slot.copied)
                    context.bind(slot.device_input, slot.device_output)
                    context.set_input_consumed_event(slot.consumed)  # before the enqueue: only later enqueues record it
                    context.execute_async_v3(compute)
                    slot.computed.record(compute)
                    copy_out.wait(slot.computed)
                    copy_to_host_async(slot.host_output, slot.device_output, copy_out)
                    slot.returned.record(copy_out)
                submitted.put((index, slot))


def main() -> int:
    return session.run(options.parser(__doc__), infer, precision="fp16", page_lock=True)


if __name__ == "__main__":
    sys.exit(main())
