"""What users would do instead, measured beside the ladder: PyTorch loops, and the published tutorial's pipelines.

    scripts/profile_all.sh --out out/run --batches 60 --measure 50
    python -m scripts.peers out/run

Runs every pipeline of scripts/published.py (on the ladder's FP16 plan) and every loop of scripts/peers_pytorch.py with the
batches that the stages in DIR were run with, and writes DIR/peers.json and DIR/peers.md: each as a ratio to the fastest
stage. PyTorch may live in another Python: --torch-python.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import EnvironmentFault
from common.files import atomic_path, write_json
from scripts.compare import read_json
from scripts.host import Host, median_of
from scripts.processes import run_quietly
from scripts.tables import conditions

console = Console(highlight=False, soft_wrap=True)


def comparable(stages: list[dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    """The stages that run the peers' workload: all but those whose batches are of other sizes as well."""
    return [stage for stage in stages if abs(stage["images_per_s"] * stage["per_batch_ms"] / 1e3 - batch) < 0.5]


def table(run_facts: dict[str, Any], best: dict[str, Any], records: list[dict[str, Any]], problems: list[str]) -> str:
    lines = [f"{conditions(run_facts)}; {records[0]['measured'] if records else 0} measured batches:", "",
             f"| instead of `{best['stage']}` | ms a batch | times as long | engine | precision |", "|---|---:|---:|---|---|",
             f"| `{best['stage']}`, the fastest stage | {best['per_batch_ms']:.3f} | 1.00 | {run_facts['engine']} "
             f"| {best['precision']} |"]
    lines += [f"| {record['stage']} | {record['per_batch_ms']:.3f} | {record['per_batch_ms'] / best['per_batch_ms']:.2f} "
              f"| {record['engine']} | {record['precision']} |" for record in records]
    return "\n".join([*lines, "", *[f"Not run: {problem}" for problem in problems], *[""] * bool(problems)])


def measure(host: Host, path: Path, repeats: int, command: list[str]) -> str | None:
    """Repeated runs of a pipeline that writes its record to ``path``, which keeps the median one; what went wrong, or None."""
    def run() -> dict[str, Any]:
        if problem := run_quietly(command):
            raise EnvironmentFault(problem)
        return read_json(path)

    try:
        write_json(path, median_of(host.repeated(run, repeats)))
    except EnvironmentFault as fault:
        path.unlink(missing_ok=True)
        return str(fault)
    return None


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("directory", type=Path, metavar="DIR")
    p.add_argument("--torch-python", default=sys.executable, metavar="PATH", help="the Python that has PyTorch")
    p.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each on a GPU that are to count (default: "
                   "%(default)s)")
    p.add_argument("--table-only", action="store_true", help="make the table again from the records that are there")
    p.add_argument("loops", nargs="*", metavar="NAME", help="only these peers (default: all)")
    options = p.parse_args()
    comparison = read_json(options.directory / "comparison.json")
    if not comparison:
        console.print(f"peers: error: {options.directory} holds no comparison.json. Run scripts/profile_all.sh first.",
                      style="red", markup=False)
        return 3
    facts, out = comparison["run"], options.directory / "peers"
    out.mkdir(exist_ok=True)
    first = read_json(options.directory / f"{comparison['stages'][0]['stage']}.json")
    size = ["--batch", str(facts["batch"]), "--batches", str(first["batches"]), "--measure", str(first["measured"])]
    from scripts.peers_pytorch import LOOPS
    from scripts.published import PIPELINES

    problems: dict[str, str | None] = {}
    host, repeats = Host(), options.repeats if facts["backend"] == "tensorrt" else 1
    if not options.table_only:
        wanted = set(options.loops or [*PIPELINES, *LOOPS])
        for name in [name for name in PIPELINES if name in wanted]:
            path = out.resolve() / f"published-{name}.json"
            problems[f"published {name}"] = measure(host, path, repeats, [
                sys.executable, "-m", "scripts.published", name, *first["arguments"], *size[2:], "--json", str(path)])
        if facts["backend"] == "tensorrt":
            loops = [name for name in LOOPS if name in wanted]
            problems["PyTorch loops"] = run_quietly(
                [options.torch_python, "-m", "scripts.peers_pytorch", *loops, *size, "--repeats", str(repeats),
                 "--out", str(out.resolve())])
    names = [*(f"published-{name}" for name in PIPELINES), *LOOPS]
    records = [record for record in (read_json(out / f"{name}.json") for name in names) if record]
    best = min(comparable(comparison["stages"], facts["batch"]), key=lambda stage: stage["per_batch_ms"])
    failed = [f"{name}: {problem}" for name, problem in problems.items() if problem]
    write_json(options.directory / "peers.json", {"run": facts, "best": {key: best[key] for key in (
        "stage", "per_batch_ms", "precision")}, "peers": records, "problems": failed})
    text = table(facts, best, records, failed)
    with atomic_path(options.directory / "peers.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    console.print(text, markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
