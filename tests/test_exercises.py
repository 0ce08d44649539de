"""Each exercise fails with its hole, and passes with the solution that its page gives."""

from __future__ import annotations

import json
import re

import pytest

from tests.conftest import ROOT, SIMULATED

FOLDER = ROOT / "docs" / "exercises"
EXERCISES = sorted(path.name for path in FOLDER.glob("[0-9]*.py"))


def solved(name: str) -> str:
    """An exercise with the first Python block after its heading in the place of its line with HOLE."""
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    solution = re.search(rf"\n## {name.split('_')[0]} · .*?```python\n(.*?)```", page, re.DOTALL)[1]
    text, holes = re.subn(r"(?m)^.*HOLE: .*\n", lambda _: solution, (FOLDER / name).read_text(encoding="utf-8"))
    assert holes == 1
    return text


@pytest.mark.parametrize("name", EXERCISES)
def test_the_hole_fails(checkout, name):
    done = checkout.run("-m", f"docs.exercises.{name[:-3]}", *SIMULATED)
    assert done.returncode == 1 and "wrong outputs" in done.stderr, done.stdout + done.stderr


def test_submitting_ahead_is_as_fast_as_the_thread_of_stage_6(checkout, tmp_path):
    (checkout.folder / "ahead.py").write_text(solved("1_submit_ahead.py"), encoding="utf-8")
    times = {}
    for script in ("5_multi_streams.py", "ahead.py", "6_multi_threads.py"):
        done = checkout.run(script, *SIMULATED, "--json", tmp_path / "record.json")
        assert done.returncode == 0, done.stdout + done.stderr
        times[script] = json.loads((tmp_path / "record.json").read_text())["per_batch_ms"]
    assert times["ahead.py"] == pytest.approx(times["6_multi_threads.py"], rel=0.01)
    assert f"{times['ahead.py']:.2f}" == "1.39" and f"{times['5_multi_streams.py']:.2f}" == "1.76"  # as page and manual say
