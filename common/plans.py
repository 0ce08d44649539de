"""Plans as files: the sidecar that says what a plan is for, and the default plans, which are built when they are missing.

A plan works only with the TensorRT and the kind of GPU that it was built with. ``PLAN.json`` beside it says which; it is
checked before TensorRT sees the plan, which would answer with a null engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import backend
from common.console import err
from common.cuda import cudart
from common.errors import EnvironmentFault, UsageFault
from common.files import read_json, sha256

if TYPE_CHECKING:
    from common.engine import Engine

ROOT = Path(__file__).resolve().parent.parent


def sidecar(plan: Path) -> Path:
    return plan.with_name(plan.name + ".json")


def this_machine() -> dict[str, Any]:
    """What a plan depends on, as its sidecar has it: TensorRT's version, the GPU and its compute capability."""
    properties = cudart.cudaGetDeviceProperties(0)
    return {
        "tensorrt": backend.current().tensorrt.__version__,
        "gpu": properties.name.decode(),
        "compute_capability": f"{properties.major}.{properties.minor}",
    }


def check_sidecar(plan: Path) -> dict[str, Any]:
    """The sidecar's content, or {} without one. Raises ``EnvironmentFault`` where the plan cannot work here."""
    if not plan.exists():
        raise EnvironmentFault(f"there is no plan {plan}. Build it: {rebuild(plan, {})}")
    try:
        facts = json.loads(sidecar(plan).read_text())
    except OSError:
        return {}
    except ValueError:
        raise EnvironmentFault(f"{sidecar(plan)} is not valid JSON. Build the plan again: {rebuild(plan, {})}") from None
    here, again = this_machine(), f"Build it again: {rebuild(plan, facts)}"
    if facts.get("plan_sha256") != sha256(plan):
        raise EnvironmentFault(f"{plan} is not the file that was built: cut short, edited or overwritten. {again}")
    if facts.get("tensorrt") != here["tensorrt"]:
        raise EnvironmentFault(f"{plan} was built by TensorRT {facts.get('tensorrt')}, and this is {here['tensorrt']}. {again}")
    simulated = backend.current().simulator is not None  # a simulated plan runs on every modelled GPU
    if not simulated and facts.get("compute_capability") != here["compute_capability"]:
        raise EnvironmentFault(f"{plan} was built for a {facts.get('gpu')}, and this is a {here['gpu']}. {again}")
    return facts


def rebuild(plan: Path, facts: dict[str, Any]) -> str:
    """The command that makes a plan again; without ``facts`` nobody knows of which model, and that is left to be filled in."""
    return " ".join(facts.get("command") or ["python 0_build.py --onnx-file MODEL.onnx --output", str(plan)])


def default_plan(precision: str, opts: Sequence[int] = ()) -> Path:
    """The plan of the ladder's model in ``precision``, with a profile for each batch size of ``opts`` if there are any.

    It is built first where it is not there, or no longer this machine's or this model's.
    """
    variant = "".join(f"-{opt}" for opt in opts)
    plan = ROOT / "plans" / f"resnet18-{precision}{variant}{backend.current().plan_suffix}"
    shown = Path(os.path.relpath(plan))
    if reason := unusable(plan, shown):
        command = ["0_build.py", "--backend", backend.current().name, "--output", str(shown)]
        command += [] if precision == "fp32" else [f"--{precision}"]
        command += [part for opt in opts for part in ("--profile", f"1,{opt},{opt}")]
        err.print(f"{reason}; building it: python {' '.join(command)}", markup=False)
        code = subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], check=False).returncode
        if code != 0:
            raise EnvironmentFault(f"the build ended with exit code {code}; see above.")
    return shown


def unusable(plan: Path, shown: Path) -> str | None:
    """Why a plan cannot be used as it is: it is missing, or its sidecar says that it is not for this machine, or of an ONNX
    file that has been exported or calibrated anew since."""
    if not plan.exists():
        return f"no plan {shown} yet"
    try:
        facts = check_sidecar(plan)
    except EnvironmentFault as fault:
        return str(fault).split(". Build")[0]
    onnx = ROOT / "models" / facts.get("onnx", "")
    exported = read_json(onnx.with_name(onnx.name + ".json")).get("sha256")
    if exported and exported != facts["onnx_sha256"]:
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
    needed = engine.context_memory + 4 * (prod(engine.input_shape(charged)) + prod(engine.output_shape(charged)))
    if needed > free:
        what = f"the activations of a batch of {max(high for *_, high in engine.profiles)} and one batch's buffers"
        short = f"needs {needed / 1e9:.1f} GB on the GPU for {what}, and {free / 1e9:.1f} GB are free"
        raise EnvironmentFault(f"{engine.plan} {short}. Build a smaller one: {beside(engine, batch)}")


def beside(engine: Engine, batch: int) -> str:
    """The commands that build a plan for another batch beside this one, which stays as it is, and use it."""
    words = rebuild(engine.plan, engine.facts).split()
    kept = [word for before, word in zip(["", *words], words) if not {"--profile", "--output"} & {before, word}]
    plan = engine.plan.with_name(f"{engine.plan.name.split('.')[0]}-batch{batch}.plan")
    return f"{' '.join(kept)} --profile 1,{batch},{batch} --output {plan}, then --plan {plan}"
