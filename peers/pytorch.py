"""What users write in PyTorch instead of a TensorRT pipeline: the ladder's workload, host to host, in six loops.

    python -m peers.pytorch --out DIR --batch 128 --batches 60 --measure 50

Same model, seed, batches, post-processing and measured window as the stages. The outputs of every loop are held to eager
FP32 before its time is reported. Writes DIR/NAME.json for each loop; compilation is not in the times.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import program
from common.clock import undisturbed
from common.console import err
from common.errors import Fault, WrongOutputs
from common.images import DISTINCT, noise_images
from common.postprocess import Predictions
from common.record import Record
from common.verify import compare
from export import models
from export.networks import create_model

MODEL = "resnet18", "random", models.SEED  # the ladder's
TOLERANCE = {"fp32": 1e-2, "fp16": 2e-2}
"""Share of the largest logit by which outputs may be off eager FP32's (which uses TF32, as TensorRT's FP32 does)."""
Fetch = Callable[[Any], Any]
Finish = Callable[[int, np.ndarray], None]


def serial(model: Any, batches: Sequence[Any], fetch: Fetch, finish: Finish) -> None:
    """A batch to the device, the model, the outputs back."""
    for index, batch in enumerate(batches):
        finish(index, model(fetch(batch)).float().cpu().numpy())


def prefetched(model: Any, batches: Sequence[Any], fetch: Fetch, finish: Finish) -> None:
    """``serial`` with the next batch copied on a stream of its own while this one computes."""
    import torch

    copying, computing = torch.cuda.Stream(), torch.cuda.current_stream()

    def copied(batch: Any) -> Any:
        with torch.cuda.stream(copying):
            return fetch(batch)

    following = copied(batches[0])
    for index, after in enumerate([*batches[1:], None]):
        computing.wait_stream(copying)
        images = following
        images.record_stream(computing)
        following = None if after is None else copied(after)
        finish(index, model(images).float().cpu().numpy())


LOOPS: dict[str, tuple[Callable[..., None], str, str | None]] = {
    "eager-fp32": (serial, "fp32", None),
    "eager-fp16-pinned": (serial, "fp16", None),
    "eager-fp16-prefetch": (prefetched, "fp16", None),
    "compile-reduce-overhead": (serial, "fp16", "reduce-overhead"),
    "compile-max-autotune": (serial, "fp16", "max-autotune"),
    "compile-max-autotune-prefetch": (prefetched, "fp16", "max-autotune"),
}
"""Name → (loop, precision, mode of torch.compile). FP16 is batches in page-locked memory, copied without blocking; they and the
model made FP16 and channels-last on the device."""


def run(name: str, options: argparse.Namespace, images: list[np.ndarray], reference: list[np.ndarray]) -> Record:
    """One loop's record; raises ``WrongOutputs`` where its outputs are not eager FP32's."""
    import torch

    loop, precision, mode = LOOPS[name]
    half, cuda = precision == "fp16", options.device == "cuda"
    form: dict[str, Any] = {"dtype": torch.float16, "memory_format": torch.channels_last} if half else {}
    model, tensors = create_model(*MODEL)[0].to(options.device, **form), [torch.from_numpy(batch) for batch in images]
    model = torch.compile(model, mode=mode) if mode else model
    tensors = [tensor.pin_memory() for tensor in tensors] if half and cuda else tensors
    batches = [tensors[index % len(tensors)] for index in range(options.batches)]
    names, predictions = [f"synthetic-{row:06d}" for row in range(options.batch)], Predictions([])
    outputs, done_ns, runs = [np.empty(0)] * options.batches, [0] * options.batches, []

    def fetch(batch: Any) -> Any:
        return batch.to(options.device, non_blocking=half).to(**form)

    def finish(index: int, output: np.ndarray) -> None:
        predictions.add(names, output)  # as the stages do
        outputs[index] = output.copy()
        done_ns[index] = time.perf_counter_ns()

    with torch.inference_mode():
        loop(model, batches[:4], fetch, lambda index, output: None)  # compiles, and chooses its kernels
        for _ in range(options.repeats):
            with undisturbed() as core_us:
                loop(model, batches, fetch, finish)
            window_ms = (done_ns[-1] - done_ns[-1 - options.measure]) / 1e6
            runs.append(Record(stage=name, per_batch_ms=window_ms / options.measure, core_us=core_us))
    difference = compare(outputs, [reference[index % len(reference)] for index in range(options.batches)])
    if not difference.largest <= TOLERANCE[precision] * difference.scale:
        off = f"{difference.largest:.3g} (largest logit {difference.scale:.3g})"
        raise WrongOutputs(f"{name}: outputs differ from eager FP32 by {off}. No timing is reported.")
    record = Record.typical(runs)
    record.backend, record.engine, record.precision = "torch", f"PyTorch {torch.__version__}", precision
    record.device = torch.cuda.get_device_name() if cuda else options.device
    record.batch, record.batches, record.measured = options.batch, options.batches, options.measure
    record.images_per_s, record.core_us = options.batch / record.per_batch_ms * 1e3, [each.core_us for each in runs]
    record.outputs_match, record.time_base, record.date = True, "wall clock", datetime.date.today().isoformat()
    record.fp32_max_abs_diff, record.fp32_top1_agreement = difference.largest, difference.same_top1
    return record


def main() -> int:
    p = program.parser(__doc__)
    p.add_argument("loops", nargs="*", metavar="LOOP", help=f"default: all of {', '.join(LOOPS)}")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    for option, default in (("--batch", 128), ("--batches", 60), ("--measure", 50), ("--repeats", 3)):
        p.add_argument(option, type=int, default=default)
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = p.parse_args()
    if unknown := set(options.loops) - set(LOOPS):
        p.error(f"there is no loop {', '.join(sorted(unknown))}")
    torch = models.needs("torch", "a PyTorch loop")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise Fault("PyTorch sees no NVIDIA GPU.")
    numbers = np.arange(options.batch * min(DISTINCT, options.batches)).reshape(-1, options.batch)
    side = models.MODELS[MODEL[0]]
    images = [noise_images(row.tolist(), (3, side, side), models.SEED) for row in numbers]
    model = create_model(*MODEL)[0].to(options.device)
    with torch.inference_mode():
        reference = [model(torch.from_numpy(batch).to(options.device)).cpu().numpy() for batch in images]
    failed = 0
    for name in options.loops or LOOPS:
        try:
            record = run(name, options, images, reference)
            record.write(options.out / f"{name}.json")
            err.print(f"  {name:<32} {record.per_batch_ms:9.3f} ms a batch")
        except Exception as error:  # compilers fail in ways of their own; the other loops are still worth their time
            err.print(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", style="red", markup=False)
            failed = 1
    return failed


if __name__ == "__main__":
    program.run(main)
