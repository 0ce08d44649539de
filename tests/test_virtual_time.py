"""Virtual time against closed forms: a serial loop costs the sum of its parts, a pipeline the longest part and its fill."""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Lock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import clock, cudart, simulator
from sim.clock import Timetable
from sim.work import Piece, Work

MS = 1_000_000
durations = st.integers(1, 20).map(lambda ms: ms * MS)


@pytest.fixture(autouse=True)
def quiet_costs():
    """A device whose calls cost nothing, so that only the operations' own times remain."""
    yield
    simulator.start().close()


def start():
    sim = simulator.start("v100-sxm2-32gb")  # its engines take over from one another at once
    device = sim.device
    for cost in ("call", "wake_up", "range"):
        object.__setattr__(device, cost, 0)
    sim.hooks.queue_ns = sim.hooks.wake_ns = 0
    object.__setattr__(device, "calls", {})
    object.__setattr__(device, "copy_slows_compute", 0.0)
    return sim


def stream(sim):
    return sim.lookup(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking)[1], simulator.Stream)


def event(sim):
    return sim.lookup(cudart.cudaEventCreate()[1], simulator.Event)


def put(sim, on, engine, duration):
    with sim.clock.turn():
        return sim.gpu.enqueue(on, Work(engine, (Piece(engine, duration),)))


def record(sim, what, on):
    with sim.clock.turn():
        sim.gpu.record(what, on)


def wait_event(sim, on, what):
    with sim.clock.turn():
        sim.gpu.wait_event(on, what)


def now(sim):
    cudart.cudaDeviceSynchronize()
    return sim.clock.thread().now


@settings(max_examples=60)
@given(st.lists(st.tuples(durations, durations, durations), min_size=1, max_size=8))
def test_a_serial_loop_takes_the_sum(batches):
    sim = start()
    one = stream(sim)
    for h2d, compute, d2h in batches:
        for engine, duration in (("h2d", h2d), ("compute", compute), ("d2h", d2h)):
            put(sim, one, engine, duration)
    assert now(sim) == sum(map(sum, batches))


@settings(max_examples=60)
@given(durations, durations, durations, st.integers(1, 10))
def test_a_pipeline_takes_the_longest_part_a_batch_and_the_fill(h2d, compute, d2h, count):
    """Three stages, enough slots: fill with the first batch, then one more of the longest part a batch."""
    sim = start()
    streams = [stream(sim) for _ in range(3)]
    for _ in range(count):
        done = [event(sim) for _ in range(2)]
        put(sim, streams[0], "h2d", h2d)
        record(sim, done[0], streams[0])
        wait_event(sim, streams[1], done[0])
        put(sim, streams[1], "compute", compute)
        record(sim, done[1], streams[1])
        wait_event(sim, streams[2], done[1])
        put(sim, streams[2], "d2h", d2h)
    assert now(sim) == h2d + compute + d2h + (count - 1) * max(h2d, compute, d2h)


@settings(max_examples=40)
@given(durations, durations, st.integers(2, 8))
def test_two_slots_refilled_when_consumed_overlap_copy_and_compute(h2d, compute, count):
    """The copy of batch i+2 waits until batch i is consumed; with two slots that never costs anything."""
    sim = start()
    copy, kernels = stream(sim), stream(sim)
    copied, consumed = [event(sim) for _ in range(2)], [event(sim) for _ in range(2)]
    for index in range(count):
        slot = index % 2
        wait_event(sim, copy, consumed[slot])
        put(sim, copy, "h2d", h2d)
        record(sim, copied[slot], copy)
        wait_event(sim, kernels, copied[slot])
        put(sim, kernels, "compute", compute)
        record(sim, consumed[slot], kernels)
    assert now(sim) == h2d + compute + (count - 1) * max(h2d, compute)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 10)), min_size=1, max_size=20))
def test_an_engine_does_one_thing_at_a_time(requests):
    engine = Timetable()
    booked = sorted(engine.reserve(ready, duration) for ready, duration in requests)
    assert all(start >= 0 and end > start for start, end in booked)
    assert all(first[1] <= second[0] for first, second in zip(booked, booked[1:]))
    lowest = min(ready for ready, _ in requests)
    assert booked[-1][1] <= max(ready for ready, _ in requests) + sum(duration for _, duration in requests)
    assert engine.busy_between(lowest, booked[-1][1]) == sum(duration for _, duration in requests)


def test_a_copy_beside_kernels_slows_them_by_the_device_s_share():
    sim = simulator.start()
    object.__setattr__(sim.device, "copy_slows_compute", 0.1)
    copy, kernels = stream(sim), stream(sim)
    put(sim, copy, "h2d", 10 * MS)
    first = put(sim, kernels, "compute", 8 * MS)
    second = put(sim, kernels, "compute", 8 * MS)
    assert first.end - first.start == 8 * MS  # what it is slowed by is charged to the next
    assert second.end - second.start == pytest.approx(8 * MS + 0.1 * 8 * MS, rel=0.01)


def test_a_copy_takes_bytes_over_bandwidth():
    sim = start()
    nbytes = 1 << 22
    device = cudart.cudaMalloc(nbytes)[1]
    pinned = cudart.cudaMallocHost(nbytes)[1]
    before = now(sim)
    cudart.cudaMemcpy(device, pinned, nbytes, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)
    rate = sim.device.copy_rates["h2d", "pinned"]
    assert sim.clock.thread().now - before == pytest.approx(nbytes / rate + sim.device.copy_latency, abs=2)


def test_what_is_charged_scales_with_the_charged_batch():
    times = []
    for scale in (1, 16):
        sim = simulator.start(scale=scale)
        object.__setattr__(sim.device, "wake_up", 0)
        device, pinned = cudart.cudaMalloc(1 << 20)[1], cudart.cudaMallocHost(1 << 20)[1]
        before = sim.clock.thread().now
        cudart.cudaMemcpy(device, pinned, 1 << 20, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)
        times.append(sim.clock.thread().now - before - sim.device.copy_latency - sim.device.calls["cudaMemcpy"])
    assert times[1] == pytest.approx(16 * times[0], rel=1e-4)


def test_a_host_that_waited_goes_on_after_its_wake_up():
    sim = start()
    object.__setattr__(sim.device, "wake_up", 7000)
    one = stream(sim)
    put(sim, one, "compute", 5 * MS)
    assert now(sim) == 5 * MS + 7000
    assert now(sim) == 5 * MS + 7000  # nothing to wait for, nobody to wake


# -- host threads


def test_a_thread_that_waited_goes_on_after_its_wake_up():
    sim = start()
    sim.hooks.queue_ns, sim.hooks.wake_ns = 1000, 9000
    q, seen = queue.Queue(), []

    def consume():
        for _ in range(2):
            q.get()
            seen.append(sim.clock.thread().now)

    thread = threading.Thread(target=consume)
    thread.start()
    put(sim, sim.gpu.legacy, "compute", 4 * MS)
    cudart.cudaDeviceSynchronize()
    for _ in range(2):
        q.put("item")
    thread.join()
    # the first is waited for; the second is there already when the consumer asks
    assert seen == [4 * MS + 1000 + 9000, 4 * MS + 1000 + 9000 + 1000]


def test_a_thread_starts_at_its_parent_s_time_and_join_waits_for_its_end():
    sim = start()
    one = stream(sim)

    def work():
        put(sim, one, "compute", 5 * MS)
        cudart.cudaStreamSynchronize(one.handle)

    put(sim, sim.gpu.legacy, "compute", 3 * MS)
    cudart.cudaDeviceSynchronize()
    thread = threading.Thread(target=work)
    thread.start()
    assert sim.clock.thread().now == 3 * MS
    thread.join()
    assert sim.clock.thread().now == 8 * MS


def test_taking_from_a_queue_goes_on_when_the_item_was_put():
    sim = start()
    one, q, seen = stream(sim), queue.Queue(), []

    def consume():
        q.get()
        seen.append(sim.clock.thread().now)

    thread = threading.Thread(target=consume)
    thread.start()
    put(sim, one, "compute", 4 * MS)
    cudart.cudaStreamSynchronize(one.handle)
    q.put("item")
    thread.join()
    assert seen == [4 * MS]


def test_a_bounded_queue_holds_the_faster_side_back():
    """The producer may be no more than the queue's size ahead of a consumer that takes 2 ms an item."""
    sim = start()
    one, q, produced = stream(sim), queue.Queue(2), []

    def consume():
        for _ in range(6):
            q.get()
            put(sim, one, "compute", 2 * MS)
            cudart.cudaStreamSynchronize(one.handle)

    thread = threading.Thread(target=consume)
    thread.start()
    for _ in range(6):
        q.put(None)
        produced.append(sim.clock.thread().now)
    thread.join()
    assert produced == [0, 0, 0, 2 * MS, 4 * MS, 6 * MS]


def test_one_thread_at_a_time_runs_python():
    """Two threads whose calls are all Python's share take turns with the interpreter; the driver's share runs side by side."""
    for python, driver, expected in ((MS, 0, 20 * MS), (0, MS, 10 * MS)):
        sim = start()
        object.__setattr__(sim.device, "call", python)
        object.__setattr__(sim.device, "calls", {"cudaGetDevice": python + driver})
        threads = [threading.Thread(target=lambda: [cudart.cudaGetDevice() for _ in range(10)]) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sim.clock.thread().now == expected


@pytest.mark.parametrize("kind", ["event", "semaphore"])
def test_events_and_semaphores_carry_time(kind):
    sim = start()
    one, seen = stream(sim), []
    primitive = threading.Event() if kind == "event" else threading.Semaphore(0)

    def waits():
        primitive.wait() if kind == "event" else primitive.acquire()
        seen.append(sim.clock.thread().now)

    thread = threading.Thread(target=waits)
    thread.start()
    put(sim, one, "compute", 4 * MS)
    cudart.cudaStreamSynchronize(one.handle)
    primitive.set() if kind == "event" else primitive.release()
    thread.join()
    assert seen == [4 * MS]


def test_that_an_executor_asks_for_an_idle_thread_takes_no_time():
    sim = start()
    sim.hooks.wake_ns = 1000
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            pool.submit(int)
            assert sim.clock.thread().now == 0


def test_who_asks_until_a_future_is_done_is_as_late_as_it():
    sim = start()
    sim.hooks.wake_ns = 1000
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: put(sim, stream(sim), "compute", 7 * MS) and now(sim))
        while not future.done():
            pass
        assert 7 * MS <= sim.clock.thread().now <= 7 * MS + 3000


def test_names_that_the_script_has_imported_before_it_starts():
    """They order threads as those do that it imports later; and afterwards they mean what they did."""
    start().close()  # some other test's, in whose time this module may have been imported
    real = queue.SimpleQueue, threading.Lock
    globals().update(SimpleQueue=real[0], Lock=real[1])
    sim, replies, lock = start(), SimpleQueue(), Lock()
    address = cudart.cudaMallocHost(64)[1]
    array = np.frombuffer((ctypes.c_byte * 64).from_address(address), np.uint8)

    def read():
        array.sum()
        replies.put(1)

    def read_under_the_lock():
        with lock:
            replies.put(1)
            array.sum()

    for reading in (read, read_under_the_lock):
        threading.Thread(target=reading).start()
        replies.get()
        with lock if reading is read_under_the_lock else contextlib.nullcontext():
            array[:] = 1
    assert sim.gpu.races.found() == []
    sim.close()
    assert (SimpleQueue, Lock) == real


def test_a_thread_is_the_scripts_whosever_number_it_has():
    """The system gives a new thread the number of one that was there before the simulator and has ended since."""
    ended = threading.Event()
    before = threading.Thread(target=ended.wait)
    before.start()
    sim, number, numbers = start(), before.ident, []
    ended.set()
    before.join()
    array = np.frombuffer((ctypes.c_byte * 64).from_address(cudart.cudaMallocHost(64)[1]), np.uint8)
    for _ in range(100):
        replies = SimpleQueue()

        def read(replies=replies):
            numbers.append(threading.get_ident())
            array.sum()
            replies.put(1)

        threading.Thread(target=read).start()
        replies.get()
        array[:] = 1
    if number not in numbers:
        pytest.skip("this system gave no number twice")
    assert sim.gpu.races.found() == []


def test_threads_take_turns_in_virtual_time():
    """However the operating system schedules them, calls are made in the order of the threads' clocks."""
    for _ in range(5):
        sim = start()
        object.__setattr__(sim.device, "calls", {"cudaGetDevice": MS})
        order = []

        def work(name, order=order, sim=sim):
            for _ in range(20):
                cudart.cudaGetDevice()
                order.append((sim.clock.thread().now, name))

        threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [time for time, _ in order] == sorted(time for time, _ in order)
        assert sim.clock.thread().now == 20 * MS


@settings(max_examples=40)
@given(st.lists(st.tuples(durations, durations, durations), min_size=1, max_size=6), st.integers(1, 50))
def test_an_engine_takes_over_from_another_after_the_handover(batches, handover):
    """On one stream, three engines in turn change hands between any two operations; events pass it on to other streams."""
    sim = start()
    object.__setattr__(sim.device, "handover", handover)
    one, streams, done = stream(sim), [stream(sim) for _ in range(3)], event(sim)
    total = sum(map(sum, batches)) + handover * (3 * len(batches) - 1)
    for parts in batches:
        for engine, duration in zip(("h2d", "compute", "d2h"), parts):
            put(sim, one, engine, duration)
    assert now(sim) == total
    for parts in batches:
        for on, engine, duration in zip(streams, ("h2d", "compute", "d2h"), parts):
            wait_event(sim, on, done)
            put(sim, on, engine, duration)
            record(sim, done, on)
    assert now(sim) == 2 * total


def test_the_same_engine_goes_on_at_once():
    sim = start()
    object.__setattr__(sim.device, "handover", 7)
    one, other, done = stream(sim), stream(sim), event(sim)
    put(sim, one, "compute", 100)
    record(sim, done, one)
    wait_event(sim, other, done)
    put(sim, other, "compute", 100)
    assert now(sim) == 200


@pytest.mark.parametrize("before, expected", [(0, 2 * 10 * 9), (20, 20 + 5 * 4 + 2 * 9 * 5), (40, 40 + 10 * 4)])
def test_threads_that_launch_at_once_take_turns_at_a_price(before, expected):
    """Ten launches of 4 ns each by two threads, the second of which comes ``before`` ns late; 9 ns while both are at it."""
    sim = start()
    object.__setattr__(sim.device, "kernel_launch", 4)
    object.__setattr__(sim.device, "crowded_launch", 9)
    streams = [stream(sim) for _ in range(2)]
    ends = []

    def launch(on, late):
        sim.clock.thread().now += late
        with sim.clock.turn() as thread:
            sim.gpu.enqueue(on, Work("compute", (Piece("kernel", 1),) * 10), launches=True)
            ends.append(thread.now)

    threads = [threading.Thread(target=launch, args=(on, late)) for on, late in zip(streams, (0, before))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(ends) == pytest.approx(expected, abs=10)
    calls = sorted((start, end) for start, end, name, *_ in sim.trace.calls if name == "cudaLaunchKernel")
    assert len(calls) == 20 and all(one[1] <= other[0] for one, other in zip(calls, calls[1:]))  # one at a time
    assert len({call[4] for call in sim.trace.calls}) == len(sim.trace.calls)  # each call has a number of its own


def test_several_threads_on_one_queue_give_the_same_times_in_every_run():
    """Who takes an item, who finds the queue full, and when, is decided by virtual time alone."""
    found = set()
    for _ in range(10):
        sim = start()
        object.__setattr__(sim.device, "call", 1000)
        sim.hooks.queue_ns, sim.hooks.wake_ns = 700, 9000
        streams, q, results = [stream(sim) for _ in range(4)], queue.Queue(3), queue.Queue()

        def work(number, sim=sim, streams=streams, q=q, results=results):
            while (item := q.get()) is not None:
                put(sim, streams[number], "compute", (item % 3 + 1) * MS)
                cudart.cudaStreamSynchronize(streams[number].handle)
                results.put((item, number, sim.clock.thread().now))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for item in [*range(40), None, None, None, None]:
            q.put(item)
        for thread in threads:
            thread.join()
        found.add((tuple(results.get() for _ in range(40)), sim.clock.thread().now))
    assert len(found) == 1


def test_a_thread_pool_gives_the_same_times_in_every_run():
    found = set()
    for _ in range(10):
        sim = start()
        object.__setattr__(sim.device, "call", 1000)
        sim.hooks.queue_ns, sim.hooks.wake_ns = 700, 9000

        def work(item, sim=sim):
            one = stream(sim)
            put(sim, one, "compute", (item % 3 + 1) * MS)
            cudart.cudaStreamSynchronize(one.handle)
            return item, sim.clock.thread().now

        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(work, item) for item in range(20)]
            found.add((tuple(future.result() for future in futures), sim.clock.thread().now))
    assert len(found) == 1


def test_two_executors_do_not_wait_for_each_others_turn_and_lock(monkeypatch):
    monkeypatch.setattr(clock, "STALL_S", 20)  # which one thread would be given up on
    sim = simulator.start("h200")
    begun = time.monotonic()

    def work() -> None:
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(cudart.cudaGetDevice) for _ in range(40)]:
                done.result()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begun < 10
    sim.close()
