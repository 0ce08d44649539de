"""Running the repository's own scripts in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

from common.plans import ROOT


def run_quietly(*arguments: object, python: str = sys.executable) -> str | None:
    """Run Python in the repository's root; the last line that it said if it failed, else None.

    Another Python than this one must not inherit this one's PYTHONHOME and PYTHONPATH.
    """
    own = python == sys.executable
    environment = {name: value for name, value in os.environ.items() if own or not name.startswith("PYTHON")}
    command = [python, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    said = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
    return said[-1] if done.returncode else None
