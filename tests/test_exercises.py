"""Each exercise fails for the reason that its page gives, and its solution, which fills the hole and nothing else, passes."""

from __future__ import annotations

import ast
import difflib
import json
import re

import pytest

from tests.conftest import FEW, ROOT, SIMULATED

FOLDER = ROOT / "docs" / "exercises"
REASONS = {  # what the grader says of each exercise as it stands: all of it
    "1_who_owns_this_buffer": ["wrong outputs: batch 0 differs"],
    "2_asynchronous_means_later": [r"race: nothing orders the read of host_output by the host .* after its write by the copy"],
    "3_find_the_missing_wait": [
        r"race: nothing orders the read of slot.device_input by the inference .*let stream compute wait for an event"
    ],
    "4_make_it_overlap": [r"time: per_batch_ms is 2\.76\d, and the target 1\.45"],
    "5_submit_ahead": [r"race: nothing orders the write of slot.device_input by the copy .* after its read by the inference"],
    "6_give_the_slot_back": [
        r"race: nothing orders the write of slot.host_output by the copy .* after its read by the host .*thread"
    ],
    "7_capture_it": [r"time: submit_ms is 0\.15\d, and the target 0\.05"],
    "8_two_contexts": [r"race: nothing orders the write of the activations of the execution context made at 8_\w+\.py:\d+"],
}


def body(path) -> list[str]:
    """The lines behind the docstring."""
    return path.read_text(encoding="utf-8").split('"""', 2)[2].splitlines()


def test_the_exercises_are_those_and_short():
    for folder in (FOLDER, FOLDER / "solutions"):
        assert sorted(path.stem for path in folder.glob("*.py")) == sorted(REASONS)
    for name in REASONS:
        text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        assert len(text.splitlines()) < 50 and f"python -m sim --grade docs/exercises/{name}.py" in ast.get_docstring(
            ast.parse(text)
        )


@pytest.mark.parametrize("name", REASONS)
def test_the_hole_fails_for_its_reason(checkout, name):
    done = checkout.run("-m", "sim", "--grade", f"docs/exercises/{name}.py")
    said = done.stdout.split(f"{name}: not yet\n")[1].splitlines()
    assert done.returncode == 1 and len(said) == len(REASONS[name]), done.stdout + done.stderr
    for line, reason in zip(said, REASONS[name]):
        assert re.match(f"  {reason}", line), line


@pytest.mark.parametrize("name", REASONS)
def test_the_solution_fills_the_hole_and_passes(checkout, name):
    before, after = (body(folder / f"{name}.py") for folder in (FOLDER, FOLDER / "solutions"))
    changes = [change for change in difflib.SequenceMatcher(None, before, after, False).get_opcodes() if change[0] != "equal"]
    [first, last] = changes[0][1], changes[-1][2]
    assert "HOLE" in "".join(before[first:last]) and last - first <= 2 and "HOLE" not in "".join(after)
    done = checkout.run("-m", "sim", "--grade", f"docs/exercises/solutions/{name}.py")
    assert done.returncode == 0 and done.stdout.endswith(f"\n{name}: passed\n"), done.stdout + done.stderr


def test_waiting_for_everything_is_right_and_not_enough(checkout):
    """The host's wait in the place of the stream's: no race, and too slow."""
    text = (FOLDER / "3_find_the_missing_wait.py").read_text(encoding="utf-8")
    text = re.sub(r"# HOLE.*", "slot.copied.synchronize()\n                    compute.synchronize()", text)
    (checkout.folder / "waits.py").write_text(text, encoding="utf-8")
    done = checkout.run("-m", "sim", "--grade", "waits.py")
    assert done.returncode == 1 and "waits: not yet\n  time: per_batch_ms is" in done.stdout, done.stdout + done.stderr


def test_what_ends_otherwise_has_not_passed(checkout):
    (checkout.folder / "broken.py").write_text("import sys\nif __name__ == '__main__':\n    sys.exit('no plan')\n", "utf-8")
    done = checkout.run("-m", "sim", "--grade", "broken.py")
    assert done.returncode == 1 and done.stdout.endswith("broken: not yet\n  no plan\n"), done.stdout + done.stderr


def test_submitting_ahead_is_as_fast_as_the_thread_of_stage_6(checkout, tmp_path):
    solution, times = "docs.exercises.solutions.5_submit_ahead", {}
    for script in (["5_multi_streams.py"], ["-m", solution], ["6_multi_threads.py"]):
        done = checkout.run(*script, *SIMULATED, *FEW, "--json", tmp_path / "record.json")
        assert done.returncode == 0, done.stdout + done.stderr
        times[script[-1]] = json.loads((tmp_path / "record.json").read_text())["per_batch_ms"]
    assert times[solution] == pytest.approx(times["6_multi_threads.py"], rel=0.01)
    assert f"{times[solution]:.2f}" == "1.40" and f"{times['5_multi_streams.py']:.2f}" == "1.76"  # as page and manual say


def test_a_window_of_bursts_is_no_result(checkout):
    """All batches finished at the end: the window times post-processing alone, and no rate is printed of it."""
    text = (FOLDER / "solutions" / "5_submit_ahead.py").read_text(encoding="utf-8").replace("SLOTS = 3", "SLOTS = 100")
    text = text.replace(
        "        for index in range(len(run.done_ns)",
        "        compute.synchronize()\n        for index in range(len(run.done_ns)",
    )
    (checkout.folder / "bursts.py").write_text(text, encoding="utf-8")
    done = checkout.run("bursts.py", *SIMULATED, "--batch", "2", "--charge-batch", "128")
    assert done.returncode == 0 and re.search(r"per batch +0\.3\d\d ms   faster than its limit, a fault", done.stdout)
    assert "images/s" not in done.stdout and "% reached" not in done.stdout
    done = checkout.run("-m", "sim", "--grade", "bursts.py")
    assert done.returncode == 1 and re.search(r"not yet\n  time: 0\.3\d\d ms a batch is faster than its limit, ", done.stdout)
