"""Random weights without PyTorch: the same every time, fit for FP16, different for each image; PyTorch computes the same."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import onnx
import pytest

from common.images import noise_images
from export import models, random_weights, source
from export.networks import create_model

SIDE = models.MODELS["resnet18"]


@pytest.fixture
def no_torch(monkeypatch):
    """Make any import of torch or torchvision fail."""
    for name in ("torch", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> dict[str, np.ndarray]:
    """Logits of 16 images by precision, 16×1000 FP32. The weights have seen none of the images."""
    folder = tmp_path_factory.mktemp("random")
    fp32, fp16 = folder / "fp32.onnx", folder / "fp16.onnx"
    models.save(random_weights.random_model("resnet18", models.SEED), fp32)
    models.convert_to_fp16(fp32, fp16)
    images = noise_images(range(100, 116), (3, SIDE, SIDE), models.SEED)
    return {"fp32": models.run_onnx(fp32, images), "fp16": models.run_onnx(fp16, images)}


def test_a_seed_is_a_model(no_torch):
    one, same, other = (random_weights.random_model("resnet18", seed) for seed in (1, 1, 2))
    assert one.SerializeToString() == same.SerializeToString()
    for (_, *tensors), (_, *others) in zip(random_weights.learned(one), random_weights.learned(other)):
        assert all(mine.raw_data != theirs.raw_data for mine, theirs in zip(tensors, others))


def test_export_writes_both_files_without_torch(no_torch, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(source, "FOLDER", tmp_path)
    options = argparse.Namespace(model="resnet18", weights="random", seed=3)
    paths = source.export(options)
    assert [models.read_description(path)["precision"] for path in paths.values()] == list(paths) == ["fp32", "fp16"]
    written = {path: path.stat().st_mtime_ns for path in paths.values()}
    assert source.export(options) == paths
    assert written == {path: path.stat().st_mtime_ns for path in paths.values()}  # they were there


def test_a_wrong_fp16_file_is_not_kept(no_torch, tmp_path, monkeypatch):
    def convert(fp32, fp16):
        models.save(random_weights.random_model("resnet18", 4), fp16)

    monkeypatch.setattr(source, "FOLDER", tmp_path)
    monkeypatch.setattr(models, "convert_to_fp16", convert)
    with pytest.raises(models.EnvironmentFault, match="differs from FP32"):
        source.export(argparse.Namespace(model="resnet18", weights="random", seed=3))
    assert [path.name for path in tmp_path.iterdir()] == ["resnet18-seed3-fp32.onnx"]


def test_logits_are_of_order_1_to_10_and_fp16_s_are_fp32_s(outputs):
    assert 1 < np.abs(outputs["fp32"]).max() < 20
    assert models.largest_difference(outputs["fp16"], outputs["fp32"]) < source.TOLERANCE["fp16"]


def test_activations_stay_far_from_where_fp16_ends():
    model = random_weights.random_model("resnet18", models.SEED)
    names = [output for node in model.graph.node for output in node.output if output != models.OUTPUT]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for activation in session.run(names, {models.INPUT: noise_images(range(100, 104), (3, SIDE, SIDE), models.SEED)}):
        assert np.abs(activation).max() < 1e3


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_batch_in_another_s_place_is_off_by_a_tenth(outputs, precision, batch):
    batches = outputs[precision].reshape(-1, batch, 1000)
    scale = np.abs(batches).max()
    for index, one in enumerate(batches):
        for other in batches[:index]:
            assert np.abs(one - other).max() > 0.1 * scale
    assert len(set(outputs[precision].argmax(1))) > 4


def test_the_graphs_have_no_weights_and_are_small():
    paths = [random_weights.GRAPHS / f"{name}.onnx" for name in models.MODELS]
    assert sum(path.stat().st_size for path in paths) < 400_000
    for path in paths:
        assert not any(tensor.raw_data for _, *tensors in random_weights.learned(onnx.load(str(path))) for tensor in tensors)


def described(model: onnx.ModelProto) -> list[tuple]:
    """What must not change in a graph, whatever torch calls its tensors: operators, attributes, connections, weights."""
    graph = model.graph
    tensors = {tensor.name: ("weight", *tensor.dims, tensor.data_type) for tensor in graph.initializer}
    tensors.update({value.name: ("input", value.SerializeToString()) for value in graph.input})
    nodes: list[tuple] = []
    for index, node in enumerate(graph.node):
        attributes = sorted(attribute.SerializeToString() for attribute in node.attribute)
        nodes.append((node.op_type, attributes, [tensors[name] for name in node.input]))
        tensors.update({name: ("output", index, position) for position, name in enumerate(node.output)})
    settled = [random_weights.normalised(node) for node, *_ in random_weights.learned(model)]
    return [*nodes, settled, [(value.SerializeToString(), tensors[value.name]) for value in graph.output]]


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_a_graph_is_what_torch_exports(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    committed = onnx.load(str(random_weights.GRAPHS / f"{name}.onnx"))
    assert described(random_weights.export_graph(name)) == described(committed)
    normalised = sum(random_weights.normalised(node) for node, *_ in random_weights.learned(committed))
    modules = list(getattr(torchvision.models, name)(weights=None).modules())
    assert normalised == sum(isinstance(module, (torch.nn.BatchNorm2d, torch.nn.Linear)) for module in modules)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_pytorch_computes_the_same(name, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    models.save(random_weights.random_model(name, 5), tmp_path / "random.onnx")
    images = noise_images(range(2), (3, models.MODELS[name], models.MODELS[name]), 5)
    network, labels = create_model(name, "random", 5)
    with torch.no_grad():
        reference = network(torch.from_numpy(images)).numpy()
    assert models.largest_difference(models.run_onnx(tmp_path / "random.onnx", images), reference) < 1e-4
    assert labels == []
