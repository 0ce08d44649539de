"""What an engine's layers are and in which precision they work, as the engine inspector or the builder's log tells it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.console import err
from common.errors import EnvironmentFault

TACTIC_NAMES = {"f32f32": "FP32", "f16f16": "FP16", "h1688": "FP16", "h884": "FP16", "i8i8": "INT8", "bf16bf16": "BF16"}
"""What kernels call their inputs: with dynamic shapes TensorRT 8.6 tells a layer's kernel but not its types."""
PRECISION_NAMES = {"fp32": r"FP32|Float\b", "fp16": r"FP16|Half", "bf16": r"BF16|BFloat16", "int8": r"INT8|Int8", "fp8": r"FP8"}
NO_WORK = ("Reformat", "NoOp", "Shape", "shape_call", "signal", "wait")


def layer_precision(layer: Any) -> str | None:
    """The precision of a layer in the inspector's JSON: that of its weights, since an INT8 convolution may well write FP32; of
    its first output where it has none. None where it does not say or only reformats."""
    if not isinstance(layer, dict) or layer.get("LayerType") in NO_WORK:
        return None
    tactic = str(layer.get("TacticName", ""))
    calls = {"Type": " ".join(name for key, name in TACTIC_NAMES.items() if key in tactic)}
    told = [*weights(layer), *layer.get("Outputs", [])[:1], calls]
    texts = [" ".join(str(value) for key, value in each.items() if key != "Name") for each in told]
    found = (name for text in texts for name, pattern in PRECISION_NAMES.items() if re.search(rf"\b(?:{pattern})", text))
    return next(found, None)


def weights(layer: Any) -> list[Any]:
    """A layer's weights as the inspector's JSON tells them, no scales: [] where it has none, or is a mere name."""
    if not isinstance(layer, dict):
        return []
    kernels = [each for each in layer.get("Constants", []) if sum(size > 1 for size in each["Dimensions"]) > 1]
    told = layer.get("Weights") or {}
    return [told] * bool(told.get("Count")) + kernels


def precisions(layers: Sequence[Any]) -> Counter[str]:
    """How many layers work in fp32, fp16, int8, …: of those with weights, where there are any. The others take what these give
    and want, and a small network has more of them."""
    return Counter(filter(None, map(layer_precision, list(filter(weights, layers)) or layers)))


def names(layers: Sequence[Any]) -> list[str]:
    """A fused layer is named after all the nodes that it was made of: newer TensorRTs name those in its ``Metadata``."""
    found = (layer if isinstance(layer, dict) else {"Name": layer} for layer in layers)
    nodes = ((layer, re.findall(r"\[ONNX Layer: ([^]]*)\]", layer.get("Metadata", ""))) for layer in found)
    return [" + ".join(parts) or str(layer["Name"]) for layer, parts in nodes]


def logged(text: str) -> list[dict[str, Any]]:
    """The layers of a builder's log, in the form of the inspector's JSON: for where no inspector tells of the engine."""
    new = r"^Name: (.*?), LayerType: (\w+), Inputs: .*?, Constants: (.*), Outputs: (.*), TacticName: .*?Metadata: ?(.*)$"
    old = r"^Layer\((\w+)\): (.*?), .* -> .*?[(\[](\w+)[(\[]"  # TensorRT 8.6
    found = [
        {"Name": name, "LayerType": kind, "Constants": tensors(weights), "Outputs": tensors(outputs), "Metadata": metadata}
        for name, kind, weights, outputs, metadata in re.findall(new, text, re.MULTILINE)
    ]
    kinds = re.findall(old, text, re.MULTILINE)
    return found + [{"Name": name, "LayerType": kind, "Outputs": [{"Datatype": output}]} for kind, name, output in kinds]


def tensors(text: str) -> list[dict[str, Any]]:
    found = re.findall(r"Dimensions: \[([^]]*)\].*?Datatype: (\w+)", text)
    return [{"Dimensions": [int(size) for size in sizes.split(",") if size], "Datatype": kind} for sizes, kind in found]


def precision_of(found: Mapping[str, int]) -> str | None:
    """What a plan with so many layers in each precision is called: INT8 where any works in it, for the file says which; else
    after most of them."""
    return "int8" if found.get("int8") else max(found, key=lambda name: found[name], default=None)


def require_precision(found: Mapping[str, int], precision: str, plan: Path, quantized: int = 0) -> None:
    """Raise where a plan is called by another precision, or has fewer than half as many layers in INT8 as its file has
    ``quantized``: a build may have quietly chosen so. An inspector that does not tell proves nothing, and that is said."""
    if not found:
        err.print(f"{plan}: the engine inspector does not tell its layers' precision: {precision} is not confirmed")
    elif precision != precision_of(found) or (precision == "int8" and 2 * found["int8"] < quantized):
        counts = ", ".join(f"{count} {name}" for name, count in Counter(found).most_common())
        counts += f" ({quantized} are quantized in its file)" * (precision == "int8" and quantized > 0)
        mend = f"Build one: python 0_build.py{f' --{precision}' * (precision != 'fp32')}"
        raise EnvironmentFault(f"{plan} is no {precision} engine: its layers work in {counts}. {mend}")
