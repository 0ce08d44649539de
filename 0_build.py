"""0 · Build: from a torchvision model to a TensorRT plan.

A plan is made in two steps that need not run under the same Python:

    model → ONNX    PyTorch exports it, ONNX Runtime checks it     (needs torch)
    ONNX → plan     TensorRT picks this GPU's fastest kernels   (needs TensorRT)

Precision is decided in the first step. The FP16 file has FP16 weights and activations between FP32 inputs and outputs,
and a strongly typed network (TensorRT 10 on request, 11 always) does what the file says. TensorRT 8.6 has no such
networks: there the builder is allowed FP16 as well. Either way the engine inspector has the last word, because a builder
that quietly keeps FP32 is the classic way to publish a wrong speed-up. An INT8 file has Q/DQ nodes whose scales come from
images; noise would give scales that are wrong for yours, so there is no INT8 without ``--calibration-images``.

A version-compatible plan holds the builder's runtime, so that newer versions run it: a program, which runs with your rights.
TensorRT runs it only where that is allowed; a stage allows it where the sidecar proves the plan, or with ``--trust-plan``.

    python 0_build.py                          the FP32 plan of stages 1 to 3
    python 0_build.py --fp16                   the FP16 plan of the later stages
    python 0_build.py --int8 --calibration-images photos/    an INT8 plan
    python 0_build.py --train digits --fp16    trained on handwriting, offline
    python 0_build.py --export-only            the ONNX files and no plan
    python 0_build.py --profile 1,1,1 --output plans/one.plan
    python 0_build.py --version-compatible --fp16    for newer TensorRTs, too
    python 0_build.py --backend rtx --fp16     for RTX cards; needs none here
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import backend, plans, program
from common.building import Building, keep_timings, prove, take_timings
from common.checked import logger, require, started
from common.console import err, wrapped
from common.errors import EnvironmentFault, UsageFault
from common.files import check_ordinary, write_bytes, write_json
from common.options import add_plan_options
from common.tensors import End, check_ends
from export import models, source

Triple = tuple[int, int, int]  # a profile's smallest, most common and largest batch


def parse(trt: Any, builder: Any, onnx: Path) -> tuple[Any, Any]:
    """The network of an ONNX file (and its parser, which must outlive it); refused here if the ladder cannot run it."""
    flags = trt.NetworkDefinitionCreationFlag
    # Strongly typed where TensorRT can (10 and later); an explicit batch dimension where it must be asked for (8.6).
    flag = flags.STRONGLY_TYPED if hasattr(flags, "STRONGLY_TYPED") else flags.EXPLICIT_BATCH
    network = require(builder.create_network(1 << int(flag)), "create_network")
    parser = require(trt.OnnxParser(network, logger()), "OnnxParser")
    with ThreadPoolExecutor(1) as pool:  # or TensorRT swallows a Ctrl-C that comes while it talks to our logger
        parsed = pool.submit(parser.parse_from_file, str(onnx)).result()
    if not parsed:
        errors = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise EnvironmentFault(f"TensorRT cannot parse {onnx}: {errors or logger().last or 'it gave no reason'}.")
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    check_ends(onnx, *([End(end.name, tuple(end.shape), end.dtype.name) for end in ends] for ends in (inputs, outputs)))
    return network, parser


def configure(trt: Any, config: Any, options: argparse.Namespace) -> None:
    """What to tell of the layers, and what only TensorRT 8.6 has to be told: the precision, and that contexts share."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector knows names only
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT for RTX: or no graph is captured
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        if options.share_profile:
            err.print("--share-profile: contexts always share profiles in this TensorRT; nothing to do")
        return
    for flag in {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"]}[options.precision]:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if options.share_profile is not False and hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"):
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)


def add_profiles(builder: Any, config: Any, network: Any, wanted: list[Triple] | None) -> list[Triple]:
    """One optimization profile a triple: the smallest, the most common and the largest batch. Returns them."""
    fixed, *rest = network.get_input(0).shape
    usual = plans.USUAL if fixed < 1 else (fixed,) * 3
    profiles = wanted or [usual]
    for triple in profiles:
        if fixed > 0 and triple != usual:
            raise UsageFault(f"the model takes batches of {fixed} only: --profile {fixed},{fixed},{fixed}, or none.")
        profile = require(builder.create_optimization_profile(), "create_optimization_profile")
        profile.set_shape(network.get_input(0).name, *((batch, *rest) for batch in triple))
        require(config.add_optimization_profile(profile) >= 0, "add_optimization_profile")
    return profiles


def build(options: argparse.Namespace, onnx: Path) -> tuple[bytes, list[Triple], bytes]:
    """The serialized plan, its profiles, and the timings of its kernels, which make the next build fast."""
    trt = backend.current().tensorrt
    builder = started(trt.Builder, "Builder")
    network, _parser = parse(trt, builder, onnx)
    config = require(builder.create_builder_config(), "create_builder_config")
    configure(trt, config, options)
    profiles = add_profiles(builder, config, network, options.profile)
    take_timings(config, options.timing_cache)
    plan = Building(trt, config).wait(lambda: builder.build_serialized_network(network, config))
    cache = config.get_timing_cache() if options.timing_cache else None
    return bytes(require(plan, "build_serialized_network")), profiles, bytes((cache and cache.serialize()) or b"")


def main() -> None:
    parser = program.parser(__doc__)
    source.add_options(parser)
    add_plan_options(parser)
    options = parser.parse_args()
    if options.output:
        check_ordinary(options.output)  # said before minutes of training and quantizing
    onnx = source.onnx_file(options)
    if options.export_only:
        return
    here = backend.select(options.backend, build=True)
    output, options.timing_cache = plans.destination(options, onnx)
    err.print(wrapped(f"building {output.name} from {onnx.name} with {here.library}", 2, err))
    begun = time.perf_counter()
    plan, profiles, timings = build(options, onnx)
    build_s = round(time.perf_counter() - begun, 1)
    facts = {**prove(output, plan, onnx, options, models.read_description(onnx)), "profiles": profiles, "build_s": build_s}
    plans.sidecar(output).unlink(missing_ok=True)  # a plan without one is merely unchecked
    write_bytes(output, plan)
    write_json(plans.sidecar(output), facts)
    keep_timings(options.timing_cache, timings)
    told = ", ".join(f"{count} {name}" for name, count in facts["precisions"].items())
    err.print(f"built {output} in {time.perf_counter() - begun:.1f} s: {len(plan) / 1e6:.1f} MB, layers: {told}")


if __name__ == "__main__":
    program.run(main)
