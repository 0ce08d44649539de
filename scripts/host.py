"""A host that others use as well: how fast its cores are just now, and which of several runs of the same work count.

On the hosts of the committed reports a core has two speeds, probably because it is one of two hardware threads of a physical
core and somebody else's work comes and goes on the other. On a slow core Python takes 1.7 times as long as on a quick one, a
kernel launch 1.3 times and a pageable copy 1.2 times, for seconds on end (reports/h200-tried/cores.txt), and two runs of a
stage differ by a quarter for no reason of their own. So a run is started on the cores that are quick at that moment, reads
its core's speed before and after its batches (`core_us` in its record), and does not count if either reading is slow. What
the run itself took plays no part in that.

    python -m scripts.host          how fast each core is now
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from statistics import median_high
from typing import Any

from rich.console import Console

from common.clock import core_us

SLOWED = 1.4
"""A core that takes this many times as long as the quickest one seen is slowed down by something."""
ATTEMPTS = 3
"""Runs for each that is wanted, at most; if too few of them count by then, the least slowed make up the number."""
FEWEST = 4
"""Cores that a run is left at least: stages have threads, and CUDA has its own."""


class Host:
    """The quickest reading so far, and what follows from it."""

    def __init__(self) -> None:
        self.quickest_us = float("inf")

    def read_cores(self) -> dict[int, float]:
        """How long each core that this thread may run on takes now, in µs; it runs on the last one afterwards (Linux)."""
        readings = {}
        for core in sorted(os.sched_getaffinity(0)):
            os.sched_setaffinity(0, {core})
            readings[core] = core_us()
        self.quickest_us = min(self.quickest_us, *readings.values())
        return readings

    @contextlib.contextmanager
    def quick_cores(self) -> Iterator[None]:
        """Keep this thread, and the threads and processes that it starts, to the cores that are quick now (where the system
        lets a program choose: on Linux, and not in every sandbox)."""
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        try:
            if allowed:
                with contextlib.suppress(OSError):
                    readings = self.read_cores()
                    in_order = sorted(readings, key=readings.__getitem__)
                    quick = {core for core in in_order if readings[core] <= SLOWED * self.quickest_us}
                    os.sched_setaffinity(0, quick.union(in_order[:FEWEST]))
            yield
        finally:
            if allowed:
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(0, allowed)

    def note(self, result: dict[str, Any]) -> None:
        self.quickest_us = min([self.quickest_us, *(result.get("core_us") or [])])

    def slowed(self, result: dict[str, Any]) -> float:
        """How many times as long as the quickest the slower reading of a run took; 1 where it has none."""
        readings = result.get("core_us")
        return max(readings) / self.quickest_us if readings else 1.0

    def counting(self, results: list[dict[str, Any]]) -> int:
        """How many of the runs nothing slowed down."""
        return sum(self.slowed(result) <= SLOWED for result in results)

    def counted(self, results: list[dict[str, Any]], wanted: int) -> list[dict[str, Any]]:
        """The first ``wanted`` that nothing slowed down; where there are fewer, the least slowed of the others as well."""
        return sorted(results, key=lambda result: max(SLOWED, self.slowed(result)))[:wanted]

    def repeated(self, run: Callable[[], dict[str, Any]], wanted: int) -> list[dict[str, Any]]:
        """Run until ``wanted`` runs count, at most ``ATTEMPTS`` times as often; the runs to go by."""
        results: list[dict[str, Any]] = []
        while self.counting(results) < wanted and len(results) < ATTEMPTS * wanted:
            with self.quick_cores():
                results.append(run())
            self.note(results[-1])
        return self.counted(results, wanted)


def median_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The run with the median time a batch, with all the times in ``repeats_ms``."""
    times = [result["per_batch_ms"] for result in results]
    return {**results[times.index(median_high(times))], "repeats_ms": times}


def main() -> int:
    console = Console(highlight=False)
    if not hasattr(os, "sched_setaffinity"):
        console.print("This system does not say on which core a program runs; a reading of the current one: "
                      f"{core_us():.0f} µs.")
        return 0
    host = Host()
    for core, reading in host.read_cores().items():
        times = reading / host.quickest_us
        console.print(f"core {core:3d} {reading:7.0f} µs  {'slow, ' if times > SLOWED else ''}{times:.2f} times the quickest")
    return 0


if __name__ == "__main__":
    sys.exit(main())
