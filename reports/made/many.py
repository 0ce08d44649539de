"""The parts of many.sh that are Python's: pictures, a run that is watched, and has a worker killed, its rows, a summary."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

SCRATCH, RESULTS = Path(os.environ["SCRATCH"]), Path(os.environ["RESULTS"])
DIFFERENT, LOOK_S = int(os.environ["DIFFERENT"]), 0.4  # pictures; and the time between two looks at the processes


def make(first: int) -> None:
    from common.files import write_bytes
    from common.photographs import synthetic_jpeg

    for index in range(first, first + 16):
        if not (path := SCRATCH / "files" / f"{index:04d}.jpg").exists():
            write_bytes(path, synthetic_jpeg(index, 10088))


def linked(into: str) -> None:
    (SCRATCH / into).mkdir(parents=True, exist_ok=True)
    for path in (SCRATCH / "files").glob("*.jpg"):
        if not (link := SCRATCH / into / path.name).exists():
            os.link(path, link)


def files(many: int, few: int) -> None:
    """Synthetic files of 500×375, and so many names of them."""
    (SCRATCH / "files").mkdir(parents=True, exist_ok=True)
    folders = [f"{name}/{each:04d}" for name, count in (("many", many), ("few", few)) for each in range(count // DIFFERENT)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(make, range(0, DIFFERENT, 16)))
        list(pool.map(linked, folders))
    sizes = [path.stat().st_size for path in (SCRATCH / "files").glob("*.jpg")]
    print(len(sizes), "files of", round(sum(sizes) / len(sizes)), "bytes;", many, "and", few, "names")


def kind(process: Any, driver: int) -> str:
    if process.pid == driver:
        return "driver"
    words = " ".join(process.cmdline())[:300]
    return next((name for name in ("MapWorker", "raylet", "gcs_server") if name in words), "other")


def watched(into: Path, kill_after: int, out: Path, command: list[str]) -> int:
    """Run it; the core seconds of the driver, the workers and Ray's own. After ``kill_after`` shards a worker is killed."""
    import psutil

    began, used, found = time.monotonic(), dict[int, tuple[str, float]](), dict[str, Any]()
    process = subprocess.Popen([sys.executable, *command])
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        workers = []
        try:
            for each in [tree, *tree.children(recursive=True)]:
                try:
                    what, times = kind(each, process.pid), each.cpu_times()
                except psutil.Error:
                    continue
                used[each.pid] = what, times.user + times.system
                workers += [each.pid] * (what == "MapWorker")
        except psutil.Error:
            continue
        done = len([*out.glob("0*-*.*")])
        if kill_after and done >= kill_after and workers and "killed" not in found:
            os.kill(workers[0], signal.SIGKILL)
            found.update(killed=workers[0], killed_after_s=time.monotonic() - began, shards_done=done)
        time.sleep(LOOK_S if not kill_after else 0.05)
    seconds: dict[str, float] = {}
    for what, each_s in used.values():
        seconds[what] = round(seconds.get(what, 0) + each_s, 2)
    found.update(wall_s=time.monotonic() - began, core_seconds=seconds, code=process.returncode)
    into.write_text(json.dumps(found, indent=1))
    print(json.dumps(found))
    return process.returncode


def written(out: Path) -> Any:
    from pyarrow import parquet

    return [parquet.read_table(path) for path in sorted(out.glob("*.parquet"))]


def rows(count: int, outs: list[Path]) -> None:
    """Every row is there once, in order; links to one file have one class; and the folders say the same of every picture."""
    first, whole = None, True
    for out in outs:
        if not (tables := written(out)):  # of a run that had no time
            continue
        index = np.concatenate([table["index"].to_numpy() for table in tables])
        names, classes = ([value for table in tables for value in table[key].to_pylist()] for key in ("image", "class"))
        probabilities = np.concatenate([table["probability"].to_numpy() for table in tables])
        faults = sum(table["error"].length() - table["error"].null_count for table in tables)
        once = len(index) == count and bool((index == np.arange(count)).all()) and len(set(names)) == count
        whole, per_file = whole and once, dict[str, set[str]]()
        for name, each in zip(names, classes):
            per_file.setdefault(name.rpartition("/")[2], set()).add(each)
        said = f"{out.name}: {len(index)} rows, each once and in order: {once}, {faults} unreadable, "
        said += f"{sum(len(each) > 1 for each in per_file.values())} of {len(per_file)} files with several classes"
        if first is not None and len(first[0]) == len(classes):
            same, apart = np.mean(np.array(first[0]) == np.array(classes)), np.abs(first[1] - probabilities).max()
            said += f"; the class of {outs[0].name} in {same:.4%}, probabilities {apart:.6f} off at most"
        first = first or (classes, probabilities)
        print(said)
    if not whole or first is None:
        sys.exit("rows are lost, twice or out of order")


def summary() -> None:
    """What each run took, beside the mean of one GPU's of its kind, and the killed one beside uint8's; with no path of this
    machine's in what is kept."""
    for path in [*RESULTS.rglob("*.json"), *RESULTS.rglob("*.txt")]:
        text = path.read_text()
        path.write_text(re.sub(r"\x1b\[[\d;]*m", "", text).replace(f"{RESULTS}/", "").replace(f"{SCRATCH}/", ""))
    heads = ("run", "GPUs", "images/s", "of N × one", "each", "wall, s", "core seconds: workers; driver; Ray's own")
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---:|---:|---|---:|---|"]
    runs, alone = [], dict[str, list[float]]()
    for path in [*sorted(RESULTS.glob("ray-*.json")), *sorted(RESULTS.glob("kill-*.json"))]:
        if not path.stem.endswith("-watched"):
            found, (what, _, gpus) = json.loads(path.read_text()), path.stem.rpartition("-")
            runs.append((path, found, what, gpus))
            if gpus.partition("r")[0] == "1":
                alone.setdefault(what, []).append(found["images_per_s"])
    for path, found, what, gpus in runs:
        seen = RESULTS / f"{path.stem}-watched.json"
        used = json.loads(seen.read_text())["core_seconds"] if seen.exists() else {}
        number, same = int(gpus.partition("r")[0]), what.replace("kill", "ray-uint8")
        own_s = sum(used.values()) - sum(used.get(key, 0) for key in ("MapWorker", "driver"))
        seconds = f"{used.get('MapWorker', 0):.1f}; {used.get('driver', 0):.1f}; {own_s:.1f}"
        each = ", ".join(f"{worker['images_per_s']:,.0f}" for worker in found["workers"])
        share = f"{found['images_per_s'] / number / fmean(alone[same]):.1%}" if same in alone else "–"
        run, rate = f"{what}, again" if "r" in gpus else what, f"{found['images_per_s']:,.0f}"
        lines.append(f"| {run} | {number} | {rate} | {share} | {each} | {found['wall_s']:.1f} | {seconds} |")
    for path in sorted(RESULTS.glob("alone-*/12_many_gpus.json")):
        for row in json.loads(path.read_text())["rows"]:
            gpus = row["gpus"].split(", ")
            records = path.parent.glob(f"{path.stem}-{'-'.join(gpus)}-gpu*.json")
            wall = max(json.loads(each.read_text())["wall_s"] for each in records)
            cells = f"{row['together']:,.0f}", f"{row['efficiency']:.1%}", row["each"], f"{wall:.1f}"
            lines.append(f"| {path.parent.name} | {len(gpus)} | {' | '.join(cells)} | – |")
    (RESULTS / "many.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    action, arguments = sys.argv[1], sys.argv[2:]
    if action == "files":
        files(*map(int, arguments))
    elif action == "watched":
        sys.exit(watched(Path(arguments[0]), int(arguments[1]), Path(arguments[2]), arguments[3:]))
    elif action == "rows":
        rows(int(arguments[0]), list(map(Path, arguments[1:])))
    else:
        summary()
