import runpy

runpy.run_module("sim.calibrate", run_name="__main__", alter_sys=True)
