"""Measure a GPU for the simulator: copies, CUDA calls, allocation, launches, compute by precision.

    python -m scripts.calibrate my-gpu                    measure, and write sim/devices/my-gpu.toml
    python -m scripts.calibrate my-gpu --add int8         measure INT8's compute only, and add it to what was measured before
    python -m scripts.calibrate my-gpu --derive-only      write it again from what was measured before

Measuring needs TensorRT and the ladder's plans (built when missing); making the device file needs the onnx package. Where no
Python has both, run the last line with the one that has onnx. The raw medians lie in out/my-gpu.calibration.json, and stay
as the record of what each number of the device file was computed from.

Everything is measured through the stages' own helpers (so that Python's share is in it), piece by piece; no stage is timed
here, and none of a stage's numbers goes into the file. What is written are the medians of three rounds.
"""

from __future__ import annotations

import argparse
import datetime
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial, wraps
from itertools import cycle
from pathlib import Path
from queue import Queue
from statistics import median
from typing import Any, cast

import numpy as np

from common import backend, program, ranges
from common.buffers import DeviceBuffer, copy_to_device, copy_to_device_async, copy_to_host, copy_to_host_async, page_locked
from common.clock import undisturbed
from common.console import err
from common.cuda import Event, Stream, cudart, versions
from common.engine import Context, Engine
from common.errors import UsageFault
from common.files import read_json, write_json, write_text
from common.images import DISTINCT, noise_images
from common.plans import ROOT, default_plan, path_of
from common.run import Session
from sim import device_file
from sim.device_file import CLASSES, IMAGE, PAIRS

BATCHES = (1, 16, 128)
SMALL = 4096
ROUNDS, TURNS = 3, 200
Call = Callable[[], object]


def typical_us(call: Call, count: int = TURNS, before: Call | None = None) -> float:
    """Median host time of ``call`` in µs; ``before`` runs ahead of each."""
    return in_turn_us({"call": call} if before is None else {"before": before, "call": call}, count)["call"]


def in_turn_us(steps: dict[str, Call], count: int = TURNS) -> dict[str, float]:
    """Median host time in µs of each step where all are made one after the other, over and over: as in a pipeline's loop, a
    step finds little of its own in the processor's caches."""
    clock_ns = backend.current().clock_ns
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(count + count // 10):
        for name, step in steps.items():
            started = clock_ns()
            step()
            times[name].append((clock_ns() - started) / 1e3)
    return {name: median(each[-count:]) for name, each in times.items()}


def settled(measure: Callable[..., float]) -> Callable[..., float]:
    """The median of five measurements, after one that warms up."""
    return wraps(measure)(lambda *args, **options: median([measure(*args, **options) for _ in range(6)][1:]))


def by_size(sizes: Iterable[int], measure: Callable[[int], dict[str, float]]) -> dict[str, dict[str, float]]:
    """Each of the times that ``measure`` finds, by size."""
    found = {str(size): measure(size) for size in sizes}
    return {name: {size: times[name] for size, times in found.items()} for name in next(iter(found.values()))}


class Bench:
    """Two streams, events and buffers for the largest batch; what it measures are medians in µs."""

    def __init__(self, resources: ExitStack) -> None:
        own: Callable[[Any], Any] = resources.enter_context
        self.stream, self.other = own(Stream()), own(Stream())
        self.begin, self.end, self.event = own(Event(timing=True)), own(Event(timing=True)), own(Event())
        self.input, self.output = own(DeviceBuffer(max(BATCHES) * IMAGE)), own(DeviceBuffer(max(BATCHES) * CLASSES * 4))
        self.host = page_locked((max(BATCHES) * IMAGE // 4,))
        # The stages' batches are more than a processor's cache holds; so are these. (Ones, so that every page is there.)
        self.ordinary = cycle([np.ones(self.host.shape, np.float32) for _ in range(DISTINCT)])
        self.filled = own(DeviceBuffer(self.host.nbytes // 2))

    @settled
    def gpu_us(self, work: Call, count: int, ahead: bool = True) -> float:
        """GPU time of each of ``count`` pieces of work enqueued behind one another, by CUDA events; median of five.

        The host is ``ahead``: it enqueues them behind a long copy and a first piece, so that none waits for its own call.
        """
        if ahead:
            copy_to_device_async(self.filled, self.host[: self.host.size // 2], self.stream)
            work()
        self.begin.record(self.stream)
        for _ in range(count):
            work()
        self.end.record(self.stream)
        self.stream.synchronize()
        return self.end.ms_since(self.begin) * 1e3 / count

    def copy_in(self, nbytes: int) -> Call:
        return partial(copy_to_device_async, self.input, self.host[: nbytes // 4], self.stream)

    def copy_out(self, nbytes: int, source: DeviceBuffer) -> Call:
        return partial(copy_to_host_async, self.host[: nbytes // 4], source, self.stream)

    def copies(self, nbytes: int) -> dict[str, float]:
        """Time of copies of so many bytes: GPU time of pinned ones, host time of pageable ones (the host waits)."""

        def pageable_us(copy: Callable[[np.ndarray], object]) -> float:
            return typical_us(lambda: copy(next(self.ordinary)[: nbytes // 4]), 3 * DISTINCT)

        return {
            "h2d_pinned": self.gpu_us(self.copy_in(nbytes), 20),
            "d2h_pinned": self.gpu_us(self.copy_out(nbytes, self.input), 20),
            "h2d_pageable": pageable_us(lambda host: copy_to_device(self.input, host)),
            "d2h_pageable": pageable_us(lambda host: copy_to_host(host, self.input)),
        }

    def memory_gb_s(self) -> float:
        """Bytes read and written per ns by a device-to-device copy far larger than any cache."""
        nbytes, kind = 256 << 20, cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        with DeviceBuffer(nbytes) as source, DeviceBuffer(nbytes) as target:
            copy = partial(cudart.cudaMemcpyAsync, target.address, source.address, nbytes, kind, self.stream.handle)
            return 2 * nbytes / 1e3 / self.gpu_us(copy, 10)

    def calls(self) -> dict[str, float]:
        """Host time of one image's copy, with nothing to wait for, and waited for."""
        copy, wait = self.copy_in(IMAGE), self.stream.synchronize
        alone, waited = typical_us(copy, before=wait), typical_us(lambda: (copy(), wait()))
        return {"cudaMemcpyAsync": alone, "cudaMemcpyAsync, cudaStreamSynchronize": waited}

    def allocation(self, nbytes: int) -> dict[str, float]:
        """Host time of allocating and freeing so many bytes in turn, the device idle."""
        buffers: list[DeviceBuffer] = []
        allocate, free = lambda: buffers.append(DeviceBuffer(nbytes)), lambda: buffers.pop().close()
        return in_turn_us({"cudaMalloc": allocate, "cudaFree": free}, 30)

    def plan(self, plan: Path) -> dict[str, Any]:
        """Of one plan: what is timed by batch, host time of each step of a loop at batch 1, and of an enqueue after a change of
        shape, compute time of the largest batch beside a stream of copies."""
        engine = Engine(plan)
        batches = [batch for batch in BATCHES if engine.profile_for(batch) is not None]
        found: dict[str, Any] = by_size(batches, partial(self.times_of_batch, engine))
        found["opt"] = engine.trt_engine.get_tensor_profile_shape(engine.input_name, 0)[1][0]
        found["steps"] = self.steps(engine)
        context = self.context(engine, batches[-1])
        found["compute_beside_copies"] = self.beside_copies(context)
        lanes = (self.context(engine, 1), self.stream), (self.context(engine, 1), self.other)
        found["enqueued_by_two"] = self.enqueued_by_two(*lanes)
        if batches[-1] > 1:
            shapes = cycle([engine.input_shape(2), engine.input_shape(1)])
            steps: dict[str, Call] = {
                "synchronize": self.stream.synchronize,
                "set shape": lambda: context.set_input_shape(next(shapes)),
                "enqueue": lambda: context.execute_async_v3(self.stream),
            }
            found["enqueue_new_shape"] = in_turn_us(steps, 20)["enqueue"]
        return found

    def context(self, engine: Engine, batch: int) -> Context:
        """A context that has run a batch of this size."""
        context = engine.create_context()
        context.set_input_shape(engine.input_shape(batch))
        context.bind(self.input, self.output)
        context.execute_async_v3(self.stream)
        self.stream.synchronize()
        return context

    def times_of_batch(self, engine: Engine, batch: int) -> dict[str, float]:
        """Compute time (graphs back to back, so that no launch is waited for), also with a copy before or behind it on the same
        stream; host time of an enqueue."""
        images = self.host[: batch * IMAGE // 4]
        images[:] = np.resize(noise_images(range(min(batch, 8)), (3, 224, 224), 1), images.size)
        copy_to_device(self.input, images)
        copy_in, copy_out = self.copy_in(images.nbytes), self.copy_out(batch * CLASSES * 4, self.output)
        context = self.context(engine, batch)
        with self.stream.capture() as graph:
            context.execute_async_v3(self.stream)
        with graph:
            launch = partial(graph.launch, self.stream)
            return {
                "enqueue": typical_us(lambda: context.execute_async_v3(self.stream), 100, before=self.stream.synchronize),
                "compute": self.gpu_us(launch, 20),
                "copy_in_and_compute": self.gpu_us(lambda: (copy_in(), launch()), 20),
                "compute_and_copy_out": self.gpu_us(lambda: (launch(), copy_out()), 20),
            }

    def finisher(self, engine: Engine, batch: int, count: int) -> tuple[np.ndarray, Call]:
        """A batch's output, page-locked, and what finishes a batch with it: at most ``count`` times, each output kept in memory
        of its own, as in a stage."""
        images, names = np.ones(engine.input_shape(batch), np.float32), [f"image-{row}" for row in range(batch)]
        session = Session(engine, [images] * (count + 1), [names] * (count + 1), argparse.Namespace(), measured=1)
        logits, indices = page_locked((batch, CLASSES)), iter(range(count))
        return logits, lambda: session.finish(next(indices), logits)

    def steps(self, engine: Engine) -> dict[str, dict[str, float]]:
        """Host time of each call of two loops at batch 1: a serial one on the default stream, where the last copy waits for the
        inference, and one on streams with events between them and a graph for the inference."""
        context, image = self.context(engine, 1), page_locked((IMAGE // 4,))
        logits, finish = self.finisher(engine, 1, 3 * TURNS)
        with self.stream.capture() as graph:
            context.execute_async_v3(self.stream)
        serial: dict[str, Call] = {
            "copy in": lambda: copy_to_device(self.input, image),
            "enqueue": lambda: context.execute_async_v3(None),
            "copy out": lambda: copy_to_host(logits, self.output),
            "finish": finish,
        }
        streamed: dict[str, Call] = {
            "copy in": lambda: copy_to_device_async(self.input, image, self.other),
            "record": lambda: self.event.record(self.other),
            "wait": lambda: self.stream.wait(self.event),
            "bind": lambda: context.bind(self.input, self.output),
            "launch": lambda: graph.launch(self.stream),
            "copy out": lambda: copy_to_host_async(logits, self.output, self.stream),
            "synchronize": self.stream.synchronize,
            "finish": finish,
        }
        with graph:
            return {"serial": in_turn_us(serial), "streamed": in_turn_us(streamed)}

    @settled
    def enqueued_by_two(self, *lanes: tuple[Context, Stream]) -> float:
        """Host time of a pair of enqueues at batch 1, one in each of two threads that do nothing else, a context and a stream
        each: from the start of the first thread to the end of the last, over the pairs."""
        clock_ns, spans = backend.current().clock_ns, []

        def enqueue(context: Context, stream: Stream) -> None:
            started = clock_ns()
            for _ in range(PAIRS):
                context.execute_async_v3(stream)
            spans.append((started, clock_ns()))

        threads = [threading.Thread(target=enqueue, args=lane) for lane in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.stream.synchronize()
        self.other.synchronize()
        starts, ends = zip(*spans)
        return (max(ends) - min(starts)) / 1e3 / PAIRS

    def beside_copies(self, context: Context) -> float:
        """Compute time of a batch, enqueued launch by launch as in a pipeline, while the other stream copies to a buffer of
        its own without a pause, from several page-locked buffers in turn."""
        sources = cycle([self.host, *(page_locked(self.host.shape) for _ in range(3))])
        times = []
        with DeviceBuffer(self.input.nbytes) as target:
            for _ in range(4):
                for _ in range(40):
                    copy_to_device_async(target, next(sources), self.other)
                times.append(self.gpu_us(lambda: context.execute_async_v3(self.stream), 4, ahead=False))
                self.other.synchronize()
        return median(times)

    def python(self) -> dict[str, Any]:
        """Python's own work: post-processing by batch, an NVTX range, a queue, an item handed to a waiting thread and back."""
        engine, (queue, there, back) = Engine(default_plan("fp16")), [cast(Any, Queue()) for _ in range(3)]

        def finish_us(batch: int) -> dict[str, float]:
            logits, finish = self.finisher(engine, batch, 100)
            returned = partial(copy_to_host, logits, self.output)  # as in a stage, the copy engine has just written them
            return {"postprocess": typical_us(finish, 60, before=returned)}

        def marked() -> None:
            with ranges.pushed(ranges.INFER, 0):
                pass

        def answer() -> None:
            for item in iter(there.get, None):
                back.put(item)

        found: dict[str, Any] = by_size(BATCHES, finish_us)
        threading.Thread(target=answer, daemon=True).start()
        steps: dict[str, Call] = {
            "range": marked,
            "queue": lambda: (queue.put(1), queue.get()),
            "thread_round_trip": lambda: (there.put(1), back.get()),
        }
        found.update(in_turn_us(steps, 1000))
        there.put(None)
        return found


def measure() -> dict[str, Any]:
    """All raw medians, and what they were measured on."""
    properties, here = cudart.cudaGetDeviceProperties(0), backend.current()
    plans = {"fp32": default_plan("fp32"), "fp16": default_plan("fp16"), "fp16, OPT 1": default_plan("fp16", [1])}
    if path_of("int8", [], None, here.kind).exists():
        plans["int8"] = default_plan("int8")
    raw: dict[str, Any] = {"device": properties.name.decode(), "capability": [properties.major, properties.minor]}
    raw |= {"multiprocessors": properties.multiProcessorCount, "memory_bytes": properties.totalGlobalMem}
    raw |= made_by()
    rounds = []
    with ExitStack() as resources:
        bench = Bench(resources)
        for number in range(ROUNDS):  # a host's memory and cores are busy with other things for seconds on end
            err.print(f"round {number + 1} of {ROUNDS}")
            with undisturbed() as core_us:
                found: dict[str, Any] = {
                    "copies": by_size((SMALL, IMAGE, 16 * IMAGE, 128 * IMAGE), bench.copies),
                    "calls": bench.calls(),
                    "allocation": by_size((SMALL, IMAGE, 128 * IMAGE), bench.allocation),
                    "memory_gb_s": bench.memory_gb_s(),
                    "host": bench.python(),
                    "plans": {name: bench.plan(path) for name, path in plans.items()},
                }
            rounds.append({**found, "core_us": max(core_us)})
    return {**raw, "unit": "microseconds, medians", **medians(rounds)}


def add(raw: dict[str, Any], precision: str) -> dict[str, Any]:
    """``raw`` with one more precision's plan, and with when and by what that was measured."""
    rounds, plan = [], default_plan(precision)
    with ExitStack() as resources:
        bench = Bench(resources)
        for _ in range(ROUNDS):
            with undisturbed():
                rounds.append(bench.plan(plan))
    return {**raw, "plans": {**raw["plans"], precision: {**medians(rounds), "measured": made_by()}}}


def made_by() -> dict[str, Any]:
    """By which libraries something is measured, and when."""
    here = backend.current()
    return {"engine": here.library, "versions": {**here.versions(), **versions()}, "date": datetime.date.today().isoformat()}


def medians(found: list[Any]) -> Any:
    """The median of each number in several results of the same form."""
    if isinstance(found[0], dict):
        return {key: medians([each[key] for each in found]) for key in found[0]}
    return median(found)


def main() -> None:
    p = program.parser(__doc__)
    p.add_argument("name", help="the device file's name, and what --device will call it")
    p.add_argument("--raw", type=Path, metavar="FILE", help="the raw medians (default: out/NAME.calibration.json)")
    p.add_argument("--derive-only", action="store_true", help="measure nothing: only make the device file from FILE")
    p.add_argument("--add", choices=("fp32", "fp16", "int8"), metavar="PRECISION", help="measure this one's compute only")
    options = p.parse_args()
    raw = (options.raw or ROOT / "out" / f"{options.name}.calibration.json").resolve()
    output = ROOT / "sim" / "devices" / f"{options.name}.toml"
    before = read_json(raw)
    if (options.derive_only or options.add) and not isinstance(before.get("plans"), dict):
        raise UsageFault(f"{raw} has no medians that were measured before.")
    if not options.derive_only:
        backend.select("tensorrt")
        write_json(raw, add(before, options.add) if options.add else measure())
        err.print(f"written: {raw}")
    try:
        write_text(output, device_file.derive(read_json(raw), os.path.relpath(raw, ROOT)))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageFault(f"{raw} is not what was measured of a GPU ({error!r}).") from error
    err.print(f"written: {output}")


if __name__ == "__main__":
    program.run(main)
