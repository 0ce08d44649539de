"""The simulator's device file from a calibration's raw medians: each number with what it was computed from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from common.sim import device as devices
from common.sim.device import Device
from common.sim.kernels import kernel
from common.sim.network import Layer, layers
from scripts.calibrate import CLASSES, IMAGE, PAIRS

ROOT = Path(__file__).resolve().parent.parent
WAVE_SHARES = [share / 100 for share in range(20, 101, 5)]
FLOORS_US = [floor / 2 for floor in range(2, 17)]


def network(precision: str) -> list[Layer]:
    """The modelled layers of the ladder's ONNX file."""
    import onnx

    return layers(onnx.load(str(ROOT / "models" / f"resnet18-{precision}.onnx")))


def compute_us(device: Device, net: list[Layer], batch: int, opt: int) -> float:
    return sum(kernel(device, layer, batch, opt).duration for layer in net) / 1e3


def fit_rate(device: Device, precision: str, net: list[Layer], batch: int, goal_us: float) -> Device:
    """The device with the rate of ``precision`` at which ``net`` takes ``goal_us`` at ``batch``."""
    for _ in range(12):
        off = compute_us(device, net, batch, batch) / goal_us
        if abs(off - 1) < 1e-6:
            break
        rates = device.arithmetic_rates
        device = replace(device, arithmetic_rates={**rates, precision: rates[precision] * off})
    return device


def fit_compute(device: Device, plans: dict[str, dict[str, Any]]) -> Device:
    """Rates, the share that the last wave reaches, and the floor of a kernel, from the plans' compute times (µs) by batch.

    A precision's rate is set by its plan at the plan's OPT, exactly. Its last wave's share (its kernels hide their loads in
    their own way) and the floor of all kernels come from the other batches, by least squares of the relative errors.
    """
    nets = {name: network(name.split(",")[0]) for name in plans}
    precisions = [name for name in plans if name in device.arithmetic_rates]

    def attempt(tried: Device, precision: str, share: float) -> tuple[float, Device]:
        tried = replace(tried, last_wave_shares={**tried.last_wave_shares, precision: share})
        at_opt = plans[precision]["compute"][str(plans[precision]["opt"])]
        tried = fit_rate(tried, precision, nets[precision], plans[precision]["opt"], at_opt)
        errors = [compute_us(tried, nets[name], int(batch), plan["opt"]) / time_us - 1
                  for name, plan in plans.items() if name.split(",")[0] == precision
                  for batch, time_us in plan["compute"].items()]
        return sum(error * error for error in errors), tried

    def best(floor_us: float) -> tuple[float, Device]:
        tried, total = replace(device, kernel_floor=round(floor_us * 1e3)), 0.0
        for precision in precisions:
            error, tried = min((attempt(tried, precision, share) for share in WAVE_SHARES), key=lambda found: found[0])
            total += error
        return total, tried

    return min(map(best, FLOORS_US), key=lambda found: found[0])[1]


def rate(times: dict[str, float]) -> float:
    """Bytes per ns (GB/s) between the two largest sizes: what does not depend on the size drops out."""
    small, large = sorted(map(int, times))[-2:]
    return (large - small) / (times[str(large)] - times[str(small)]) / 1e3


def latency_us(times: dict[str, float]) -> float:
    """What a copy takes beyond its bytes, from one of an image."""
    nbytes = sorted(map(int, times))[1]
    return max(0.0, times[str(nbytes)] - nbytes / rate(times) / 1e3)


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
            for chain, alone in (("compute_and_copy_out", output_us(copies, int(batch))),
                                 ("copy_in_and_compute", copies["h2d_pinned"][str(int(batch) * IMAGE)])):
                found.append((plan[chain][batch] - plan["compute"][batch] - alone) / 2)
    return max(0.0, median(found))


def crowded_launch_us(pair_us: float, before_us: float, launch_us: float, launches: int) -> float:
    """The launch while another thread launches too with which two threads that only enqueue take ``pair_us`` a pair."""
    low, high = launch_us, max(launch_us, pair_us)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if enqueued_by_two_us(middle, before_us, launch_us, launches) < pair_us else (low, middle)
    return low


def enqueued_by_two_us(crowded_us: float, before_us: float, launch_us: float, launches: int) -> float:
    """Time of a pair of enqueues, one by each of two threads that do nothing else: each is TensorRT's own work ``before_us``
    the first launch, then launches, at the driver's lock in turn. The simulator's rule (``Gpu._launch``), for this one case."""
    now, prepared, launched, to_do = [0.0, 0.0], [False, False], [0, 0], [PAIRS, PAIRS]  # each by thread
    lock_free = 0.0
    while any(to_do):
        one = min((thread for thread in (0, 1) if to_do[thread]), key=now.__getitem__)
        if not prepared[one]:
            now[one], prepared[one] = now[one] + before_us, True
            continue
        crowded = launched[1 - one] > 0 or lock_free > now[one]
        now[one] = lock_free = max(now[one], lock_free) + (crowded_us if crowded else launch_us)
        launched[one] += 1
        if launched[one] == launches:
            launched[one], prepared[one], to_do[one] = 0, False, to_do[one] - 1
    return max(now) / PAIRS


def rate_source(plan: dict[str, Any]) -> str:
    return f"fitted: compute at batch {plan['opt']}, {plan['compute'][str(plan['opt'])] / 1e3:.3f} ms"


def derive(raw: dict[str, Any], source: str) -> str:
    """The device file's text."""
    copies, calls, host, plans = raw["copies"], raw["calls"], raw["host"], raw["plans"]
    pinned = copies["h2d_pinned"]
    image_us = pinned[sorted(pinned, key=int)[1]]
    wake_up = max(0.0, calls["cudaMemcpyAsync, cudaStreamSynchronize"] - calls["cudaMemcpyAsync"] - image_us)
    malloc, free = raw["allocation"]["cudaMalloc"], raw["allocation"]["cudaFree"]
    least, most = min(malloc, key=int), max(malloc, key=int)
    per_mb = sum(times[most] - times[least] for times in (malloc, free)) / 2 / (int(most) / 1e6)
    fp16 = plans["fp16"]
    serial, streamed = fp16["steps"]["serial"], fp16["steps"]["streamed"]
    call = (streamed["record"] + streamed["wait"]) / 2
    handover = handover_us(plans, copies)
    slows = [max(0.0, 1 - plan["compute"][max(plan["compute"], key=int)] / plan["compute_beside_copies"])
             for plan in plans.values() if plan["opt"] > 1]
    post = host["postprocess"]
    first, last = min(post, key=int), max(post, key=int)
    per_image = (post[last] - post[first]) / (int(last) - int(first))
    wake_thread = max(0.0, host["thread_round_trip"] / 2 - host["queue"])
    start = devices.load(devices.available()[0])
    start = replace(start, multiprocessors=raw["multiprocessors"], memory_rate=raw["memory_gb_s"])
    fitted = fit_compute(start, plans)
    tera = {name: rate / 1e3 for name, rate in fitted.arithmetic_rates.items() if name in plans}
    tera.setdefault("int8", tera["fp16"])
    launches = len(network("fp16"))
    to_first = max(0.0, serial["enqueue"] + serial["copy out"] - fp16["compute"]["1"] - handover - output_us(copies) - wake_up)
    launch = max(0.5, (serial["enqueue"] - to_first) / (launches - 1))
    precisions = ("fp32", "fp16", "int8")
    sections = {"copy": [
        *((f"{name}_gb_s", rate(copies[name]), "measured: between 16 and 128 images") for name in
          ("h2d_pinned", "h2d_pageable", "d2h_pinned", "d2h_pageable")),
        ("latency_us", latency_us(pinned), "measured: a pinned copy of one image beyond its bytes"),
        ("handover_us", handover, "measured: compute and a copy in turn on one stream, less the two alone; half of that"),
        ("slows_compute", min(slows), "measured: compute beside copies without a pause, least affected plan"),
    ], "compute": [
        ("memory_gb_s", raw["memory_gb_s"], "measured: a device-to-device copy, bytes read and written"),
        ("kernel_floor_us", fitted.kernel_floor / 1e3, "fitted: compute by batch size, graphs back to back"),
        *((f"{precision}_last_wave_share", fitted.last_wave_shares[precision if precision in plans else "fp16"],
           "fitted: likewise" if precision in plans else "not measured: FP16's") for precision in precisions),
        *((f"{precision}_tflop_s", tera[precision],
           rate_source(plans[precision]) if precision in plans else "not measured: FP16's rate stands in")
          for precision in precisions),
    ], "host": [
        ("call_us", call, "measured: cudaEventRecord and cudaStreamWaitEvent from Python, in a loop of all steps, mean"),
        ("tensorrt_call_us", streamed["bind"] / 2, "measured: set_tensor_address, likewise"),
        ("enqueue_us", max(0.0, to_first - launch),
         "measured: batch 1, a serial loop's enqueue and copy back, less compute, the copy, its waits, and a launch"),
        ("kernel_launch_us", launch,
         f"measured: the rest of execute_async_v3's {serial['enqueue']:.0f} µs in that loop, over the {launches - 1} "
         "other modelled kernels"),
        ("crowded_launch_us", max(launch, crowded_launch_us(fp16["enqueued_by_two"], to_first - launch, launch, launches)),
         f"measured: two threads that enqueue at once, {fp16['enqueued_by_two']:.0f} µs a pair"),
        ("shape_change_us", max(0.0, fp16["enqueue_new_shape"] - fp16["enqueue"]["1"]),
         "measured: an enqueue after a change of shape, less an ordinary one"),
        ("allocate_us_per_mb", max(0.0, per_mb), "measured: cudaMalloc and cudaFree by size, mean of the two"),
        ("wake_up_us", wake_up, "measured: one image's copy and its synchronize, less the call and the copy"),
        ("thread_wake_up_us", wake_thread, "measured: half a round trip through two queues, less the queue's cost"),
        ("queue_us", host["queue"] / 2, "measured: half a put and a get"),
        ("range_us", host["range"] / 2, "measured: half an NVTX range"),
        ("postprocess_us", max(0.0, serial["finish"] - host["range"] - per_image), "measured: batch 1, in the same loop"),
        ("postprocess_us_per_image", per_image, "measured: by batch size"),
    ], "host.calls_us": [
        ("cudaMalloc", malloc[least], "measured: 4 KB"),
        ("cudaFree", free[least], "measured: 4 KB, the device idle"),
        ("cudaMemcpy", max(call, serial["copy in"] - image_us - wake_up),
         "measured: one image, in the same loop, less the copy and the wake-up"),
        ("cudaMemcpyAsync", (streamed["copy in"] + streamed["copy out"]) / 2,
         "measured: one image and its output, page-locked, in a loop of all steps"),
        ("cudaGraphLaunch", streamed["launch"], "measured: the FP16 plan's graph at batch 1, likewise"),
    ]}
    conditions = f"{raw['engine']}, driver CUDA {raw['versions'].get('driver')}, {raw['date']}"
    lines = [f"# {raw['device']}: measured by scripts/calibrate.py with {conditions}.",
             f"# Raw medians: {source}. ResNet-18's two plans stand for arithmetic; no stage was timed for this file.", "",
             f'name = "{raw["device"]}"', f"capability = {raw['capability']}",
             f"multiprocessors = {raw['multiprocessors']}", f"memory_gib = {raw['memory_bytes'] / 2**30:.1f}"]
    for section, rows in sections.items():
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {value:.4g}".ljust(36) + f"# {why}" for key, value, why in rows]
    return "\n".join([*lines, ""])
