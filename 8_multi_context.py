"""8 · Several contexts: independent batches side by side, a thread and a stream each.

What changes: the loop of stage 4 runs in ``--contexts`` threads, each with an execution context, a stream and buffers of
its own, all from one engine. The batches are dealt to the threads in turn. A thread only submits; the main thread waits
for each batch's output, in the order of the batches, and post-processes it, so no stream stands still for the host.

A context holds the activations of one inference, so it serves one thread and one stream. The weights belong to the
engine and are shared. Contexts may share an optimization profile (in TensorRT 8.6 if the plan was built so).

Differs from: 4_use_fp16.py

Why it helps: while one stream's batch is copied, another's computes, with no event between streams to get wrong. At small
batches, whose kernels do not fill the GPU, kernels of several contexts also run at the same time.

When it does not: against one context with a pipeline (stages 5 to 7) it comes second once the copy or the compute is
busy all the time: the contexts then queue for the same engine, each costs memory, and every batch takes longer.

    python 8_multi_context.py --contexts 3

Measured: 3.20 → 1.40 ms a batch (reports/h200-trt8.6-batch128), where stage 6, with one context and less memory, takes
1.39; and at batch 1, where kernels of both contexts run at the same time,
Measured: 0.39 → 0.19 ms a batch (reports/h200-trt8.6-batch1), the fastest of the ladder, though two threads that launch
at once hold each other up: with kernels chosen for batch 1 stage 7's graph is faster (reports/h200-trt8.6-batch1-tuned).

In the timeline: copies of one stream under kernels of another, without a single event between the two.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from queue import Queue

from common import options, session
from common.buffers import DeviceBuffer, copy_to_device_async, copy_to_host_async, page_locked
from common.cuda import Event, Stream
from common.worker import Worker

OUTPUTS = 2  # one is post-processed while the lane's next batch is on the GPU


class Output:
    """The host's copy of one batch's output, and the event that says that it is there."""

    def __init__(self, run: session.Session, resources: ExitStack) -> None:
        self.host = page_locked(run.output_shape)
        self.returned = resources.enter_context(Event())


class Lane:
    """One context's thread: it submits every N-th batch and hands the outputs over."""

    def __init__(self, run: session.Session, first: int, step: int, resources: ExitStack) -> None:
        self.run, self.indices = run, range(first, len(run.batches), step)
        self.context = run.engine.create_context()
        self.context.set_input_shape(run.batch_shape)
        outputs = [Output(run, resources) for _ in range(OUTPUTS)]
        self.device_input = resources.enter_context(DeviceBuffer(run.batches[0].nbytes))
        self.device_output = resources.enter_context(DeviceBuffer(outputs[0].host.nbytes))
        self.context.bind(self.device_input, self.device_output)
        self.stream = resources.enter_context(Stream())
        self.free: Queue[Output | None] = Queue()  # outputs to write to; None: stop
        self.submitted: Queue[Output | None] = Queue(OUTPUTS + 1)  # in the order of the batches; None: the lane has ended
        for output in outputs:
            self.free.put(output)

    def infer(self) -> None:
        """Stage 4's loop over this lane's batches; the stream keeps them in order, so none waits for the host."""
        run, stream = self.run, self.stream
        try:
            for index in self.indices:
                if (output := self.free.get()) is None:
                    break
                with run.submit(index):
                    copy_to_device_async(self.device_input, run.batches[index], stream)
                    self.context.execute_async_v3(stream)
                    copy_to_host_async(output.host, self.device_output, stream)
                    output.returned.record(stream)
                self.submitted.put(output)
        finally:
            self.submitted.put(None)


def infer(run: session.Session) -> None:
    """Deal the batches to the lanes; finish them in order."""
    run.engine.require_precision(run.precision)
    count = run.options.contexts
    run.notes.append(f"{count} contexts, {run.engine.context_memory / 1e6:.1f} MB of activations each")
    with ExitStack() as resources:
        lanes = [Lane(run, first, count, resources) for first in range(count)]
        for lane in lanes:
            resources.enter_context(Worker(lane.infer, stop=lambda lane=lane: lane.free.put(None)))
        for index in range(len(run.batches)):
            lane = lanes[index % count]
            if (output := lane.submitted.get()) is None:
                break  # this lane has failed; leaving its Worker raises the reason
            output.returned.synchronize()
            run.finish(index, output.host)
            lane.free.put(output)


def main() -> int:
    parser = options.parser(__doc__)
    parser.add_argument("--contexts", type=options.positive, default=2, metavar="N", help="default: %(default)s")
    return session.run(parser, infer, precision="fp16", page_lock=True)


if __name__ == "__main__":
    sys.exit(main())
