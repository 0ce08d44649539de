import runpy

runpy.run_module("peers.compare_engines", run_name="__main__", alter_sys=True)
