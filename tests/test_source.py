"""Rules of the source itself: who may import whom, no bare vendor calls, Python 3.9, sizes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

STAGES = sorted(ROOT.glob("[0-9]_*.py"))
COMMON = sorted((ROOT / "common").rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
UNCHECKED = {"common/backend.py", "common/cuda.py"}  # they decide what is checked, and check it
HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "matplotlib", "PIL"}


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def imports(path: Path, top_level: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", names([*STAGES, *COMMON, *SCRIPTS]))
def test_parses_as_python_3_9(path):
    ast.parse((ROOT / path).read_text(), feature_version=(3, 9))
    assert "from __future__ import annotations" in (ROOT / path).read_text() or path.endswith("__init__.py")


@pytest.mark.parametrize("path", names([*STAGES, *(path for path in COMMON if "sim" not in path.parts)]))
def test_only_the_backend_knows_the_simulator_and_the_vendors(path):
    if path.endswith("backend.py"):
        return
    found = imports(ROOT / path, top_level=False)
    assert not [name for name in found if name.startswith("common.sim")]
    assert not [name for name in found if name.split(".")[0] in ("cuda", "tensorrt")], "go through common.backend"


@pytest.mark.parametrize("path", names([*STAGES, *COMMON]))
def test_a_stage_loads_nothing_heavy(path):
    assert not {name.split(".")[0] for name in imports(ROOT / path, top_level=True)} & HEAVY


@pytest.mark.parametrize("path", names([*STAGES, *(path for path in COMMON if "sim" not in path.parts)]))
def test_no_bare_vendor_calls(path):
    """CUDA through the checked runtime, TensorRT's booleans through ``require``."""
    tree = ast.parse((ROOT / path).read_text())
    requires = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require"]
    checked = {id(argument) for node in requires for argument in node.args}
    must_be_checked = {"set_input_shape", "set_tensor_address", "set_input_consumed_event", "execute_async_v3",
                       "set_optimization_profile_async", "set_timing_cache", "create_execution_context"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        receiver = node.func.value
        if node.func.attr.startswith("cuda") and node.func.attr[4:5].isupper() and path not in UNCHECKED:
            assert isinstance(receiver, ast.Name) and receiver.id in ("cudart", "runtime"), ast.unparse(node)
        raw = (isinstance(receiver, ast.Attribute) and receiver.attr in ("trt_context", "trt_engine")) or (
            isinstance(receiver, ast.Name) and receiver.id == "config")
        if node.func.attr in must_be_checked and raw:
            assert id(node) in checked, f"{path}: {ast.unparse(node)} is not checked"


@pytest.mark.parametrize("path", names(STAGES))
def test_a_stage_s_docstring_is_its_manual(path):
    doc = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    number = Path(path).name[0]
    assert doc.startswith(f"{number} · ")
    if number != "0":
        for part in ("Differs from:", "Why it", "    python " + Path(path).name, "In the timeline:"):
            assert part in doc, part
        parent = doc.split("Differs from:")[1].split()[0].rstrip(";")
        assert parent == "nothing" or (ROOT / parent).exists()


def test_a_step_is_small():
    """A lesson changes tens of lines of code (docstrings aside), not hundreds."""
    def code(path):
        tree = ast.parse(path.read_text())
        tree.body = tree.body[1:]
        return ast.unparse(tree).splitlines()

    import difflib

    for path in STAGES[2:]:
        doc = ast.get_docstring(ast.parse(path.read_text()))
        parent = ROOT / doc.split("Differs from:")[1].split()[0]
        added = [line for line in difflib.unified_diff(code(parent), code(path), n=0) if line.startswith("+")]
        assert len(added) <= 80, f"{path.name} adds {len(added)} lines to {parent.name}"


def test_ruff_is_clean():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True, check=False)
    if "No module named ruff" in done.stderr:
        pytest.skip("ruff is not installed")
    assert done.returncode == 0, done.stdout
