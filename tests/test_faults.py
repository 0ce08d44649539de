"""What goes wrong on a machine, on both backends: one line, the right exit code, no hang, no half-written file.

On a GPU the stages run under the Python of PYTHON where that is set (TensorRT and pytest need not share one).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import MANY, ROOT, real_runtime, stage_scripts

STAGE = "6_multi_threads.py"
PYTHON = os.environ.get("PYTHON", sys.executable)


@dataclass
class Machine:
    """Where stages are run: in the copy of the tree on the simulated GPU, in the tree itself on a real one."""

    backend: str
    folder: Path
    plan: Path

    def start(self, *command: object) -> subprocess.Popen[str]:
        words = [PYTHON, *map(str, command), "--backend", self.backend]
        return subprocess.Popen(words, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def stage(self, *arguments: object, script: object = STAGE) -> subprocess.CompletedProcess[str]:
        process = self.start(script, "--plan", self.plan, "--batch", 4, *arguments)
        stdout, stderr = process.communicate(timeout=120)
        return subprocess.CompletedProcess("", process.returncode, stdout, stderr)

    def broken(self, old: str, new: str, stage: str = STAGE) -> Path:
        """A stage with one line changed, beside what it needs."""
        text = (self.folder / stage).read_text(encoding="utf-8")
        assert text.count(old) == 1
        path = self.folder / "broken_stage.py"
        path.write_text(text.replace(old, new), encoding="utf-8")
        return path


@pytest.fixture(params=["simulated", pytest.param("tensorrt", marks=pytest.mark.gpu)])
def machine(request, checkout):
    if request.param == "simulated":
        yield Machine("simulated", checkout.folder, checkout.tiny)
        return
    plan = ROOT / "plans" / "resnet18-fp16.plan"
    if real_runtime() is None or not plan.exists():
        pytest.skip("no GPU answers, or no plan for it: python 0_build.py --fp16")
    yield Machine("tensorrt", ROOT, plan)
    (ROOT / "broken_stage.py").unlink(missing_ok=True)


def ends_with_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert "Traceback" not in done.stderr and "error:" in said[-1], done.stderr
    assert len(said) <= 3, done.stderr  # which backend, what was being done, and the error
    for word in words:
        assert word.lower() in said[-1].lower(), said[-1]
    assert "per batch" not in done.stdout


@pytest.mark.parametrize("stage", [STAGE, "7_cuda_graph.py", "8_multi_context.py", "10_uint8_input.py"])
@pytest.mark.parametrize("index", ["4", "len(run.batches) - 1"])
def test_a_cuda_call_that_fails_in_the_worker(machine, stage, index):
    """Also for the last batch, whose slot nobody wants any more."""
    line = "            slot.returned.synchronize()\n"
    closed = f"            if index == {index}:\n                slot.returned.close()\n{line}"
    done = machine.stage(script=machine.broken(line, closed, stage))
    ends_with_one_line(done, 3, "cudaEventSynchronize", "cudaErrorInvalidResourceHandle")


def test_no_memory_left_on_the_device(machine):
    """Another process (here: the same one, first) holds the memory that the contexts would need."""
    hold = {
        "tensorrt": "held = cudart.cudaMalloc(cudart.cudaMemGetInfo()[0] - (64 << 20))",
        "simulated": "backend.current().simulator.space.charge(cudart.cudaMemGetInfo()[0])",
    }[machine.backend]
    line = "    context = run.engine.create_context()\n"
    imports = "    from common import backend\n    from common.cuda import cudart\n"
    ends_with_one_line(machine.stage(script=machine.broken(line, f"{imports}    {hold}\n{line}")), 3, "memory")


def test_an_impossible_batch(machine):
    ends_with_one_line(machine.stage("--batch", 3000), 2, "batch of 3000", "0_build.py")


def test_a_plan_of_another_tensorrt(machine, tmp_path):
    shutil.copy(machine.plan, tmp_path / "other.plan")
    facts = json.loads(machine.plan.with_name(machine.plan.name + ".json").read_text())
    (tmp_path / "other.plan.json").write_text(json.dumps({**facts, "tensorrt": "TensorRT 9.9.9"}))
    done = machine.stage("--plan", tmp_path / "other.plan")
    ends_with_one_line(done, 3, "built by TensorRT 9.9.9", "0_build.py")


@pytest.mark.parametrize("checked", [True, False])
def test_a_cut_plan(machine, tmp_path, checked):
    """With its sidecar it is found out before TensorRT sees it; without, TensorRT refuses it."""
    cut = tmp_path / "cut.plan"
    cut.write_bytes(machine.plan.read_bytes()[: machine.plan.stat().st_size // 2])
    if checked:
        shutil.copy(machine.plan.with_name(machine.plan.name + ".json"), tmp_path / "cut.plan.json")
    words = ["cut short"] if checked else ["not a plan that this TensorRT can load"]
    ends_with_one_line(machine.stage("--plan", cut), 3, *words)


def interrupted(process: subprocess.Popen[str], wait_s: float) -> tuple[int, str]:
    """Press Ctrl-C a while after the process has said what it runs on; its exit code and the rest of what it said."""
    assert process.stderr is not None
    process.stderr.readline()
    time.sleep(wait_s)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


def test_ctrl_c_in_a_stage(machine, tmp_path):
    record = tmp_path / "record.json"
    process = machine.start(STAGE, "--plan", machine.plan, "--batch", 4, "--batches", 1_000_000, "--json", record)
    code, said = interrupted(process, 3 if machine.backend == "tensorrt" else 1)
    assert code == 130, said
    assert said.strip().splitlines()[-1].endswith("interrupted") and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


HUNDRED_TIMES = """
import random, signal, time
import numpy as np
from common import backend, program
from common.pictures import Images

backend.select("simulated", "h200")
images, batch = Images(None, (3, 32, 32), 0), np.empty((4, 3, 32, 32), np.float32)
program.END_S = 100
heard, raised = program.Interruption(), 0
for _ in range(100):
    heard.since = None
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 3e-3))
        for _ in range(4):
            images.fill(batch)
        time.sleep(2)
    except KeyboardInterrupt:
        raised += 1
print(raised)
"""


def test_no_interrupt_is_lost_while_batches_are_prepared(checkout):
    """In executors' threads and locks, where it would leave one held for ever, or hit a callback that swallows it."""
    done = checkout.run("-c", HUNDRED_TIMES, timeout=120)
    assert done.stdout.strip() == "100", done.stdout + done.stderr


def test_what_swallows_an_interrupt_and_what_hangs_are_ended(checkout):
    swallowed = "import signal, time\nclass Deaf:\n    def __del__(self): signal.raise_signal(signal.SIGINT)\n"
    deaf = f"{swallowed}from common import program\ndef main():\n    Deaf()\n    time.sleep(60)\nprogram.run(main)"
    done = checkout.run("-c", deaf, timeout=30)
    assert done.returncode == 130 and done.stderr.endswith("interrupted\n") and "Traceback" not in done.stderr
    hangs = "import signal, time\nfrom common import program\nprogram.END_S = 0.5\ndef main():\n    try:\n"
    hangs += "        signal.raise_signal(signal.SIGTERM)\n    finally:\n        time.sleep(60)\nprogram.run(main)"
    done = checkout.run("-c", hangs, timeout=30)
    assert done.returncode == 130 and "interrupted" in done.stderr


LATE = """
import atexit, os, signal, threading, time
from common import program

class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.{number})

def press():
    time.sleep(0.1)
    os.kill(os.getpid(), signal.{number})
    time.sleep(60)

def main():
    print("written")
    if {when!r} == "threads":
        threading.Thread(target=press).start()
    elif {when!r} == "callbacks":
        atexit.register(os.kill, os.getpid(), signal.{number})
    else:
        program.late = Late()
    return {code}

program.run(main)
"""


@pytest.mark.parametrize("when", ["threads", "callbacks", "modules"])
@pytest.mark.parametrize("number, code", [("SIGINT", 0), ("SIGTERM", 0), ("SIGINT", 1)])
def test_what_is_written_is_not_interrupted_any_more(checkout, when, number, code):
    """While Python waits for threads, calls back, and puts its modules away."""
    done = checkout.run("-c", LATE.format(when=when, number=number, code=code), timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (code, "written\n", "")


PROGRAMS = [["0_build.py"], [MANY], *([name] for name in stage_scripts()), ["scripts/compare.py"], ["-m", "sim"]]
for room in ("export", "harness", "peers", "sim", "scripts"):
    for path in sorted((ROOT / room).glob("[a-z]*.py")):
        if "__main__" in path.read_text(encoding="utf-8"):
            PROGRAMS.append(["-m", f"{room}.{path.stem}"])
IMPORTED = "import os, signal, time\nos.kill(os.getpid(), int(os.environ['SIGNAL']))\ntime.sleep(60)\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program[-1])
def test_an_interrupt_during_the_imports_of_any_program(checkout, tmp_path, program, number):
    """It comes while NumPy is imported."""
    (tmp_path / "numpy.py").write_text(IMPORTED)
    surroundings = {**os.environ, "PYTHONPATH": str(tmp_path), "SIGNAL": str(int(number))}
    done = checkout.run(*program, env=surroundings, timeout=30)
    assert done.returncode == 130 and re.fullmatch(r"\w+: interrupted\n", done.stdout + done.stderr), done.stderr


@pytest.mark.gpu
def test_ctrl_c_in_a_build(machine, tmp_path):
    if machine.backend == "simulated":
        pytest.skip("a simulated build takes no time")
    files = ("--timing-cache", tmp_path / "cache", "--output", tmp_path / "new.plan")
    code, said = interrupted(machine.start("0_build.py", "--fp16", "--profile", "1,7,9", *files), 5)
    assert code == 130, said
    assert said.strip().splitlines()[-1].endswith("interrupted")
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_written_is_found_before_the_run(machine):
    ends_with_one_line(machine.stage("--json", "/nowhere/record.json"), 3, "/nowhere")


def test_the_machine_is_well_after_all_that(machine):
    done = machine.stage()
    assert done.returncode == 0 and "right" in done.stdout, done.stdout + done.stderr
