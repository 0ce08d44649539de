"""7 · CUDA graph: record a batch's launches once, replay them with one call.

What changes: each slot's inference and the copy of its output are captured into a graph before the loop, and the loop
launches the graph. A graph holds the addresses and the shape that it was captured with, so there is one for each slot and
shape. (The copy in stays outside: its source is another batch each time.) What is inside a graph no other stream can wait
for, so ``returned`` stands for the events ``consumed`` and ``computed`` as well, and the third stream has gone.

Capture fails if it meets the first enqueue for a shape: TensorRT then initialises itself, with calls that are illegal
during capture. So each context enqueues once, and finishes, before anything is captured. (The published version of this
step leaves that out, fails with "operation not permitted when stream is capturing" and concludes that the model cannot
be captured.)

Differs from: 6_multi_threads.py

Why it helps: an enqueue is dozens of kernel launches, each some microseconds of host time. Where the kernels are
shorter than that, as at batch 1, the GPU waits for the host; a graph is one launch.

When it does not: at large batches, where the launches hide behind the kernels. Then a graph only frees the host.

    python 7_cuda_graph.py --batch 1

Measured: 1.39 → 1.39 ms a batch (reports/h200-trt8.6-batch128), and at batch 1
Measured: 0.29 → 0.28 ms a batch (reports/h200-trt8.6-batch1), where the host's time to submit a batch falls from 205 to
46 µs. With kernels chosen for batch 1 a batch takes 0.16 ms (reports/h200-trt8.6-batch1-tuned).

In the timeline: short `infer` ranges, one ``cudaGraphLaunch`` in each, and kernels closer to one another.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from queue import Queue

import numpy as np

from common import options, session
from common.buffers import DeviceBuffer, copy_to_device_async, copy_to_host_async, page_locked
from common.cuda import CudaError, Event, Graph, Stream, clear_last_error, cudart
from common.engine import Context, TensorRTError
from common.worker import Worker

SLOTS = 3  # one batch is post-processed, one computes, the next is copied in


class Slot:
    """The buffers and events of one batch in flight."""

    def __init__(self, run: session.Session, resources: ExitStack) -> None:
        self.host_output = page_locked(run.output_shape)
        self.device_input = resources.enter_context(DeviceBuffer(run.batches[0].nbytes))
        self.device_output = resources.enter_context(DeviceBuffer(self.host_output.nbytes))
        self.copied, self.returned = (resources.enter_context(Event()) for _ in range(2))


def enqueue(context: Context, slot: Slot, stream: Stream) -> None:
    """The slot's work from its input on the device to its output on the host."""
    context.bind(slot.device_input, slot.device_output)
    context.execute_async_v3(stream)
    copy_to_host_async(slot.host_output, slot.device_output, stream)


def capture(context: Context, slot: Slot, sample: np.ndarray, stream: Stream) -> Graph:
    """The work of one slot as a graph; raises CudaError or TensorRTError where it cannot be captured."""
    context.set_input_shape(sample.shape)
    copy_to_device_async(slot.device_input, sample, stream)
    enqueue(context, slot, stream)  # TensorRT initialises for this shape here, not inside the capture
    stream.synchronize()
    # Thread-local: other threads may go on allocating and synchronizing; only this one must not.
    cudart.cudaStreamBeginCapture(stream.handle, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
    try:
        enqueue(context, slot, stream)
    except TensorRTError:
        abandon_capture(stream)
        raise
    graph = Graph(cudart.cudaStreamEndCapture(stream.handle))
    graph.upload(stream)
    return graph


def abandon_capture(stream: Stream) -> None:
    """Take the stream out of a capture that has gone wrong, and clear the error that it left."""
    try:
        cudart.cudaGraphDestroy(cudart.cudaStreamEndCapture(stream.handle))
    except CudaError:
        pass  # the very error that broke the capture
    clear_last_error()


def infer(run: session.Session) -> None:
    """Submit the batches through three slots, a graph launch each; a worker thread finishes them in the same order."""
    run.engine.require_precision(run.precision)
    context = run.engine.create_context()
    context.set_input_shape(run.batch_shape)
    with ExitStack() as resources:
        slots = [Slot(run, resources) for _ in range(SLOTS)]
        copy_in, compute = (resources.enter_context(Stream()) for _ in range(2))
        graphs: dict[tuple[Slot, tuple[int, ...]], Graph] = {}
        try:
            for slot in slots:
                for shape, sample in {batch.shape: batch for batch in run.batches}.items():
                    graphs[slot, shape] = resources.enter_context(capture(context, slot, sample, compute))
        except (CudaError, TensorRTError) as error:
            run.notes.append(f"capture failed, going on without graphs: {error}")
            graphs.clear()
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
                    copy_in.wait(slot.returned)  # or the copy would overwrite an input that inference still reads
                    copy_to_device_async(slot.device_input, host_input, copy_in)
                    slot.copied.record(copy_in)
                    compute.wait(slot.copied)
                    if graphs:
                        graphs[slot, host_input.shape].launch(compute)
                    else:
                        enqueue(context, slot, compute)
                    slot.returned.record(compute)
                submitted.put((index, slot))


def main() -> int:
    return session.run(options.parser(__doc__), infer, precision="fp16", page_lock=True)


if __name__ == "__main__":
    sys.exit(main())
