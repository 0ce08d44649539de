"""The parts of a batch, each run by itself: the longest is a limit that no schedule of the same work can beat."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from common import backend
from common.buffers import DeviceBuffer, copy_to_device_async, copy_to_host_async
from common.cuda import CaptureError, Event, Stream
from common.decoders import GpuDecoder, shared_out

if TYPE_CHECKING:
    from common.run import Session

PARTS = {"h2d": "copy in", "compute": "compute", "d2h": "copy out", "postprocess": "post-processing"}
ALL_PARTS = {**PARTS, "decode": "decode"}  # a stage that reads files
ROUNDS, CAP_MS = 5, 300.0
Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]
Work = Callable[[], None]


def parts_ms(session: Session, allocate: Allocate, notes: list[str]) -> dict[str, float]:
    """Milliseconds of each part, on average over the distinct batches; the median of ``ROUNDS``, but for ``decode_ms``.

    Copies and compute are enqueued behind one another and timed by CUDA events. So that the GPU never waits for the host, each
    inference is a graph; ``notes`` is told where it could not be one. Where the pipeline has several contexts they compute
    side by side here, too.
    """
    engine, lanes = session.engine, getattr(session.options, "contexts", 1)
    batches = session.batches[: session.distinct]
    host_outputs = [allocate(engine.output_shape(len(batch)), engine.output_type(len(batch))) for batch in batches]
    largest = [max(array.nbytes for array in arrays) for arrays in (batches, host_outputs)]
    with ExitStack() as resources:
        streams = [resources.enter_context(Stream()) for _ in range(lanes)]
        buffers = [[resources.enter_context(DeviceBuffer(nbytes)) for nbytes in largest] for _ in range(lanes)]
        device_input, device_output = buffers[0]
        for (other_input, _), stream in zip(buffers, streams):
            copy_to_device_async(other_input, batches[0], stream)
        copies_in = [partial(copy_to_device_async, device_input, batch, streams[0]) for batch in batches]
        copies_out = [partial(copy_to_host_async, host, device_output, streams[0]) for host in host_outputs]
        inferences = inferences_of(session, buffers, streams, resources, notes)
        found = {"h2d": gpu_ms(copies_in, streams[:1]), "compute": gpu_ms(inferences, streams, at_cap_ms(session))}
        found["d2h"] = gpu_ms(copies_out, streams[:1])
    clock_ns, times = backend.current().clock_ns, []
    for _ in range(ROUNDS):
        started = clock_ns()
        for index in range(len(batches)):
            session.postprocess(index, session.outputs[index])
        times.append((clock_ns() - started) / 1e6 / len(batches))
    return {**found, "postprocess": median(times), **decode_ms(session)}


def decode_ms(session: Session) -> dict[str, float]:
    """Of a stage that reads files, the time in which its decoder by itself does a batch, on as many threads as there, without a
    pause. The GPU's takes the files over the link in that time, and leaves no copy of pixels."""
    if session.source is None:
        return {}
    clock_ns, decoder = backend.current().clock_ns, session.decoder
    files = [session.read_files(index).result() for index in range(session.distinct)]
    count = len(files) * (1 if backend.current().simulator else ROUNDS * decoder.threads)
    turns, pixels = iter(range(count)), session.batches[0].nbytes
    with ExitStack() as resources:
        opened = resources.enter_context
        lanes = [(opened(DeviceBuffer(pixels)), opened(Stream())) for _ in range(decoder.threads)]

        def decode(lane: tuple[DeviceBuffer, Stream]) -> None:
            try:
                for turn in turns:  # each thread takes the next
                    own = turn % len(files)
                    if isinstance(decoder, GpuDecoder):
                        decoder.decode(files[own], *lane)
                        lane[1].synchronize()
                    else:
                        decoder.decode(files[own], session.batches[own])
            finally:
                deque(turns, 0)  # there are none left, or nobody is to go on

        spread, started = shared_out(decoder.threads, resources), clock_ns()
        list(spread(decode, lanes))
        found = {"decode": (clock_ns() - started) / 1e6 / count}
    return {**found, **({"h2d": 0.0} if isinstance(decoder, GpuDecoder) else {})}


def inferences_of(
    session: Session, buffers: Sequence[list[DeviceBuffer]], streams: Sequence[Stream], resources: ExitStack, notes: list[str]
) -> list[Work]:
    """What enqueues each batch's inference, on the streams in turn: a graph's launch, or the enqueue where it cannot be one."""
    engine, batches, known = session.engine, session.batches[: session.distinct], dict[tuple[int, int], Work]()
    for index, batch in enumerate(batches):
        lane = index % len(streams)
        if (lane, len(batch)) in known:
            continue
        stream, context = streams[lane], engine.create_context(engine.profile_for(len(batch)))
        context.set_input_shape(batch.shape)
        context.bind(*buffers[lane])
        context.execute_async_v3(stream)  # TensorRT initialises here
        try:
            with stream.capture() as graph:
                context.execute_async_v3(stream)
            known[lane, len(batch)] = partial(resources.enter_context(graph).launch, stream)
            resources.enter_context(nullcontext(context))  # is kept: its activations are the graph's memory
        except CaptureError as error:
            notes.append(f"not captured, so compute by itself was timed with its launches: {error}")
            known[lane, len(batch)] = partial(context.execute_async_v3, stream)
    return [known[index % len(streams), len(batch)] for index, batch in enumerate(batches)]


def at_cap_ms(session: Session) -> float:
    """How long kernels must have been at work to be timed at the clock that the window had: a power cap takes a while to hold
    it down. Nothing where no cap did."""
    return CAP_MS if "power cap" in ((session.read.get("gpu") or {}).get("throttled") or ()) else 0.0


def gpu_ms(work: Sequence[Work], streams: Sequence[Stream], lead_ms: float = 0.0) -> float:
    """GPU time of each piece of ``work``, which is enqueued on ``streams`` again and again: the median turn. The first is not
    timed, as it lets the host run ahead, nor those of ``lead_ms`` before it."""
    (first, *others), clock_ns = streams, backend.current().clock_ns
    with ExitStack() as resources:
        rounds = 1 if backend.current().simulator else ROUNDS
        marks = [resources.enter_context(Event(timing=True)) for _ in range(rounds + 1)]
        joined = resources.enter_context(Event())

        def enqueue_all() -> None:
            for enqueue in work:
                enqueue()
            for stream in others:
                joined.record(stream)
                first.wait(joined)

        started_ns = clock_ns()
        while clock_ns() - started_ns < lead_ms * 1e6:
            enqueue_all()
            first.synchronize()
        for mark in marks:
            enqueue_all()
            mark.record(first)
            for stream in others:
                stream.wait(mark)
        marks[-1].synchronize()
        return median(end.ms_since(begin) for begin, end in zip(marks, marks[1:])) / len(work)
