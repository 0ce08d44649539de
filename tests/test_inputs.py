"""Plans of every input and output: floats, halves, bytes, either layout, several outputs, outputs that are no class scores."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, load, save

from common import backend, verify
from common.engine import Engine
from common.errors import EnvironmentFault, WrongOutputs
from common.images import CELLS, DEVIATION, MEAN, converted, noise_images, planes
from common.pictures import Images
from common.tensors import End, first_rows, packed, unpacked
from tests.conftest import SIMULATED, onnx_model

TYPES = {"f4": TensorProto.FLOAT, "f2": TensorProto.FLOAT16, "u1": TensorProto.UINT8, "i1": TensorProto.INT8}
SIDE = 16
DRAW = np.random.default_rng(3)
WEIGHTS = {"w": DRAW.normal(0, 0.3, (6, 3, 3, 3)).astype("f4"), "v": DRAW.normal(0, 0.5, (5, 6)).astype("f4")}


def write_model(path, kind: str = "f4", last: bool = False, outputs: str = "logits", output: str = "f4") -> None:
    """A convolution and a classifier of normalised pictures, with their preprocessing in front where bytes are sent."""
    constants = {**WEIGHTS, "m": MEAN[:, None, None], "d": DEVIATION[:, None, None], "s": np.float32(255), "z": np.float32(128)}
    shape = [SIDE, SIDE, 3] if last else [3, SIDE, SIDE]
    ends = {"logits": [5], "map": [6, SIDE, SIDE], "best": []}
    nodes = [helper.make_node("Cast", ["pictures"], ["x0"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("Transpose", ["x0"], ["x1"], perm=[0, 3, 1, 2] if last else [0, 1, 2, 3])]
    if kind in ("u1", "i1"):
        nodes += [helper.make_node("Add", ["x1", "z"], ["x2"])] if kind == "i1" else []
        nodes += [helper.make_node("Div", ["x2" if kind == "i1" else "x1", "s"], ["x3"])]
        nodes += [helper.make_node("Sub", ["x3", "m"], ["x4"]), helper.make_node("Div", ["x4", "d"], ["x"])]
    else:
        nodes += [helper.make_node("Identity", ["x1"], ["x"])]
    nodes += [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["map0"]),
        helper.make_node("GlobalAveragePool", ["map0"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["logits0"], transB=1),
        helper.make_node("ArgMax", ["logits0"], ["best"], axis=1, keepdims=0),
        *(helper.make_node("Cast", [f"{name}0"], [name], to=TYPES[output]) for name in ("map", "logits")),
    ]
    starts = [helper.make_tensor_value_info("pictures", TYPES[kind], ["batch", *shape])]
    types = {"best": TensorProto.INT64}
    results = [
        helper.make_tensor_value_info(name, types.get(name, TYPES[output]), ["batch", *ends[name]]) for name in outputs.split()
    ]
    save(onnx_model(nodes, starts, results, constants), str(path))


def expected(images: np.ndarray) -> dict[str, np.ndarray]:
    """The model's outputs of N×3×S×S normalised images, in NumPy."""
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    found = np.maximum(np.einsum("nchwij,ocij->nohw", windows, WEIGHTS["w"]), 0)
    logits = found.mean(axis=(2, 3)) @ WEIGHTS["v"].T
    return {"map": found, "logits": logits, "best": logits.argmax(axis=1)}


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(backend, "_current", None)
    chosen = backend.select("simulated")
    yield chosen
    chosen.simulator.close()


@pytest.fixture(scope="module")
def made(checkout, tmp_path_factory):
    """Makes plans of such models: once each."""
    folder, plans = tmp_path_factory.mktemp("plans"), {}

    def plan(**how):
        name = "-".join(str(value).replace(" ", "+") for value in how.values())
        if name not in plans:
            write_model(folder / f"{name}.onnx", **how)
            plans[name] = folder / f"{name}.plan"
            what = ("--onnx-file", folder / f"{name}.onnx", "--profile", "1,4,8", "--output", plans[name])
            done = checkout.run("0_build.py", *SIMULATED, *what)
            assert done.returncode == 0, done.stderr
        return plans[name]

    return plan


# -- types


@given(st.sampled_from(["f4", "f2", "i1"]), st.sampled_from([1, 3, 4]))
def test_bytes_come_back_from_every_type(kind, channels):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(channels, axis=1)
    there = converted(pixels, kind)
    assert there.dtype == kind and (converted(there, "u1") == pixels).all()


def test_bytes_are_normalised_as_torchvision_does_it_and_int8_is_less_128():
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 5, 4), np.uint8)
    exact = (pixels / 255 - MEAN.astype(float)[:, None, None]) / DEVIATION.astype(float)[:, None, None]
    assert np.abs(converted(pixels, "f4") - exact).max() < 1e-6
    assert (converted(pixels, "i1") == pixels.astype(int) - 128).all()


def test_synthetic_images_differ_in_their_colour_and_in_their_fine_noise():
    found = noise_images(range(16), (3, 7 * CELLS, 7 * CELLS), 1).reshape(16, 3, CELLS, 7, CELLS, 7)
    coarse = found.mean((3, 5), keepdims=True)
    alike = np.corrcoef((found - coarse).reshape(16, -1)) - np.eye(16)
    assert np.abs(alike).max() < 0.1 and coarse.mean((2, 4)).std(0).min() > 0.5


def test_what_bytes_do_not_have_is_clipped():
    assert (converted(np.array([[[-9.0]], [[0.0]], [[9.0]]], "f4"), "u1").ravel() == [0, 116, 255]).all()


@pytest.mark.parametrize("last", [False, True])
def test_a_batch_of_either_layout_holds_the_same_pictures(last):
    batches = {kind: np.empty((3, 7, 9, 3) if last else (3, 3, 7, 9), kind) for kind in ("f4", "f2", "u1", "i1")}
    for batch in batches.values():
        Images(None, batch.shape[1:], seed=5).fill(batch)
    first = planes(batches["f4"])
    assert first.shape == (3, 3, 7, 9) and (planes(batches["u1"]) == converted(first, "u1")).all()
    assert np.abs(planes(batches["f2"]) - first).max() < 2e-3
    assert (planes(batches["i1"]).astype(int) + 128 == planes(batches["u1"])).all()


# -- outputs


def test_outputs_lie_behind_one_another_aligned():
    ends = [End("a", (-1, 3), "FLOAT"), End("b", (-1,), "INT64"), End("c", (-1, 2, 2), "HALF")]
    shape, dtype = packed(ends, 50)
    assert shape == (1,) and dtype.itemsize == 768 + 512 + 512
    assert [dtype.fields[name][1] for name in "abc"] == [0, 768, 1280]
    memory = np.zeros(shape, dtype)
    assert [array.shape for array in unpacked(memory)] == [(50, 3), (50,), (50, 2, 2)]
    few = first_rows(memory, ends, 2)
    few["b"] = 7
    assert np.shares_memory(few, memory) and few.dtype == packed(ends, 2)[1] and memory.view("u1")[256] == 7
    assert packed(ends[:1], 50) == ((50, 3), np.dtype("f4")) and first_rows(np.ones((4, 3), "f4"), ends[:1], 2).shape == (2, 3)


def test_differences_do_not_wrap_around_and_are_of_each_output_s_own_scale():
    assert verify.compare([np.array([[1]], "u1")], [np.array([[255]], "u1")]).largest == 254
    assert verify.compare([np.array([6e4], "f2")], [np.array([-6e4], "f2")]).largest == pytest.approx(1.2e5, rel=1e-3)
    dtype = packed([End("a", (2, 1), "FLOAT"), End("b", (2, 1), "FLOAT")], 2)[1]
    one, other = np.zeros((1,), dtype), np.zeros((1,), dtype)
    one["a"] = other["a"] = 1000
    one["b"], other["b"] = 1.0, 0.5
    found = verify.compare([one], [other])
    assert (found.largest, found.scale, found.same_top1) == (0.5, 0.5, None)


def test_what_is_no_number_or_another_integer_is_wrong():
    classes, infinite = np.array([[999]], "i8"), np.array([[-np.inf, 1.0]], "f4")
    for outputs, reference in ((classes - 1, classes), (infinite + 1e-3, infinite), (np.full((1, 2), np.nan, "f4"), infinite)):
        with pytest.raises(WrongOutputs):
            verify.check([outputs], [reference])
    assert verify.check([infinite, infinite], [infinite.copy(), infinite]).largest == 0
    assert verify.compare([infinite], [infinite.copy()]).largest == 0
    dtype = packed([End("a", (1, 2), "FLOAT"), End("b", (1, 2), "FLOAT")], 1)[1]
    one, other = np.zeros((1,), dtype), np.zeros((1,), dtype)
    one["a"], other["b"] = 0.001, np.nan
    assert verify.compare([one], [other]).largest == float("inf")


def test_a_plan_that_gives_nan_itself_is_no_mistake_of_the_pipeline():
    """Whatever the pipeline made of it: there is nothing to hold it to."""
    dtype = packed([End("a", (1, 2), "HALF"), End("b", (1, 2), "INT32")], 1)[1]
    several, numbers = np.zeros((1,), dtype), np.zeros((1,), dtype)
    several["a"][0, 0, 1] = np.nan
    for reference, outputs in ((np.array([[0, np.nan]], "f4"), np.zeros((1, 2), "f4")), (several, several), (several, numbers)):
        with pytest.raises(EnvironmentFault, match=r"the plan itself gives NaN, run serially \(batch 1\)"):
            verify.check([numbers, outputs], [numbers, reference])
    with pytest.raises(WrongOutputs):
        verify.check([several], [numbers])


def test_every_input_but_the_images_is_constant(checkout, tmp_path):
    """One with an initializer is; another is named, before anything is built."""
    write_model(tmp_path / "one.onnx")
    model = load(str(tmp_path / "one.onnx"))
    model.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, []))
    save(model, str(tmp_path / "constant.onnx"))
    done = checkout.run(
        "0_build.py", *SIMULATED, "--onnx-file", tmp_path / "constant.onnx", "--output", tmp_path / "constant.plan"
    )
    assert done.returncode == 0, done.stderr
    model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, ["batch", 1]))
    save(model, str(tmp_path / "two.onnx"))
    done = checkout.run("0_build.py", *SIMULATED, "--onnx-file", tmp_path / "two.onnx", "--output", tmp_path / "two.plan")
    assert done.returncode == 3 and not (tmp_path / "two.plan").exists()
    assert "scale must be constant" in " ".join(done.stderr.split()) and done.stderr.count("error:") == 1


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("last", [False, True])
def test_a_plan_of_any_input_sees_the_same_pictures(made, here, kind, last):
    engine = Engine(made(kind=kind, last=last))
    assert engine.input_type == kind and engine.classifies
    batch = np.empty(engine.input_shape(4), engine.input_type)
    Images(None, batch.shape[1:], seed=5).fill(batch)
    (logits,) = verify.run_serially(engine, [batch])
    assert np.abs(logits - expected(converted(planes(batch), "f4"))["logits"]).max() < 1e-4
    floats = np.empty((4, 3, SIDE, SIDE), "f4")
    Images(None, floats.shape[1:], seed=5).fill(floats)
    rounded = converted(converted(floats, "u1"), "f4") if kind in ("u1", "i1") else floats
    assert np.abs(logits - expected(rounded)["logits"]).max() < 1e-2


def test_several_outputs_of_several_types_come_back_in_one_copy(made, here):
    engine = Engine(made(kind="u1", outputs="logits map best", output="f2"))
    assert [end.type for end in engine.outputs] == ["f2", "f2", "i8"] and not engine.classifies
    batches = [np.empty(engine.input_shape(size), "u1") for size in (4, 3)]
    for batch in batches:
        Images(None, batch.shape[1:], seed=5).fill(batch)
    for batch, outputs in zip(batches, verify.run_serially(engine, batches)):
        right = expected(converted(batch, "f4"))
        for end, found in zip(engine.outputs, unpacked(outputs)):
            assert found.shape[0] == len(batch) and np.abs(found - right[end.name]).max() < 1e-2, end


@pytest.mark.parametrize("stage", ["1_baseline", "5_multi_streams", "7_cuda_graph", "8_multi_context", "9_multi_profiles"])
@pytest.mark.parametrize("how", [{"kind": "u1", "last": True}, {"kind": "f2", "outputs": "best map", "output": "f2"}])
def test_every_stage_goes_by_the_plan(checkout, made, stage, how):
    done = checkout.run(f"{stage}.py", *SIMULATED, "--plan", made(**how), "--batch", "4", "--batches", "8")
    assert done.returncode == 0 and "identical to" in done.stdout, done.stdout + done.stderr


def test_fp16_logits_are_classified_in_fp32(checkout, made, tmp_path):
    plan, path = made(kind="u1", output="f2"), tmp_path / "predictions.csv"
    done = checkout.run(
        "4_use_fp16.py", *SIMULATED, "--plan", plan, "--precision", "fp32", "--batch", "4", "--predictions", path
    )
    assert done.returncode == 0, done.stderr
    batch = np.empty((4, 3, SIDE, SIDE), "u1")
    Images(None, batch.shape[1:], seed=10088).fill(batch)
    logits = expected(converted(batch, "f4"))["logits"]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = list(csv.DictReader(path.open()))[:4]
    assert [float(row["probability"]) for row in rows] == pytest.approx(shares.max(axis=1).tolist(), abs=2e-3)
