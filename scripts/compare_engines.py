"""See peers/compare_engines.py."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the rooms, where the package is not installed
runpy.run_module("peers.compare_engines", run_name="__main__", alter_sys=True)
