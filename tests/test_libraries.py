"""The table of TensorRT's libraries: which is taken, what each is called, and how a plan of one runs on another."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import backend, libraries
from common.checked import TensorRTError, started
from common.errors import EnvironmentFault
from common.files import sha256
from common.layers import precision_of
from common.libraries import LIBRARIES, SIMULATED
from tests.conftest import ROOT, real_runtime, stage_scripts

STAGES = ("--batch", "2", "--batches", "4")


# -- which is taken


@pytest.mark.parametrize(
    "driver, said", [("/usr/bin/nvidia-smi", r"pip install cuda-python"), (None, "nor is an NVIDIA driver")]
)
def test_nobody_is_told_to_install_cuda_python_without_a_driver(monkeypatch, driver, said):
    monkeypatch.setattr(libraries, "first", lambda *_: None)
    monkeypatch.setattr(shutil, "which", lambda _: driver)
    with pytest.raises(EnvironmentFault, match=said):
        libraries.gpu()


def machine(monkeypatch, *modules: str, capability: str = "9.0", gpu: bool = True) -> None:
    """Of these TensorRTs, with a GPU or without."""

    def answer():
        if not gpu:
            raise EnvironmentFault("no NVIDIA GPU answers (cudaErrorNoDevice).")
        return SimpleNamespace(), "a GPU", capability

    def load(name: str):
        if name in modules:
            return SimpleNamespace(__name__=name, __version__="1.2")
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(backend, "gpu", answer)
    monkeypatch.setattr(backend, "first", lambda *_: None)
    monkeypatch.setattr(libraries.importlib, "import_module", load)
    monkeypatch.setattr(backend, "_current", None)


@pytest.mark.parametrize(
    "modules, capability, name, library, why",
    [
        (("tensorrt", "tensorrt_rtx", "tensorrt_lean"), "8.9", "tensorrt", "TensorRT 1.2", "a GPU and TensorRT answer"),
        (("tensorrt_rtx", "tensorrt_lean"), "8.9", "rtx", "TensorRT for RTX 1.2", "TensorRT is not installed"),
        (("tensorrt_rtx", "tensorrt_lean"), "9.0", "tensorrt", "TensorRT lean runtime 1.2", "compute capability 9.0"),
        (("tensorrt_lean_bindings",), "12.0", "tensorrt", "TensorRT lean runtime 1.2", "TensorRT for RTX is not installed"),
    ],
)
def test_auto_takes_the_first_that_works_and_says_why(monkeypatch, modules, capability, name, library, why):
    machine(monkeypatch, *modules, capability=capability)
    here = backend.select()
    assert (here.name, here.library) == (name, library) and why in here.reason


@pytest.mark.parametrize(
    "name, build, has, said",
    [
        ("rtx", False, {"modules": ["tensorrt_rtx"]}, "does not run on a GPU of compute capability 9.0 (a GPU)"),
        ("rtx", False, {"modules": ["tensorrt_rtx"], "gpu": False}, "no NVIDIA GPU answers"),
        ("rtx", True, {"modules": [], "gpu": False}, "TensorRT for RTX is not installed"),
        ("tensorrt", True, {"modules": ["tensorrt_lean"]}, "lean runtime runs plans and builds none"),
        ("tensorrt", True, {"modules": ["tensorrt_rtx"]}, "TensorRT is not installed"),
    ],
)
def test_what_cannot_work_is_said(monkeypatch, name, build, has, said):
    machine(monkeypatch, *has.pop("modules"), **has)
    with pytest.raises(EnvironmentFault, match=f"--backend {name}: ") as raised:
        backend.select(name, build=build)
    assert said in str(raised.value)


@pytest.mark.parametrize("gpu", [True, False])
def test_rtx_builds_where_it_cannot_run(monkeypatch, gpu):
    machine(monkeypatch, "tensorrt_rtx", gpu=gpu)
    here = backend.select("rtx", build=True)
    assert here.cudart is None and here.library == "TensorRT for RTX 1.2"


def test_an_old_cuda_python_without_a_driver_is_no_traceback(monkeypatch):
    """12.1 to 12.5 raise where newer ones answer an error code."""

    def missing():
        raise RuntimeError("Failed to dlopen libcuda.so")

    monkeypatch.setattr(libraries, "first", lambda *_: SimpleNamespace(cudaGetDeviceCount=missing))
    with pytest.raises(EnvironmentFault, match=r"no NVIDIA GPU answers \(Failed to dlopen libcuda.so\)"):
        libraries.gpu()


def test_a_tensorrt_without_its_libraries_is_no_traceback(monkeypatch):
    def broken(name: str):
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(libraries.importlib, "import_module", broken)
    with pytest.raises(EnvironmentFault, match=r"TensorRT is not installed \(libnvinfer.so.10: "):
        libraries.load(LIBRARIES[0])


def test_a_builder_that_cannot_start_says_why(simulator):
    backend.select("simulated")

    def cannot(logger):
        logger.log(logger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(TensorRTError, match=r"Builder failed: CUDA initialization failure with error: 35\."):
        started(cannot, "Builder")
    with pytest.raises(TensorRTError, match=r"Runtime failed: .*nullptr"):
        started(lambda _: (_ for _ in ()).throw(TypeError("pybind11::init(): factory function returned nullptr")), "Runtime")


def test_no_two_libraries_share_a_name():
    """But for the lean runtime, which runs the version-compatible plans that TensorRT builds."""
    builders = [library for library in (*LIBRARIES, SIMULATED) if library.builds]
    suffixes = [suffix for each in builders for suffix in (each.plan_suffix, each.compatible_suffix) if suffix]
    assert len({*suffixes}) == len(suffixes)
    assert {library.plan_suffix for library in LIBRARIES if not library.builds} <= {*suffixes}
    modules = [module for library in (*LIBRARIES, SIMULATED) for module in library.modules]
    assert len({*modules}) == len(modules)


@pytest.mark.parametrize(
    "gpu, cuda, package",
    [("NVIDIA GeForce RTX 4070", 13, "tensorrt-rtx-cu12"), ("NVIDIA RTX A6000", 12, "tensorrt-rtx-cu12")]
    + [("NVIDIA H200", 13, "tensorrt-cu13"), ("Tesla T4", 12, "tensorrt-cu12")],
)
def test_setup_picks_the_library_by_the_gpu(tmp_path, gpu, cuda, package):
    """In a checkout whose pip and nvidia-smi are ours."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    driver = f'[ $# = 0 ] && echo "| Driver Version: 580.1   CUDA Version: {cuda}.0 |" || echo "{gpu}"'
    tools = {".venv/bin/pip": "", ".venv/bin/python": f'echo "$@" >> {tmp_path}/asked', "bin/nvidia-smi": driver}
    for name, text in tools.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    paths = {"PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = subprocess.run(["scripts/setup.sh"], cwd=tmp_path, env=paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    asked = [line for line in (tmp_path / "asked").read_text().splitlines() if line.startswith("-m pip install")][-1]
    assert asked.endswith(f" {package} cuda-python>={cuda},<{cuda + 1} nvidia-ml-py"), asked


# -- plans that TensorRT 8.6 builds and the lean runtime of 10 runs; doubles stand in for both


@pytest.fixture(scope="module")
def doubled(checkout, tmp_path_factory):
    """A checkout, and a way to run a script in it on a double."""
    folder = tmp_path_factory.mktemp("doubled") / "checkout"
    shutil.copytree(checkout.folder, folder, ignore=shutil.ignore_patterns("plans"))

    def run(which: str, *command: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, ROOT / "tests" / "doubles" / "run.py", which, *command]
        paths = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "TRT_LADDER_OUTPUTS": os.environ["TRT_LADDER_OUTPUTS"]}
        return subprocess.run([*map(str, words)], cwd=folder, env=paths, capture_output=True, text=True, check=False)

    return SimpleNamespace(folder=folder, plans=folder / "plans", run=run)


@pytest.fixture(scope="module")
def compatible(doubled):
    """With the version-compatible plans of all stages."""
    two_sizes = "--fp16 --profile 1,1,1 --profile 1,2,2 --output plans/resnet18-fp16-1-2.vc.plan"
    for plan in ("", "--fp16", two_sizes, "--fp16 --input bytes"):
        done = doubled.run("tensorrt", "0_build.py", "--version-compatible", *plan.split())
        assert done.returncode == 0, done.stderr
    return doubled


@pytest.mark.parametrize("stage", stage_scripts())
def test_every_stage_runs_on_the_lean_runtime(compatible, stage):
    alone = () if stage.startswith("4_") else ("--no-controls",)  # one of them is held to the FP32 plan here, too
    done = compatible.run("lean", stage, *STAGES, *alone, "--json", compatible.folder / "record.json")
    assert done.returncode == 0, done.stderr
    record = json.loads((compatible.folder / "record.json").read_text())
    assert record["engine"] == "TensorRT lean runtime 10.16.1+double" and record["outputs_match"]
    assert record["versions"]["tensorrt_lean"] == "10.16.1+double" and "tensorrt" not in record["versions"]
    precision = "fp32" if stage[:2] in ("1_", "2_", "3_") else "fp16"
    assert record["plan"].endswith(".vc.plan") and record["precision"] == precision
    untold = [note.split("does not tell ")[1] for note in record["notes"] if "does not tell" in note]
    assert untold.pop().startswith("the memory that a context takes of this version-compatible engine: Error Code 3")
    layers = (
        "the layers of this version-compatible engine: Could not activate keep_alive! (their precision is what the builder told"
    )
    assert not untold if precision == "fp32" else untold[0].startswith(layers)


def test_without_an_fp32_plan_the_lean_runtime_leaves_that_comparison_out(compatible):
    plan, record = compatible.plans / "resnet18-fp32.vc.plan", compatible.folder / "record.json"
    aside = plan.rename(plan.with_name("aside"))
    try:
        done = compatible.run("lean", "4_use_fp16.py", *STAGES, "--json", record)
    finally:
        aside.rename(plan)
    assert done.returncode == 0, done.stderr
    told = json.loads(record.read_text())
    assert told["outputs_match"] and told["fp32_max_abs_diff"] is None
    assert [
        note for note in told["notes"] if note.startswith("not compared with the FP32 plan: no plan plans/resnet18-fp32.vc")
    ]


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    text = " ".join(done.stderr.split())
    assert done.returncode == 3 and "Traceback" not in text, text
    for word in words:
        assert word in text, text


def test_the_code_in_a_plan_runs_only_where_its_sidecar_proves_it(compatible, tmp_path):
    plan, built = tmp_path / "mine.plan", compatible.plans / "resnet18-fp16.vc.plan"
    shutil.copy(built, plan)
    stage = ("4_use_fp16.py", *STAGES, "--plan", plan)
    refused(compatible.run("lean", *stage), "host code, which is not allowed", "add --trust-plan")
    trusted = compatible.run("lean", *stage, "--trust-plan", "--precision", "fp16")
    assert trusted.returncode == 0 and "fp16 is not confirmed" in trusted.stderr, trusted.stderr
    facts = json.loads(built.with_name(built.name + ".json").read_text())
    beside = plan.with_name(plan.name + ".json")
    beside.write_text(json.dumps(facts))
    assert compatible.run("lean", *stage).returncode == 0
    plan.write_bytes(plan.read_bytes() + b"more")
    refused(compatible.run("lean", *stage, "--trust-plan"), "not the file that was built")
    shutil.copy(built, plan)
    beside.write_text(json.dumps({**facts, "version_compatible": False}))
    refused(compatible.run("lean", *stage), "was built by TensorRT 8.6.0+double", "--version-compatible")


def test_the_lean_runtime_says_how_to_build_what_it_cannot(compatible):
    command = "0_build.py --backend tensorrt --output plans/resnet18-int8.vc.plan --int8 --version-compatible"
    refused(
        compatible.run("lean", "4_use_fp16.py", "--precision", "int8"),
        "runtime builds none",
        f"where TensorRT is: python {command}",
    )
    refused(compatible.run("lean", "0_build.py", "--backend", "tensorrt"), "TensorRT lean runtime runs plans and builds none")


def test_version_compatible_is_tensorrt_s_own(checkout):
    done = checkout.run("0_build.py", "--backend", "simulated", "--version-compatible")
    assert done.returncode == 2 and "--version-compatible: simulated TensorRT" in " ".join(done.stderr.split())


# -- TensorRT for RTX: the run-time half on a double, the build for real


def test_a_stage_on_an_rtx_gpu_keeps_what_it_compiled_and_has_a_context_a_graph(doubled):
    stage, cache = ("7_cuda_graph.py", *STAGES, "--no-verify"), doubled.plans / "resnet18-fp16.rtx.plan.cache"
    assert doubled.run("rtx", "0_build.py", "--fp16").returncode == 0
    done = doubled.run("rtx", *stage, "--json", doubled.folder / "record.json")
    assert done.returncode == 0 and "rtx backend (a GPU and TensorRT for RTX answer; TensorRT is not" in done.stderr, (
        done.stderr
    )
    assert json.loads((doubled.folder / "record.json").read_text())["versions"]["tensorrt_rtx"] == "1.7.1+double"
    first = int(cache.read_bytes())
    assert first == 1 + 3  # the inspector's and the graphs'
    assert doubled.run("rtx", *stage).returncode == 0 and int(cache.read_bytes()) == 2 * first
    cache.write_bytes(b"of another driver")
    done = doubled.run("rtx", *stage)
    assert done.returncode == 0 and "plan.cache is not used" in done.stderr and int(cache.read_bytes()) == first


@pytest.fixture(scope="module")
def photographs():
    datasets = pytest.importorskip("sklearn.datasets")
    return str(Path(datasets.__file__).parent / "images")


def rtx_build(checkout, plan: Path, *options: object) -> dict:
    """The sidecar of a plan that the real library has built."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    done = checkout.run("0_build.py", "--backend", "rtx", "--output", plan, *options)
    assert done.returncode == 0, done.stderr
    facts = json.loads(plan.with_name(plan.name + ".json").read_text())
    assert facts["plan_sha256"] == sha256(plan) and facts["gpu"] == facts["compute_capability"] == "any"
    assert facts["tensorrt"].startswith("TensorRT for RTX 1.")
    return facts


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50", "mobilenet_v2", "efficientnet_v2_s")]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("model", ["resnet18", *OTHERS])
def test_rtx_builds_every_model_in_every_precision_without_a_gpu(checkout, photographs, tmp_path, model, precision):
    options = {"fp32": (), "fp16": ("--fp16",), "int8": ("--int8", "--calibration-images", photographs)}[precision]
    facts = rtx_build(checkout, tmp_path / "x.plan", "--model", model, *options)
    found = facts["precisions"]
    assert max(found, key=found.get) == precision_of(found) == precision and sum(found.values()) > 20
    convolutions = [name for name in facts["layers"] if "Conv" in name]
    assert len(convolutions) >= 20 and facts["profiles"] == [[1, 128, 256]]
    assert not (tmp_path / "timing.rtx.cache").exists() and not list(checkout.plans.glob("timing.rtx*"))


def test_rtx_builds_several_profiles(checkout, tmp_path):
    profiles = ("--profile", "1,16,16", "--profile", "1,128,128")
    facts = rtx_build(checkout, tmp_path / "x.plan", "--fp16", *profiles)
    assert facts["profiles"] == [[1, 16, 16], [1, 128, 128]] and facts["precisions"]["fp16"] > 40


def test_a_stage_without_an_rtx_gpu_says_so_in_a_sentence(checkout):
    if real_runtime() is not None:
        pytest.skip("there is a GPU")
    refused(checkout.run("4_use_fp16.py", "--backend", "rtx"), "--backend rtx: no NVIDIA GPU answers")


@pytest.mark.parametrize("wait_s", [0.5, 1.0])
def test_an_interrupted_build_ends_when_the_builder_has(checkout, tmp_path, wait_s):
    """A process that ends while the builder works ends in a fault of memory."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    profiles = [word for size in range(1, 9) for word in ("--profile", f"1,{size},256")]
    command = [sys.executable, "0_build.py", "--backend", "rtx", *profiles, "--output", tmp_path / "x.plan"]
    process = subprocess.Popen([*map(str, command)], cwd=checkout.folder, stderr=subprocess.PIPE, text=True)
    process.stderr.readline()
    time.sleep(wait_s)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said.endswith("0_build: interrupted\n"), (process.returncode, said)
    assert not list(tmp_path.iterdir())
