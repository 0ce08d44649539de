"""Processes that do not outlive the one that started them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.plans import ROOT

POLL_S, GRACE_S, GONE_S = 0.02, 10.0, 1.0


def call(command: list[str], log: Path) -> int:
    """Run a program, its output into a log; its exit code. However this ends, all that it started has ended before."""
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, start_new_session=True)
    with killed_with_us(process):
        while process.poll() is None:  # to wait inside ``subprocess`` would be to hear of Ctrl-C late
            time.sleep(POLL_S)
    return process.returncode


def ask(*command: str) -> tuple[str, bool]:
    """What a program says, and whether it succeeded; "" and no where there is none, or no answer in a minute."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return "", False
    return (done.stdout or done.stderr).strip(), done.returncode == 0


@contextlib.contextmanager
def killed_with_us(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Whatever is raised inside, the process and all that it started have ended before."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(ProcessLookupError):  # which also is raised where all have ended already
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            os.killpg(process.pid, signal.SIGKILL)
            until = time.monotonic() + GONE_S
            while time.monotonic() < until:  # the killed are not gone at once; a zombie that nobody looks after stays
                time.sleep(POLL_S)
                os.killpg(process.pid, 0)
        raise
