"""One of the PyTorch loops that users write instead of a TensorRT pipeline, run and timed in this process.

    python -m peers.loops graphs-3-slots --batch 128 --windows 2 --json record.json

The outputs are held to eager FP32 before there is a time; compilation is not in it. `python -m peers.pytorch` runs them all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from common import program
from common.buffers import pageable
from common.clock import undisturbed
from common.errors import EnvironmentFault, WrongOutputs
from common.host import processor
from common.images import DEVIATION, DISTINCT, MEAN, converted, noise_images
from common.options import positive
from common.postprocess import Predictions
from common.record import Record, Window
from common.session import LEAST, PILOT, PILOT_MS, WARM_UP, WINDOW_MS
from common.verify import compare
from export import models
from export.networks import create_model

MODEL = "resnet18", "random", models.SEED  # the ladder's
TOLERANCE = {"fp32": 1e-2, "fp16": 2e-2}
"""Share of the largest logit by which outputs may be off eager FP32's (which uses TF32, as TensorRT's FP32 does)."""
SLOTS = 3
Finish = Callable[[int, np.ndarray], None]
Module = Callable[[Any], Any]


def serial(model: Module, batches: Sequence[Any], device: str, finish: Finish) -> None:
    """A batch to the device, the model, the outputs back."""
    for index, batch in enumerate(batches):
        finish(index, model(batch.to(device, non_blocking=batch.is_pinned())).cpu().numpy())


def prefetched(model: Module, batches: Sequence[Any], device: str, finish: Finish) -> None:
    """``serial`` with the next batch copied on a stream of its own while this one computes."""
    import torch

    copying, computing = torch.cuda.Stream(), torch.cuda.current_stream()

    def copied(batch: Any) -> Any:
        with torch.cuda.stream(copying):
            return batch.to(device, non_blocking=True)

    following = copied(batches[0])
    for index, after in enumerate([*batches[1:], None]):
        computing.wait_stream(copying)
        images = following
        images.record_stream(computing)
        following = None if after is None else copied(after)
        finish(index, model(images).cpu().numpy())


class Slot:
    """A batch on its way: its input on the device, a CUDA graph of the whole model on it, its output on the host."""

    def __init__(self, model: Module, batch: Any, computing: Any) -> None:
        import torch

        self.input = torch.zeros_like(batch, device="cuda")
        with torch.cuda.stream(computing):
            for _ in range(2):
                logits = model(self.input)
        computing.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=computing):
            self.logits = model(self.input)
        self.output = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
        self.copied, self.returned = torch.cuda.Event(), torch.cuda.Event()


def overlapped(model: Module, batches: Sequence[Any], device: str, finish: Finish) -> None:
    """The ladder's own lesson in PyTorch: three slots, a copy stream, a graph a batch, page-locked outputs copied without
    blocking, post-processing behind the submission of later batches."""
    import torch

    copying, computing = torch.cuda.Stream(), torch.cuda.Stream()
    slots = [Slot(model, batches[0], computing) for _ in range(SLOTS)]

    def complete(index: int) -> None:
        slot = slots[index % SLOTS]
        slot.returned.synchronize()
        finish(index, slot.output.numpy())

    for index, batch in enumerate(batches):
        slot = slots[index % SLOTS]
        if index >= SLOTS:
            complete(index - SLOTS)
        with torch.cuda.stream(copying):
            slot.input.copy_(batch, non_blocking=True)
            slot.copied.record(copying)
        with torch.cuda.stream(computing):
            computing.wait_event(slot.copied)
            slot.graph.replay()
            slot.output.copy_(slot.logits, non_blocking=True)
            slot.returned.record(computing)
    for index in range(max(0, len(batches) - SLOTS), len(batches)):
        complete(index)


@dataclass(frozen=True)
class Loop:
    """``mode`` is torch.compile's. FP16: weights and activations in half, channels last, and batches in page-locked memory."""

    run: Callable[..., None]
    precision: str = "fp16"
    mode: str | None = None
    sends: str = "float32"


LOOPS = {
    "eager-fp32": Loop(serial, "fp32"),
    "eager-fp16-pinned": Loop(serial),
    "eager-fp16-prefetch": Loop(prefetched),
    "compile-reduce-overhead": Loop(serial, mode="reduce-overhead"),
    "compile-max-autotune": Loop(serial, mode="max-autotune"),
    "compile-max-autotune-prefetch": Loop(prefetched, mode="max-autotune"),
    "graphs-3-slots": Loop(overlapped, mode="max-autotune-no-cudagraphs"),
    "graphs-3-slots-uint8": Loop(overlapped, mode="max-autotune-no-cudagraphs", sends="uint8"),
}


def whole_model(loop: Loop, device: str) -> Module:
    """From a batch on the device, as it was sent, to FP32 logits."""
    import torch

    form: dict[str, Any] = {"memory_format": torch.channels_last} if loop.precision == "fp16" else {}
    dtype = torch.float16 if loop.precision == "fp16" else torch.float32
    network = create_model(*MODEL)[0].to(device, dtype=dtype, **form)
    mean, deviation = (torch.tensor(each, device=device)[:, None, None] for each in (MEAN, DEVIATION))

    def model(images: Any) -> Any:
        if loop.sends == "uint8":
            images = (images.float() / 255 - mean) / deviation
        return network(images.to(dtype=dtype, **form)).float()

    return torch.compile(model, mode=loop.mode) if loop.mode else model


def run(name: str, images: list[np.ndarray], options: argparse.Namespace) -> Record:
    """The record of one loop's ``options.windows``; raises ``WrongOutputs`` where its outputs are not eager FP32's."""
    torch, loop, cuda = models.needs("torch", "a PyTorch loop"), LOOPS[name], options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise EnvironmentFault("PyTorch sees no NVIDIA GPU.")
    if loop.precision == "fp16" and not cuda:
        raise EnvironmentFault("it needs an NVIDIA GPU.")
    tensors = [torch.from_numpy(converted(batch, loop.sends)) for batch in images]
    tensors = [tensor.pin_memory() for tensor in tensors] if loop.precision == "fp16" and cuda else tensors
    model, names = whole_model(loop, options.device), [f"synthetic-{row:06d}" for row in range(len(images[0]))]
    reference_model = whole_model(replace(loop, precision="fp32", mode=None), options.device)

    def window(measured: int) -> tuple[Window, list[np.ndarray]]:
        count, predictions, done_ns = measured + WARM_UP, Predictions([]), list[int]()
        outputs = pageable((count, *reference[0].shape))

        def finish(index: int, output: np.ndarray) -> None:
            predictions.add(names, output)  # as the stages do, and into memory that has been touched before
            np.copyto(outputs[index], output)
            done_ns.append(time.perf_counter_ns())

        with undisturbed() as core_us:
            loop.run(model, [tensors[index % len(tensors)] for index in range(count)], options.device, finish)
        return Window.between(done_ns, measured, measured * len(names), core_us=core_us), list(outputs)

    with torch.inference_mode():
        reference = [reference_model(tensor.to(options.device)).cpu().numpy() for tensor in tensors]
        window(1)  # compiles, and chooses its kernels
        pilot = window(PILOT)[0].per_batch_ms if not options.measure else 0.0
        measured = options.measure or max(LEAST, int(WINDOW_MS / window(ceil(PILOT_MS / pilot))[0].per_batch_ms))
        runs, outputs = zip(*(window(measured) for _ in range(options.windows)))
    differences = [compare(each, [reference[index % len(reference)] for index in range(len(each))]) for each in outputs]
    worst = max(differences, key=lambda difference: difference.largest)
    if not worst.largest <= TOLERANCE[loop.precision] * worst.scale:
        off = f"{worst.largest:.3g} (largest logit {worst.scale:.3g})"
        raise WrongOutputs(f"outputs differ from eager FP32 by {off}. No timing is reported.")
    device = torch.cuda.get_device_name() if cuda else options.device
    record = Record(stage=name, backend="torch", engine=f"PyTorch {torch.__version__}", device=device, batch=len(names))
    record.precision, record.input, record.measured, record.windows = loop.precision, loop.sends, measured, list(runs)
    record.outputs_match, record.fp32_max_abs_diff, record.fp32_top1_agreement = True, worst.largest, worst.same_top1
    record.time_base, record.date, record.host = "wall clock", date.today().isoformat(), {"processor": processor()}
    return Record.of([record])


def main() -> None:
    p = program.parser(__doc__)
    p.add_argument("loop", choices=LOOPS, metavar="LOOP", help=f"one of {', '.join(LOOPS)}")
    p.add_argument("--batch", type=positive, default=1, metavar="N", help="images a batch (default: %(default)s)")
    p.add_argument("--windows", type=positive, default=1, metavar="N", help="default: %(default)s")
    p.add_argument("--measure", type=positive, metavar="N", help="batches in a window (default: 1 s, at least 100)")
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    p.add_argument("--json", type=Path, required=True, metavar="PATH", help="the result record")
    options = p.parse_args()
    numbers, side = np.arange(options.batch * DISTINCT).reshape(DISTINCT, -1), models.MODELS[MODEL[0]]
    images = [noise_images(row.tolist(), (3, side, side), models.SEED) for row in numbers]
    run(options.loop, images, options).write(options.json)


if __name__ == "__main__":
    program.run(main)
