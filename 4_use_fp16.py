"""4 · FP16: half the bytes for every weight and activation, and the tensor cores for the arithmetic.

What changes: the plan. It is built from an ONNX file with FP16 weights and activations (``0_build.py --fp16``); inputs
and outputs stay FP32. The script refuses its own plan if the layers, by the engine inspector's word, do not work in FP16: a
builder that was allowed FP16 and kept FP32 anyway is a classic way to publish the wrong number.

Differs from: 3_use_pin_memory.py

Why it helps: matrix units do several times as many FP16 operations a second, and memory-bound layers move half the
bytes. Compute shrinks and the input copy, which is FP32 still, becomes a large part of the batch: the next limit.

When it does not: where the copy or the host already is the limit; and where the network's values leave FP16's range
(65 504) or need more than its 11 bits. The result says how far the outputs are from FP32's.

    python 4_use_fp16.py

Measured: 5.03 → 3.32 ms a batch (reports/h200-trt8.6-batch128).

In the timeline: the same picture as before with shorter kernels; the copy engine and the compute units still take turns.

Try (simulated H200): ``--precision fp32``: 4.83 ms again, stage 3's time, for nothing else has changed. ``--batch 1``: 0.39 ms
against stage 3's 0.87.
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
    session.main(options.parser(__doc__), infer, precision="fp16", page_lock=True)
