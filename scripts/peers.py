"""See peers.pytorch.py."""

import runpy

runpy.run_module("peers.pytorch", run_name="__main__", alter_sys=True)
