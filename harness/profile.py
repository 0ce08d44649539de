"""Profile every stage and compare them.

On a GPU each stage runs in --repeats processes without a profiler, in nine measured windows in all: their median is the
time. Once more it runs under Nsight Systems, which gives the breakdown. On the simulated backend, whose times have no noise,
it runs once, and the simulator writes the timeline. The table is printed and written into --out, beside each stage's result
record, trace and log.

The repeats are dealt in rounds of all stages: what a host does besides lasts for seconds, and the runs of one stage, made
one after the other, would all meet the same of it. All of them count. In the first round, which builds missing plans, each
stage has a process of its own; in every other one a process runs all stages, which saves its start nine times in ten.

A stage whose results are newer than its script and its plan, and were made with the same options, is not run again.

    scripts/profile_all.sh                                 stages 1 to 10, on the GPU if there is one
    scripts/profile_all.sh --batch 1 --out out/one         small batches
    scripts/profile_all.sh --plan plans/mine.plan 4 5 6 7  your own plan
    scripts/profile_all.sh --backend simulated --device v100-sxm2-32gb
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import program
from common.backend import NAMES, select
from common.children import output_of
from common.console import err, out, printable
from common.errors import ENVIRONMENT, EnvironmentFault
from common.files import check_writable
from common.options import positive
from common.plans import ROOT, default_plan
from common.record import LADDER, numbered
from harness import tables
from harness.compare import Comparison
from harness.nsys import Nsys, NsysError, find
from harness.profiler import PASSED_ON, WINDOWS, Profiler

LAST = 11
"""Of the stages that run one pipeline; what runs many processes is none."""


def parse_options() -> argparse.Namespace:
    p = program.parser(__doc__, prog="scripts/profile_all.sh")
    p.add_argument("stages", nargs="*", metavar="STAGE", help=f"names or numbers of stages (default: 1 to {LADDER})")
    p.add_argument("--backend", choices=NAMES, default="auto")
    p.add_argument("--out", type=Path, default=ROOT / "out", metavar="DIR", help="where results go (default: out/)")
    for name in PASSED_ON:
        p.add_argument(f"--{name.replace('_', '-')}", metavar="X", help="passed on to the stages, whose --help explains it")
    repeats = f"unprofiled runs of a stage on a GPU, of {WINDOWS} windows each (default: %(default)s)"
    p.add_argument("--repeats", type=positive, default=5, metavar="N", help=repeats)
    p.add_argument("--force", action="store_true", help="run stages again whose results are there")
    p.add_argument("--no-nsys", action="store_true", help="no profiler: times only")
    p.add_argument("--wide", action="store_true", help="print all columns (comparison.csv has them anyway)")
    p.add_argument("--figures", action="store_true", help="the timelines as SVG too")
    p.add_argument("--perfetto", action="store_true", help="each trace as JSON for ui.perfetto.dev too")
    options = p.parse_args()
    known = numbered(ROOT, LAST)
    by_name = {name: path for path in known for name in (path.stem, path.stem.split("_")[0])}
    for name in options.stages:
        if name not in by_name:
            p.error(f"there is no stage {name}; there are {', '.join(path.stem for path in known)}")
    options.chosen = sorted({by_name[name] for name in options.stages}, key=known.index) or numbered(ROOT, LADDER)
    return options


def decide_backend(name: str) -> str:
    """What ``auto`` comes to, asked of a process of its own: this one stays out of CUDA."""
    said = f"print(backend.select({name!r}).name, '|', backend.current().reason)"
    try:
        told = output_of("-c", f"from common import backend, program; program.run(lambda: {said})")
    except EnvironmentFault as fault:
        raise EnvironmentFault(str(fault).rpartition("error: ")[2]) from None
    chosen, _, reason = told.strip().partition(" | ")
    out.print(f"backend: {chosen} ({reason})", markup=False)
    return chosen


def main() -> int:
    options = parse_options()
    options.out = options.out.resolve()  # the stages run elsewhere
    options.out.mkdir(parents=True, exist_ok=True)
    check_writable(options.out / "comparison.json")
    backend, nsys = decide_backend(options.backend), None
    if backend != "simulated" and not options.no_nsys:
        try:
            nsys = find()
            out.print(f"profiler: nsys {nsys.version}, {nsys.path}", markup=False)
        except NsysError as error:
            err.print(f"profiler: {error}", style="yellow", markup=False)
    failed = profile(options, backend, nsys, tables.ALL if options.wide else tables.SHORT)
    given = options.stages or [name for name in PASSED_ON if name != "device" and getattr(options, name) is not None]
    if failed or given or backend != "simulated":
        return failed
    out.print("\nWhere launches count: images one by one, on a plan for batch 1")
    return profile(one_by_one(options), backend, nsys, tables.LAUNCHES)


def one_by_one(options: argparse.Namespace) -> argparse.Namespace:
    """Batch 1 for the stages around the CUDA graph: at 128 its gain is hidden. Simulated; a GPU takes a minute for the plan."""
    select("simulated", options.device)
    plan = default_plan("fp16", [1]).resolve().relative_to(ROOT)
    chosen = [script for script in options.chosen if script in numbered(ROOT, 7)[3:]]
    return argparse.Namespace(**{**vars(options), "chosen": chosen, "out": options.out / "batch1", "batch": 1, "plan": plan})


def profile(options: argparse.Namespace, backend: str, nsys: Nsys | None, order: str) -> int:
    """Run the chosen stages and compare what the folder holds; the exit code of the first that failed."""
    profiler = Profiler(options, backend, nsys)
    options.out.mkdir(parents=True, exist_ok=True)
    with program.alone(options.out):
        profiler.run(options.chosen)
        found = Comparison(options.out, options.chosen[0].stem)
        if found.rows:
            out.print()
            found.report(options.figures, options.perfetto, order)
    for problem in dict.fromkeys([*profiler.problems, *found.problems]):
        err.print(f"problem: {printable(problem)}", style="yellow", markup=False)
    return profiler.failed or (0 if found.rows else ENVIRONMENT)


if __name__ == "__main__":
    program.run(main)
