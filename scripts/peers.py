"""See peers/measure.py."""

import runpy

runpy.run_module("peers.measure", run_name="__main__", alter_sys=True)
