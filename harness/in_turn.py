"""Stages one after the other in one process, which starts Python, CUDA and TensorRT once for all of them.

``python -m harness.in_turn`` reads a stage's log and command line from a line of its input, as JSON, runs it as Python runs a
script, and answers with 0 on a line; one that fails ends the process, as it would its own.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common.errors import OURS
from common.plans import ROOT
from harness.processes import POLL_S, killed_with_us


class InTurn:
    """A process for stages. One that fails takes it along, and the next gets a new one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, command: list[str], log: Path) -> int:
        """Run a stage, its output into a log; its exit code."""
        log.touch()  # what cannot be written is told here, and not by the process
        if self._process is None or self._process.poll() is not None:  # it was killed, between two stages
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
            self._process = subprocess.Popen([command[0], "-m", __name__], cwd=ROOT, start_new_session=True, **pipes)
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with killed_with_us(process):
            process.stdin.write(json.dumps([str(log), *command[1:]]).encode() + b"\n")
            while not select.select([process.stdout], [], [], POLL_S)[0]:
                pass
            if process.stdout.readline():
                return 0
            while process.poll() is None:
                time.sleep(POLL_S)
        self.close()
        return process.returncode or OURS  # 0 without an answer is no end of a stage

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        log, *sys.argv = json.loads(line)
        with open(log, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as done:
            if done.code:
                raise
        gc.collect()  # what the stage held of the GPU and of page-locked memory, and only a cycle of references still does
        sys.stdout.flush()
        print(0, file=answers)


if __name__ == "__main__":
    main()
