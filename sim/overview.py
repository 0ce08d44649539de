"""What is said of a script's run on the simulated GPU once it is over."""

from __future__ import annotations

from collections import Counter

from sim.simulator import Simulator

WIDTH = 52
UNITS = {"h2d": "copies to the device", "compute": "kernels", "d2h": "copies to the host"}


def lines(sim: Simulator) -> list[str]:
    """Races, what was not given back, errors that nobody looked at, remarks; the timeline, and what limits it."""
    work = f"{sim.calls} CUDA calls, {sim.clock.thread().now / 1e6:.3f} ms of modelled time, computed by ONNX Runtime"
    found = [f"simulated {sim.device.name}: {work}"]
    found += [f"failed on purpose: {call}" for call in sim.failed]
    found += [f"race: {race}" for race in sim.gpu.races.found()]
    leaks = Counter(sim.leaks())
    found += [f"not given back: {leak}" + (f", {count} times" if count > 1 else "") for leak, count in leaks.items()]
    return [*found, *sim.all_remarks(), *timeline(sim)]


def timeline(sim: Simulator) -> list[str]:
    """The units of the GPU from the first operation to the last: how busy each is, and in each part of the time."""
    if not (operations := sim.trace.operations):
        return []
    begin, end = min(start for start, *_ in operations), max(end for _, end, *_ in operations)
    found, shares, length = [], {}, max(end - begin, 1)
    for unit, name in UNITS.items():
        cells, busy, last = [0.0] * WIDTH, 0, begin
        for start, stop, *_ in sorted(operation for operation in operations if operation[2] == unit):
            start, last = max(start, last), max(last, stop)
            busy += max(0, last - start)
            for cell in range((start - begin) * WIDTH // length, min(WIDTH, -(-(last - begin) * WIDTH // length))):
                edge = begin + cell * length / WIDTH
                cells[cell] += max(0.0, min(last, edge + length / WIDTH) - max(start, edge)) * WIDTH / length
        shares[name] = busy / length
        bar = "".join(" ░▒▓█"[min(4, round(4 * cell + 0.4)) if cell else 0] for cell in cells)
        found.append(f"{name:>20} {bar} {shares[name]:4.0%}")
    share, name = max((share, name) for name, share in shares.items())
    idle = 1 - sum(shares.values())
    verdict = "they take turns: let them overlap" if idle < 0.1 else f"the GPU waits for the host in {idle:.0%} of it or more"
    verdict = f"the {name} limit it" if share > 0.9 else verdict
    return [*found, f"{length / 1e6:.3f} ms from the first operation to the last: {verdict}"]
