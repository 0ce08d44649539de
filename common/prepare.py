"""What a run needs before its clock starts: a plan, batches that fit it, and somewhere to write the results."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from common import backend, models
from common.buffers import page_locked, pageable
from common.cuda import cudart
from common.engine import Engine, check_sidecar
from common.errors import EnvironmentFault, UsageFault
from common.images import Images
from common.options import Size

ROOT = Path(__file__).resolve().parent.parent
DISTINCT = 8
"""Different batches of synthetic images; longer runs repeat them. More than any pipeline's slots, so that a stale or
swapped batch always shows, and few enough to stay page-locked."""
err = Console(stderr=True, highlight=False, soft_wrap=True)


def check_writable(*paths: Path | None) -> None:
    """Find out before the run that a result could not be written after it."""
    for path in filter(None, paths):
        folder = path.parent if str(path.parent) else Path(".")
        if not folder.is_dir() or not os.access(folder, os.W_OK) or path.is_dir():
            raise EnvironmentFault(f"cannot write {path}: {folder} is not a folder that can be written to.")


def check_sizes(engine: Engine, sizes: Sequence[int], size: Size) -> None:
    for batch in sorted(sizes):
        if engine.profile_for(batch) is None:
            held = " or ".join(f"{low} to {high}" for low, high in engine.batch_ranges)
            batch = round(batch * size.scale)
            raise UsageFault(f"a batch of {batch} does not fit {engine.plan}, whose profiles take {held}. "
                             f"Build a larger one: python 0_build.py --profile 1,{batch},{batch}")


def check_memory(engine: Engine, batch: int) -> None:
    """Find out before the batches are prepared that not even one of them, run serially, fits on the GPU."""
    free, _ = cudart.cudaMemGetInfo()
    charged = round(batch * backend.current().scale)
    needed = engine.context_memory + 4 * (prod(engine.input_shape(charged)) + prod(engine.output_shape(charged)))
    if needed > free:
        largest = max(high for _, high in engine.batch_ranges)
        raise EnvironmentFault(f"{engine.plan} needs {needed / 1e9:.1f} GB on the GPU for the activations of a batch of "
                               f"{largest} and one batch's buffers, and {free / 1e9:.1f} GB are free. Build a smaller one: "
                               f"python 0_build.py --profile 1,{batch},{batch}")


def unusable(plan: Path, shown: Path) -> str | None:
    """Why a plan cannot be used as it is: it is missing, or its sidecar says that it is not for this machine, or of an ONNX
    file that has been exported or calibrated anew since."""
    if not plan.exists():
        return f"no plan {shown} yet"
    try:
        facts = check_sidecar(plan)
    except EnvironmentFault as fault:
        return str(fault).split(". Build")[0]
    exported = models.read_description(ROOT / "models" / facts.get("onnx", "")).get("sha256")
    if exported and exported != facts["onnx_sha256"]:
        return f"{shown} was built from an earlier {facts['onnx']}"
    return None


def default_plan(precision: str, variant: str = "", build_options: Sequence[str] = ()) -> Path:
    """The plan of the ladder's model in ``precision``, built first if it is not there or not this machine's and this model's
    any more."""
    plan = ROOT / "plans" / f"resnet18-{precision}{variant}{backend.current().plan_suffix}"
    shown = Path(os.path.relpath(plan))
    if reason := unusable(plan, shown):
        command = ["0_build.py", "--backend", backend.current().name, "--output", str(shown)]
        command += [] if precision == "fp32" else [f"--{precision}"]
        command += build_options
        err.print(f"{reason}; building it: python {' '.join(command)}", markup=False)
        code = subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], check=False).returncode
        if code != 0:
            raise EnvironmentFault(f"the build ended with exit code {code}; see above.")
    return shown


def prepare(engine: Engine, images: Images, sizes: Sequence[int], options: argparse.Namespace,
            page_lock: bool) -> list[np.ndarray]:
    """All batches, in page-locked or pageable memory, before the clock starts: reading images is not the subject."""
    needed = -(-len(images) * len(sizes) // sum(sizes))
    count = options.batches or max(10, needed)
    if options.measure >= count:
        raise UsageFault(f"--measure {options.measure} leaves no batch to warm up with: "
                         f"--batches must be at least {options.measure + 1}.")
    distinct = min(count, needed if len(images) else DISTINCT)
    distinct = min(count, -(-distinct // len(sizes)) * len(sizes))  # whole turns of the sizes
    batches, first = [], 0
    for index in track(range(distinct), "preparing batches", console=err, transient=True, disable=not err.is_terminal):
        shape = engine.input_shape(sizes[index % len(sizes)])
        batches.append(page_locked(shape) if page_lock else pageable(shape))
        images.fill(batches[-1], first)
        first += shape[0]
    if len(images) > first:
        err.print(f"{first} of {len(images)} images fit into {count} batches; --batches {needed} takes them all")
    return [batches[index % distinct] for index in range(count)]


def batch_names(batches: Sequence[np.ndarray], images: Images) -> list[list[str]]:
    """The image names of each batch. Batches that are the same array have the same images."""
    first, names, known = 0, [], {}
    for batch in batches:
        if id(batch) not in known:
            known[id(batch)] = [images.name(first + row) for row in range(len(batch))]
            first += len(batch)
        names.append(known[id(batch)])
    return names
