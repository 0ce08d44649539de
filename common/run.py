"""One run of one pipeline over its batches: what it submits and finishes, and when."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from common import backend, ranges
from common.buffers import pageable
from common.clock import Instruments
from common.cuda import cudart
from common.decode import CpuDecoder, Files, GpuDecoder, Source
from common.engine import Engine
from common.postprocess import Predictions
from common.tensors import first_rows
from common.verify import check

Infer = Callable[["Session"], None]
Names = Sequence[Sequence[str]]


class Session:
    """One run of one pipeline over its batches, of which the last ``measured`` are the window.

    ``batches`` are arrays of the shape and type that the plan takes, page-locked where the stage asked for it; ``names`` are
    those of each batch's images, and may be fewer than its rows; ``engine`` is the stage's plan.
    """

    def __init__(
        self,
        engine: Engine,
        batches: Sequence[np.ndarray],
        names: Names,
        options: Namespace,
        measured: int,
        instruments: Instruments | None = None,
        source: Source | None = None,
    ) -> None:
        self.source = source
        self.engine, self.batches, self.names, self.options = engine, batches, names, options
        self.measured, self._instruments, self._range = measured, instruments, None
        self.predictions = Predictions(engine.facts.get("labels", []))
        self.outputs = self.room()
        self.begun_ns: dict[int, int] = {}  # when the first work of each batch was submitted
        self.done_ns: list[int] = []  # when each batch was finished
        self.depth = 0  # most batches that were submitted and not finished
        self.submit_ms: list[float] = []
        self.notes = list(engine.notes)
        self.read: dict[str, Any] = {}  # by the instruments
        self.used_memory = 0  # on the whole GPU, the largest seen

    def room(self) -> list[np.ndarray]:
        """For a copy of each batch's outputs."""
        block = pageable((len(self.batches), *self.output_shape), self.output_type)  # in large pages, seven times as fast
        return [first_rows(own, self.engine.outputs, len(batch)) for own, batch in zip(block, self.batches)]

    @property
    def decoder(self) -> CpuDecoder | GpuDecoder:
        """Of a stage that reads its batches from files."""
        assert self.source is not None
        return self.source.decoder

    def read_files(self, index: int) -> Future[Files]:
        """Begin to read the files of batch ``index``, one a row."""
        assert self.source is not None
        return self.source.read(self.names[index] or self.names[0], len(self.batches[index]))

    @property
    def distinct(self) -> int:
        """How many of the batches there are before they are repeated."""
        return len({id(batch) for batch in self.batches})

    @property
    def precision(self) -> str:
        """What the plan's layers must work in: ``--precision``, or the stage's own."""
        return self.options.precision

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the largest batch; its buffers hold every other."""
        return max((batch.shape for batch in self.batches), key=lambda shape: shape[0])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of the largest batch's outputs, as is ``output_type``."""
        return self.engine.output_shape(self.batch_shape[0])

    @property
    def output_type(self) -> np.dtype:
        return self.engine.output_type(self.batch_shape[0])

    @contextlib.contextmanager
    def submit(self, index: int) -> Iterator[None]:
        """The NVTX range ``infer``: the host's work to submit batch ``index``, whenever the GPU does it."""
        clock_ns = backend.current().clock_ns
        self.begin(index)
        started = clock_ns()
        with ranges.pushed(ranges.INFER, index):
            yield
        self.submit_ms.append((clock_ns() - started) / 1e6)
        self.depth = max(self.depth, index + 1 - len(self.done_ns))
        if index == 0:
            self.used_memory = used_memory()

    def begin(self, index: int) -> None:
        """The latency of batch ``index`` counts from here, where its first work is submitted before its ``infer`` range."""
        self.begun_ns.setdefault(index, backend.current().clock_ns())

    def postprocess(self, index: int, host_output: np.ndarray) -> None:
        """A classifier's predictions of batch ``index``, and a copy of its outputs for the verification."""
        with ranges.pushed(ranges.POSTPROCESS, len(self.batches[index])):
            if self.engine.classifies:
                self.predictions.add(self.names[index], host_output)
            np.copyto(self.outputs[index], host_output)

    def finish(self, index: int, host_output: np.ndarray) -> None:
        """Post-process batch ``index``, whose outputs are on the host now. Batches are finished in order."""
        assert index == len(self.done_ns), f"batch {index} finished after {len(self.done_ns) - 1}"
        self.postprocess(index, host_output)
        left = len(self.batches) - 1 - index
        if left == self.measured and self._instruments is not None:
            self._instruments.start()
            self._range = ranges.start(ranges.MEASURED)
        self.done_ns.append(backend.current().clock_ns())
        if left == 0 and self._instruments is not None:
            ranges.end(self._range)
            self.read = self._instruments.stop()
            self.used_memory = max(self.used_memory, used_memory())

    @property
    def window_ms(self) -> float:
        """From the end of the last warm-up batch to the end of the last measured one, both finished on the host."""
        return sum(self.intervals_ms)

    @property
    def intervals_ms(self) -> list[float]:
        """From the end of each batch to the end of the next, over the measured window."""
        done = self.done_ns[-1 - self.measured :]
        return [(later - earlier) / 1e6 for earlier, later in zip(done, done[1:])]

    @property
    def latencies_ms(self) -> list[float]:
        """From the submission of each measured batch to its post-processed outputs."""
        first = len(self.done_ns) - self.measured
        return [(self.done_ns[index] - self.begun_ns[index]) / 1e6 for index in range(first, len(self.done_ns))]

    def control(self, infer: Infer, plan: Callable[[], Path], where: str) -> None:
        """Run the batches of a measured run on another plan too, outside the window; note both runs' times by batch size."""
        if self._instruments is None or self.options.no_controls:  # a pilot's times nobody asks for
            return
        engine = Engine(plan())
        if None in [engine.profile_for(len(batch)) for batch in self.batches]:
            self.notes.append(f"no run {where}: {engine.plan} takes batches of {engine.profiles}")
            return
        other = Session(engine, self.batches, self.names, self.options, self.measured)
        infer(other)
        if not self.options.no_verify:
            check(self.outputs, other.outputs)
        sizes = [len(batch) for batch in self.batches[-self.measured :]]
        for size in sorted(set(sizes)):
            own, control = (median(ms for ms, batch in zip(run.intervals_ms, sizes) if batch == size) for run in (self, other))
            charged = backend.current().charged(size)
            self.notes.append(f"batch {charged}: {own:.3f} ms on its own profile, {control:.3f} ms {where}")


def used_memory() -> int:
    free, total = cudart.cudaMemGetInfo()
    return total - free
