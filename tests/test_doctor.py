"""The doctor: what it says of machines that lack something, or whose parts do not fit; how it finds out; and this machine."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from common import backend, libraries
from harness import doctor, machine, nsys
from harness.machine import Machine

LAPTOP = Machine((3, 12), disk_free_gb=50, backend="simulated", reason="cuda-python is not installed")
SERVER = Machine(
    python=(3, 12),
    gpu="NVIDIA H200",
    capability="9.0",
    gpu_free_gb=139.0,
    driver="580.65.06",
    driver_cuda=(13, 0),
    runtime_cuda=(13, 0),
    packages={"cuda-bindings": "13.0.3", "nvtx": "0.2.13", "tensorrt-cu13": "10.16.1"},
    tensorrt={"TensorRT": "10.16.1.11"},
    nsys="2025.3.1",
    disk_free_gb=50,
    backend="tensorrt",
    reason="a GPU and TensorRT answer",
)
V100 = {"gpu": "Tesla V100-SXM2-32GB", "capability": "7.0", "driver_cuda": (12, 8), "runtime_cuda": (12, 8)}
GEFORCE = {"gpu": "NVIDIA GeForce RTX 4090", "capability": "8.9"}
APT = "apt-get install nsight-systems-cli  # from NVIDIA's package repository"
DRIVER = "# install NVIDIA's driver, 580 or later: https://www.nvidia.com/drivers"


def without(*names: str, **versions: str) -> dict[str, str]:
    kept = {name: version for name, version in SERVER.packages.items() if name not in names}
    return {**kept, **{name.replace("_", "-"): version for name, version in versions.items()}}


CASES = {
    "all is well": (SERVER, {}, {}, []),
    "a laptop": (LAPTOP, {}, {}, []),
    "a laptop whose nsys is too old for its nvtx": (
        LAPTOP,
        {"packages": {"nvtx": "0.2.12"}, "nsys": "2023.4.4"},
        {"nvtx": "0.2.12: nsys 2023.4.4 records none"},
        ["pip install 'nvtx<0.2.12'"],
    ),
    "the same on a Python without the older nvtx": (
        SERVER,
        {"python": (3, 14), "nsys": "2022.4.2", "runtime_cuda": (12, 9)},
        {"nvtx": "nsys 2022.4.2 records none"},
        [APT],
    ),
    "an nsys from before CUDA 13": (
        SERVER,
        {"nsys": "2023.4.4", "packages": without(nvtx="0.2.11")},
        {"nsys": "loses most of what CUDA 13 does"},
        [APT],
    ),
    "no nsys": (SERVER, {"nsys": ""}, {"nsys": "the table has no breakdown"}, [APT]),
    "no nvtx": (SERVER, {"packages": without("nvtx")}, {"nvtx": "no profile has batches"}, ["pip install nvtx"]),
    "no cuda-python": (
        SERVER,
        {"packages": without("cuda-bindings"), "runtime_cuda": (), "backend": "simulated"},
        {"cuda-python": "it is what calls CUDA", "--backend auto": "but here is a GPU"},
        ["pip install 'cuda-python>=13,<14'"],
    ),
    "a driver too old for cuda-python": (
        SERVER,
        {"driver_cuda": (12, 4), "packages": without("tensorrt-cu13", tensorrt_cu12="10.16.1")},
        {"cuda-python": "the driver is too old for it, and fits CUDA 12.4"},
        ["pip install 'cuda-python>=12,<13'"],
    ),
    "a driver too old for TensorRT": (
        SERVER,
        {"driver_cuda": (12, 4), "runtime_cuda": (12, 9), "packages": without(tensorrt_cu13_libs="10.16.1")},
        {"TensorRT": "the driver is too old for it"},
        ["pip uninstall -y tensorrt-cu13 tensorrt-cu13-libs", "pip install tensorrt-cu12"],
    ),
    "a driver too old for everything": (
        SERVER,
        {"driver_cuda": (11, 4), "runtime_cuda": (11, 4), "packages": without("tensorrt-cu13")},
        {"driver": "wants CUDA 12"},
        [DRIVER],
    ),
    "a driver that does not work": (LAPTOP, {"driver_fault": "nvidia-smi: it failed"}, {"driver": "it failed"}, [DRIVER]),
    "no TensorRT": (
        SERVER,
        {"tensorrt": {}, "packages": without("tensorrt-cu13")},
        {"TensorRT": "nor is another"},
        ["pip install tensorrt-cu13"],
    ),
    "no TensorRT for a GeForce": (
        SERVER,
        {"tensorrt": {}, "packages": without("tensorrt-cu13"), **GEFORCE},
        {"TensorRT": "nor is another"},
        ["pip install tensorrt-rtx-cu12"],
    ),
    "a GeForce with its own": (SERVER, {"tensorrt": {"TensorRT for RTX": "1.7.1"}, **GEFORCE}, {}, []),
    "only that of a GeForce on a Hopper": (
        SERVER,
        {"tensorrt": {"TensorRT for RTX": "1.7.1"}},
        {"TensorRT": "nor is another"},
        ["pip install tensorrt-cu13"],
    ),
    "a TensorRT that cannot be imported": (
        SERVER,
        {"tensorrt": {}, "broken": {"TensorRT": "libnvinfer.so.10: no such file"}},
        {"TensorRT": "libnvinfer.so.10"},
        ["pip install --force-reinstall tensorrt"],
    ),
    "a TensorRT 8.6 under a Python too new for it": (
        SERVER,
        {"tensorrt": {}, "broken": {"TensorRT": "no module"}, "packages": without("tensorrt-cu13", tensorrt="8.6.0")},
        {"TensorRT": "8.6.0: it ends with Python 3.10"},
        ["pip install tensorrt-cu13"],
    ),
    "a GPU that only an old TensorRT runs on, under a new Python": (
        SERVER,
        {**V100, "packages": without("tensorrt-cu13")},
        {"Python": "TensorRT 10.5 begins with newer GPUs", "TensorRT": "do not run on compute capability 7.0"},
        ["python3.10 -m venv .venv && . .venv/bin/activate", "pip install -e . tensorrt==8.6.0 'cuda-python>=12,<13'"],
    ),
    "the same under a Python that fits": (
        SERVER,
        {**V100, "python": (3, 10), "tensorrt": {}, "packages": without("tensorrt-cu13")},
        {"TensorRT": "nor is another"},
        ["pip install tensorrt==8.6.0"],
    ),
    "a GPU that is in use": (
        SERVER,
        {"gpu_free_gb": 0.5},
        {"GPU": "batches of 128 want 2"},
        ["nvidia-smi  # shows who holds its memory", "python 5_multi_streams.py --batch 16  # takes less of it"],
    ),
    "a full disk": (SERVER, {"disk_free_gb": 0.1}, {"disk": "0.1 GB free: plans"}, []),
    "no ONNX Runtime, and no GPU": (
        LAPTOP,
        {"lacking": ("onnxruntime",), "backend": "", "reason": "No module named 'onnxruntime'"},
        {"simulated GPU": "not installed", "--backend auto": "takes none"},
        ["pip install onnxruntime"],
    ),
}


@pytest.mark.parametrize("base, changes, faults, commands", CASES.values(), ids=CASES)
def test_what_it_says(base, changes, faults, commands, monkeypatch, capsys):
    here = replace(base, **changes)
    monkeypatch.setattr(doctor, "look", lambda: here)
    monkeypatch.setattr(sys, "argv", ["doctor"])
    assert doctor.main() == (0 if here.backend else 3)
    said = {line.part: " ".join(str(line).split()) for line in doctor.examine(here) if line.fault}
    assert said.keys() == faults.keys() and all(faults[part] in said[part] for part in faults), said
    printed = capsys.readouterr().out.splitlines()
    last = printed[printed.index("") + 1 :]
    if commands:
        assert last == ["to mend it:", *(f"    {command}" for command in commands)]
    else:
        assert len(last) == 1 and last[0].startswith("see the ✗" if faults else "everything is here")
    assert max(map(len, printed)) <= 80


# -- how it finds out

SMI = """#!/bin/sh
case "$1" in
"") echo "| NVIDIA-SMI 550.1    Driver Version: 550.1    CUDA Version: 12.4 |" ;;
--query-gpu=name*) echo "Tesla T4, 550.1, 15000"; echo "Tesla T4, 550.1, 1" ;;
*) ANSWER ;;
esac
"""


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine with nothing of NVIDIA's: no programs, no modules."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("NSYS", raising=False)
    monkeypatch.setattr(nsys, "PLACES", [])
    monkeypatch.setattr(machine.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(backend, "_current", None)
    for module in ("cuda.bindings.runtime", "cuda.cudart", *(name for each in libraries.LIBRARIES for name in each.modules)):
        monkeypatch.setitem(sys.modules, module, None)
    return tmp_path


def program(folder, name, text):
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_nothing_is_there(bare):
    here = machine.look()
    assert (here.gpu, here.driver, here.driver_fault, here.nsys, here.tensorrt, here.runtime_cuda) == ("", "", "", "", {}, ())
    assert (here.backend, here.reason[:11]) == ("simulated", "cuda-python")


def test_a_driver_is_asked(bare):
    program(bare, "nvidia-smi", SMI.replace("ANSWER", "echo 7.5; echo 7.5"))
    facts = machine.gpu()
    expected = {"gpu": "Tesla T4", "driver": "550.1", "driver_cuda": (12, 4), "gpu_free_gb": 15000 * 2**20 / 1e9}
    assert facts == {**expected, "capability": "7.5"}
    program(bare, "nvidia-smi", SMI.replace("ANSWER", "echo 'not a valid field'; exit 2"))
    assert machine.gpu() == expected


def test_a_driver_that_fails_is_quoted(bare):
    program(bare, "nvidia-smi", "#!/bin/sh\necho 'it could not communicate\nwith the driver'; exit 9\n")
    assert machine.gpu() == {"driver_fault": "nvidia-smi: it could not communicate with the driver"}


def test_a_card_without_a_driver_is_seen(bare, monkeypatch):
    (bare / "vendor").write_text("0x10de\n")
    monkeypatch.setattr(machine.glob, "glob", lambda pattern: [str(bare / "vendor")])
    assert "no driver answers" in machine.gpu()["driver_fault"]


def test_a_gpu_in_a_container_without_nvidia_smi(bare, monkeypatch):
    properties = SimpleNamespace(name=b"NVIDIA L4", major=8, minor=9)
    cudart = SimpleNamespace(
        cudaGetDeviceCount=lambda: (0, 1),
        cudaGetDeviceProperties=lambda index: (0, properties),
        cudaDriverGetVersion=lambda: (0, 12080),
        cudaRuntimeGetVersion=lambda: (0, 12090),
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cudart)
    facts = machine.gpu()
    assert facts == {"gpu": "NVIDIA L4", "capability": "8.9", "driver": "of unknown version", "driver_cuda": (12, 8)}
    assert machine.packages()["runtime_cuda"] == (12, 9)


def test_a_cuda_python_that_loads_the_driver_first(bare, monkeypatch):
    def fails():
        raise RuntimeError("Failed to dlopen libcuda.so")

    cudart = SimpleNamespace(cudaGetDeviceCount=fails, cudaRuntimeGetVersion=fails)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cudart)
    assert machine.gpu() == {} and machine.packages()["runtime_cuda"] == ()


def test_a_broken_tensorrt_and_one_that_works(bare, monkeypatch):
    (bare / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open (no such file)')")
    (bare / "tensorrt_rtx.py").write_text("__version__ = '1.7.1'")
    (bare / "Tensor_RT-1.0.dist-info").mkdir()
    (bare / "Tensor_RT-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: Tensor_RT\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(bare))
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, name)
    facts = machine.packages()
    assert facts["tensorrt"] == {"TensorRT for RTX": "1.7.1"}
    assert facts["broken"] == {"TensorRT": "libnvinfer.so.10: cannot open (no such file)"}
    assert facts["packages"]["tensor-rt"] == "1.0"
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")


@pytest.mark.parametrize("broken", ["raise ValueError('bad')", "def f(:", "x = 1", "raise AttributeError('a(b)c')"])
def test_modules_that_are_broken_in_any_way(bare, monkeypatch, broken):
    names = "tensorrt", "tensorrt_rtx", "tensorrt_lean", "onnx", "onnxruntime"
    for name in names:
        (bare / f"{name}.py").write_text(broken)
        monkeypatch.delitem(sys.modules, name, raising=False)
    (bare / "half-1.0.dist-info").mkdir()
    (bare / "half-1.0.dist-info" / "METADATA").write_bytes(b"Name: \xff\n")
    monkeypatch.syspath_prepend(str(bare))
    here = machine.look()
    assert here.tensorrt == {} and all(here.broken.values()) and len(here.broken) == len(libraries.LIBRARIES)
    assert here.backend == "" and here.reason
    assert all(map(str, doctor.examine(here)))
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize("said", ["", "echo garbage", "printf '\\377\\n'", "echo 'T4, 550.1, ²'", "echo No devices were found"])
def test_programs_that_say_something_else(bare, said):
    for name in ("nvidia-smi", "nsys"):
        program(bare, name, f"#!/bin/sh\n{said}\n")
    assert all(map(str, doctor.examine(machine.look())))


def test_an_old_nsys(bare):
    program(bare, "nsys", "#!/bin/sh\necho 'NVIDIA Nsight Systems version 2023.4.4.54-234433681190v0'\n")
    assert machine.look().nsys == "2023.4.4.54"


def test_no_backend_works(bare, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    here = machine.look()
    assert (here.backend, here.lacking) == ("", ("onnxruntime",)) and "onnxruntime" in here.reason


def test_on_this_machine(run):
    done = run("-m", "scripts.doctor", env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    parts = {line[2:24].strip() for line in lines if line[:1] in ("✗", "·")}
    assert {"Python", "GPU", "driver", "cuda-python", "TensorRT", "nvtx", "nsys", "disk", "--backend auto"} <= parts
    assert max(map(len, lines)) <= 80 and (lines[-1].startswith(("everything is here", "    ")))


def test_without_what_the_doctor_needs(run):
    done = run("-S", "-m", "scripts.doctor")
    assert (done.returncode, done.stdout) == (3, "") and done.stderr.endswith("in this Python: pip install -e .\n")
