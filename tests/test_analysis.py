"""The reader and the arithmetic: against brute force, and against two real traces whose figures are known."""

from __future__ import annotations

import json
import shutil
import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.trace import TraceError, read
from harness import advice, compare
from harness.analysis import analyse, limiter
from harness.intervals import clip, overlap, total, union
from harness.rows import Row, read_rows
from tests.conftest import CHEAP, ROOT, SIMULATED, number, stage_scripts

interval = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))
sets = st.lists(interval, max_size=12).map(lambda rows: np.array(rows, np.int64).reshape(-1, 2))


def ticks(intervals) -> set[int]:
    return {tick for start, end in intervals for tick in range(start, end)}


@given(sets)
def test_union_covers_the_same_and_is_disjoint(intervals):
    merged = union(intervals)
    assert ticks(merged) == ticks(intervals)
    assert (merged[1:, 0] > merged[:-1, 1]).all()
    assert total(intervals) == len(ticks(intervals))


@given(sets, sets)
def test_overlap_is_the_intersection(one, other):
    assert overlap(one, other) == len(ticks(one) & ticks(other))


@given(sets, st.integers(0, 70), st.integers(0, 70))
def test_clip_cuts_at_the_window(intervals, start, end):
    assert ticks(clip(intervals, start, end)) == ticks(intervals) & set(range(start, end))


@pytest.mark.parametrize(
    "name, per_batch, h2d, compute, d2h, hidden, idle",
    [("serial", 3.341, 1.390, 1.300, 0.011, 0.0, 0.191), ("streams", 1.842, 1.39, 1.300, None, 0.646, 0.114)],
)
def test_real_traces_give_the_known_figures(real_traces, name, per_batch, h2d, compute, d2h, hidden, idle):
    found = analyse(read(real_traces[name]))
    assert found.per_batch_ms == pytest.approx(per_batch, abs=0.0006)
    assert found.h2d_ms == pytest.approx(h2d, abs=0.002)
    assert found.compute_ms == pytest.approx(compute, abs=0.003)
    assert d2h is None or found.d2h_ms == pytest.approx(d2h, abs=0.0006)
    assert found.overlap == pytest.approx(hidden, abs=0.0006)
    assert found.gpu_idle == pytest.approx(idle, abs=0.0006)
    assert found.launches == 41
    assert found.h2d_gb_s == pytest.approx(55.4, abs=0.1)
    assert found.h2d_ms == max(found.h2d_ms, found.compute_ms, found.d2h_ms, found.postprocess_ms)
    assert limiter(found.h2d_ms, "h2d", found.per_batch_ms, found.launch_gaps_ms) == "serialized"


def test_the_real_device_is_named(real_traces):
    assert read(real_traces["serial"]).device == "NVIDIA H200"


@pytest.mark.parametrize("script", ["4_use_fp16", "5_multi_streams", "6_multi_threads", "8_multi_context"])
def test_a_trace_and_the_stage_s_own_clock_agree(checkout, tmp_path, script):
    """The NVTX window of the trace is the window of the result record; the parts are the device's."""
    paths = [tmp_path / f"{script}{suffix}" for suffix in (".json", ".sqlite")]
    device = ("--device", "v100-sxm2-32gb")
    done = checkout.run(f"{script}.py", *SIMULATED, *device, *CHEAP, "--no-controls", "--json", paths[0], "--trace", paths[1])
    assert done.returncode == 0, done.stderr
    record, found = json.loads(paths[0].read_text()), analyse(read(paths[1]))
    assert found.per_batch_ms == pytest.approx(record["per_batch_ms"], abs=1e-6)
    assert found.h2d_ms == pytest.approx(6.914, abs=0.01)
    assert found.launches == 25
    if script == "4_use_fp16":
        assert found.overlap == 0 and found.compute_ms == pytest.approx(7.957, abs=0.01)
        parts = found.h2d_ms + found.compute_ms + found.d2h_ms + found.postprocess_ms
        assert found.per_batch_ms == pytest.approx(parts, rel=0.01)  # serial: the sum
    else:
        assert found.overlap >= 0.9
        assert found.compute_ms == pytest.approx(8.6, abs=0.02)  # slowed by the copy beside it
    if script == "6_multi_threads":
        assert found.per_batch_ms == pytest.approx(found.compute_ms, rel=0.01)  # pipelined: the longest part


def test_a_trace_without_our_ranges_says_why(tmp_path):
    path = tmp_path / "empty.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE StringIds (id INTEGER, value TEXT)")
    with pytest.raises(TraceError, match=r"nvtx 0\.2\.11"):
        read(path)
    (tmp_path / "other.sqlite").write_text("not a database at all, but long enough to be taken for one" * 20)
    with pytest.raises(TraceError, match="nsys export"):
        read(tmp_path / "other.sqlite")
    with pytest.raises(TraceError, match="no such file"):
        read(tmp_path / "none.sqlite")


def test_a_trace_without_gpu_work_says_why(real_traces, tmp_path):
    path = tmp_path / "nogpu.sqlite"
    shutil.copy(real_traces["serial"], path)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE CUPTI_ACTIVITY_KIND_KERNEL")
    with pytest.raises(TraceError, match="too old for the CUDA driver"):
        read(path)


def test_ladder_order_is_by_number():
    names = ["10_later", "2_b", "peer_pytorch", "1_a"]
    assert sorted(names, key=compare.ladder_order) == ["1_a", "2_b", "10_later", "peer_pytorch"]


def stage(**facts) -> Row:
    usual = {"limiter": "serialized", "percent_of_limit": 50.0, "overlap": 0.0, "precision": "fp16", "launches": 25}
    return Row("x", **{**usual, "allocations": 0, "library_allocations": 0, "h2d_gb_s": 50.0, "per_batch_ms": 1.0, **facts})


@pytest.mark.parametrize(
    "facts, words",
    [
        ({}, "stage 5"),
        ({"precision": "fp32"}, "stage 4"),
        ({"allocations": 4.0}, "stage 2"),
        ({"h2d_gb_s": 9.0}, "stage 3"),
        ({"overlap": 0.95}, "stage 6"),
        ({"limiter": "launch"}, "stage 7"),
        ({"limiter": "compute", "percent_of_limit": 99.0}, "compute-bound at 99 %"),
        ({"limiter": "compute", "percent_of_limit": 92.0}, "stage 7"),
        ({"library_allocations": 7.0}, "context for each"),
        ({"limiter": "compute", "precision": "fp32"}, "stage 4"),
        ({"limiter": "h2d"}, "fewer bytes"),
        ({"limiter": "h2d", "h2d_gb_s": 10.0}, "stage 3"),
        ({"limiter": "postprocess"}, "host's post-processing"),
        ({"limiter": "d2h"}, "output copy"),
    ],
)
def test_advice_names_what_attacks_the_limiter(facts, words):
    rows = [stage(**facts), stage(h2d_gb_s=55.0)]
    assert words in advice.remedy(rows[0], rows)


def test_one_stage_alone_is_the_fastest_of_nothing():
    alone, both = (advice.advice([stage(speedup_vs_baseline=1.0) for _ in range(count)]) for count in (1, 2))
    assert "no stage is faster" in both and "no stage is faster" not in alone and "ms a batch). Next:" in alone


PROFILE = ("-m", "harness.profile", *SIMULATED, "--batch", "2", "--charge-batch")


@pytest.fixture(scope="module", params=["h200", pytest.param("v100-sxm2-32gb", marks=pytest.mark.slow)])
def modelled(request, checkout, tmp_path_factory) -> tuple[str, list[Row]]:
    """The device and the rows of the whole ladder on a modelled GPU."""
    folder = tmp_path_factory.mktemp(request.param)
    done = checkout.run(*PROFILE, "128", "--device", request.param, "--out", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return request.param, read_rows(folder / "comparison.json")[1]


def report(name: str) -> list[Row]:
    return read_rows(ROOT / "reports" / name / "comparison.json")[1]


def remedies(rows: list[Row]) -> dict[str, str]:
    return {row.stage.split("_")[0]: advice.remedy(row, rows) for row in rows}


def test_each_modelled_stage_is_sent_to_the_step_that_helps(modelled):
    device, rows = modelled
    found = remedies(rows)
    for name, words in (("1", "stage 2"), ("2", "stage 3"), ("3", "stage 4"), ("4", "stage 5"), ("5", "stage 6")):
        assert words in found[name], found[name]
    last = "compute-bound at" if device.startswith("v100") else "fewer bytes"
    assert last in found["6"] and last in found["7"]
    assert not [row.stage for row in rows if row.faulty]
    assert "no schedule helps" in found["6"] or "neither a faster engine nor another schedule" in found["6"]


def test_each_measured_stage_is_sent_to_the_step_that_helps():
    """The same on real traces: the committed report of the H200."""
    found = remedies(report("h200-trt8.6-batch128"))
    steps = ("stage 2", "stage 3", "stage 4", "stage 5", "stage 6", *["fewer bytes"] * 3, "stage 5")
    for name, words in zip("123456789", steps):
        assert words in found[name], (name, found[name])
    found = remedies(report("h200-trt8.6-batch1"))
    assert "stage 7" in found["6"] and "compute-bound at 97 %" in found["7"]


def test_every_step_s_advice_is_followed_by_a_gain_in_the_report():
    """Where the advice names the next stage, that stage is faster (but for reuse, which is lost in noise on the H200)."""
    rows = {row.stage.split("_")[0]: row for row in report("h200-trt8.6-batch128")}
    for before, after in (("2", "3"), ("3", "4"), ("4", "5"), ("5", "6")):
        assert rows[after].per_batch_ms < rows[before].per_batch_ms


def test_compare_writes_one_table_from_traces_and_records(checkout, real_traces, tmp_path):
    for name, path in real_traces.items():
        shutil.copy(path, tmp_path / f"{len(name)}_{name}.sqlite")
    done = checkout.run("-m", "scripts.compare", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["stage"] for row in content["stages"]] == ["6_serial", "7_streams"]
    assert content["stages"][1]["speedup_vs_previous"] == pytest.approx(3.341 / 1.842, rel=1e-3)
    assert content["run"]["device"] == "NVIDIA H200"
    for suffix in ("csv", "md"):
        assert "7_streams" in (tmp_path / f"comparison.{suffix}").read_text()
    assert "Next:" in done.stdout


def test_the_comparison_has_the_contract_s_keys(checkout, real_traces, tmp_path):
    shutil.copy(real_traces["serial"], tmp_path / "1_serial.sqlite")
    checkout.run("-m", "scripts.compare", tmp_path)
    row = json.loads((tmp_path / "comparison.json").read_text())["stages"][0]
    contract = (
        "stage per_batch_ms images_per_s speedup_vs_previous speedup_vs_baseline h2d_ms compute_ms d2h_ms postprocess_ms "
        "overlap gpu_idle launches limit_ms percent_of_limit limiter outputs_match peak_device_memory_mb"
    )
    assert set(contract.split()) <= set(row)


def test_profile_all_resumes(checkout, tmp_path):
    command = [*PROFILE, "128", "--out", tmp_path, "4_use_fp16", "5"]
    first, second = checkout.run(*command), checkout.run(*command)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.count("outputs right") == 2 and second.stdout.count("are there and current") == 2
    assert (tmp_path / "comparison.json").exists()
    assert checkout.run(*command[:-2], "5", "--seed", "4").stdout.count("outputs right") == 1  # other options: run again


def test_profile_all_goes_on_after_a_failure(checkout, tmp_path):
    done = checkout.run(*PROFILE, "300", "--out", tmp_path, "4", "5")
    assert done.returncode == 2  # the stages' own
    assert done.stdout.count("failed") == 2 and "300 does not fit" in " ".join(done.stdout.split())


def test_stages_are_found_by_their_names(monkeypatch, tmp_path):
    """In the order of their numbers: 10 comes after 9."""
    from harness import profile

    assert [path.name for path in profile.numbered(profile.ROOT, profile.LAST)] == stage_scripts()
    for name in ("0_build", "1_a", "9_b", "10_c", "2_d"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.setattr(profile, "ROOT", tmp_path)
    assert [path.stem for path in profile.numbered(profile.ROOT, profile.LAST)] == ["1_a", "2_d", "9_b", "10_c"]
    monkeypatch.setattr("sys.argv", ["profile", "10", "9_b"])
    assert [path.stem for path in profile.parse_options().chosen] == ["9_b", "10_c"]


@pytest.mark.slow
def test_profile_all_shows_every_lesson(checkout, tmp_path):
    """Without options: the ladder in six columns with stage 9 below them, then the graph's gain at batch 1; in 80 columns."""
    done = checkout.run("-m", "harness.profile", *SIMULATED, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = done.stdout.split("Where launches count")
    rows = [line.split() for line in first.splitlines() if line.split("_")[0].isdigit()]
    steps = [name[:-3] for name in stage_scripts() if number(name) in (*range(1, 9), 10)]
    assert [row[0] for row in rows if len(row) == 6] == steps
    assert "9_multi_profiles (a side branch: hold it against 4_use_fp16)" in first and "Fastest: 9" not in first
    table = [line for line in done.stdout.splitlines() if line.startswith("stage ")]
    assert len(table) == 2 and max(map(len, table)) <= 80
    before, after = (row for row in read_rows(tmp_path / "batch1" / "comparison.json")[1] if number(row.stage) in (6, 7))
    assert after.per_batch_ms < 0.97 * before.per_batch_ms and after.submit_ms < 0.2 * before.submit_ms
    assert "7_cuda_graph" in second
