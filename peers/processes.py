"""Running the repository's own scripts in processes of their own."""

from __future__ import annotations

import subprocess
import sys

from common.plans import ROOT


def run_quietly(*arguments: object) -> str | None:
    """Run Python in the repository's root; the last line that it said if it failed, else None."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)
    said = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
    return said[-1] if done.returncode else None
