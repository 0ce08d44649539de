"""0 · Build: from a torchvision model to a TensorRT plan.

A plan is made in two steps that need not run under the same Python:

    model → ONNX    torch exports the network, ONNX Runtime checks the file against PyTorch    (needs torch)
    ONNX → plan     TensorRT picks the fastest kernels for this GPU, its version and its shapes (needs TensorRT)

Precision is decided in the first step. The FP16 file has FP16 weights and activations between FP32 inputs and outputs,
and a strongly typed network (TensorRT 10 on request, 11 always) does what the file says. TensorRT 8.6 has no such
networks: there the builder is allowed FP16 as well. Either way the engine inspector has the last word, because a builder
that quietly keeps FP32 is the classic way to publish a wrong speed-up. An INT8 file has Q/DQ nodes whose scales come from
images; noise would give scales that are wrong for yours, so there is no INT8 without ``--calibration-images``.

    python 0_build.py                            the FP32 plan of stages 1 to 3
    python 0_build.py --fp16                     the FP16 plan of the later stages
    python 0_build.py --int8 --calibration-images photos/    an INT8 plan
    python 0_build.py --train digits --fp16      train on real handwriting first, in minutes and offline
    python 0_build.py --export-only              the ONNX files and no plan
    python 0_build.py --profile 1,1,1 --output plans/one.plan
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from common import backend, plans, program
from common.building import Building
from common.console import err
from common.engine import Engine, check_ends, logger, require
from common.errors import EnvironmentFault, UsageFault
from common.files import check_writable, sha256, write_bytes, write_json
from common.options import add_plan_options
from export import models, source


def parse(trt: Any, builder: Any, onnx: Path) -> tuple[Any, Any]:
    """The network of an ONNX file (and its parser, which must outlive it); refused here if the ladder cannot run it."""
    flags = trt.NetworkDefinitionCreationFlag
    # Strongly typed where TensorRT can (10 and later); an explicit batch dimension where it must be asked for (8.6).
    flag = flags.STRONGLY_TYPED if hasattr(flags, "STRONGLY_TYPED") else flags.EXPLICIT_BATCH
    network = require(builder.create_network(1 << int(flag)), "create_network")
    parser = require(trt.OnnxParser(network, logger()), "OnnxParser")
    if not parser.parse_from_file(str(onnx)):
        errors = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise EnvironmentFault(f"TensorRT cannot parse {onnx}: {errors or logger().last or 'it gave no reason'}.")
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    check_ends(onnx, *([(end.name, tuple(end.shape), end.dtype.name) for end in ends] for ends in (inputs, outputs)))
    return network, parser


def configure(trt: Any, config: Any, options: argparse.Namespace) -> None:
    """What to tell of the layers, and what only TensorRT 8.6 has to be told: the precision, and that contexts share."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector knows names only
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        if options.share_profile:
            err.print("--share-profile: contexts always share profiles in this TensorRT; nothing to do")
        return
    for flag in {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"]}[options.precision]:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if options.share_profile is not False and hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"):
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)


def add_profiles(builder: Any, config: Any, network: Any, profiles: list[tuple[int, int, int]] | None) -> None:
    """One optimization profile a triple: the smallest, the most common and the largest batch."""
    fixed, *rest = network.get_input(0).shape
    usual = (1, 128, 256) if fixed < 1 else (fixed,) * 3
    for triple in profiles or [usual]:
        if fixed > 0 and triple != usual:
            raise UsageFault(f"the model takes batches of {fixed} only: --profile {fixed},{fixed},{fixed}, or none.")
        profile = require(builder.create_optimization_profile(), "create_optimization_profile")
        profile.set_shape(network.get_input(0).name, *((batch, *rest) for batch in triple))
        require(config.add_optimization_profile(profile), "add_optimization_profile")


def build(options: argparse.Namespace, onnx: Path) -> tuple[bytes, bytes]:
    """The serialized plan, and the timings of its kernels, which make the next build fast."""
    trt, timings = backend.current().tensorrt, options.timing_cache
    builder = require(trt.Builder(logger()), "Builder")
    network, _parser = parse(trt, builder, onnx)
    config = require(builder.create_builder_config(), "create_builder_config")
    configure(trt, config, options)
    add_profiles(builder, config, network, options.profile)
    cache = config.create_timing_cache(timings.read_bytes() if timings.exists() else b"")
    again = f"set_timing_cache({timings}, which may be removed)"
    require(config.set_timing_cache(require(cache, "create_timing_cache"), False), again)
    plan = Building(trt, config).wait(lambda: builder.build_serialized_network(network, config))
    cache = config.get_timing_cache()
    return bytes(require(plan, "build_serialized_network")), bytes((cache and cache.serialize()) or b"")


def prove(output: Path, onnx: Path, options: argparse.Namespace, build_s: float) -> str:
    """Load the plan, write down what it is for and of, and hold its layers to the precision that was asked for."""
    engine, described = Engine(output), models.read_description(onnx)
    asked = "as in the ONNX file" if options.precision == "fp32" else options.precision
    usual: dict[str, Any] = {"precision": asked, "model": onnx.stem, "weights": None, "labels": []}
    facts = {
        **plans.this_machine(),
        **{name: described.get(name, value) for name, value in usual.items()},
        "profiles": engine.profiles,
        "layers": engine.layer_names(),
        "onnx": onnx.name,
        "onnx_sha256": sha256(onnx),
        "plan_sha256": sha256(output),
        "build_s": round(build_s, 1),
        "command": ["python", Path(sys.argv[0]).name, *sys.argv[1:]],
    }
    write_json(plans.sidecar(output), facts)
    if options.onnx_file is None or options.precision != "fp32":
        engine.require_precision(options.precision)
    return ", ".join(f"{count} {name}" for name, count in engine.precisions().most_common())


def main() -> None:
    parser = program.parser(__doc__)
    source.add_options(parser)
    add_plan_options(parser)
    options = parser.parse_args()
    onnx = source.onnx_file(options)
    if options.export_only:
        return
    here = backend.select(options.backend)
    output = options.output or plans.ROOT / "plans" / f"{onnx.stem}{here.kind.plan_suffix}"
    options.timing_cache = options.timing_cache or plans.ROOT / "plans" / f"timing{here.kind.plan_suffix[:-5]}.cache"
    err.print(f"building {output.name} from {onnx.name} with {here.library}")
    started = time.perf_counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    check_writable(output, plans.sidecar(output), options.timing_cache)
    plan, timings = build(options, onnx)
    write_bytes(output, plan)
    plans.sidecar(output).unlink(missing_ok=True)  # a plan without one is merely unchecked
    layers = prove(output, onnx, options, time.perf_counter() - started)
    write_bytes(options.timing_cache, timings)
    err.print(f"built {output} in {time.perf_counter() - started:.1f} s: {len(plan) / 1e6:.1f} MB, layers: {layers}")


if __name__ == "__main__":
    program.run(main)
