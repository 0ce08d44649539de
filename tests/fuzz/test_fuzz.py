"""A part of the hostile tries, the same every time; ``python -m tests.fuzz`` makes them all."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import KINDS, outcomes
from tests.fuzz.place import Place


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_tries(kind, tmp_path):
    wrong = [problem for _, problem in outcomes(kind, Place(tmp_path), seed=1, seconds=8, most=10_000) if problem]
    assert not wrong, "\n".join(wrong[:10])
