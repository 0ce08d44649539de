"""6 · A worker thread: post-process one batch while the next ones are on the GPU.

What changes: a worker thread waits for each batch's output and post-processes it; the main thread only submits. A third
slot holds the batch that is being post-processed. The worker is the standard library's ``ThreadPoolExecutor`` with one
thread, so batches are finished in order; a batch's future is done when its output has been read, and only then does the
main thread refill the slot. A future also carries an exception: if the worker fails, the main thread raises it. Now that the
main thread runs ahead, a batch's own copy in is early enough: stage 5's ``enqueue_input`` for the next one has gone.

Differs from: 5_multi_streams.py

Why it helps: the host no longer stands between two batches. The GPU always has the next batch's work in its streams, so
the batch costs what its longest part costs. Submitting ahead without a thread does the same while post-processing and
submission together are shorter than the batch's work on the GPU: docs/exercises/5_submit_ahead.py, solved, takes 1.40 ms
on the simulated H200, this script 1.39 (modelled; stage 5: 1.76). With a thread they need not be shorter.

When it does not: in Python, when the post-processing holds the interpreter lock and the submission waits for it. NumPy
and CUDA calls release the lock; a loop over pixels in pure Python would not.

    python 6_multi_threads.py

Measured: 1.87 → 1.46 ms a batch (reports/h200-trt8.6-batch128), 95 % of the input copy's limit. A batch is longer on its way:
4.2 ms in the median, in stage 5 3.7, in stage 4 3.4.

In the timeline: kernels follow kernels without a gap. `infer` ranges run ahead of the GPU: they time the submission, and
the main thread's waiting for a free slot lies between them.

Try (simulated H200): ``SLOTS = 2``: 1.56 ms, the main thread waits for a slot; ``SLOTS = 1``: 3.09, no overlap at all;
``SLOTS = 4``: 1.39, no gain over three. Delete the ``if`` that waits for the slot's last batch: wrong outputs.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

from common import options, session
from common.buffers import Slot, copy_to_device_async, copy_to_host_async
from common.cuda import Stream

SLOTS = 3  # one batch is post-processed, one computes, the next is copied in


def infer(run: session.Session) -> None:
    """Submit the batches through three slots; a worker thread finishes them in the same order."""
    context = run.engine.create_context()
    context.set_input_shape(run.batch_shape)
    with ExitStack() as resources:
        slots = [Slot(run, resources) for _ in range(SLOTS)]
        copy_in, compute, copy_out = (resources.enter_context(Stream()) for _ in range(3))
        worker = resources.enter_context(ThreadPoolExecutor(1))
        finished: list[Future[None]] = []

        def finish(index: int, slot: Slot) -> None:
            slot.returned.synchronize()
            run.finish(index, slot.host_output)

        for index, host_input in enumerate(run.batches):
            slot = slots[index % SLOTS]
            if index >= SLOTS:
                finished[index - SLOTS].result()  # the slot's last batch; only now may this one overwrite it
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
            finished.append(worker.submit(finish, index, slot))
        for batch in finished[-SLOTS:]:
            batch.result()  # raises what the worker raised


if __name__ == "__main__":
    session.main(options.parser(__doc__), infer, precision="fp16", page_lock=True)
