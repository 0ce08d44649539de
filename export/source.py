"""From the options of ``0_build.py`` to the one ONNX file that a plan is built from: train, export, convert, calibrate."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from common.console import err
from common.errors import UsageFault
from common.files import sha256
from common.images import noise_images
from common.options import natural, positive
from common.plans import ROOT
from export import bytes_in, models, quantize, random_weights, train
from export.networks import create_model, logits

FOLDER = ROOT / "models"
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-2}  # FP16's rounding adds up: a trained EfficientNetV2-S was off by 2.9 %
"""Share of the largest logit by which an exported file may be off PyTorch's outputs (random weights: the FP32 file's)."""


def add_options(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("the model")
    model.add_argument("--model", choices=models.MODELS, default="resnet18")
    model.add_argument("--weights", default="random", metavar="random|imagenet|FILE", help="default: random, seeded, offline")
    model.add_argument("--seed", type=natural, default=models.SEED, help="seed of the random weights (default: %(default)s)")
    model.add_argument("--onnx-file", type=Path, help="build this file instead of a torchvision model")
    model.add_argument("--export-only", action="store_true", help="write the ONNX files and stop")
    train_help = "first train the model on this data set, which is left as labelled folders in models/; cifar10 is downloaded"
    model.add_argument("--train", choices=train.DATASETS, help=train_help)
    precision = parser.add_argument_group("precision (default: FP32)")
    one = precision.add_mutually_exclusive_group()
    fp16, int8 = "FP16 weights and activations, FP32 input and output", "INT8, by quantization; needs the next option"
    one.add_argument("--fp16", dest="precision", action="store_const", const="fp16", help=fp16)
    one.add_argument("--int8", dest="precision", action="store_const", const="int8", help=int8)
    precision.add_argument("--calibration-images", type=Path, metavar="DIR", help="images like those to be classified")
    count = "of them (default: %(default)s)"
    precision.add_argument("--calibration-count", type=positive, default=128, metavar="N", help=count)
    precision.add_argument("--calibration", choices=quantize.METHODS, default="entropy", help="default: %(default)s")
    parser.set_defaults(precision="fp32")
    sent = parser.add_argument_group("what is sent")
    sent_as = "bytes: a picture's bytes, normalised in the plan (default: floats, normalised on the host)"
    sent.add_argument("--input", choices=("floats", "bytes"), default="floats", help=sent_as)
    sent.add_argument("--layout", choices=bytes_in.LAYOUTS, help="how the bytes lie: by colour, or by pixel (default: nchw)")


def onnx_file(options: argparse.Namespace) -> Path:
    """The ONNX file that ``options`` ask for, made where it is not there already."""
    if options.train:
        train_model(options)
    if options.layout and options.input != "bytes":
        raise UsageFault("--layout says how bytes lie: add --input bytes.")
    if options.onnx_file is None:
        files = export(options)
    elif options.onnx_file.is_file():
        files = {"fp32": options.onnx_file}
    else:
        raise UsageFault(f"--onnx-file {options.onnx_file}: no such file.")
    folder = FOLDER / "own" if options.onnx_file and options.onnx_file.resolve().parent != FOLDER else FOLDER
    if options.input == "bytes":
        kind = "int8" if options.precision == "int8" else "uint8"
        files = {"fp32": bytes_in.bytes_in(files["fp32"], folder, kind, options.layout or "nchw")}
    onnx = files["fp32"]
    if options.precision == "int8":
        images, count = options.calibration_images, options.calibration_count
        return quantize.calibrated(onnx, folder, images, count, options.calibration, options.seed)
    if options.precision not in files:
        files["fp16"] = models.in_fp16(onnx, folder)
    return files[options.precision]


def train_model(options: argparse.Namespace) -> None:
    """Train, unless that was done before, and go on with the trained weights."""
    name = f"{options.model}-{options.train}"
    weights, folders = FOLDER / f"{name}.pt", FOLDER / options.train
    options.weights = str(weights)
    if weights.exists():
        err.print(f"{weights} is there; remove it to train again", markup=False)
        return
    started = time.perf_counter()
    accuracy = train.fine_tune(options.model, options.train, folders, weights, options.seed)
    took = time.perf_counter() - started
    err.print(f"trained {name} in {took:.0f} s: {accuracy:.1%} right of {folders / 'test'}", markup=False)


def export(options: argparse.Namespace) -> dict[str, Path]:
    """The model's ONNX files by precision; exported only where they are not there already."""
    tag = models.tag(options.model, options.weights, options.seed)
    paths = {precision: FOLDER / f"{tag}-{precision}.onnx" for precision in TOLERANCE}
    weights = options.weights
    if weights not in ("random", "imagenet"):
        if not Path(weights).is_file():
            raise UsageFault(f"--weights {weights}: no such file; use random, imagenet or a state dict file.")
        weights = sha256(Path(weights))
    wanted = {"model": options.model, "seed": options.seed, "weights": weights}
    if weights == "random":
        wanted["graph"] = sha256(random_weights.GRAPHS / f"{options.model}.onnx")
    if all(wanted.items() <= models.read_description(path).items() for path in paths.values()):
        return paths
    with err.status(f"exporting {options.model} to ONNX"):
        if options.weights == "random":  # needs no PyTorch
            network, labels, model = None, list[str](), random_weights.random_model(options.model, options.seed)
        else:
            network, labels = create_model(options.model, options.weights, options.seed)
            model = models.exported(network, models.MODELS[options.model])
        models.save(model, paths["fp32"])
        models.convert_to_fp16(paths["fp32"], paths["fp16"])
        check_export(network, paths, options)
    for precision, path in paths.items():
        models.write_description(path, **wanted, precision=precision, opset=models.OPSET, labels=labels)
    return paths


def check_export(network: Any | None, paths: dict[str, Path], options: argparse.Namespace) -> None:
    """Hold both files to PyTorch's own outputs; without a PyTorch model, the FP16 file to the FP32 file's."""
    side = models.MODELS[options.model]
    images = noise_images(range(4), (3, side, side), options.seed)
    if network is None:
        standard, precisions, reference = "FP32", ["fp16"], models.run_onnx(paths["fp32"], images)
    else:
        standard, precisions, reference = "PyTorch", list(TOLERANCE), logits(network, images)
    for precision in precisions:
        outputs = models.run_onnx(paths[precision], images)
        models.check_near(paths[precision], outputs, reference, TOLERANCE[precision], standard)
