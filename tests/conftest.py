"""Fixtures shared by the tests. Scripts are run in a copy of the tree, so that nobody's plans and models are touched."""

from __future__ import annotations

import compileall
import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
MANY = "12_many_gpus.py"  # many processes, each of which runs a stage: no stage by itself
CODE = ("0_build.py", MANY, "common", "export", "sim", "harness", "peers", "scripts", "docs", "README.md")
FEW = ("--batch", "2", "--charge-batch", "128")  # the usual batch with fewer images computed
CHEAP = (*FEW, "--batches", "6")
SIMULATED = ("--backend", "simulated")
LONGEST = ("lessons", "many_gpus", "comparisons", "libraries", "readme", "analysis", "random_weights", "stages", "decode")
settings.register_profile("ladder", deadline=None)  # a busy machine is no failure
settings.load_profile("ladder")


def stage_scripts() -> list[str]:
    return sorted((path.name for path in ROOT.glob("[1-9]*_*.py") if path.name != MANY), key=number)


def number(stage: str) -> int:
    return int(stage.split("_")[0])


def pytest_collection_modifyitems(items: list) -> None:
    """Files that take longest come first, lest the last of them be left to one core alone; of them first the one with a
    thousand runs in pytest's own process, each of which takes twice as long once others have imported PyTorch there."""
    items.sort(key=lambda item: LONGEST.index(name) if (name := item.path.stem[5:]) in LONGEST else len(LONGEST))


class Checkout:
    """A copy of the tree, with the simulated plans of the ladder and of a tiny model."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.plans, self.models = folder, folder / "plans", folder / "models"
        self.tiny = self.plans / "tiny.plan"

    def run(self, *arguments: object, timeout: float = 300, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a Python script as a user would, in the copy's root."""
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=timeout, **options)  # type: ignore[call-overload]

    def make(self) -> None:
        for name in (*CODE, *stage_scripts()):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self.folder / name)
        compileall.compile_dir(self.folder, quiet=1)  # else each process does, where PYTHONDONTWRITEBYTECODE is set
        write_tiny_model(self.folder / "tiny.onnx")
        tiny = ("--onnx-file", "tiny.onnx", "--profile", "1,2048,2048", "--output", "plans/tiny.plan")
        for options in ((), ("--fp16",), ("--fp16", *tiny)):
            done = self.run("0_build.py", *SIMULATED, *options)
            assert done.returncode == 0, done.stderr


def onnx_model(nodes: list, inputs: list, outputs: list, weights: dict[str, np.ndarray] | None = None) -> Any:
    """An ``onnx.ModelProto`` of the opset that every TensorRT parses, with constants of these names."""
    from onnx import helper, numpy_helper

    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "made", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_tiny_model(path: Path) -> None:
    """Two convolutions and a classifier with seeded weights: images N×3×32×32 → logits N×10, both FP32."""
    from onnx import TensorProto, checker, helper, save

    draw = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "w2": (16, 8, 3, 3), "w3": (10, 16)}
    weights = {name: draw.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype("f4") for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["images", "w1"], ["a"], "conv1", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "conv2", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3"], ["logits"], "classifier", transB=1),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("images", [3, 32, 32]), ("logits", [10]))
    ]
    model = onnx_model(nodes, [ends[0]], [ends[1]], weights)
    checker.check_model(model, full_check=True)
    save(model, str(path))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """The folder that all of pytest's processes share: a worker's own lies in it."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if own.name.startswith("popen-") else own


@pytest.fixture(scope="session", autouse=True)
def kept_outputs(shared_folder) -> None:
    """Outputs that are computed are kept for these tests alone: none are left of another state of the code."""
    os.environ["TRT_LADDER_OUTPUTS"] = str(shared_folder / "outputs")


@pytest.fixture(scope="session")
def checkout(shared_folder) -> Checkout:
    """Made once for all of pytest's processes."""
    made = Checkout(shared_folder / "checkout")
    with FileLock(shared_folder / "checkout.lock"):
        if not (shared_folder / "checkout.made").exists():
            made.folder.mkdir()
            made.make()
            (shared_folder / "checkout.made").touch()
    return made


@pytest.fixture(scope="session")
def run(checkout):
    return checkout.run


@pytest.fixture
def simulator():
    """A fresh simulated process with the default device."""
    from sim import simulator as module

    yield module.start()
    module.start().close()


@pytest.fixture(scope="session")
def real_traces(tmp_path_factory) -> dict[str, Path]:
    """Two traces of a hand-made pipeline on an H200 with TensorRT 8.6, exported by nsys 2025.3: serial and streams."""
    folder = tmp_path_factory.mktemp("traces")
    for packed in sorted((Path(__file__).parent / "traces").glob("*.gz")):
        path = folder / f"{packed.name.split('.')[-3].split('_')[-1]}.sqlite"
        with gzip.open(packed) as source, path.open("wb") as file:
            shutil.copyfileobj(source, file)
    return {path.stem: path for path in folder.glob("*.sqlite")}


def real_runtime():
    """The real CUDA runtime where a GPU answers, else None."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    error, *count = runtime.cudaGetDeviceCount()
    return runtime if int(error) == 0 and count[0] > 0 else None
