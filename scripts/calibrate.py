"""Measure a GPU for the simulator: copies, CUDA calls, allocation, launches, compute by precision.

    python scripts/calibrate.py my-gpu            measure, and write common/sim/devices/my-gpu.toml
    python scripts/calibrate.py my-gpu --raw FILE --measure-only
    python scripts/calibrate.py my-gpu --raw FILE --derive-only

Measuring needs TensorRT and the ladder's plans (built when missing); deriving needs the onnx package. Where no Python has
both, run the two halves one after the other: the raw medians travel in FILE, and stay as the record of what each number
of the device file was computed from. Everything is measured through the stages' own helpers (so that Python's share is in
it), piece by piece; no stage is timed here, and none of a stage's numbers goes into the file.

All of it is measured three times, in rounds, on cores that nothing else slows down (scripts/host.py); what is written are
the medians of the three.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from queue import Queue
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console

from common import backend, ranges
from common.buffers import (
    DeviceBuffer,
    copy_to_device,
    copy_to_device_async,
    copy_to_host,
    copy_to_host_async,
    page_locked,
    pageable,
)
from common.clock import undisturbed
from common.cuda import Event, Graph, Stream, cudart
from common.engine import Context, Engine
from common.errors import Fault
from common.files import atomic_path, write_json
from common.images import noise_images
from common.prepare import DISTINCT, default_plan
from common.report import versions
from common.session import Session
from scripts.host import Host

ROOT = Path(__file__).resolve().parent.parent
IMAGE = 3 * 224 * 224 * 4
CLASSES = 1000
BATCHES = (1, 16, 128)
SMALL = 4096
PAIRS = 30  # enqueues in a row by each of two threads: fewer kernels than a stream queues before it holds the host up
ROUNDS = 3
TURNS = 200
err = Console(stderr=True, highlight=False, soft_wrap=True)


def typical_us(call: Callable[[], object], count: int = 200, before: Callable[[], object] | None = None) -> float:
    """Median host time of ``call`` in µs; ``before`` runs ahead of each."""
    return in_turn_us({"call": call} if before is None else {"before": before, "call": call}, count)["call"]


def in_turn_us(steps: dict[str, Callable[[], object]], count: int = TURNS) -> dict[str, float]:
    """Median host time in µs of each step where all are made one after the other, over and over: as in a pipeline's loop, a
    step finds little of its own in the processor's caches."""
    clock_ns = backend.current().clock_ns
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(with_warm_up(count)):
        for name, step in steps.items():
            started = clock_ns()
            step()
            times[name].append((clock_ns() - started) / 1e3)
    return {name: median(each[-count:]) for name, each in times.items()}


def with_warm_up(count: int) -> int:
    return count + count // 10


class Bench:
    """A stream, two timing events and buffers for the largest batch; every ``measure_`` method returns raw medians in µs."""

    def __init__(self, resources: ExitStack) -> None:
        self.resources = resources
        self.stream, self.other = (resources.enter_context(Stream()) for _ in range(2))
        self.begin, self.end = (resources.enter_context(Event(timing=True)) for _ in range(2))
        self.event = resources.enter_context(Event())
        self.input = resources.enter_context(DeviceBuffer(max(BATCHES) * IMAGE))
        self.output = resources.enter_context(DeviceBuffer(max(BATCHES) * CLASSES * 4))
        self.host = page_locked((max(BATCHES) * IMAGE // 4,))
        self.filled = resources.enter_context(DeviceBuffer(self.host.nbytes // 2))

    def gpu_us(self, work: Callable[[], object], count: int, ahead: bool = True) -> float:
        """GPU time of each of ``count`` pieces of work enqueued behind one another, by CUDA events; median of five.

        The host is ``ahead``: it enqueues them behind a long copy and a first piece, so that none waits for its own call.
        """
        times = []
        for _ in range(6):
            if ahead:
                copy_to_device_async(self.filled, self.host[: self.host.size // 2], self.stream)
                work()
            self.begin.record(self.stream)
            for _ in range(count):
                work()
            self.end.record(self.stream)
            self.stream.synchronize()
            times.append(self.end.ms_since(self.begin) * 1e3 / count)
        return median(times[1:])

    def measure_copies(self) -> dict[str, dict[str, float]]:
        """Time of copies by size in bytes: GPU time of pinned ones, host time of pageable ones (the host waits)."""
        found: dict[str, dict[str, float]] = {name: {} for name in ("h2d_pinned", "d2h_pinned", "h2d_pageable", "d2h_pageable")}
        # The stages' batches are more than a processor's cache holds; so are these.
        ordinary = cycle([pageable((max(BATCHES) * IMAGE // 4,)) for _ in range(DISTINCT)])
        for nbytes in (SMALL, IMAGE, 16 * IMAGE, 128 * IMAGE):
            pinned, size, count = self.host[: nbytes // 4], str(nbytes), 3 * DISTINCT
            found["h2d_pinned"][size] = self.gpu_us(partial(copy_to_device_async, self.input, pinned, self.stream), 20)
            found["d2h_pinned"][size] = self.gpu_us(partial(copy_to_host_async, pinned, self.input, self.stream), 20)
            found["h2d_pageable"][size] = typical_us(
                lambda n=nbytes: copy_to_device(self.input, next(ordinary)[: n // 4]), count)
            found["d2h_pageable"][size] = typical_us(
                lambda n=nbytes: copy_to_host(next(ordinary)[: n // 4], self.input), count)
        return found

    def measure_memory_gb_s(self) -> float:
        """Bytes read and written per ns by a device-to-device copy far larger than any cache."""
        nbytes, kind = 256 << 20, cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        with DeviceBuffer(nbytes) as source, DeviceBuffer(nbytes) as target:
            return 2 * nbytes / 1e3 / self.gpu_us(
                lambda: cudart.cudaMemcpyAsync(target.address, source.address, nbytes, kind, self.stream.handle), 10)

    def measure_calls(self) -> dict[str, float]:
        """Host time of CUDA calls that have nothing to wait for, and of one image's copy waited for in three ways."""
        image, stream = self.host[: IMAGE // 4], self.stream

        def finished() -> None:
            stream.synchronize()

        def copied() -> None:
            copy_to_device_async(self.input, image, stream)

        def copied_and_waited() -> None:
            copied()
            finished()

        return {"cudaMemcpyAsync": typical_us(copied, before=finished),
                "cudaMemcpyAsync, cudaStreamSynchronize": typical_us(copied_and_waited)}

    def measure_allocation(self) -> dict[str, dict[str, float]]:
        """cudaMalloc and cudaFree by size in bytes, the device idle."""
        found: dict[str, dict[str, float]] = {"cudaMalloc": {}, "cudaFree": {}}
        for nbytes in (SMALL, IMAGE, 128 * IMAGE):
            buffers: list[DeviceBuffer] = []

            def allocate(nbytes: int = nbytes, buffers: list[DeviceBuffer] = buffers) -> None:
                buffers.append(DeviceBuffer(nbytes))

            def free(buffers: list[DeviceBuffer] = buffers) -> None:
                buffers.pop().close()

            found["cudaMalloc"][str(nbytes)] = typical_us(allocate, 30)
            found["cudaFree"][str(nbytes)] = typical_us(free, 30)
        return found

    def context(self, engine: Engine, batch: int) -> Context:
        context = engine.create_context()
        context.set_input_shape(engine.input_shape(batch))
        context.bind(self.input, self.output)
        context.execute_async_v3(self.stream)
        self.stream.synchronize()
        return context

    def captured(self, context: Context) -> Graph:
        cudart.cudaStreamBeginCapture(self.stream.handle, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        context.execute_async_v3(self.stream)
        graph = Graph(cudart.cudaStreamEndCapture(self.stream.handle))
        graph.upload(self.stream)
        return graph

    def measure_plan(self, plan: Path) -> dict[str, Any]:
        """Of one plan: compute time by batch (graphs back to back, so that no launch is waited for), with a copy before or
        behind it on the same stream, and beside a stream of copies; host time of an enqueue, of one after a change of shape,
        and of each step of a loop at batch 1."""
        engine = Engine(plan)
        compute, enqueue, after_copy, before_copy = {}, {}, {}, {}
        largest = max(batch for batch in BATCHES if engine.profile_for(batch) is not None)
        for batch in (batch for batch in BATCHES if batch <= largest):
            sample = noise_images(range(min(batch, 8)), 224, 1)
            for first in range(0, batch, 8):
                rows = sample[: batch - first]
                self.host[: rows.size] = rows.reshape(-1)
                cudart.cudaMemcpy(self.input.address + first * IMAGE, self.host.ctypes.data, rows.nbytes,
                                  cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)
            context = self.context(engine, batch)
            enqueue[str(batch)] = typical_us(lambda c=context: c.execute_async_v3(self.stream), 100, self.stream.synchronize)
            with self.captured(context) as graph:
                compute[str(batch)] = self.gpu_us(lambda g=graph: g.launch(self.stream), 20)
                copied_in, copied_out = self.host[: batch * IMAGE // 4], self.host[: batch * CLASSES]

                def behind_a_copy(g: Graph = graph, images: np.ndarray = copied_in) -> None:
                    copy_to_device_async(self.input, images, self.stream)
                    g.launch(self.stream)

                def with_a_copy_behind(g: Graph = graph, logits: np.ndarray = copied_out) -> None:
                    g.launch(self.stream)
                    copy_to_host_async(logits, self.output, self.stream)

                after_copy[str(batch)] = self.gpu_us(behind_a_copy, 20)
                before_copy[str(batch)] = self.gpu_us(with_a_copy_behind, 20)
                if batch == 1:
                    steps = {"serial": self.serial_steps(engine, context),
                             "streamed": self.streamed_steps(engine, context, graph)}
                if batch == largest:
                    beside_us = self.beside_copies(context)
        opt = engine.trt_engine.get_tensor_profile_shape(engine.input_name, 0)[1][0]
        found = {"opt": opt, "compute": compute, "enqueue": enqueue, "copy_in_and_compute": after_copy,
                 "compute_and_copy_out": before_copy, "steps": steps, "compute_beside_copies": beside_us,
                 "enqueued_by_two": self.enqueued_by_two(engine)}
        if largest > 1:
            sizes = [1, 2]

            def another_shape() -> None:
                self.stream.synchronize()
                sizes.reverse()
                context.set_input_shape(engine.input_shape(sizes[0]))

            found["enqueue_new_shape"] = typical_us(lambda: context.execute_async_v3(self.stream), 20, another_shape)
        return found

    def finisher(self, engine: Engine, batch: int, count: int) -> tuple[np.ndarray, Callable[[], None]]:
        """A batch's output, page-locked, and what finishes a batch with it: ``count`` times and for the warm-up, each output
        kept in memory of its own, as in a stage."""
        count, logits = with_warm_up(count), page_locked((batch, CLASSES))
        images, names = pageable(engine.input_shape(batch)), [f"image-{row}" for row in range(batch)]
        session = Session(engine, [images] * (count + 1), [names] * (count + 1), argparse.Namespace(measure=1))
        indices = iter(range(count))
        return logits, lambda: session.finish(next(indices), logits)

    def serial_steps(self, engine: Engine, context: Context) -> dict[str, float]:
        """Host time of each call of a serial loop at batch 1, on the default stream: the last copy waits for the inference."""
        image, (logits, finish) = page_locked((IMAGE // 4,)), self.finisher(engine, 1, TURNS)
        return in_turn_us({
            "copy in": lambda: copy_to_device(self.input, image), "enqueue": lambda: context.execute_async_v3(None),
            "copy out": lambda: copy_to_host(logits, self.output), "finish": finish})

    def streamed_steps(self, engine: Engine, context: Context, graph: Graph) -> dict[str, float]:
        """Likewise of a loop on streams with events between them and a graph for the inference."""
        image, (logits, finish) = page_locked((IMAGE // 4,)), self.finisher(engine, 1, TURNS)
        return in_turn_us({
            "copy in": lambda: copy_to_device_async(self.input, image, self.other),
            "record": lambda: self.event.record(self.other),
            "wait": lambda: self.stream.wait(self.event), "bind": lambda: context.bind(self.input, self.output),
            "launch": lambda: graph.launch(self.stream),
            "copy out": lambda: copy_to_host_async(logits, self.output, self.stream),
            "synchronize": self.stream.synchronize, "finish": finish})

    def enqueued_by_two(self, engine: Engine) -> float:
        """Host time of a pair of enqueues at batch 1, one in each of two threads that do nothing else, a context and a stream
        each: from the start of the first thread to the end of the last, over the pairs."""
        clock_ns, times = backend.current().clock_ns, []
        lanes = [(self.context(engine, 1), stream) for stream in (self.stream, self.other)]
        spans: list[tuple[int, int]] = []

        def enqueue(context: Context, stream: Stream) -> None:
            started = clock_ns()
            for _ in range(PAIRS):
                context.execute_async_v3(stream)
            spans.append((started, clock_ns()))

        for _ in range(6):
            spans.clear()
            threads = [threading.Thread(target=enqueue, args=lane) for lane in lanes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for _, stream in lanes:
                stream.synchronize()
            times.append((max(end for _, end in spans) - min(start for start, _ in spans)) / 1e3 / PAIRS)
        return median(times[1:])

    def beside_copies(self, context: Context) -> float:
        """Compute time of the largest batch, enqueued launch by launch as in a pipeline, while the other stream copies to a
        buffer of its own without a pause, from several page-locked buffers in turn."""
        sources = cycle([self.host, *(page_locked(self.host.shape) for _ in range(3))])
        with DeviceBuffer(self.input.nbytes) as target:
            times = []
            for _ in range(4):
                for _ in range(40):
                    copy_to_device_async(target, next(sources), self.other)
                times.append(self.gpu_us(lambda: context.execute_async_v3(self.stream), 4, ahead=False))
                self.other.synchronize()
            return median(times)

    def measure_host(self) -> dict[str, Any]:
        """Python's own work: post-processing by batch, an NVTX range, a queue, waking a thread that waits at a queue."""
        post, engine = {}, Engine(default_plan("fp16"))
        for batch in BATCHES:
            logits, finish = self.finisher(engine, batch, 60)

            def returned(host: np.ndarray = logits) -> None:  # as in a stage, the copy engine has just written them
                copy_to_host(host, self.output)

            post[str(batch)] = typical_us(finish, 60, before=returned)

        def marked() -> None:
            with ranges.pushed(ranges.INFER, 0):
                pass

        queue: Queue[int] = Queue()

        def through_a_queue() -> None:
            queue.put(1)
            queue.get()

        return {"postprocess": post, "range": typical_us(marked, 1000), "queue": typical_us(through_a_queue, 1000),
                "thread_round_trip": thread_round_trip()}


def thread_round_trip() -> float:
    """An item handed to a waiting thread and back, in µs."""
    there: Queue[int | None] = Queue()
    back: Queue[int] = Queue()

    def answer() -> None:
        while (item := there.get()) is not None:
            back.put(item)

    def round_trip() -> None:
        there.put(1)
        back.get()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        return typical_us(round_trip, 1000)
    finally:
        there.put(None)
        thread.join()


def measure() -> dict[str, Any]:
    """All raw medians, and what they were measured on."""
    properties = cudart.cudaGetDeviceProperties(0)
    here = backend.current()
    plans = {"fp32": default_plan("fp32"), "fp16": default_plan("fp16"),
             "fp16, OPT 1": default_plan("fp16", "-opt1", ["--profile", "1,1,1"])}
    if (ROOT / "plans" / f"resnet18-int8{here.plan_suffix}").exists():
        plans["int8"] = default_plan("int8")
    raw: dict[str, Any] = {
        "device": properties.name.decode(), "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multiProcessorCount, "memory_bytes": properties.totalGlobalMem,
        "engine": here.engine, "versions": versions(here), "date": datetime.date.today().isoformat(),
        "unit": "microseconds, medians",
    }
    with ExitStack() as resources:
        bench, host, readings, rounds = Bench(resources), Host(), [], []

        def quietly(name: str, part: Callable[[], Any]) -> Any:
            err.print(f"round {len(rounds) + 1} of {ROUNDS}: {name}", markup=False)
            [result] = host.repeated(partial(timed, part), 1)
            readings.extend(result["core_us"] or [])
            return result["found"]

        for _ in range(ROUNDS):  # a host's memory and cores are busy with other things for seconds on end
            rounds.append({
                **{name: quietly(name, getattr(bench, f"measure_{name}")) for name in
                   ("copies", "calls", "allocation", "memory_gb_s", "host")},
                "plans": {name: quietly(plan.name, partial(bench.measure_plan, plan)) for name, plan in plans.items()}})
        raw.update(medians(rounds))
    if readings:
        raw["core_us"] = {"quickest": host.quickest_us, "slowest": max(readings)}
    return raw


def timed(part: Callable[[], Any]) -> dict[str, Any]:
    """What a part measures, with the core's speed before and after it."""
    with undisturbed() as readings:
        found = part()
    return {"found": found, "core_us": None if backend.current().simulator else readings}


def medians(found: list[Any]) -> Any:
    """The median of each number in several results of the same form."""
    if isinstance(found[0], dict):
        return {key: medians([each[key] for each in found]) for key in found[0]}
    return median(found)


def shown(path: Path) -> str:
    """A path as the device file may name it: relative to the repository, or the name alone."""
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", help="the device file's name, and what --device will call it")
    p.add_argument("--raw", type=Path, metavar="FILE", help="the raw medians (default: out/NAME.calibration.json)")
    p.add_argument("--backend", choices=("tensorrt", "simulated"), default="tensorrt", help="simulated: the figures come back "
                   "that the simulator was given; a check of this script, not of a GPU")
    p.add_argument("--device", metavar="NAME", help="simulated: the GPU to model")
    half = p.add_mutually_exclusive_group()
    half.add_argument("--measure-only", action="store_true")
    half.add_argument("--derive-only", action="store_true")
    p.add_argument("--output", type=Path, metavar="TOML", help="default: common/sim/devices/NAME.toml")
    options = p.parse_args()
    raw_path = options.raw or ROOT / "out" / f"{options.name}.calibration.json"
    try:
        if not options.derive_only:
            backend.select(options.backend, options.device)
            write_json(raw_path, measure())
            err.print(f"written: {raw_path}")
        if not options.measure_only:
            from scripts import device_file

            output = options.output or ROOT / "common" / "sim" / "devices" / f"{options.name}.toml"
            text = device_file.derive(json.loads(raw_path.read_text(encoding="utf-8")), shown(raw_path))
            with atomic_path(output) as temporary:
                temporary.write_text(text, encoding="utf-8")
            err.print(f"written: {output}")
    except OSError as error:
        err.print(f"calibrate: error: {raw_path}: {error.strerror}.", style="red", markup=False)
        return 3
    except Fault as fault:
        err.print(f"calibrate: error: {fault}", style="red", markup=False)
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
