import runpy

runpy.run_module("export.triton", run_name="__main__", alter_sys=True)
