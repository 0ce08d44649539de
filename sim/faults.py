"""What a script does when a CUDA call fails: it is run once for each of its calls, on the simulated GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

LIMIT_S, NAMED = 120, "ended with its name"


def report(arguments: list[str]) -> int:
    """Print how each run of ``python -m sim ARGUMENTS`` ended. 0 if all ended with the error's name and gave all back."""
    _, _, calls = _run(0, arguments)
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, (call, verdict, leaks) in enumerate(pool.map(lambda n: _run(n, arguments), range(1, calls + 1)), 1):
            counts.update([verdict, "did not give all back"][: 1 + bool(leaks)])
            print(f"{number} of {calls}: {call}: {verdict}" + f", {leaks} not given back" * bool(leaks), flush=True)
    print(f"{calls} of {calls} calls: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
    return int(set(counts) != {NAMED})


def _run(number: int, arguments: list[str]) -> tuple[str, str, int]:
    """A run whose ``number``-th call fails: that call, how it ended, and how much leaked. With 0 as many as it has calls."""
    command = [sys.executable, "-m", "sim", "--fail-at", str(number), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"call {number}", f"hung for {LIMIT_S} s", 0
    script, _, said = done.stderr.rpartition("simulated ")
    if number == 0:
        return "", "", int(re.search(r"(\d+) CUDA calls|$", said)[1] or 0)  # type: ignore[index]
    failed = re.search(r"failed on purpose: (.*)", said)
    verdict = "went on" if done.returncode == 0 else NAMED if "cudaErrorUnknown" in script + done.stdout else "ended otherwise"
    return failed[1] if failed else "not reached", verdict, said.count("not given back:")
