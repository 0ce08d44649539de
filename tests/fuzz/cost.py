"""What the checked simulator costs: time and memory of a pipeline of so many operations, on three streams with two slots.

    python -m tests.fuzz.cost 10000 100000 1000000

On one core of a small server: 66 µs and 730 bytes an operation, for 10,000 as for 1,000,000 of them (69 s, 727 MB, which is
the trace). An operation comes with three calls: itself, an event recorded and waited for.
"""

from __future__ import annotations

import subprocess
import sys
import time

NBYTES = 4096


def pipeline(operations: int) -> None:
    """Copies in, memsets and copies out of slots that are refilled in turn, each ordered by events."""
    from sim import cudart, simulator

    sim = simulator.start()
    streams = [cudart.cudaStreamCreateWithFlags(1)[1] for _ in range(3)]
    slots = [(cudart.cudaMalloc(NBYTES)[1], cudart.cudaMallocHost(NBYTES)[1]) for _ in range(2)]
    events = [[cudart.cudaEventCreateWithFlags(2)[1] for _ in range(3)] for _ in slots]
    for batch in range(operations // 3):
        (device, host), own = slots[batch % 2], events[batch % 2]
        cudart.cudaEventSynchronize(own[2])
        cudart.cudaMemcpyAsync(device, host, NBYTES, 1, streams[0])
        cudart.cudaEventRecord(own[0], streams[0])
        cudart.cudaStreamWaitEvent(streams[1], own[0], 0)
        cudart.cudaMemsetAsync(device, 1, NBYTES, streams[1])
        cudart.cudaEventRecord(own[1], streams[1])
        cudart.cudaStreamWaitEvent(streams[2], own[1], 0)
        cudart.cudaMemcpyAsync(host, device, NBYTES, 2, streams[2])
        cudart.cudaEventRecord(own[2], streams[2])
    cudart.cudaDeviceSynchronize()
    assert not sim.gpu.races.found()


def cost(operations: int) -> tuple[float, float]:
    """Seconds, and megabytes at most, of a process of its own."""
    code = f"from tests.fuzz.cost import pipeline, measured; measured({operations})"
    seconds, megabytes = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return float(seconds), float(megabytes)


def measured(operations: int) -> None:
    import resource

    pipeline(300)  # whatever happens once
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    pipeline(operations)
    print(time.process_time() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


if __name__ == "__main__":
    for count in map(int, sys.argv[1:] or ("10000", "100000")):
        seconds, megabytes = cost(count)
        print(f"{count:>9,} operations: {seconds:7.2f} s, {1e6 * seconds / count:5.1f} µs each; {megabytes:7.1f} MB")
