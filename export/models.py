"""torchvision model → ONNX file at FP32 or FP16 (INT8: ``quantize``), checked against PyTorch before anyone builds from it.

With random weights, the FP32 file is made without PyTorch (``random_weights``), and a PyTorch model gets its weights from it.

torch, torchvision, onnx and onnxruntime are imported inside the functions: a stage never loads them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.console import err
from common.errors import EnvironmentFault, Fault, reason
from common.files import atomic_path, read_json, sha256, write_json
from common.plans import sidecar
from common.record import fits
from common.tensors import End, check_ends

MODELS = {"resnet18": 224, "resnet50": 224, "mobilenet_v2": 224, "efficientnet_v2_s": 384}
"""The models of the ladder and the side of their square input in pixels."""

SEED = 10088
INPUT, OUTPUT = "images", "logits"
OPSET = 17  # TensorRT 8.6 parses it; the newer exporter's opset 20 graph is refused by 8.6


def needs(package: str, purpose: str) -> Any:
    """Import ``package``, or say in one sentence what it is needed for."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        remedy = "pip install '.[export]', or run `python 0_build.py --export-only` with a Python that has it."
        raise EnvironmentFault(f"{purpose} needs {package}, which this Python does not have ({error}): {remedy}") from None


def tag(model: str, weights: str, seed: int) -> str:
    """What the files of a model with these weights are named after."""
    stem = Path(weights).stem
    name = model if weights == "random" else stem if stem.startswith(model) else f"{model}-{stem}"
    return name if seed == SEED else f"{name}-seed{seed}"


def exported(model: Any, size: int) -> Any:
    """A PyTorch model as ``onnx.ModelProto``: opset 17, ``images`` N×3×S×S FP32 → ``logits`` N×C FP32, any N."""
    torch, onnx = (needs(package, "exporting a model") for package in ("torch", "onnx"))
    written, names = io.BytesIO(), {"input_names": [INPUT], "output_names": [OUTPUT]}
    any_batch = {name: {0: "batch"} for name in (INPUT, OUTPUT)}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter announces its successor, whose graph TensorRT 8.6 refuses
        images = torch.zeros(2, 3, size, size)
        torch.onnx.export(model, (images,), written, opset_version=OPSET, dynamo=False, dynamic_axes=any_batch, **names)
    return onnx.load_from_string(written.getvalue())


def load(path: Path) -> Any:
    """The ``onnx.ModelProto`` of a file, with its external data, whose only input are the images: what has an initializer is a
    constant. Raises ``EnvironmentFault`` where it is none to build from."""
    onnx = needs("onnx", "reading a model")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # protobuf and the checker have no common base
        raise EnvironmentFault(f"{path} is no ONNX model: {reason(error)}") from None
    graph, ends = model.graph, {value.name for value in model.graph.output}
    made = [node for node in graph.node if (node.domain, node.op_type) == ("", "Constant") and node.output[0] not in ends]
    for node in [node for node in made if node.attribute[0].name == "value"]:  # as some exporters write weights
        node.attribute[0].t.name = node.output[0]
        graph.initializer.append(node.attribute[0].t)
        graph.node.remove(node)
    constants = {weight.name for weight in graph.initializer}
    for value in [value for value in graph.input if value.name in constants]:
        graph.input.remove(value)  # it only has a default there
    model.ir_version = max(model.ir_version, 4)  # the first in which an initializer need not be an input
    check_ends(path, list(map(end, graph.input)), list(map(end, graph.output)))
    return model


def end(value: Any) -> End:
    onnx, tensor = needs("onnx", "reading a model"), value.type.tensor_type
    shape = tuple(side.dim_value if side.HasField("dim_value") else -1 for side in tensor.shape.dim)
    return End(value.name, shape, onnx.TensorProto.DataType.Name(tensor.elem_type))


def save(model: Any, path: Path) -> None:
    """Write an ``onnx.ModelProto`` that ONNX's own checker finds nothing wrong with."""
    onnx = needs("onnx", "writing a model")
    with atomic_path(path) as temporary:
        onnx.save(model, str(temporary))
        onnx.checker.check_model(str(temporary), full_check=True)


def convert_to_fp16(source: Path, destination: Path) -> None:
    """Write ``source`` with FP16 weights and activations; its inputs and outputs stay FP32."""
    float16, onnx_model = (needs(f"onnxruntime.transformers.{name}", "FP16") for name in ("float16", "onnx_model"))
    with warnings.catch_warnings(), understood(source, "convert to FP16:"):
        warnings.simplefilter("ignore")  # one warning for each weight below FP16's smallest normal number
        # OnnxModel's method of this name does the same after symbolic shape inference, for which it wants sympy.
        converted = onnx_model.OnnxModel(float16.convert_float_to_float16(load(source), keep_io_types=True))
        converted.remove_cascaded_cast_nodes()  # FP32 → FP16 → FP32 between two operators that stay FP32
        converted.topological_sort()  # the converter appends its casts at the end, which ONNX forbids
        save(converted.model, destination)


@contextlib.contextmanager
def understood(source: Path, what: str) -> Iterator[None]:
    """Say what could not be done with which file where onnx and onnxruntime raise: their errors have no common base."""
    try:
        yield
    except (Fault, OSError, MemoryError):
        raise
    except Exception as error:
        raise EnvironmentFault(f"cannot {what} {source}: {reason(error)}") from None


def in_fp16(source: Path, folder: Path) -> Path:
    """The FP16 file in ``folder`` of an FP32 one; made anew only where that has changed."""
    path, made_of = folder / f"{source.stem.removesuffix('-fp32')}-fp16.onnx", {"source_sha256": sha256(source)}
    if not made_of.items() <= read_description(path).items():
        convert_to_fp16(source, path)
        write_description(path, **{**read_description(source), **made_of, "precision": "fp16"})
    return path


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    """Outputs of an ONNX classifier on the CPU, N×C FP32."""
    onnxruntime = needs("onnxruntime", "checking an export")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def largest_difference(outputs: np.ndarray, reference: np.ndarray) -> float:
    """Largest absolute difference as a share of the reference's largest absolute value, NaN if either is not finite; of classes
    the share of those that differ."""
    if reference.dtype.kind != "f":
        return float((outputs != reference).mean())
    outputs, reference = outputs.astype(np.float64), reference.astype(np.float64)
    if not (np.isfinite(outputs).all() and np.isfinite(reference).all()):
        return float("nan")
    return float(np.abs(outputs - reference).max() / (np.abs(reference).max() or 1))


def check_near(path: Path, outputs: np.ndarray, right: np.ndarray, most: float, of: str, more: str = "") -> None:
    """Say how far the outputs of a file are from what is right; one that is off by ``most`` or more is removed, and raises
    ``EnvironmentFault``."""
    if not (difference := largest_difference(outputs, right)) < most:
        path.unlink()
        raise EnvironmentFault(f"{path.name} is wrong: it differs from {of} by {difference:.2g} of the largest output.")
    err.print(f"{path}: within {difference:.1e} of {of} (share of the largest output){more}", markup=False)


def write_description(path: Path, /, **facts: Any) -> None:
    """``MODEL.onnx.json`` beside the file: what it was exported from, its class names and its hash."""
    write_json(sidecar(path), {**facts, "sha256": sha256(path)})


def read_description(path: Path) -> dict[str, Any]:
    """What ``write_description`` wrote for this very file, or ``{}`` (a file of the user's own, or an edited one)."""
    facts = read_json(sidecar(path))
    fit = fits("list[str]", facts.get("labels", [])) and fits("int", facts.get("quantized", 0))
    return facts if fit and path.exists() and facts.get("sha256") == sha256(path) else {}
