import runpy

runpy.run_module("harness.decoders", run_name="__main__", alter_sys=True)
