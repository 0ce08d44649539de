"""2 · Reuse buffers: allocate device memory once, before the loop.

What changes: the two ``DeviceBuffer`` lines move out of the loop, and with them ``cudaMalloc`` and ``cudaFree``.

Differs from: 1_baseline.py

Why it helps: an allocation is a call into the driver that maps memory, and ``cudaFree`` waits for everything on the
device before it unmaps. A serial loop loses their own time; a pipeline would lose its overlap as well, so this comes
before any pipeline.

When it does not: when the batches differ so much in size that no one buffer serves them all. Then allocate the largest
(stage 9), or take memory from a pool with ``cudaMallocAsync``.

    python 2_reuse_buffers.py

Measured: 14.20 → 14.08 ms a batch (reports/h200-trt8.6-batch128): lost in pageable copies, which differ more between runs.
Measured: 1.05 → 0.97 ms a batch (reports/h200-trt8.6-batch1), where the copies are short.

In the timeline: no ``cudaMalloc`` or ``cudaFree`` between two batches; the copies and kernels are as long as before.

Try (simulated): ``--batch 1``: 0.95 → 0.93 ms. ``--device v100-sxm2-32gb``: 43.8 → 42.0, since allocations cost more there.
"""

from __future__ import annotations

from common import options, session
from common.buffers import DeviceBuffer, copy_to_device, copy_to_host, pageable


def infer(run: session.Session) -> None:
    """Run the batches one after the other through one pair of device buffers."""
    context = run.engine.create_context()
    context.set_input_shape(run.batch_shape)
    host_output = pageable(run.output_shape, run.output_type)
    with DeviceBuffer(run.batches[0].nbytes) as device_input, DeviceBuffer(host_output.nbytes) as device_output:
        context.bind(device_input, device_output)
        for index, host_input in enumerate(run.batches):
            with run.submit(index):
                copy_to_device(device_input, host_input)
                context.execute_async_v3(None)
                copy_to_host(host_output, device_output)  # waits for the inference before it
            run.finish(index, host_output)


if __name__ == "__main__":
    session.main(options.parser(__doc__), infer, precision="fp32", page_lock=False)
