"""What a script does when a CUDA call fails: it is run once for each of its calls, on the simulated GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

LIMIT_S = 120


def report(arguments: list[str]) -> int:
    """Print how each run of ``python -m sim ARGUMENTS`` ended. 1 where one hung, went on, or named no error."""
    calls, number = int(_run(0, arguments)[1]), 0
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, (verdict, text) in enumerate(pool.map(lambda n: _run(n, arguments), range(1, calls + 1)), 1):
            counts[verdict] += 1
            print(f"{number} of {calls}: {text}: {verdict}", flush=True)
    print(f"{number} of {calls} calls: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
    return int(any(not verdict.startswith("ended with its name") for verdict in counts))


def _run(number: int, arguments: list[str]) -> tuple[str, str]:
    """How a run ended whose ``number``-th call fails, and which call that was; with 0 the number of its calls."""
    command = [sys.executable, "-m", "sim", "--fail-at", str(number), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"hung for {LIMIT_S} s", "?"
    if number == 0:
        counted = re.search(r"(\d+) CUDA calls", done.stderr)
        return "", counted[1] if counted else "0"
    script, _, said = done.stderr.rpartition("\nsimulated ")
    failed = re.search(r"failed on purpose: (.*)", said)
    verdict = "ended with its name" if done.returncode and "cudaErrorUnknown" in script + done.stdout else "ended"
    verdict = verdict if done.returncode else "went on"
    leaks = said.count("not given back:")
    return verdict + (f", {leaks} not given back" if leaks else ""), failed[1] if failed else "not reached"
