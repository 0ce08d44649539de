import runpy

runpy.run_module("harness.side_by_side", run_name="__main__", alter_sys=True)
