"""A user's mistake gets one line that says what was wrong and what mends it, the right exit code, and no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import SIMULATED

STAGE = ("5_multi_streams.py", *SIMULATED)


def tiny(checkout) -> tuple[str, ...]:
    return ("--plan", str(checkout.tiny), "--batch", "2", "--charge-batch", "2048")


def fails(done, code: int, *parts: str) -> str:
    text = " ".join(done.stderr.split())
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in text
    assert len([line for line in done.stderr.splitlines() if "error:" in line]) == 1, done.stderr
    for part in parts:
        assert part in text, text
    return text


@pytest.mark.parametrize("name", ["model.onnx", "notes.txt", "model.engine"])
@pytest.mark.parametrize("sidecar", [False, True])
def test_a_file_that_is_no_plan_is_not_to_be_overwritten(checkout, tmp_path, name, sidecar):
    """An ONNX file given as the plan is the likeliest of mistakes: the hint names it as the model."""
    file = tmp_path / name
    file.write_text("not a plan")
    if sidecar:
        (tmp_path / f"{name}.json").write_text("{}")
    model = file if file.suffix == ".onnx" else "MODEL.onnx"
    told = fails(checkout.run(*STAGE, "--plan", file), 3, f"--onnx-file {model} --output {file.with_suffix('.plan')}")
    assert f"--output {file}" not in told


@pytest.mark.parametrize("words", [("--plan", ""), ("--images=",)])
def test_an_empty_argument_is_not_this_folder(run, words):
    fails(run(*STAGE, *words), 2, f"{words[0] if len(words) == 1 else 'an argument'} is empty: a variable that is not set?")


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


@pytest.mark.parametrize("plan, meant, mend", [("fp32", "fp16", "0_build.py --fp16"), ("fp16", "fp32", "0_build.py")])
def test_a_plan_of_another_precision_than_is_meant(checkout, plan, meant, mend):
    done = checkout.run(*STAGE, "--plan", checkout.plans / f"resnet18-{plan}.simulated.plan", "--precision", meant)
    fails(done, 3, f"is no {meant} engine", f"python {mend}")
    assert "--fp32" not in done.stderr


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
    fails(checkout.run(*STAGE, "--batches", "3", "--measure", "3"), 2, "leaves none to warm up with")


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_batch_that_is_no_number(checkout, value):
    done = checkout.run(*STAGE, "--batch", value)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_layout_beside_a_plan_that_has_its_own(checkout):
    """It would be passed over in silence."""
    words = ("10_uint8_input.py", *SIMULATED, *tiny(checkout))
    fails(
        checkout.run(*words, "--layout", "nhwc"),
        2,
        "--layout nhwc is for the stage's own plan: ",
        "tiny.plan takes what it was",
    )


def test_a_version_compatible_plan_that_is_not_there(checkout, tmp_path):
    built = f"--output {tmp_path / 'none.vc.plan'} --version-compatible"
    fails(checkout.run(*STAGE, "--plan", tmp_path / "none.vc.plan"), 3, "there is no plan", built)


def test_images_to_calibrate_with_that_are_not_there(checkout, tmp_path):
    words = ("0_build.py", *SIMULATED, "--int8", "--onnx-file", "tiny.onnx", "--output", tmp_path / "x.plan")
    fails(
        checkout.run(*words, "--calibration-images", tmp_path / "none"), 2, f"--calibration-images {tmp_path / 'none'}: no such"
    )
    fails(checkout.run(*words, "--calibration-images", tmp_path), 2, f"--calibration-images {tmp_path}: it holds no")


def test_images_that_are_not_there(checkout, tmp_path):
    fails(checkout.run(*STAGE, "--images", tmp_path / "none"), 2, "no such file or folder")
    fails(checkout.run(*STAGE, "--images", tmp_path), 2, "holds no .bmp, .jpeg, .jpg, .png")
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


def test_a_mistake_of_ours_is_one_sentence_and_a_code_of_its_own(checkout):
    """1 stays "wrong outputs": it is not for what nobody has foreseen."""
    (checkout.folder / "mistaken.py").write_text("from common import program\nprogram.run(lambda: {}['plan'])\n")
    said = fails(checkout.run("mistaken.py"), 70, "a mistake of ours, KeyError: 'plan' (mistaken.py:2)", "--traceback")
    assert len(said.split("mistaken: ")) == 2
    done = checkout.run("mistaken.py", "--traceback")
    assert done.returncode == 70 and "Traceback" in done.stderr


@pytest.mark.parametrize("module", ["compare", "compare_engines", "predict", "calibrate", "update_readme"])
def test_every_command_has_a_manual(checkout, module):
    done = checkout.run("-m", f"scripts.{module}", "--help")
    assert done.returncode == 0 and "--traceback" in done.stdout and done.stderr == ""


def test_a_terminal_that_knows_ascii_only(checkout):
    done = checkout.run(*STAGE, *tiny(checkout), env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0 and "per batch" in done.stdout, done.stderr


def test_nobody_reads_the_output_any_more(checkout, tmp_path):
    """``… | head -1``: the record is written all the same."""
    record = tmp_path / "record.json"
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, *STAGE, *tiny(checkout), "--json", record]
    done = subprocess.run(list(map(str, command)), cwd=checkout.folder, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.returncode == 0 and record.exists(), done.stderr


def test_a_named_plan_is_run_as_it_is(checkout, tmp_path):
    """At a batch that it takes and in the precision that it has, without an option that says so."""
    plan, record = tmp_path / "mine.plan", tmp_path / "record.json"
    shape = ("--onnx-file", "tiny.onnx", "--profile", "1,32,64", "--output", plan)
    assert checkout.run("0_build.py", *SIMULATED, *shape).returncode == 0
    done = checkout.run(*STAGE, "--plan", plan, "--json", record)
    assert done.returncode == 0, done.stderr
    facts = json.loads(record.read_text())
    assert (facts["precision"], facts["computed_batch"], facts["batch"]) == ("fp32", 8, 32)


def test_pictures_of_one_name_in_two_folders(checkout, tmp_path):
    """And one whose name a spreadsheet would take for a formula; WebP is read as well."""
    from PIL import Image

    for name in ("a/1.jpg", "b/1.webp", "b/1.jpg", "=1+1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    predictions = tmp_path / "predictions.csv"
    done = checkout.run(*STAGE, *tiny(checkout), "--images", tmp_path, "--predictions", predictions)
    assert done.returncode == 0, done.stderr
    names = [line.split(",")[0] for line in predictions.read_text().splitlines()[1:]]
    assert names == ["'=1+1.png", "a/1.jpg", "b/1.jpg", "b/1.webp"]


def test_a_checkout_whose_path_has_signs_of_an_address(checkout, tmp_path):
    folder = shutil.copytree(checkout.folder, tmp_path / "a#b%20c?d=e")
    trace = folder / "out" / "5_multi_streams.sqlite"
    trace.parent.mkdir()
    moved = type(checkout)(folder)
    done = moved.run(*STAGE, *tiny(moved), "--trace", trace)
    assert done.returncode == 0, done.stderr
    done = moved.run("-m", "scripts.compare", "out")
    assert done.returncode == 0 and "5_multi_streams" in done.stdout, done.stdout + done.stderr


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
    fails(checkout.run("0_build.py", *SIMULATED, "--output", "/proc/nowhere/x.plan"), 3, "/proc/nowhere")
    assert not list(checkout.plans.glob(".*"))


def test_a_plan_in_place_of_a_folder_is_refused_before_the_model_is_read(checkout, tmp_path):
    words = ("--weights", tmp_path / "none.pt", "--output", tmp_path)
    fails(checkout.run("0_build.py", *SIMULATED, *words), 3, "not an ordinary file")


# -- the harness


def test_an_output_folder_that_cannot_be_written(checkout):
    done = checkout.run("-m", "harness.profile", *SIMULATED, "--out", "/proc/nowhere")
    assert done.returncode == 3 and "/proc/nowhere" in done.stdout + done.stderr


def test_an_unknown_stage(checkout):
    done = checkout.run("-m", "harness.profile", "12_magic")
    assert done.returncode == 2 and "there is no stage 12_magic" in done.stderr


def test_comparing_an_empty_folder(checkout, tmp_path):
    fails(checkout.run("-m", "scripts.compare", tmp_path), 3, "no trace")
    fails(checkout.run("-m", "scripts.compare", tmp_path / "none"), 2, "not a folder")


def test_more_batches_than_memory_holds_are_refused_at_once(run):
    done = run("4_use_fp16.py", *SIMULATED, "--measure", "99999999999999", timeout=60)
    fails(done, 2, "batches are too many")
