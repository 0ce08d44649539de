"""Rules of the source itself: who may import whom, no bare vendor calls, Python 3.9, sizes, formatting, types."""

from __future__ import annotations

import ast
import difflib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MANY, ROOT, stage_scripts

ROOMS = {  # each room and those that it may use
    "common": set(),
    "export": {"common"},
    "sim": {"common"},
    "harness": {"common"},
    "peers": {"common", "export"},
    "scripts": {"common", "export", "sim", "harness", "peers"},
}
STAGES = [ROOT / name for name in ("0_build.py", *stage_scripts(), MANY)]
MODULES = {room: sorted((ROOT / room).glob("*.py")) for room in ROOMS}
EVERYTHING = [*STAGES, *(path for paths in MODULES.values() for path in paths)]
LESSONS = [*STAGES, *MODULES["common"]]
UNCHECKED = {"common/backend.py", "common/cuda.py"}  # they decide what is checked, and check it
HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "matplotlib", "PIL", "ray", "pyarrow"}


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Modules that a file imports, at its top or anywhere; `from common import cuda` is `common.cuda`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def code(path: Path) -> list[str]:
    """The lines of a script without its manual and without blank ones."""
    text = path.read_text(encoding="utf-8")
    return [line for line in text.split('"""', 2)[2].splitlines() if line.strip()]


@pytest.mark.parametrize("path", names(EVERYTHING))
def test_parses_as_python_3_9(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 9))
    is_shim = path.startswith("scripts/") and "runpy" in text
    assert "from __future__ import annotations" in text or path.endswith("__init__.py") or is_shim


# -- rooms


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_downwards(room):
    for path in MODULES[room]:
        used = {name.split(".")[0] for name in imports(path)} & ROOMS.keys() - {room}
        allowed = ROOMS[room] | ({"sim"} if path.name == "backend.py" else set())
        assert used <= allowed, f"{path} uses {used - allowed}"


def test_only_the_build_uses_the_export():
    for path in STAGES:
        used = {name.split(".")[0] for name in imports(path)} & ROOMS.keys()
        assert used <= {"common", "export"} if path.name.startswith("0_") else used <= {"common"}, path


def test_there_are_no_circles():
    """Of imports at the top of modules; what a type checker alone imports is none."""
    graph = {}
    for room, paths in MODULES.items():
        for path in paths:
            graph[f"{room}.{path.stem}"] = imports(path, top_level=True)
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " → ".join([*above[above.index(module) :], module])
        if module not in done:
            for used in graph[module] & graph.keys():
                visit(used, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", names(LESSONS))
def test_only_the_backend_knows_the_vendors(path):
    if not path.endswith("backend.py"):
        found = {name.split(".")[0] for name in imports(ROOT / path)}
        assert not found & {"cuda", "tensorrt"}, "go through common.backend"


@pytest.mark.parametrize("path", names([*LESSONS, *MODULES["sim"]]))
def test_a_stage_loads_nothing_heavy(path):
    assert not {name.split(".")[0] for name in imports(ROOT / path, top_level=True)} & HEAVY


@pytest.mark.parametrize("path", names(LESSONS))
def test_no_bare_vendor_calls(path):
    """CUDA through the checked runtime, TensorRT's booleans through ``require``."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    requires = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require"]
    checked = {id(argument) for node in requires for argument in node.args}
    must_be_checked = {
        *("set_input_shape", "set_tensor_address", "execute_async_v3", "set_optimization_profile_async"),
        *("set_timing_cache", "create_execution_context"),
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        receiver = node.func.value
        if node.func.attr.startswith("cuda") and node.func.attr[4:5].isupper() and path not in UNCHECKED:
            assert isinstance(receiver, ast.Name) and receiver.id in ("cudart", "runtime"), ast.unparse(node)
        raw = (isinstance(receiver, ast.Attribute) and receiver.attr in ("trt_context", "trt_engine")) or (
            isinstance(receiver, ast.Name) and receiver.id == "config"
        )
        if node.func.attr in must_be_checked and raw:
            assert id(node) in checked, f"{path}: {ast.unparse(node)} is not checked"


# -- lessons


@pytest.mark.parametrize("path", names(STAGES))
def test_a_stage_s_docstring_is_its_manual(path):
    doc = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
    number = Path(path).name.split("_")[0]
    assert doc.startswith(f"{number} · ") and max(len(line) for line in doc.splitlines() if line[:1] == " ") <= 80
    if number != "0":
        for part in ("Differs from:", "Why it", "    python " + Path(path).name, "In the timeline:", "\nTry"):
            assert part in doc, part
        parent = doc.split("Differs from:")[1].split()[0].rstrip(";")
        assert parent == "nothing" or (ROOT / parent).exists()


@pytest.mark.parametrize("path", names(STAGES[1:]))
def test_a_step_is_small(path):
    """At most 60 lines of code, of which at most 40 are not the parent's and at most 40 of the parent's are not there."""
    own, doc = code(ROOT / path), (ROOT / path).read_text(encoding="utf-8").split('"""')[1]
    assert len(own) <= 60
    parent = ROOT / doc.split("Differs from:")[1].split()[0].rstrip(";")
    if parent.exists():
        changed = list(difflib.unified_diff(code(parent), own, n=0, lineterm=""))[2:]
        assert max(sum(line[0] == sign for line in changed) for sign in "+-") <= 40


def lines(*paths: Path) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def test_the_house_stays_small():
    assert lines(ROOT / "0_build.py") <= 150
    assert lines(*MODULES["sim"]) <= SIM
    assert lines(*EVERYTHING, *ROOT.glob("scripts/*.sh")) <= ALL
    for path in EVERYTHING:
        assert lines(path) <= LONG.get(path.name, 250), path


SIM, ALL = 4556, 15913
LONG = {"calibrate.py": 371}

# -- tools


@pytest.mark.parametrize("command", [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)], ids=" ".join)
def test_the_tools_have_nothing_to_say(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if f"No module named {command[0]}" in done.stderr:
        pytest.skip(f"{command[0]} is not installed")
    assert done.returncode == 0, done.stdout + done.stderr
