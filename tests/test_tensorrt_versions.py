"""docs/tensorrt-versions.md says of each name in which TensorRT it is; ``tensorrt_api/names.json`` has the names that are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_tensorrt_api import installed

KEPT = Path(__file__).parent / "tensorrt_api"
FIXTURE = json.loads((KEPT / "names.json").read_text())
LIBRARIES = FIXTURE["libraries"]
NAME = re.compile(r"`([A-Z]\w+(?:\.\w+)*)`")
PAGE = (ROOT / "docs" / "tensorrt-versions.md").read_text(encoding="utf-8")
ROWS = [row for line in PAGE.splitlines() if len(row := [cell.strip() for cell in line.split("|")]) == 9 and row[2] in "✓–"]


def names(library: str, owner: str) -> set[str]:
    """The names of a class or enumeration ("": the module) in a TensorRT."""
    lists = FIXTURE["names"].get(owner, {})
    return {name for libraries, listed in lists.items() if library in libraries.split() for name in listed.split()}


def has(library: str, name: str) -> bool:
    owner, _, member = name.rpartition(".")
    return member in names(library, owner)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1][:40])
def test_a_row_of_the_page(row):
    for name in NAME.findall(row[1]):
        assert ["✓" if has(library, name) else "–" for library in LIBRARIES] == row[2:6], name
    for name in NAME.findall(" ".join(row[6:])):
        assert has("11", name) and has("RTX", name), f"{name} is nothing to write now"


def test_the_page_is_looked_at():
    found = {name for row in ROWS for name in NAME.findall(" ".join(row))}
    assert len(ROWS) == PAGE.count(" ✓ |") + PAGE.count(" – |") >> 2
    assert len(found) > 50 and {"BuilderFlag.FP16", "IRuntimeCache", "ICudaEngine.device_memory_size_v2"} <= found


def test_the_kept_names_are_those_of_8_6():
    kept = json.loads((KEPT / f"{LIBRARIES['8.6']}.json").read_text())
    for kind in ("enums", "classes"):
        for owner, members in kept[kind].items():
            assert owner not in FIXTURE["names"] or names("8.6", owner) == {name for name in members if name[0] != "_"}, owner


@pytest.mark.parametrize("library", ["10", "11"])
def test_the_kept_names_are_those_of_the_real_bindings(library):
    api = installed(LIBRARIES[library])
    for owner in filter(None, FIXTURE["names"]):
        assert names(library, owner) == set(api["enums"].get(owner, api["classes"].get(owner, ()))), owner
