"""Plans that take a picture's bytes: the same outputs as with its floats, the border too, and what the simulator charges."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, load, numpy_helper, save

from common.errors import EnvironmentFault, UsageFault
from common.images import MEAN, planes
from common.pictures import Images
from export import bytes_in, models, quantize, source
from sim import device as devices
from sim import kernels, network
from sim import tensorrt as trt
from tests.conftest import CHEAP, SIMULATED, onnx_model

SIDE = 224
PIXELS = SIDE * SIDE
ONCE = ("uint8 nchw", "uint8 nhwc", "int8 nchw", "int8 nhwc")


@pytest.fixture(scope="module")
def photographs() -> Path:
    datasets = pytest.importorskip("sklearn.datasets")
    return Path(datasets.__file__).parent / "images"


@pytest.fixture(scope="module")
def files(checkout, tmp_path_factory) -> dict[str, Path]:
    """The ladder's model taking floats, and taking bytes in all ways; FP16 of the former's and of uint8."""
    folder = tmp_path_factory.mktemp("bytes")
    found = {"fp32": folder / "resnet18-fp32.onnx"}
    shutil.copy(checkout.models / "resnet18-fp32.onnx", found["fp32"])
    for each in ONCE:
        found[each] = bytes_in.bytes_in(found["fp32"], folder, *each.split())
        if each.startswith("uint8"):
            found[f"{each} fp16"] = models.in_fp16(found[each], folder)
    return found


def pictures(folder: Path, taken: str) -> np.ndarray:
    """The photographs as a file takes them."""
    kind, layout = taken.split()[:2]
    shape = {"f4": (3, SIDE, SIDE), "uint8": (4, SIDE, SIDE), "int8": (3, SIDE, SIDE)}[kind]
    batch = np.empty((2, *shape) if layout == "nchw" else (2, *shape[1:], shape[0]), kind)
    Images(folder, batch.shape[1:], 1).fill(batch)
    return batch


@pytest.fixture(scope="module")
def reference(files, photographs) -> np.ndarray:
    """The float model's logits of the photographs."""
    return models.run_onnx(files["fp32"], pictures(photographs, "f4 nchw"))


def difference(file: Path, images: np.ndarray, reference: np.ndarray) -> float:
    return models.largest_difference(models.run_onnx(file, images), reference)


# -- the same outputs


@pytest.mark.parametrize("layout", bytes_in.LAYOUTS)
@pytest.mark.parametrize("precision, tolerance", [("", 1e-5), (" fp16", 5e-3)])
def test_uint8_photographs_give_the_outputs_of_their_floats(files, photographs, reference, layout, precision, tolerance):
    taken = f"uint8 {layout}"
    assert difference(files[taken + precision], pictures(photographs, taken), reference) < tolerance


def test_a_fourth_plane_is_white(photographs):
    batch = pictures(photographs, "uint8 nhwc")
    assert (planes(batch)[:, 3] == 255).all()
    assert (planes(batch)[:, :3] == pictures(photographs, "int8 nchw").view(np.uint8) ^ 128).all()


def first_convolution(path: Path, images: np.ndarray, folder: Path) -> np.ndarray:
    model = load(str(path))
    output = next(node.output[0] for node in model.graph.node if node.op_type == "Conv")
    model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    save(model, str(folder / "probed.onnx"))
    session = pytest.importorskip("onnxruntime").InferenceSession(str(folder / "probed.onnx"))
    return session.run([output], {models.INPUT: images})[0]


def test_int8_differs_at_the_border_alone_and_by_far_less_than_int8_rounds(files, int8, photographs, reference, tmp_path):
    """Its padding stands for byte 128 instead of the mean. (In black, as uint8's would be without its fourth plane, it would be
    6 to 8 % of the largest logit.)"""
    images = pictures(photographs, "int8 nchw")
    exact = first_convolution(files["fp32"], pictures(photographs, "f4 nchw"), tmp_path)
    away = np.abs(first_convolution(files["int8 nchw"], images, tmp_path) - exact) > 1e-3 * np.abs(exact).max()
    assert away[..., [0, 1, -1], :].any() and away[..., [0, 1, -1]].any() and not away[..., 2:-1, 2:-1].any()
    border, rounding = (difference(file, images, reference) for file in (files["int8 nchw"], int8))
    assert border < rounding / 2


def test_a_frame_of_black_would_be_wrong(files, photographs, reference, tmp_path):
    """The mean in the bias, where zeros are black: what the fourth plane is for."""
    model, images = load(str(files["uint8 nchw"])), pictures(photographs, "uint8 nchw")
    constants = {each.name: each for each in model.graph.initializer}
    weight, bias = (numpy_helper.to_array(constants[f"folded {what}"]).copy() for what in ("weight", "bias"))
    bias += 255 * weight[:, 3].sum(axis=(1, 2))
    weight[:, 3] = 0
    for what, values in (("weight", weight), ("bias", bias)):
        constants[f"folded {what}"].CopyFrom(numpy_helper.from_array(values, f"folded {what}"))
    save(model, str(tmp_path / "black.onnx"))
    assert difference(tmp_path / "black.onnx", images, reference) > 0.03


@pytest.mark.parametrize("kind, off", [("uint8", 1 / 255), ("int8", 0.2)])
def test_what_is_folded_is_held_to_the_floats(files, tmp_path, monkeypatch, kind, off):
    monkeypatch.setattr(bytes_in, "MEAN", MEAN + off)
    with pytest.raises(EnvironmentFault, match=f"{kind}.* is wrong"):
        bytes_in.bytes_in(files["fp32"], tmp_path, kind, "nchw")
    assert not list(tmp_path.iterdir())


# -- files


def test_a_file_is_kept_until_its_source_changes(files, tmp_path):
    own = tmp_path / "mine.onnx"
    shutil.copy(files["fp32"], own)
    made = [bytes_in.bytes_in(own, tmp_path, "uint8", "nhwc").stat().st_mtime_ns for _ in range(2)]
    assert made[0] == made[1]
    model = load(str(own))
    model.producer_name = "another"
    save(model, str(own))
    assert bytes_in.bytes_in(own, tmp_path, "uint8", "nhwc").stat().st_mtime_ns > made[0]


@pytest.mark.parametrize(
    "wrong",
    ["not a convolution", "two readers", "pixels", "bytes already", "nobody reads it", "a computed bias", "an output too"],
)
def test_what_cannot_be_folded_is_refused_in_a_sentence(tmp_path, wrong):
    kind = TensorProto.UINT8 if wrong == "bytes already" else TensorProto.FLOAT
    into = {
        "not a convolution": [helper.make_node("Relu", ["images"], ["x"])],
        "two readers": [helper.make_node("Identity", ["images"], ["x"]), helper.make_node("Conv", ["images", "w"], ["z"])],
        "pixels": [helper.make_node("Transpose", ["images"], ["x"], perm=[0, 3, 1, 2])],
        "bytes already": [helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT)],
        "nobody reads it": [helper.make_node("RandomNormal", [], ["x"], shape=[1, 3, 8, 8])],
        "a computed bias": [
            helper.make_node("RandomNormal", [], ["b"], shape=[3]),
            helper.make_node("Conv", ["images", "w3", "b"], ["x"]),
        ],
        "an output too": [helper.make_node("Conv", ["images", "w3"], ["x"])],
    }[wrong]
    shape = ["n", 8, 8, 3] if wrong == "pixels" else ["n", 3, 8, 8]
    ends = helper.make_tensor_value_info("images", kind, shape), helper.make_tensor_value_info("y", 1, ["n", 4, 8, 8])
    weights = {name: np.ones((each, 3, 1, 1), "f4") for name, each in (("w", 4), ("w3", 3))}
    given = [ends[1], ends[0]] if wrong == "an output too" else [ends[1]]
    path = tmp_path / "mine.onnx"
    save(onnx_model([*into, helper.make_node("Conv", ["x", "w"], ["y"])], [ends[0]], given, weights), str(path))
    with pytest.raises(UsageFault, match=r"--input bytes: .*mine\.onnx takes images .* is read by \w+"):
        bytes_in.bytes_in(path, tmp_path, "uint8", "nchw")


def test_a_convolution_without_a_bias_gets_one(checkout, tmp_path):
    for each in ONCE:
        made = bytes_in.bytes_in(checkout.folder / "tiny.onnx", tmp_path, *each.split())
        assert len(next(node for node in load(str(made)).graph.node if node.op_type == "Conv").input) == 3


@pytest.mark.parametrize("each", ["uint8 nhwc", "int8 nhwc"])
@pytest.mark.parametrize("name", ["bytes", "planes", "one", "nought", "folded weight", "folded bias"])
def test_a_model_may_have_the_names_that_folding_gives(checkout, tmp_path, name, each):
    model = load(str(checkout.folder / "tiny.onnx"))
    for node in model.graph.node:
        node.input[:], node.output[:] = ([name if old == "a" else old for old in names] for names in (node.input, node.output))
    save(model, str(tmp_path / "mine.onnx"))
    bytes_in.bytes_in(tmp_path / "mine.onnx", tmp_path, *each.split())


def test_weights_that_are_listed_as_inputs_are_constants(checkout, tmp_path):
    model = load(str(checkout.folder / "tiny.onnx"))
    model.graph.input.insert(0, helper.make_tensor_value_info("w1", TensorProto.FLOAT, [8, 3, 3, 3]))
    save(model, str(tmp_path / "mine.onnx"))
    for each in ONCE:
        made = load(str(bytes_in.bytes_in(tmp_path / "mine.onnx", tmp_path, *each.split())))
        assert [value.name for value in made.graph.input] == ["images"]


def test_a_dynamic_batch_without_a_name_stays_dynamic(checkout, tmp_path):
    model = load(str(checkout.folder / "tiny.onnx"))
    for end in (*model.graph.input, *model.graph.output):
        end.type.tensor_type.shape.dim[0].Clear()
    save(model, str(tmp_path / "mine.onnx"))
    made = load(str(bytes_in.bytes_in(tmp_path / "mine.onnx", tmp_path, "uint8", "nchw")))
    assert models.end(made.graph.input[0]).shape == (-1, 4, 32, 32)


def test_pixels_that_look_like_planes_are_refused(checkout, tmp_path):
    model = load(str(checkout.folder / "tiny.onnx"))
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 3
    save(model, str(tmp_path / "mine.onnx"))
    with pytest.raises(UsageFault, match="--layout nhwc: N×3×3×4 would be read as N×C×H×W"):
        bytes_in.bytes_in(tmp_path / "mine.onnx", tmp_path, "uint8", "nhwc")


def test_a_fixed_batch_stays(checkout, tmp_path):
    model = load(str(checkout.folder / "tiny.onnx"))
    for each in (*model.graph.input, *model.graph.output):
        each.type.tensor_type.shape.dim[0].dim_value = 1
    save(model, str(tmp_path / "one.onnx"))
    made = load(str(bytes_in.bytes_in(tmp_path / "one.onnx", tmp_path, "uint8", "nhwc")))
    assert models.end(made.graph.input[0]).shape == (1, 32, 32, 4)


def test_what_was_exported_is_built_without_onnx(checkout, photographs, tmp_path, monkeypatch):
    """`--export-only` under one Python, the plan under another, which has TensorRT and no onnx."""
    monkeypatch.setattr(source, "FOLDER", tmp_path)
    parser = argparse.ArgumentParser()
    source.add_options(parser)
    for precision in ("--fp16", "--int8"):
        asked = [precision, "--input", "bytes", "--layout", "nhwc"]
        made = source.onnx_file(parser.parse_args([*asked, "--calibration-images", str(photographs)]))
        with monkeypatch.context() as without:
            for module in (bytes_in, models, quantize):
                without.setattr(module, "needs", None)
            assert source.onnx_file(parser.parse_args(asked)) == made
        assert models.read_description(made)["precision"] == precision[2:]


# -- INT8


@pytest.fixture(scope="module")
def int8(files, photographs) -> Path:
    return quantize.calibrated(files["int8 nchw"], files["int8 nchw"].parent, photographs, 128, "entropy", 1)


@pytest.mark.parametrize("layout", bytes_in.LAYOUTS)
def test_quantization_starts_at_the_input(files, photographs, reference, layout):
    """A byte is dequantized at scale 1, straight into the convolution."""
    path = quantize.calibrated(files[f"int8 {layout}"], files[f"int8 {layout}"].parent, photographs, 128, "entropy", 1)
    graph = load(str(path)).graph
    weights = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    chain = [next(node for node in graph.node if node.op_type == "Conv")]
    while chain[-1].input[0] != models.INPUT:
        chain.append(made_by[chain[-1].input[0]])
    assert [node.op_type for node in chain[1:]] == ["Transpose"] * (layout == "nhwc") + ["DequantizeLinear"]
    assert weights[chain[-1].input[1]] == 1 and weights[chain[-1].input[2]] == 0
    read = {name for node in graph.node for name in node.input}
    assert weights.keys() <= read and made_by.keys() <= read | {each.name for each in graph.output}
    assert difference(path, pictures(photographs, f"int8 {layout}"), reference) < 0.1


def test_a_model_without_a_convolution_is_quantized_too(photographs, tmp_path):
    images, logits = (helper.make_tensor_value_info(*end) for end in (("images", 1, ["n", 3, 8, 8]), ("y", 1, ["n", 5])))
    nodes = helper.make_node("Flatten", ["images"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])
    weights = {"w": np.random.default_rng(0).normal(size=(192, 5)).astype("f4")}
    save(onnx_model(nodes, [images], [logits], weights), str(tmp_path / "x.onnx"))
    made = load(str(quantize.calibrated(tmp_path / "x.onnx", tmp_path, photographs, 2, "entropy", 1))).graph
    assert [node.op_type for node in made.node].count("DequantizeLinear") == 2


def test_int8_of_bytes_is_no_farther_off_than_int8_of_floats(int8, files, photographs, reference):
    floats = quantize.calibrated(files["fp32"], files["fp32"].parent, photographs, 128, "entropy", 1)
    of_floats = difference(floats, pictures(photographs, "f4 nchw"), reference)
    assert difference(int8, pictures(photographs, "int8 nchw"), reference) < 1.2 * of_floats


# -- in the ladder


def record_of(checkout, tmp_path, *arguments, script: str = "10_uint8_input.py") -> dict:
    path = tmp_path / "record.json"
    done = checkout.run(script, *SIMULATED, *CHEAP, "--json", path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize("layout", bytes_in.LAYOUTS)
def test_stage_10_is_held_to_the_float_plan_on_the_same_pictures(checkout, photographs, tmp_path, layout):
    record = record_of(checkout, tmp_path, "--layout", layout, "--images", photographs)
    assert record["outputs_match"] is True and record["plan"].startswith(f"plans/resnet18-uint8-{'nhwc-' * (layout == 'nhwc')}")
    assert 0 < record["fp32_max_abs_diff"] < 0.06 and record["fp32_top1_agreement"] == 1


def test_synthetic_images_are_the_same_pictures_in_bytes(checkout, tmp_path):
    assert record_of(checkout, tmp_path)["fp32_max_abs_diff"] < 0.06


def test_stage_10_copies_a_third_and_computes_three_percent_more_at_most(checkout, tmp_path):
    floats = record_of(checkout, tmp_path, "--no-verify", script="7_cuda_graph.py")["parts_ms"]
    parts = record_of(checkout, tmp_path, "--no-verify")["parts_ms"]
    assert parts["h2d"] == pytest.approx(floats["h2d"] / 3, rel=0.02)  # but for a copy's latency
    assert floats["compute"] < parts["compute"] < 1.03 * floats["compute"]
    pixels = record_of(checkout, tmp_path, "--no-verify", "--layout", "nhwc")["parts_ms"]
    assert pixels["h2d"] == parts["h2d"] and pixels["compute"] > 1.03 * floats["compute"]


def test_a_layout_is_that_of_bytes(checkout):
    done = checkout.run("0_build.py", *SIMULATED, "--layout", "nhwc", "--export-only")
    assert done.returncode == 2 and "add --input bytes" in done.stderr


def test_the_int8_plan_of_bytes_runs_in_stage_10(checkout, photographs, tmp_path):
    asked = ("10_uint8_input.py", *SIMULATED, *CHEAP, "--precision", "int8", "--no-verify")
    if not (checkout.plans / "resnet18-int8-int8.simulated.plan").exists():
        done = checkout.run(*asked)
        assert done.returncode == 3 and "--layout nchw --calibration-images DIR" in done.stderr, "nobody calibrates with noise"
    done = checkout.run("0_build.py", *SIMULATED, "--int8", "--input", "bytes", "--calibration-images", photographs)
    assert done.returncode == 0, done.stderr
    record = record_of(checkout, tmp_path, "--precision", "int8", "--images", photographs)
    assert record["precision"] == "int8" and record["outputs_match"] is True and record["fp32_top1_agreement"] == 1
    other = record_of(checkout, tmp_path, "--precision", "int8", "--images", photographs, "--device", "v100-sxm2-32gb")
    assert any("no rate for INT8" in note for note in other["notes"]), "else INT8 seems to gain nothing"
    assert record["peak_device_memory_mb"] < 380, "two contexts' activations are INT8: 128 MB each, and an H200 took 247 in all"
    assert not any("no rate" in note for note in record["notes"]), "the H200's was measured"


# -- what the simulator charges


def input_layers(path: Path) -> list[tuple[str, int, tuple[str, ...]]]:
    """(kind, bytes an image, nodes that joined) of what comes before the first convolution."""
    found = network.layers(load(str(path)))
    return [(layer.kind, layer.nbytes, layer.fused) for layer in found[: [layer.kind for layer in found].index("Conv")]]


def test_the_input_is_charged_as_it_is_sent(files, int8):
    """Read as sent, written as four bytes a value; a transposition is a slow kernel more."""
    assert input_layers(files["fp32"]) == [("Reformat", (4 + 4) * 3 * PIXELS, ())]
    assert input_layers(files["uint8 nchw fp16"]) == [("Reformat", (1 + 4) * 4 * PIXELS, ())]
    assert input_layers(int8) == [("Reformat", (1 + 4) * 3 * PIXELS, ())]
    turned = [("Reformat", (1 + 4) * 4 * PIXELS, ()), ("Transpose", 16 * 4 * PIXELS, ())]
    assert input_layers(files["uint8 nhwc fp16"]) == turned


def test_a_layer_that_ends_in_q_writes_int8(int8, checkout, photographs, tmp_path):
    """So does what is before a MaxPool and Q; a residual comes in INT8; the images are read as they are sent, here too."""
    found = {layer.name: layer.nbytes for layer in network.layers(load(str(int8)))}
    first, pooled, second = 64 * 112**2, 64 * 56**2, 128 * 28**2
    assert found["/conv1/Conv"] == 3 * PIXELS + first and found["/maxpool/MaxPool"] == first + pooled
    assert found["/layer1/layer1.0/conv1/Conv"] == 2 * pooled and found["/layer1/layer1.0/conv2/Conv"] == 3 * pooled
    assert found["/layer2/layer2.0/downsample/downsample.0/Conv"] == pooled + second
    assert found["/layer4/layer4.1/conv2/Conv"] == (1 + 1 + 4) * 512 * 7**2, "what is pooled on average stays a float"
    assert max(found.values()) == first + pooled, "what a context takes for each image"
    floats = shutil.copy(checkout.models / "resnet18-fp32.onnx", tmp_path)
    of_floats = network.layers(load(str(quantize.calibrated(Path(floats), Path(floats).parent, photographs, 2, "entropy", 1))))
    assert of_floats[0].nbytes == (4 + 4) * 3 * PIXELS
    assert {layer.name: layer.nbytes for layer in of_floats[1:]} == {name: found[name] for name in list(found)[1:]}


@pytest.mark.parametrize("added", ["ab", "ba"])
def test_of_an_addition_the_layer_s_own_value_alone_becomes_int8(added):
    """Of two float convolutions added ahead of Q one is written as floats and read by the other's layer; a scale and a factor
    may be operators' outputs."""
    ends = [helper.make_tensor_value_info(*end) for end in (("images", 1, ["n", 3, 8, 8]), ("y", 1, ["n", 4, 8, 8]))]
    nodes = [
        *(helper.make_node("Conv", ["images", "w"], [name], name) for name in "ab"),
        helper.make_node("Add", [*added], ["sum"]),
        helper.make_node("Constant", [], ["scale"], value_float=1.0),
        helper.make_node("Mul", ["sum", "scale"], ["product"]),
        helper.make_node("QuantizeLinear", ["product", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    weights = {"w": np.ones((4, 3, 1, 1), "f4"), "zero": np.int8(0)}
    found = {layer.name: layer.nbytes for layer in network.layers(onnx_model(nodes, ends[:1], ends[1:], weights))}
    assert (found["a"], found["b"]) == (4 * 64 * (3 + 4), 4 * 64 * 3 + 64 * 4 + 4 * 64 * 4)


def test_a_normalisation_that_is_not_folded_is_charged(files, tmp_path):
    """The trap: what comes in front of a convolution cannot join it. A multiplication and an addition are one kernel."""
    model = load(str(files["fp32"]))
    for name, values in (("m", MEAN[:, None, None] * 255), ("d", np.float32(57))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    nodes = [
        helper.make_node("Cast", [models.INPUT], ["bytes"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["bytes", "d"], ["a"]),
        helper.make_node("Add", ["a", "m"], ["b"]),
    ]
    model.graph.node[0].input[0] = "b"
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    save(model, str(tmp_path / "trap.onnx"))
    reformat, pointwise = input_layers(tmp_path / "trap.onnx")
    assert reformat[1] == (1 + 4) * 3 * PIXELS and pointwise[:2] == ("Mul", 16 * 3 * PIXELS) and len(pointwise[2]) == 1


def test_a_modelled_batch_of_pixels_takes_a_transposition_more(files):
    """Closed form: its bytes at the memory's rate, and a kernel's floor."""
    device, times = devices.load("h200"), {}
    for layout in bytes_in.LAYOUTS:
        found = network.layers(load(str(files[f"uint8 {layout} fp16"])))
        times[layout] = sum(kernels.kernel(device, layer, 128, 128).duration for layer in found)
    more = device.kernel_floor + 128 * 16 * 4 * PIXELS / device.memory_rate
    assert times["nhwc"] - times["nchw"] == pytest.approx(more, abs=2)


def test_a_uint8_input_may_only_be_cast():
    """As in TensorRT."""
    image = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 8, 8, 3])
    cast, turn = helper.make_node("Cast", ["images"], ["y"], to=TensorProto.FLOAT), helper.make_node("Identity", ["x"], ["y"])
    turned = [helper.make_node("Transpose", ["images"], ["x"], perm=[0, 1, 2, 3]), turn]
    for nodes, kind, said in (([cast], TensorProto.FLOAT, ""), (turned, TensorProto.UINT8, "may only be cast")):
        out = helper.make_tensor_value_info("y", kind, ["n", 8, 8, 3])
        model = onnx_model(nodes, [image], [out])
        parser = trt.OnnxParser(trt.Builder(trt.Logger()).create_network(), trt.Logger())
        assert parser.parse(model.SerializeToString()) is (not said)
        assert not said or said in parser.get_error(0).desc()
