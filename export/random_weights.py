"""A torchvision classifier with seeded random weights, made without PyTorch: the graph from ``graphs/``, weights from NumPy.

A graph is what ``models.exported`` gives, batch norm folded, less the values of its weights. With a Python that has
torch and torchvision, ``python -m export.random_weights resnet18 …`` (no name: all models) writes ``graphs/`` anew.

Random weights alone would not do: activations would grow by residual block until they overflow FP16. So the batch norms that
the export has folded away are put back for one batch of images, and what they measure is folded into the weights again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from common.images import noise_images
from export.models import MODELS, exported, needs

GRAPHS = Path(__file__).with_name("graphs")
IMAGES = 16  # that the statistics are taken over
SHIFT = {"Conv": 1.0, "Gemm": 5.0}
"""Mean of a normalised output; its deviation is 1. With 0, the activation functions cut every channel in half: layer by layer
that tells images further apart, and FP16 from FP32 too, until rounding is as large as what an image changes. The logits' mean
sets the scale that both are judged on, the largest logit: two images differ by 14 % or more, FP16 by up to 0.8 %."""


def learned(model: Any) -> list[tuple[Any, Any, Any]]:
    """(node, weight, bias) of each Conv and Gemm of an ``onnx.ModelProto``, in the order of the graph.

    Weights are FP32, output channels first (torch exports a Linear as a Gemm with transB=1); biases FP32, one a channel.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in SHIFT]
    return [(node, *(tensors[name] for name in node.input[1:])) for node in nodes]


def normalised(node: Any) -> bool:
    """Whether a learned node's output is normalised: all but the squeeze-and-excitation convolutions, which have no batch norm.

    Folding a batch norm makes new weights, which torch names like ``onnx::Conv_193``. Others keep their module's name.
    """
    return node.op_type == "Gemm" or node.input[1].startswith("onnx::")


def random_model(name: str, seed: int) -> Any:
    """An ``onnx.ModelProto``, images N×3×S×S FP32 → logits N×1000 FP32.

    The same seed gives the same bytes on one machine; on another, what may differ is rounding.
    """
    model = needs("onnx", "making a model").load(str(GRAPHS / f"{name}.onnx"))
    draw = np.random.default_rng(seed)
    for _, weight, bias in learned(model):
        deviation = np.sqrt(2 / np.prod(weight.dims[1:]))  # He et al., 2015
        weight.raw_data = (deviation * draw.standard_normal(weight.dims)).astype("<f4").tobytes()
        bias.raw_data = (0.1 * draw.standard_normal(bias.dims)).astype("<f4").tobytes()
    settle(model, noise_images(range(IMAGES), (3, MODELS[name], MODELS[name]), seed))
    return model


def settle(model: Any, images: np.ndarray) -> None:
    """Scale and shift weights so that over ``images`` every channel of a normalised output has mean ``SHIFT``, deviation 1."""
    helper, onnxruntime = needs("onnx.helper", "making a model"), needs("onnxruntime", "making a model")
    probe, statistics = type(model).FromString(model.SerializeToString()), []
    for node, _, bias in filter(lambda layer: normalised(layer[0]), learned(probe)):
        output = node.output[0]
        node.output[0], *constants = (f"{output}:{kind}" for kind in ("raw", "scale", "shift", "mean", "variance"))
        for name, value in zip(constants, (1, SHIFT[node.op_type], 0, 1)):
            probe.graph.initializer.append(helper.make_tensor(name, 1, bias.dims, [value] * bias.dims[0]))
        statistics += [f"{output}:batch mean", f"{output}:batch variance"]
        tensors = [node.output[0], *constants], [output, *statistics[-2:]]  # no momentum: it returns the batch's statistics
        probe.graph.node.append(helper.make_node("BatchNormalization", *tensors, training_mode=1, momentum=0.0))
    probe.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in statistics)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    measured = iter(session.run(statistics, {probe.graph.input[0].name: images}))
    for node, weight, bias in filter(lambda layer: normalised(layer[0]), learned(model)):
        mean, variance = next(measured), next(measured)
        if node.op_type == "Gemm":  # one scale for all classes: by class, those that vary least would show rounding most
            variance = np.full_like(variance, variance.mean())
        deviation = np.sqrt(variance + 1e-5)  # as batch norm has it
        values = np.frombuffer(weight.raw_data, "<f4").reshape(len(deviation), -1)
        weight.raw_data = (values / deviation[:, None]).astype("<f4").tobytes()
        values = np.frombuffer(bias.raw_data, "<f4")
        bias.raw_data = ((values - mean) / deviation + SHIFT[node.op_type]).astype("<f4").tobytes()


def load_into(network: Any, model: Any) -> None:
    """Give a torchvision module in evaluation mode the weights of ``random_model``'s ``onnx.ModelProto``."""
    torch, numpy_helper = needs("torch", "a PyTorch model"), needs("onnx.numpy_helper", "a PyTorch model")
    layers = iter(learned(model))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                weight, bias = (torch.tensor(numpy_helper.to_array(tensor)) for tensor in next(layers)[1:])
                module.weight.copy_(weight)
                if module.bias is not None:
                    module.bias.copy_(bias)
            elif isinstance(module, torch.nn.BatchNorm2d):  # left to add the bias of the convolution before it
                module.reset_running_stats()
                module.running_var.fill_(1 - module.eps)
                module.weight.fill_(1)
                module.bias.copy_(bias)


def export_graph(name: str) -> Any:
    """The ``onnx.ModelProto`` of a torchvision model, whose Conv and Gemm weights have a name, a type and dimensions, but no
    values."""
    torch, torchvision = (needs(package, "exporting a graph") for package in ("torch", "torchvision"))
    network = getattr(torchvision.models, name)(weights=None).eval()
    for vector in (*network.parameters(), *network.buffers()):
        if vector.ndim == 1:  # biases and statistics: of equal ones the exporter would keep one
            torch.nn.init.uniform_(vector)
    model = exported(network, MODELS[name])
    for _, *tensors in learned(model):
        for tensor in tensors:
            tensor.ClearField("raw_data")  # where the exporter puts all values
    return model


if __name__ == "__main__":
    for argument in sys.argv[1:] or MODELS:
        (GRAPHS / f"{argument}.onnx").write_bytes(export_graph(argument).SerializeToString(deterministic=True))
