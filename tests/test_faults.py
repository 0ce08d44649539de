"""What goes wrong on a machine, on both backends: one line, the right exit code, no hang, no half-written file.

On a GPU the stages run under the Python of PYTHON where that is set (TensorRT and pytest need not share one).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, real_runtime

STAGE = "6_multi_threads.py"


@pytest.fixture(params=["simulated", pytest.param("tensorrt", marks=pytest.mark.gpu)])
def backend(request, plans):
    if request.param == "tensorrt":
        if real_runtime() is None:
            pytest.skip("no GPU answers")
        if not (ROOT / "plans" / "resnet18-fp16.plan").exists():
            pytest.skip("no plan for this GPU: python 0_build.py --fp16")
    return request.param


@pytest.fixture
def plan(backend) -> Path:
    return ROOT / "plans" / f"resnet18-fp16{'.simulated' if backend == 'simulated' else ''}.plan"


def python() -> str:
    return os.environ.get("PYTHON", sys.executable)


AS_A_SCRIPT = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); del sys.argv[0]; " \
              "runpy.run_path(sys.argv[0], run_name='__main__')"
"""Runs a script from anywhere as if it lay in the repository."""


def stage(backend: str, *arguments: object, script: object = STAGE, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python(), "-c", AS_A_SCRIPT, str(script), "--backend", backend, "--batch", "4",
                           *map(str, arguments)], cwd=ROOT, text=True, capture_output=True, check=False,
                          timeout=timeout)


def ends_with_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert "Traceback" not in done.stderr and "error:" in said[-1], done.stderr
    assert len(said) <= 3, done.stderr  # which backend, what was being done, and the error
    for word in words:
        assert word.lower() in said[-1].lower(), said[-1]
    assert "per batch" not in done.stdout


def broken(tmp_path: Path, old: str, new: str) -> Path:
    """Stage 6 with one line changed."""
    text = (ROOT / STAGE).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / STAGE).write_text(text.replace(old, new), encoding="utf-8")
    return tmp_path / STAGE


def test_a_cuda_call_that_fails_in_the_worker(backend, tmp_path):
    script = broken(tmp_path, "                    slot.returned.synchronize()\n",
                    "                    slot.returned.close() if index == 4 else slot.returned.synchronize()\n"
                    "                    index == 4 and slot.returned.synchronize()\n")
    ends_with_one_line(stage(backend, script=script), 3, "cudaEventSynchronize", "cudaErrorInvalidResourceHandle")


def test_a_mistake_in_the_worker_ends_the_run(backend, tmp_path):
    script = broken(tmp_path, "                    slot.returned.synchronize()\n",
                    "                    slot.returned.synchronize()\n                    {}[index]\n")
    done = stage(backend, script=script)
    assert done.returncode == 1 and "KeyError: 0" in done.stderr and "per batch" not in done.stdout


def test_no_memory_left_on_the_device(backend, tmp_path):
    """Another process (here: the same one, first) holds the memory that the contexts would need."""
    hold = {"tensorrt": "held = cudart.cudaMalloc(cudart.cudaMemGetInfo()[0] - (64 << 20))",
            "simulated": "backend.current().simulator.space.charge(cudart.cudaMemGetInfo()[0] - (64 << 20))"}[backend]
    script = broken(tmp_path, '    run.engine.require_precision(run.precision)\n',
                    f"    from common import backend\n    from common.cuda import cudart\n    {hold}\n")
    ends_with_one_line(stage(backend, script=script), 3, "memory")


def test_an_impossible_batch(backend):
    ends_with_one_line(stage(backend, "--batch", 300 if backend == "tensorrt" else 8,
                             *(["--charge-batch", 300] if backend == "simulated" else [])), 2, "batch of 300", "0_build.py")


def test_a_plan_of_another_tensorrt(backend, plan, tmp_path):
    shutil.copy(plan, tmp_path / "other.plan")
    facts = json.loads(plan.with_name(plan.name + ".json").read_text())
    (tmp_path / "other.plan.json").write_text(json.dumps({**facts, "tensorrt": "9.9.9"}))
    ends_with_one_line(stage(backend, "--plan", tmp_path / "other.plan"), 3, "built by TensorRT 9.9.9", "0_build.py")


@pytest.mark.parametrize("checked", [True, False])
def test_a_cut_plan(backend, plan, tmp_path, checked):
    """With its sidecar it is found out before TensorRT sees it; without, TensorRT refuses it."""
    cut = tmp_path / "cut.plan"
    cut.write_bytes(plan.read_bytes()[: plan.stat().st_size // 2])
    if checked:
        shutil.copy(plan.with_name(plan.name + ".json"), tmp_path / "cut.plan.json")
    words = ["cut short"] if checked else ["not a plan that this TensorRT can load"]
    ends_with_one_line(stage(backend, "--plan", cut), 3, *words)


def interrupted(command: list[object], wait: float) -> subprocess.CompletedProcess[str]:
    """Run a command and press Ctrl-C after ``wait`` seconds."""
    process = subprocess.Popen([python(), *map(str, command)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def test_ctrl_c_in_a_stage(backend, tmp_path):
    record = tmp_path / "record.json"
    done = interrupted([STAGE, "--backend", backend, "--batch", 4, "--batches", 1_000_000, "--json", record], 12)
    assert done.returncode == 130, done.stdout + done.stderr
    assert done.stderr.strip().splitlines()[-1].endswith("interrupted") and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_ctrl_c_in_a_build(tmp_path):
    if real_runtime() is None:
        pytest.skip("no GPU answers")
    done = interrupted(["0_build.py", "--backend", "tensorrt", "--fp16", "--profile", "1,7,9", "--timing-cache",
                        tmp_path / "cache", "--output", tmp_path / "new.plan"], 12)
    assert done.returncode == 130, done.stdout + done.stderr
    assert "interrupted; nothing was written" in done.stderr.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_written_is_found_before_the_run(backend):
    ends_with_one_line(stage(backend, "--json", "/nowhere/record.json"), 3, "/nowhere")


def test_the_machine_is_well_after_all_that(backend):
    done = stage(backend)
    assert done.returncode == 0 and "right" in done.stdout, done.stdout + done.stderr
