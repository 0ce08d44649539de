"""The options that every stage takes, and the one place where their meaning is checked."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from common import backend
from common.errors import UsageFault


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The stage's manual is its docstring; the options are the same for every stage."""
    lines = (doc or "").strip()
    p = argparse.ArgumentParser(description=lines, formatter_class=argparse.RawDescriptionHelpFormatter)
    run = p.add_argument_group("what to run")
    run.add_argument("--plan", type=Path, help="TensorRT plan (default: the stage's own under plans/, built when missing)")
    run.add_argument("--precision", choices=("fp32", "fp16", "int8"), help="of the default plan (default: the stage's own)")
    run.add_argument("--batch", type=positive, metavar="N",
                     help=f"images a batch (default: {backend.PUBLISHED_BATCH}; simulated: {backend.SIMULATED_BATCH})")
    run.add_argument("--batches", type=positive, metavar="N", help="batches to run, warm-up included (default: 10, or as "
                     "many as --images fills)")
    run.add_argument("--measure", type=positive, default=3, metavar="N", help="how many of the last batches are measured "
                     "(default: %(default)s)")
    run.add_argument("--seed", type=int, default=10088, help="seed of the synthetic images (default: %(default)s)")
    run.add_argument("--images", type=Path, metavar="DIR", help="a photograph or a folder of them (JPEG, PNG) "
                     "instead of synthetic images")
    out = p.add_argument_group("what to write")
    out.add_argument("--predictions", type=Path, metavar="CSV", help="image, class, probability: a row an image")
    out.add_argument("--top", type=positive, metavar="K", help="print the K likeliest classes of each image")
    out.add_argument("--json", type=Path, metavar="PATH", help="the result record")
    out.add_argument("--no-verify", action="store_true", help="do not compare the outputs with a serial run (the result is "
                     "then marked as not verified)")
    where = p.add_argument_group("where to run")
    where.add_argument("--backend", choices=backend.NAMES, default="auto", help="tensorrt: a real GPU; simulated: a modelled "
                       "one, outputs computed on the CPU; auto (default): tensorrt if it works here")
    where.add_argument("--device", metavar="NAME", help=f"simulated: the GPU to model (default: {backend.DEFAULT_DEVICE})")
    where.add_argument("--charge-batch", type=positive, metavar="N", help="simulated: compute --batch images but charge the "
                       f"time of N (default: {backend.PUBLISHED_BATCH} when --batch is not given, else --batch)")
    where.add_argument("--trace", type=Path, metavar="PATH", help="simulated: write the timeline as Nsight Systems' SQLite")
    return p


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


@dataclass(frozen=True)
class Size:
    """``batch`` images are computed at a time, and the time of ``charged`` is accounted for."""

    batch: int
    charged: int

    @property
    def scale(self) -> float:
        return self.charged / self.batch

    def __str__(self) -> str:
        return f"batch {self.batch}" + (f", charged as {self.charged}" if self.charged != self.batch else "")


def select_backend(options: argparse.Namespace) -> tuple[backend.Backend, Size]:
    """Select the backend and settle the batch size, whose default depends on it."""
    charged = options.charge_batch or (options.batch or backend.PUBLISHED_BATCH)
    size = Size(options.batch or backend.SIMULATED_BATCH, charged)
    chosen = backend.select(options.backend, options.device, size.scale)
    if chosen.scale != size.scale:  # a real GPU computes what it is charged for
        if options.charge_batch is not None:
            raise UsageFault("--charge-batch is for the simulated backend: add --backend simulated.")
        size = Size(options.batch or backend.PUBLISHED_BATCH, options.batch or backend.PUBLISHED_BATCH)
    if options.trace is not None and chosen.simulator is None:
        raise UsageFault("--trace writes the simulator's timeline; on a GPU run the stage under `nsys profile`.")
    return chosen, size
