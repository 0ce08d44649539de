"""Run any TensorRT script on the simulated GPU: ``python -m common.sim [--device NAME] [--trace PATH] SCRIPT ARGS…``

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

from common.sim import cudart, device, nvtx, simulator, tensorrt


def stand_in() -> None:
    """Put the drop-ins behind the vendors' module names, parent packages included."""
    packages = {name: ModuleType(name) for name in ("cuda", "cuda.bindings")}
    packages["cuda"].bindings, packages["cuda"].cudart = packages["cuda.bindings"], cudart  # type: ignore[attr-defined]
    packages["cuda.bindings"].runtime = cudart  # type: ignore[attr-defined]
    for package in packages.values():
        package.__path__ = []
    sys.modules.update({**packages, "cuda.bindings.runtime": cudart, "cuda.cudart": cudart, "tensorrt": tensorrt, "nvtx": nvtx})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m common.sim", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=device.available(), default=simulator.DEFAULT_DEVICE)
    parser.add_argument("--trace", type=Path, help="write the timeline as Nsight Systems' SQLite")
    parser.add_argument("script", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.script.is_file():
        parser.error(f"{options.script}: no such file")
    sim = simulator.start(options.device)
    stand_in()
    sys.argv = [str(options.script), *options.arguments]
    sys.path.insert(0, str(options.script.resolve().parent))  # as `python SCRIPT` does
    code = 0
    try:
        variables = runpy.run_path(str(options.script), run_name="__main__")
        variables.clear()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    gc.collect()
    print(f"simulated {sim.device.name}: {sim.calls} CUDA calls, {sim.clock.thread().now / 1e6:.3f} ms of modelled time, "
          f"computed by ONNX Runtime", file=sys.stderr)
    for leak in sim.leaks():
        print(f"not given back: {leak}", file=sys.stderr)
    if options.trace:
        sim.write_trace(options.trace, SCRIPT=options.script.name)
    return code


if __name__ == "__main__":
    sys.exit(main())
