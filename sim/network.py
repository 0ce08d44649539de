"""An ONNX network as the layers a fusing compiler would make of it, with the work of each.

TensorRT fuses what follows a convolution (bias, activation, residual addition) into it. So does this: an operator that only
transforms its input joins the layer that made it. A layer that ends in Q writes INT8; one before a MaxPool and Q, too.
Operations and bytes are per image. One reformat layer at each end stands for TensorRT's change of layout: values are read as
they are sent, and four bytes of each are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

CONVERSIONS = {"Cast", "QuantizeLinear", "DequantizeLinear"}
FUSED = {
    *CONVERSIONS,
    *("Add", "BatchNormalization", "Clip", "HardSigmoid", "HardSwish", "Mul", "Relu", "Sigmoid"),
    *("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"),
}
ON_IMAGES = 16
"""Bytes a value that an operator on the images costs, whatever their type: at batch 128 an H200 with TensorRT 8.6.0 took 85 µs
for an addition in FP16, 73 for a transposition (reports/h200-tried/bytes.txt), where the memory would need 18."""
PRECISIONS = {1: "fp32", 10: "fp16", 16: "fp16", 3: "int8"}  # ONNX element types: float, float16, bfloat16, int8


@dataclass
class Layer:
    """A fused layer: floating-point operations and bytes in and out for one image, bytes of weights, its precision, the shape
    of its matrix product for one image, if it is one: output positions, output channels, multiplications for each output."""

    name: str
    kind: str
    operations: int
    nbytes: int
    weight_bytes: int
    precision: str
    product: tuple[int, int, int] | None = None
    fused: tuple[str, ...] = ()  # names of the nodes that have joined it


def layers(model: Any) -> list[Layer]:
    """The fused layers of an ``onnx.ModelProto`` whose first dimension is the batch, in order. Raises ``ValueError`` where a
    convolution's weights are not for its input, which neither ONNX's checker nor its shape inference minds."""
    from onnx import numpy_helper, shape_inference
    from onnx.helper import tensor_dtype_to_np_dtype

    constants = {weight.name for weight in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in constants]:
        model.graph.input.remove(value)  # it only has a default there
    model.ir_version = max(model.ir_version, 4)  # the first in which an initializer need not be an input
    for value in model.graph.input:  # per image: infer all shapes with a batch of one
        value.type.tensor_type.shape.dim[0].dim_value = 1
    for value in (*model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].Clear()
    graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    weights = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            weights[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]  # INT8 weights: what counts is their shape and their bytes
    shapes, types, known = {}, {}, set()
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        shapes[value.name] = [d.dim_value or 1 for d in tensor.shape.dim]
        types[value.name] = tensor.elem_type
        known |= {value.name} if tensor.HasField("shape") and all(d.dim_value for d in tensor.shape.dim) else set()

    quantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    made_at = {node.output[0]: index for index, node in enumerate(graph.node) if node.op_type != "Constant"}
    stored_as_int8 = set(quantized)
    for node in reversed(graph.node):
        if node.op_type == "QuantizeLinear" or (node.op_type in (*FUSED, "MaxPool") and node.output[0] in stored_as_int8):
            candidates = made_at.keys() & (node.input if node.op_type in ("Add", "Mul") else node.input[:1])
            stored_as_int8.update(sorted(candidates, key=made_at.__getitem__)[-1:])  # of two, the layer makes the later one

    def nbytes(name: str) -> int:
        dtype = tensor_dtype_to_np_dtype(types.get(name) or 1)
        return prod(shapes.get(name, [0])) * (1 if name in stored_as_int8 else dtype.itemsize)

    made_by, images = dict[str, Layer](), graph.input[0].name
    found = [Layer("reformat input", "Reformat", 0, nbytes(images) + 4 * prod(shapes[images]), 0, "fp32")]
    for node in graph.node:
        inputs, output = [name for name in node.input if name and name not in weights], node.output[0]
        earlier = [made_by[name] for name in inputs if name in made_by and made_by[name].kind != "Transpose"]
        if not inputs or (node.op_type in CONVERSIONS and not earlier):
            continue
        if node.op_type in FUSED and earlier:
            layer = max(earlier, key=found.index)
            layer.fused += (node.name or output,)
            layer.nbytes += sum(nbytes(name) for name in inputs if made_by.get(name) not in (layer, None))
            made_by[output] = layer
            continue
        if node.op_type == "Conv" and node.input[0] in known and node.input[1] in weights:
            channels, (made, each, *_) = shapes[node.input[0]][1], weights[node.input[1]].shape
            groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
            if each * groups != channels or made % groups:
                wants = f"its weights make {made} channels of {each} in {groups} group(s)"
                raise ValueError(f"{node.name or output}: its input has {channels} channels, and {wants}")
        operations = size = prod(shapes.get(output, [0]))
        weight, product = 0, None
        for own in [weights[name] for name in node.input if name in weights]:
            weight += own.nbytes
            if own.ndim > 1 and node.op_type in ("Conv", "Gemm", "MatMul"):
                if len(shapes.get(output, [])) < 2:
                    raise ValueError(f"{node.name or output}: nothing tells the shape of its output")
                columns = shapes[output][1]
                depth = prod(own.shape[1:]) if node.op_type == "Conv" else own.size // columns
                operations, product = 2 * size * depth, (size // columns, columns, depth)
        precision = "int8" if any(name in quantized for name in node.input) else PRECISIONS.get(types.get(output, 1), "fp32")
        on_images = node.op_type in (*FUSED, "Transpose") and not any(layer.product for layer in found)
        traffic = ON_IMAGES * size if on_images else sum(map(nbytes, inputs)) + nbytes(output)
        made_by[output] = Layer(node.name or output, node.op_type, operations, traffic, weight, precision, product)
        found.append(made_by[output])
    found.append(Layer("reformat output", "Reformat", 0, 2 * nbytes(graph.output[0].name), 0, "fp32"))
    return found
