"""Running the repository's own scripts in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_quietly(command: list[str]) -> str | None:
    """Run a command in the repository's root; the last line that it said if it failed, else None.

    Another Python than this one must not inherit this one's PYTHONHOME and PYTHONPATH.
    """
    environment = {name: value for name, value in os.environ.items()
                   if command[0] == sys.executable or not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 0:
        return None
    return ((done.stderr or done.stdout).strip().splitlines() or ["no output"])[-1]
