"""8 · Several contexts: independent batches side by side, a thread and a stream each.

What changes: the serial loop of stage 4 runs in ``--contexts`` threads, each with an execution context, a stream and
buffers of its own, all from one engine. The batches are dealt to the threads in turn; the main thread takes the results
back in the same order and post-processes them.

A context holds the activations of one inference, so it serves one thread and one stream. The weights belong to the
engine and are shared. Contexts may share an optimization profile (in TensorRT 8.6 if the plan was built so).

Differs from: 4_use_fp16.py

Why it helps: while one thread's batch is copied, another's computes, with no event to get wrong. At small batches, whose
kernels do not fill the GPU, kernels of several contexts also run at the same time.

When it does not: against one context with a pipeline (stages 5 to 7) it comes second once the copy or the compute is
busy all the time: the contexts then queue for the same engine, each costs memory, and every batch takes longer.

    python 8_multi_context.py --contexts 3

Measured: 3.39 → 1.67 ms a batch (reports/h200-trt8.6-batch128), where stage 6, with one context and less memory, takes
1.60; and at batch 1, where kernels of both contexts run at the same time,
Measured: 0.39 → 0.21 ms a batch (reports/h200-trt8.6-batch1), the fastest of the ladder.

In the timeline: copies of one stream under kernels of another, without a single event between them.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from queue import Queue

import numpy as np

from common import options, session
from common.buffers import DeviceBuffer, copy_to_device_async, copy_to_host_async, page_locked
from common.cuda import Stream
from common.worker import Worker

HOST_OUTPUTS = 2  # one is post-processed while the lane's next batch is on the GPU


class Lane:
    """One context's thread: it runs every N-th batch and hands the outputs over."""

    def __init__(self, run: session.Session, first: int, step: int) -> None:
        self.run, self.indices = run, range(first, len(run.batches), step)
        self.free: Queue[np.ndarray | None] = Queue()  # host outputs to write to; None: stop
        self.outputs: Queue[np.ndarray | None] = Queue(HOST_OUTPUTS + 1)  # the filled ones; None: the lane has ended

    def infer(self) -> None:
        """Stage 4's loop over this lane's batches."""
        run = self.run
        try:
            context = run.engine.create_context()
            context.set_input_shape(run.batch_shape)
            host_outputs = [page_locked(run.output_shape) for _ in range(HOST_OUTPUTS)]
            for host_output in host_outputs:
                self.free.put(host_output)
            with DeviceBuffer(run.batches[0].nbytes) as device_input, DeviceBuffer(host_output.nbytes) as device_output, \
                    Stream() as stream:
                context.bind(device_input, device_output)
                for index in self.indices:
                    if (host_output := self.free.get()) is None:
                        break
                    with run.submit(index):
                        copy_to_device_async(device_input, run.batches[index], stream)
                        context.execute_async_v3(stream)
                        copy_to_host_async(host_output, device_output, stream)
                    stream.synchronize()
                    self.outputs.put(host_output)
        finally:
            self.outputs.put(None)


def infer(run: session.Session) -> None:
    """Deal the batches to the lanes; finish them in order."""
    run.engine.require_precision(run.precision)
    count = run.options.contexts
    run.notes.append(f"{count} contexts, {run.engine.context_memory / 1e6:.1f} MB of activations each")
    lanes = [Lane(run, first, count) for first in range(count)]
    with ExitStack() as workers:
        for lane in lanes:
            workers.enter_context(Worker(lane.infer, stop=lambda lane=lane: lane.free.put(None)))
        for index in range(len(run.batches)):
            lane = lanes[index % count]
            if (host_output := lane.outputs.get()) is None:
                break  # this lane has failed; leaving its Worker raises the reason
            run.finish(index, host_output)
            lane.free.put(host_output)


def main() -> int:
    parser = options.parser(__doc__)
    parser.add_argument("--contexts", type=options.positive, default=2, metavar="N", help="default: %(default)s")
    return session.run(parser, infer, precision="fp16", page_lock=True)


if __name__ == "__main__":
    sys.exit(main())
