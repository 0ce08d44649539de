"""Every stage, run as a user runs it, on the simulated backend."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.text import Text

from common import program
from common.record import Record
from sim import device as devices
from sim import device_file
from tests.conftest import CHEAP, FEW, ROOT, SIMULATED, number, stage_scripts

PUBLISHED_MS = {  # three batches of 128 on a V100-SXM2-32GB, TensorRT 8.6, ResNet-18
    "1_baseline": 133.577,
    "2_reuse_buffers": 128.196,
    "3_use_pin_memory": 108.348,
    "4_use_fp16": 49.309,
    "5_multi_streams": 29.650,
    "6_multi_threads": 26.787,
}
RECORD_KEYS = (
    "stage backend device engine precision batch batches measured window_ms per_batch_ms images_per_s outputs_match "
    "max_abs_diff top1_agreement races peak_device_memory_mb versions"
)
V100 = (*SIMULATED, "--device", "v100-sxm2-32gb")  # of the published ladder
H200 = (*SIMULATED, "--device", "h200", "--batch", "1")


@pytest.fixture(scope="session")
def records(checkout, tmp_path_factory) -> dict[str, dict]:
    """The result record of every stage, run as by default; but for stage 9, whose sizes follow from it, on fewer images."""
    folder = tmp_path_factory.mktemp("records")
    found = {}
    for script in stage_scripts():
        path = folder / f"{script[:-3]}.json"
        done = checkout.run(script, *V100, *(FEW if number(script) != 9 else ()), "--json", path)
        assert done.returncode == 0, done.stdout + done.stderr
        found[path.stem] = {**json.loads(path.read_text()), "stdout": done.stdout, "stderr": done.stderr}
    return found


def test_a_terminal_of_80_columns_breaks_no_word(checkout):
    env = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "80"}
    done = checkout.run("5_multi_streams.py", *V100, "--batch", "2", env=env)
    said = [Text.from_ansi(line).plain for line in (done.stdout + done.stderr).splitlines()]
    assert done.returncode == 0 and len(said) > 15 and max(map(len, said)) <= 80


def test_every_stage_is_right_and_says_what_ran(records):
    assert list(map(number, records)) == list(range(1, len(records) + 1))
    for name, record in records.items():
        assert set(record) >= set(RECORD_KEYS.split())
        assert record["outputs_match"] is True and record["max_abs_diff"] == 0 and record["top1_agreement"] == 1
        assert "simulated TensorRT" in record["engine"] and "modelled" in record["device"]
        if number(name) in range(4, 9):  # each part by itself, by the device file; two contexts' kernels fill the GPU alike
            alone = {"h2d": 6.914, "compute": 7.957, "d2h": 0.048, "postprocess": 1.214}
            assert record["parts_ms"] == pytest.approx(alone, rel=0.01), name
        assert "simulated backend" in record["stderr"] and "not given back" not in record["stderr"], name
        assert "charged as 128" in record["stdout"] and "images/s" in record["stdout"] and "limit" in record["stdout"]
        assert record["window_ms"] == pytest.approx(record["measured"] * record["per_batch_ms"])
        assert record["window_ms"] == pytest.approx(sum(record["intervals_ms"]), abs=1e-2)
        assert record["window_event_ms"] == pytest.approx(record["window_ms"], rel=0.02)


@pytest.mark.parametrize("stage", PUBLISHED_MS)
def test_the_modelled_ladder_is_within_ten_percent_of_the_published_one(records, stage):
    record = records[stage]
    assert record["batch"] == 128
    assert 3 * record["per_batch_ms"] == pytest.approx(PUBLISHED_MS[stage], rel=0.10)


def test_fp16_stages_report_their_distance_from_fp32(records):
    for name, record in records.items():
        if record["precision"] == "fp16":
            assert 0 < record["fp32_max_abs_diff"] < 0.05, name
            assert record["fp32_top1_agreement"] > 0.9
            assert "of fp32" in record["stdout"]


def test_what_a_stage_s_later_runs_need_not_find_out(checkout, tmp_path):
    """Its outputs are verified all the same."""
    path = tmp_path / "record.json"
    done = checkout.run("4_use_fp16.py", *SIMULATED, *CHEAP, "--no-controls", "--no-parts", "--json", path)
    record = json.loads(path.read_text())
    assert done.returncode == 0 and record["outputs_match"] is True and "right: identical" in done.stdout, done.stderr
    assert record["fp32_max_abs_diff"] is record["fp32_top1_agreement"] is record["parts_ms"] is None
    assert not re.search("fp32|limit|parts", done.stdout)


def test_a_run_is_deterministic_in_virtual_time(checkout, records, tmp_path):
    for script in ("6_multi_threads", "8_multi_context"):
        done = checkout.run(f"{script}.py", *V100, *FEW, "--json", tmp_path / "again.json")
        assert done.returncode == 0
        assert json.loads((tmp_path / "again.json").read_text())["window_ms"] == records[script]["window_ms"]


def test_stages_in_turn_in_one_process_are_what_they_are_alone(checkout, records, tmp_path):
    """As the profiler's rounds run them: times, outputs, memory; nothing of one is left to the next."""
    scripts = ["8_multi_context", "1_baseline", "7_cuda_graph"]
    lines = [[f"{tmp_path}/{name}.log", f"{name}.py", *V100, *FEW, "--json", f"{tmp_path}/{name}.json"] for name in scripts]
    done = checkout.run("-m", "harness.in_turn", input="".join(json.dumps(line) + "\n" for line in lines))
    assert done.stdout == "0\n" * 3 and done.stderr == ""
    for name in scripts:
        found = json.loads((tmp_path / f"{name}.json").read_text())
        for field in ("window_ms", "parts_ms", "max_abs_diff", "fp32_max_abs_diff", "peak_device_memory_mb", "races", "notes"):
            assert found[field] == records[name][field], (name, field)
        assert "not given back" not in (tmp_path / f"{name}.log").read_text()


def test_buffers_are_reused_from_stage_2_on(checkout, tmp_path):
    import sqlite3

    for script, expected in (("1_baseline", True), ("2_reuse_buffers", False)):
        trace = tmp_path / f"{script}.sqlite"
        assert checkout.run(f"{script}.py", *SIMULATED, *CHEAP, "--no-verify", "--trace", trace).returncode == 0
        with sqlite3.connect(trace) as connection:
            window = connection.execute(
                "SELECT n.start, n.end FROM NVTX_EVENTS n JOIN StringIds s ON s.id = n.textId "
                "WHERE s.value = 'measured batches'"
            ).fetchone()
            calls = {
                name
                for (name,) in connection.execute(
                    "SELECT s.value FROM CUPTI_ACTIVITY_KIND_RUNTIME r JOIN StringIds s ON s.id = r.nameId "
                    "WHERE r.start BETWEEN ? AND ?",
                    window,
                )
            }
        assert ("cudaMalloc" in calls and "cudaFree" in calls) is expected


BEYOND = {
    "h200-trt8.6-batch128": set(),
    "h200-trt8.6-batch128-earlier": {1, 2, 5},
    "h200-trt8.6-batch128-int8-bytes": set(),
    "h200-trt8.6-batch1": {4, 5, 6, 8},
}
"""Stages that the model misses by more than a tenth; reports/README.md says what it does not know."""


@pytest.mark.parametrize("report", BEYOND)
def test_the_report_s_predictions_are_as_good_as_it_says(report):
    folder = ROOT / "reports" / report
    predicted = json.loads((folder / "prediction.json").read_text())["stages"]
    assert [row["stage"] for row in predicted] == [record.stage for record in Record.read_all(folder)]
    for row in predicted:
        measured_ms = json.loads((folder / f"{row['stage']}.json").read_text())["per_batch_ms"]
        assert row["measured_ms"] == measured_ms
        assert (abs(row["predicted_ms"] / measured_ms - 1) > 0.10) == (number(row["stage"]) in BEYOND[report]), row


@pytest.mark.slow
@pytest.mark.parametrize("script", [record.stage for record in Record.read_all(ROOT / "reports" / "h200-trt8.6-batch1")])
def test_a_prediction_is_what_the_model_says_today(checkout, tmp_path, script):
    """The committed prediction at batch 1, made again."""
    path = tmp_path / "h200.json"
    predicted = json.loads((ROOT / "reports" / "h200-trt8.6-batch1" / "prediction.json").read_text())["stages"]
    done = checkout.run(f"{script}.py", *H200, "--batches", "60", "--measure", "50", "--no-verify", "--json", path)
    assert done.returncode == 0, done.stderr
    expected = {row["stage"]: row["predicted_ms"] for row in predicted}
    assert json.loads(path.read_text())["per_batch_ms"] == pytest.approx(expected[script], rel=0.01)


def test_a_graph_is_one_launch(checkout, tmp_path, monkeypatch):
    """At batch 1, on kernels chosen for it, launching them takes longer than they do: the graph pays.

    How much follows from the device file: one by one, a batch takes what the host needs to submit it; in a graph, its kernels
    and the copy of its output in turn."""
    plan, times = tmp_path / "one.plan", {}
    assert checkout.run("0_build.py", *SIMULATED, "--fp16", "--profile", "1,1,1", "--output", plan).returncode == 0
    for script in ("6_multi_threads", "7_cuda_graph"):
        path = tmp_path / f"{script}.json"
        more = ("--batches", "20", "--measure", "10", "--plan", plan, "--json", path)
        done = checkout.run(f"{script}.py", *H200, *more)
        assert done.returncode == 0
        times[script] = json.loads(path.read_text())
    graph, launches = times["7_cuda_graph"], times["6_multi_threads"]
    assert launches["per_batch_ms"] == pytest.approx(launches["submit_ms"], rel=0.05)
    monkeypatch.setattr(device_file, "ROOT", checkout.folder)
    device = devices.load("h200")
    copy_us = device.copy_latency / 1e3 + 4000 / device.copy_rates["d2h", "pinned"] / 1e3
    in_turn_us = device_file.compute_us(device, device_file.network("fp16"), 1, 1) + copy_us + 2 * device.handover / 1e3
    assert graph["per_batch_ms"] == pytest.approx(in_turn_us / 1e3, rel=0.01)
    assert graph["per_batch_ms"] < 0.95 * launches["per_batch_ms"]
    assert graph["submit_ms"] < 0.3 * launches["submit_ms"] and graph["submit_ms"] <= 0.040


def test_buffers_that_were_never_bound_are_an_error(checkout):
    text = (ROOT / "4_use_fp16.py").read_text(encoding="utf-8")
    line = "        context.bind(device_input, device_output)\n"
    assert text.count(line) == 1
    (checkout.folder / "unbound.py").write_text(text.replace(line, ""), encoding="utf-8")
    done = checkout.run("unbound.py", *SIMULATED, *CHEAP)
    assert done.returncode == 3
    assert "address or shape is not set" in " ".join(done.stderr.split())


# -- real input


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """scikit-learn's two photographs, and a file that only looks like one."""
    datasets = pytest.importorskip("sklearn.datasets")
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("china.jpg", "flower.jpg"):
        shutil.copy(Path(datasets.__file__).parent / "images" / name, folder / name)
    (folder / "broken.jpg").write_bytes(b"not a photograph")
    (folder / "notes.txt").write_text("not an image at all")
    return folder


def onnx_outputs(checkout, images: np.ndarray, precision: str) -> np.ndarray:
    """The independent oracle: ONNX Runtime on the exported file itself."""
    from export import models

    return models.run_onnx(checkout.models / f"resnet18-{precision}.onnx", images)


def test_photographs_are_classified(checkout, photographs, tmp_path):
    from common.postprocess import top1
    from export.train import load

    path = tmp_path / "predictions.csv"
    done = checkout.run("5_multi_streams.py", *SIMULATED, "--images", photographs, "--predictions", path)
    assert done.returncode == 0, done.stderr
    assert "skipped broken.jpg" in done.stderr
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert [row["image"] for row in rows] == ["china.jpg", "flower.jpg"]
    images = load([photographs / row["image"] for row in rows], 224)
    classes, probabilities = top1(onnx_outputs(checkout, images, "fp16"))
    assert [int(row["class"]) for row in rows] == classes.tolist()
    assert [float(row["probability"]) for row in rows] == pytest.approx(probabilities.tolist(), abs=1e-5)


@pytest.mark.slow
def test_class_names_come_with_the_weights(checkout, photographs, tmp_path):
    """A state dict of one's own with ImageNet's thousand classes gets their names."""
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "mine.pt")
    plan, path = tmp_path / "mine.plan", tmp_path / "predictions.csv"
    done = checkout.run("0_build.py", "--backend", "simulated", "--fp16", "--weights", tmp_path / "mine.pt", "--output", plan)
    assert done.returncode == 0, done.stderr
    done = checkout.run(
        "4_use_fp16.py", *SIMULATED, "--batch", "2", "--plan", plan, "--images", photographs, "--predictions", path
    )
    assert done.returncode == 0, done.stderr
    names = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    assert all(row["class"] in names for row in csv.DictReader(path.open(encoding="utf-8")))


def test_synthetic_predictions_match_the_oracle(checkout, tmp_path):
    from common.images import noise_images
    from common.postprocess import top1

    path = tmp_path / "predictions.csv"
    done = checkout.run("1_baseline.py", *SIMULATED, *CHEAP, "--seed", "3", "--predictions", path)
    assert done.returncode == 0
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert len(rows) == 12
    classes, _ = top1(onnx_outputs(checkout, noise_images(range(12), (3, 224, 224), 3), "fp32"))
    assert [int(row["class"]) for row in rows] == classes.tolist()


def test_different_batches_differ_by_far_more_than_the_tolerance(checkout):
    """Otherwise the verification could not tell a batch from its neighbour."""
    from common.images import noise_images
    from common.verify import TOLERANCE

    outputs = onnx_outputs(checkout, noise_images(range(16), (3, 224, 224), 10088), "fp32")
    scale = np.abs(outputs).max()
    for one in range(0, 16, 2):
        for other in range(0, one, 2):
            assert np.abs(outputs[one : one + 2] - outputs[other : other + 2]).max() > 5 * TOLERANCE * scale


@pytest.mark.parametrize("width", [38, 78, 198])
@pytest.mark.parametrize("path", [*stage_scripts(), "0_build.py", "harness/compare.py", "export/triton.py"])
def test_a_manual_fits_the_terminal(path, width):
    """In the same words; commands as they are, with what they are for under them; on a wide terminal all of it."""
    doc = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    shown = program.Manual("x")._fill_text(doc, width, "")
    assert shown.split() == doc.split() and (width < 198 or shown == doc)
    indented, figures = (
        [re.findall(pattern, text, re.M) for text in (shown, doc)] for pattern in (r"^ .*$", r"^Measured: .* →")
    )
    assert " ".join(indented[0]).split() == " ".join(indented[1]).split() and figures[0] == figures[1]
    assert not [line for line in indented[0] if len(line) > width and re.search(r"\S  ", line)]
    assert max(len(line) for line in shown.splitlines() if not line.startswith(" ") and " " in line) <= width


def test_help_is_the_lesson(checkout):
    for script in stage_scripts():
        done = checkout.run(script, "--help")
        assert done.returncode == 0
        assert "Why it" in done.stdout and "In the timeline" in done.stdout and re.search(r"--charge-batch", done.stdout)
