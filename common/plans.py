"""Plans as files: the sidecar that says what a plan is for, and the default plans, which are built when they are missing.

A plan works only with the TensorRT and the kind of GPU that it was built with; a version-compatible one also with newer
versions. ``PLAN.json`` beside it says which; it is checked before TensorRT sees the plan, which answers with a null engine.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import backend, program, record
from common.console import err
from common.cuda import cudart
from common.errors import EnvironmentFault, UsageFault
from common.files import check_writable, read_json, sha256
from common.libraries import LIBRARIES, Library
from common.program import ROOT

if TYPE_CHECKING:
    from common.engine import Engine

FACTS = dict.fromkeys(("plan_sha256", "tensorrt", "gpu", "compute_capability", "onnx", "onnx_sha256"), "str")
FACTS |= {"labels": "list[str]", "command": "list[str]", "profiles": "list[list[int]]", "precisions": "dict[str, int]"}
"""What a sidecar must have; of older ones the last is missing."""
COMPATIBLE = "--version-compatible"
LADDERS = r"resnet18(-u?int8)?(-nhwc)?-(fp32|fp16|int8)(-\d+)*"  # what the default plans are called
USUAL = 1, 128, 256  # the smallest, the most common and the largest batch of a plan that is told nothing


class PlanFault(EnvironmentFault):
    """A plan cannot be used as it is; building it again mends that."""


def sidecar(plan: Path) -> Path:
    return plan.with_name(plan.name + ".json")


def this_machine() -> dict[str, Any]:
    """What a plan depends on, as its sidecar has it: TensorRT's version, the GPU and its compute capability.

    ``any`` GPU: TensorRT for RTX builds for all of them, and compiles where the plan runs.
    """
    here = backend.current()
    version = f"{here.kind.called} {here.tensorrt.__version__}"
    if here.kind.without_gpu and here.simulator is None:
        return {"tensorrt": version, "gpu": "any", "compute_capability": "any"}
    properties = cudart.cudaGetDeviceProperties(0)
    capability = f"{properties.major}.{properties.minor}"
    return {"tensorrt": version, "gpu": properties.name.decode(), "compute_capability": capability}


def read_sidecar(plan: Path) -> dict[str, Any]:
    """The sidecar's content, or {} without one. Raises ``PlanFault`` where there is no plan, or the sidecar is broken or of
    another file."""
    if not plan.is_file():
        raise PlanFault(f"there is no plan {plan}{', but something else' * plan.exists()}. Build it: {rebuild(plan, {})}")
    if not sidecar(plan).exists():
        return {}
    known: dict[str, Any] = {"precisions": {}, **(facts := read_json(sidecar(plan)))}
    fits = all(record.fits(kind, known.get(name)) for name, kind in FACTS.items())
    if not fits or any(len(each) != 3 or min(each) < 1 for each in facts["profiles"]):
        raise PlanFault(f"{sidecar(plan)} is not what 0_build.py writes beside a plan. Build it again: {rebuild(plan, {})}")
    if facts["plan_sha256"] != sha256(plan):
        edited = f"{plan} is not the file that was built: cut short, edited or overwritten"
        raise PlanFault(f"{edited}. Build it again: {rebuild(plan, facts)}")
    return facts


def check_sidecar(plan: Path) -> dict[str, Any]:
    """``read_sidecar``; raises ``PlanFault`` where the plan cannot work here, too."""
    if not (facts := read_sidecar(plan)):
        return {}
    here, again = this_machine(), f"Build it again: {rebuild(plan, facts)}"
    portable = facts.get("version_compatible") is True and backend.current().kind.backend == "tensorrt"
    if facts["tensorrt"] != here["tensorrt"] and not portable:  # one that is too new for a runtime is refused by that
        raise PlanFault(f"{plan} was built by {facts['tensorrt']}, and this is {here['tensorrt']}. {again}")
    simulated = backend.current().simulator is not None  # a simulated plan runs on every modelled GPU
    if not simulated and facts["compute_capability"] != here["compute_capability"]:
        raise PlanFault(f"{plan} was built for a {facts['gpu']}, and this is a {here['gpu']}. {again}")
    return facts


def destination(options: argparse.Namespace, onnx: Path) -> tuple[Path, Path | None]:
    """Where a plan made of an ONNX file goes, and the timings of its kernels: None where the library takes none."""
    here, folder = backend.current(), ROOT / "plans"
    suffix = here.kind.compatible_suffix if options.version_compatible else here.kind.plan_suffix
    if not suffix:
        raise UsageFault(f"{COMPATIBLE}: {here.library} builds no such plans.")
    plan, own = options.output or folder / f"{onnx.stem}{suffix}", options.onnx_file
    if own and not options.output and own.resolve().parent != ROOT / "models" and re.fullmatch(LADDERS, onnx.stem):
        raise UsageFault(f"{plan} is the ladder's own: add --output for the plan of {own}.")
    plan.parent.mkdir(parents=True, exist_ok=True)
    read = [file for each in (onnx, options.onnx_file) if each for file in (each, sidecar(each))]
    check_writable(plan, sidecar(plan), kept=read)
    if hasattr(here.tensorrt, "IRuntimeCache"):  # TensorRT for RTX times nothing: it compiles where the plan runs
        return plan, None
    timings = options.timing_cache or folder / f"timing{here.kind.plan_suffix[:-5]}.cache"
    if timings.resolve() in [each.resolve() for each in (plan, sidecar(plan), *read)]:
        raise UsageFault(f"two results cannot be one file: {timings}.")
    return plan, timings


def rebuild(plan: Path, facts: dict[str, Any]) -> str:
    """The command that makes a plan again; without ``facts`` nobody knows of which model, and that is left to be filled in. A
    file that is there and has no plan's name is not to be overwritten: an ONNX file is the model, of others none is known."""
    output = plan.with_suffix(".plan") if plan.exists() else plan
    model = str(plan) if plan.suffix == ".onnx" and plan != output else "MODEL.onnx"
    words = facts.get("command") or ["python", "0_build.py", "--onnx-file", model, "--output", str(output)]
    compatible = plan.name.endswith(LIBRARIES[0].compatible_suffix) or not backend.current().kind.builds
    return " ".join([*words, *[COMPATIBLE] * (compatible and COMPATIBLE not in words)])  # by a Python that has TensorRT


def path_of(precision: str, opts: Sequence[int], layout: str | None, library: Library) -> Path:
    """Where ``default_plan`` has such a plan."""
    sent = f"{'int8' if precision == 'int8' else 'uint8'}-{'nhwc-' * (layout == 'nhwc')}" if layout else ""
    return ROOT / "plans" / f"resnet18-{sent}{'-'.join([precision, *map(str, opts)])}{library.plan_suffix}"


def default_plan(precision: str, opts: Sequence[int] = (), layout: str | None = None) -> Path:
    """The plan of the ladder's model in ``precision``, with a profile for each batch size of ``opts`` if there are any: for 128
    the usual one, whose kernels TensorRT has timed for the other plans. With a ``layout`` (nchw or nhwc) it takes bytes.

    It is built first where it is not there, or no longer this machine's or this model's.
    """
    plan = path_of(precision, opts, layout, backend.current().kind)
    shown = Path(os.path.relpath(plan))
    options = [] if precision == "fp32" else [f"--{precision}"]
    options += ["--input", "bytes", "--layout", layout] if layout else []
    shapes = (USUAL if opt == USUAL[1] else (1, opt, opt) for opt in opts)
    options += [part for shape in shapes for part in ("--profile", ",".join(map(str, shape)))]
    if unusable(plan, shown):
        plan.parent.mkdir(parents=True, exist_ok=True)
        with program.alone(plan.with_name(f"{plan.name}.lock")):
            if reason := unusable(plan, shown):  # still: no other has built it meanwhile
                build(shown, options, reason)
    return shown


def build(shown: Path, options: list[str], why: str) -> None:
    """Have ``0_build.py`` make a default plan. Raises ``EnvironmentFault``."""
    here = backend.current()
    command = ["0_build.py", "--backend", here.name, "--output", str(shown), *options]
    if not here.kind.builds:
        needed = f"where TensorRT is: python {' '.join([*command, COMPATIBLE])}"
        raise EnvironmentFault(f"{why}, and the {here.kind.called} builds none. Build it {needed}")
    err.print(f"{why}; building it: python {' '.join(command)}", markup=False)
    if code := subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], check=False).returncode:
        by_hand = f" Build it: python {' '.join(command)} --calibration-images DIR" if "--int8" in options else ""
        raise EnvironmentFault(f"the build ended with exit code {code}; see above.{by_hand}")


def unusable(plan: Path, shown: Path) -> str | None:
    """Why a plan cannot be used as it is: it is missing, or its sidecar says that it is not for this machine, or of an ONNX
    file that has been exported or calibrated anew since."""
    if not plan.exists():
        return f"no plan {shown} yet"
    try:
        facts = check_sidecar(plan)
    except PlanFault as fault:
        return str(fault).split(". Build")[0]
    exported = read_json(ROOT / "models" / f"{facts.get('onnx')}.json").get("sha256")
    if facts and exported and exported != facts["onnx_sha256"]:
        return f"{shown} was built from an earlier {facts['onnx']}"
    return None


def check_sizes(engine: Engine, sizes: Sequence[int]) -> None:
    """Raise ``UsageFault`` where no profile of the plan takes one of the batch sizes."""
    for batch in sorted(sizes):
        if engine.profile_for(batch) is None:
            held = " or ".join(f"{low} to {high}" for low, _, high in engine.profiles)
            batch = backend.current().charged(batch)
            wrong = f"a batch of {batch} does not fit {engine.plan}, whose profiles take {held}"
            raise UsageFault(f"{wrong}. Build one for it: {beside(engine, batch)}")


def check_memory(engine: Engine, batch: int) -> None:
    """Find out before the batches are prepared that not even one of them, run serially, fits on the GPU."""
    free, _ = cudart.cudaMemGetInfo()
    charged = backend.current().charged(batch)
    if (needed := engine.context_memory + sum(engine.nbytes(charged))) > free:
        what = f"the activations of a batch of {max(high for *_, high in engine.profiles)} and one batch's buffers"
        short = f"needs {needed / 1e9:.1f} GB on the GPU for {what}, and {free / 1e9:.1f} GB are free"
        raise EnvironmentFault(f"{engine.plan} {short}. Build a smaller one: {beside(engine, batch)}")


def beside(engine: Engine, batch: int) -> str:
    """The commands that build a plan for another batch beside this one, which stays as it is, and use it."""
    words = rebuild(engine.plan, engine.facts).split()
    kept = [word for before, word in zip(["", *words], words) if not {"--profile", "--output"} & {before, word}]
    plan = engine.plan.with_name(f"{engine.plan.name.split('.')[0]}-batch{batch}.plan")
    return f"{' '.join(kept)} --profile 1,{batch},{batch} --output {plan}, then --plan {plan}"
