"""The device file of a measured GPU: derived from its raw medians and from nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from common import backend, plans
from common.errors import EnvironmentFault, UsageFault
from common.photographs import synthetic_jpeg
from sim import calibrate, device_file, gpu, simulator
from sim import device as devices
from tests.conftest import ROOT


@pytest.fixture(scope="module", autouse=True)
def int8(checkout, tmp_path_factory):
    """The layers of an INT8 file, whatever its scales are."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(2):
        (folder / f"{index}.jpg").write_bytes(synthetic_jpeg(index, 0))
    done = checkout.run("0_build.py", "--export-only", "--int8", "--calibration-images", folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture(autouse=True)
def models(checkout, monkeypatch):
    """Plans and ONNX files are the copy's."""
    monkeypatch.setattr(plans, "ROOT", checkout.folder)
    monkeypatch.setattr(device_file, "ROOT", checkout.folder)
    yield
    simulator.start().close()


RAW = ROOT / "reports" / "h200.calibration.json"


def test_the_h200_s_file_is_what_its_raw_medians_give(checkout):
    raw = json.loads(RAW.read_text(encoding="utf-8"))
    derived = device_file.derive(raw, "reports/h200.calibration.json")
    assert derived == (ROOT / "sim" / "devices" / "h200.toml").read_text(encoding="utf-8")


def test_the_modelled_kernels_are_within_a_tenth_of_every_measured_compute_time(checkout):
    """Rates are fitted at one batch size of each plan; the other sizes, and the plan for batch 1, are predictions."""
    device, raw = devices.load("h200"), json.loads(RAW.read_text(encoding="utf-8"))
    checked = 0
    for name, plan in raw["plans"].items():
        for batch, measured_us in plan["compute"].items():
            modelled_us = device_file.compute_us(device, device_file.network(name.split(",")[0]), int(batch), plan["opt"])
            assert modelled_us == pytest.approx(measured_us, rel=0.10), (name, batch)
            checked += 1
    assert checked == 10


def test_calibrating_a_simulated_gpu_gives_back_its_figures(checkout, monkeypatch):
    """On a GPU whose figures are known. (No byte is looked at: what is enqueued takes its modelled time, and moves and
    computes nothing, which would take long.)"""
    enqueue = gpu.Gpu.enqueue

    def timed_alone(self, stream, work, **how):
        return enqueue(self, stream, replace(work, run=lambda: None) if work.unit else work, **how)

    monkeypatch.setattr(gpu.Gpu, "enqueue", timed_alone)
    monkeypatch.setattr(calibrate, "ROUNDS", 1)
    monkeypatch.setattr(backend, "_current", None)
    backend.select("simulated", "h200")
    found = devices.parse_toml(device_file.derive(calibrate.measure(), "raw.json"))
    true = devices.parse_toml((ROOT / "sim" / "devices" / "h200.toml").read_text(encoding="utf-8"))
    for section, key, tolerance in [
        ("copy", "h2d_pinned_gb_s", 0.01),
        ("copy", "h2d_pageable_gb_s", 0.01),
        ("copy", "d2h_pinned_gb_s", 0.01),
        ("copy", "latency_us", 0.2),
        ("copy", "handover_us", 0.02),
        ("compute", "memory_gb_s", 0.05),
        ("compute", "fp32_tflop_s", 0.05),
        ("compute", "fp16_tflop_s", 0.05),
        ("host", "call_us", 0.01),
        ("host", "kernel_launch_us", 0.05),
        ("host", "enqueue_us", 0.1),
        ("host", "shape_change_us", 0.05),
        ("host", "allocate_us_per_mb", 0.02),
        ("host", "queue_us", 0.01),
        ("host", "range_us", 0.01),
        ("host", "postprocess_us_per_image", 0.02),
        ("host", "postprocess_us", 0.05),
        ("host", "tensorrt_call_us", 0.02),
        ("host", "crowded_launch_us", 0.1),
    ]:
        assert found[section][key] == pytest.approx(true[section][key], rel=tolerance), key
    for call in ("cudaMalloc", "cudaFree", "cudaMemcpyAsync", "cudaGraphLaunch"):
        assert found["host"]["calls_us"][call] == pytest.approx(true["host"]["calls_us"][call], rel=0.1), call


def test_a_precision_is_added_to_what_was_measured_before(checkout, monkeypatch):
    """With FP16's compute twice as fast, and called INT8's, the file has twice FP16's rate for it, and all else as it was."""
    raw = json.loads(RAW.read_text(encoding="utf-8"))
    half = {batch: us / 2 for batch, us in raw["plans"]["fp16"]["compute"].items()}
    monkeypatch.setattr(calibrate.Bench, "plan", lambda self, plan: {**raw["plans"]["fp16"], "compute": half})
    monkeypatch.setattr(calibrate, "default_plan", lambda precision: ROOT / precision)
    monkeypatch.setattr(backend, "_current", None)
    backend.select("simulated", "h200")
    raw["plans"].pop("int8", None)
    added = calibrate.add(raw, "int8")
    assert {**added, "plans": {**added["plans"], "int8": None}} == {**raw, "plans": {**raw["plans"], "int8": None}}
    assert added["plans"]["int8"]["compute"] == half and added["plans"]["int8"]["measured"]["date"]


def test_a_precision_that_was_added_later_moves_no_other_s_figures(checkout):
    """A floor of all kernels that heeded it, too, would move all that is modelled of FP32 and FP16."""
    raw = json.loads(RAW.read_text(encoding="utf-8"))
    with_it = devices.parse_toml((ROOT / "sim" / "devices" / "h200.toml").read_text(encoding="utf-8"))["compute"]
    del raw["plans"]["int8"]
    without = devices.parse_toml(device_file.derive(raw, "raw.json"))["compute"]
    assert without.keys() == with_it.keys()
    assert {key for key in with_it if without[key] != with_it[key]} == {"int8_tflop_s", "int8_last_wave_share"}


def test_a_missing_model_is_asked_for_by_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(device_file, "ROOT", tmp_path)
    with pytest.raises(EnvironmentFault, match="--export-only --int8 --calibration-images DIR"):
        device_file.network("int8")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"plans": []}', '{"plans": {}, "copies": 5}', "[" * 100_000])
def test_medians_that_nobody_measured_are_said_before_a_gpu_is_asked(monkeypatch, tmp_path, content):
    """And no device file is written of them; what lacks more than the plans is said when it is derived."""
    (tmp_path / "raw.json").write_text(content)
    monkeypatch.setattr(calibrate, "ROOT", tmp_path)
    for how in [["--derive-only"], *([["--add", "int8"]] if "copies" not in content else [])]:
        monkeypatch.setattr("sys.argv", ["calibrate", "mine", "--raw", str(tmp_path / "raw.json"), *how])
        with pytest.raises(UsageFault, match=r"raw\.json"):
            calibrate.main()
    assert not (tmp_path / "sim").exists()
