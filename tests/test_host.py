"""A host that others use as well: which runs count, and on which cores they are made."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import compare, host, profile_stages, tables
from scripts.host import ATTEMPTS, SLOWED, Host, median_of
from tests.conftest import ROOT, run

readings = st.lists(st.tuples(st.floats(500, 1200), st.floats(500, 1200)), min_size=1, max_size=12)


def known(results: list[dict]) -> Host:
    seen = Host()
    for result in results:
        seen.note(result)
    return seen


@given(readings, st.integers(1, 4))
def test_runs_that_nothing_slowed_down_come_first(pairs, wanted):
    results = [{"per_batch_ms": float(number), "core_us": list(pair)} for number, pair in enumerate(pairs)]
    seen = known(results)
    counted = seen.counted(results, wanted)
    assert len(counted) == min(wanted, len(results))
    assert sum(seen.slowed(result) <= SLOWED for result in counted) == min(wanted, seen.counting(results))
    left_out = [seen.slowed(result) for result in results if result not in counted]
    assert all(max(SLOWED, seen.slowed(result)) <= max(SLOWED, other) for result in counted for other in left_out)


@given(readings)
def test_what_a_run_took_does_not_decide_whether_it_counts(pairs):
    results = [{"per_batch_ms": 1.0 + number, "core_us": list(pair)} for number, pair in enumerate(pairs)]
    other = [{**result, "per_batch_ms": 100 / result["per_batch_ms"]} for result in results]
    chosen = [[result["core_us"] for result in known(each).counted(each, 3)] for each in (results, other)]
    assert chosen[0] == chosen[1]


def test_a_run_without_readings_counts():
    assert Host().counting([{"per_batch_ms": 1.0}, {"per_batch_ms": 1.0, "core_us": None}]) == 2


@pytest.mark.parametrize("slow_every, runs, counted", [(0, 3, 3), (2, 5, 3), (1, 9, 0)])
def test_runs_are_repeated_until_enough_count(monkeypatch, slow_every, runs, counted):
    monkeypatch.setattr(Host, "quick_cores", nullcontext)
    made = []
    seen = Host()
    seen.quickest_us = 600.0

    def run() -> dict:
        made.append(len(made))
        slow = slow_every and len(made) % slow_every == 0
        return {"per_batch_ms": 1.0, "core_us": [605.0, 1000.0 if slow else 610.0]}

    found = seen.repeated(run, 3)
    assert len(made) == runs and len(found) == 3 and seen.counting(found) == counted


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity to set")
def test_a_run_is_kept_to_the_quick_cores(monkeypatch):
    now = set(range(8))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(now))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: (now.clear(), now.update(cores)))
    monkeypatch.setattr(host, "core_us", lambda: 600.0 if min(now) in (1, 2, 4, 5, 7) else 1000.0)
    with Host().quick_cores():
        assert now == {1, 2, 4, 5, 7}
    assert now == set(range(8))
    monkeypatch.setattr(host, "core_us", lambda: 600.0 if min(now) == 3 else 900.0 + min(now))
    with Host().quick_cores():
        assert now == {3, 0, 1, 2}  # the quickest ones, where too few are quick

    def refuse(pid: int, cores: set[int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with Host().quick_cores():  # a sandbox that does not let a program choose
        assert now == set(range(8))


def profiler(folder: Path, stages: dict[str, list[tuple[float, float]]], monkeypatch: pytest.MonkeyPatch):
    """A profiler of stages whose runs take these (ms a batch, core's µs) in turn; and the order in which they are run."""
    order: list[str] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        name, path = Path(command[1]).stem, Path(command[command.index("--json") + 1])
        time_ms, core_us = stages[name][order.count(name)]
        path.write_text(json.dumps({
            "stage": name, "per_batch_ms": time_ms, "window_ms": time_ms, "images_per_s": 1, "intervals_ms": [], "submit_ms": 0,
            "core_us": [core_us, core_us], "outputs_match": None if "--no-verify" in command else True,
            "plan": "README.md", "backend": "tensorrt", "device": "GPU", "engine": "x", "batch": 1}))
        order.append(name)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(profile_stages.subprocess, "run", run)
    monkeypatch.setattr(Host, "quick_cores", nullcontext)
    options = argparse.Namespace(out=folder, repeats=2, force=False, **dict.fromkeys(profile_stages.PASSED_ON))
    return profile_stages.Profiler(options, "tensorrt", None), order


def test_stages_are_measured_in_rounds_until_two_runs_of_each_count(tmp_path, monkeypatch):
    quick, slow = 600.0, 1000.0
    stages = {"4_use_fp16": [(4.0, quick), (4.2, quick)],
              "5_multi_streams": [(9.0, slow), (5.0, quick), (9.5, slow), (5.2, quick)],
              "6_multi_threads": [(7.0, slow)] * 2 * ATTEMPTS}
    made, order = profiler(tmp_path, stages, monkeypatch)
    made.run([ROOT / f"{name}.py" for name in stages])
    assert not made.problems
    assert order[:6] == [*stages, *stages] and order[6:9] == ["5_multi_streams", "6_multi_threads", "5_multi_streams"]
    records = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in stages}
    assert records["4_use_fp16"]["repeats_ms"] == [4.0, 4.2] and not records["4_use_fp16"]["not_counted"]
    assert records["5_multi_streams"]["repeats_ms"] == [5.0, 5.2]
    assert [run["per_batch_ms"] for run in records["5_multi_streams"]["not_counted"]] == [9.0, 9.5]
    assert records["5_multi_streams"]["outputs_match"] is True  # of the first run, whose time does not count
    assert len(records["6_multi_threads"]["repeats_ms"]) == 2 and order.count("6_multi_threads") == 2 * ATTEMPTS
    rows = [compare.row(name, record, None) for name, record in records.items()]
    assert rows[2]["runs"] == {"counted": 2, "slowed": 2, "not_counted": 4}
    [sentence] = tables.quietness(rows)
    assert sentence.startswith("6 of 12 unprofiled runs do not count") and "2 of those that do" in sentence
    assert all(made.is_current(ROOT / f"{name}.py") for name in stages)


def test_what_is_interrupted_is_not_current(tmp_path, monkeypatch):
    made, _ = profiler(tmp_path, {"4_use_fp16": [(4.0, 600.0)]}, monkeypatch)
    script = ROOT / "4_use_fp16.py"
    made.runs[script] = []
    made.measure(script)
    assert (tmp_path / "4_use_fp16.json").exists() and not made.is_current(script)


def test_the_cores_can_be_looked_at():
    done = run("-m", "scripts.host")
    assert done.returncode == 0 and "µs" in done.stdout


def test_the_median_run_is_the_one_reported():
    results = [{"per_batch_ms": time_ms, "window_ms": time_ms * 10} for time_ms in (3.0, 1.0, 2.0)]
    assert median_of(results) == {"per_batch_ms": 2.0, "window_ms": 20.0, "repeats_ms": [3.0, 1.0, 2.0]}
