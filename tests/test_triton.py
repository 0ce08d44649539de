"""A plan as a model of Triton, read by the schema of the server's own package; whatever the plan takes; whole or not there."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import EnvironmentFault
from common.tensors import TYPES, End
from export import triton
from tests.conftest import SIMULATED
from tests.test_bad_input import fails
from tests.test_inputs import write_model

EXPORT = ("-m", "scripts.export_triton", *SIMULATED)
NAMES = {"f4": "FP32", "f2": "FP16", "u1": "UINT8", "i1": "INT8", "i4": "INT32", "i8": "INT64", "?": "BOOL"}


def parsed(text: str):
    """The configuration as the server reads it. The schema's module alone: its package wants gRPC."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("tritonclient is not installed")
    from google.protobuf import text_format

    if (schema := sys.modules.get("model_config_pb2")) is None:
        path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
        spec = importlib.util.spec_from_file_location("model_config_pb2", path)
        schema = sys.modules["model_config_pb2"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(schema)
    config = text_format.Parse(text, schema.ModelConfig())
    check(config, schema)
    return config


def check(config, schema) -> None:
    """What Triton's TensorRT backend wants beyond the schema (its ``ValidateGraphSpec``, ``GetProfileIndex``)."""
    largest = config.max_batch_size
    for spec in config.optimization.cuda.graph_spec:
        assert spec.batch_size == 0 if largest == 0 else 1 <= spec.batch_size <= largest
        assert [[*shape.dim] for shape in spec.input.values()] == [[*config.input[0].dims]]
    assert config.HasField("dynamic_batching") is (largest > 0)
    assert all(0 < size <= largest for size in config.dynamic_batching.preferred_batch_size)
    for end in (*config.input, *config.output):
        assert len(end.dims) > 0
        assert end.data_type != schema.TYPE_INVALID


def export(checkout, repository, plan, *options):
    done = checkout.run(*EXPORT, plan, repository, *options)
    assert done.returncode == 0, done.stderr
    assert "simulated plan: Triton loads none" in done.stderr
    return done


def test_the_ladder_s_plan(checkout, tmp_path):
    plan = checkout.plans / "resnet18-fp16.simulated.plan"
    done = export(checkout, tmp_path / "all served", plan)
    assert f"'--model-repository={tmp_path / 'all served'}'" in done.stdout
    folder = tmp_path / "all served" / "resnet18-fp16"
    assert {path.name for path in folder.rglob("*")} == {"config.pbtxt", "1", "model.plan"}
    assert (folder / "1" / "model.plan").read_bytes() == plan.read_bytes()
    assert oct(folder.stat().st_mode)[-2:] == "55"  # the server may be another user
    config = parsed((folder / "config.pbtxt").read_text())
    assert (config.name, config.platform, config.max_batch_size) == ("resnet18-fp16", "tensorrt_plan", 256)
    assert [(each.name, [*each.dims]) for each in config.input] == [("images", [3, 224, 224])]
    assert [(each.name, [*each.dims], each.label_filename) for each in config.output] == [("logits", [1000], "")]
    assert [*config.dynamic_batching.preferred_batch_size] == [128]
    group = config.instance_group[0]
    assert (group.Kind.Name(group.kind), group.count, [*group.profile]) == ("KIND_GPU", 2, [])
    cuda = config.optimization.cuda
    assert cuda.graphs and cuda.output_copy_stream and [spec.batch_size for spec in cuda.graph_spec] == [1, 128]
    assert f"--pinned-memory-pool-byte-size={2 * 2 * 256 * 4 * (3 * 224 * 224 + 1000)}" in done.stdout


def test_profiles_labels_and_several_outputs(checkout, tmp_path):
    write_model(tmp_path / "mine.onnx", "u1", outputs="logits map best")
    built = checkout.run(
        *("0_build.py", *SIMULATED, "--onnx-file", tmp_path / "mine.onnx", "--output", tmp_path / "mine.plan"),
        *("--profile", "4,4,8", "--profile", "2,64,64"),
    )
    assert built.returncode == 0, built.stderr
    done = export(checkout, tmp_path, tmp_path / "mine.plan", "--name", "two", "--instances", "3", "--delay-us", "7")
    assert "no profile takes batches of 1: Triton" in done.stderr and "pinned" not in done.stdout
    config = parsed((tmp_path / "two" / "config.pbtxt").read_text())
    assert (config.max_batch_size, config.input[0].data_type) == (64, 2)  # UINT8
    assert [(each.name, each.data_type, [*each.dims]) for each in config.output] == [
        ("logits", 11, [5]),
        ("map", 11, [6, 16, 16]),
        ("best", 9, [1]),  # INT64, one number an image
    ]
    assert config.output[2].HasField("reshape") and [*config.output[2].reshape.shape] == []
    batching, group = config.dynamic_batching, config.instance_group[0]
    assert ([*batching.preferred_batch_size], batching.max_queue_delay_microseconds) == ([4, 64], 7)
    assert (group.count, [*group.profile]) == (3, ["0", "1"])
    assert [spec.batch_size for spec in config.optimization.cuda.graph_spec] == [2, 4, 64]


def test_a_plan_for_one_batch_size_and_with_labels(checkout, tmp_path):
    from onnx import load, save

    write_model(tmp_path / "wide.onnx", "i1")
    model = load(tmp_path / "wide.onnx")
    for end in (*model.graph.input, *model.graph.output):
        end.type.tensor_type.shape.dim[0].dim_value = 4
    save(model, str(tmp_path / "fixed.onnx"))
    plan = tmp_path / "fixed.plan"
    built = checkout.run("0_build.py", *SIMULATED, "--onnx-file", tmp_path / "fixed.onnx", "--output", plan)
    assert built.returncode == 0, built.stderr
    facts = json.loads((tmp_path / "fixed.plan.json").read_text())
    (tmp_path / "fixed.plan.json").write_text(json.dumps({**facts, "labels": ["a", "b", "c\nd", "é", "\ud800"]}))
    export(checkout, tmp_path / "served", plan)
    folder = tmp_path / "served" / "fixed"
    config = parsed((folder / "config.pbtxt").read_text())
    assert (config.max_batch_size, [*config.input[0].dims], config.input[0].data_type) == (0, [4, 3, 16, 16], 6)  # INT8
    assert [*config.output[0].dims] == [4, 5] and config.output[0].label_filename == "labels.txt"
    assert (folder / "labels.txt").read_text(encoding="utf-8").split("\n") == ["a", "b", "c d", "é", "\\ud800", ""]
    assert [spec.batch_size for spec in config.optimization.cuda.graph_spec] == [0]


sides = st.integers(1, 4000)
shapes = st.lists(sides, max_size=3).map(lambda side: (-1, *side))
ends = st.builds(End, st.text(min_size=1), shapes, st.sampled_from([*TYPES]))
triples = st.lists(st.lists(st.integers(1, 512), min_size=3, max_size=3).map(sorted).map(tuple), min_size=1, max_size=4)


@given(
    ends.filter(lambda end: len(end.shape) > 1),
    st.lists(ends, min_size=1, max_size=3),
    triples,
    st.booleans(),
    st.text(min_size=1),
    st.integers(1, 9),
    st.integers(0),
)
def test_what_is_written_is_what_the_engine_says(taken, given, profiles, fixed, name, count, delay):
    delay %= 1 << 64
    if fixed:
        profiles = [(profiles[0][0],) * 3]
        taken, *given = [end._replace(shape=(profiles[0][0], *end.shape[1:])) for end in (taken, *given)]
    engine = SimpleNamespace(plan=Path(f"{name}.plan"), input=taken, input_type=taken.type, outputs=given, profiles=profiles)
    engine.facts = {"gpu": name}
    config = parsed(triton.configuration(engine, name, count, delay))
    batches = {high for *_, high in profiles}
    assert (config.name, config.max_batch_size) == (name, 0 if fixed else max(batches))
    for ours, theirs in zip((taken, *given), (*config.input, *config.output)):
        shape = ours.shape if fixed else ours.shape[1:]
        assert (theirs.name, [*theirs.dims]) == (ours.name, [*shape] or [1])
        assert theirs.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[theirs.data_type].name == (
            f"TYPE_{NAMES[TYPES[ours.dtype]]}"
        )
    assert len(config.output) == len(given)
    assert config.instance_group[0].count == count
    assert [*config.instance_group[0].profile] == ([str(index) for index in range(len(profiles))] if len(profiles) > 1 else [])
    assert fixed or config.dynamic_batching.max_queue_delay_microseconds == delay


# -- whole, or not there


def test_what_cannot_be_exported(checkout, tmp_path):
    plan = checkout.plans / "resnet18-fp16.simulated.plan"
    fails(checkout.run(*EXPORT, tmp_path / "none.plan", tmp_path / "served"), 3, "there is no plan")
    cut = tmp_path / "cut.plan"
    cut.write_bytes(plan.read_bytes()[:-5])
    fails(checkout.run(*EXPORT, cut, tmp_path / "served"), 3, "is not a plan that this TensorRT can load")
    for name in ("a/b", ".", "..", "a\nb"):
        fails(checkout.run(*EXPORT, plan, tmp_path / "served", "--name", name), 2, "a model's name is that of a folder")
    assert not (tmp_path / "served").exists()
    (tmp_path / "served").write_text("a file")
    fails(checkout.run(*EXPORT, plan, tmp_path / "served"), 3, "cannot write", "served")
    assert (tmp_path / "served").read_text() == "a file"


def test_what_is_there_stays(checkout, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.pbtxt").write_text("by hand")
    plan = checkout.plans / "resnet18-fp16.simulated.plan"
    fails(checkout.run(*EXPORT, plan, tmp_path, "--name", "mine"), 3, "mine is there already", "another --name")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "config.pbtxt"]
    assert (tmp_path / "mine" / "config.pbtxt").read_text() == "by hand"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_ends_half_way_leaves_nothing(tmp_path, error):
    with pytest.raises(EnvironmentFault if isinstance(error, OSError) else KeyboardInterrupt):  # noqa: SIM117
        with triton.whole_folder(tmp_path / "served" / "mine") as folder:
            (folder / "1").mkdir()
            (folder / "config.pbtxt").write_text("half of it")
            raise error
    assert not [*(tmp_path / "served").iterdir()]


def test_a_plan_that_another_server_runs(monkeypatch, tmp_path):
    """TensorRT for RTX's plans are not Triton's."""
    kind = SimpleNamespace(backend="rtx", called="TensorRT for RTX")
    monkeypatch.setattr(triton.backend, "select", lambda name: SimpleNamespace(kind=kind))
    monkeypatch.setattr(sys, "argv", ["export_triton", "a.rtx.plan", str(tmp_path / "served")])
    with pytest.raises(EnvironmentFault, match="none of TensorRT for RTX"):
        triton.main()
    assert not (tmp_path / "served").exists()
