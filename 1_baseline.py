"""1 · Baseline: everything anew for every batch, the host waiting for each step.

What it does: for every batch, allocate device memory, copy the input from ordinary host memory, run inference on the
default stream, copy the output back, free the device memory, post-process. It is what a first version looks like, and
the yardstick of everything after it. (`DeviceBuffer`, `run.submit` and `run.finish` are explained in docs/common.md.)

Differs from: nothing; this is where the ladder starts.

Why it is slow: each step waits for the one before, so the copy engine, the compute units and the host take turns;
``cudaMalloc`` and ``cudaFree`` sit between the batches, and ``cudaFree`` waits for the whole device; the copy from
pageable memory goes through a staging buffer.

When it is good enough: when inference is a small part of a request, or runs once.

    python 1_baseline.py

In the timeline: one thing at a time. Between the output copy of one batch and the input copy of the next lie
post-processing and the allocations.

Try (simulated H200): ``--batch 1``: 0.95 ms, of which the kernels are 0.75, and copies hardly matter. ``--precision fp16``:
13.6 → 11.9 ms only: a faster engine does little for a loop that waits for its copies.
"""

from __future__ import annotations

from common import options, session
from common.buffers import DeviceBuffer, copy_to_device, copy_to_host, pageable


def infer(run: session.Session) -> None:
    """Run the batches one after the other; nothing is kept from one to the next."""
    context = run.engine.create_context()
    context.set_input_shape(run.batch_shape)
    host_output = pageable(run.output_shape, run.output_type)
    for index, host_input in enumerate(run.batches):
        with DeviceBuffer(host_input.nbytes) as device_input, DeviceBuffer(host_output.nbytes) as device_output:
            context.bind(device_input, device_output)
            with run.submit(index):
                copy_to_device(device_input, host_input)
                context.execute_async_v3(None)
                copy_to_host(host_output, device_output)  # waits for the inference before it
        run.finish(index, host_output)


if __name__ == "__main__":
    session.main(options.parser(__doc__), infer, precision="fp32", page_lock=False)
