"""7 · CUDA graph: record a batch's launches once, replay them with one call.

What changes: each slot's inference and the copy of its output are captured into a graph before the loop, and the loop
launches the graph. A graph holds the addresses and the shape that it was captured with, so there is one for each slot, all
captured from one context. (TensorRT for RTX wants a context for each.) The copy in stays outside: its source is another batch
each time. The copy out follows the kernels in the same stream: no third stream, no event `computed`, but the next kernels wait.

Capture fails if it meets the first enqueue for a shape: TensorRT then initialises itself, with calls that are illegal
during capture. So each slot's work is enqueued once before it is captured. (The published version of this step leaves
that out, fails with "operation not permitted when stream is capturing" and concludes that the model cannot be captured.)
Where a capture fails for another reason, the work is launched one by one, and the result says why.

Differs from: 6_multi_threads.py

Why it helps: an enqueue is dozens of kernel launches, each some microseconds of host time. Where the kernels are
shorter than that, as at batch 1, the GPU waits for the host; a graph is one launch.

When it does not: at large batches, where the launches hide behind the kernels. Then a graph only frees the host.

    python 7_cuda_graph.py --batch 1

Measured: 1.46 → 1.46 ms a batch (reports/h200-trt8.6-batch128), and at batch 1
Measured: 0.32 → 0.29 ms a batch (reports/h200-trt8.6-batch1), where the host's time to submit a batch falls from 276 to
46 µs. With kernels chosen for batch 1
Measured: 0.20 → 0.17 ms a batch (reports/h200-trt8.6-batch1-tuned).

In the timeline: short `infer` ranges, one ``cudaGraphLaunch`` in each, and kernels closer to one another.

Try (simulated H200): the second table of scripts/profile_all.sh is this step on a plan for batch 1: 0.176 → 0.167 ms, the
submission 174 → 22 µs. Delete the first line of ``capture``: the capture fails, the result says why, the outputs are right.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

from common import options, session
from common.buffers import Slot, copy_to_device_async, copy_to_host_async
from common.cuda import CaptureError, Graph, Stream
from common.engine import Context

SLOTS = 3  # one batch is post-processed, one computes, the next is copied in


def enqueue(context: Context, slot: Slot, stream: Stream) -> None:
    """The slot's work from its input on the device to its output on the host."""
    context.bind(slot.device_input, slot.device_output)
    context.execute_async_v3(stream)
    copy_to_host_async(slot.host_output, slot.device_output, stream)


def capture(context: Context, slot: Slot, stream: Stream) -> Graph:
    """The slot's work as a graph, which keeps the slot's addresses and the context's shape."""
    enqueue(context, slot, stream)  # TensorRT initialises for this shape here, not inside the capture
    stream.synchronize()  # it has read the slot's input, into which the first batch will be copied
    with stream.capture() as graph:
        enqueue(context, slot, stream)
    return graph


def infer(run: session.Session) -> None:
    """Submit the batches through three slots, a graph launch each; a worker thread finishes them in the same order."""
    contexts = run.engine.graph_contexts(SLOTS, run.batch_shape)
    with ExitStack() as resources:
        slots = [Slot(run, resources) for _ in range(SLOTS)]
        copy_in, compute = (resources.enter_context(Stream()) for _ in range(2))
        try:
            graphs = [resources.enter_context(capture(*each, compute)) for each in zip(contexts, slots)]
        except CaptureError as error:
            run.notes.append(f"not captured, so launched one by one: {error}")
            graphs = []
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
                if graphs:
                    graphs[index % SLOTS].launch(compute)
                else:
                    enqueue(contexts[index % SLOTS], slot, compute)
                slot.returned.record(compute)
            finished.append(worker.submit(finish, index, slot))
        for batch in finished[-SLOTS:]:
            batch.result()  # raises what the worker raised


if __name__ == "__main__":
    session.main(options.parser(__doc__), infer, precision="fp16", page_lock=True)
