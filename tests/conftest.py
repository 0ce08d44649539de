"""Fixtures shared by the tests. The repository's own plans and models are built once, by whichever test needs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: object, timeout: float = 300, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a Python script of the repository as a user would, from its root."""
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False,
                          timeout=timeout, **options)  # type: ignore[call-overload]


def stage_scripts() -> list[str]:
    return sorted(path.name for path in ROOT.glob("[1-9]*_*.py"))


@pytest.fixture(scope="session")
def plans() -> Path:
    """The folder of the ladder's simulated plans, FP32 and FP16 built."""
    for options in ([], ["--fp16"]):
        name = f"resnet18-{'fp16' if options else 'fp32'}.simulated.plan"
        if not (ROOT / "plans" / name).exists():
            done = run("0_build.py", "--backend", "simulated", *options, timeout=600)
            assert done.returncode == 0, done.stderr
    return ROOT / "plans"


@pytest.fixture
def simulator():
    """A fresh simulated process with the default device."""
    from common.sim import simulator as module

    yield module.start()
    module.start().close()


def real_runtime():
    """The real CUDA runtime where a GPU answers, else None."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    error, *count = runtime.cudaGetDeviceCount()
    return runtime if int(error) == 0 and count[0] > 0 else None
