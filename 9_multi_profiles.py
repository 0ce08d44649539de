"""9 · Several profiles: small and large batches, each on kernels chosen for them.

What changes: the plan has an optimization profile for each of ``--sizes``, and the batches come in those sizes in turn.
Each size has an execution context, which keeps the smallest profile that takes it. Two controls run after it on the same
batches: the plan of the stages before, whose one wide profile was optimized for a batch of 128; and the new plan with a
single context that changes its profile whenever the size changes.

Differs from: 4_use_fp16.py

Why it helps: TensorRT times its kernels for one batch size of a profile (its OPT) and only guarantees that they work for
the others. A kernel that is best for 128 images need not be for 16.

When it does not: with one batch size, or sizes close to one another. Each profile makes the build longer and the plan
larger, and each context holds activations of its own. Saving that memory with a single context is a bad bargain where
the sizes alternate: a change of profile or shape makes the next enqueue initialise again.

    python 9_multi_profiles.py --sizes 16,128

Measured with TensorRT 8.6 (reports/h200-trt8.6-batch128): serially, a batch of 16 takes 0.77 ms on its own profile and 0.81
on the wide one, where copies and post-processing are most of it; with a single context that changes its profile, 4.1 ms.
At batch 1 (reports/h200-trt8.6-batch1) it is 0.27 against 0.39 ms.

In the timeline: two lengths of batch in turn, and after the measured window the same again for each control; in the last
of them, host work before the kernels of every batch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from statistics import median

from common import options, session
from common.buffers import DeviceBuffer, copy_to_device_async, copy_to_host_async, page_locked
from common.cuda import Stream
from common.engine import Context, Engine
from common.prepare import default_plan
from common.verify import check


def serve(run: session.Session, contexts: Mapping[int, Context]) -> None:
    """Run the batches one after the other, each on the context of its size."""
    host_output = page_locked(run.output_shape)
    largest = max(batch.nbytes for batch in run.batches)
    with DeviceBuffer(largest) as device_input, DeviceBuffer(host_output.nbytes) as device_output, Stream() as stream:
        for index, host_input in enumerate(run.batches):
            with run.submit(index):
                context = contexts[len(host_input)]
                profile = run.engine.profile_for(len(host_input))
                if profile != context.active_optimization_profile:
                    context.set_optimization_profile_async(profile, stream)  # first: it forgets the shapes
                context.set_input_shape(host_input.shape)
                context.bind(device_input, device_output)
                copy_to_device_async(device_input, host_input, stream)
                context.execute_async_v3(stream)
                copy_to_host_async(host_output[: len(host_input)], device_output, stream)
            stream.synchronize()
            run.finish(index, host_output[: len(host_input)])


def context_for_each_size(run: session.Session) -> dict[int, Context]:
    return {size: run.engine.create_context() for size in {len(batch) for batch in run.batches}}


def infer(run: session.Session) -> None:
    """Serve the batches on kernels of their own; then, as controls, on the wide profile, and with a single context."""
    run.engine.require_precision(run.precision)
    serve(run, context_for_each_size(run))
    controls = {}
    if run.options.plan is None:  # a named plan may be of another model than the default one
        controls["on the wide one"] = wide = run.repeat(Engine(default_plan(run.precision)))
        serve(wide, context_for_each_size(wide))
    controls["where one context changes its profile for each batch"] = single = run.repeat(run.engine)
    context = run.engine.create_context()
    serve(single, {len(batch): context for batch in run.batches})
    if not run.options.no_verify:
        for control in controls.values():
            check(run.outputs, control.outputs)
    run.notes.append("batches of several sizes in turn, serially: to be held against stage 4, not against the pipelines")
    compared = {"on its own profile": run, **controls}
    for size in sorted({len(batch) for batch in run.batches}):
        times = ", ".join(f"{median(ms_by_size(each)[size]):.3f} ms {where}" for where, each in compared.items())
        run.notes.append(f"batch {run.charged(size)}: {times}")


def ms_by_size(run: session.Session) -> dict[int, list[float]]:
    """Milliseconds of the measured batches by size: in a serial loop, from the end of one to the end of the next."""
    times: dict[int, list[float]] = {}
    for batch, interval_ms in zip(run.batches[-run.measured:], run.intervals_ms):
        times.setdefault(len(batch), []).append(interval_ms)
    return times


def sizes(chosen: argparse.Namespace, size: options.Size) -> Sequence[int]:
    """``--sizes``, or the batch and an eighth of it."""
    return chosen.sizes or [max(1, size.batch // 8), size.batch]


def profiles(chosen: argparse.Namespace, size: options.Size) -> tuple[str, list[str]]:
    """The plan's name and how to build it: an optimization profile for each size (of a simulated run: as charged)."""
    wanted = sorted({round(batch * size.scale) for batch in sizes(chosen, size)})
    triples = [f"1,{batch},{batch}" for batch in wanted]
    return "".join(f"-{batch}" for batch in wanted), [part for triple in triples for part in ("--profile", triple)]


def main() -> int:
    parser = options.parser(__doc__)
    parser.add_argument("--sizes", type=lambda text: [options.positive(part) for part in text.split(",")],
                        metavar="A,B,…", help="the batch sizes, in turn (default: an eighth of the batch, and the batch)")
    parser.set_defaults(measure=4)  # as many small batches as large ones
    return session.run(parser, infer, precision="fp16", page_lock=True, sizes=sizes, variant=profiles)


if __name__ == "__main__":
    sys.exit(main())
