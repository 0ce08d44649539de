"""A model on the GPU, fed alike whatever library runs it: page-locked input, copy in, model, copy out, on one stream.

The library is given device memory to read and to write and a stream to work on, and nothing else, so that what differs
between two rows is the model's own work.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from common import backend, ranges
from common.buffers import DeviceBuffer, copy_to_device_async, copy_to_host_async, page_locked
from common.cuda import Event, Stream
from common.errors import EnvironmentFault
from common.images import write
from common.run import used_memory

Enqueue = Callable[[], None]
Runner = Callable[[DeviceBuffer, DeviceBuffer], Enqueue]
"""Given the memory to read from and to write to: what enqueues the model's work on the lane's stream."""
WARM_UP = 3  # batches before those that are marked


def gpu() -> backend.Backend:
    """The GPU of this process, with TensorRT where that is installed; raises ``EnvironmentFault`` without a GPU."""
    try:
        return backend.select("tensorrt")
    except EnvironmentFault:
        return backend.select_cuda()


def growth_mb() -> Callable[[], float]:
    """What tells by how many MB the memory in use on the GPU has grown since now."""
    before = used_memory()
    return lambda: (used_memory() - before) / 1e6


class Slot:
    """What one batch in flight has of its own."""

    def __init__(self, resources: ExitStack, nbytes: int, output: np.ndarray, runner: Runner) -> None:
        self.host_output = output
        self.device_input = resources.enter_context(DeviceBuffer(nbytes))
        self.device_output = resources.enter_context(DeviceBuffer(output.nbytes))
        self.copied, self.returned = (resources.enter_context(Event()) for _ in range(2))
        self.enqueue = runner(self.device_input, self.device_output)


class Lane:
    """Two slots on a compute stream, and a copy stream that only ``ahead`` uses. ``stream`` is the caller's: the model works
    there. Shapes and dtypes are of a batch's input and of its outputs."""

    def __init__(
        self, resources: ExitStack, stream: Stream, shape: Any, output_shape: Any, runner: Runner, dtype: Any = np.float32
    ) -> None:
        self.stream, self.copying = stream, resources.enter_context(Stream())
        self.host_input = page_locked(shape, dtype)
        outputs = (page_locked(output_shape) for _ in range(2))
        self.slots = [Slot(resources, self.host_input.nbytes, output, runner) for output in outputs]

    def load(self, images: np.ndarray) -> None:
        write(images, self.host_input)

    def submit(self, slot: Slot) -> None:
        copy_to_device_async(slot.device_input, self.host_input, self.stream)
        slot.enqueue()
        copy_to_host_async(slot.host_output, slot.device_output, self.stream)

    def infer(self) -> None:
        """One batch, from page-locked memory to page-locked memory, to its end."""
        self.submit(self.slots[0])
        self.stream.synchronize()

    def output(self) -> np.ndarray:
        """A copy of the logits of the last ``infer``, N×C FP32."""
        return self.slots[0].host_output.copy()

    def ahead(self, count: int) -> float:
        """Milliseconds a batch where the next one is always submitted, and copied on a stream of its own, before this one is
        waited for: what trtexec does."""
        done: list[int] = []
        for index in range(count + 1):
            slot = self.slots[index % 2]
            copy_to_device_async(slot.device_input, self.host_input, self.copying)
            slot.copied.record(self.copying)
            self.stream.wait(slot.copied)
            slot.enqueue()
            copy_to_host_async(slot.host_output, slot.device_output, self.stream)
            slot.returned.record(self.stream)
            if index:
                self.slots[(index - 1) % 2].returned.synchronize()
                done.append(backend.current().clock_ns())
        self.stream.synchronize()
        return (done[-1] - done[0]) / 1e6 / max(1, count - 1)

    def parts(self, count: int) -> dict[str, float]:
        """Medians over so many batches, one at a time, in ms: the host's time to enqueue the model, and the GPU's from event to
        event for each part. Where the host is slower than the GPU, ``compute_ms`` has the gaps between kernels in it."""
        slot, found = self.slots[0], list[tuple[float, ...]]()
        with ExitStack() as resources:
            events = [resources.enter_context(Event(timing=True)) for _ in range(4)]
            for _ in range(count):
                events[0].record(self.stream)
                copy_to_device_async(slot.device_input, self.host_input, self.stream)
                events[1].record(self.stream)
                begun = backend.current().clock_ns()
                slot.enqueue()
                enqueue_ms = (backend.current().clock_ns() - begun) / 1e6
                events[2].record(self.stream)
                copy_to_host_async(slot.host_output, slot.device_output, self.stream)
                events[3].record(self.stream)
                events[3].synchronize()
                found.append((enqueue_ms, *(later.ms_since(earlier) for earlier, later in zip(events, events[1:]))))
        return dict(zip(("enqueue_ms", "h2d_ms", "compute_ms", "d2h_ms"), np.median(found, axis=0).tolist()))

    def marked(self, count: int) -> None:
        """So many batches, one at a time, with the ladder's ranges around them: for a profiler, and for ``scripts.compare``."""
        measured = None
        for index in range(WARM_UP + count):
            measured = ranges.start(ranges.MEASURED) if index == WARM_UP else measured
            with ranges.pushed(ranges.INFER, index):
                self.submit(self.slots[0])
            self.stream.synchronize()
            with ranges.pushed(ranges.POSTPROCESS, len(self.host_input)):
                self.output()
        ranges.end(measured)
