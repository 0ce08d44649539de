"""10 · uint8 input: send the pictures' bytes, and let the plan normalise them.

What changes: the batches hold bytes instead of floats, and the plan takes them. The pipeline is stage 7's: shapes, sizes and
types are the plan's. Only the copy out leaves the graph for a stream of its own, as in stage 6: now that the kernels are the
limit, nothing else may take its turn between them. The rest is in the ONNX file, which ``0_build.py --input bytes`` makes:
x = (byte / 255 − mean) / deviation is linear, as the first convolution is, whose weights take it in. Two things are to be
seen to. The convolution pads the border with zeros, which are the mean's colour after the subtraction and black before it:
so a fourth plane, 255 everywhere, carries the mean, and is 0 in the padding too. And whatever stands in front of the
convolution is a kernel of its own that reads and writes every picture: only folded is normalisation free.

Differs from: 7_cuda_graph.py

Why it helps: stages 6 and 7 wait for the link and for nothing else. With a third of the bytes the kernels are the longest
part, so that what makes them faster counts again: INT8 (docs/int8.md), whose bytes go straight into the first convolution.
It follows stage 7 and not 8, because one context holds the activations once, and a graph is one launch a batch.

When it does not: where compute was the limit already. And where something stands in front of the convolution: see ``--layout``.

    python 10_uint8_input.py
    python 0_build.py --int8 --input bytes --calibration-images photos/
    python 10_uint8_input.py --precision int8

Measured: 1.46 → 1.42 ms a batch (reports/h200-trt8.6-batch128), 97 % of its limit, which is the power's; 0.80 in INT8, 99 %
(FP32's class for 78 % of the noise: reports/h200-trt8.6-batch128-int8-bytes).

In the timeline: the copy in takes a third of its row, and the kernels follow one another without a gap.

Try (simulated H200): the copy 1.393 → 0.466 ms, compute 1.343 → 1.358: the limit has moved. ``--layout nhwc``, the pixels as
decoders give them, turns them in the plan: compute 1.461 ms, more than the link gives back. In INT8 (docs/int8.md): 0.819 ms
a batch. Copy out on ``compute`` as stage 7 does: 1.370 → 1.391 ms.
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
    """The slot's inference, and nothing else."""
    context.bind(slot.device_input, slot.device_output)
    context.execute_async_v3(stream)


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
        copy_in, compute, copy_out = (resources.enter_context(Stream()) for _ in range(3))
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
                slot.computed.record(compute)
                copy_out.wait(slot.computed)
                copy_to_host_async(slot.host_output, slot.device_output, copy_out)
                slot.returned.record(copy_out)
            finished.append(worker.submit(finish, index, slot))
        for batch in finished[-SLOTS:]:
            batch.result()  # raises what the worker raised


if __name__ == "__main__":
    parser = options.parser(__doc__)
    bytes_lie = "the default plan's bytes: by colour, or by pixel, as decoders give them (default: nchw)"
    parser.add_argument("--layout", choices=("nchw", "nhwc"), help=bytes_lie)
    session.main(parser, infer, precision="fp16", page_lock=True)
