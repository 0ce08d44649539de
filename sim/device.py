"""A modelled GPU: the numbers of ``devices/NAME.toml``, in the units that the simulator works in."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path


@dataclass(frozen=True)
class Device:
    """Times in ns, rates in bytes or floating-point operations per ns. The device file says where each comes from."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    copy_rates: dict[tuple[str, str], float]  # (h2d or d2h, pinned or pageable) → bytes per ns
    copy_latency: int
    handover: int  # from the end of work on one engine to the start of what waits for it on another
    copy_slows_compute: float  # share of a kernel's speed lost while a copy to the device runs
    memory_rate: float
    arithmetic_rates: dict[str, float]  # fp32, fp16, int8 → operations per ns
    last_wave_shares: dict[str, float]  # of a multiprocessor's rate that the thread blocks of the last wave reach
    kernel_floor: int
    call: int  # host time of a CUDA call that costs nothing special
    calls: dict[str, int]  # host time of those that do
    allocate_per_byte: float
    tensorrt_call: int  # host time of a TensorRT call that sets something
    enqueue: int  # host time of an enqueue before its first launch
    kernel_launch: int
    crowded_launch: int  # likewise, while another thread is launching
    shape_change: int
    wake_up: int  # from the end of what the host waits for to its going on
    thread_wake_up: int  # likewise, of a thread that waits for another
    queue: int  # an operation on a queue
    range: int  # opening or closing an NVTX range
    postprocess: int
    postprocess_per_image: int
    decode_rates: dict[str, float]  # JPEG files per ns, by decoder


parse_toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli").loads
FOLDER = resources.files("sim").joinpath("devices")


def available() -> list[str]:
    """Names that ``load`` knows."""
    return sorted(Path(entry.name).stem for entry in FOLDER.iterdir() if entry.name.endswith(".toml"))


def load(key: str) -> Device:
    """The device of ``devices/KEY.toml``; ``KeyError`` where there is none."""
    if key not in available():
        raise KeyError(key)
    table = parse_toml(FOLDER.joinpath(f"{key}.toml").read_text(encoding="utf-8"))
    copies, compute, host = table["copy"], table["compute"], table["host"]
    precisions, kinds = ("fp32", "fp16", "int8"), ("pinned", "pageable")
    calls, times = host.pop("calls_us"), {**copies, **compute, **host}
    ns = {name[:-3]: round(value * 1000) for name, value in times.items() if name.endswith("_us")}
    return Device(
        name=table["name"],
        capability=tuple(table["capability"]),
        multiprocessors=table["multiprocessors"],
        memory_bytes=round(table["memory_gib"] * 2**30),
        copy_rates={(way, kind): copies[f"{way}_{kind}_gb_s"] for way in ("h2d", "d2h") for kind in kinds},
        copy_latency=ns.pop("latency"),
        copy_slows_compute=copies["slows_compute"],
        memory_rate=compute["memory_gb_s"],
        arithmetic_rates={name: compute[f"{name}_tflop_s"] * 1000 for name in precisions},
        last_wave_shares={name: compute[f"{name}_last_wave_share"] for name in precisions},
        calls={name: round(cost * 1000) for name, cost in calls.items()},
        allocate_per_byte=host["allocate_us_per_mb"] / 1000,
        postprocess_per_image=round(host["postprocess_us_per_image"] * 1000),
        decode_rates={name: images_per_s / 1e9 for name, images_per_s in table.get("decode_images_per_s", {}).items()},
        **ns,  # all others are times under their own names
    )
