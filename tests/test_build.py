"""The build: what it refuses, what it lets pass, what it leaves behind; and what it learns of an engine's layers."""

from __future__ import annotations

import _thread
import hashlib
import importlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper

from common import layers
from common.building import Building, take_timings
from common.errors import EnvironmentFault
from sim import network
from sim import tensorrt as trt
from tests.conftest import SIMULATED, onnx_model

TINY = ("--onnx-file", "tiny.onnx", "--profile", "1,8,16")


def build(checkout, plan, *options, backend=SIMULATED):
    return checkout.run("0_build.py", *backend, "--output", plan, *(options or TINY))


def test_two_who_want_one_plan_build_it_once(checkout, tmp_path):
    """Side by side they would disturb one another's timings, and one's sidecar could come to lie beside the other's plan."""
    folder = tmp_path / "checkout"
    shutil.copytree(checkout.folder, folder)
    shutil.rmtree(folder / "plans")
    words = [sys.executable, "4_use_fp16.py", *SIMULATED, "--batch", "2", "--no-controls", "--batches", "4"]
    both = [subprocess.Popen(words, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted("building it: python 0_build.py" in err for _, err in said) == [False, True]


# -- a batch that the model has fixed


@pytest.fixture
def fixed(checkout, tmp_path):
    """The tiny model for batches of 4 and no other."""
    model = onnx.load(str(checkout.folder / "tiny.onnx"))
    for end in (model.graph.input[0], model.graph.output[0]):
        end.type.tensor_type.shape.dim[0].Clear()
        end.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, str(tmp_path / "fixed.onnx"))
    return tmp_path / "fixed.onnx"


@pytest.mark.parametrize("backend", ["simulated", "rtx"])
def test_a_fixed_batch_is_the_profile(checkout, tmp_path, fixed, backend):
    if backend == "rtx":
        pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    done = build(checkout, tmp_path / "x.plan", "--onnx-file", fixed, backend=("--backend", backend))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "x.plan.json").read_text())["profiles"] == [[4, 4, 4]]
    done = build(checkout, tmp_path / "y.plan", "--onnx-file", fixed, "--profile", "1,4,8", backend=("--backend", backend))
    assert done.returncode == 2 and "takes batches of 4 only: --profile 4,4,4" in " ".join(done.stderr.split())


PROFILES = {  # shapes of a profile, and whether they fit images N×3×32×32 and 4×3×32×32
    "any batch": ([(1, 3, 32, 32), (8, 3, 32, 32), (16, 3, 32, 32)], True, False),
    "the fixed batch": ([(4, 3, 32, 32)] * 3, True, True),
    "another batch": ([(8, 3, 32, 32)] * 3, True, False),
    "another image": ([(4, 3, 30, 30)] * 3, False, False),
    "none": (None, False, True),
}


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("library", ["sim.tensorrt", "tensorrt_rtx"])
def test_the_simulator_refuses_the_profiles_that_tensorrt_refuses(checkout, fixed, simulator, library, name):
    """The real builder and the simulated one are asked the same; the answer is the real one's."""
    trt = pytest.importorskip(library, reason="TensorRT for RTX is not installed")
    shapes, *fits = PROFILES[name]
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    for file, right in zip((checkout.folder / "tiny.onnx", fixed), fits):
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        assert parser.parse_from_file(str(file))
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        if shapes:
            profile.set_shape("images", *shapes)
            assert config.add_optimization_profile(profile) == 0
        assert (builder.build_serialized_network(network, config) is not None) == right, file.name


# -- timings of kernels


@pytest.mark.parametrize("made, each, groups, right", [(8, 3, 1, 1), (9, 1, 3, 1), (8, 4, 1, 0), (8, 3, 2, 0), (8, 1, 3, 0)])
def test_weights_that_are_not_for_their_input_are_refused_by_the_build(simulator, capsys, made, each, groups, right):
    """ONNX's checker lets them pass; what runs them does not."""
    ends = [helper.make_tensor_value_info(name, 1, ["n", channels, 8, 8]) for name, channels in (("x", 3), ("y", made))]
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 1, 1, 1], group=groups)
    model = onnx_model([node], ends[:1], ends[1:], {"w": np.ones((made, each, 3, 3), "f4")})
    builder = trt.Builder(trt.Logger())
    network, config, profile = builder.create_network(), builder.create_builder_config(), builder.create_optimization_profile()
    assert trt.OnnxParser(network, trt.Logger()).parse(model.SerializeToString())
    profile.set_shape("x", *[(1, 3, 8, 8)] * 3)
    config.add_optimization_profile(profile)
    assert (builder.build_serialized_network(network, config) is not None) == right
    assert right or "conv: its input has 3 channels, and its weights" in capsys.readouterr().err


def test_timings_of_another_tensorrt_are_passed_over(checkout, tmp_path):
    timings, plan = tmp_path / "timings", tmp_path / "x.plan"
    timings.write_bytes(b"of another GPU")
    done = build(checkout, plan, *TINY, "--timing-cache", timings)
    assert done.returncode == 0 and plan.exists(), done.stderr
    assert "are not used: set_timing_cache failed" in " ".join(done.stderr.split())
    assert timings.read_bytes() != b"of another GPU"
    assert "not used" not in build(checkout, plan, *TINY, "--timing-cache", timings).stderr


def test_no_plan_is_lost_to_timings_that_cannot_be_kept(checkout, tmp_path):
    done = build(checkout, tmp_path / "x.plan", *TINY, "--timing-cache", "/proc/nowhere/timings")
    assert done.returncode == 0 and "timings are not kept: cannot write" in " ".join(done.stderr.split())
    assert (tmp_path / "x.plan.json").exists()


def test_timings_and_the_plan_cannot_be_one_file(checkout, tmp_path):
    done = build(checkout, tmp_path / "x.plan", *TINY, "--timing-cache", tmp_path / "x.plan")
    assert done.returncode == 2 and "cannot be one file" in " ".join(done.stderr.split())


def test_a_library_without_a_timing_cache_is_not_asked_for_one(tmp_path):
    take_timings(SimpleNamespace(), None)


# -- the build's own thread


def test_the_builder_has_stopped_when_an_interrupt_is_raised():
    """It is told through its progress monitor; a process that ends while it works ends in a fault of memory."""
    config, stopped = SimpleNamespace(progress_monitor=None), threading.Event()
    building = Building(SimpleNamespace(IProgressMonitor=type("IProgressMonitor", (), {})), config)

    def work():
        config.progress_monitor.phase_start("Building", None, 1000)
        while config.progress_monitor.step_complete("Building", 1):
            time.sleep(0.01)
        time.sleep(0.5)  # it does not stop at once
        stopped.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started with it ignored
    threading.Timer(0.3, _thread.interrupt_main).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            building.wait(work)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.is_set()


def test_what_the_builder_raises_is_what_the_build_raises():
    with pytest.raises(ZeroDivisionError):
        Building(SimpleNamespace(), SimpleNamespace()).wait(lambda: 1 // 0)


# -- what is left behind

OTHER_PRECISION = """
import runpy, sys
from common import layers
layers.layer_precision = lambda layer: "fp32"
sys.argv = ["0_build.py", *sys.argv[1:]]
runpy.run_path("0_build.py", run_name="__main__")
"""


def test_a_plan_that_is_not_what_was_asked_for_replaces_none(checkout, tmp_path):
    plan = tmp_path / "x.plan"
    assert build(checkout, plan, "--fp16", *TINY).returncode == 0
    before = plan.read_bytes(), (tmp_path / "x.plan.json").read_bytes()
    command = ("-c", OTHER_PRECISION, *SIMULATED, "--fp16", *TINY[:2], "--profile", "1,4,4", "--output", plan)
    done = checkout.run(*command)
    assert done.returncode == 3 and "is no fp16 engine" in " ".join(done.stderr.split()), done.stderr
    assert (plan.read_bytes(), (tmp_path / "x.plan.json").read_bytes()) == before


# -- an engine's layers, as TensorRTs tell them

WEIGHTS = {"Name": "w", "Dimensions": [64, 4, 7, 7], "Datatype": "Int8"}
SCALES = {"Name": "s", "Dimensions": [1, 64, 1, 1], "Datatype": "Float"}
FLOAT = [{"Name": "y", "Dimensions": [-1, 64, 112, 112], "Datatype": "Float"}]


@pytest.mark.parametrize(
    "layer, precision",
    [
        ({"LayerType": "correlation", "Constants": [SCALES, WEIGHTS], "Outputs": FLOAT}, "int8"),
        ({"LayerType": "CaskConvolution", "Weights": {"Type": "Int8", "Count": 9408}, "Outputs": FLOAT}, "int8"),
        ({"LayerType": "CaskPooling", "Weights": {"Type": "Float", "Count": 0}, "Outputs": [{"Datatype": "Half"}]}, "fp16"),
        ({"LayerType": "kgen", "Constants": [SCALES], "Outputs": [{"Datatype": "Half"}]}, "fp16"),
        ({"LayerType": "shape_call", "Outputs": FLOAT}, None),
    ],
)
def test_a_layer_works_in_the_precision_of_its_weights(layer, precision):
    assert layers.layer_precision(layer) == precision


def test_an_engine_without_int8_is_of_the_precision_of_most_layers():
    layers.require_precision(Counter(fp16=21, fp32=2), "fp16", Path("x.plan"))
    with pytest.raises(EnvironmentFault, match="its layers work in 21 fp32, 2 fp16"):
        layers.require_precision(Counter(fp16=2, fp32=21), "fp16", Path("x.plan"))
    assert layers.precision_of(Counter(fp16=21, fp32=2)) == "fp16" and layers.precision_of({}) is None


def test_an_engine_with_layers_in_int8_is_an_int8_engine():
    """A file may have a part of it quantized; at least half of that must work in INT8."""
    layers.require_precision(Counter(fp16=90, int8=4), "int8", Path("x.plan"), quantized=8)
    with pytest.raises(EnvironmentFault, match=r"no int8 engine: its layers work in 131 fp16, 40 int8 \(81 are quantized in"):
        layers.require_precision(Counter(fp16=131, int8=40), "int8", Path("x.plan"), quantized=81)
    for found, of, other in ((Counter(fp16=90, int8=81), "int8", "fp16"), (Counter(fp16=90, fp32=81), "fp16", "int8")):
        layers.require_precision(found, of, Path("x.plan"))
        assert layers.precision_of(found) == of
        with pytest.raises(EnvironmentFault, match=f"is no {other} engine: its layers work in 90 fp16, "):
            layers.require_precision(found, other, Path("x.plan"))


def test_a_simulated_parser_takes_operators_of_onnx_only():
    """As TensorRT's; and weights that are inputs as well, which they were in old files."""
    images, weight, logits = (
        helper.make_tensor_value_info(*each) for each in (("x", 1, ["n", 4]), ("w", 1, [4, 4]), ("y", 1, ["n", 4]))
    )
    for node, said in (
        (helper.make_node("MatMul", ["x", "w"], ["y"]), ""),
        (helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft"), "Gelu: no operator of ONNX's"),
    ):
        model = onnx_model([node], [images, weight], [logits], {"w": np.eye(4, dtype=np.float32)})
        model.ir_version = 3
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        made = trt.Builder(trt.Logger()).create_network()
        parser = trt.OnnxParser(made, trt.Logger())
        assert parser.parse(model.SerializeToString()) is (not said)
        assert said == (parser.get_error(0).desc() if parser.num_errors else "") and made.num_inputs == 1
        assert said or len(network.layers(onnx.load_from_string(made._model))) == 3
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("com.microsoft", "Gelu", ["a"], ["b"], [node], model.opset_import[:1]))
    model.ir_version = 8
    assert trt.OnnxParser(trt.Builder(trt.Logger()).create_network(), trt.Logger()).parse(model.SerializeToString())
    del model.graph.input[1], model.graph.node[:], model.functions[:]
    model.graph.node.append(helper.make_node("Gelu", ["x"], ["z"], domain="com.microsoft"))
    model.graph.node.extend([helper.make_node("MatMul", ["z", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])])
    with pytest.raises(ValueError, match="a: nothing tells the shape of its output"):
        network.layers(model)


NEW_LOG = """Layers:
Name: __mye1061_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:
Name: conv_myl0_1, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [-1,3,32,32], Datatype: Int8, Format: (a) b }], \
Constants: [ { Name: w, Dimensions: [64,3,7,7], Strides: [1], Datatype: Int8, Format: (a) b }, \
{ Name: s, Dimensions: [1], Datatype: Float, Format: (a) b }], Outputs: [ { Name: y, Dimensions: [-1,64], Datatype: Float }], \
TacticName: stub, StreamId: 0, Metadata: [ONNX Layer: /conv1/Conv]\x1f[ONNX Layer: /relu/Relu]
"""
OLD_LOG = """Engine Layer Information:
Layer(Reformat): Reformatting CopyNode for Input Tensor 0 to conv1, Tactic: 0x0, x (Float[-1,3,32,32]) -> r (Half[-1,3:4,32,32])
Layer(CaskConvolution): /conv1/Conv + /relu/Relu, Tactic: 0x47, r (Half[-1,3:4,32,32]) -> y (Half[-1,64:8,16,16])
Layer(CaskGemmConvolution): /fc/Gemm, Tactic: 0x1, y[Half(-1,64,1,1)] -> z[Half(-1,10,1,1)]
"""


def test_a_builder_s_log_tells_the_layers():
    new, old = layers.logged(NEW_LOG), layers.logged(OLD_LOG)
    assert layers.names(new) == ["__mye1061_0_myl0_0", "/conv1/Conv + /relu/Relu"] and layers.precisions(new) == {"int8": 1}
    assert layers.names(old)[1:] == ["/conv1/Conv + /relu/Relu", "/fc/Gemm"] and layers.precisions(old) == {"fp16": 2}


def test_a_network_works_in_the_precision_of_its_weights():
    """RTX's builder makes such layers of a quantized model of two convolutions whose pictures are turned and scaled before."""
    moved = [{"LayerType": "kgen", "Constants": [SCALES], "Outputs": FLOAT}] * 3
    product = {"LayerType": "gemm", "Constants": [{"Dimensions": [8, 10], "Datatype": "Float"}]}
    convolutions = [{"LayerType": "correlation", "Constants": [WEIGHTS, SCALES], "Outputs": FLOAT}] * 2
    assert layers.precisions([*moved, product, *convolutions]) == {"fp32": 1, "int8": 2}
    assert layers.precisions([*moved, "a name"]) == {"fp32": 3}


def test_the_order_of_layers_decides_no_precision():
    for found in (["int8", "fp32", "fp32", "int8"], ["fp32", "int8", "int8", "fp32"]):
        layers.require_precision(Counter(found), "int8", Path("x.plan"))
        with pytest.raises(EnvironmentFault, match="is no fp16 engine"):
            layers.require_precision(Counter(found), "fp16", Path("x.plan"))


def test_the_builder_s_log_is_kept(simulator):
    checked, backend = importlib.import_module("common.checked"), importlib.import_module("common.backend")
    backend.select("simulated")
    logger = checked.logger()
    logger.log(logger.VERBOSE, NEW_LOG)
    logger.log(logger.VERBOSE, "something else")
    assert logger.layers == NEW_LOG


@pytest.mark.parametrize("words", [("--fp16",), ("--input", "bytes"), ("--input", "bytes", "--layout", "nhwc", "--fp16")])
def test_another_model_of_the_ladder_s_name_does_not_take_its_plan(checkout, fixed, words):
    own = fixed.rename(fixed.with_name("resnet18.onnx"))
    kept = {path: path.read_bytes() for path in checkout.models.glob("*.*")}
    done = checkout.run("0_build.py", *SIMULATED, "--onnx-file", own, *words)
    assert done.returncode == 2 and "is the ladder's own: add --output" in done.stderr
    assert kept == {path: path.read_bytes() for path in kept}


@pytest.mark.parametrize("option", ["--output", "--timing-cache"])
def test_the_model_is_never_overwritten(checkout, tmp_path, fixed, option):
    content = fixed.read_bytes()
    done = build(checkout, tmp_path / "x.plan", "--onnx-file", fixed, option, fixed)
    assert done.returncode == 2 and done.stderr.count("error:") == 1 and fixed.read_bytes() == content, done.stderr


@pytest.mark.parametrize("labels", [None, "cat", ["cat", 5], {"cat": 1}])
def test_class_names_of_another_kind_are_left_out(checkout, tmp_path, fixed, labels):
    facts = {"sha256": hashlib.sha256(fixed.read_bytes()).hexdigest(), "labels": labels}
    fixed.with_name("fixed.onnx.json").write_text(json.dumps(facts))
    done = build(checkout, tmp_path / "x.plan", "--onnx-file", fixed)
    assert done.returncode == 0 and json.loads((tmp_path / "x.plan.json").read_text())["labels"] == [], done.stderr
