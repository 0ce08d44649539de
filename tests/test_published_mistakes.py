"""Each mistake of published pipelines gets its diagnosis, at its line; beside it, mended, the script is clean."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "tests" / "published_mistakes"
DIAGNOSES = {
    "1": r"race: nothing orders the write of device_input by the copy .* after its read by the inference \(1_\w+\.py:18,",
    "2": r"race: nothing orders the write of host_output by the copy .* after its read by the host \(2_\w+\.py:18, thread",
    "3": r"misnamed: the copy at 3_\w+\.py:11 is called cudaMemcpyDeviceToHost and is cudaMemcpyHostToDevice",
    "4": r"captured too early: at 4_\w+\.py:14",
    "5": r"not given back: executable graph, 5_\w+\.py:16, 4 times",
    "6": r"race: nothing orders the write of the activations of the execution context made at .*\(6_\w+\.py:21,",
    "7": r"copied for nothing: pipeline\.py:\d+ from 7_\w+\.py:12 copies into 24,576 bytes of device memory",
    "8": r"ignored: cudaFreeHost at 8_\w+\.py:16 answered cudaErrorInvalidValue(.|\n)*freed too early: .* read at 8_\w+.py:19",
    "9": r"ignored: cudaMemcpyAsync at 9_\w+\.py:12 answered cudaErrorInvalidValue, and nothing looked at it",
    "10": r"timed too early: at 10_\w+\.py:17 the work is still on the GPU",
}
WORDS = ("race:", "not given back:", "ignored:", "waits for nothing:", "copied for nothing:", "captured too early:")
WORDS += ("misnamed:", "freed too early:", "timed too early:")
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_mistake_is_named_and_its_mended_twin_is_clean(checkout, script):
    done = checkout.run("-m", "sim", script, checkout.tiny)
    said = [line for line in done.stderr.splitlines() if line.startswith(WORDS)]
    if script.stem.endswith("_mended"):
        assert done.returncode == 0 and said == [], done.stderr
    else:
        diagnosis = DIAGNOSES[script.stem.split("_")[0]]
        assert re.search(diagnosis, "\n".join(said)), done.stderr
        assert done.returncode == int(diagnosis.startswith("race")), done.stderr


def test_there_are_ten_in_pairs():
    assert len(SCRIPTS) == 2 * len(DIAGNOSES) == 20


def test_the_page_shows_a_real_session(checkout):
    page = (ROOT / "docs" / "check_your_pipeline.md").read_text(encoding="utf-8")
    done = checkout.run("-m", "sim", FOLDER / "2_output_refilled_while_it_is_read.py", checkout.tiny)
    shown = " ".join(page.split())
    for line in [line for line in done.stderr.splitlines() if line.startswith(("simulated", "race"))]:
        assert line in shown, line
    assert max(map(len, done.stderr.splitlines()[-4:-1])) <= 80  # the timeline
