import runpy

runpy.run_module("sim.predict", run_name="__main__", alter_sys=True)
