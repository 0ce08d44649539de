"""A user's mistake gets one line that says what was wrong and what mends it, the right exit code, and no traceback."""

from __future__ import annotations

import json
import os

import pytest

from tests.conftest import ROOT, run

STAGE = ("5_multi_streams.py", "--backend", "simulated")


def fails(done, code: int, *parts: str) -> str:
    text = " ".join(done.stderr.split())
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in text
    assert len([line for line in done.stderr.splitlines() if "error:" in line]) == 1, done.stderr
    for part in parts:
        assert part in text, text
    return text


def test_a_plan_that_is_not_there(plans, tmp_path):
    fails(run(*STAGE, "--plan", tmp_path / "none.plan"), 3, "there is no plan", "0_build.py --output")


def test_an_edited_plan(plans, tmp_path):
    plan = tmp_path / "edited.plan"
    content = bytearray((plans / "resnet18-fp16.simulated.plan").read_bytes())
    content[-1000] ^= 1
    plan.write_bytes(content)
    fails(run(*STAGE, "--plan", plan), 3, "is not a plan")


def test_a_foreign_file(plans, tmp_path):
    plan = tmp_path / "foreign.plan"
    plan.write_bytes(b"PK\\x03\\x04 something else altogether")
    fails(run(*STAGE, "--plan", plan), 3, "is not a plan")


def test_a_default_plan_of_another_tensorrt_is_built_again(plans):
    """After an upgrade the ladder's own plans are as good as missing; a plan that the user names is not touched."""
    sidecar = plans / "resnet18-fp32.simulated.plan.json"
    sidecar.write_text(sidecar.read_text().replace("+simulated", "+simulated.long.ago"))
    done = run("3_use_pin_memory.py", "--backend", "simulated", "--batch", "2", "--no-verify")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "was built by TensorRT" in said and "building it: python 0_build.py" in said
    assert "long.ago" not in sidecar.read_text()


def test_a_default_plan_of_an_earlier_onnx_file_is_built_again(plans):
    """After a new calibration the ladder's plans would otherwise be of different models, and their outputs not the same."""
    sidecar = plans / "resnet18-fp16.simulated.plan.json"
    facts = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**facts, "onnx_sha256": "0" * 64}))
    done = run("4_use_fp16.py", "--backend", "simulated", "--batch", "2", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert "was built from an earlier resnet18-fp16.onnx" in " ".join(done.stderr.split())
    assert json.loads(sidecar.read_text())["onnx_sha256"] == facts["onnx_sha256"]


def test_an_fp32_plan_where_fp16_is_meant(plans):
    fails(run(*STAGE, "--plan", plans / "resnet18-fp32.simulated.plan"), 3, "is not a fp16 engine", "0_build.py --fp16")


@pytest.mark.parametrize("options", [("--batch", "300"), ("--batch", "2", "--charge-batch", "300")])
def test_a_batch_beyond_the_profile(plans, options):
    fails(run(*STAGE, *options), 2, "300 does not fit", "1 to 256", "0_build.py --profile 1,300,300")


def test_an_unknown_device(plans):
    fails(run(*STAGE, "--device", "gtx-9000"), 2, "gtx-9000", "v100-sxm2-32gb")


def test_the_tensorrt_backend_without_a_gpu(plans):
    if os.path.exists("/dev/nvidia0"):
        pytest.skip("there is a GPU")
    fails(run("5_multi_streams.py", "--backend", "tensorrt"), 3, "--backend tensorrt:")


@pytest.mark.parametrize("option", ["--json", "--trace", "--predictions"])
def test_a_result_that_cannot_be_written(plans, option):
    fails(run(*STAGE, option, "/proc/nowhere/result"), 3, "cannot write /proc/nowhere/result")


def test_no_batch_to_warm_up_with(plans):
    fails(run(*STAGE, "--batches", "3", "--measure", "3"), 2, "no batch to warm up with")


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_batch_that_is_no_number(value):
    done = run(*STAGE, "--batch", value)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_images_that_are_not_there(plans, tmp_path):
    fails(run(*STAGE, "--images", tmp_path / "none"), 2, "no such file or folder")
    fails(run(*STAGE, "--images", tmp_path), 2, "holds no .jpg or .png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    fails(run(*STAGE, "--images", tmp_path), 2, "none of its 1 images can be read")


def test_more_memory_than_the_device_has(plans, tmp_path):
    plan = tmp_path / "huge.plan"
    built = run("0_build.py", "--backend", "simulated", "--fp16", "--profile", "1,8,30000", "--output", plan)
    assert built.returncode == 0, built.stderr
    fails(run(*STAGE, "--plan", plan, "--batch", "4"), 3, "GB on the GPU", "a batch of 30000", "0_build.py --profile 1,4,4")


# -- the build


def test_an_onnx_file_that_does_not_parse(tmp_path):
    onnx = tmp_path / "broken.onnx"
    onnx.write_bytes(b"not a model")
    done = run("0_build.py", "--backend", "simulated", "--onnx-file", onnx, "--output", tmp_path / "x.plan")
    fails(done, 3, "cannot parse")
    assert not (tmp_path / "x.plan").exists()


def test_an_onnx_file_that_is_not_there(tmp_path):
    fails(run("0_build.py", "--backend", "simulated", "--onnx-file", tmp_path / "none.onnx"), 2, "no such file")


@pytest.mark.parametrize("profile", ["1,2", "3,2,1", "0,1,2", "a,b,c"])
def test_a_profile_that_is_none(profile):
    done = run("0_build.py", "--profile", profile)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_weights_that_are_not_there(tmp_path):
    fails(run("0_build.py", "--export-only", "--weights", tmp_path / "none.pt", timeout=300), 2, "no such file")


def test_a_plan_is_written_whole_or_not_at_all(plans, tmp_path):
    fails(run("0_build.py", "--backend", "simulated", "--output", "/proc/nowhere/x.plan"), 3, "cannot write")
    assert not list(ROOT.glob("plans/.*"))


# -- the harness


def test_an_output_folder_that_cannot_be_written():
    done = run("-m", "scripts.profile_stages", "--backend", "simulated", "--out", "/proc/nowhere")
    assert done.returncode == 3 and "cannot write into /proc/nowhere" in done.stdout + done.stderr


def test_an_unknown_stage():
    done = run("-m", "scripts.profile_stages", "12_magic")
    assert done.returncode == 2 and "there is no stage 12_magic" in done.stderr


def test_comparing_an_empty_folder(tmp_path):
    done = run("-m", "scripts.compare", tmp_path)
    assert done.returncode == 3 and "no trace" in done.stdout
    assert run("-m", "scripts.compare", tmp_path / "none").returncode == 2
