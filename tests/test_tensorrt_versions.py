"""docs/tensorrt-versions.md says of each name in which TensorRT it is, and the simulated one of those that it has not.

``tensorrt_api/names.json`` has the names that are.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sim import tensorrt as simulated
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


# -- the simulated one

OURS = [name for name in ("", *FIXTURE["names"]) if hasattr(simulated, name or "__name__")]


@pytest.mark.parametrize("owner", OURS, ids=lambda owner: owner or "the module")
def test_a_name_that_the_simulated_one_has_not_is_said_in_a_sentence(owner):
    thing = getattr(simulated, owner) if owner else simulated
    made = thing
    if owner and not hasattr(thing, "__members__"):  # an object that nobody has filled
        empty = type(owner, (thing,), {"__module__": thing.__module__, "__del__": lambda self: None})
        made = empty.__new__(empty)
    for name in {name for library in LIBRARIES for name in names(library, owner)} - {*dir(thing)}:
        said = f"^the simulated TensorRT has no {f'{owner}.' * bool(owner)}{name}; it (has|takes) .*$"
        for asked in (thing, made):
            assert not hasattr(asked, name)
            with pytest.raises(AttributeError, match=said):
                getattr(asked, name)


def test_the_simulated_one_is_looked_at():
    assert {"", "Builder", "ICudaEngine", "IExecutionContext", "INetworkDefinition", "DataType", "Logger"} <= {*OURS}


def test_a_script_s_own_class_is_not_called_the_simulator_s():
    class Mine(simulated.ILogger):
        pass

    for asked in (Mine, Mine()):
        with pytest.raises(AttributeError, match=r"^Mine has no level$"):
            asked.level  # noqa: B018
        assert asked.ERROR == simulated.ILogger.Severity.ERROR and not hasattr(asked, "__deepcopy__")
    assert not hasattr(simulated.Builder(Mine()), "__name__")
