"""The simulator's device file from a calibration's raw medians: each number with what it was computed from."""

from __future__ import annotations

import re
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from sim import device as devices
from sim.device import Device
from sim.kernels import kernel
from sim.network import Layer, layers

ROOT = Path(__file__).resolve().parent.parent
IMAGE = 3 * 224 * 224 * 4
CLASSES = 1000
PAIRS = 30  # enqueues in a row by each of two threads: fewer kernels than a stream queues before it holds the host up
WAVE_SHARES = [share / 100 for share in range(20, 101, 5)]
FLOORS_US = [floor / 2 for floor in range(2, 17)]


def network(precision: str) -> list[Layer]:
    """The modelled layers of the ladder's ONNX file."""
    import onnx

    return layers(onnx.load(str(ROOT / "models" / f"resnet18-{precision}.onnx")))


def compute_us(device: Device, net: list[Layer], batch: int, opt: int) -> float:
    return sum(kernel(device, layer, batch, opt).duration for layer in net) / 1e3


def fit_compute(device: Device, plans: dict[str, dict[str, Any]]) -> Device:
    """Rates, the share that the last wave reaches, and the floor of a kernel, from the plans' compute times (µs) by batch.

    A precision's rate is set by its plan at the plan's OPT, exactly. Its last wave's share (its kernels hide their loads in
    their own way) and the floor of all kernels come from the other batches, by least squares of the relative errors.
    """
    nets = {name: network(name) for name in plans if name in device.arithmetic_rates}

    def attempt(tried: Device, precision: str, share: float) -> tuple[float, Device]:
        net, opt, error = nets[precision], plans[precision]["opt"], 0.0
        tried = replace(tried, last_wave_shares={**tried.last_wave_shares, precision: share})
        for _ in range(12):
            off = compute_us(tried, net, opt, opt) / plans[precision]["compute"][str(opt)]
            if abs(off - 1) < 1e-6:
                break
            rates = tried.arithmetic_rates
            tried = replace(tried, arithmetic_rates={**rates, precision: rates[precision] * off})
        for plan in (plan for name, plan in plans.items() if name.split(",")[0] == precision):
            for batch, time_us in plan["compute"].items():
                error += (compute_us(tried, net, int(batch), plan["opt"]) / time_us - 1) ** 2
        return error, tried

    def best(floor_us: float) -> tuple[float, Device]:
        tried, total = replace(device, kernel_floor=round(floor_us * 1e3)), 0.0
        for precision in nets:
            error, tried = min((attempt(tried, precision, share) for share in WAVE_SHARES), key=itemgetter(0))
            total += error
        return total, tried

    return min(map(best, FLOORS_US), key=itemgetter(0))[1]


def rate(times: dict[str, float]) -> float:
    """Bytes per ns (GB/s) between the two largest sizes: what does not depend on the size drops out."""
    small, large = sorted(map(int, times))[-2:]
    return (large - small) / (times[str(large)] - times[str(small)]) / 1e3


def output_us(copies: dict[str, dict[str, float]], batch: int = 1) -> float:
    """The copy of a batch's output, a thousand classes an image."""
    back = copies["d2h_pinned"]
    return back[min(back, key=int)] + (batch - 1) * CLASSES * 4 / rate(back) / 1e3


def handover_us(plans: dict[str, dict[str, Any]], copies: dict[str, dict[str, float]]) -> float:
    """What passes between work on two engines of which one waits for the other; the median over plans, batches, directions.

    Compute and a copy in turn on one stream, over and over, change engines twice a turn. The largest batch is left out:
    there compute alone, without a pause, is slower than with the copies' pauses, by more than a handover.
    """
    found = []
    for plan in plans.values():
        for batch in sorted(plan["compute"], key=int)[:2]:
            copy_in, copy_out = copies["h2d_pinned"][str(int(batch) * IMAGE)], output_us(copies, int(batch))
            for both, alone in (("copy_in_and_compute", copy_in), ("compute_and_copy_out", copy_out)):
                found.append((plan[both][batch] - plan["compute"][batch] - alone) / 2)
    return max(0.0, median(found))


def crowded_launch_us(pair_us: float, before_us: float, launch_us: float, launches: int) -> float:
    """The launch while another thread launches too with which two threads that only enqueue take ``pair_us`` a pair.

    Each enqueue is TensorRT's own work ``before_us`` the first launch, then launches, at the driver's lock in turn: the
    simulator's rule (``Gpu._launch``), for this one case.
    """

    def pair_at(crowded_us: float) -> float:
        now, left, lock_free = [before_us, before_us], [PAIRS * launches] * 2, 0.0  # each thread's time and launches to go
        while any(left):
            one = min((thread for thread in (0, 1) if left[thread]), key=now.__getitem__)
            crowded = left[1 - one] % launches or lock_free > now[one]  # the other is in the middle of an enqueue or a launch
            now[one] = lock_free = max(now[one], lock_free) + (crowded_us if crowded else launch_us)
            left[one] -= 1
            if left[one] and left[one] % launches == 0:
                now[one] += before_us
        return max(now) / PAIRS

    low, high = launch_us, max(launch_us, pair_us)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if pair_at(middle) < pair_us else (low, middle)
    return low


def derive(raw: dict[str, Any], source: str) -> str:
    """The device file's text, from a calibration's raw medians (``source`` names their file)."""
    copies, calls, host, plans = raw["copies"], raw["calls"], raw["host"], raw["plans"]
    fp16, pinned, post = plans["fp16"], copies["h2d_pinned"], host["postprocess"]
    serial, streamed = fp16["steps"]["serial"], fp16["steps"]["streamed"]
    image_us = pinned[str(IMAGE)]
    wake_up = max(0.0, calls["cudaMemcpyAsync, cudaStreamSynchronize"] - calls["cudaMemcpyAsync"] - image_us)
    wake_thread = max(0.0, host["thread_round_trip"] / 2 - host["queue"])
    call = (streamed["record"] + streamed["wait"]) / 2
    memcpy = max(call, serial["copy in"] - image_us - wake_up)
    memcpy_async = (streamed["copy in"] + streamed["copy out"]) / 2
    malloc, free = raw["allocation"]["cudaMalloc"], raw["allocation"]["cudaFree"]
    least, most = min(malloc, key=int), max(malloc, key=int)
    per_mb = max(0.0, sum(times[most] - times[least] for times in (malloc, free)) / 2 / (int(most) / 1e6))
    first, last = min(post, key=int), max(post, key=int)
    per_image = (post[last] - post[first]) / (int(last) - int(first))

    start = devices.load(devices.available()[0])
    fitted = fit_compute(replace(start, multiprocessors=raw["multiprocessors"], memory_rate=raw["memory_gb_s"]), plans)
    shares, rates = "", ""
    for name in ("fp32", "fp16", "int8"):
        of, stand_in = (name, "") if name in plans else ("fp16", "not measured: FP16's")
        opt, compute = plans[of]["opt"], plans[of]["compute"]
        at_opt = f"fitted: compute at batch {opt}, {compute[str(opt)] / 1e3:.3f} ms"
        shares += f"{name}_last_wave_share = {fitted.last_wave_shares[of]} # {stand_in or 'fitted: likewise'}\n"
        why = f"{stand_in} rate stands in" if stand_in else at_opt
        rates += f"{name}_tflop_s = {fitted.arithmetic_rates[of] / 1e3} # {why}\n"
    beside = [max(plan["compute"].values()) / plan["compute_beside_copies"] for plan in plans.values() if plan["opt"] > 1]

    handover = handover_us(plans, copies)
    launches, pair = len(network("fp16")), fp16["enqueued_by_two"]
    to_first = max(0.0, serial["enqueue"] + serial["copy out"] - fp16["compute"]["1"] - handover - output_us(copies) - wake_up)
    whole, others = serial["enqueue"], launches - 1
    launch = max(0.5, (whole - to_first) / others)
    own = max(0.0, to_first - launch)
    crowded = max(launch, crowded_launch_us(pair, to_first - launch, launch, launches))
    new_shape = max(0.0, fp16["enqueue_new_shape"] - fp16["enqueue"]["1"])
    driver = raw["versions"].get("driver")
    text = f"""\
# {raw["device"]}: measured by scripts/calibrate.py with {raw["engine"]}, driver CUDA {driver}, {raw["date"]}.
# Raw medians: {source}. ResNet-18's two plans stand for arithmetic; no stage was timed for this file.

name = "{raw["device"]}"
capability = {raw["capability"]}
multiprocessors = {raw["multiprocessors"]}
memory_gib = {raw["memory_bytes"] / 2**30:.1f}

[copy]
h2d_pinned_gb_s = {rate(pinned)} # measured: between 16 and 128 images
h2d_pageable_gb_s = {rate(copies["h2d_pageable"])} # measured: between 16 and 128 images
d2h_pinned_gb_s = {rate(copies["d2h_pinned"])} # measured: between 16 and 128 images
d2h_pageable_gb_s = {rate(copies["d2h_pageable"])} # measured: between 16 and 128 images
latency_us = {max(0.0, image_us - IMAGE / rate(pinned) / 1e3)} # measured: a pinned copy of one image beyond its bytes
handover_us = {handover} # measured: compute and a copy in turn on one stream, less the two alone; half of that
slows_compute = {max(0.0, 1 - max(beside))} # measured: compute beside copies without a pause, least affected plan

[compute]
memory_gb_s = {raw["memory_gb_s"]} # measured: a device-to-device copy, bytes read and written
kernel_floor_us = {fitted.kernel_floor / 1e3} # fitted: compute by batch size, graphs back to back
{shares}{rates}
[host]
call_us = {call} # measured: cudaEventRecord and cudaStreamWaitEvent from Python, in a loop of all steps, mean
tensorrt_call_us = {streamed["bind"] / 2} # measured: set_tensor_address, likewise
enqueue_us = {own} # measured: batch 1, a serial loop's enqueue and copy back, less compute, the copy, its waits, and a launch
kernel_launch_us = {launch} # measured: the rest of execute_async_v3's {whole:.0f} µs in that loop, over \
the {others} other modelled kernels
crowded_launch_us = {crowded} # measured: two threads that enqueue at once, {pair:.0f} µs a pair
shape_change_us = {new_shape} # measured: an enqueue after a change of shape, less an ordinary one
allocate_us_per_mb = {per_mb} # measured: cudaMalloc and cudaFree by size, mean of the two
wake_up_us = {wake_up} # measured: one image's copy and its synchronize, less the call and the copy
thread_wake_up_us = {wake_thread} # measured: half a round trip through two queues, less the queue's cost
queue_us = {host["queue"] / 2} # measured: half a put and a get
range_us = {host["range"] / 2} # measured: half an NVTX range
postprocess_us = {max(0.0, serial["finish"] - host["range"] - per_image)} # measured: batch 1, in the same loop
postprocess_us_per_image = {per_image} # measured: by batch size

[host.calls_us]
cudaMalloc = {malloc[least]} # measured: 4 KB
cudaFree = {free[least]} # measured: 4 KB, the device idle
cudaMemcpy = {memcpy} # measured: one image, in the same loop, less the copy and the wake-up
cudaMemcpyAsync = {memcpy_async} # measured: one image and its output, page-locked, in a loop of all steps
cudaGraphLaunch = {streamed["launch"]} # measured: the FP16 plan's graph at batch 1, likewise
"""
    return re.sub(r"(?m)^(\w+) = (\S+) # ", lambda row: f"{row[1]} = {float(row[2]):.4g}".ljust(36) + "# ", text)
