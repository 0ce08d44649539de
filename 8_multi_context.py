"""8 · Several contexts: independent batches side by side, a stream each.

What changes: the batches are dealt to ``--contexts`` execution contexts of one engine, in turn. Each context has a stream, on
which its batches run one after the other as in stage 4: no event orders two streams. The main thread submits for all of
them, and the worker finishes the batches in their order, as before.

A context holds the activations of one inference, so it serves one stream. The weights belong to the engine and are shared.
Contexts may share an optimization profile (in TensorRT 8.6 if the plan was built with ``--share-profile``, the default).

Differs from: 6_multi_threads.py

Why it helps: while one stream's batch is copied, another's computes, with no event between streams to get wrong. At small
batches, whose kernels do not fill the GPU, kernels of several contexts also run at the same time.

When it does not: against one context with a pipeline (stages 5 to 7) it comes second once the copy or the compute is
busy all the time: the contexts then queue for the same units, each costs memory, and every batch takes longer.

    python 8_multi_context.py --contexts 3

Against stage 4, whose loop each context runs: 3.32 → 1.53 ms a batch at batch 128, where stage 6 takes 1.46
(reports/h200-trt8.6-batch128); 0.45 → 0.27 ms at batch 1, where stage 6 takes 0.32 (reports/h200-trt8.6-batch1).

In the timeline: copies of one stream under kernels of another, without a single event between the two.

Try (simulated H200): ``--contexts 1``: 2.76 ms, copy and compute in turn; ``--contexts 3``: 1.39, where two take 1.40. Two are
enough, and each costs 514 MB.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

from common import options, session
from common.buffers import Slot, copy_to_device_async, copy_to_host_async
from common.cuda import Stream

SLOTS = 2  # for each context: one batch is post-processed while its next one is on the GPU


def infer(run: session.Session) -> None:
    """Deal the batches to the contexts, each on a stream of its own; a worker thread finishes them in order."""
    count = run.options.contexts
    memory = f"{run.engine.context_memory / 1e6:.1f}" if run.engine.context_memory else "unknown"
    run.notes.append(f"{count} contexts, {memory} MB of activations each")
    contexts = [run.engine.create_context() for _ in range(count)]
    for context in contexts:
        context.set_input_shape(run.batch_shape)
    with ExitStack() as resources:
        slots = [Slot(run, resources) for _ in range(SLOTS * count)]
        streams = [resources.enter_context(Stream()) for _ in range(count)]
        worker = resources.enter_context(ThreadPoolExecutor(1))
        finished: list[Future[None]] = []

        def finish(index: int, slot: Slot) -> None:
            slot.returned.synchronize()
            run.finish(index, slot.host_output)

        for index, host_input in enumerate(run.batches):
            slot, context, stream = slots[index % len(slots)], contexts[index % count], streams[index % count]
            if index >= len(slots):
                finished[index - len(slots)].result()  # the slot's last batch; only now may this one overwrite it
            with run.submit(index):
                copy_to_device_async(slot.device_input, host_input, stream)
                context.bind(slot.device_input, slot.device_output)
                context.execute_async_v3(stream)
                copy_to_host_async(slot.host_output, slot.device_output, stream)
                slot.returned.record(stream)
            finished.append(worker.submit(finish, index, slot))
        for batch in finished[-len(slots) :]:
            batch.result()  # raises what the worker raised


if __name__ == "__main__":
    parser = options.parser(__doc__)
    parser.add_argument("--contexts", type=options.positive, default=2, metavar="N", help="default: %(default)s")
    session.main(parser, infer, precision="fp16", page_lock=True)
