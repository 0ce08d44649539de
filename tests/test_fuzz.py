"""The simulated CUDA runtime against a real one: random programs without races, and probes of what each call answers.

``fuzz/difffuzz.py`` makes both and holds its own oracle; ``fuzz/h200_seed1.jsonl.gz`` is what an H200 answered (CUDA 13).
More programs: ``python tests/fuzz/difffuzz.py --project . --seed N --count M``.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from sim import cudart, simulator
from tests.fuzz import cost, difffuzz

FOLDER = Path(difffuzz.__file__).parent
with gzip.open(FOLDER / "h200_seed1.jsonl.gz", "rt") as lines:
    REAL = {line["id"]: line for line in map(json.loads, lines)}
SEED, PROGRAMS = 20, 200


@pytest.fixture(scope="module")
def backend():
    yield difffuzz.Backend("sim", ".", "h200")
    simulator.start().close()


@pytest.mark.parametrize("first", range(0, PROGRAMS, 20))
def test_a_program_without_races_is_right_and_stays_without(backend, first):
    for index in range(first, first + 20):
        assert difffuzz.run_program(backend, SEED, index)["ok"], (SEED, index)
        assert simulator.simulator().gpu.races.found() == [], (SEED, index)


@pytest.mark.parametrize("item", difffuzz.PROBES, ids=[item[0] for item in difffuzz.PROBES])
def test_a_probe_is_answered_as_on_an_h200(backend, item):
    ours, real = difffuzz.run_probe(backend, item), REAL[item[0]]
    assert (ours["codes"], ours["values"], ours["ok"]) == (real["codes"], real["values"], real["ok"])


def test_what_it_does_not_have_it_says_in_a_sentence():
    for name in cudart.UNCALLABLE.split():
        with pytest.raises(AttributeError, match=f"^the simulated CUDA runtime has no {name}; it has .*$"):
            getattr(cudart, name)(0)


def test_time_and_memory_grow_with_the_number_of_operations():
    (few_s, few_mb), (many_s, many_mb) = cost.cost(5_000), cost.cost(20_000)
    assert many_s < 6 * few_s and many_mb < 6 * max(few_mb, 4)
