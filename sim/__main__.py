"""Run any TensorRT script on the simulated GPU: ``python -m sim [--device NAME] [--trace PATH] SCRIPT ARGS…``

The drop-ins stand behind ``cuda.bindings.runtime``, ``cuda.cudart``, ``tensorrt`` and ``nvtx``; the script is not changed.
Afterwards it is said what the script has not given back, with the line that made it.
"""

from __future__ import annotations

import argparse
import gc
import runpy
import sys
from pathlib import Path
from types import ModuleType

from sim import cudart, device, nvtx, simulator, tensorrt


def stand_in() -> None:
    """Put the drop-ins behind the vendors' module names, parent packages included."""
    cuda, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    vars(cuda).update(__path__=[], bindings=bindings, cudart=cudart)
    vars(bindings).update(__path__=[], runtime=cudart)
    sys.modules.update({"cuda": cuda, "cuda.bindings": bindings, "cuda.bindings.runtime": cudart, "cuda.cudart": cudart})
    sys.modules.update({"tensorrt": tensorrt, "nvtx": nvtx})


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m sim", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", choices=device.available(), default=simulator.DEFAULT_DEVICE)
    p.add_argument("--trace", type=Path, help="write the timeline as Nsight Systems' SQLite")
    p.add_argument("script", type=Path)
    p.add_argument("arguments", nargs=argparse.REMAINDER)
    options = p.parse_args()
    if not options.script.is_file():
        p.error(f"{options.script}: no such file")
    sim = simulator.start(options.device)
    stand_in()
    sys.argv = [str(options.script), *options.arguments]
    sys.path.insert(0, str(options.script.resolve().parent))  # as `python SCRIPT` does
    code = 0
    try:
        runpy.run_path(str(options.script), run_name="__main__").clear()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    gc.collect()
    work = f"{sim.calls} CUDA calls, {sim.clock.thread().now / 1e6:.3f} ms of modelled time, computed by ONNX Runtime"
    for line in (f"simulated {sim.device.name}: {work}", *(f"not given back: {leak}" for leak in sim.leaks())):
        print(line, file=sys.stderr)
    if options.trace:
        sim.write_trace(options.trace, SCRIPT=options.script.name)
    return code


if __name__ == "__main__":
    sys.exit(main())
