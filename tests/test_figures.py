"""Each figure of a comparison against a trace written by hand, in which it can be counted."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.record import Record, Window
from common.timeline import bars
from common.trace import read
from harness import advice, compare, profiler, svg, tables
from harness.analysis import Analysis, analyse, limiter
from harness.rows import Row, read_rows
from tests.conftest import ROOT

TABLES = {
    "StringIds": "id, value",
    "NVTX_EVENTS": "start, end, eventType, text, textId, globalTid",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start, end, globalTid, correlationId, nameId",
    "CUPTI_ACTIVITY_KIND_KERNEL": "start, end, correlationId",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": "start, end, correlationId",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "start, end, correlationId, bytes, copyKind",
}
WEIGHTS = 150_000_000
US = 1000


class Written:
    """A trace of batches that follow one another, each in a span of its own; times in µs, bytes as they are."""

    def __init__(self, path: Path) -> None:
        self.path, self.connection, self.calls = path, sqlite3.connect(path), 0
        for name, columns in TABLES.items():
            self.connection.execute(f"CREATE TABLE {name} ({columns})")
        self.connection.execute("INSERT INTO StringIds VALUES (1, 'cudaLaunchKernel'), (2, 'cudaMemcpyAsync')")

    def event(self, name: str, start: int, end: int, kind: int = 59) -> None:
        self.connection.execute("INSERT INTO NVTX_EVENTS VALUES (?, ?, ?, ?, NULL, 7)", (start * US, end * US, kind, name))

    def operation(self, table: str, called: int, start: int, end: int, *more: int) -> None:
        self.calls += 1
        name = 2 if table == "MEMCPY" else 1
        row = (called * US, called * US + 1, self.calls, name)
        self.connection.execute("INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, 7, ?, ?)", row)
        marks = ", ".join("?" * (3 + len(more)))
        row = (start * US, end * US, self.calls, *more)
        self.connection.execute(f"INSERT INTO CUPTI_ACTIVITY_KIND_{table} VALUES ({marks})", row)

    def batch(self, at: int, images: int = 4, copy: int = 20, kernels: int = 30, post: int = 10, graph: bool = False) -> int:
        """A copy, two kernels that overlap by a third, a copy back, post-processing; returns when it is done."""
        first = at + copy + 2
        self.operation("MEMCPY", at + 1, at + 2, first, images * 1000, 1)
        if graph:
            self.operation("GRAPH_TRACE", at + 1, first, first + kernels)
        else:
            self.operation("KERNEL", at + 1, first, first + 2 * kernels // 3)
            self.operation("KERNEL", at + 1, first + kernels // 3, first + kernels)
        self.operation("MEMCPY", at + 1, first + kernels, first + kernels + 4, images * 10, 2)
        self.event("infer", at, at + 5)
        done = first + kernels + 5
        self.event("postprocess", done, done + post)
        return done + post

    def analysed(self, warm: int, end: int) -> Analysis:
        self.event("measured batches", warm, end, 60)
        self.connection.commit()
        self.connection.close()
        return analyse(read(self.path))


@pytest.fixture
def trace(tmp_path) -> Written:
    return Written(tmp_path / "1_written.sqlite")


def serial(trace: Written, **sizes: int) -> Analysis:
    ends = [0]
    for _ in range(5):
        ends.append(trace.batch(ends[-1], **sizes))
    return trace.analysed(ends[2], ends[-1])


def test_the_parts_of_a_serial_batch(trace):
    found = serial(trace)
    assert (found.h2d_ms, found.compute_ms, found.d2h_ms) == pytest.approx((0.020, 0.030, 0.004))  # the union of two kernels
    assert (found.postprocess_ms, found.submit_ms, found.per_batch_ms) == pytest.approx((0.010, 0.005, 0.067))
    assert (found.launches, found.launch_gaps_ms, found.overlap, found.copy_hidden) == (2, 0, 0, 0)
    assert found.gpu_idle == pytest.approx(1 - 54 / 67) and found.h2d_gb_s == pytest.approx(4000 / 20_000)


def test_weights_copied_during_the_warm_up_change_nothing(trace):
    trace.operation("MEMCPY", 1, 2, 40_000, WEIGHTS, 1)
    assert serial(trace).h2d_ms == pytest.approx(0.020)


def test_a_batch_that_is_sent_in_two_copies_costs_both(trace):
    for start in range(0, 5 * 67, 67):
        trace.operation("MEMCPY", start + 1, start + 60, start + 66, 4000, 1)
    assert serial(trace).h2d_ms == pytest.approx(0.026)


def test_whole_graphs_are_counted_and_said(trace):
    found = serial(trace, graph=True)
    assert found.compute_ms == pytest.approx(0.030) and found.launches == 1
    said = compare.Comparison(trace.path.parent).problems
    assert len(said) == 1 and "--cuda-graph-trace=node" in said[0]


def test_what_a_trace_told_stays_when_it_is_gone_unless_the_run_is_another(trace):
    """As of a committed report, which has no traces."""
    serial(trace)
    folder, name = trace.path.parent, trace.path.stem
    record = Record("tensorrt", "a GPU", "TensorRT 8.6.0", 4, stage=name, per_batch_ms=0.066)
    files = [folder / f"comparison.{suffix}" for suffix in ("json", "csv", "md", "html")]

    def compared() -> compare.Comparison:
        record.write(folder / f"{name}.json")
        found = compare.Comparison(folder)
        found.write()
        return found

    told = compared().rows[0]
    before = [path.read_bytes() for path in files]
    assert (told.launches, told.limiter, told.profiled_per_batch_ms) == (2, "serialized", pytest.approx(0.067))
    assert b"<svg" in before[-1]
    trace.path.unlink()
    found = compared()
    assert "no trace of 1_written is here" in found.problems[0]
    assert [path.read_bytes() for path in files] == before  # the page too, with its timeline
    record.per_batch_ms = 0.065
    found = compared()
    assert not found.problems and found.rows[0].launches is None and b"<svg" not in files[-1].read_bytes()


@pytest.mark.parametrize("count", [4, 5])
def test_batches_of_two_sizes_are_averaged_whatever_their_number(trace, count):
    """Three sizes' medians in turn: an odd number of batches must not make it the median of one of them."""
    ends = [0]
    for index in range(count + 2):
        large = index % 2
        ends.append(trace.batch(ends[-1], images=4 + 4 * large, copy=20 + 20 * large, kernels=30 + 30 * large))
    found = trace.analysed(ends[2], ends[-1])
    share = count // 2 / count
    assert found.h2d_ms == pytest.approx(0.020 + 0.020 * share) and found.compute_ms == pytest.approx(0.030 + 0.030 * share)


def test_post_processing_is_of_the_measured_batches(trace):
    ends = [0]
    for index in range(6):
        ends.append(trace.batch(ends[-1], post=100 if index < 3 else 10))
    trace.event("postprocess", ends[-1] + 50, ends[-1] + 950)  # after the window
    assert trace.analysed(ends[3], ends[-1]).postprocess_ms == pytest.approx(0.010)


def test_what_is_hidden_is_a_share_of_the_copies(trace):
    """A copy of 40 µs of which 30 lie under a kernel of 30: the kernel is covered whole, the copy is not hidden whole."""
    for at in range(0, 500, 50):
        trace.event("infer", at, at + 5)
        trace.operation("MEMCPY", at + 1, at + 5, at + 45, 4000, 1)
        trace.operation("KERNEL", at + 2, at + 10, at + 40)
        trace.event("postprocess", at + 46, at + 50)
    found = trace.analysed(100, 500)
    assert (found.overlap, found.copy_hidden) == pytest.approx((1.0, 0.75))


@pytest.mark.parametrize("count", [2, 3])
def test_the_last_batch_s_input_is_copied_in_the_range_before(trace, count):
    """As a pipeline does that copies ahead: the last range submits no copy, and its batch had one all the same."""
    for batch in range(1 + count):
        at = 100 * batch
        trace.event("infer", at, at + 5)
        for ahead in {0: (0, 1), count: ()}.get(batch, (1,)):
            trace.operation("MEMCPY", at + 1, at + 10 + 20 * ahead, at + 30 + 20 * ahead, 4000, 1)
        trace.operation("KERNEL", at + 2, at + 50, at + 80)
        trace.event("postprocess", at + 90, at + 95)
    found = trace.analysed(95, 100 * count + 95)
    assert found.h2d_ms == pytest.approx(0.020) and found.h2d_gb_s == pytest.approx(4000 / 20_000)


@pytest.mark.parametrize(
    "limit_ms, waits_ms, expected",
    [(1.9, 0.0, "h2d"), (1.8, 9.0, "h2d"), (1.7, 0.2, "launch"), (1.0, 0.5, "launch"), (1.0, 0.49, "serialized")],
)
def test_a_stage_is_limited_by_its_part_or_by_half_of_what_is_lost(limit_ms, waits_ms, expected):
    """Of 2 ms: from 90 % of the limit on the part; below, launches if the GPU waits for them in half of the rest or more."""
    assert limiter(limit_ms, "h2d", 2.0, waits_ms) == expected


# -- rows

PARTS = {"h2d": 0.5, "compute": 1.0, "d2h": 0.1, "postprocess": 0.2}


def rows(*records: Record) -> list[Row]:
    found = [compare.row(record, None) for record in records]
    compare.relate(found)
    return found


def record(ms: float, **facts) -> Record:
    window = Window(ms, 128 / ms * 1e3, 100 * ms, latency_ms={"median": 2 * ms, "p95": 3 * ms, "p99": 4 * ms}, energy_j=6.4)
    return replace(Record(stage="x", batch=128, parts_ms=PARTS, windows=[window], **vars(window)), **facts)


def test_the_limit_is_of_the_unprofiled_run(trace):
    """Not of the trace, whose profiler slows everything."""
    analysis = serial(trace)
    found = compare.row(record(2.0), analysis)
    assert (found.limit_ms, found.percent_of_limit, found.per_batch_ms) == (1.0, 50.0, 2.0)
    assert found.profiled_per_batch_ms == pytest.approx(0.067) and found.images_per_s == 64_000
    assert compare.row(record(2.0, parts_ms=None), analysis).limit_ms == pytest.approx(0.030)
    assert found.latency_p99_ms == 8.0 and found.energy_j_per_1000 == pytest.approx(6.4 / 12.8)


def test_what_is_faster_than_its_limit_is_marked_and_never_the_fastest():
    first, second, third = rows(record(4.0), record(1.5), record(0.9))
    assert [row.faulty for row in (first, second, third)] == [False, False, True]
    assert "--measure" in third.notes[0] and third.shown["percent_of_limit"] == "111 !"
    assert "Fastest: x (1.500 ms" in advice.advice([first, second, third])
    assert advice.advice([third]).startswith("No stage counts")


def test_a_plan_that_names_other_classes_than_fp32_says_so_beside_its_time():
    for share, told in ((0.79, True), (0.95, False), (None, False)):
        notes = compare.row(record(2.0, fp32_top1_agreement=share), None).notes
        assert any("79% of the images only" in note for note in notes) == told


@pytest.mark.parametrize("ms, faulty", [(1.0, False), (0.995, False), (0.985, True), (0.95, True)])
def test_one_percent_beyond_the_limit_is_a_fault(ms, faulty):
    """Of the record, which a stage prints, and of its row."""
    assert record(ms).faulty is rows(record(ms))[0].faulty is faulty


def test_a_stage_that_decodes_is_limited_by_its_decoder():
    """The H200's, of which copies and compute leave 5.3 ms a batch; the whole waits where it is far from that limit, too."""
    told = Record.read(ROOT / "reports" / "h200-jpeg" / "11_jpeg_decode.json")
    (found,) = rows(told)
    assert found.limit_ms == found.ladder_limit_ms == told.parts_ms["decode"] > 5 * told.parts_ms["compute"]
    assert found.limiter == "decode" and "bound by the decoder at 85 % of its limit: a faster one" in advice.advice([found])
    (far,) = rows(replace(told, per_batch_ms=2.1 * found.limit_ms))
    assert far.limiter == "serialized" and "the decoder waits for its files; at best 6.98 ms" in advice.advice([far])
    faster = {**told.parts_ms, "decode": 3.0}
    ladder = rows(told, replace(told, parts_ms=faster), replace(told, parts_ms={**PARTS, "compute": 2.0}))
    assert [each.ladder_limit_ms for each in ladder] == [3.0, 3.0, pytest.approx(told.parts_ms["compute"])]
    gone = remedied(2.0, limiter="postprocess", parts_ms={**H200, "postprocess": 2.0, "decode": 1.5})
    assert "then decode limits: 1.5" in gone


def test_a_limiter_that_was_kept_is_of_the_same_limit(tmp_path):
    folder = shutil.copytree(ROOT / "reports" / "h200-jpeg", tmp_path / "copy", ignore=shutil.ignore_patterns("records"))
    kept = json.loads((folder / "comparison.json").read_text())
    for limit_ms, wanted in ((kept["stages"][0]["limit_ms"], "launch"), (1.302, "decode")):
        kept["stages"][0].update(limit_ms=limit_ms, limiter="launch")
        (folder / "comparison.json").write_text(json.dumps(kept))
        (found,) = compare.Comparison(folder).rows
        assert (found.limiter, round(found.gpu_idle, 2)) == (wanted, 0.69)


def test_submission_is_waited_for_only_where_batches_are_on_their_way_side_by_side():
    """Submitting takes 1.9 of 2 ms. A serial stage waits inside; in one that is ahead of the GPU, the GPU waits for it."""
    for late_ms, expected in ((2.0, "serialized"), (2.3, "serialized"), (2.5, "launch"), (6.0, "launch")):
        each = record(2.0, submit_ms=1.9, latency_ms={"median": late_ms, "p95": late_ms, "p99": late_ms})
        assert compare.row(each, None).limiter == expected


def test_a_stage_is_held_against_the_one_that_it_differs_from():
    """By its script's word: 8 differs from 6, 9 from 4. What has no script, or no parent in the folder: the row above."""
    times = {"4_use_fp16": 4.0, "6_multi_threads": 2.0, "7_cuda_graph": 1.0, "8_multi_context": 1.6, "9_multi_profiles": 8.0}
    found = rows(*(record(ms, stage=stage) for stage, ms in {**times, "10_mine": 0.8}.items()))
    assert [row.speedup_vs_previous for row in found] == [None, *map(pytest.approx, (2.0, 2.0, 2 / 1.6, 0.5, 10.0))]


# -- what a remedy can bring: the parts of the H200, of which four bytes a pixel take a third, and three a quarter

H200 = {"h2d": 1.392, "compute": 1.29, "d2h": 0.01, "postprocess": 0.3}


def remedied(ms: float, *others: Record, limiter: str | None = None, trace: dict | None = None, **facts) -> str:
    """The remedy of a stage at ``ms``, with what only a trace tells, given the rows of other records."""
    found = rows(record(ms, **{"parts_ms": H200, "precision": "fp16", **facts}), *others)
    told = {"h2d_gb_s": 55.0, "overlap": 0.0, "launches": 25, "allocations": 0, "library_allocations": 0, **(trace or {})}
    for name, value in told.items():
        setattr(found[0], name, value)
    for row in found[1:]:
        row.h2d_gb_s = 55.0
    assert limiter in (None, found[0].limiter)
    return advice.remedy(found[0], found)


INT8 = record(1.0, precision="int8", input="uint8", parts_ms={**H200, "h2d": 0.35, "compute": 0.81})


def test_bytes_are_forecast_by_arithmetic_and_int8_where_it_was_measured():
    copied = "uint8 (stage 10; copy in 1.39 → 0.464 ms, then compute limits: 1.29, 7 % less"
    assert f"{copied})" in remedied(1.4, limiter="h2d") and "INT8" not in remedied(1.4)
    assert f"{copied}; with INT8 0.81, 42 % less)" in remedied(1.4, INT8)
    assert f"{copied})" in remedied(1.4, replace(INT8, images_per_s=1000.0))  # of other batches: it tells nothing of these
    halves = remedied(1.4, input="float16")
    assert "copy in 1.39 → 0.928 ms" in halves
    assert "copy in 1.39 → 0.348 ms" in remedied(1.4, precision="int8")
    assert "uint8" not in remedied(1.4, input="uint8") and "compressed images" in remedied(1.4, input="uint8")


def test_the_simulator_s_word_stands_beside_the_forecast_of_the_stage_that_is_named(tmp_path):
    """It is prediction.json's, of the stage that the remedy names and of no other, in INT8 where that is named."""
    modelled = {"5_multi_streams": 1.7, "10_uint8_input": 1.39, "10_uint8_input --precision int8": 0.82}
    times = {"4_use_fp16": (3.0, H200), "7_cuda_graph": (1.4, H200), "10_uint8_input": (1.3, {**H200, "h2d": 0.47})}
    for name, (ms, parts) in times.items():
        record(ms, stage=name, parts_ms=parts, precision="fp16", input="uint8" if parts is not H200 else "float32").write(
            tmp_path / f"{name}.json"
        )
    (tmp_path / "prediction.json").write_text(json.dumps({"modelled_ms": modelled}))
    found = {row.stage: row for row in compare.Comparison(tmp_path).rows}
    assert {name: row.modelled_next_ms for name, row in found.items()} == dict(zip(times, (1.7, 1.39, 0.82)))
    assert "(the simulator says 0.82 ms for INT8)" in advice.advice(list(found.values()))
    assert "(the simulator says 1.39 ms for stage 10)" in advice.remedy(found["7_cuda_graph"], [*found.values()])
    in_int8 = [replace(found["7_cuda_graph"], precision="int8")]
    for known, word in ((modelled, "10_uint8_input --precision int8"), (list(modelled)[:2], None)):
        assert advice.named(in_int8[0], in_int8, known) == word
    for broken in ("{}", "[]", '{"modelled_ms": [1]}', '{"modelled_ms": {"5_multi_streams": "x"}}'):
        (tmp_path / "prediction.json").write_text(broken)
        assert {row.modelled_next_ms for row in compare.Comparison(tmp_path).rows} == {None}


def test_a_faster_engine_is_forecast_only_where_it_was_measured():
    slow = {**H200, "compute": 3.0}
    half = record(2.0, precision="fp16", parts_ms=H200)
    assert "FP16 (stage 4)" in remedied(3.1, limiter="compute", parts_ms=slow, precision="fp32")
    found = remedied(3.1, half, parts_ms=slow, precision="fp32")
    assert "FP16 (stage 4; compute 3 → 1.29 ms, then copy in limits: 1.39, 54 % less)" in found
    assert "(INT8) or" in remedied(3.1, parts_ms=slow)
    assert "(INT8; compute 3 → 0.81 ms, then copy in limits: 1.39, 54 % less) or" in remedied(3.1, INT8, parts_ms=slow)
    assert "INT8" not in remedied(3.1, INT8, parts_ms=slow, precision="int8")


def test_a_schedule_is_forecast_by_the_parts_in_turn_or_the_longest():
    pageable, pinned = {**H200, "h2d": 4.4, "d2h": 0.2}, record(3.0, parts_ms=H200, precision="fp16")
    assert "(stage 2; at best 6.19 ms, 23 % less)" in remedied(8.0, parts_ms=pageable, trace={"allocations": 4.0})
    assert "(stage 3; at best 2.99 ms, 54 % less)" in remedied(6.5, pinned, INT8, parts_ms=pageable, trace={"h2d_gb_s": 17.0})
    assert "(stage 5; at best 1.39 ms, 54 % less)" in remedied(3.0)
    assert not advice.at_best(rows(record(1.0))[0], 1.5)
    single = {"parts_ms": {**H200, "compute": 3.0}, "precision": "fp32"}
    assert "(stage 4), and overlap them (stage 5; at best 1.39 ms, 65 % less)" in remedied(4.0, pinned, **single)
    assert "(stage 6; at best 1.39 ms, 30 % less)" in remedied(2.0, trace={"overlap": 0.9})
    late = {"submit_ms": 2.0, "latency_ms": {"median": 9.0, "p99": 9.0}}
    assert "(stage 7; at best 1.39 ms, 30 % less), or" in remedied(2.0, limiter="launch", **late)


REPORTS = sorted((ROOT / "reports").rglob("comparison.json"))


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_no_committed_stage_is_faster_than_it_was_forecast_to_be_at_best(path):
    _, found = read_rows(path)
    for stage in found:
        for number, ms in re.findall(r"\(stage (\d+); at best ([\d.]+) ms", advice.remedy(stage, found)):
            took = [row.per_batch_ms for row in found if row.stage.startswith(f"{number}_")]
            assert not took or took[0] > 0.998 * float(ms), stage.stage


def test_a_slow_copy_is_known_without_a_trace():
    slow, pinned = record(6.5, parts_ms={**H200, "h2d": 4.4}), record(3.0, parts_ms=H200)
    found = rows(slow, pinned)
    assert "page-lock it (stage 3; at best 2.99 ms" in advice.remedy(found[0], found)
    assert "(stage 5; at best" in advice.remedy(found[1], found)


def test_a_copy_of_bytes_takes_what_was_forecast():
    _, found = read_rows(ROOT / "reports" / "h200-trt8.6-batch128" / "comparison.json")
    named = {row.stage: row for row in found}
    (ms,) = re.findall(r"stage 10; copy in 1.39 → ([\d.]+) ms", advice.remedy(named["7_cuda_graph"], found))
    assert float(ms) == pytest.approx(named["10_uint8_input"].parts_ms["h2d"], rel=0.01)


def test_what_is_not_measured_is_not_forecast():
    for limited in ("serialized", "launch", "postprocess", "compute", "h2d", "d2h"):
        for precision in ("fp32", "fp16"):
            row = Row("x", precision=precision, per_batch_ms=2.0, limiter=limited, h2d_gb_s=1.0)
            assert " ms" not in advice.remedy(row, [row, replace(row, h2d_gb_s=1.1)])
    gone = remedied(2.0, limiter="postprocess", parts_ms={**H200, "postprocess": 2.0})
    assert "on the GPU; post-processing 2 → 0 ms, then copy in limits: 1.39, 30 % less" in gone


def test_one_limit_is_the_whole_ladder_s():
    """The fastest of each part wherever it was timed; a stage with batches of other sizes neither gives nor takes one."""
    other = record(1.0, images_per_s=72_000.0, parts_ms=dict.fromkeys(PARTS, 0.01))
    slow = {**PARTS, "h2d": 3.0, "compute": 2.5}
    found = rows(record(4.0, parts_ms=slow), record(2.0, parts_ms={**PARTS, "h2d": 0.7}), other)
    assert [row.ladder_limit_ms for row in found] == [1.0, 1.0, None]
    assert [row.percent_of_ladder_limit for row in found] == [25.0, 50.0, None]


def test_a_stage_whose_images_nobody_tells_is_held_against_the_others_by_time():
    found = rows(record(4.0), record(2.0, images_per_s=None), record(1.0))
    assert [row.speedup_vs_previous for row in found[1:]] == [2.0, 2.0] and found[2].speedup_vs_baseline == 4.0


def test_a_gpu_s_results_are_whole_once_all_windows_are_there(tmp_path):
    options = argparse.Namespace(out=tmp_path, repeats=5, **dict.fromkeys(profiler.PASSED_ON))
    runner, (plan, script) = profiler.Profiler(options, "tensorrt", None), (tmp_path / "x.plan", tmp_path / "4_x.py")
    for path in (plan, script):
        path.touch()
    mine, others = runner.arguments, [*runner.arguments, "--seed", "4"]
    for count, whole, arguments in ((8, False, mine), (9, True, mine), (9, False, others)):
        each = record(1.0, windows=[Window(1.0)] * count, arguments=arguments, plan=str(plan))
        each.write(tmp_path / "4_x.json")
        assert runner.is_current(script) is whole


def test_the_runs_of_a_stage_on_a_gpu(tmp_path, monkeypatch, real_traces, capsys):
    """Nine windows in five processes, each verified and with its parts; controls are made once, and not profiled."""
    options, said = argparse.Namespace(out=tmp_path, repeats=5, force=False, **dict.fromkeys(profiler.PASSED_ON)), []

    def call(command: list[str], log: Path) -> int:
        said.append(command[4:])
        times = [float(len(said))] * int(command[command.index("--windows") + 1] if "--windows" in command else 1)
        away = None if "--no-controls" in command else 0.25
        each = record(times[0], windows=[Window(ms, 1.0, 1.0) for ms in times], fp32_max_abs_diff=away, measured=1)
        replace(each, window_event_ms=1.0).write(Path(command[command.index("--json") + 1]))
        return 0

    class Profiled:
        version = "9"

        def trace(self, command: list[str], sqlite: Path, log: Path) -> None:
            call(command, log)
            shutil.copy(real_traces["serial"], sqlite)

    class InTurn:
        def __init__(self) -> None:
            self.call = lambda *what: rounds.append(self) or call(*what)

        def close(self) -> None:
            closed.append(self)

    rounds, closed = [], []
    monkeypatch.setattr(profiler, "call", call)
    monkeypatch.setattr(profiler, "InTurn", InTurn)
    script, path = tmp_path / "4_x.py", str(tmp_path / "4_x.json")
    runner = profiler.Profiler(options, "tensorrt", Profiled())
    runner.run([script])
    assert not runner.problems and {path.name for path in tmp_path.iterdir()} == {"4_x.json", "4_x.sqlite"}
    later = ["--json", path, "--windows", "2", "--no-controls"]
    assert said[:5] == [["--json", path, "--windows", "1"], *[later] * 4]
    assert said[5][:2] == ["--no-verify", "--no-parts"] and len(said) == 6
    found = Record.read(tmp_path / "4_x.json")
    assert found.repeats_ms == [1, 2, 2, 3, 3, 4, 4, 5, 5] and found.per_batch_ms == 3.0 and found.parts_ms == PARTS
    assert found.fp32_max_abs_diff == 0.25 and found.profiled
    assert [line for line in capsys.readouterr().out.splitlines() if line[0] != " "] == [
        "round 1 of 5",
        *(f"round {each} of 5, about 1 min to go" for each in (2, 3, 4, 5)),
        "under nsys 9, about 1 min to go",
    ]
    runner.steps_s = [70.0, 6.0, 6.5, 45.0, 6.2]  # two with builds
    assert runner.remaining(50) == ", about 5 min to go"
    assert len({*rounds}) == len(rounds) == 4 and {*rounds} <= {*closed}  # in another process in each round
    tried: list[str] = []
    monkeypatch.setattr(profiler, "call", lambda command, log: (log.touch(), tried.append(command[1])) and 3)
    runner.run([script, tmp_path / "5_x.py"])
    assert [Path(each).stem for each in tried] == ["4_x", "5_x"] and runner.failed == 3 and len(said) == 6  # and never again


def test_all_windows_are_told():
    windows = [Window(ms, 1.0, 1.0) for ms in (1.0, 5.0, 2.0, 3.0, 4.0)]
    found = compare.row(Record.of([Record(stage="x", windows=windows[:2]), Record(stage="x", windows=windows[2:])]), None)
    assert found.per_batch_ms == 3.0
    assert (found.fastest_ms, found.lower_quartile_ms, found.upper_quartile_ms, found.slowest_ms) == (1.0, 2.0, 4.0, 5.0)


def test_the_power_cap_is_told_where_it_held_most_windows_down():
    held, free = ({"sm_mhz": mhz, "throttled": names} for mhz, names in ((1830, ["power cap"]), (1980, [])))
    for gpus, mhz in (([held, held, free], 1830), ([held, free, free], None), ([None, None, held], None)):
        windows = [Window(1.0, 1.0, 1.0, gpu=gpu) for gpu in gpus]
        found = compare.row(Record(stage="7_x", per_batch_ms=1.0, windows=windows, outputs_match=True), None)
        assert found.capped_mhz == mhz
        assert ("down to 1,830 MHz" in advice.advice([replace(found, speedup_vs_baseline=1.0)])) == (mhz is not None)


def test_what_several_stages_note_is_said_once():
    rows = [Row(stage=f"{number}_x", speedup_vs_baseline=1.0, outputs_match=True, notes=["so"]) for number in (4, 5, 10)]
    rows[1].notes.append("and so")
    assert tables.below(rows)[1:3] == ["stages 4, 5 and 10: so", "5_x: and so"]


@pytest.mark.parametrize("resolution", [0, 950])
def test_a_lane_of_gaps_looks_empty(resolution):
    """100 kernels of 0.1 µs, one a µs, and then one as long as ten of these gaps, in a picture in which a µs has 2 pixels."""
    kernels = np.array([[at, at + 100] for at in range(0, 100_000, 1000)] + [[105_000, 115_000]])
    lane = bars(kernels, np.zeros(len(kernels)), 0, 120_000, resolution)
    assert len(lane) == (2 if resolution else 101) and lane[-1].busy == 1
    drawn = [svg.rectangle(bar, "compute", "compute", 0, 2000) for bar in lane]
    ink = [
        float(re.search('width="(.+?)"', each)[1]) * float((re.search('opacity="(.+?)"', each) or [0, 1])[1]) for each in drawn
    ]
    assert sum(ink[:-1]) == pytest.approx(20, rel=0.05) and ink[-1] == pytest.approx(20)
    assert ("busy for 10% of" in drawn[0]) == bool(resolution)
