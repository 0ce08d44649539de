"""9 · Several profiles: small and large batches, each on kernels chosen for them.

What changes: the plan has an optimization profile for each of ``--sizes``, and the batches come in those sizes in turn.
Each size has an execution context, with the smallest profile that takes it. As a control, the same batches then run on the
plan of the stages before, whose one wide profile was optimized for a batch of 128.

Differs from: 4_use_fp16.py; a side branch of the ladder

Why it helps: TensorRT times its kernels for one batch size of a profile (its OPT) and only guarantees that they work for
the others. A kernel that is best for 128 images need not be for 16.

When it does not: with one batch size, or sizes close to one another. Each profile makes the build longer and the plan
larger, and each context holds activations of its own. A single context for both sizes saves that memory, but a change of
profile or shape makes its next enqueue initialise again.

    python 9_multi_profiles.py --sizes 16,128

Measured with TensorRT 8.6 (reports/h200-trt8.6-batch128-earlier): a batch of 16 takes 0.83 ms on its own profile, 0.87 on the
wide one. At batch 1 (reports/h200-trt8.6-batch1) it is 0.29 against 0.42 ms.

In the timeline: two lengths of batch in turn, and after the measured window the same again for the control.

Try (simulated H200): ``--batch 1``: 0.27 ms on its own profile, 0.39 on the wide one. ``--sizes 32,128``: 0.98 against 1.01 for
32 images: the nearer a size is to OPT, the less there is to gain.
"""

from __future__ import annotations

from common import options, session
from common.buffers import DeviceBuffer, copy_to_device, copy_to_host, page_locked
from common.plans import default_plan
from common.tensors import first_rows


def serve(run: session.Session) -> None:
    """Run the batches one after the other, each on the context of its size."""
    host_output = page_locked(run.output_shape, run.output_type)
    largest = max(batch.nbytes for batch in run.batches)
    with DeviceBuffer(largest) as device_input, DeviceBuffer(host_output.nbytes) as device_output:
        contexts = {}
        for shape in {batch.shape for batch in run.batches}:
            contexts[shape] = run.engine.create_context(run.engine.profile_for(shape[0]))
            contexts[shape].set_input_shape(shape)
            contexts[shape].bind(device_input, device_output)
        for index, host_input in enumerate(run.batches):
            outputs = first_rows(host_output, run.engine.outputs, len(host_input))
            with run.submit(index):
                copy_to_device(device_input, host_input)
                contexts[host_input.shape].execute_async_v3(None)
                copy_to_host(outputs, device_output)  # waits for the inference before it
            run.finish(index, outputs)


def infer(run: session.Session) -> None:
    """Serve the batches on kernels chosen for their sizes; then, as a control, on those of one wide profile."""
    serve(run)
    if run.options.plan is None:  # a named plan may be of another model than the default one
        run.control(serve, lambda: default_plan(run.precision), "on one wide profile")


if __name__ == "__main__":
    parser = options.parser(__doc__)
    in_turn = "batch sizes, in turn (default: an eighth of the batch, and the batch)"
    parser.add_argument("--sizes", type=options.positives, metavar="A,B,…", help=in_turn)
    session.main(parser, infer, precision="fp16", page_lock=True)
