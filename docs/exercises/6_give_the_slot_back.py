"""6 · Give the slot back at the right moment. A worker finishes the batches, and a queue brings their slots back to the main
thread: too early. Move the line with HOLE to where it belongs.

    python -m sim --grade docs/exercises/6_give_the_slot_back.py
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import Queue

from common import options, session
from common.buffers import Slot, copy_to_device_async, copy_to_host_async
from common.cuda import Stream

TARGET = {"per_batch_ms": 1.45}


def infer(run: session.Session) -> None:
    """Stage 6 with a queue of free slots."""
    context, free = run.engine.create_context(), Queue()
    context.set_input_shape(run.batch_shape)
    with ExitStack() as resources:
        for _ in range(3):
            free.put(Slot(run, resources))
        copy_in, compute = (resources.enter_context(Stream()) for _ in range(2))
        worker = resources.enter_context(ThreadPoolExecutor(1))

        def finish(index: int, slot: Slot) -> None:
            slot.returned.synchronize()
            free.put(slot)  # HOLE
            run.finish(index, slot.host_output)

        for index, host_input in enumerate(run.batches):
            slot = free.get(timeout=1)  # a worker that fails gives none back
            with run.submit(index):
                copy_to_device_async(slot.device_input, host_input, copy_in)
                slot.copied.record(copy_in)
                compute.wait(slot.copied)
                context.bind(slot.device_input, slot.device_output)
                context.execute_async_v3(compute)
                copy_to_host_async(slot.host_output, slot.device_output, compute)
                slot.returned.record(compute)
            worker.submit(finish, index, slot)


if __name__ == "__main__":
    session.main(options.parser(__doc__), infer, precision="fp16", page_lock=True)
