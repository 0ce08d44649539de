"""INT8 by calibration on real images, training on real handwriting, and the likeliest classes."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import postprocess
from common.errors import EnvironmentFault, UsageFault
from common.pictures import Images
from export import models, quantize, source, train
from export.networks import create_model
from sim import network
from tests.conftest import CHEAP, SIMULATED, onnx_model


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
    return quantize.calibrated(source, source.parent, photographs, 128, "entropy", 1)


def test_int8_without_images_is_refused_with_the_reason(checkout, tmp_path):
    source = tmp_path / "resnet18-fp32.onnx"
    shutil.copy(checkout.models / source.name, source)
    with pytest.raises(UsageFault, match="Random noise has other ranges"):
        quantize.calibrated(source, source.parent, None, 128, "entropy", 1)
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


@pytest.mark.parametrize(("reads", "made", "addends"), [("xx", "ab", ["b"]), ("x", "a", []), ("xb", "ba", [])])
def test_an_addend_is_quantized_where_operators_make_both_and_read_none(reads, made, addends):
    helper = pytest.importorskip("onnx").helper
    operators = [helper.make_node("Conv", [read, "w"], [name]) for read, name in zip(reads, made)]
    graph = helper.make_graph([*operators, helper.make_node("Add", ["a", "b"], ["y"])], "residual", [], [])
    assert quantize.shortcuts(operators, graph) == addends


SIZES = [(8, 3, 3, 3), (4, 8, 1, 1)]


def write_model(path: Path, opset: int = 17, constant: bool = False, scale: float = 0.3) -> None:
    """Two convolutions, as exporters write them: without names, weights as nodes of their own or, in IR 3, as inputs."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(1)
    weights = [numpy_helper.from_array(rng.normal(0, scale, size).astype(np.float32), f"w{i}") for i, size in enumerate(SIZES)]
    nodes = [
        *(helper.make_node("Constant", [], [weight.name], value=weight) for weight in weights if constant),
        *([helper.make_node("Constant", [], ["no tensor"], value_int=1)] if constant else []),
        *(helper.make_node("Conv", ["images", "w0"], ["a"]), helper.make_node("Relu", ["a"], ["b"])),
        *(helper.make_node("Conv", ["b", "w1"], ["c"]), helper.make_node("GlobalAveragePool", ["c"], ["d"])),
        helper.make_node("Flatten", ["d"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info(name, 1, ["n", *size]) for name, size in (("images", (3, 32, 32)), ("logits", (4,)))]
    inputs = [helper.make_tensor_value_info(weight.name, 1, weight.dims) for weight in weights if opset == 8]
    graph = helper.make_graph(nodes, "made", [ends[0], *inputs], ends[1:], [] if constant else weights)
    version = {"opset_imports": [helper.make_opsetid("", opset)], "ir_version": 3 if opset == 8 else 8}
    onnx.save(helper.make_model(graph, **version), str(path))


@pytest.mark.parametrize(("opset", "constant"), [(8, False), (11, False), (17, False), (17, True)])
def test_any_exporters_file_is_quantized_once(photographs, tmp_path, opset, constant):
    onnx = pytest.importorskip("onnx")
    source = tmp_path / "made-fp32.onnx"
    write_model(source, opset, constant)
    path = quantize.calibrated(source, source.parent, photographs, 2, "minmax", 1)
    model = onnx.load(str(path))
    assert model.opset_import[0].version == max(opset, 13)
    by = {output: node for node in model.graph.node for output in node.output}
    sources = [by[name] for node in model.graph.node if node.op_type == "Conv" for name in node.input[:2]]
    assert [node.op_type for node in sources] == ["DequantizeLinear"] * 4
    held = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    assert [held[node.input[0]] for node in sources[1::2]] == SIZES
    assert [held[node.input[1]] for node in sources] == [(), (8,), (), (4,)]
    plain = onnx.load(str(source))
    plain.ir_version = 8
    work = [layer.operations for layer in network.layers(plain) if layer.kind == "Conv"]
    assert work == [2 * 30 * 30 * 8 * 27, 2 * 30 * 30 * 4 * 8]
    for directory in (photographs, None):  # what has its pairs keeps them
        assert quantize.calibrated(path, path.parent, directory, 2, "minmax", 1) == path
    write_model(source, 16)
    with pytest.raises(UsageFault, match="--int8 needs"):  # the INT8 file is another's now
        quantize.calibrated(source, source.parent, None, 2, "minmax", 1)


def test_what_cannot_be_quantized_is_named(photographs, tmp_path):
    write_model(tmp_path / "nan-fp32.onnx", scale=np.nan)
    with pytest.raises(EnvironmentFault, match=r"cannot quantize .*nan-fp32\.onnx: "):
        quantize.calibrated(tmp_path / "nan-fp32.onnx", tmp_path, photographs, 2, "minmax", 1)


def test_what_cannot_be_converted_is_named(photographs, tmp_path):
    onnx = pytest.importorskip("onnx")
    write_model(tmp_path / "two.onnx")
    model = onnx.load(str(tmp_path / "two.onnx"))
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx", 11))
    onnx.save(model, str(tmp_path / "two.onnx"))
    with pytest.raises(EnvironmentFault, match=r"cannot quantize .*two\.onnx: .*No Adapter"):
        quantize.calibrated(tmp_path / "two.onnx", tmp_path, photographs, 2, "minmax", 1)


def test_a_fault_of_the_user_s_stays_one(photographs, tmp_path):
    onnx = pytest.importorskip("onnx")
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["n", 3, 8, 8]) for name in ("images", "y")]
    onnx.save(onnx_model([onnx.helper.make_node("Relu", ["images"], ["y"])], ends[:1], ends[1:]), str(tmp_path / "x.onnx"))
    with pytest.raises(UsageFault, match=r"^--int8: the model has nothing to quantize"):
        quantize.calibrated(tmp_path / "x.onnx", tmp_path, photographs, 2, "minmax", 1)


def test_the_users_own_files_stay_as_they_are(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "FOLDER", tmp_path / "models")
    (tmp_path / "models" / "own").mkdir(parents=True)
    write_model(tmp_path / "net.onnx")
    (tmp_path / "net-int8.onnx").write_text("the user's")
    parser = argparse.ArgumentParser()
    source.add_options(parser)
    asked = ["--int8", "--onnx-file", str(tmp_path / "net.onnx"), "--calibration-images", str(photographs)]
    assert source.onnx_file(parser.parse_args(asked)) == tmp_path / "models" / "own" / "net-int8.onnx"
    assert (tmp_path / "net-int8.onnx").read_text() == "the user's"


def test_a_build_is_held_to_what_its_file_has_quantized(checkout, photographs, tmp_path):
    """A file that has its pairs is built without pictures; a description of no right type is none."""
    write_model(tmp_path / "own-fp32.onnx")
    path = quantize.calibrated(tmp_path / "own-fp32.onnx", tmp_path, photographs, 2, "minmax", 1)
    facts = models.read_description(path)
    assert facts["quantized"] == 2
    for quantized, right in ((5, False), (4, True), ("5", True)):
        models.write_description(path, **{**facts, "quantized": quantized, "path": "x"})
        done = checkout.run("0_build.py", *SIMULATED, "--int8", "--onnx-file", path, "--output", tmp_path / "x.plan")
        assert done.returncode == (0 if right else 3), done.stderr
        assert right or "work in 2 int8" in " ".join(done.stderr.split())


def test_what_is_quantized_already_is_found_without_onnx(quantized, monkeypatch):
    monkeypatch.setattr(quantize, "prepared", lambda source: pytest.fail("onnx reads the model"))
    source = quantized.with_name("resnet18-fp32.onnx")
    assert quantize.calibrated(source, source.parent, None, 128, "entropy", 1) == quantized


def test_a_network_that_gives_classes_is_quantized(photographs, tmp_path):
    onnx = pytest.importorskip("onnx")
    source = tmp_path / "made-fp32.onnx"
    write_model(source)
    graph = (model := onnx.load(str(source))).graph
    graph.node.append(onnx.helper.make_node("ArgMax", ["logits"], ["class"], axis=1, keepdims=0))
    graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("class", onnx.TensorProto.INT64, ["n"]))
    onnx.save(model, str(source))
    assert models.read_description(quantize.calibrated(source, source.parent, photographs, 2, "minmax", 1))["quantized"] == 2
    classes = np.array([3, 900, 3, 4])
    assert models.largest_difference(np.array([3, 1, 3, 4]), classes) == 0.25


def test_a_constant_that_is_an_output_stays_one(tmp_path):
    onnx = pytest.importorskip("onnx")
    write_model(tmp_path / "x.onnx", constant=True)
    graph = (model := onnx.load(str(tmp_path / "x.onnx"))).graph
    for each in (graph.input[0], graph.output[0]):
        each.type.tensor_type.shape.dim[0].dim_value = 1
    value = onnx.helper.make_tensor("k", 1, [1, 4], [1.0] * 4)
    graph.node.append(onnx.helper.make_node("Constant", [], ["k"], value=value))
    graph.output.append(onnx.helper.make_tensor_value_info("k", 1, [1, 4]))
    onnx.save(model, str(tmp_path / "x.onnx"))
    graph = models.load(tmp_path / "x.onnx").graph
    assert [weight.name for weight in graph.initializer] == ["w0", "w1"] and len(graph.output) == 2
    models.convert_to_fp16(tmp_path / "x.onnx", tmp_path / "y.onnx")
    assert models.run_onnx(tmp_path / "y.onnx", np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 4)


def test_calibrated_activations_are_not_clipped_on_the_calibration_images(quantized, photographs):
    images = Images(photographs, (3, 224, 224), 1)
    pixels = np.empty((len(images), 3, 224, 224), np.float32)
    assert len(images.fill(pixels)) == len(pixels)
    source = quantized.with_name("resnet18-fp32.onnx")
    difference = models.largest_difference(models.run_onnx(quantized, pixels), models.run_onnx(source, pixels))
    assert difference < 0.1


def test_a_calibration_is_kept_until_model_images_or_method_change(quantized, photographs):
    source, before = quantized.with_name("resnet18-fp32.onnx"), quantized.stat().st_mtime_ns
    for directory in (photographs, None):
        assert quantize.calibrated(source, source.parent, directory, 128, "entropy", 1) == quantized
        assert quantized.stat().st_mtime_ns == before
    pixels = np.zeros((1, 3, 8, 8), np.float32)
    prints = {
        quantize.fingerprint(source, pixels, "entropy"),
        quantize.fingerprint(source, pixels, "minmax"),
        quantize.fingerprint(source, pixels + 1, "entropy"),
        quantize.fingerprint(quantized, pixels, "entropy"),
    }
    assert len(prints) == 4
    assert quantize.calibrated(source, source.parent, photographs, 1, "minmax", 1).stat().st_mtime_ns > before


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
    assert done.returncode == 3 and "is no fp16 engine" in done.stderr
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
