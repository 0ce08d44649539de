"""INT8 by calibration on real images, training on real handwriting, and the likeliest classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import postprocess
from common.errors import UsageFault
from common.pictures import Images
from export import models, quantize, train
from export.networks import create_model
from tests.conftest import CHEAP, SIMULATED


@pytest.fixture(scope="module")
def photographs() -> Path:
    datasets = pytest.importorskip("sklearn.datasets")
    return Path(datasets.__file__).parent / "images"


@pytest.fixture(scope="module")
def quantized(checkout, photographs, tmp_path_factory) -> Path:
    """An INT8 file, its FP32 source beside it."""
    folder = tmp_path_factory.mktemp("quantized")
    source = folder / "resnet18-fp32.onnx"
    shutil.copy(checkout.models / source.name, source)
    return quantize.calibrated(source, photographs, 128, "entropy", 1)


def test_int8_without_images_is_refused_with_the_reason(checkout, tmp_path):
    source = tmp_path / "resnet18-fp32.onnx"
    shutil.copy(checkout.models / source.name, source)
    with pytest.raises(UsageFault, match="Random noise has other ranges"):
        quantize.calibrated(source, None, 128, "entropy", 1)
    done = checkout.run("0_build.py", *SIMULATED, "--int8", "--onnx-file", source, "--output", tmp_path / "x.plan")
    assert done.returncode == 2 and "--calibration-images" in done.stderr and "Traceback" not in done.stderr


def test_what_is_quantized_and_how(quantized):
    """Every convolution reads INT8 activations and per-channel INT8 weights; zero points are 0; no bias is quantized."""
    onnx = pytest.importorskip("onnx")
    from onnx import numpy_helper

    graph = onnx.load(str(quantized)).graph
    weights = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(convolutions) == 21
    for node in convolutions:
        activation, weight = (made_by[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert weights[weight.input[0]].dtype == np.int8
        assert weights[weight.input[1]].size == weights[weight.input[0]].shape[0], "a scale an output channel"
        assert weights[node.input[2]].dtype == np.float32, "the bias stays as it is"
    for node in graph.node:
        if node.op_type in ("Relu", "MaxPool"):
            assert made_by[node.input[0]].op_type != "DequantizeLinear", "nothing between a convolution and its activation"
        if node.op_type == "Add":  # one addend joins the convolution that makes it, the other comes in INT8
            assert sorted(made_by[name].op_type for name in node.input) == ["Conv", "DequantizeLinear"]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not weights[node.input[2]].any(), "symmetric"


@pytest.mark.parametrize(
    ("before", "after", "excited", "left"),
    [
        ("SiLU", "SiLU", True, {"depthwise", "fc1", "fc2"}),
        ("SiLU", "SiLU", False, {"depthwise"}),
        ("SiLU", "Relu", True, {"fc1", "fc2"}),
        ("Clip", "SiLU", True, {"fc1", "fc2"}),
        ("SiLU", "HardSwish", False, set()),
        ("Sigmoid", "Sigmoid", False, set()),
    ],
)
def test_convolutions_that_int8_makes_slower_are_left(before, after, excited, left):
    """A block of EfficientNet: expanded, depthwise, scaled by what is squeezed and excited, projected. One of pictures of one
    channel is not depthwise."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper

    sizes = {"expand": (8, 1), "depthwise": (8, 1), "fc1": (2, 8), "fc2": (8, 2), "project": (4, 8)}
    weights = [helper.make_tensor(f"{name} w", 1, [*size, 1, 1], [0.0] * (size[0] * size[1])) for name, size in sizes.items()]

    def convolution(name: str, read: str) -> onnx.NodeProto:
        return helper.make_node("Conv", [read, f"{name} w"], [f"{name} made"], name, group=8 if name == "depthwise" else 1)

    def activation(kind: str, read: str, made: str) -> list[onnx.NodeProto]:
        silu = [helper.make_node("Sigmoid", [read], [f"{made} gate"]), helper.make_node("Mul", [read, f"{made} gate"], [made])]
        return silu if kind == "SiLU" else [helper.make_node(kind, [read], [made])]

    scaled = [
        *(helper.make_node("GlobalAveragePool", ["b"], ["pooled"]), convolution("fc1", "pooled")),
        *(helper.make_node("Relu", ["fc1 made"], ["c"]), convolution("fc2", "c")),
        *(helper.make_node("Sigmoid", ["fc2 made"], ["d"]), helper.make_node("Mul", ["b", "d"], ["scaled"])),
    ]
    nodes = [
        *(convolution("expand", "x"), *activation(before, "expand made", "a")),
        *(convolution("depthwise", "a"), *activation(after, "depthwise made", "b")),
        *(scaled if excited else []),
        convolution("project", "scaled" if excited else "b"),
    ]
    ends = [helper.make_tensor_value_info(name, 1, ["n", size, 8, 8]) for name, size in (("x", 1), ("project made", 4))]
    model = helper.make_model(helper.make_graph(nodes, "block", ends[:1], ends[1:], weights))
    assert quantize.left(model) == left


def test_an_addend_is_quantized_where_both_are_made_by_quantized_convolutions():
    helper = pytest.importorskip("onnx").helper
    made = [helper.make_node("Conv", ["x", f"{name} w"], [name], name) for name in "ab"]
    graph = helper.make_graph([*made, helper.make_node("Add", ["a", "b"], ["y"])], "residual", [], [])
    assert quantize.shortcuts(made, graph) == ["b"] and quantize.shortcuts(made[:1], graph) == []


@pytest.mark.parametrize("opset", [11, 17])
def test_what_is_left_has_no_pairs(photographs, tmp_path, opset):
    """Nodes need no names for it, and operators may be older than a scale for each channel."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(1)
    sizes = [(8, 3, 3, 3), (8, 1, 3, 3), (4, 8, 1, 1)]
    weights = [numpy_helper.from_array(rng.normal(0, 0.3, size).astype(np.float32), f"w{i}") for i, size in enumerate(sizes)]
    nodes = [
        *(helper.make_node("Conv", ["images", "w0"], ["a"]), helper.make_node("Sigmoid", ["a"], ["a gate"])),
        *(helper.make_node("Mul", ["a", "a gate"], ["b"]), helper.make_node("Conv", ["b", "w1"], ["c"], group=8)),
        *(helper.make_node("Sigmoid", ["c"], ["c gate"]), helper.make_node("Mul", ["c gate", "c"], ["d"])),
        *(helper.make_node("Conv", ["d", "w2"], ["e"]), helper.make_node("GlobalAveragePool", ["e"], ["f"])),
        helper.make_node("Flatten", ["f"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info(name, 1, ["n", *size]) for name, size in (("images", (3, 32, 32)), ("logits", (4,)))]
    graph = helper.make_graph(nodes, "made", ends[:1], ends[1:], weights)
    source = tmp_path / "made-fp32.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), str(source))
    made = onnx.load(str(quantize.calibrated(source, photographs, 2, "minmax", 1))).graph
    by = {output: node.op_type for node in made.node for output in node.output}
    read = [[by.get(name) for name in node.input[:2]] for node in made.node if node.op_type == "Conv"]
    assert read == [["DequantizeLinear"] * 2, ["Mul", None], ["DequantizeLinear"] * 2]


def test_calibrated_activations_are_not_clipped_on_the_calibration_images(quantized, photographs):
    images = Images(photographs, (3, 224, 224), 1)
    pixels = np.empty((len(images), 3, 224, 224), np.float32)
    assert len(images.fill(pixels)) == len(pixels)
    source = quantized.with_name("resnet18-fp32.onnx")
    difference = models.largest_difference(models.run_onnx(quantized, pixels), models.run_onnx(source, pixels))
    assert difference < 0.1


def test_a_calibration_is_kept_until_what_it_depends_on_changes(quantized, photographs):
    source, before = quantized.with_name("resnet18-fp32.onnx"), quantized.stat().st_mtime_ns
    for directory in (photographs, None):
        assert quantize.calibrated(source, directory, 128, "entropy", 1) == quantized
        assert quantized.stat().st_mtime_ns == before
    pixels = np.zeros((1, 3, 8, 8), np.float32)
    prints = {
        quantize.fingerprint(source, pixels, "entropy", []),
        quantize.fingerprint(source, pixels, "minmax", []),
        quantize.fingerprint(source, pixels + 1, "entropy", []),
        quantize.fingerprint(quantized, pixels, "entropy", []),
        quantize.fingerprint(source, pixels, "entropy", ["a convolution"]),
    }
    assert len(prints) == 5
    assert quantize.calibrated(source, photographs, 1, "minmax", 1).stat().st_mtime_ns > before


@pytest.fixture(scope="module")
def int8_plan(checkout, photographs, tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("int8") / "photographed-fp32.onnx"
    shutil.copy(checkout.models / "resnet18-fp32.onnx", source)
    plan = source.with_name("photographed.plan")
    done = checkout.run(
        "0_build.py", *SIMULATED, "--int8", "--onnx-file", source, "--calibration-images", photographs, "--output", plan
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(plan.with_name("photographed.plan.json").read_text())["precision"] == "int8"
    return plan


@pytest.mark.parametrize(
    "script", ["4_use_fp16.py", "5_multi_streams.py", "6_multi_threads.py", "7_cuda_graph.py", "8_multi_context.py"]
)
def test_the_int8_plan_runs_in_the_ladder(checkout, int8_plan, tmp_path, script):
    path = tmp_path / "record.json"
    done = checkout.run(script, *SIMULATED, *CHEAP, "--plan", int8_plan, "--precision", "int8", "--json", path)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(path.read_text())
    assert record["precision"] == "int8" and record["outputs_match"] is True


def test_another_precision_than_asked_for_is_refused(checkout, int8_plan):
    done = checkout.run("5_multi_streams.py", *SIMULATED, *CHEAP, "--plan", int8_plan, "--precision", "fp16")
    assert done.returncode == 3 and "is not a fp16 engine" in done.stderr
    done = checkout.run("5_multi_streams.py", *SIMULATED, *CHEAP, "--precision", "fp32", "--no-verify")
    assert done.returncode == 0, "stage 5 with the FP32 plan: the control row of what streams alone bring"


# -- training


@given(st.integers(1, 3000), st.integers(1, 300))
def test_each_step_of_a_training_has_a_whole_batch(count, steps):
    """Also the last ones, where the images are no multiple of a batch: of an epoch's none is there twice."""
    batches = list(train.drawn(np.random.default_rng(0), count, steps))
    assert [len(batch) for batch in batches] == [train.BATCH] * steps
    order = np.concatenate(batches)
    for first in range(0, len(order), count):
        assert len({*order[first : first + count].tolist()}) == len(order[first : first + count])


def test_the_digits_are_split_once_and_for_all(tmp_path):
    train.write_folders("digits", tmp_path)
    names = [str(digit) for digit in range(10)]
    files, labels = train.labelled_files(tmp_path / "train")
    test_files, test_labels = train.labelled_files(tmp_path / "test")
    assert set(labels) == set(test_labels) == set(names)
    assert len(files) + len(test_files) == 1797 and 0.19 < len(test_files) / 1797 < 0.21
    for name in names:
        assert test_labels.count(name) == -(-(labels + test_labels).count(name) // 5)
    assert not {path.name for path in files} & {path.name for path in test_files}
    train.write_folders("cifar10", tmp_path)  # what is there is not downloaded again
    assert train.load(files[:3], 32).shape == (3, 3, 32, 32)


@pytest.mark.slow
def test_a_trained_model_keeps_its_class_names_through_export(tmp_path, monkeypatch):
    """A few steps only: that training works shows in the loss's fall from chance, how well in the committed report."""
    pytest.importorskip("torch")
    monkeypatch.setattr(train, "SCHEDULES", {"cpu": ((32, 0.6),), "cuda": ((32, 0.6),)})
    weights = tmp_path / "resnet18-digits.pt"
    monkeypatch.setattr(train, "evaluate", evaluated)
    accuracy = train.fine_tune("resnet18", "digits", tmp_path / "digits", weights, 7)
    assert accuracy > 0.2, "chance is 0.1"
    model, labels = create_model("resnet18", str(weights), 7)
    assert labels == [str(digit) for digit in range(10)]
    assert model.fc.out_features == 10
    assert models.tag("resnet18", str(weights), models.SEED) == "resnet18-digits"


def test_a_model_is_trained_and_tried_at_the_size_that_it_takes(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    seen = []
    monkeypatch.setattr(train, "SCHEDULES", dict.fromkeys(("cpu", "cuda"), ((28, 1 / 45), (56, 1 / 45))))
    monkeypatch.setattr(train, "evaluate", lambda *given: float(seen.append(given[-1]) or 0))
    monkeypatch.setattr(
        train, "load", lambda files, size: seen.append(size) or np.zeros((len(files), 3, size, size), np.float32)
    )
    train.fine_tune("efficientnet_v2_s", "digits", tmp_path / "digits", tmp_path / "weights.pt", 7)
    assert seen == [48, 96, 384]


def evaluated(model, folder, names, device, side) -> float:
    """Accuracy at the size that was trained on."""
    import torch

    files, labels = train.labelled_files(folder)
    with torch.inference_mode():
        found = model(torch.from_numpy(train.load(files, 32)).to(device)).argmax(dim=1).tolist()
    return sum(names[index] == label for index, label in zip(found, labels)) / len(labels)


# -- the likeliest classes


def test_top_prints_the_likeliest_classes_once_an_image(checkout, photographs):
    done = checkout.run("4_use_fp16.py", *SIMULATED, *CHEAP, "--images", photographs, "--top", "3", "--no-verify")
    assert done.returncode == 0, done.stderr
    lines = done.stdout[done.stdout.index("china.jpg") :].splitlines()
    assert [line for line in lines if line.endswith(".jpg")] == ["china.jpg", "flower.jpg"]
    shares = [float(line.split("%")[0]) for line in lines if "%" in line]
    assert len(shares) == 6 and shares[:3] == sorted(shares[:3], reverse=True)


def test_top_is_softmax(checkout):
    logits = np.array([1.0, 4.0, 2.0, 4.0], np.float32)
    expected = np.exp(logits) / np.exp(logits).sum()
    assert postprocess.top(logits, 3) == [
        (1, pytest.approx(expected[1])),
        (3, pytest.approx(expected[3])),
        (2, pytest.approx(expected[2])),
    ]
