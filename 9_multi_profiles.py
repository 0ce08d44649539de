"""9 · Several profiles: small and large batches, each on kernels chosen for them.

What changes: the plan has an optimization profile for each of ``--sizes``, and the batches come in those sizes in turn.
Each batch uses the smallest profile that takes it. The same batches then run on the plan of the stages before, whose one
wide profile was optimized for a batch of 128, and the result compares the two.

Differs from: 4_use_fp16.py

Why it helps: TensorRT times its kernels for one batch size of a profile (its OPT) and only guarantees that they work for
the others. A kernel that is best for 128 images need not be for 16.

When it does not: with one batch size, or sizes close to one another. Each profile makes the build longer and the plan
larger, and a change of profile or shape makes the next enqueue initialise again: sort the requests by size, or keep a
context for each profile, where they alternate as they do here.

    python 9_multi_profiles.py --sizes 16,128

Measured with TensorRT 8.6 (reports/h200-trt8.6-batch128): alternating, a batch of 16 takes 4.25 ms on its own profile and
0.85 ms on the wide one. Changing the profile costs several times what the better kernels could bring; the step is kept
because it shows where that cost lies.

In the timeline: two lengths of batch in turn; after each change of profile, host work before the kernels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import median

from common import options, session
from common.buffers import DeviceBuffer, copy_to_device_async, copy_to_host_async, page_locked
from common.cuda import Stream
from common.engine import Engine
from common.prepare import default_plan
from common.verify import check


def serve(run: session.Session) -> None:
    """Run the batches one after the other; each on the smallest profile that takes it."""
    run.engine.require_precision("fp16")
    context = run.engine.create_context()
    host_output = page_locked(run.output_shape)
    largest = max(batch.nbytes for batch in run.batches)
    with DeviceBuffer(largest) as device_input, DeviceBuffer(host_output.nbytes) as device_output, Stream() as stream:
        context.bind(device_input, device_output)
        for index, host_input in enumerate(run.batches):
            with run.submit(index):
                profile = run.engine.profile_for(len(host_input))
                if profile != context.active_optimization_profile:
                    context.set_optimization_profile_async(profile, stream)  # first: it forgets the shapes
                context.set_input_shape(host_input.shape)
                copy_to_device_async(device_input, host_input, stream)
                context.execute_async_v3(stream)
                copy_to_host_async(host_output[: len(host_input)], device_output, stream)
            stream.synchronize()
            run.finish(index, host_output[: len(host_input)])


def infer(run: session.Session) -> None:
    """Serve the batches from the plan with several profiles, then, for comparison, from the one with a wide profile."""
    serve(run)
    wide = run.repeat(Engine(default_plan("fp16")))
    serve(wide)
    if not run.options.no_verify:
        check(run.outputs, wide.outputs)
    run.notes.append("batches of several sizes in turn, serially: to be held against stage 4, not against the pipelines")
    for size in sorted({len(batch) for batch in run.batches}):
        tuned_ms, wide_ms = (median(ms_by_size(each)[size]) for each in (run, wide))
        run.notes.append(f"batch {run.charged(size)}: {tuned_ms:.3f} ms on its own profile, {wide_ms:.3f} ms on the wide one")


def ms_by_size(run: session.Session) -> dict[int, list[float]]:
    """Milliseconds of the measured batches by size: in a serial loop, from the end of one to the end of the next."""
    times: dict[int, list[float]] = {}
    for index in range(run.last_warm_up + 1, len(run.batches)):
        times.setdefault(len(run.batches[index]), []).append((run.done_ns[index] - run.done_ns[index - 1]) / 1e6)
    return times


def sizes(chosen: argparse.Namespace, size: options.Size) -> Sequence[int]:
    """``--sizes``, or the batch and an eighth of it."""
    return chosen.sizes or [max(1, size.batch // 8), size.batch]


def profiles(chosen: argparse.Namespace, size: options.Size) -> tuple[str, list[str]]:
    """The plan's name and how to build it: an optimization profile for each size (what is charged must fit as well)."""
    wanted = sorted(set(sizes(chosen, size)))
    triples = [f"1,{batch},{max(batch, round(batch * size.scale))}" for batch in wanted]
    return "".join(f"-{batch}" for batch in wanted), [part for triple in triples for part in ("--profile", triple)]


def main() -> int:
    parser = options.parser(__doc__)
    parser.add_argument("--sizes", type=lambda text: [options.positive(part) for part in text.split(",")],
                        metavar="A,B,…", help="the batch sizes, in turn (default: an eighth of the batch, and the batch)")
    parser.set_defaults(measure=4)  # as many small batches as large ones
    return session.run(parser, infer, precision="fp16", page_lock=True, sizes=sizes, variant=profiles)


if __name__ == "__main__":
    sys.exit(main())
