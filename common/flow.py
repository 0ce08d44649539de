"""A pipeline that does not end: a stage's ``infer`` on a thread of its own, and pictures for it from any other.

The stage sees a ``Session`` as always. Only that its batches have no end, come when somebody hands pictures in, and that their
predictions go back to whoever that was.
"""

from __future__ import annotations

import threading
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any, Union

import numpy as np

from common import decode, options, ranges
from common.decoders import Files
from common.errors import EnvironmentFault, UsageFault
from common.photographs import synthetic_jpeg
from common.postprocess import top1
from common.run import Infer, Session
from common.session import load
from common.verify import check, races, run_serially

TURN = 20_000
"""Batches after which the pipeline is built anew: a stage keeps a little of each of its batches."""
AHEAD = 16  # batches that are read or being read
TRIED, QUICK_S = 3, 50e-6
"""Batches that are read before there is anything else to do, and the time of a picture that one thread is enough for: 20,000 a
second. Each system call is a turn at the interpreter's lock, which the decoder needs too. Where files come from the page cache,
a batch that takes 6.3 ms by itself takes 6.9 beside one thread that reads, and 8.6 beside 16 (two cores, a modelled decoder; on
an H200's host 8 readers took it from 15,500 images/s to 9,700). Where they come slowly, threads wait side by side."""
REST_S = 0.002  # between two looks for a batch where there is none
PATIENCE_S = 60.0  # in which a pipeline that has something to do finishes a batch, or it has failed
TESTED, DRAWN = 6, 8  # batches of the self-test, and different pictures in it

Picture = tuple[str, Callable[[], bytes]]
Row = tuple[Union[str, None], Union[float, None], Union[str, None]]
"""Of a picture: its class, the probability, and instead of both why it could not be read."""


class Ended(EnvironmentFault):
    """There will be no more pictures."""


@dataclass
class Answer:
    """Rows of a picture each, when their work began and ended, in nanoseconds of the backend's clock, and how many of the
    pictures the decoder left to Pillow."""

    rows: list[Row]
    begun_ns: int
    ended_ns: int
    by_pillow: int


@dataclass
class Part:
    """A batch's pictures on their way, and where its rows are waited for. ``outputs`` are kept where they are a list."""

    files: Files
    answers: Any  # a SimpleQueue
    outputs: list[np.ndarray] | None = None
    begun_ns: int = 0


class Flow(Session):
    """One GPU with a plan and a stage's pipeline on it. Raises a ``Fault`` where the plan cannot be used, or where what comes
    out of the pipeline is not what a serial run says."""

    def __init__(self, chosen: Namespace, infer: Infer) -> None:
        # Made before a simulator takes these classes' place: those who hand in pictures are no threads of the simulated host.
        self._queue: Callable[[], Any] = SimpleQueue
        self._incoming, self._turn, self._rest = SimpleQueue[Union[Part, None]](), threading.Lock(), threading.Event()
        self.here, self.size = options.select_backend(chosen)
        engine = load(chosen, [self.size.batch])
        if not engine.classifies:
            raise UsageFault(f"{engine.plan} gives {', '.join(map(str, engine.outputs))}, and this is for classes.")
        batch = np.empty(engine.input_shape(self.size.batch), engine.input_type)  # nobody writes to it
        self.unreadable: dict[str, str] = {}  # of pictures on their way
        decoder = decode.make(decode.choose(chosen.decoder, engine), engine, self.unreadable)
        super().__init__(engine, [batch] * TURN, [], chosen, TURN, source=decode.Source({}, decoder))
        self._going, self._asked, self._taken = deque[Part](), 0, 0  # how many batches the stage wants, and has
        self._error: BaseException = Ended("the pipeline was ended")
        self._finished_s = time.monotonic()
        self._took = list[float]()  # seconds a picture, of the first batches
        self._pool: ThreadPoolExecutor | None = None
        threading.Thread(target=self._run, args=(infer,), daemon=True).start()
        try:
            self._test()
        except BaseException:
            self.close()
            raise

    def predict(self, pictures: Sequence[Picture]) -> Answer:
        """A row for each of ``pictures``, in their order: a name that no other picture has at this time, and what reads it. Any
        thread may call, and several: while one waits for its last batches, the next one's follow."""
        answers, found, size = self._queue(), list[Answer](), self.size.batch
        work = iter([pictures[first : first + size] for first in range(0, len(pictures), size)])
        with self._turn:
            ahead, sent = deque(self._begin(batch) for batch in islice(work, AHEAD)), 0
            while ahead:
                self._incoming.put(Part(ahead.popleft()(), answers))
                ahead.extend(self._begin(batch) for batch in islice(work, 1))
                sent += 1
                if sent > AHEAD:
                    found.append(self._answer(answers))
        found += [self._answer(answers) for _ in range(len(found), sent)]
        by_pillow = sum(answer.by_pillow for answer in found)
        return Answer([row for answer in found for row in answer.rows], found[0].begun_ns, found[-1].ended_ns, by_pillow)

    def _answer(self, answers: Any) -> Answer:
        ended = False
        while True:
            try:
                answer = answers.get(timeout=PATIENCE_S)
            except Empty:
                if time.monotonic() - self._finished_s < PATIENCE_S:
                    continue
                if ended:
                    raise Ended(f"nothing has come out of the pipeline for {2 * PATIENCE_S:.0f} s") from None
                self.close()  # lets those go that wait for pictures, so that what has failed is heard
                ended = True
                continue
            if isinstance(answer, BaseException):
                raise answer
            return answer

    def _begin(self, pictures: Sequence[Picture]) -> Callable[[], Files]:
        """Begin to read a batch's files; what is returned waits for them. (A simulated host reads in no time.)"""
        if self.here.simulator is not None:
            return partial(self._read, pictures)
        if self._pool is not None:
            return self._pool.submit(self._read, pictures).result
        started, files = time.perf_counter(), self._read(pictures)
        self._took.append((time.perf_counter() - started) / len(pictures))
        if len(self._took) == TRIED:
            self._pool = ThreadPoolExecutor(min(AHEAD, max(1, round(min(self._took) / QUICK_S))))
        return lambda: files

    def _read(self, pictures: Sequence[Picture]) -> Files:
        found = []
        for name, read in pictures:
            try:
                found.append((name, read()))
            except OSError as error:
                self.unreadable[name] = error.strerror or str(error)
                found.append((name, b""))
        return found

    def close(self) -> None:
        """End the pipeline; who has no more pictures must, or the process does not end."""
        self._incoming.put(None)

    # -- what the stage sees

    def room(self) -> list[np.ndarray]:
        return []

    def read_files(self, index: int) -> Any:
        """Of the next batch; its ``result`` waits for somebody who has one, and for those before it."""
        self._asked += 1
        return SimpleNamespace(result=partial(self._next, self._asked))

    def _next(self, number: int) -> Files:
        while self._taken + 1 < number or self._incoming.empty():
            self._rest.wait(REST_S)  # so the simulator sees it wait
        part = self._incoming.get()
        if part is not None:
            part.begun_ns = self.here.clock_ns()
            self._going.append(part)
        self._taken = number
        if part is None:
            self.close()  # for whoever waits behind this one
            raise self._error
        return part.files

    def submit(self, index: int) -> Any:
        return ranges.pushed(ranges.INFER, index)

    def finish(self, index: int, host_output: np.ndarray) -> None:
        part, self._finished_s = self._going.popleft(), time.monotonic()
        with ranges.pushed(ranges.POSTPROCESS, len(part.files)):
            if part.outputs is not None:
                part.outputs.append(host_output.copy())
            classes, probabilities = map(np.ndarray.tolist, top1(host_output[: len(part.files)]))
            labels = {number: self.predictions.label(number) for number in set(classes)}
            rows: list[Row] = [(labels[number], probability, None) for number, probability in zip(classes, probabilities)]
            by_pillow = 0
            for row, (name, _) in enumerate(part.files if self.unreadable or self.decoder.left_to_pillow else ()):
                left, why = self.decoder.left_to_pillow.pop(name, None), self.unreadable.pop(name, None)
                by_pillow += left is not None and why is None
                rows[row] = rows[row] if why is None else (None, None, why)
        part.answers.put(next(races(self.here), None) or Answer(rows, part.begun_ns, self.here.clock_ns(), by_pillow))

    # -- its thread

    def _run(self, infer: Infer) -> None:
        try:
            while True:
                infer(self)
        except BaseException as error:
            self._error = error
        for part in self._going:
            part.answers.put(self._error)
        while True:
            if (late := self._incoming.get()) is not None:
                late.answers.put(self._error)

    def _test(self) -> None:
        """Hold synthetic pictures that went through the pipeline to a serial run of the same; it is warm afterwards."""
        drawn, outputs = [synthetic_jpeg(index, 0) for index in range(DRAWN)], list[np.ndarray]()
        answers, pixels = self._queue(), [np.empty_like(batch) for batch in self.batches[:TESTED]]
        parts = [[(f"{row}", drawn[(row + first) % DRAWN]) for row in range(self.size.batch)] for first in range(TESTED)]
        for files in parts:
            self._incoming.put(Part(files, answers, outputs))
        self._away()
        for _ in parts:
            self._answer(answers)
        for files, batch in zip(parts, pixels):
            self.decoder.to_host(files, batch)
        check(outputs, run_serially(self.engine, pixels))
        self._away()

    def _away(self) -> None:
        """This thread calls nothing for now, and a simulated host need not wait for it (a second of the user's, each time)."""
        if self.here.simulator is not None:
            self.here.simulator.clock.pause(self.here.simulator.clock.thread())
