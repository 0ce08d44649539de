"""The simulator's device file from a calibration's raw medians: ``device_file.toml.in`` says of each number what it is, the
functions here how it is computed."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import resources
from statistics import median
from types import SimpleNamespace
from typing import Any

from common.errors import EnvironmentFault
from common.plans import ROOT
from sim import device as devices
from sim.device import Device
from sim.kernels import kernel
from sim.network import Layer, layers

IMAGE = 3 * 224 * 224 * 4
CLASSES = 1000
PAIRS = 30  # enqueues in a row by each of two threads: fewer kernels than a stream queues before it holds the host up
WAVE_SHARES = [share / 100 for share in range(20, 101, 5)]
FLOORS_US = [floor / 2 for floor in range(2, 17)]


def network(precision: str) -> list[Layer]:
    """The modelled layers of the ladder's ONNX file."""
    import onnx

    path = ROOT / "models" / f"resnet18-{precision}.onnx"
    if not path.exists():
        options = {"fp32": "", "fp16": "", "int8": " --int8 --calibration-images DIR"}[precision]
        raise EnvironmentFault(f"there is no {path}, whose layers are modelled: python 0_build.py --export-only{options}")
    return layers(onnx.load(str(path)))


def compute_us(device: Device, net: list[Layer], batch: int, opt: int) -> float:
    return sum(kernel(device, layer, batch, opt).duration for layer in net) / 1e3


def fit_compute(device: Device, plans: dict[str, dict[str, Any]]) -> Device:
    """Rates, the share that the last wave reaches, and the floor of a kernel, from the plans' compute times (µs) by batch.

    A precision's rate is set by its plan at the plan's OPT, exactly. Its last wave's share (its kernels hide their loads in
    their own way) and all kernels' floor (which a plan added later leaves alone) come from the other batches, by least squares.
    """
    nets = {name: network(name) for name in plans if name in device.arithmetic_rates}

    def error(tried: Device, plans: dict[str, dict[str, Any]]) -> float:
        measured = [(name, plan["opt"], *time) for name, plan in plans.items() for time in plan["compute"].items()]
        modelled = (compute_us(tried, nets[name.split(",")[0]], int(batch), opt) for name, opt, batch, _ in measured)
        return sum((modelled_us / us - 1) ** 2 for modelled_us, (*_, us) in zip(modelled, measured))

    def with_share(tried: Device, precision: str, share: float) -> Device:
        """With the rate at which the plan's time at its OPT is the measured one, to the file's digits: a tile hangs on them."""
        opt, rates = plans[precision]["opt"], dict(tried.arithmetic_rates)
        tried = replace(tried, arithmetic_rates=rates, last_wave_shares={**tried.last_wave_shares, precision: share})
        for _ in range(12):
            off = compute_us(tried, nets[precision], opt, opt) / plans[precision]["compute"][str(opt)]
            if abs(off - 1) < 1e-6:
                break
            rates[precision] *= off
        rates[precision] = float(f"{rates[precision]:.4g}")
        return tried

    fitted = []
    for floor_us in FLOORS_US:
        tried = replace(device, kernel_floor=round(floor_us * 1e3))
        for precision in nets:
            own = {name: plan for name, plan in plans.items() if name.split(",")[0] == precision}
            tried = min((with_share(tried, precision, share) for share in WAVE_SHARES), key=lambda tried: error(tried, own))
        fitted.append(tried)
    return min(fitted, key=lambda tried: error(tried, {name: plan for name, plan in plans.items() if "measured" not in plan}))


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


def without(whole: float, *parts: float) -> float:
    """A time without those of its parts; nothing where medians of separate measurements say less than nothing."""
    return max(0.0, whole - sum(parts))


def derive(raw: dict[str, Any], source: str) -> str:
    """The device file's text, from a calibration's raw medians (``source`` names their file)."""
    copies, calls, host, plans = raw["copies"], raw["calls"], raw["host"], raw["plans"]
    fp16, post, image_us = plans["fp16"], host["postprocess"], copies["h2d_pinned"][str(IMAGE)]
    serial, streamed = fp16["steps"]["serial"], fp16["steps"]["streamed"]
    malloc, free = raw["allocation"]["cudaMalloc"], raw["allocation"]["cudaFree"]
    least, most = min(malloc, key=int), max(malloc, key=int)
    first, last = min(post, key=int), max(post, key=int)
    found = SimpleNamespace(tflop_s={}, rate_is={}, shares={}, share_is={})  # what the template calls the figures

    found.memory_gib = raw["memory_bytes"] / 2**30
    found.gb_s = {kind: rate(times) for kind, times in copies.items()}
    found.latency_us = without(image_us, IMAGE / found.gb_s["h2d_pinned"] / 1e3)
    found.handover_us = handover_us(plans, copies)
    beside = (max(plan["compute"].values()) / plan["compute_beside_copies"] for plan in plans.values() if plan["opt"] > 1)
    found.slows_compute = without(1, max(beside))

    start = devices.load(devices.available()[0])
    fitted = fit_compute(replace(start, multiprocessors=raw["multiprocessors"], memory_rate=raw["memory_gb_s"]), plans)
    found.kernel_floor_us = fitted.kernel_floor / 1e3
    for name in ("fp32", "fp16", "int8"):
        same = name if (measured := name in plans) else "fp16"
        opt, compute = plans[same]["opt"], plans[same]["compute"]
        at_opt = f"fitted: compute at batch {opt}, {compute[str(opt)] / 1e3:.3f} ms"
        at_opt += f", {when['date']}" if (when := plans[same].get("measured")) else ""  # added to an earlier calibration
        found.tflop_s[name] = fitted.arithmetic_rates[same] / 1e3
        found.shares[name] = fitted.last_wave_shares[same]
        found.rate_is[name] = at_opt if measured else "not measured: FP16's rate stands in"
        found.share_is[name] = "fitted: likewise" if measured else "not measured: FP16's"

    found.call_us = (streamed["record"] + streamed["wait"]) / 2
    found.tensorrt_call_us = streamed["bind"] / 2
    found.wake_up_us = without(calls["cudaMemcpyAsync, cudaStreamSynchronize"], calls["cudaMemcpyAsync"], image_us)
    found.thread_wake_up_us = without(host["thread_round_trip"] / 2, host["queue"])
    found.queue_us, found.range_us = host["queue"] / 2, host["range"] / 2
    found.postprocess_us_per_image = (post[last] - post[first]) / (int(last) - int(first))
    found.postprocess_us = without(serial["finish"], host["range"], found.postprocess_us_per_image)
    found.allocate_us_per_mb = without(malloc[most] + free[most], malloc[least], free[least]) / 2 / (int(most) / 1e6)
    found.malloc_us, found.free_us = malloc[least], free[least]
    found.memcpy_us = max(found.call_us, serial["copy in"] - image_us - found.wake_up_us)
    found.memcpy_async_us = (streamed["copy in"] + streamed["copy out"]) / 2

    launches, serial_us = len(network("fp16")), serial["enqueue"] + serial["copy out"]
    found.other_kernels, found.pair_us = launches - 1, fp16["enqueued_by_two"]
    to_first = without(serial_us, fp16["compute"]["1"], found.handover_us, output_us(copies), found.wake_up_us)  # launch
    launch_us = found.kernel_launch_us = max(0.5, (serial["enqueue"] - to_first) / found.other_kernels)
    found.enqueue_us = without(to_first, launch_us)
    found.crowded_launch_us = crowded_launch_us(found.pair_us, to_first - launch_us, launch_us, launches)
    found.shape_change_us = without(fp16["enqueue_new_shape"], fp16["enqueue"]["1"])

    template = resources.files("sim").joinpath("device_file.toml.in").read_text(encoding="utf-8")
    driver = raw["versions"].get("driver")
    text = template.format(raw=raw, found=found, source=source, serial=serial, streamed=streamed, driver=driver)
    rates = (f"{name} = {each['images_per_s']} # {each['is']}\n" for name, each in raw.get("decoders", {}).items())
    text += "".join(["\n[decode_images_per_s]\n", *rates]) * ("decoders" in raw)
    return re.sub(r"(?m)^(\w+ = \S+) # ", lambda row: row[1].ljust(36) + "# ", text)
