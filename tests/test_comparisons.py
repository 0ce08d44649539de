"""What is held against the ladder: other engines, other pipelines, and the simulator's own predictions."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from common import backend, console, verify
from common import options as stage_options
from common.errors import EnvironmentFault, Fault, UsageFault, WrongOutputs
from common.images import noise_images
from common.record import LADDER, Record, Window
from common.session import WARM_UP
from export import models
from peers import accuracy, compare_engines, inputs, loops, on_onnx_runtime, on_tensorrt, pytorch, rows, task, trtexec
from sim import device as devices
from sim import simulator
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
    what = ("--model", "mobilenet_v2", "--batches", "1,2", "--engines", "eager,runtime,tensorrt", "--labelled", few)
    command = ("-m", "scripts.compare_engines", *what, "--seconds", "0.1", "--rounds", "2", "--out", folder / "out")
    first = checkout.run(*command)
    assert first.returncode == 0, first.stdout + first.stderr
    times = {path: path.stat().st_mtime_ns for path in (folder / "out" / "rows").iterdir() if "needs" not in path.read_text()}
    second = checkout.run(*command)
    assert second.returncode == 0, second.stdout + second.stderr
    return folder / "out", first, times


def test_percentiles_are_of_all_runs_and_a_p99_of_a_thousand(tmp_path):
    row = rows.Result("TensorRT", "fp16", batch=4)
    row.add_run([1.0] * 600, enqueue_ms=0.1, ahead_ms=0.5)
    row.add_run([*[2.0] * 300, 9.0], enqueue_ms=0.3, ahead_ms=1.5)
    assert (row.count, row.min_ms, row.median_ms, row.p90_ms, row.p99_ms, row.max_ms) == (901, 1.0, 1.0, 2.0, None, 9.0)
    assert row.enqueue_ms == pytest.approx(0.2) and row.ahead_images_per_s == pytest.approx(4000)
    assert row.images_per_s == pytest.approx(4 * 901 / (600 + 600 + 9) * 1e3) and [run["count"] for run in row.runs] == [
        600,
        301,
    ]
    row.add_run([1.0] * 99)
    assert row.count == 1000 and row.p99_ms == 2.0
    spread = rows.Result(batch=1)
    spread.add_run([float(ms) for ms in range(1001)])
    assert (spread.p90_ms, spread.p95_ms, spread.p99_ms) == (900, 950, 990)
    (tmp_path / "row.json").write_text(json.dumps(row.facts))
    assert rows.Result.read(tmp_path / "row.json") == row


def test_the_bound_of_what_is_off_tells_two_pictures_apart(checkout):
    outputs = models.run_onnx(checkout.models / "resnet18-fp32.onnx", noise_images(range(16), (3, 224, 224), 1))
    apart = min(models.largest_difference(one, other) for one, other in itertools.combinations(outputs, 2))
    assert apart > 0.15 > max(compare_engines.TOLERANCE[each] for each in ("fp32", "tf32", "fp16"))


def test_a_time_of_another_computation_bears_a_warning(tmp_path):
    """Where labelled images tell, they decide; else the images of the speed test do."""
    (tmp_path / "rows").mkdir()
    for precision, speeds, exact in (("fp16", 1.0, None), ("int8", 0.89, None), ("fp32", 0.5, 0.97)):
        row = rows.Result(
            "TensorRT", precision, model="m", batch=1, top1_agreement=speeds, agreement=exact, host="here", date="d"
        )
        row.add_run([1.0])
        (tmp_path / "rows" / f"{precision}.json").write_text(json.dumps(row.facts))
    rows.report(tmp_path)
    text = (tmp_path / "engines.md").read_text()
    assert text.count("| TensorRT | ") == 4 and text.count("| TensorRT ⚠ | int8 | 1 |") == 2 and rows.DOUBT in text
    assert "times_us" not in (tmp_path / "engines.json").read_text()


def test_the_tables_fit_a_narrow_terminal_and_reasons_are_whole(tmp_path, monkeypatch):
    row = rows.Result("ONNX Runtime CUDA (CUDA graph)", "fp16", model="m", batch=128, top1_agreement=1.0, enqueue_ms=1234.5)
    row.add_run([1234.5] * 1000, ahead_ms=1234.5, h2d_ms=1.0, compute_ms=1000.0, d2h_ms=1.0)
    lacking = rows.Result(
        "PyTorch eager", "fp16", model="m", batch=128, problem="needs " + "many different words " * 9 + "(last)"
    )
    for name, each in (("a", row), ("b", lacking)):
        (tmp_path / "rows").mkdir(exist_ok=True)
        (tmp_path / "rows" / f"{name}.json").write_text(json.dumps(each.facts))
    for width in (80, rows.WIDE):
        printed = io.StringIO()
        terminal = Console(file=printed, force_terminal=True, no_color=True, width=width, soft_wrap=True)
        for module in (rows, console):
            monkeypatch.setattr(module, "out", terminal)
        rows.report(tmp_path)
        text = Text.from_ansi(printed.getvalue()).plain
        assert max(len(line.rstrip()) for line in text.splitlines() if not line.startswith("written")) <= width
        assert "…" not in text and text.count("1234.500") >= 2 and "(last)" in text and ("p90" in text) == (width > 80)
    assert "p90" in (tmp_path / "engines.md").read_text()


def row_of(engine: str, precision: str, sha: str = "1", ahead_ms: float | None = None, **facts) -> rows.Result:
    row = rows.Result(engine, precision, "m", "m.pt", sha, batch=4, images=9, top1=1.0, host="here", date="d", **facts)
    row.add_run([8.0], ahead_ms=ahead_ms)
    return row


def test_rows_stand_in_the_contenders_order_and_accuracies_by_weights(tmp_path):
    """Whatever their files are called: two trainings under one name are two models."""
    (tmp_path / "rows").mkdir()
    given = [("TensorRT", "fp16", "2"), ("trtexec", "fp16", "1"), ("PyTorch eager", "fp16", "1"), ("TensorRT", "fp32", "1")]
    for number, words in enumerate(given):
        (tmp_path / "rows" / f"{number}.json").write_text(json.dumps(row_of(*words).facts))
    rows.report(tmp_path)
    speeds, *accuracies = (tmp_path / "engines.md").read_text().split("## Accuracy of m on 9 labelled images")
    assert re.findall(r"^\| (\w.*?) \| fp(\d\d)", speeds.split("###")[0], re.M) == [
        ("PyTorch eager", "16"),
        ("TensorRT", "32"),
        ("TensorRT", "16"),
        ("trtexec", "16"),
    ]
    assert len(accuracies) == 2 and {text.splitlines()[0] for text in accuracies} == {
        f" (weights: m.pt, SHA-256 {sha}…)" for sha in "12"
    }
    assert row_of("TensorRT", "fp16", "m.pt").trained == "m.pt"


def test_a_figure_s_bars_are_its_rows(tmp_path, monkeypatch):
    """Pale and high by itself, dark and narrow one ahead, each where its name is; none by itself of a pipeline."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    pipeline = row_of("TensorRT pipeline (stage 7)", "fp16", ahead_ms=2.0)
    pipeline.min_ms, slow = None, row_of("trtexec", "fp16")
    slow.median_ms = 1234.5
    rows.draw("m", [pipeline, row_of("TensorRT", "int8", ahead_ms=5.4321, agreement=0.1), slow], tmp_path)
    (axes,) = figures[0].axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["TensorRT int8", "TensorRT pipeline (stage 7) fp16", "trtexec fp16"] and axes.yaxis_inverted()
    bars = [(round(bar.get_y() + bar.get_height() / 2), round(bar.get_height(), 3), bar.get_width()) for bar in axes.patches]
    found = {(names[level], height): width for level, height, width in bars}
    assert [found[name, 0.8] for name in names] == [8, 0, 1234.5]
    assert [found[name, 0.4] for name in names] == [5.4321, 2, 0]
    assert {names[round(text.get_position()[1])]: text.get_text() for text in axes.texts} == dict(
        zip(names, [" 5.43 (8) (!)", " 2", " 1,234"])
    )


def test_what_is_further_off_may_name_one_of_a_hundred_otherwise():
    """And nothing that is no number is near anything, whichever slot it is in."""
    expected = np.eye(10, dtype=np.float32)[np.arange(100) % 10]
    ready = task.Ready.on_cpu("", lambda images: images)
    for wrong, ends in ((1, contextlib.nullcontext()), (2, pytest.raises(WrongOutputs, match=r"98\.00% of 100 labelled"))):
        seen = np.where(np.arange(100)[:, None] < wrong, -1, 1.5).astype(np.float32) * expected
        photographs = inputs.Labelled(seen, expected.argmax(axis=1), expected, "")
        with ends:
            compare_engines.check(rows.Result("", "fp16", batch=8), ready, seen[-8:], expected[-8:], photographs)
    slots = [argparse.Namespace(host_output=expected[:8] * factor) for factor in (1, np.nan)]
    two = dataclasses.replace(ready, lane=argparse.Namespace(ahead=lambda _: None, slots=slots))
    photographs = inputs.Labelled(expected, expected.argmax(axis=1), expected, "")
    with pytest.raises(WrongOutputs, match="off by nan"):
        compare_engines.check(rows.Result("", "fp16", batch=8), two, expected[:8], expected[:8], photographs)
    with pytest.raises(WrongOutputs, match="off by nan"):
        compare_engines.check(rows.Result("", "fp16", batch=8), ready, expected[:8] * np.nan, expected[:8], photographs)


def test_another_folder_s_images_are_not_those_that_were_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "sha256", lambda path: path.read_text() if path.suffix == ".png" else "0")
    monkeypatch.setattr(inputs, "load", lambda files, _: np.zeros(len(files)))
    monkeypatch.setattr(inputs, "reference", lambda _, images: np.zeros(len(images)))
    monkeypatch.setattr(inputs.models, "read_description", lambda _: {"labels": ["cat"]})
    for name in ("cat/1", "dog/1", "dog/2"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / f"{name}.png").touch()
    job = task.Task("resnet18", "random", 2)
    three, again = (inputs.labelled(job, tmp_path / "pictures", tmp_path) for _ in range(2))
    assert three.targets.tolist() == [0, -1, -1] and three.key == again.key
    (tmp_path / "pictures" / "dog" / "2.png").write_text("another")
    other = inputs.labelled(job, tmp_path / "pictures", tmp_path)
    assert other.key != three.key and len(list((tmp_path / "batches").iterdir())) == 2
    for path in (tmp_path / "batches").iterdir():
        path.write_bytes(path.read_bytes()[:99])
    assert inputs.labelled(job, tmp_path / "pictures", tmp_path).expected.tolist() == [0, 0, 0]
    (tmp_path / "empty").mkdir()
    (tmp_path / "dogs" / "dog").mkdir(parents=True)
    (tmp_path / "dogs" / "dog" / "1.png").touch()
    faults = {
        "empty": "holds no image in a folder of its class",
        "none": "is no folder",
        "dogs": "no folder is named as a class",
    }
    for name, why in faults.items():
        with pytest.raises(UsageFault, match=f"--labelled .*{name}:? {why}"):
            inputs.labelled(job, tmp_path / name, tmp_path)


def test_intervals_are_wilson_s_and_agresti_and_min_s():
    """Against the formulas' published examples, and counting: they hold the truth in about 95 % of samples."""
    found, low, high = accuracy.share(np.arange(10) < 9)
    assert (found, round(low, 3), round(high, 3)) == (0.9, 0.596, 0.982)
    assert accuracy.share(np.ones(364, bool))[1:] == (pytest.approx(0.98956, abs=1e-5), 1.0)
    right, before = (
        np.array([1] * 80 + [1] * 5 + [0] * 3 + [0] * 12, bool),
        np.array([1] * 80 + [0] * 5 + [1] * 3 + [0] * 12, bool),
    )
    assert accuracy.difference(right, before)[0] == pytest.approx(0.02)
    assert accuracy.difference(right, right) == (0, pytest.approx(-1.959964 / 102), pytest.approx(1.959964 / 102))
    draw, held = np.random.default_rng(0), [0, 0]
    for _ in range(2000):
        kinds = draw.choice(4, 200, p=[0.85, 0.06, 0.03, 0.06])  # both right, only the first, only the second, neither
        right, before = (kinds == 0) | (kinds == 1), (kinds == 0) | (kinds == 2)
        for index, (truth, (_, low, high)) in enumerate(
            ((0.91, accuracy.share(right)), (0.03, accuracy.difference(right, before)))
        ):
            held[index] += low <= truth <= high
    assert all(0.93 < each / 2000 < 0.97 for each in held)


def test_words_choose_contenders():
    names = [f"{each.name} {each.precision}" for each in compare_engines.chosen("=TensorRT fp16,(nhwc)")]
    assert names == ["ONNX Runtime CUDA (NHWC) fp16", "TensorRT fp16"]
    assert compare_engines.chosen("") == list(compare_engines.CONTENDERS) and not compare_engines.chosen("none")
    with pytest.raises(UsageFault, match=r"'eagr'.*there are PyTorch eager, "):
        compare_engines.chosen("runtime,eagr")


@pytest.mark.parametrize(("words", "said"), [("--seconds nan", "from 0 to 3600"), ("--batches a", "'a' is no list of numbers")])
def test_options_that_make_no_sense_are_said(monkeypatch, capsys, words, said):
    monkeypatch.setattr(sys, "argv", ["compare_engines", *words.split()])
    with pytest.raises(SystemExit, match="2"):
        compare_engines.parse_options()
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["-1", "nan", "inf", "0.5"])
def test_a_limit_is_of_whole_seconds(monkeypatch, limit):
    """Else the timer refuses it, when the row has already said that its engine ended the process."""
    monkeypatch.setattr(sys, "argv", ["compare_engines", "--limit", limit])
    with pytest.raises(SystemExit, match="2"):
        compare_engines.parse_options()


def test_trtexec_s_times_become_a_row(tmp_path):
    """And the row is in the table beside ours; what is no such file is said."""
    each = {"h2dMs": 0.5, "computeMs": 1.0, "d2hMs": 0.25, "latencyMs": 1.75, "startEnqMs": 1.0, "endEnqMs": 1.125}
    spans = {"startH2dMs": 10.0, "endD2hMs": 14.0}
    row = trtexec.row_of([{**each, **spans}, {**each, **spans, "computeMs": 3.0, "latencyMs": 3.75}], "times.json")
    assert (row.h2d_ms, row.compute_ms, row.d2h_ms, row.enqueue_ms, row.median_ms, row.ahead_ms) == (
        0.5,
        2.0,
        0.25,
        0.125,
        2.75,
        2.0,
    )
    in_turn = [{**each, **spans}, {**each, "startH2dMs": 14.5, "endD2hMs": 18.0}]
    assert trtexec.row_of(in_turn, "times.json").ahead_ms is None
    overlapped = [*in_turn, {**each, "startH2dMs": 17.5, "endD2hMs": 22.0}]
    assert trtexec.row_of(overlapped, "times.json").ahead_ms == 4.0
    strange = [
        {"d2hMs": "soon"},
        {"latencyMs": float("nan")},
        {"latencyMs": 0},
        {"latencyMs": 1e308},
        {"h2dMs": -1},
        {"computeMs": 10**400},
        {"endD2hMs": 9},
    ]
    for wrong in ([], {}, None, [{"h2dMs": 1}], *([{**each, **spans, **one}] for one in strange)):
        with pytest.raises(UsageFault, match=r"x\.json is not what trtexec --exportTimes writes"):
            trtexec.row_of(wrong, "x.json")


def test_tables_of_no_rows_are_not_written(tmp_path):
    with pytest.raises(EnvironmentFault, match="no engine's row"):
        rows.report(tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_present_engines_are_run_and_absent_ones_say_what_they_need(engines):
    out, first, _ = engines
    rows = json.loads((out / "engines.json").read_text())["rows"]
    ran = {(row["engine"], row["precision"]) for row in rows if "median_ms" in row}
    assert {("PyTorch eager", "fp32"), ("ONNX Runtime CPU", "fp32")} <= ran
    for row in rows:
        if "median_ms" in row:
            assert row["min_ms"] <= row["median_ms"] <= row["p90_ms"] <= row["p95_ms"] <= row["max_ms"]
            assert row["largest_difference"] <= compare_engines.TOLERANCE[row["precision"]] and row["count"] >= 40
    absent = {row["engine"]: row["problem"] for row in rows if "problem" in row}
    if ("TensorRT", "fp16") not in ran:
        assert "needs TensorRT and an NVIDIA GPU" in absent["TensorRT"]
        assert "TensorRT fp32, TensorRT fp16" in first.stdout


@pytest.mark.slow
def test_accuracy_is_beside_speed(engines):
    rows = json.loads((engines[0] / "engines.json").read_text())["rows"]
    exact = {(row["engine"], row["precision"]): row for row in rows if "top1" in row}
    torch_row, onnx_row = exact["PyTorch eager", "fp32"], exact["ONNX Runtime CPU", "fp32"]
    assert torch_row["images"] == 4 and torch_row["agreement"] == onnx_row["agreement"] == 1
    assert 0 <= onnx_row["top1"] <= onnx_row["top5"] <= 1 and torch_row["largest_logit_difference"] < 1e-4


@pytest.mark.slow
def test_finished_rows_are_not_run_again(engines):
    _, _, times = engines
    assert times and all(path.stat().st_mtime_ns == before for path, before in times.items())


@pytest.mark.slow
def test_the_comparison_leaves_tables_and_a_picture(engines):
    text = (engines[0] / "engines.md").read_text()
    assert "## mobilenet_v2" in text and "## Accuracy of mobilenet_v2 on 4 labelled images" in text and "## Not run" in text
    assert re.search(r"^- .* \(mobilenet_v2 1, mobilenet_v2 2\): ", text.partition("## Not run")[2], re.M)
    assert (engines[0] / "mobilenet_v2-random.svg").stat().st_size


@pytest.fixture
def compared(checkout, tmp_path, monkeypatch):
    """Compare one contender with the reference on two images, its accuracy as well; gives its row."""
    monkeypatch.setattr(task, "ROOT", checkout.folder)
    images = np.stack([np.full((3, 224, 224), value, np.float32) for value in (-1, 1)])
    job = task.Task("resnet18", "random", 2)
    expected = inputs.reference(job, images)
    monkeypatch.setattr(compare_engines, "batch_of", lambda *_: (images, expected))
    monkeypatch.setattr(compare_engines, "LEAST", 4)  # a tenth of a second is time for one
    options = argparse.Namespace(seconds=0.1, out=tmp_path, rounds=2, mark=0, calibration_images=None, limit=0)

    def compare(contender, limit=0.0, labels=(0, 1)):
        options.limit = limit
        photographs = inputs.Labelled(images, np.array(labels), expected, str(labels))
        compare_engines.compare(job, [contender], photographs, options)
        (row,) = (tmp_path / "rows").iterdir()
        return json.loads(row.read_text())

    return compare


def test_an_accuracy_is_found_anew_for_other_images(compared):
    """And the times are kept."""
    contender = task.Contender("ONNX Runtime CPU", "fp32", on_onnx_runtime.on_cpu)
    first = compared(contender)
    other = compared(contender, labels=(-1, -1))
    assert other["top1"] == 0 and (first["labelled"], other["labelled"]) == ("(0, 1)", "(-1, -1)")
    assert first["runs"] == other["runs"]


class Changed:
    """ONNX Runtime with something about it changed."""

    def __init__(self, change) -> None:
        self.change, self.closed = change, False

    @contextlib.contextmanager
    def prepare(self, job, precision):
        with on_onnx_runtime.on_cpu(job, precision) as ready:
            try:
                yield self.change(ready)
            finally:
                self.closed = True


def test_an_engine_with_wrong_outputs_has_no_time_and_is_closed(compared):
    wrong = Changed(lambda ready: dataclasses.replace(ready, output=lambda: ready.output()[::-1]))
    row = compared(task.Contender("ONNX Runtime CPU", "fp32", wrong.prepare))
    assert "WrongOutputs" in row["problem"] and "median_ms" not in row and row["agreement"] == 0
    assert wrong.closed


def test_an_engine_that_fails_while_its_accuracy_is_found_keeps_its_times(compared, capsys):
    times = itertools.count()

    def change(ready):
        def load(images):
            if next(times) > 2:  # the check's, and one for each of two runs
                raise RuntimeError("out of memory")
            return ready.load(images)

        return dataclasses.replace(ready, load=load)

    failing = Changed(change)
    row = compared(task.Contender("ONNX Runtime CPU", "fp32", failing.prepare))
    assert row["median_ms"] > 0 and len(row["runs"]) == 2 and failing.closed
    assert row["problem"] == "RuntimeError: out of memory" and not {"top1", "labelled"} & row.keys()
    assert "out of memory" in capsys.readouterr().out


@pytest.mark.parametrize("ends", [lambda *_: os._exit(9), lambda *_: time.sleep(60)], ids=["crash", "hang"])
def test_an_engine_that_takes_the_process_with_it_says_so_and_is_left_out(compared, ends):
    if (child := os.fork()) == 0:
        compared(task.Contender("ONNX Runtime CPU", "fp32", ends), limit=0.5)
        os._exit(0)
    begun = time.monotonic()
    assert os.waitpid(child, 0)[1] != 0 and time.monotonic() - begun < 30
    row = compared(task.Contender("ONNX Runtime CPU", "fp32", lambda *_: pytest.fail("tried again")))
    assert row["problem"] == compare_engines.LOST and "median_ms" not in row


def test_a_row_is_run_until_it_has_its_rounds(compared):
    """And its images are right or not, and known with an interval."""
    loads = []
    counted = Changed(lambda ready: dataclasses.replace(ready, load=lambda images: loads.append(1) or ready.load(images)))
    contender = task.Contender("ONNX Runtime CPU", "fp32", counted.prepare)
    row = compared(contender)
    assert len(row["runs"]) == 2 and row["count"] == sum(run["count"] for run in row["runs"]) and row["agreement"] == 1
    assert all(run["count"] >= 4 for run in row["runs"])
    assert row["top1_low"] < row["top1"] + 1e-9 < row["top1_high"] + 1e-9 and row["gained"] == 0 and row["gained_low"] < 0
    before = len(loads)
    assert compared(contender) == row and len(loads) == before


def test_a_run_is_warmed_up_for_a_fifth_of_its_time(monkeypatch):
    said = []
    monkeypatch.setattr(compare_engines, "timed", lambda ready, *how, **more: said.append((*how, *more.values())) or [1.0])
    ready, row = task.Ready("", lambda images: None, lambda: None, lambda: None), rows.Result("", "fp32")
    compare_engines.speed(row, ready, np.zeros(1), 10.0)
    assert said == [(2.0, 0), (10.0, compare_engines.LEAST)] and row.count == 1


@pytest.fixture
def on_simulator(checkout, monkeypatch):
    """The simulated GPU, which TensorRT's contender takes for a real one here."""
    monkeypatch.setattr(task, "ROOT", checkout.folder)
    monkeypatch.setattr(backend, "_current", None)
    here = backend.select("simulated", "h200")
    monkeypatch.setattr(backend, "select", lambda name: here)
    plans = checkout.plans
    monkeypatch.setattr(task.Task, "plan", lambda job, precision: plans / f"resnet18-{precision}.simulated.plan")
    yield here
    simulator.start().close()


def labelled_images_decide(row, ready, images, expected, monkeypatch):
    """About what is further off than the bound; but not about a second slot that has something else."""
    own = inputs.Labelled(images, expected.argmax(axis=1), expected, "two")
    with monkeypatch.context() as patched:
        patched.setitem(compare_engines.TOLERANCE, "fp16", row.largest_difference / 2)
        with pytest.raises(WrongOutputs, match=r"largest logit$"):
            compare_engines.check(row, ready, images, expected)
        compare_engines.check(row, ready, images, expected, own)
        assert row.top1 == row.agreement == 1
        with pytest.raises(WrongOutputs, match=r"logit; 0\.00% of 2 labelled images named alike"):
            compare_engines.check(row, ready, images, expected, own._replace(expected=-expected))
        patched.setattr(ready.lane.slots[1], "enqueue", lambda: None)
        with pytest.raises(WrongOutputs, match=r"largest logit$"):
            compare_engines.check(row, ready, images[::-1], expected[::-1], own)


@pytest.mark.parametrize("graph", [False, True])
def test_tensorrt_runs_on_its_own_buffers_and_gives_them_back(on_simulator, monkeypatch, graph):
    """One at a time and one ahead, each right; the parts of a batch are what the device is said to take for them."""
    job = task.Task("resnet18", "random", 2)
    images = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    with on_tensorrt.tensorrt(job, "fp16", graph=graph) as ready:
        outputs = []
        for given in (images, images[::-1]):
            ready.load(given)
            ready.infer()
            outputs.append((ready.output(), given))
        for output, given in outputs:
            assert models.largest_difference(output, inputs.reference(job, given)) < 3e-2
        assert ready.memory_mb() > 0 and ("--useCudaGraph" in ready.command) == graph and "--exposeDMA" in ready.command
        parts, pace_ms = ready.lane.parts(5), ready.lane.ahead(5)
        assert parts["h2d_ms"] == pytest.approx(1204224 / 55.4e6, rel=0.6)  # what the H200's link takes, and a copy's start
        assert 0.9 * parts["compute_ms"] <= pace_ms < parts["h2d_ms"] + parts["compute_ms"]
        assert (parts["enqueue_ms"] < 0.02) == graph
        for slot in ready.lane.slots:
            assert models.largest_difference(slot.host_output, inputs.reference(job, images[::-1])) < 3e-2
        compare_engines.check(row := rows.Result("", "fp16", batch=2), ready, images, inputs.reference(job, images))
        assert row.largest_difference < 3e-2 and row.top1 is None
        labelled_images_decide(row, ready, images, inputs.reference(job, images), monkeypatch)
        with monkeypatch.context() as patched, pytest.raises(WrongOutputs):
            patched.setattr(ready.lane.slots[1], "enqueue", lambda: None)
            compare_engines.check(row, ready, images[::-1], inputs.reference(job, images[::-1]))
        ready.lane.marked(4)
        trace = on_simulator.trace()
        assert len(trace.measured) == 4 and len(set(trace.batches_of(trace.h2d)) & {*trace.measured}) == 4
    del ready, slot
    assert not on_simulator.leaks() and not on_simulator.races()


def test_tensorrt_s_plan_is_for_the_row_s_batch_and_precision(on_simulator, checkout, monkeypatch, tmp_path):
    """Built for that batch alone where there is none; one that computes in another precision makes no row."""
    job, asked = task.Task("resnet18", "random", 2), []
    monkeypatch.setattr(task.Task, "plan", lambda job, precision: checkout.plans / "resnet18-fp32.simulated.plan")
    with pytest.raises(Fault, match="fp32"), on_tensorrt.tensorrt(job, "fp16"):
        pass
    monkeypatch.setattr(task.Task, "plan", lambda job, precision: tmp_path / "none.plan")

    def build(job, *words):
        asked.extend(words)
        raise EnvironmentFault("no room")

    monkeypatch.setattr(task.Task, "build", build)
    with pytest.raises(task.Missing, match="the build failed: no room"), on_tensorrt.tensorrt(job, "fp16"):
        pass
    assert asked == ["--backend", "tensorrt", "--fp16", "--profile", "2,2,2", "--output", tmp_path / "none.plan"]


def test_a_gpu_without_tensorrt_is_found_by_cuda_alone(monkeypatch):
    monkeypatch.setattr(backend, "_current", None)
    monkeypatch.setattr(backend, "gpu", lambda: ("the runtime", "NVIDIA X", "9.0"))
    here = backend.select_cuda()
    assert backend.current() is here and (here.device, here.cudart, here.tensorrt) == ("NVIDIA X", "the runtime", None)


# -- loops


def test_peers_are_ratios_to_the_fastest_stage():
    best = Record(stage="7_cuda_graph", per_batch_ms=0.5, engine="TensorRT 8.6.0", precision="fp16", batch=1, measured=50)
    peers = [Record(stage=f"loop {ms}", per_batch_ms=ms, windows=[Window(ms), Window(9.0)]) for ms in (1.25, 1.0)]
    text = pytorch.table([best, Record(stage="6_multi_threads", per_batch_ms=0.6)], peers)
    assert "| loop 1.25 | 1.250 | 2.50 | 1.250 | 9.000 | 2 |" in text
    assert "The best loop, loop 1.0, takes 2.00 times as long." in text


def test_a_loop_is_held_against_the_fastest_stage_that_is_sent_the_same():
    stages = [("7_cuda_graph", 1.4, "float32"), ("10_uint8_input", 1.0, "uint8"), ("6_multi_threads", 1.5, "float32")]
    loops = [("floats", 2.8, "float32"), ("bytes", 1.5, "uint8"), ("more bytes", 1.7, "uint8")]
    both = ([Record(stage=name, per_batch_ms=ms, input=sent) for name, ms, sent in each] for each in (stages, loops))
    text = pytorch.table(*both)
    for row in (
        "| `7_cuda_graph`, the fastest stage sent float32 | 1.400 | 1.00 |",
        "| floats | 2.800 | 2.00 |",
        "| bytes | 1.500 | 1.50 |",
    ):
        assert row in text
    assert "The best loop sent uint8, bytes, takes 1.50" in text and "The best loop sent float32, floats, takes 2.00" in text


def test_a_pipeline_s_window_is_its_own(monkeypatch):
    """Stage 7 finds out how many batches take a second."""
    said = []

    def run(*what):
        said.extend(map(str, what))
        latency = {"median": 4.0, "p95": 5.0, "p99": 6.0}
        return Record(stage="7", per_batch_ms=1.5, measured=99, latency_ms=latency, parts_ms={"h2d": 0.5})

    ready = task.Ready("x", *[None] * 3)
    monkeypatch.setattr(on_tensorrt, "record_of", run)
    monkeypatch.setattr(on_tensorrt, "tensorrt", lambda job, precision: contextlib.nullcontext(ready))
    row = rows.Result("TensorRT pipeline (stage 7)", "fp16", batch=3)
    with on_tensorrt.pipeline(task.Task("resnet18", "random", 3), "fp16") as prepared:
        compare_engines.speed(row, prepared, None, 1.0)
    assert (row.ahead_ms, row.ahead_images_per_s, row.median_ms, row.p99_ms, row.h2d_ms) == (1.5, 2000, 4.0, None, 0.5)
    stage_options.parser("").parse_args(said[1:])  # ends the test where stages no longer have one of them
    assert said[0].endswith("7_cuda_graph.py") and not {"--batches", "--measure"} & {*said}


def test_a_loop_s_windows_come_from_five_processes(monkeypatch, tmp_path):
    """Dealt in rounds; one that cannot be run is said once, and is no reason to leave the others out."""
    said = []

    def run(*what):
        name, windows = what[2], int(what[what.index("--windows") + 1])
        said.append((name, windows))
        if name == "eager-fp32":
            raise EnvironmentFault("error: out of memory")
        return Record(stage=name, per_batch_ms=2.0, windows=[Window(2.0)] * windows)

    monkeypatch.setattr(pytorch, "record_of", run)
    names = ["eager-fp16-pinned", "eager-fp32", "graphs-3-slots"]
    options = argparse.Namespace(loops=names, processes=5, measure=None, batch=1, device="cuda", directory=tmp_path)
    assert pytorch.run_all(options) == 1
    assert said[:3] == [(name, 1) for name in names] and said[3:] == [(name, 2) for name in names[::2]] * 4
    assert len(Record.read(tmp_path / "peers" / "graphs-3-slots.json").windows) == 9
    assert [path.stem for path in (tmp_path / "peers").iterdir()].count("eager-fp32") == 0


@pytest.mark.slow
def test_a_loop_keeps_its_outputs_as_a_stage_does(monkeypatch):
    """In one block that was touched before the window: new memory for each would cost its pages' first touch."""
    pytest.importorskip("torch")
    kept = []
    monkeypatch.setattr(loops, "compare", lambda found, right: kept.append(found) or verify.compare(found, right))
    asked = argparse.Namespace(device="cpu", windows=1, measure=3)
    found = loops.run("eager-fp32", [noise_images([row, row + 1], (3, 224, 224), 1) for row in (0, 2)], asked)
    assert len(kept[0]) == 3 + WARM_UP and kept[0][0].base is kept[0][-1].base is not None
    assert found.outputs_match and len(found.windows) == 1


@pytest.mark.slow
def test_pytorch_loops_are_verified_and_timed_or_say_what_they_need(checkout, tmp_path):
    pytest.importorskip("torch")
    Record(stage="4_use_fp16", per_batch_ms=1.0, images_per_s=1000, batch=1, backend="simulated").write(tmp_path / "4_x.json")
    done = checkout.run("-m", "peers.pytorch", tmp_path, "eager-fp32", "graphs-3-slots", "--measure", "2", "--processes", "2")
    assert done.returncode == 1 and "graphs-3-slots" in done.stderr and "it needs an NVIDIA GPU" in done.stderr
    found = Record.read(tmp_path / "peers" / "eager-fp32.json")
    assert found.per_batch_ms > 0 and len(found.windows) == 3 and "eager-fp32" in (tmp_path / "peers.md").read_text()


# -- predictions


def test_modelled_results_are_neither_predicted_nor_raced(checkout, tmp_path):
    """The loops would take an hour on a CPU."""
    facts = {"images_per_s": 1e3, "batch": 1, "backend": "simulated", "device": devices.load("h200").name}
    Record(stage="4_use_fp16", per_batch_ms=1.0, **facts).write(tmp_path / "4_use_fp16.json")
    for words, said in ((("scripts.predict", "h200"), "is modelled itself"), (("peers.pytorch",), "--measure 2 tries a CPU")):
        done = checkout.run("-m", *words, tmp_path)
        assert done.returncode == 2 and said in done.stderr


def test_results_of_another_device_are_not_predicted(checkout, tmp_path):
    Record(stage="4_use_fp16", per_batch_ms=3.0, batch=128, device="NVIDIA A100").write(tmp_path / "4_use_fp16.json")
    done = checkout.run("-m", "scripts.predict", "h200", tmp_path)
    assert done.returncode == 2 and "4_use_fp16 was measured on NVIDIA A100, not on h200" in done.stderr


@pytest.mark.parametrize(
    "stage, precision, code, said",
    [
        ("14_mine", None, 2, "14_mine is no stage of this ladder"),
        ("4_use_fp16", "bf16", 3, "4_use_fp16.py: error: argument --precision: invalid"),
    ],
)
def test_what_cannot_be_predicted_is_said(checkout, tmp_path, stage, precision, code, said):
    Record(stage=stage, per_batch_ms=3.0, batch=128, batches=6, measured=3, precision=precision).write(
        tmp_path / f"{stage}.json"
    )
    done = checkout.run("-m", "scripts.predict", "h200", tmp_path)
    assert done.returncode == code and said in done.stderr and not (tmp_path / "prediction.json").exists()


def test_a_prediction_is_made_beside_a_report(checkout, tmp_path):
    """The stages that the report lacks are run, too, at the batch size of its first one: a small one here."""
    for stage, batch in (("4_use_fp16", 1), ("5_multi_streams", 128)):
        Record(stage=stage, per_batch_ms=3.0, batch=batch, batches=6, measured=3).write(tmp_path / f"{stage}.json")
    done = checkout.run("-m", "scripts.predict", "h200", tmp_path)
    assert done.returncode == 0 and "not INT8" not in done.stdout, done.stderr
    made = json.loads((tmp_path / "prediction.json").read_text())
    for row in made["stages"]:
        assert row["off"] == pytest.approx(row["predicted_ms"] / 3.0 - 1)
        assert row["stage"] in (tmp_path / "prediction.md").read_text()
    assert len(made["stages"]) == 2 and len(made["modelled_ms"]) == LADDER


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


@settings(max_examples=80)
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
