import runpy

runpy.run_module("sim.predict_scale", run_name="__main__", alter_sys=True)
