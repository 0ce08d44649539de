"""The pipelines of the published tutorial that this ladder supersedes, on the same plan: what its steps reach when correct.

    python -m scripts.published streams --batch 128 --batches 60 --measure 50

    allocate   device memory allocated and freed for every batch, pageable copies, the default stream
    reuse      device memory allocated once
    pinned     page-locked host memory as well
    streams    one device input, refilled as soon as inference has read it; the host waits for each batch
    thread     the same, the results handed to a printing thread through a queue of one
    contexts   two contexts with a thread each, every batch serial in its thread

Written from that tutorial's description, with its mistakes mended, or their outputs would be wrong and no time reported:
the consumed event is set before the enqueue, and the printing thread gets a copy of the outputs, not the buffer that
the next batch is about to overwrite. Where a pipeline is a stage of the ladder with another plan, it is that stage's loop.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from queue import Queue

import numpy as np

from common import options, session
from common.buffers import DeviceBuffer, copy_to_device_async, copy_to_host_async, page_locked
from common.cuda import Event, Stream
from common.worker import Worker


def one_slot(run: session.Session, finish: Callable[[int, np.ndarray], None]) -> None:
    """One input and one output on the device; the next input is copied while this inference runs on what it has read."""
    context = run.engine.create_context()
    context.set_input_shape(run.batch_shape)
    host_output = page_locked(run.output_shape)
    with DeviceBuffer(run.batches[0].nbytes) as device_input, DeviceBuffer(host_output.nbytes) as device_output, \
            Stream() as copy_in, Stream() as compute, Event() as copied, Event() as consumed:
        context.bind(device_input, device_output)
        context.set_input_consumed_event(consumed)

        def enqueue_input(index: int) -> None:
            copy_in.wait(consumed)
            copy_to_device_async(device_input, run.batches[index], copy_in)
            copied.record(copy_in)

        for index in range(len(run.batches)):
            with run.submit(index):
                if index == 0:
                    enqueue_input(0)
                compute.wait(copied)
                context.execute_async_v3(compute)
                copy_to_host_async(host_output, device_output, compute)
                if index + 1 < len(run.batches):
                    enqueue_input(index + 1)
            compute.synchronize()
            finish(index, host_output)


def streams(run: session.Session) -> None:
    one_slot(run, run.finish)


def thread(run: session.Session) -> None:
    results: Queue[tuple[int, np.ndarray] | None] = Queue(1)

    def print_results() -> None:
        while (item := results.get()) is not None:
            run.finish(*item)

    with Worker(print_results, stop=lambda: results.put(None)):
        one_slot(run, lambda index, host_output: results.put((index, host_output.copy())))


def stage(name: str) -> Callable[[session.Session], None]:
    return importlib.import_module(name).infer


PIPELINES: dict[str, tuple[Callable[[session.Session], None], bool]] = {
    "allocate": (stage("1_baseline"), False), "reuse": (stage("2_reuse_buffers"), False), "pinned": (stage("4_use_fp16"), True),
    "streams": (streams, True), "thread": (thread, True), "contexts": (stage("8_multi_context"), True),
}
"""Name → (loop, whether the batches are page-locked)."""


def main() -> int:
    parser = options.parser(__doc__)
    parser.add_argument("pipeline", choices=PIPELINES)
    parser.set_defaults(contexts=2)
    chosen = parser.parse_known_args()[0].pipeline
    infer, page_lock = PIPELINES[chosen]
    return session.run(parser, infer, precision="fp16", page_lock=page_lock, name=f"published: {chosen}")


if __name__ == "__main__":
    sys.exit(main())
