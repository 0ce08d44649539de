"""A user's mistake gets one line that says what was wrong and what mends it, the right exit code, and no traceback."""

from __future__ import annotations

import os

import pytest

from tests.conftest import SIMULATED

STAGE = ("5_multi_streams.py", *SIMULATED)


def fails(done, code: int, *parts: str) -> str:
    text = " ".join(done.stderr.split())
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in text
    assert len([line for line in done.stderr.splitlines() if "error:" in line]) == 1, done.stderr
    for part in parts:
        assert part in text, text
    return text


def test_a_plan_that_is_not_there(checkout, tmp_path):
    fails(
        checkout.run(*STAGE, "--plan", tmp_path / "none.plan"),
        3,
        "there is no plan",
        "0_build.py --onnx-file MODEL.onnx --output",
    )


def test_an_edited_plan(checkout, tmp_path):
    plan = tmp_path / "edited.plan"
    content = bytearray((checkout.plans / "resnet18-fp16.simulated.plan").read_bytes())
    content[-1000] ^= 1
    plan.write_bytes(content)
    fails(checkout.run(*STAGE, "--plan", plan), 3, "is not a plan")


def test_a_foreign_file(checkout, tmp_path):
    plan = tmp_path / "foreign.plan"
    plan.write_bytes(b"PK\\x03\\x04 something else altogether")
    fails(checkout.run(*STAGE, "--plan", plan), 3, "is not a plan")


def test_an_fp32_plan_where_fp16_is_meant(checkout):
    fails(
        checkout.run(*STAGE, "--plan", checkout.plans / "resnet18-fp32.simulated.plan"),
        3,
        "is not a fp16 engine",
        "0_build.py --fp16",
    )


@pytest.mark.parametrize("options", [("--batch", "300"), ("--batch", "2", "--charge-batch", "300")])
def test_a_batch_beyond_the_profile(checkout, options):
    """The plan of its own that the hint builds leaves the ladder's alone."""
    command = "0_build.py --backend simulated --fp16 --profile 1,300,300 --output plans/resnet18-fp16-batch300.plan"
    said = fails(
        checkout.run(*STAGE, *options), 2, "300 does not fit", "1 to 256", command, "--plan plans/resnet18-fp16-batch300.plan"
    )
    assert said.count("--output") == 1


def test_an_unknown_device(checkout):
    fails(checkout.run(*STAGE, "--device", "gtx-9000"), 2, "gtx-9000", "v100-sxm2-32gb")


def test_the_tensorrt_backend_without_a_gpu(checkout):
    if os.path.exists("/dev/nvidia0"):
        pytest.skip("there is a GPU")
    fails(checkout.run("5_multi_streams.py", "--backend", "tensorrt"), 3, "--backend tensorrt:")


@pytest.mark.parametrize("option", ["--json", "--trace", "--predictions"])
def test_a_result_that_cannot_be_written(checkout, option):
    fails(checkout.run(*STAGE, option, "/proc/nowhere/result"), 3, "cannot write /proc/nowhere/result")


def test_no_batch_to_warm_up_with(checkout):
    fails(checkout.run(*STAGE, "--batches", "3", "--measure", "3"), 2, "no batch to warm up with")


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_batch_that_is_no_number(checkout, value):
    done = checkout.run(*STAGE, "--batch", value)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_images_that_are_not_there(checkout, tmp_path):
    fails(checkout.run(*STAGE, "--images", tmp_path / "none"), 2, "no such file or folder")
    fails(checkout.run(*STAGE, "--images", tmp_path), 2, "holds no .jpg or .png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    fails(checkout.run(*STAGE, "--images", tmp_path), 2, "none of its 1 images can be read")


def test_more_memory_than_the_device_has(checkout, tmp_path):
    plan = tmp_path / "huge.plan"
    built = checkout.run("0_build.py", *SIMULATED, "--fp16", "--profile", "1,8,30000", "--output", plan)
    assert built.returncode == 0, built.stderr
    fails(
        checkout.run(*STAGE, "--device", "v100-sxm2-32gb", "--plan", plan, "--batch", "4"),
        3,
        "GB on the GPU",
        "a batch of 30000",
        f"--profile 1,4,4 --output {tmp_path}/huge-batch4.plan",
    )


# -- the build


def test_an_onnx_file_that_does_not_parse(checkout, tmp_path):
    onnx = tmp_path / "broken.onnx"
    onnx.write_bytes(b"not a model")
    done = checkout.run("0_build.py", *SIMULATED, "--onnx-file", onnx, "--output", tmp_path / "x.plan")
    fails(done, 3, "cannot parse")
    assert not (tmp_path / "x.plan").exists()


def test_an_onnx_file_that_is_not_there(checkout, tmp_path):
    fails(checkout.run("0_build.py", *SIMULATED, "--onnx-file", tmp_path / "none.onnx"), 2, "no such file")


@pytest.mark.parametrize("profile", ["1,2", "3,2,1", "0,1,2", "a,b,c"])
def test_a_profile_that_is_none(checkout, profile):
    done = checkout.run("0_build.py", "--profile", profile)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_weights_that_are_not_there(checkout, tmp_path):
    fails(checkout.run("0_build.py", "--export-only", "--weights", tmp_path / "none.pt", timeout=300), 2, "no such file")


def test_a_plan_is_written_whole_or_not_at_all(checkout, tmp_path):
    fails(checkout.run("0_build.py", *SIMULATED, "--output", "/proc/nowhere/x.plan"), 3, "cannot write")
    assert not list(checkout.plans.glob(".*"))


# -- the harness


def test_an_output_folder_that_cannot_be_written(checkout):
    done = checkout.run("-m", "harness.profile", *SIMULATED, "--out", "/proc/nowhere")
    assert done.returncode == 3 and "cannot write into /proc/nowhere" in done.stdout + done.stderr


def test_an_unknown_stage(checkout):
    done = checkout.run("-m", "harness.profile", "12_magic")
    assert done.returncode == 2 and "there is no stage 12_magic" in done.stderr


def test_comparing_an_empty_folder(checkout, tmp_path):
    done = checkout.run("-m", "scripts.compare", tmp_path)
    assert done.returncode == 3 and "no trace" in done.stdout
    assert checkout.run("-m", "scripts.compare", tmp_path / "none").returncode == 2
