"""INT8 by post-training quantization: Q/DQ nodes in the ONNX file, whose scales come from real images.

onnxruntime does the work, on the CPU; TensorRT 8.6, 10 and 11 read the result. Weights are quantized per output channel,
activations per tensor, all symmetrically (zero points are 0, as TensorRT wants them), biases not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from common.console import err
from common.errors import UsageFault
from common.feed import shown
from common.files import sha256
from common.pictures import Images
from export.bytes_in import start_at_input
from export.models import check_near, end, load, needs, read_description, run_onnx, save, understood, write_description

METHODS = {"entropy": "Entropy", "minmax": "MinMax"}
"""What ``--calibration`` calls onnxruntime's methods: ``entropy`` clips each range to lose the least information, ``minmax``
keeps all that was seen."""
QUANTIZED = ["Conv", "Gemm"]
"""Operators that work in INT8. Their inputs are quantized and not their outputs: Q/DQ between a convolution and the addition
or activation after it would keep TensorRT from making one kernel of them."""
WRONG = 0.5
"""Share of the largest logit from which on the outputs are no rounding of the right ones."""
PER_CHANNEL = 13  # the opset whose QuantizeLinear has an axis
CHUNK = 8  # images whose activations are in memory at a time


def calibrated(source: Path, folder: Path, directory: Path | None, count: int, method: str, seed: int) -> Path:
    """The INT8 file in ``folder`` of an FP32 one, calibrated with ``count`` images of ``directory``; made anew only where the
    model, the images or the method have changed. Without a directory it must have been made before, of this model. A model that
    is quantized already stays as it is."""
    path = folder / f"{source.stem.removesuffix('-fp32')}-int8.onnx"
    known, source_hash = read_description(path), sha256(source)
    if directory is None and known.get("source_sha256") == source_hash:
        return path
    with understood(source, "quantize"):
        model = prepared(source)
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return source
    if directory is None:
        raise UsageFault(
            "--int8 needs --calibration-images DIR, images like those that the model will see: the ranges of its activations "
            "are measured on them. Random noise has other ranges, and a plan calibrated with it is wrong in a way that no "
            "speed test shows; so there is no default."
        )
    fixed, *shape = (given := end(model.graph.input[0])).shape
    if fixed > 0:
        raise UsageFault(f"{source} takes batches of {fixed} only, and calibration needs any: export it with a dynamic batch.")
    images = Images(directory, tuple(shape), seed, limit=count, option="--calibration-images")
    pixels = np.empty((len(images), *shape), given.type)
    pixels = pixels[: len(images.fill(pixels))]
    made_of = {"source_sha256": source_hash, "calibration_sha256": fingerprint(source, pixels, method)}
    if made_of.items() <= known.items():
        return path
    err.print(f"quantizing {source.name} with {len(pixels)} images of {directory} ({method})", markup=False)
    with understood(source, "quantize"):
        quantized = quantize(model, path, pixels, method)
        with err.status(f"holding {path.name} to FP32"):
            reference, outputs = (run_onnx(file, pixels[:16]) for file in (source, path))
    tops = [each.argmax(axis=1) if each.ndim > 1 and each.dtype.kind == "f" else each for each in (reference, outputs)]
    same = np.equal(*tops).mean()
    check_near(path, outputs, reference, WRONG, "FP32", f", the same top-1 on {same:.0%} of {len(outputs)} calibration images")
    facts = {"precision": "int8", **made_of, "calibration": f"{method}, {len(pixels)} images", "quantized": quantized}
    write_description(path, **{**read_description(source), **facts})
    return path


def prepared(source: Path) -> Any:
    """Its model as onnxruntime's quantizer wants it: of operators that know a scale a channel."""
    model = load(source)
    versions = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    if min(versions, default=PER_CHANNEL) < PER_CHANNEL:
        model = needs("onnx.version_converter", "quantization").convert_version(model, PER_CHANNEL)
    return model


def fingerprint(source: Path, images: np.ndarray, method: str) -> str:
    """What a calibration depends on: the model, the images and the method."""
    digest = hashlib.sha256(f"{sha256(source)} {method} inputs of {QUANTIZED}".encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def shortcuts(operators: Sequence[Any], graph: Any) -> list[str]:
    """The second input of each addition whose inputs ``operators`` make, both, and none of them reads: TensorRT puts such an
    addition into the convolution that makes the first one, if the second one comes in INT8."""
    written, read = {name for node in operators for name in node.output}, {node.input[0] for node in operators}
    additions = [node.input for node in graph.node if node.op_type == "Add"]
    return [second for first, second in additions if {first, second} <= written - read]


def quantize(model: Any, destination: Path, images: np.ndarray, method: str) -> int:
    """Write ``model`` (FP32) with Q/DQ nodes; ``images``, as it takes them, give the ranges of its activations. Returns how
    many operators are quantized."""
    quantization, qdq = (needs(f"onnxruntime.quantization{name}", "quantization") for name in ("", ".qdq_quantizer"))
    operators = [node for node in model.graph.node if node.op_type in QUANTIZED]
    if not operators:
        raise UsageFault(f"--int8: the model has nothing to quantize: none of {QUANTIZED}")
    int8 = quantization.QuantType.QInt8
    name, calibration = model.graph.input[0].name, getattr(quantization.CalibrationMethod, METHODS[method])
    with tempfile.TemporaryDirectory() as folder:
        plain, augmented, options = Path(folder) / "plain.onnx", str(Path(folder) / "augmented.onnx"), {"symmetric": True}
        save(model, plain)
        calibrator = quantization.create_calibrator(plain, QUANTIZED, augmented, calibration, extra_options=options)
        chunks = np.split(images, range(CHUNK, len(images), CHUNK))
        for chunk in shown(chunks, "calibrating", len(chunks)):
            with contextlib.redirect_stdout(io.StringIO()):  # the calibrator talks
                # A data reader's ``get_next`` is None at the end; histograms grow from one reader to the next.
                calibrator.collect_data(SimpleNamespace(get_next=partial(next, iter([{name: chunk}]), None)))
        with contextlib.redirect_stdout(io.StringIO()):
            ranges = calibrator.compute_data()
    how = {"per_channel": True, "reduce_range": False, "weight_qType": int8, "activation_qType": int8}
    which = {"nodes_to_quantize": [], "nodes_to_exclude": [], "op_types_to_quantize": QUANTIZED}
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True}
    extra = {**symmetric, "QuantizeBias": False, "OpTypesToExcludeOutputQuantization": QUANTIZED}
    quantizer = qdq.QDQQuantizer(model, tensors_range=ranges, extra_options=extra, **how, **which)
    for shortcut in shortcuts(operators, model.graph):
        quantizer.quantize_activation_tensor(shortcut)
    with err.status(f"writing {destination.name}"):
        quantizer.quantize_model()
    start_at_input(quantizer.model.model.graph)
    quantizer.model.clean_initializers()
    quantizer.model.topological_sort()
    save(quantizer.model.model, destination)
    return len(operators)
