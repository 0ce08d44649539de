"""A folder that holds what does not belong together: a table of what does, a line for each other thing.

And profile_all: one at a time in a folder, and what it has started ends with it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import OURS
from common.record import Record, Window
from common.trace import TraceError, read
from harness.analysis import analyse
from harness.compare import Comparison
from harness.in_turn import InTurn
from harness.processes import GRACE_S, call, killed_with_us
from tests.conftest import SIMULATED

ENGINE, DEVICE = "TensorRT 8.6.0", "NVIDIA H200"


def write(folder: Path, stage: str, **facts) -> None:
    usual = {"engine": ENGINE, "device": DEVICE, "batch": 128, "per_batch_ms": 2.0, "images_per_s": 64e3, "outputs_match": True}
    Record(stage=stage, **{**usual, **facts}).write(folder / f"{stage}.json")


def stages(folder: Path, wanted: str | None = None) -> list[str]:
    return [row.stage for row in Comparison(folder, wanted).rows]


@pytest.mark.parametrize("facts", [{"device": "NVIDIA L4"}, {"engine": "TensorRT 10"}, {"batch": 1}, {"backend": "simulated"}])
def test_the_table_is_of_the_largest_group_or_of_the_one_wanted(tmp_path, facts):
    write(tmp_path, "1_baseline", **facts)
    write(tmp_path, "4_use_fp16")
    write(tmp_path, "5_multi_streams", per_batch_ms=1.0)
    found = Comparison(tmp_path)
    assert [row.stage for row in found.rows] == ["4_use_fp16", "5_multi_streams"]
    assert len(found.problems) == 1 and found.problems[0].startswith("1_baseline is left out: ")
    assert getattr(found.run, next(iter(facts))) != next(iter(facts.values()))
    assert stages(tmp_path, "1_baseline") == ["1_baseline"]


def test_a_trace_without_a_record_fits_the_engine_of_any(tmp_path, real_traces):
    """It tells its device, not its engine and its batch; and as many engines as there are do not meet in it."""
    shutil.copy(real_traces["serial"], tmp_path / "4_use_fp16.sqlite")
    write(tmp_path, "1_baseline", engine="TensorRT 10")
    write(tmp_path, "5_multi_streams")
    write(tmp_path, "6_multi_threads")
    assert stages(tmp_path) == ["4_use_fp16", "5_multi_streams", "6_multi_threads"]


def test_a_trace_of_another_run_than_its_record(tmp_path, real_traces):
    shutil.copy(real_traces["serial"], tmp_path / "4_use_fp16.sqlite")
    write(tmp_path, "4_use_fp16", backend="simulated")
    found = Comparison(tmp_path)
    assert "4_use_fp16.sqlite is left out" in found.problems[0] and found.rows[0].launches is None and not found.traces


def test_everything_at_once_is_a_table_and_a_line_each(checkout, real_traces, tmp_path):
    write(tmp_path, "1_baseline")
    write(tmp_path, "2_reuse_buffers", per_batch_ms=1.9)
    write(tmp_path, "3_other", device="NVIDIA L4")
    (tmp_path / "dev.json").write_text('{"stage": "dev"}')
    (tmp_path / "cut.json").write_text('{"stage": "cut", "per_b')
    (tmp_path / "infinite.json").write_text('{"stage": "infinite", "per_batch_ms": Infinity}')
    (tmp_path / "no.sqlite").write_bytes(b"nothing")
    old = {"stage": "old", "per_batch_ms": 2, "latency_ms": 3.0, "parts_ms": {"h2d": 1}, "windows": [3], "versions": None}
    (tmp_path / "[old].json").write_text(json.dumps({**old, "device": DEVICE, "engine": ENGINE, "batch": 128}))
    done = checkout.run("-m", "scripts.compare", tmp_path, "--wide", "--figures")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == 5 and all(line.startswith("compare: ") for line in said), done.stderr
    for name in ("3_other is", "dev.json is", "cut.json is", "infinite.json is", "no.sqlite is not"):
        assert len([line for line in said if name in line]) == 1, name
    assert "its record's latency_ms has another form" in done.stdout
    rows = json.loads((tmp_path / "comparison.json").read_text())["stages"]
    assert [row["stage"] for row in rows] == ["1_baseline", "2_reuse_buffers", "[old]"]


def changed(trace: Path, path: Path, *changes: str) -> None:
    """A copy of a trace in which any column may be NULL, changed."""
    shutil.copy(trace, path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for name in ("NVTX_EVENTS", "StringIds"):
            for how in (
                f"CREATE TABLE free AS SELECT * FROM {name}",
                f"DROP TABLE {name}",
                f"ALTER TABLE free RENAME TO {name}",
            ):
                connection.execute(how)
        for change in changes:
            connection.execute(change)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE NVTX_EVENTS SET start = NULL",
        "UPDATE NVTX_EVENTS SET end = 9e999",
        "UPDATE NVTX_EVENTS SET end = start - 5",
        "UPDATE NVTX_EVENTS SET start = -9223372036854775808",
        "UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET end = 9223372036854775807",
        "UPDATE CUPTI_ACTIVITY_KIND_MEMCPY SET start = 'soon'",
        "UPDATE CUPTI_ACTIVITY_KIND_RUNTIME SET globalTid = 9e999",
        "ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL RENAME COLUMN start TO begin",
    ],
)
def test_a_trace_with_what_is_no_time(real_traces, tmp_path, change):
    changed(real_traces["serial"], tmp_path / "1_x.sqlite", change)
    with pytest.raises(TraceError):
        analyse(read(tmp_path / "1_x.sqlite"))
    assert len(Comparison(tmp_path).problems) == 1


def test_names_that_are_not_there_do_not_lose_a_trace(real_traces, tmp_path):
    unnamed = "UPDATE StringIds SET value = NULL WHERE value LIKE 'cu%'"
    changed(real_traces["serial"], tmp_path / "1_x.sqlite", "UPDATE TARGET_INFO_GPU SET name = NULL", unnamed)
    assert [row.launches for row in Comparison(tmp_path).rows] == [0]


def test_a_record_keeps_what_has_its_form(tmp_path):
    content = {"stage": "x", "per_batch_ms": 1, "batch": "many", "energy_j": float("nan"), "precision": "fp16"}
    (tmp_path / "x.json").write_text(json.dumps({**content, "windows": [{"per_batch_ms": 1.0, "gpu": 3}, {}, "w"]}))
    record = Record.read(tmp_path / "x.json")
    assert record.batch is None and record.energy_j is None and record.precision == "fp16" and len(record.notes) == 2
    assert record.windows == [Window(per_batch_ms=1.0)] and record.input == "float32"  # what was sent before records said so


def test_figures_of_another_form_cost_a_record_what_follows_from_them(tmp_path, real_traces):
    """An incomplete set of parts; a host that is no text; a clock that stood still."""
    write(tmp_path, "1_x", parts_ms={"h2d": 1.0, "compute": 1.0, "d2h": 0.1, "postprocess": 0.1})
    write(tmp_path, "2_x", parts_ms={"compute": 1.0}, host={"processor": [3]}, windows=[Window(2.0, gpu={"sm_mhz": 1})])
    write(tmp_path, "3_x", profiled={"wall_ms": 0.0, "events_ms": 1.0})
    shutil.copy(real_traces["serial"], tmp_path / "3_x.sqlite")
    found = Comparison(tmp_path)
    found.write()
    assert [row.limit_ms for row in found.rows[:2]] == [1.0, None] and found.rows[2].clocks
    assert "host has another form" in " ".join(found.rows[1].notes)


# -- profile_all


def profile_all(checkout, folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness.profile", *SIMULATED, "--batch", "2", "--charge-batch", "128", "--out", folder]
    return subprocess.Popen([*command, *more], cwd=checkout.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_second_profile_all_waits_for_the_first(checkout, tmp_path):
    both = [profile_all(checkout, tmp_path, "4") for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted("outputs right   (" in out for out, _ in said) == [False, True]
    assert sorted(f"another one works in {tmp_path}: waiting for it" in err for _, err in said) == [False, True]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_profile_all_ends_the_stage(checkout, tmp_path, how):
    process = profile_all(checkout, tmp_path, "--batches", "1000000", "6")
    log = tmp_path / "6_multi_threads.log"
    while not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.endswith("profile: interrupted\n"), err
    assert log.read_text().endswith("6_multi_threads: interrupted\n")


@pytest.mark.parametrize(
    "doing",
    [
        "call([sys.executable, script], log)",
        "InTurn().call([sys.executable, script], log)",
        "at_once({0: ['-c', 'pass'], 1: [script]})",
    ],
)
def test_what_a_program_has_started_ends_with_it(tmp_path, doing):
    """nsys and its stage, alone or in turn, and stages side by side, of which one has ended; also one that hears nothing."""
    log, script = tmp_path / "log", tmp_path / "stage.py"
    started = f"{sys.executable} -c 'import time; time.sleep(60)' & echo $! >>{log}; wait"
    script.write_text(f"import subprocess; subprocess.run(['sh', '-c', {started!r}])")
    code = f"import sys; from pathlib import Path; from common import program; from harness.processes import call\n\
from harness.in_turn import InTurn; from harness.side_by_side import at_once\n\
script, log = {str(script)!r}, Path({str(log)!r}); program.run(lambda: {doing})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while not (log.exists() and log.read_text().strip()):
        time.sleep(0.05)
    process.terminate()
    assert process.communicate(timeout=30)[1].endswith("interrupted\n") and process.returncode == 130
    state = Path(f"/proc/{log.read_text().split()[0]}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_process_that_is_killed_between_two_stages_is_no_stage_s_end(tmp_path):
    script, shared = tmp_path / "stage.py", InTurn()
    script.touch()
    assert shared.call([sys.executable, str(script)], tmp_path / "log") == 0
    shared._process.kill()
    shared._process.wait()
    assert shared.call([sys.executable, str(script)], tmp_path / "log") == 0
    shared.close()


def test_an_error_is_not_lost_where_what_was_started_has_ended():
    process = subprocess.Popen([sys.executable, "-c", "pass"], start_new_session=True)
    process.wait()
    with pytest.raises(KeyError), killed_with_us(process):
        raise KeyError


IN_TURN = """
import os, sys
class Held:
    def __del__(self):
        print("given back")
held = Held()
held.itself = held
print(os.getpid(), sys.argv, __name__, flush=True)
if sys.argv[1] == "crash":
    os._exit(7)
sys.exit(int(sys.argv[1]))
"""


def test_stages_in_turn_share_a_process_until_one_fails(tmp_path, monkeypatch):
    """Each has its own arguments, log and exit code, and holds nothing when the next begins."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # what is said last is in its own log nevertheless
    script, shared, logs = tmp_path / "stage.py", InTurn(), []
    script.write_text(IN_TURN)
    for number, (argument, code) in enumerate([("0", 0), ("0", 0), ("3", 3), ("0", 0), ("crash", 7), ("0", 0)]):
        log = tmp_path / f"{number}.log"
        assert shared.call([sys.executable, str(script), argument], log) == code
        logs.append(log.read_text().splitlines())
        assert logs[-1][0].endswith(f" {[str(script), argument]} __main__")
        assert logs[-1][1:] == ["given back"] * (argument != "crash")
    shared.close()
    shared.close()
    pids = [first.split()[0] for first, *_ in logs]
    assert pids[0] == pids[1] == pids[2] != pids[3] == pids[4] != pids[5] and len({*pids}) == 3


def test_a_shared_process_that_is_gone_is_no_stage_that_was_right(tmp_path):
    """Whether it went in a stage, without a word, or between two; and a log that cannot be written is the caller's error."""
    quiet, good, shared, log = tmp_path / "quiet.py", tmp_path / "good.py", InTurn(), tmp_path / "log"
    quiet.write_text("import os; os._exit(0)")
    good.write_text("")
    assert shared.call([sys.executable, str(quiet)], log) == OURS
    assert shared.call([sys.executable, str(good)], log) == 0
    os.killpg(shared._process.pid, signal.SIGKILL)
    shared._process.wait()
    assert shared.call([sys.executable, str(good)], log) == 0
    with pytest.raises(OSError):
        shared.call([sys.executable, str(good)], tmp_path / "missing" / "log")
    shared.close()


def test_an_interrupted_stage_ends_the_shared_process_at_once(tmp_path):
    """Not after the time in which what hears nothing is ended."""
    script, log = tmp_path / "stage.py", tmp_path / "log"
    script.write_text("import time; from common import program; program.run(lambda: print(1, flush=True) or time.sleep(60))")
    code = f"from pathlib import Path; from common import program; from harness.in_turn import InTurn\n\
program.run(lambda: InTurn().call([{sys.executable!r}, {str(script)!r}], Path({str(log)!r})))"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while not (log.exists() and log.read_text().strip()):
        time.sleep(0.05)
    process.terminate()
    started = time.monotonic()
    assert process.communicate(timeout=30)[1].endswith("interrupted\n") and time.monotonic() - started < GRACE_S / 2


def test_the_exit_code_of_a_program_is_given_back(tmp_path):
    assert call([sys.executable, "-c", "import sys; print('said'); sys.exit(5)"], tmp_path / "log") == 5
    assert (tmp_path / "log").read_text() == "said\n"
