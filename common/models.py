"""torchvision model → ONNX file at FP32 or FP16 (INT8: ``quantize``), checked against PyTorch before anyone builds from it.

torch, torchvision, onnx and onnxruntime are imported inside the functions: a stage never loads them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import EnvironmentFault, UsageFault
from common.files import atomic_path, write_json

MODELS = {"resnet18": 224, "resnet50": 224, "mobilenet_v2": 224, "efficientnet_v2_s": 384}
"""The models of the ladder and the side of their square input in pixels."""

SEED = 10088
INPUT, OUTPUT = "images", "logits"
OPSET = 17  # TensorRT 8.6 parses it; the newer exporter's opset 20 graph is refused by 8.6


def needs(package: str, purpose: str) -> Any:
    """Import ``package``, or say in one sentence what it is needed for."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise EnvironmentFault(
            f"{purpose} needs {package}, which this Python does not have ({error}). Run "
            f"`python 0_build.py --export-only` with a Python that has torch and torchvision, or scripts/setup.sh."
        ) from None


def tag(model: str, weights: str, seed: int) -> str:
    """What the files of a model with these weights are named after."""
    stem = Path(weights).stem
    name = model if weights == "random" else stem if stem.startswith(model) else f"{model}-{stem}"
    return name if seed == SEED else f"{name}-seed{seed}"


def create_model(name: str, weights: str, seed: int) -> tuple[Any, list[str]]:
    """A torchvision classifier in evaluation mode and its class names ([] when it has none).

    ``weights`` is ``random`` (seeded), ``imagenet`` (torchvision's own; downloaded once by torch) or a file with a
    state dict, which may have class names beside it (``{"state_dict": …, "labels": […]}``).

    Random weights come with batch-norm statistics estimated from noise, so that activations keep the scale they have in a
    trained network: with the untouched statistics they grow by residual block and overflow FP16.
    """
    torch = needs("torch", "exporting a model")
    torchvision = needs("torchvision", "exporting a model")
    builder = getattr(torchvision.models, name)
    published = torchvision.models.get_model_weights(builder).DEFAULT
    torch.manual_seed(seed)
    if weights == "imagenet":
        try:
            return builder(weights=published).eval(), list(published.meta["categories"])
        except Exception as error:  # a download can fail in as many ways as there are networks
            raise EnvironmentFault(
                f"torchvision could not fetch the ImageNet weights ({type(error).__name__}: {error}). Where there is a "
                f"network, download {published.url} and pass the file: --weights FILE; or use --weights random."
            ) from None
    if weights == "random":
        model = builder(weights=None)
        settle_batch_norm(model, MODELS[name], seed)
        return model.eval(), []
    try:
        saved = torch.load(weights, map_location="cpu", weights_only=True)
        state, labels = (saved["state_dict"], list(saved["labels"])) if "state_dict" in saved else (saved, [])
        model = builder(weights=None, num_classes=len(list(state.values())[-1]))  # the last entry is the classifier's bias
        model.load_state_dict(state)
    except FileNotFoundError:
        raise UsageFault(f"--weights {weights}: no such file; use random, imagenet or a state dict file.") from None
    except Exception as error:
        raise UsageFault(f"--weights {weights} is not a state dict of {name}: {str(error).splitlines()[0]}") from None
    classes, known = len(list(state.values())[-1]), list(published.meta["categories"])
    return model.eval(), labels or (known if classes == len(known) else [])


def settle_batch_norm(model: Any, size: int, seed: int) -> None:
    """Replace every batch norm's running statistics by those of four batches of seeded images."""
    import torch

    from common.images import noise_images

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain average over the batches seen
    model.train()
    with torch.no_grad():
        for start in range(4):
            model(torch.from_numpy(noise_images(range(8 * start, 8 * start + 8), size, seed)))


def export_onnx(model: Any, size: int, path: Path) -> None:
    """Export to ONNX opset 17 with a dynamic batch: ``images`` N×3×S×S FP32 → ``logits`` N×C FP32."""
    import torch

    onnx = needs("onnx", "exporting a model")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter announces its successor, whose graph TensorRT 8.6 refuses
        with atomic_path(path) as temporary:
            torch.onnx.export(
                model, (torch.zeros(2, 3, size, size),), str(temporary), opset_version=OPSET, dynamo=False,
                input_names=[INPUT], output_names=[OUTPUT], dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            )
            onnx.checker.check_model(str(temporary), full_check=True)


def convert_to_fp16(source: Path, destination: Path) -> None:
    """Write ``source`` with FP16 weights and activations; its inputs and outputs stay FP32."""
    onnx = needs("onnx", "converting to FP16")
    onnx_model = needs("onnxruntime.transformers.onnx_model", "converting to FP16")
    converted = onnx_model.OnnxModel(onnx.load(str(source)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one warning for each weight below FP16's smallest normal number
        converted.convert_float_to_float16(keep_io_types=True)
    converted.topological_sort()  # the converter appends its casts at the end, which ONNX forbids
    with atomic_path(destination) as temporary:
        onnx.save(converted.model, str(temporary))
        onnx.checker.check_model(str(temporary), full_check=True)


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    """Outputs of an ONNX classifier on the CPU, N×C FP32."""
    onnxruntime = needs("onnxruntime", "checking an export")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def largest_difference(outputs: np.ndarray, reference: np.ndarray) -> float:
    """Largest absolute difference as a share of the reference's largest absolute value; NaN if either is not finite."""
    if not (np.isfinite(outputs).all() and np.isfinite(reference).all()):
        return float("nan")
    return float(np.abs(outputs - reference).max() / np.abs(reference).max())


def sha256(path: Path) -> str:
    """The file's hash; read once in a process, and again when the file has changed."""
    state = path.stat()
    return _sha256(path, state.st_ino, state.st_size, state.st_mtime_ns)


@functools.cache
def _sha256(path: Path, *state: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def write_description(path: Path, **facts: Any) -> None:
    """``MODEL.onnx.json`` beside the file: what it was exported from, its class names and its hash."""
    write_json(path.with_name(path.name + ".json"), {**facts, "sha256": sha256(path)})


def read_description(path: Path) -> dict[str, Any]:
    """What ``write_description`` wrote for this very file, or ``{}`` (a file of the user's own, or an edited one)."""
    try:
        facts = json.loads(path.with_name(path.name + ".json").read_text())
    except (OSError, ValueError):
        return {}
    return facts if facts.get("sha256") == sha256(path) else {}
