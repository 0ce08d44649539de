"""3 · Page-locked memory: let the copy engine read the host's memory by itself.

What changes: the batches and the output lie in page-locked ("pinned") host memory. In a program of your own that is
where the loader or the decoder should write to; a copy into pinned memory inside the loop would only move the cost.

Differs from: 2_reuse_buffers.py

Why it helps: the operating system may move or swap out ordinary pages at any time, so the driver first copies them into
a page-locked staging buffer and the copy engine reads that. From page-locked memory the engine reads directly: the copy
runs at the speed of the link, and, which stage 5 needs, without the host.

When it does not: when copies are a small part of a batch. Page-locked memory is slow to allocate and is taken from
everybody, so allocate it once and no more than needed.

    python 3_use_pin_memory.py

Measured: 14.08 → 5.03 ms a batch (reports/h200-trt8.6-batch128).

In the timeline: the input copy takes about half as long, or less; the rest is as it was.

Try (simulated): ``--batch 1``: 0.93 → 0.87 ms, for there is little to copy. ``--device v100-sxm2-32gb``: 42.0 → 35.5 ms,
because there the kernels, not the copies, are the longest part.
"""

from __future__ import annotations

from common import options, session
from common.buffers import DeviceBuffer, copy_to_device, copy_to_host, page_locked


def infer(run: session.Session) -> None:
    """Run the batches one after the other through one pair of device buffers."""
    context = run.engine.create_context()
    context.set_input_shape(run.batch_shape)
    host_output = page_locked(run.output_shape, run.output_type)
    with DeviceBuffer(run.batches[0].nbytes) as device_input, DeviceBuffer(host_output.nbytes) as device_output:
        context.bind(device_input, device_output)
        for index, host_input in enumerate(run.batches):
            with run.submit(index):
                copy_to_device(device_input, host_input)
                context.execute_async_v3(None)
                copy_to_host(host_output, device_output)  # waits for the inference before it
            run.finish(index, host_output)


if __name__ == "__main__":
    session.main(options.parser(__doc__), infer, precision="fp32", page_lock=True)
