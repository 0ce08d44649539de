import runpy

runpy.run_module("harness.layers", run_name="__main__", alter_sys=True)
