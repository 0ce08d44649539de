"""A network that takes a picture's bytes instead of normalised floats: a third of what goes over the link, or a quarter.

The network wants x = (byte / 255 − MEAN) / DEVIATION. Its first convolution is linear, so its weights can take the
multiplication in, and its bias the subtraction, and nothing is left to compute. But for the border: the convolution pads with
zeros, and a zero stands for the mean before the change, for black after it. A frame of black around every photograph moves
ResNet-18's logits by 6 to 8 % of the largest. Two ways out:

uint8    a fourth plane, 255 in every pixel, whose weights carry the mean. Padding is 0 there too, so that the padded border is
         the mean again, exactly. A byte more a pixel costs the link less than the kernels notice; a subtraction in front of the
         convolution would be exact as well, and is a kernel that reads and writes every picture.
int8     for INT8, where quantization then starts at the input: byte − 128, at scale 1. A zero is byte 128, which is near the
         mean (by 0.07 to 0.43 deviations), so the mean is left to the bias: what that errs is far below what INT8 does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UsageFault
from common.files import sha256
from common.images import DEVIATION, MEAN, channels_first, converted, noise_images, write
from export.models import check_near, end, load, needs, read_description, run_onnx, save, understood, write_description

LAYOUTS = ("nchw", "nhwc")
"""How a batch's bytes lie: a plane a colour, as convolutions are written down; or the colours of a pixel side by side, as
decoders give them."""
TOLERANCE = {"uint8": 1e-4, "int8": 5e-2}
"""Share of the largest output by which folding may move them: the order of FP32's operations; with int8 the border."""


def bytes_in(source: Path, folder: Path, kind: str, layout: str) -> Path:
    """The FP32 file in ``folder`` that takes images of ``kind`` (uint8, int8) where ``source`` takes normalised floats; made
    anew where the source has changed, and held to it on the same pictures."""
    path = folder / f"{source.stem.removesuffix('-fp32')}-{kind}{'-nhwc' * (layout == 'nhwc')}-fp32.onnx"
    made_of = {"source_sha256": sha256(source), "input": f"{kind} {layout}"}
    if made_of.items() <= read_description(path).items():
        return path
    model = load(source)
    _, (batch, *shape), _ = end(model.graph.input[0])
    with understood(source, "fold the normalisation of"):
        fold(model, source, kind, layout)
        save(model, path)
        pixels = converted(noise_images(range(batch if batch > 0 else 2), tuple(shape), 0), np.uint8)  # type: ignore[arg-type]
        taken = end(model.graph.input[0])
        sent = np.empty((len(pixels), *taken.shape[1:]), taken.type)
        write(pixels, sent)
        right, outputs = run_onnx(source, converted(pixels, np.float32)), run_onnx(path, sent)
    check_near(path, outputs, right, TOLERANCE[kind], f"{source.name} on the same pictures")
    write_description(path, **{**read_description(source), **made_of})
    return path


def fold(model: Any, source: Path, kind: str, layout: str) -> None:
    """Let ``model`` (an ``onnx.ModelProto`` from ``source``, images N×3×H×W FP32) take bytes: N×4×H×W uint8 or N×3×H×W int8, in
    ``layout``."""
    onnx, graph = needs("onnx", "folding a normalisation"), model.graph
    helper, as_array, as_tensor = onnx.helper, onnx.numpy_helper.to_array, onnx.numpy_helper.from_array
    images, weights = graph.input[0], {weight.name: weight for weight in graph.initializer}
    floats, given = end(images), [output.name for output in graph.output]
    readers: list[Any] = [node for node in graph.node if images.name in read(node)]
    alone = len(readers) == 1 and readers[0].op_type == "Conv" and images.name not in given and floats.shape[0] != 0
    first = readers[0] if alone else helper.make_node("Conv", [images.name, ""], [])
    weight, bias = (weights.get(name) for name in [*first.input[1:], ""][:2])
    computed = bias is None and any(first.input[2:])
    named = ", ".join(f"{node.op_type} {node.name}".rstrip() for node in readers) or "nothing"
    if weight is None or computed or floats.dtype != "FLOAT" or not floats.shape[1] == weight.dims[1] == 3:
        raise UsageFault(
            f"--input bytes: {source} takes {floats}, which is read by {named}, and the normalisation can be folded where "
            "FP32 images N×3×H×W go into one convolution of constant weights and nowhere else. Leave the option out, or let "
            "the file take bytes itself: it is built as it is."
        )
    own = as_array(weight).astype(np.float64)
    constant = np.zeros(weight.dims[0]) if bias is None else as_array(bias).astype(np.float64)
    taken = {name for node in graph.node for name in (*read(node), *node.output)} | {*weights}

    def free(name: str) -> str:
        return name if name not in taken else free(f"{name}_")

    scale, zero = 1 / (255 * DEVIATION.astype(np.float64)), {"uint8": 0, "int8": 128}[kind]
    shift = own * (zero * scale - MEAN / DEVIATION)[:, None, None]  # of what a sent 0 stands for
    folded = own * scale[:, None, None]
    if kind == "uint8":
        folded = np.concatenate([folded, shift.sum(axis=1, keepdims=True) / 255], axis=1)
        nodes = [helper.make_node("Cast", [images.name], [free("bytes")], "bytes", to=onnx.TensorProto.FLOAT)]
    else:
        constant = constant + shift.sum(axis=(1, 2, 3))
        one, nought = free("one"), free("nought")
        graph.initializer.extend([as_tensor(np.float32(1), one), as_tensor(np.int8(0), nought)])
        nodes = [helper.make_node("DequantizeLinear", [images.name, one, nought], [free("bytes")], "bytes")]
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", nodes[0].output, [free("planes")], "planes", perm=[0, 3, 1, 2]))
    first.input[:] = [nodes[-1].output[0], free("folded weight"), free("folded bias")]
    for name, values in zip(first.input[1:], (folded, constant)):
        graph.initializer.append(as_tensor(values.astype(np.float32), name))
    for node in reversed(nodes):
        graph.node.insert(0, node)
    needed = {name for node in graph.node for name in read(node)} | {output.name for output in graph.output}
    kept = [weight for weight in graph.initializer if weight.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    shape = [folded.shape[1], *floats.shape[2:]]
    shape = shape if layout == "nchw" else [*shape[1:], shape[0]]
    if channels_first(tuple(shape)) != (folded.shape[1], *floats.shape[2:]):
        raise UsageFault(f"--layout nhwc: N×{'×'.join(map(str, shape))} would be read as N×C×H×W; use nchw.")
    sent = helper.make_tensor_value_info(images.name, getattr(onnx.TensorProto, kind.upper()), [None, *shape])
    sent.type.tensor_type.shape.dim[0].CopyFrom(images.type.tensor_type.shape.dim[0])
    images.CopyFrom(sent)


def read(node: Any) -> set[str]:
    """The names that a node reads, in the graphs of its branches or its body too."""
    graphs = [graph for each in node.attribute for graph in (each.g, *each.graphs)]
    return {*node.input, *(name for graph in graphs for inner in graph.node for name in read(inner))}


def start_at_input(graph: Any) -> None:
    """In a quantized ``graph`` whose images are dequantized int8: nothing quantizes them again."""
    made_by = {output: node for node in graph.node for output in node.output}
    for quantize in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        before = made_by.get(quantize.input[0])
        if before is not None and before.op_type == "Transpose":
            before = made_by.get(before.input[0])
        if before is not None and before.op_type == "DequantizeLinear" and before.input[0] == graph.input[0].name:
            for dequantize in [node for node in graph.node if quantize.output[0] in node.input]:
                for node in graph.node:
                    node.input[:] = [quantize.input[0] if name == dequantize.output[0] else name for name in node.input]
                graph.node.remove(dequantize)
            graph.node.remove(quantize)
