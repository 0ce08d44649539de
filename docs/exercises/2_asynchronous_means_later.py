"""2 · Asynchronous means later. The copies no longer hold the host up, and it reads what is not there yet. Replace the HOLE
with one line.

    python -m sim --grade docs/exercises/2_asynchronous_means_later.py
"""

from __future__ import annotations

from common import options, session
from common.buffers import DeviceBuffer, copy_to_device_async, copy_to_host_async, page_locked
from common.cuda import Stream

TARGET = {"per_batch_ms": 3.2}


def infer(run: session.Session) -> None:
    """Stage 4 with asynchronous copies, all in one stream."""
    context = run.engine.create_context()
    context.set_input_shape(run.batch_shape)
    host_output = page_locked(run.output_shape, run.output_type)
    nbytes = run.batches[0].nbytes, host_output.nbytes
    with Stream() as stream, DeviceBuffer(nbytes[0]) as device_input, DeviceBuffer(nbytes[1]) as device_output:
        context.bind(device_input, device_output)
        for index, host_input in enumerate(run.batches):
            with run.submit(index):
                copy_to_device_async(device_input, host_input, stream)
                context.execute_async_v3(stream)
                copy_to_host_async(host_output, device_output, stream)
            # HOLE: is the output on the host here?
            run.finish(index, host_output)


if __name__ == "__main__":
    session.main(options.parser(__doc__), infer, precision="fp16", page_lock=True)
