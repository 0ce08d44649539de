"""What users write in PyTorch instead of a TensorRT pipeline: the ladder's workload, host to host, in six loops.

    python -m scripts.peers_pytorch --out DIR --batch 128 --batches 60 --measure 50

Same model, seed, batches, post-processing and measured window as the stages. The outputs of every loop are held to eager
FP32 before its time is reported. Writes DIR/NAME.json for each loop; compilation is not in the times.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from common import models
from common.clock import undisturbed
from common.errors import Fault, WrongOutputs
from common.files import write_json
from common.images import noise_images
from common.postprocess import Predictions
from common.prepare import DISTINCT
from common.verify import compare
from scripts.host import Host, median_of

SEED, SIZE = models.SEED, 224
TOLERANCE = {"fp32": 1e-2, "fp16": 2e-2}
"""Share of the largest logit by which outputs may be off eager FP32's (which uses TF32, as TensorRT's FP32 does)."""
err = Console(stderr=True, highlight=False, soft_wrap=True)
Finish = Callable[[int, np.ndarray], None]


class Window:
    """Post-processing as the stages do it, and the measured window over it."""

    def __init__(self, batches: int, batch: int, measured: int) -> None:
        self.names = [f"synthetic-{row:06d}" for row in range(batch)]
        self.predictions, self.outputs, self.done_ns = Predictions([]), [np.empty(0)] * batches, [0] * batches
        self.measured = measured

    def finish(self, index: int, output: np.ndarray) -> None:
        self.predictions.add(self.names, output)
        self.outputs[index] = output.copy()
        self.done_ns[index] = time.perf_counter_ns()

    @property
    def per_batch_ms(self) -> float:
        return (self.done_ns[-1] - self.done_ns[-1 - self.measured]) / 1e6 / self.measured


def eager(model: Any, batches: Sequence[Any], device: str, finish: Finish) -> None:
    """Pageable batches to the device, the model, the outputs back."""
    for index, batch in enumerate(batches):
        finish(index, model(batch.to(device)).cpu().numpy())


def half(model: Any, batches: Sequence[Any], device: str, finish: Finish) -> None:
    """Page-locked batches copied without blocking, made FP16 and channels-last on the device."""
    import torch

    for index, batch in enumerate(batches):
        images = batch.to(device, non_blocking=True).to(torch.float16, memory_format=torch.channels_last)
        finish(index, model(images).float().cpu().numpy())


def prefetched(model: Any, batches: Sequence[Any], device: str, finish: Finish) -> None:
    """``half`` with the next batch copied on a stream of its own while this one computes."""
    import torch

    copying, computing = torch.cuda.Stream(), torch.cuda.current_stream()

    def fetch(index: int) -> Any:
        with torch.cuda.stream(copying):
            return batches[index].to(device, non_blocking=True).to(torch.float16, memory_format=torch.channels_last)

    following = fetch(0)
    for index in range(len(batches)):
        computing.wait_stream(copying)
        images = following
        images.record_stream(computing)
        if index + 1 < len(batches):
            following = fetch(index + 1)
        finish(index, model(images).float().cpu().numpy())


LOOPS: dict[str, tuple[Callable[..., None], str, str | None, bool]] = {
    "eager-fp32": (eager, "fp32", None, False),
    "eager-fp16-pinned": (half, "fp16", None, True),
    "eager-fp16-prefetch": (prefetched, "fp16", None, True),
    "compile-reduce-overhead": (half, "fp16", "reduce-overhead", True),
    "compile-max-autotune": (half, "fp16", "max-autotune", True),
    "compile-max-autotune-prefetch": (prefetched, "fp16", "max-autotune", True),
}
"""Name → (loop, precision, mode of torch.compile, whether the batches are page-locked)."""


def create(precision: str, mode: str | None, device: str) -> Any:
    """The ladder's model on ``device``; FP16 means weights and activations in half, channels last."""
    import torch

    model = models.create_model("resnet18", "random", SEED)[0].to(device)
    if precision == "fp16":
        model = model.to(torch.float16, memory_format=torch.channels_last)
    return torch.compile(model, mode=mode) if mode else model


def run(name: str, options: argparse.Namespace, images: list[np.ndarray], reference: list[np.ndarray],
        host: Host) -> dict[str, Any]:
    """One loop's record; raises ``WrongOutputs`` where its outputs are not eager FP32's."""
    import torch

    loop, precision, mode, pinned = LOOPS[name]
    model = create(precision, mode, options.device)
    tensors = [torch.from_numpy(batch) for batch in images]
    if pinned and options.device == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]
    batches = [tensors[index % len(tensors)] for index in range(options.batches)]
    started = time.perf_counter()
    with torch.inference_mode():
        loop(model, batches[:4], options.device, lambda index, output: None)  # compiles, and chooses its kernels
        prepared_s = time.perf_counter() - started

        def repeat() -> dict[str, Any]:
            window = Window(options.batches, options.batch, options.measure)
            with undisturbed() as readings:
                loop(model, batches, options.device, window.finish)
            return {"per_batch_ms": window.per_batch_ms, "core_us": readings, "outputs": window.outputs}

        repeats = host.repeated(repeat, options.repeats)
    difference = compare(repeats[-1]["outputs"], [reference[index % len(reference)] for index in range(options.batches)])
    if not difference.largest <= TOLERANCE[precision] * difference.scale:
        raise WrongOutputs(f"{name}: outputs differ from eager FP32 by {difference.largest:.3g} (largest logit "
                           f"{difference.scale:.3g}). No timing is reported.")
    typical = median_of(repeats)
    return {"stage": name, "engine": f"PyTorch {torch.__version__}", "precision": precision, "batch": options.batch,
            "device": torch.cuda.get_device_name() if options.device == "cuda" else options.device,
            "batches": options.batches, "measured": options.measure, "per_batch_ms": typical["per_batch_ms"],
            "repeats_ms": typical["repeats_ms"], "core_us": typical["core_us"],
            "images_per_s": options.batch / typical["per_batch_ms"] * 1e3, "outputs_match": True,
            "fp32_max_abs_diff": difference.largest, "fp32_top1_agreement": difference.same_top1,
            "prepared_s": prepared_s, "time_base": "wall clock", "date": datetime.date.today().isoformat()}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("loops", nargs="*", metavar="LOOP", help=f"default: all of {', '.join(LOOPS)}")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--batches", type=int, default=60)
    p.add_argument("--measure", type=int, default=50)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = p.parse_args()
    if unknown := set(options.loops) - set(LOOPS):
        p.error(f"there is no loop {', '.join(sorted(unknown))}")
    try:
        torch = models.needs("torch", "a PyTorch loop")
        if options.device == "cuda" and not torch.cuda.is_available():
            raise Fault("PyTorch sees no NVIDIA GPU.")
        images = [noise_images(range(first * options.batch, (first + 1) * options.batch), SIZE, SEED)
                  for first in range(min(DISTINCT, options.batches))]
        with torch.inference_mode():
            model = create("fp32", None, options.device)
            reference = [model(torch.from_numpy(batch).to(options.device)).cpu().numpy() for batch in images]
    except Fault as fault:
        err.print(f"peers_pytorch: error: {fault}", style="red", markup=False)
        return fault.exit_code
    failed, host = 0, Host()
    for name in options.loops or LOOPS:
        try:
            record = run(name, options, images, reference, host)
        except Exception as error:  # compilers fail in ways of their own; the other loops are still worth their time
            err.print(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", style="red", markup=False)
            failed = 1
            continue
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(options.out / f"{name}.json", record)
        err.print(f"  {name:<32} {record['per_batch_ms']:9.3f} ms a batch   (prepared in {record['prepared_s']:.0f} s)")
    return failed


if __name__ == "__main__":
    sys.exit(main())
