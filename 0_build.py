"""0 · Build: from a torchvision model to a TensorRT plan.

A plan is made in two steps that need not run under the same Python:

    model → ONNX    torch exports the network, ONNX Runtime checks the file against PyTorch    (needs torch)
    ONNX → plan     TensorRT picks the fastest kernels for this GPU, its version and its shapes (needs TensorRT)

Precision is decided in the first step. The FP16 file has FP16 weights and activations between FP32 inputs and outputs,
and a strongly typed network (TensorRT 10 on request, 11 always) does what the file says. TensorRT 8.6 has no such
networks: there the builder is allowed FP16 as well. Either way the engine inspector has the last word, because a builder
that quietly keeps FP32 is the classic way to publish a wrong speed-up. An INT8 file has Q/DQ nodes whose scales come from
images; noise would give scales that are wrong for yours, so there is no INT8 without ``--calibration-images``.

A plan works only with the TensorRT version and the kind of GPU that it was built with. PLAN.json beside it says which.

    python 0_build.py                            the FP32 plan of stages 1 to 3
    python 0_build.py --fp16                     the FP16 plan of the later stages
    python 0_build.py --int8 --calibration-images photos/    an INT8 plan
    python 0_build.py --train digits --fp16      train on real handwriting first, in minutes and offline
    python 0_build.py --export-only              the ONNX files and no plan
    python 0_build.py --profile 1,1,1 --output plans/one.plan
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from common import backend, models, quantize, train
from common.engine import Engine, logger, require, sidecar, this_machine
from common.errors import EnvironmentFault, Fault, UsageFault
from common.files import atomic_path, write_json

ROOT = Path(__file__).resolve().parent
console = Console(stderr=True, highlight=False, soft_wrap=True)


# -- model → ONNX


def export(options: argparse.Namespace) -> dict[str, Path]:
    """The model's ONNX files by precision; exported only where they are not there already."""
    tag = models.tag(options.model, options.weights, options.seed)
    paths = {precision: options.onnx_dir / f"{tag}-{precision}.onnx" for precision in ("fp32", "fp16")}
    trained = Path(options.weights)
    wanted = {"model": options.model, "seed": options.seed,
              "weights": models.sha256(trained) if trained.is_file() else options.weights}
    known = {precision: models.read_description(path) for precision, path in paths.items() if path.exists()}
    if all(wanted.items() <= known.get(precision, {}).items() for precision in paths):
        return paths
    with console.status(f"exporting {options.model} to ONNX"):
        model, labels = models.create_model(options.model, options.weights, options.seed)
        models.export_onnx(model, models.MODELS[options.model], paths["fp32"])
        models.convert_to_fp16(paths["fp32"], paths["fp16"])
        check_export(model, paths, options)
    for precision, path in paths.items():
        models.write_description(path, **wanted, precision=precision, opset=models.OPSET, labels=labels)
    return paths


def check_export(model: Any, paths: dict[str, Path], options: argparse.Namespace) -> None:
    """Hold both files to PyTorch's own outputs."""
    import torch

    from common.images import noise_images

    images = noise_images(range(4), models.MODELS[options.model], options.seed)
    with torch.no_grad():
        reference = model(torch.from_numpy(images)).numpy()
    for precision, tolerance in (("fp32", 1e-4), ("fp16", 2e-2)):
        difference = models.largest_difference(models.run_onnx(paths[precision], images), reference)
        if not difference < tolerance:
            paths[precision].unlink()
            raise EnvironmentFault(f"the {precision} export is wrong: it differs from PyTorch by {difference:.2g} of the "
                                   "largest logit.")
        console.print(f"{paths[precision]}: within {difference:.1e} of PyTorch (share of the largest logit)")


# -- ONNX → plan


def creation_flags(trt: Any) -> int:
    """Strongly typed where TensorRT can (10 and later); an explicit batch dimension where it must be asked for (8.6)."""
    flags = trt.NetworkDefinitionCreationFlag
    name = "STRONGLY_TYPED" if hasattr(flags, "STRONGLY_TYPED") else "EXPLICIT_BATCH"
    return 1 << int(getattr(flags, name))


def configure(trt: Any, config: Any, precision: str, share_profile: bool) -> None:
    """What only TensorRT 8.6 has to be told: the precision it may use, and that contexts may share a profile."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector knows names only
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        return
    for flag in {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"]}[precision]:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if share_profile and hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"):
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)


def parse_network(trt: Any, builder: Any, onnx: Path) -> tuple[Any, Any]:
    """The network of an ONNX file (and its parser, which must outlive it)."""
    network = require(builder.create_network(creation_flags(trt)), "create_network")
    parser = trt.OnnxParser(network, logger())
    if not parser.parse_from_file(str(onnx)):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise EnvironmentFault("\n".join([f"TensorRT cannot parse {onnx}:", *(f"  {error}" for error in errors)]))
    return network, parser


def add_profiles(builder: Any, config: Any, network: Any, profiles: list[tuple[int, int, int]]) -> None:
    """One optimization profile a triple: the smallest, the most common and the largest batch."""
    for triple in profiles:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            rest = tuple(tensor.shape)[1:]
            if min(rest, default=1) < 1:
                raise EnvironmentFault(f"input {tensor.name} is {tuple(tensor.shape)}: only the batch may be dynamic here.")
            profile.set_shape(tensor.name, *((batch, *rest) for batch in triple))
        config.add_optimization_profile(profile)


def build(options: argparse.Namespace, onnx: Path, precision: str) -> bytes:
    """The serialized plan."""
    trt = backend.current().tensorrt
    builder = trt.Builder(logger())
    network, _parser = parse_network(trt, builder, onnx)
    config = builder.create_builder_config()
    configure(trt, config, precision, options.share_profile is not False)
    if options.share_profile and hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        console.print("--share-profile: contexts always share profiles in this TensorRT; nothing to do")
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams
    add_profiles(builder, config, network, options.profile)
    known = options.timing_cache.read_bytes() if options.timing_cache.exists() else b""
    cache = require(config.create_timing_cache(known), f"create_timing_cache({options.timing_cache})")
    require(config.set_timing_cache(cache, False), f"set_timing_cache({options.timing_cache})")
    plan = Building(trt, config).wait(lambda: builder.build_serialized_network(network, config))
    with atomic_path(options.timing_cache) as temporary:
        temporary.write_bytes(config.get_timing_cache().serialize())
    return bytes(plan)


class Building:
    """Runs a build on a thread of its own, so that the terminal shows its progress and Ctrl-C is heard.

    TensorRT 10 and later report progress and can be told to stop; 8.6 does neither: it gets the elapsed time, and is
    stopped with the process.
    """

    def __init__(self, trt: Any, config: Any) -> None:
        self.cancelled = False
        self.progress = Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console,
                                 transient=True, disable=not console.is_terminal)
        self.can_cancel = hasattr(config, "progress_monitor")
        if self.can_cancel:
            config.progress_monitor = self.monitor = self.create_monitor(trt)

    def create_monitor(self, trt: Any) -> Any:
        building = self

        class Monitor(trt.IProgressMonitor):
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)
                self.tasks: dict[str, Any] = {}

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                indent = "  " if parent_phase else ""
                self.tasks[phase_name] = building.progress.add_task(indent + phase_name, total=num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                building.progress.update(self.tasks[phase_name], completed=step + 1)
                return not building.cancelled

            def phase_finish(self, phase_name: str) -> None:
                building.progress.remove_task(self.tasks.pop(phase_name))

        return Monitor()

    def wait(self, work: Any) -> Any:
        """``work``'s result; ``EnvironmentFault`` where TensorRT gave none, ``KeyboardInterrupt`` where it was stopped."""
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
        with self.progress:
            self.progress.add_task("building", total=None)
            thread.start()
            try:
                while thread.is_alive():
                    thread.join(0.1)
            except KeyboardInterrupt:
                self.cancelled = True
                if not self.can_cancel:
                    console.print("0_build: interrupted; nothing was written", style="red")
                    os._exit(130)
                thread.join()
                raise
        return require(results[0] if results else None, "build_serialized_network")


def profile(text: str) -> tuple[int, int, int]:
    try:
        low, best, high = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN,OPT,MAX") from None
    if not 1 <= low <= best <= high:
        raise argparse.ArgumentTypeError(f"{text!r}: 1 ≤ MIN ≤ OPT ≤ MAX must hold")
    return low, best, high


def parse_options() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", choices=models.MODELS, default="resnet18")
    p.add_argument("--weights", default="random", metavar="random|imagenet|FILE", help="default: random, seeded, offline")
    p.add_argument("--seed", type=int, default=models.SEED, help="seed of the random weights (default: %(default)s)")
    p.add_argument("--export-only", action="store_true", help="write the ONNX files and stop")
    p.add_argument("--onnx-file", type=Path, help="build this file instead of a torchvision model")
    precision = p.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_true", help="FP16 weights and activations, FP32 input and output")
    precision.add_argument("--int8", action="store_true", help="INT8 by post-training quantization; needs the next option")
    p.add_argument("--calibration-images", type=Path, metavar="DIR", help="JPEG and PNG images like those to be classified")
    p.add_argument("--calibration-count", type=int, default=128, metavar="N", help="how many of them (default: %(default)s)")
    p.add_argument("--calibration", choices=quantize.METHODS, default="entropy", help="default: %(default)s")
    p.add_argument("--train", choices=train.DATASETS, help="first train the model on this data set, whose images are left "
                   "as labelled folders in models/; cifar10 is downloaded")
    p.add_argument("--profile", type=profile, action="append", metavar="MIN,OPT,MAX",
                   help="an optimization profile, as batch sizes; repeatable (default: 1,128,256)")
    p.add_argument("--aux-streams", type=int, metavar="N", help="streams TensorRT may add within one inference")
    p.add_argument("--share-profile", action=argparse.BooleanOptionalAction,
                   help="several contexts on one profile: on by default in TensorRT 8.6, always on since 10")
    p.add_argument("--timing-cache", type=Path, metavar="FILE", help="kernel timings of earlier builds "
                   "(default: plans/timing.cache), which make the next build fast")
    p.add_argument("--output", type=Path, metavar="PLAN", help="default: plans/MODEL-PRECISION.plan")
    p.add_argument("--backend", choices=backend.NAMES, default="auto", help="simulated: a plan for the simulated TensorRT")
    options = p.parse_args()
    options.profile = options.profile or [(1, 128, 256)]
    options.onnx_dir = ROOT / "models"
    return options


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    options = parse_options()
    precision = "fp16" if options.fp16 else "int8" if options.int8 else "fp32"
    try:
        if options.train:
            train_model(options)
        if options.onnx_file is None:
            onnx = export(options)["fp32" if options.int8 else precision]
        elif not options.onnx_file.is_file():
            raise UsageFault(f"--onnx-file {options.onnx_file}: no such file.")
        elif options.fp16:
            onnx = options.onnx_dir / f"{options.onnx_file.stem}-fp16.onnx"
            models.convert_to_fp16(options.onnx_file, onnx)
        else:
            onnx = options.onnx_file
        if options.int8:
            onnx = quantize.calibrated(onnx, options.calibration_images, options.calibration_count, options.calibration,
                                       options.seed, console)
        if options.export_only:
            return 0
        chosen = backend.select(options.backend)
        output = options.output or ROOT / "plans" / f"{onnx.stem}{chosen.plan_suffix}"
        options.timing_cache = options.timing_cache or ROOT / "plans" / f"timing{chosen.plan_suffix[:-5]}.cache"
        console.print(f"building {output.name} from {onnx.name} with {chosen.engine}")
        started = time.perf_counter()
        write(output, build(options, onnx, precision), onnx, options)
        build_s = time.perf_counter() - started
        engine = Engine(output)
        write_json(sidecar(output), {**engine.facts, "build_s": round(build_s, 1), "layers": engine.layer_names()})
        if options.onnx_file is None or precision != "fp32":
            engine.require_precision(precision)
        layers = ", ".join(f"{count} {name}" for name, count in engine.precisions().most_common())
        console.print(f"built {output} in {time.perf_counter() - started:.1f} s: {output.stat().st_size / 1e6:.1f} MB, "
                      f"layers: {layers}")
    except Fault as fault:
        console.print(f"0_build: error: {fault}", style="red", markup=False)
        return fault.exit_code
    except KeyboardInterrupt:
        console.print("0_build: interrupted; nothing was written", style="red")
        return 130
    return 0


def train_model(options: argparse.Namespace) -> None:
    """Train, unless that was done before, and go on with the trained weights."""
    name = f"{options.model}-{options.train}"
    weights, folders = options.onnx_dir / f"{name}.pt", options.onnx_dir / options.train
    options.weights = str(weights)
    if weights.exists():
        console.print(f"{weights} is there; remove it to train again", markup=False)
        return
    started = time.perf_counter()
    accuracy = train.fine_tune(options.model, options.train, folders, weights, options.seed, console)
    console.print(f"trained {name} in {time.perf_counter() - started:.0f} s: {accuracy:.1%} right of {folders / 'test'}",
                  markup=False)


def write(output: Path, plan: bytes, onnx: Path, options: argparse.Namespace) -> None:
    """The plan and its sidecar. The sidecar comes last: a plan without one is merely unchecked."""
    described = models.read_description(onnx)
    sidecar(output).unlink(missing_ok=True)
    with atomic_path(output) as temporary:
        temporary.write_bytes(plan)
    write_json(sidecar(output), {
        **this_machine(), "precision": "fp16" if options.fp16 else described.get("precision", "as in the ONNX file"),
        "model": described.get("model", onnx.stem), "weights": described.get("weights"),
        "profiles": options.profile, "labels": described.get("labels", []), "onnx": onnx.name,
        "onnx_sha256": described.get("sha256") or models.sha256(onnx), "plan_sha256": models.sha256(output),
        "command": ["python", Path(sys.argv[0]).name, *sys.argv[1:]],
    })


if __name__ == "__main__":
    sys.exit(main())
