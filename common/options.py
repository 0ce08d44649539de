"""The options that every stage takes, those of a plan that is built, and the one place where their meaning is checked."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import backend, jpeg, program
from common.errors import UsageFault
from common.plans import read_sidecar


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The stage's manual is its docstring; the options are the same for every stage."""
    p = program.parser(doc)
    run, write, where = add_shared_options(p)
    number: dict[str, Any] = {"type": positive, "metavar": "N"}
    run.add_argument("--batches", **number, help="to run, warm-up included (default: the measured ones, and 10 to warm up)")
    measured = f"how many of the last ones are measured (default: 1 s, at least 100; simulated: {backend.SIMULATED_MEASURED})"
    run.add_argument("--measure", **number, help=measured)
    run.add_argument("--windows", **number, default=1, help="run all of them N times; the median window counts (default: 1)")
    run.add_argument("--seed", type=natural, default=10088, help="seed of the synthetic images (default: %(default)s)")
    run.add_argument("--images", type=Path, metavar="DIR", help="a photograph or a folder of them instead of synthetic images")
    answers = "of all images: .csv: image, class, probability; .npy: the outputs themselves, and a .npy.txt with the names"
    write.add_argument("--predictions", type=Path, metavar="PATH", help=answers)
    write.add_argument("--top", type=positive, metavar="K", help="print the K likeliest classes of each image")
    write.add_argument("--no-verify", action="store_true", help="do not compare the outputs with a serial run's, and say so")
    controls = "do not compare the plan's outputs with the FP32 plan's, nor stage 9's times with those of one wide profile"
    write.add_argument("--no-controls", action="store_true", help=controls)
    write.add_argument("--no-parts", action="store_true", help="do not time a batch's parts by themselves: no limit then")
    where.add_argument("--trace", type=Path, metavar="PATH", help="simulated: write the timeline as Nsight Systems' SQLite")
    return p


def add_shared_options(p: argparse.ArgumentParser) -> list[Any]:
    """What one process and many have in common, in groups: what to run, what to write, where to run."""
    run, write, where = groups = [p.add_argument_group(title) for title in ("what to run", "what to write", "where to run")]
    number: dict[str, Any] = {"type": positive, "metavar": "N"}
    run.add_argument("--plan", type=Path, help="TensorRT plan (default: the stage's own under plans/, built when missing)")
    trust = "run the code in a version-compatible plan that no sidecar proves: only for one of your own"
    run.add_argument("--trust-plan", action="store_true", help=trust)
    precisions = "what the plan must work in (default: the stage's own; with --plan, the plan's)"
    run.add_argument("--precision", choices=("fp32", "fp16", "int8"), help=precisions)
    sizes = f"{backend.PUBLISHED_BATCH}, or what --plan was built for; simulated: {backend.SIMULATED_BATCH}"
    run.add_argument("--batch", **number, help=f"images a batch (default: {sizes})")
    decoders = "of JPEG files; auto: the fastest that is there; the others' files are Pillow's (default: %(default)s)"
    run.add_argument("--decoder", choices=jpeg.NAMES, default="pillow", help=decoders)
    write.add_argument("--json", type=Path, metavar="PATH", help="the result record")
    backends = "tensorrt: a real GPU; rtx: a GeForce or RTX one, with TensorRT for RTX; simulated: a modelled one, outputs "
    backends += "computed on the CPU; auto (default): the first that works"
    where.add_argument("--backend", choices=backend.NAMES, default="auto", help=backends)
    where.add_argument("--device", metavar="NAME", help=f"simulated: the GPU to model (default: {backend.DEFAULT_DEVICE})")
    charge = f"simulated: charge the time of N images a batch (default: --batch; without it {backend.PUBLISHED_BATCH})"
    where.add_argument("--charge-batch", **number, help=charge)
    return groups


def many(doc: str | None) -> argparse.ArgumentParser:
    """Of a run over many processes."""
    p = program.parser(doc)
    run, write, where = add_shared_options(p)
    pictures = "a folder of pictures, Parquet with their bytes, or the address of either in a bucket (s3://…)"
    run.add_argument("--images", required=True, metavar="DIR", help=pictures)
    write.add_argument("--predictions", type=Path, required=True, metavar="OUT", help="a folder for the shards of predictions")
    write.add_argument("--format", choices=("parquet", "csv"), default="parquet", help="of a shard (default: %(default)s)")
    write.add_argument("--shard", type=positive, metavar="N", help="pictures a shard (default: 64 batches)")
    where.add_argument("--gpus", type=positive, metavar="N", help="how many (default: all of them; simulated: 2)")
    where.add_argument("--address", help="of a Ray cluster, or auto (default: Ray is started on this machine)")
    part = "without Ray: one process, one GPU, every N-th shard from the I-th on (0 to N-1); run one for each I"
    where.add_argument("--part", type=part_of, metavar="I/N", help=part)
    p.set_defaults(decoder="auto", layout=None, trace=None, top=None)
    return p


def part_of(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not 0 <= int(index) < int(count):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with 0 ≤ I < N")
    return int(index), int(count)


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Of ``0_build.py``: what the plan is to be."""
    plan = parser.add_argument_group("the plan")
    shapes = "an optimization profile, as batch sizes; repeatable (default: 1,128,256)"
    plan.add_argument("--profile", type=profile, action="append", metavar="MIN,OPT,MAX", help=shapes)
    plan.add_argument("--aux-streams", type=natural, metavar="N", help="streams TensorRT may add within one inference")
    sharing = "several contexts on one profile: on by default in TensorRT 8.6, always on since 10"
    plan.add_argument("--share-profile", action=argparse.BooleanOptionalAction, help=sharing)
    compatible = "let newer versions of TensorRT run the plan too, as far as the lean runtime goes (default output: ….vc.plan)"
    plan.add_argument("--version-compatible", action="store_true", help=compatible)
    timings = "kernel timings of earlier builds (default: plans/timing.cache; none with rtx)"
    plan.add_argument("--timing-cache", type=Path, metavar="FILE", help=timings)
    plan.add_argument("--output", type=Path, metavar="PLAN", help="default: plans/MODEL-PRECISION.plan")
    built = "which library builds it (default: the first that works; rtx needs no GPU)"
    plan.add_argument("--backend", choices=backend.NAMES, default="auto", help=built)


def profile(text: str) -> tuple[int, int, int]:
    try:
        low, best, high = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN,OPT,MAX") from None
    if not 1 <= low <= best <= high:
        raise argparse.ArgumentTypeError(f"{text!r}: 1 ≤ MIN ≤ OPT ≤ MAX must hold")
    return low, best, high


def natural(text: str, least: int = 0) -> int:
    if (value := int(text)) < least:
        raise argparse.ArgumentTypeError(f"{text} is less than {least}")
    return value


def positive(text: str) -> int:
    return natural(text, 1)


def positives(text: str) -> list[int]:
    try:
        return [positive(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 1,8") from None


@dataclass(frozen=True)
class Size:
    """``batch`` images are computed at a time, and the time of ``charged`` is accounted for."""

    batch: int
    charged: int

    def __str__(self) -> str:
        return f"batch {self.batch}" + (f", charged as {self.charged}" if self.charged != self.batch else "")


def usual_batch(plan: Path | None) -> int:
    """The published batch; the one that a named plan was built for if it does not take that."""
    profiles = read_sidecar(plan).get("profiles", []) if plan else []
    fits = not profiles or any(low <= backend.PUBLISHED_BATCH <= high for low, _, high in profiles)
    return backend.PUBLISHED_BATCH if fits else max(opt for _, opt, _ in profiles)


def select_backend(options: argparse.Namespace) -> tuple[backend.Backend, Size]:
    """Select the backend and settle the batch size, whose default depends on it and on the plan."""
    if options.plan and getattr(options, "layout", None):
        raise UsageFault(f"--layout {options.layout} is for the stage's own plan: {options.plan} takes what it was built for.")
    batch = options.batch or usual_batch(options.plan)
    charged = options.charge_batch or batch
    computed = options.batch or min(backend.SIMULATED_BATCH, charged)
    if charged < computed:
        raise UsageFault(f"--charge-batch {charged}: the {computed} images that are computed count at least as themselves.")
    chosen = backend.select(options.backend, options.device, charged / computed)
    if chosen.simulator is not None:
        return chosen, Size(computed, charged)
    if options.charge_batch is not None:
        raise UsageFault("--charge-batch is for the simulated backend: add --backend simulated.")
    if options.trace is not None:
        raise UsageFault("--trace writes the simulator's timeline; on a GPU run the stage under `nsys profile`.")
    return chosen, Size(batch, batch)
