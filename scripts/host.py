"""How fast each processor core is just now: python -m scripts.host

On a rented machine a core is often one of two hardware threads of a physical one, and the other may be somebody else's. On
the hosts of the committed reports a slow core takes 1.7 times as long for the same Python, 1.3 times for a kernel launch
and 1.2 times for a pageable copy (reports/h200-tried/cores.txt). Every result record has its core's readings, `core_us`.
"""

from __future__ import annotations

import os

from common import program
from common.clock import core_us


def main() -> None:
    program.parser(__doc__).parse_args()
    if not hasattr(os, "sched_setaffinity"):
        print(f"This system does not say on which core a program runs; a reading of the current one: {core_us():.0f} µs.")
        return
    readings = {}
    for core in sorted(os.sched_getaffinity(0)):
        os.sched_setaffinity(0, {core})
        readings[core] = core_us()
    for core, reading in readings.items():
        print(f"core {core:3d} {reading:7.0f} µs  {reading / min(readings.values()):.2f} times the quickest")


if __name__ == "__main__":
    program.run(main)
