"""INT8 by post-training quantization: Q/DQ nodes in the ONNX file, whose scales come from real images.

onnxruntime does the work, on the CPU; TensorRT 8.6, 10 and 11 read the result. Weights are quantized per output channel,
activations per tensor, all symmetrically (zero points are 0, as TensorRT wants them), biases not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from common import models
from common.errors import EnvironmentFault, UsageFault
from common.files import atomic_path
from common.images import Images
from common.models import needs, sha256

METHODS = ("entropy", "minmax")
QUANTIZED = ["Conv", "Gemm"]
"""Operators that work in INT8. Their inputs are quantized and not their outputs: Q/DQ between a convolution and the addition
or activation after it would keep TensorRT from making one kernel of them."""
WRONG = 0.5
"""Share of the largest logit from which on the outputs are no rounding of the right ones."""
CHUNK = 8  # images whose activations are in memory at a time


def calibrated(source: Path, directory: Path | None, count: int, method: str, seed: int, console: Console) -> Path:
    """The INT8 file beside an FP32 one, calibrated with ``count`` images of ``directory``; made anew only where the model,
    the images or the method have changed. Without a directory it must have been made before."""
    path = source.with_name(f"{source.stem.removesuffix('-fp32')}-int8.onnx")
    known, source_hash = models.read_description(path) if path.exists() else {}, sha256(source)
    if directory is None:
        if known.get("source_sha256") == source_hash:
            return path
        raise UsageFault("--int8 needs --calibration-images DIR, images like those that the model will see: the ranges of "
                         "its activations are measured on them. Random noise has other ranges, and a plan calibrated with "
                         "it is wrong in a way that no speed test shows; so there is no default.")
    side = needs("onnx", "calibration").load(str(source)).graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    images = Images(directory, side, seed, limit=count)
    pixels = np.empty((len(images), 3, side, side), np.float32)
    images.fill(pixels, 0)
    print_of_it = fingerprint(source, pixels, method)
    if known.get("calibration_sha256") == print_of_it:
        return path
    console.print(f"quantizing {source.name} with {len(images)} images of {directory} ({method})", markup=False)
    quantize(source, path, pixels, method, console)
    sample = pixels[:16]
    reference, outputs = models.run_onnx(source, sample), models.run_onnx(path, sample)
    difference = models.largest_difference(outputs, reference)
    if not difference < WRONG:
        path.unlink()
        raise EnvironmentFault(f"the INT8 file is wrong: it differs from FP32 by {difference:.2g} of the largest logit.")
    agreement = float((reference.argmax(axis=1) == outputs.argmax(axis=1)).mean())
    console.print(f"{path}: within {difference:.1e} of FP32 (share of the largest logit), the same top-1 on "
                  f"{agreement:.0%} of {len(sample)} calibration images", markup=False)
    described = {key: value for key, value in models.read_description(source).items() if key != "sha256"}
    models.write_description(path, **{**described, "precision": "int8", "source_sha256": source_hash,
                                      "calibration_sha256": print_of_it, "calibration": f"{method}, {len(images)} images"})
    return path


def fingerprint(source: Path, images: np.ndarray, method: str) -> str:
    """What a calibration depends on: the model, the images (N×3×S×S FP32) and the method."""
    digest = hashlib.sha256(f"{sha256(source)} {method} inputs of {QUANTIZED}".encode())
    digest.update(np.ascontiguousarray(images))
    return digest.hexdigest()


def shortcuts(graph: Any) -> list[str]:
    """The second input of each residual addition of which no input is quantized as a convolution's.

    TensorRT puts such an addition into the convolution that makes the first input, if the second one comes in INT8.
    """
    operators = [node for node in graph.node if node.op_type in QUANTIZED]
    written, read = {name for node in operators for name in node.output}, {node.input[0] for node in operators}
    return [node.input[1] for node in graph.node
            if node.op_type == "Add" and written.issuperset(node.input) and read.isdisjoint(node.input)]


class Batches:
    """onnxruntime's calibration data reader over images, N×3×S×S FP32."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = iter([{name: images}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantize(source: Path, destination: Path, images: np.ndarray, method: str, console: Console) -> None:
    """Write ``source`` (FP32) with Q/DQ nodes; ``images`` (N×3×S×S FP32) give the ranges of its activations.

    ``entropy`` clips each range to lose the least information, ``minmax`` keeps all that was seen.
    """
    onnx = needs("onnx", "quantization")
    quantization = needs("onnxruntime.quantization", "quantization")
    quantizer_module = needs("onnxruntime.quantization.qdq_quantizer", "quantization")
    model = onnx.load(str(source))
    name = model.graph.input[0].name
    calibration = {"entropy": quantization.CalibrationMethod.Entropy, "minmax": quantization.CalibrationMethod.MinMax}[method]
    with tempfile.TemporaryDirectory() as folder:
        calibrator = quantization.create_calibrator(
            source, QUANTIZED, augmented_model_path=str(Path(folder) / "augmented.onnx"), calibrate_method=calibration,
            extra_options={"symmetric": True})
        chunks = range(0, len(images), CHUNK)
        with contextlib.redirect_stdout(io.StringIO()):  # the calibrator talks
            for first in track(chunks, "calibrating", console=console, transient=True, disable=not console.is_terminal):
                calibrator.collect_data(Batches(name, images[first : first + CHUNK]))  # histograms grow chunk by chunk
            ranges = calibrator.compute_data()
    quantizer: Any = quantizer_module.QDQQuantizer(
        model, per_channel=True, reduce_range=False, weight_qType=quantization.QuantType.QInt8,
        activation_qType=quantization.QuantType.QInt8, tensors_range=ranges, nodes_to_quantize=[], nodes_to_exclude=[],
        op_types_to_quantize=QUANTIZED,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                       "OpTypesToExcludeOutputQuantization": QUANTIZED})
    for name in shortcuts(model.graph):
        quantizer.quantize_activation_tensor(name)
    quantizer.quantize_model()
    with atomic_path(destination) as temporary:
        quantizer.model.save_model_to_file(str(temporary))
        onnx.checker.check_model(str(temporary), full_check=True)
