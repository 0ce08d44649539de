"""Each figure of a comparison against a trace written by hand, in which it can be counted."""

from __future__ import annotations

import argparse
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from common.record import Record, Window
from common.trace import read
from harness import advice, compare
from harness.analysis import Analysis, analyse
from harness.rows import Row

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
    from harness.profile import PASSED_ON, Profiler

    options = argparse.Namespace(out=tmp_path, repeats=5, **dict.fromkeys(PASSED_ON))
    profiler, (plan, script) = Profiler(options, "tensorrt", None), (tmp_path / "x.plan", tmp_path / "4_x.py")
    for path in (plan, script):
        path.touch()
    for count, whole in ((5, False), (9, True)):
        each = record(1.0, windows=[Window(1.0)] * count, arguments=profiler.arguments, plan=str(plan))
        each.write(tmp_path / "4_x.json")
        assert profiler.is_current(script) is whole


def test_all_windows_are_told():
    windows = [Window(ms, 1.0, 1.0) for ms in (1.0, 5.0, 2.0, 3.0, 4.0)]
    found = compare.row(Record.of([Record(stage="x", windows=windows[:2]), Record(stage="x", windows=windows[2:])]), None)
    assert found.per_batch_ms == 3.0
    assert (found.fastest_ms, found.lower_quartile_ms, found.upper_quartile_ms, found.slowest_ms) == (1.0, 2.0, 4.0, 5.0)
