import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the rooms, where the package is not installed
runpy.run_module("harness.compare", run_name="__main__", alter_sys=True)
