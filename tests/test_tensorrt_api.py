"""Our TensorRT calls, and the simulated TensorRT's surface, against the real Python bindings of 8.6, 10, 11 and RTX.

The bindings of 10 and 11 are installed (without the libraries they bind, for which stubs stand in) and asked; of 8.6,
whose wheel carries the libraries, a list of names and signatures is kept in ``tensorrt_api/``.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sim import tensorrt as simulated
from tests.conftest import ROOT

RECEIVERS = {  # what our code calls its TensorRT objects
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "inspector": "EngineInspector",
    "runtime": "Runtime",
    "trt_engine": "ICudaEngine",
    "trt_context": "IExecutionContext",
    "tensor": "ITensor",
    "settings": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
}
FEATURE_TESTED = {  # used only where hasattr or getattr says that it is there
    ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
    ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"),
    ("PreviewFeature", "PROFILE_SHARING_0806"),
    ("IBuilderConfig", "progress_monitor"),
    ("", "IProgressMonitor"),
    ("BuilderFlag", "VERSION_COMPATIBLE"),
}
RTX_ONLY = {  # used only where the module has ``IRuntimeCache``
    ("", "IRuntimeCache"),
    ("", "DynamicShapesKernelSpecializationStrategy"),
    ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
    ("BuilderFlag", "REQUIRE_USER_ALLOCATION"),
    ("ICudaEngine", "create_runtime_config"),
    *(("IRuntimeConfig", name) for name in ("create_runtime_cache", "get_runtime_cache", "set_runtime_cache")),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
    *(("IRuntimeCache", name) for name in ("serialize", "deserialize")),
}
ARGPARSE = ("add_argument", "add_argument_group", "parse_args", "set_defaults")  # other things are called parser as well
STUBS = {
    "libnvinfer": "createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL "
    "getBuilderPluginRegistry getPluginRegistry getInferLibVersion getInferLibBuildVersion "
    "getInferLibMajorVersion getInferLibMinorVersion getInferLibPatchVersion",
    "libnvinfer_plugin": "initLibNvInferPlugins",
    "libnvonnxparser": "createNvOnnxParser_INTERNAL createNvOnnxParserRefitter_INTERNAL getNvOnnxParserVersion",
    "libnvinfer_lean": "createInferRuntime_INTERNAL createInferRefitter_INTERNAL getPluginRegistry",
}
DUMP = """
import enum, importlib, json, sys
trt = importlib.import_module(sys.argv[1])
def members(c): return {n: (getattr(c, n).__doc__ or "") for n in dir(c) if not n.startswith("_")}
enums, classes = {}, {}
for name in dir(trt):
    thing = getattr(trt, name)
    if isinstance(thing, type):
        if hasattr(thing, "__members__"): enums[name] = {n: int(v) for n, v in thing.__members__.items()}
        else: classes[name] = members(thing)
print(json.dumps({"enums": enums, "classes": classes, "names": dir(trt)}))
"""


def installed(version: str, package: str = "tensorrt") -> dict:
    """The API of TensorRT's real bindings of a version; skips where they cannot be had."""
    folder = ROOT / "tests" / ".cache" / f"{package}-{version}-py{sys.version_info[0]}{sys.version_info[1]}"
    listing = folder / "api.json"
    if not listing.exists():
        if shutil.which("gcc") is None:
            pytest.skip("no gcc to make stub libraries with")
        wheel = f"{package}-cu13-bindings=={version}"
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, wheel],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip(f"{wheel} cannot be installed here")
        for name, functions in STUBS.items():
            soname = f"{name}.so.{version.split('.')[0]}"
            source = folder / f"{name}.c"
            source.write_text("\n".join(f"void* {function}() {{ return 0; }}" for function in functions.split()))
            subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", folder / soname, source], check=True)
        paths = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
        done = subprocess.run(
            [sys.executable, "-c", DUMP, f"{package.replace('-', '_')}_bindings"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **paths},
        )
        listing.write_text(done.stdout)
    return json.loads(listing.read_text())


@pytest.fixture(scope="module", params=["8.6.0", "10.16.1.11", "11.4.0.106", "rtx"])
def api(request) -> dict:
    if request.param == "rtx":
        pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
        done = subprocess.run([sys.executable, "-c", DUMP, "tensorrt_rtx"], capture_output=True, text=True, check=True)
        return {"version": request.param, **json.loads(done.stdout)}
    if request.param != "8.6.0":
        return {"version": request.param, **installed(request.param)}
    kept = json.loads((Path(__file__).parent / "tensorrt_api" / "8.6.0.json").read_text())
    names = [*kept["enums"], *kept["classes"], *kept["functions"], "__version__"]
    return {**kept, "enums": {name: dict.fromkeys(values) for name, values in kept["enums"].items()}, "names": names}


def parameters(doc: str) -> list[str] | None:
    """The parameter names, without self, of a pybind11 signature; None where there is none or several."""
    match = re.match(r"\w+\((.*)\) ->", doc.strip())
    if match is None or "*args" in match[1] or "Overloaded" in doc:
        return None
    names, depth, part = [], 0, ""
    for character in match[1] + ",":
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            names.append(part.split(":")[0].strip())
            part = ""
        else:
            part += character
    return [name for name in names if name and name != "self"]


def sources() -> list[Path]:
    return [*ROOT.glob("[0-9]_*.py"), *(ROOT / "common").glob("*.py")]


def used(without: tuple[str, ...] = ()) -> list[tuple[str, str, int | None]]:
    """(class, member, number of arguments or None) of every use of a TensorRT object in our code; class "" is the module."""
    found = []
    for path in (path for path in sources() if path.name not in without):
        tree = ast.parse(path.read_text())
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            call = calls.get(id(node))
            arguments = (
                len(call.args) + len(call.keywords)
                if call and not any(isinstance(argument, ast.Starred) for argument in call.args)
                else None
            )
            value = node.value
            receiver = value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else None
            if receiver in ("trt", "tensorrt") and node.attr not in ("nptype",):
                found.append(("", node.attr, None))
            elif isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.value.id == "trt":
                found.append((value.attr, node.attr, None))
            elif receiver in RECEIVERS and not node.attr.startswith(("cuda", "__")) and node.attr not in ARGPARSE:
                found.append((RECEIVERS[receiver], node.attr, arguments))
    return sorted(set(found), key=str)


@pytest.mark.parametrize("owner, member, arguments", [use for use in used() if use[0] in {"", *RECEIVERS.values()}])
def test_every_call_of_ours_exists(api, owner, member, arguments):
    if (owner, member) in FEATURE_TESTED or (api["version"] != "rtx" and (owner, member) in RTX_ONLY):
        return
    if owner == "":
        assert member in api["names"] or member in ("__version__", "__name__"), f"tensorrt.{member}"
        return
    if owner == "IExecutionContext" and member.startswith("_"):
        return
    assert member in api["classes"][owner], f"{owner}.{member} is not in TensorRT {api['version']}"
    expected = parameters(api["classes"][owner][member])
    if arguments is not None and expected is not None:
        assert arguments <= len(expected), f"{owner}.{member} takes {expected}"


@pytest.mark.parametrize("enumeration, member", [use[:2] for use in used() if use[0] and use[0] not in RECEIVERS.values()])
def test_every_constant_of_ours_exists(api, enumeration, member):
    if (enumeration, member) in FEATURE_TESTED or member == "__init__":
        return
    if api["version"] != "rtx" and (enumeration, member) in RTX_ONLY:
        return
    if enumeration in api["enums"]:
        assert member in api["enums"][enumeration]
    else:
        assert member in api["classes"][enumeration]


def test_our_code_is_looked_at():
    """The checks above are only as good as what they find."""
    found = {(owner, member) for owner, member, _ in used()}
    assert {
        ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "set_input_shape"),
        ("ICudaEngine", "get_tensor_profile_shape"),
        ("IBuilderConfig", "add_optimization_profile"),
        ("OnnxParser", "parse_from_file"),
        ("", "IProgressMonitor"),
        ("ProfilingVerbosity", "DETAILED"),
    } <= found


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_what_a_stage_asks_of_the_lean_runtime_is_there(version):
    """But for the inspector, of which it has the call and not the class: so the call raises, and a stage goes on."""
    lean = installed(version, "tensorrt-lean")
    assert "create_engine_inspector" in lean["classes"]["ICudaEngine"] and "EngineInspector" not in lean["classes"]
    for owner, member, _ in used(without=("0_build.py", "building.py")):
        if (owner, member) in FEATURE_TESTED | RTX_ONLY or owner in ("EngineInspector", "IRuntimeConfig", "IRuntimeCache"):
            continue
        known = lean["names"] if not owner else {**lean["enums"], **lean["classes"]}[owner]
        assert member in known or member in ("__version__", "__name__", "__init__"), f"{owner}.{member}"


# -- the simulated TensorRT's own surface, which is TensorRT 11's


def simulated_classes() -> list[type]:
    return [thing for name in simulated.__all__ if isinstance(thing := getattr(simulated, name), type)]


@pytest.mark.parametrize("ours", simulated_classes(), ids=lambda thing: thing.__name__)
def test_the_simulated_surface_is_part_of_the_real_one(api, ours):
    name = ours.__name__
    if api["version"] == "8.6.0":
        pytest.skip("the simulated TensorRT is like TensorRT 10 and 11")
    if name in api["enums"]:
        for member in ours:
            assert api["enums"][name][member.name] == int(member) or api["version"].startswith("10"), member
        return
    for member, thing in vars(ours).items():
        if member.startswith("_") or member == "Severity":
            continue
        assert member in api["classes"][name], f"{name}.{member}"
        expected = parameters(api["classes"][name][member]) if inspect.isfunction(thing) else None
        if expected is not None:
            assert list(inspect.signature(thing).parameters)[1:] == expected, f"{name}.{member}"


def test_the_simulated_module_never_says_it_is_tensorrt():
    assert "simulated" in simulated.__version__
