"""Run any TensorRT script on the simulated GPU: ``python -m sim [--device NAME] [--trace PATH] SCRIPT ARGS…``

The drop-ins stand behind ``cuda.bindings``, ``cuda.cudart``, ``tensorrt`` and ``nvtx``, with the names of TensorRT 8.6 to 11;
the script is not changed. Afterwards it is said which races it has, what it has not given back and not looked at, what its
GPU did, and what limits it. The exit code is the script's; 1 where that is 0 and there are races.
``--grade`` is for exercises, which choose the simulated backend themselves: sim/grade.py.
"""

from __future__ import annotations

import argparse
import gc
import runpy
import signal
import sys
import traceback
from pathlib import Path

from common import console, program
from sim import device, faults, grade, overview, simulator, stand_in


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m sim", description=__doc__, formatter_class=program.Manual)
    p.add_argument("--device", choices=device.available(), default=simulator.DEFAULT_DEVICE)
    p.add_argument("--trace", type=Path, help="write the timeline as Nsight Systems' SQLite")
    p.add_argument("--faults", action="store_true", help="run it once for each of its CUDA calls, which then fails; report all")
    p.add_argument("--grade", action="store_true", help="an exercise: has it passed, or what is wrong with it?")
    p.add_argument("--fail-at", type=int, metavar="N", help="the N-th CUDA call fails")
    p.add_argument("script", type=Path)
    p.add_argument("arguments", nargs=argparse.REMAINDER)
    options = p.parse_args()
    if not options.script.is_file():
        p.error(f"{options.script}: no such file")
    if options.grade:
        return grade.grade(options.script, run)
    if options.faults:
        return faults.report(["--device", options.device, str(options.script), *options.arguments])
    simulator.failing = options.fail_at
    simulator.start(options.device)
    stand_in.install()
    code = run(options.script, options.arguments)
    gc.collect()
    sim = simulator.simulator()  # the script may have begun another
    print(*(console.wrapped(line, 2, console.err) for line in overview.lines(sim)), sep="\n", file=sys.stderr)
    if options.trace:
        sim.write_trace(options.trace, SCRIPT=options.script.name)
    return code or int(bool(sim.gpu.races.found()))


def run(script: Path, arguments: list[str]) -> int:
    """Run a script as ``python SCRIPT ARGS…`` does; its exit code."""
    if Path(__file__).resolve().parent.parent not in script.resolve().parents:  # it may have a module of that name, too
        for name in [name for name in sys.modules if name.split(".")[0] == "common"]:
            del sys.modules[name]
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.resolve().parent))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        runpy.run_path(str(script), run_name="__main__").clear()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (Exception, KeyboardInterrupt) as error:  # what it did until then is still reported
        if isinstance(error, AttributeError) and str(error).startswith("the simulated"):
            print(f"{script.name}: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        traceback.clear_frames(error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
