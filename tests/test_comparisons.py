"""What is held against the ladder: other engines, other pipelines, and the simulator's own predictions."""

from __future__ import annotations

import argparse
import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.record import Record
from export import models
from peers import compare_engines, contenders, measure
from sim import device as devices
from sim.clock import Timetable
from sim.kernels import kernel
from sim.network import Layer

# -- engines


@pytest.fixture(scope="module")
def engines(checkout, tmp_path_factory):
    """A comparison of what a CPU has, with a labelled folder; run twice."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("engines")
    from export import train

    train.write_folders("digits", folder / "digits")
    few = folder / "few"
    for path in [path for digit in "01" for path in sorted((folder / "digits" / "test" / digit).iterdir())[:2]]:
        (few / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(few / path.parent.name / path.name)
    what = ("--batches", "1,2", "--seconds", "0.1", "--engines", "eager,runtime,tensorrt")
    command = ("-m", "scripts.compare_engines", *what, "--labelled", few, "--out", folder / "out")
    first = checkout.run(*command)
    assert first.returncode == 0, first.stdout + first.stderr
    times = {path: path.stat().st_mtime_ns for path in (folder / "out" / "rows").iterdir() if "needs" not in path.read_text()}
    second = checkout.run(*command)
    assert second.returncode == 0, second.stdout + second.stderr
    return folder / "out", first, times


@pytest.mark.slow
def test_present_engines_are_run_and_absent_ones_say_what_they_need(engines):
    out, first, _ = engines
    rows = json.loads((out / "engines.json").read_text())["rows"]
    ran = {(row["engine"], row["precision"]) for row in rows if "median_ms" in row}
    assert {("PyTorch eager", "fp32"), ("ONNX Runtime CPU", "fp32")} <= ran
    for row in rows:
        if "median_ms" in row:
            assert row["min_ms"] <= row["median_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["max_ms"]
            assert row["largest_difference"] <= compare_engines.TOLERANCE[row["precision"]] and row["count"] >= 20
    absent = {row["engine"]: row["needs"] for row in rows if "needs" in row}
    if ("TensorRT", "fp16") not in ran:
        assert "TensorRT and an NVIDIA GPU" in absent["TensorRT"] and "not run: TensorRT fp32, TensorRT fp16" in first.stdout


@pytest.mark.slow
def test_accuracy_is_beside_speed(engines):
    rows = json.loads((engines[0] / "engines.json").read_text())["rows"]
    exact = {(row["engine"], row["precision"]): row for row in rows if "top1" in row}
    torch_row, onnx_row = exact["PyTorch eager", "fp32"], exact["ONNX Runtime CPU", "fp32"]
    assert torch_row["images"] == 4 and torch_row["agreement"] == onnx_row["agreement"] == 1
    assert 0 <= onnx_row["top1"] <= onnx_row["top5"] <= 1 and onnx_row["cosine"] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_finished_rows_are_not_run_again(engines):
    _, _, times = engines
    assert times and all(path.stat().st_mtime_ns == before for path, before in times.items())


@pytest.mark.slow
def test_the_comparison_leaves_a_table_in_three_forms_and_pictures(engines):
    out = engines[0]
    with (out / "engines.csv").open() as file:
        assert {row["engine"] for row in csv.DictReader(file)} >= {"PyTorch eager", "ONNX Runtime CPU"}
    text = (out / "engines.md").read_text()
    assert "## resnet18" in text and "## Accuracy on 4 labelled images" in text and "## Not run" in text
    for name in ("resnet18-rates", "resnet18-latency"):
        assert (out / f"{name}.svg").stat().st_size and (out / f"{name}.png").stat().st_size


@pytest.fixture
def compared(checkout, tmp_path, monkeypatch):
    """Compare one contender with itself on two images, its accuracy as well; gives its two rows."""
    monkeypatch.setattr(contenders, "ROOT", checkout.folder)
    images = np.stack([np.full((3, 224, 224), value, np.float32) for value in (-1, 1)])
    task = contenders.Task("resnet18", "random", 10088, 2, True)
    what = {"models": ["resnet18"], "batches": [2], "labelled": tmp_path, "seconds": 0.1, "force": False, "out": tmp_path}
    expected = models.run_onnx(task.onnx("fp32"), images)
    monkeypatch.setattr(compare_engines, "labelled", lambda *_: (images, np.array([0, 1]), expected))

    def compare(contender):
        compare_engines.compare(task, contender, images, expected, argparse.Namespace(**what))
        rows = {path.name.startswith("accuracy"): json.loads(path.read_text()) for path in (tmp_path / "rows").iterdir()}
        return rows[False], rows.get(True)

    return compare


class Watched(contenders.OnnxRuntime):
    closed = False

    def close(self):
        super().close()
        self.closed = True


def test_an_engine_with_wrong_outputs_has_no_time_and_is_closed(compared):
    class Wrong(Watched):
        def output(self):
            return super().output()[::-1]

    contender = Wrong("fp32", "CPU")
    row, exact = compared(contender)
    assert "wrong outputs" in row["problem"] and "median_ms" not in row and exact is None
    assert contender.closed and "session" not in vars(contender)


def test_an_engine_that_fails_while_its_accuracy_is_found_keeps_its_time(compared, capsys):
    class Failing(Watched):
        def load(self, images):
            if "binding" in vars(self):
                raise RuntimeError("out of memory")
            super().load(images)

    contender = Failing("fp32", "CPU")
    row, exact = compared(contender)
    assert row["median_ms"] > 0 and "problem" not in row and contender.closed
    assert exact["problem"] == "RuntimeError: out of memory" and "top1" not in exact
    assert "out of memory" in capsys.readouterr().out


def test_what_was_never_prepared_can_be_closed():
    for contender in contenders.contenders():
        contender.close()


# -- loops


def test_peers_are_ratios_to_the_fastest_stage():
    best = Record(stage="7_cuda_graph", per_batch_ms=0.5, engine="TensorRT 8.6.0", precision="fp16", batch=1, measured=50)
    peer = Record(stage="eager", per_batch_ms=1.25, engine="PyTorch", precision="fp32")
    assert "| eager | 1.250 | 2.50 | PyTorch | fp32 |" in measure.table(best, [peer], None)


@pytest.mark.slow
def test_a_pytorch_loop_is_verified_and_timed(checkout, tmp_path):
    pytest.importorskip("torch")
    few = ("--device", "cpu", "--batch", "1", "--batches", "4", "--measure", "2", "--repeats", "1")
    done = checkout.run("-m", "peers.pytorch", "eager-fp32", *few, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "eager-fp32.json").read_text())["per_batch_ms"] > 0


# -- predictions


def test_results_of_another_device_are_not_predicted(checkout, tmp_path):
    Record(stage="4_use_fp16", per_batch_ms=3.0, batch=128, device="NVIDIA A100").write(tmp_path / "4_use_fp16.json")
    done = checkout.run("-m", "scripts.predict", "h200", tmp_path)
    assert done.returncode == 2 and "4_use_fp16 was measured on NVIDIA A100, not on h200" in done.stderr


def test_a_prediction_is_made_beside_a_report(checkout, tmp_path):
    Record(stage="4_use_fp16", per_batch_ms=3.0, batch=128, batches=6, measured=3).write(tmp_path / "4_use_fp16.json")
    done = checkout.run("-m", "scripts.predict", "h200", tmp_path)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "prediction.json").read_text())["stages"][0]
    assert made["off"] == pytest.approx(made["predicted_ms"] / 3.0 - 1)
    assert "4_use_fp16" in (tmp_path / "prediction.md").read_text()


# -- the modelled kernels


def convolution(rows: int, columns: int, depth: int) -> Layer:
    return Layer("conv", "Conv", 2 * rows * columns * depth, 0, 0, "fp16", (rows, columns, depth))


def test_a_kernel_chosen_for_the_batch_is_at_least_as_fast():
    device = devices.load("h200")
    for layer in (convolution(3136, 64, 576), convolution(49, 512, 4608)):
        for batch in (1, 8, 128):
            own = kernel(device, layer, batch, batch).duration
            assert all(own <= kernel(device, layer, batch, other).duration for other in (1, 8, 16, 128))
    assert kernel(device, layer, 1, 1).duration < kernel(device, layer, 1, 128).duration


def test_small_kernels_leave_room_for_others_and_large_ones_do_not():
    device = devices.load("h200")
    assert kernel(device, convolution(49, 512, 4608), 1, 128).share < 0.2
    assert kernel(device, convolution(3136, 64, 576), 128, 128).share == 1


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(1, 12), st.sampled_from([0.2, 0.4, 0.5, 0.7, 1.0])), min_size=1, max_size=25
    )
)
def test_a_timetable_is_never_more_than_fully_booked(requests):
    timetable, booked = Timetable(), []
    for ready, duration, share in requests:
        start, end = timetable.reserve(ready, duration, share)
        assert start >= ready and end - start == duration
        booked.append((start, end, share))
    for moment in range(max(end for _, end, _ in booked)):
        assert sum(share for start, end, share in booked if start <= moment < end) <= 1 + 1e-9
    busy = sum(any(start <= moment < end for start, end, _ in booked) for moment in range(max(end for _, end, _ in booked)))
    assert timetable.busy_between(0, max(end for _, end, _ in booked)) == busy
