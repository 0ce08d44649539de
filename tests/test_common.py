"""What the lessons are built on, one piece at a time, on the simulated CUDA runtime and in this process."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import backend, images, options, parts, plans, verify
from common.buffers import (
    DeviceBuffer,
    Slot,
    copy_to_device,
    copy_to_device_async,
    copy_to_host,
    copy_to_host_async,
    page_locked,
    pageable,
)
from common.checked import TensorRTError, require
from common.clock import Instruments, undisturbed
from common.cuda import CaptureError, CudaError, Event, Stream, cudart
from common.engine import Engine
from common.errors import EnvironmentFault, UsageFault, WrongOutputs, reason
from common.files import atomic_path, check_writable, read_json, sha256, write_json
from common.layers import layer_precision
from common.postprocess import Predictions
from common.record import Conditions, Record, Window
from common.session import PILOT, Session, batch_sizes, describe, measured_batches
from sim.enums import cudaError_t
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """A fresh simulated backend."""
    monkeypatch.setattr(backend, "_current", None)
    chosen = backend.select("simulated")
    yield chosen
    chosen.simulator.close()


# -- buffers


def test_what_is_copied_in_comes_back():
    array = np.arange(1000, dtype=np.float32)
    back = page_locked(array.shape)
    with DeviceBuffer(array.nbytes) as buffer:
        copy_to_device(buffer, array)
        copy_to_host(back, buffer)
    assert (back == array).all() and buffer.address == 0


@pytest.mark.parametrize("host", [np.zeros(9, np.uint8), np.zeros((4, 4), np.uint8)[:, :2]])
def test_a_copy_that_cannot_fit_is_refused(host):
    with DeviceBuffer(8) as buffer, pytest.raises(ValueError, match="cannot copy between 8 bytes"):
        copy_to_device(buffer, host)


def test_page_locked_memory_lives_as_long_as_a_view_of_it(here):
    view = page_locked((8, 8))[2:4]
    gc.collect()
    assert here.leaks()
    view[:] = 1
    del view
    assert not here.leaks()


def test_pageable_memory_has_been_touched():
    assert not pageable((100, 100)).any()


def test_a_slot_belongs_to_the_stack_that_it_is_given(here):
    run = SimpleNamespace(batches=[np.zeros((2, 3), np.float32)], output_shape=(2, 5), output_type=np.float32)
    with ExitStack() as resources:
        slot = Slot(run, resources)
        assert (slot.device_input.nbytes, slot.device_output.nbytes, slot.host_output.shape) == (24, 40, (2, 5))
    del slot
    assert not here.leaks()


# -- CUDA


def test_a_failed_call_raises_with_its_name_and_cuda_s_text():
    with pytest.raises(CudaError, match=r"cudaStreamSynchronize failed: cudaErrorInvalidResourceHandle \(invalid resource"):
        cudart.cudaStreamSynchronize(77)


def test_closing_twice_is_closing_once(here):
    stream, event = Stream(), Event()
    for thing in (stream, event, stream, event):
        thing.close()
    assert not here.leaks()


def test_a_captured_graph_runs_as_often_as_it_is_launched(here):
    source, target = page_locked((16,)), page_locked((16,))
    with DeviceBuffer(64) as buffer, Stream() as stream:
        with stream.capture() as graph:
            copy_to_host_async(target, buffer, stream)
        for value in (1, 2):
            source[:], target[:] = value, 0
            copy_to_device(buffer, source)
            graph.launch(stream)
            stream.synchronize()
            assert (target == value).all()
        graph.close()
    del source, target
    assert not here.leaks()


@pytest.mark.parametrize("what", ["a CUDA error", "a TensorRT error", "another thing"])
def test_a_capture_that_fails_leaves_nothing_behind(here, what):
    """The stream works on, no error is left for somebody else, and what was not CUDA's fault stays what it is."""
    expected = {"another thing": ZeroDivisionError}.get(what, CaptureError)
    with Stream() as stream:
        with pytest.raises(expected), stream.capture():
            if what == "a CUDA error":
                cudart.cudaStreamSynchronize(stream.handle)
            elif what == "a TensorRT error":
                raise TensorRTError("enqueue failed")
            else:
                1 / 0  # noqa: B018
        assert here.cudart.cudaGetLastError()[0] == 0
        stream.synchronize()
        with stream.capture() as graph:
            pass
        graph.close()
    assert not here.leaks()


def test_where_more_than_the_capture_is_broken_that_is_what_is_said(monkeypatch):
    with Stream() as stream:
        drained = stream.synchronize

        def broken():
            drained()
            raise CudaError("cudaStreamSynchronize", 700, "cudaErrorIllegalAddress", "an illegal memory access")

        monkeypatch.setattr(stream, "synchronize", broken)
        with pytest.raises(TensorRTError, match="the first error"), stream.capture():
            raise TensorRTError("the first error")


# -- engines and plans


def test_none_and_false_are_errors_with_tensorrt_s_reason():
    for answer in (None, False):
        with pytest.raises(TensorRTError, match="enqueue failed: TensorRT gave no reason"):
            require(answer, "enqueue")
    assert require(0, "a count") == 0


def test_a_batch_gets_the_smallest_profile_that_takes_it_and_of_two_the_one_for_its_size(checkout, tmp_path):
    plan = tmp_path / "three.plan"
    profiles = ("--profile", "1,64,128", "--profile", "1,8,16", "--profile", "1,128,128")
    done = checkout.run("0_build.py", "--backend", "simulated", "--onnx-file", "tiny.onnx", *profiles, "--output", plan)
    assert done.returncode == 0, done.stderr
    engine = Engine(plan)
    assert engine.profiles == [(1, 64, 128), (1, 8, 16), (1, 128, 128)]
    assert engine.facts["profiles"] == [[1, 64, 128], [1, 8, 16], [1, 128, 128]]
    assert [engine.profile_for(batch) for batch in (1, 16, 17, 100, 128, 129)] == [1, 1, 0, 2, 2, None]
    with pytest.raises(EnvironmentFault, match="has no profile"):
        engine.create_context(engine.profile_for(129))


def test_the_usual_profile_is_the_one_for_128(here, monkeypatch):
    asked = []
    monkeypatch.setattr(plans, "unusable", lambda plan, shown: "no plan")
    monkeypatch.setattr(plans, "build", lambda shown, options, why: asked.extend(options))
    plans.default_plan("fp16", [16, 128])
    assert asked == ["--fp16", "--profile", "1,16,16", "--profile", "1,128,256"]


def test_a_cuda_error_is_no_reason_to_build_a_plan_again(checkout, here, monkeypatch):
    here.simulator.fail_at(1)
    with pytest.raises(CudaError, match="cudaGetDeviceProperties failed"):
        plans.unusable(checkout.tiny, checkout.tiny)


def test_the_first_error_is_the_one_reported(here):
    """What fails in the clean-up after it is a note of it; and a lasting error has the name of the call that met it first."""
    with pytest.raises(TensorRTError, match="enqueue failed") as raised, Stream(), Event():
        here.simulator.failures = dict.fromkeys(range(100), cudaError_t.cudaErrorIllegalAddress)
        require(False, "enqueue")
    notes = raised.value.__notes__
    assert [note.split()[3] for note in notes] == ["cudaEventDestroy"] * 2 and here.leaks()
    here.simulator.failures = {}
    assert cudart.cudaMemGetInfo() and cudart.failing is None


def test_why_a_default_plan_is_built_again(checkout, tmp_path, monkeypatch):
    """After an upgrade, or a new export, the ladder's own plans are as good as missing."""
    monkeypatch.setattr(plans, "ROOT", tmp_path)
    plan = tmp_path / "tiny.plan"
    assert "no plan tiny.plan yet" in plans.unusable(plan, plan.relative_to(tmp_path))
    plan.write_bytes(checkout.tiny.read_bytes())
    facts = read_json(plans.sidecar(checkout.tiny))
    write_json(plans.sidecar(plan), facts)
    assert plans.unusable(plan, plan) is None
    write_json(plans.sidecar(plan), {**facts, "tensorrt": "TensorRT 8.0"})
    assert "was built by TensorRT 8.0" in plans.unusable(plan, plan)
    for profile in ([0, 0, 0], [-1, 1, 1], [True, 1, 1], [1, 1]):
        write_json(plans.sidecar(plan), {**facts, "profiles": [profile]})
        assert "is not what 0_build.py writes" in plans.unusable(plan, plan)
    write_json(plans.sidecar(plan), facts)
    write_json(tmp_path / "models" / f"{facts['onnx']}.json", {"sha256": "another"})
    assert f"was built from an earlier {facts['onnx']}" in plans.unusable(plan, plan)


@pytest.mark.parametrize(
    "layer, precision",
    [
        ({"Outputs": [{"Format/Datatype": "Half"}]}, "fp16"),
        ({"Outputs": [{"Format/Datatype": "N/A"}], "TacticName": "sm90_xmma_fprop_f16f16_f16"}, "fp16"),
        ({"LayerType": "Reformat", "Outputs": [{"Format/Datatype": "FP32"}]}, None),
        ("only a name", None),
    ],
)
def test_a_layer_s_precision_as_the_inspector_tells_it(layer, precision):
    assert layer_precision(layer) == precision


# -- a run


def session(checkout, batches: int = 4, measure: int = 2, instruments: Instruments | None = None) -> Session:
    engine = Engine(checkout.tiny)
    arrays = [images.noise_images(range(2 * index, 2 * index + 2), (3, 32, 32), 1) for index in range(batches)]
    names = [[f"{index}-{row}" for row in range(2)] for index in range(batches)]
    chosen = argparse.Namespace(no_verify=False, no_controls=False, precision="fp16")
    return Session(engine, arrays, names, chosen, measure, instruments)


def test_batches_are_finished_in_order(checkout):
    run = session(checkout)
    run.finish(0, np.zeros((2, 10), np.float32))
    with pytest.raises(AssertionError, match="batch 2 finished after 0"):
        run.finish(2, np.zeros((2, 10), np.float32))


def test_the_window_is_from_the_last_warm_up_batch_to_the_last(checkout, here):
    run = session(checkout)
    for index in range(4):
        here.simulator.clock.thread().now = (index + 1) ** 2 * 1_000_000
        with run.submit(index):
            pass
        run.finish(index, np.zeros((2, 10), np.float32))
    assert run.window_ms == pytest.approx(16 - 4, rel=0.01) and run.window_ms == pytest.approx(sum(run.intervals_ms))
    assert run.measured == 2 and len(run.intervals_ms) == 2
    rows = list(run.predictions.first(6))
    assert [row["image"] for row in rows] == [f"{index}-{row}" for index in range(3) for row in range(2)]


@pytest.mark.parametrize("measured, depth, short", [(9, 1, True), (10, 1, False), (29, 3, True), (30, 3, False)])
def test_a_record_is_of_the_measured_batches_and_says_if_they_are_few(checkout, here, measured, depth, short):
    """Most batches warm up, and are submitted slowly; the others in 1 ms each. A window is short under ten times the depth."""
    count = 2 * measured + 1
    run, clock = session(checkout, batches=count, measure=measured), here.simulator.clock.thread()
    for index in range(count):
        with run.submit(index):
            clock.now += 1_000_000 if index >= count - measured else 50_000_000
        if index >= depth - 1:
            run.finish(index - depth + 1, np.zeros((2, 10), np.float32))
    for index in range(count + 1 - depth, count):
        run.finish(index, np.zeros((2, 10), np.float32))
    found = describe(run, "x", options.Size(2, 2), None)
    assert found.submit_ms == pytest.approx(1.0, rel=0.05) and found.input == "float32"
    assert [f"{measured} batches, with up to {depth} on their way" in note for note in found.notes] == [True] * short


def test_latency_is_from_a_batch_s_first_work_and_depth_is_what_is_on_its_way(checkout, here):
    run, clock = session(checkout, batches=6, measure=3), here.simulator.clock.thread()
    for index in range(6):  # submitted two ahead of what is finished; batch 5's copy in even before batch 4
        for each in (5, 4) if index == 4 else (index,):
            clock.now += 1_000_000
            run.begin(each)
        with run.submit(index):
            pass
        if index >= 2:
            clock.now += 3_000_000
            run.finish(index - 2, np.zeros((2, 10), np.float32))
    for index in (4, 5):
        clock.now += 3_000_000
        run.finish(index, np.zeros((2, 10), np.float32))
    assert run.depth == 3
    assert run.latencies_ms == pytest.approx([19 - 7, 22 - 12, 25 - 11], abs=0.2)


@pytest.mark.parametrize(
    "words, batch_ms, depth, turn, batches",
    [
        ([], 12.5, 1, 1, 100),  # a second would be fewer
        ([], 1.39, 3, 1, 864),  # whole turns of three slots
        ([], 0.5, 4, 2, 2400),
        ([], 0.2, 1, 3, 6000),  # of three sizes
        (["--measure", "7"], 1.0, 1, 1, 7),
        (["--batches", "30"], 1.0, 1, 1, 20),
        (["--batches", "6"], 1.0, 1, 1, 3),
    ],
)
def test_a_window_on_a_gpu_lasts_a_second(monkeypatch, words, batch_ms, depth, turn, batches):
    pilots = []

    def pilot(count: int) -> argparse.Namespace:
        pilots.append(count)
        slow = 3 if count == PILOT else 1  # the first batches of a process
        return argparse.Namespace(window_ms=slow * count * batch_ms, measured=count, depth=depth)

    monkeypatch.setattr(backend, "current", lambda: argparse.Namespace(simulator=None))
    found = measured_batches(options.parser("").parse_args(words), pilot, turn)
    assert found == batches and len(pilots) <= 2
    assert not pilots or pilots[-1] * batch_ms >= 30  # the window is not planned from a handful of batches


def test_a_control_on_another_engine_is_verified_and_noted(checkout):
    def serve(run: Session) -> None:
        outputs = verify.run_serially(run.engine, run.batches)
        for index, output in enumerate(outputs):
            run.finish(index, output)

    pilot = session(checkout)
    serve(pilot)
    pilot.control(serve, lambda: pytest.fail("a pilot needs no control"), "as a control")
    with ExitStack() as resources:
        run = session(checkout, instruments=Instruments(resources))
        serve(run)
    run.control(serve, lambda: checkout.tiny, "as a control")
    assert run.notes[0].startswith("batch 2: ") and run.notes[0].endswith("as a control")
    run.options.no_controls = True
    run.control(serve, lambda: pytest.fail("later runs need none"), "as a control")
    run.options.no_controls = False
    run.outputs[1][:] += 1
    with pytest.raises(WrongOutputs, match="batch 1 differs"):
        run.control(serve, lambda: checkout.tiny, "as a control")


def test_sizes_are_the_batch_unless_a_stage_has_several():
    size = options.Size(128, 128)
    assert batch_sizes(argparse.Namespace(), size) == [128]
    assert batch_sizes(argparse.Namespace(sizes=None), size) == [16, 128]
    assert batch_sizes(argparse.Namespace(sizes=[1, 2, 3]), size) == [1, 2, 3]
    assert batch_sizes(argparse.Namespace(sizes=None), options.Size(2, 2)) == [1, 2]


def test_differences_are_of_the_whole_and_name_the_batch():
    one, other = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    assert verify.check([one], [other]).largest == 0
    other[2, 2] = 0.5
    with pytest.raises(WrongOutputs, match=r"batch 1 differs .* by 0\.5 .*top-1 the same on 100%"):
        verify.check([one, one], [one, other])
    assert verify.compare([np.full((1, 4), np.nan)], [one[:1]]).largest == float("inf")
    near = np.array([[1.0, 1.001]], np.float32), np.array([[1.001, 1.0]], np.float32)
    found = verify.check([one[:3], near[0]], [one[:3], near[1]])
    assert found.same_top1 == 0.75 and found.largest == pytest.approx(0.001, rel=1e-3)


# -- options


@pytest.mark.parametrize(
    "words, batch, charged", [([], 8, 128), (["--batch", "4"], 4, 4), (["--batch", "4", "--charge-batch", "64"], 4, 64)]
)
def test_what_is_computed_and_what_is_charged(words, batch, charged):
    chosen = options.parser("").parse_args(["--backend", "simulated", *words])
    here, size = options.select_backend(chosen)
    assert (size.batch, size.charged, here.scale) == (batch, charged, charged / batch)
    here.simulator.close()


def test_an_unknown_device_is_the_user_s_mistake():
    with pytest.raises(UsageFault, match="there are h200"):
        backend.select("simulated", "gtx")


@pytest.mark.parametrize("text", ["0", "-3", "x"])
def test_a_count_is_positive(text):
    with pytest.raises((argparse.ArgumentTypeError, ValueError)):
        options.positive(text)


# -- files and records


def test_a_file_gets_its_mode_without_the_process_s_umask(tmp_path, monkeypatch):
    """To ask for that is to set it, for all threads: of 4,000 files that eight threads wrote, three were for all to write."""
    monkeypatch.setattr("os.umask", lambda mask: pytest.fail("the umask was set"))
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "result.json"
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half of")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1} and path.stat().st_mode & 0o777 == 0o644
    before = sha256(path)
    write_json(path, {"a": 2})
    assert sha256(path) != before
    assert read_json(tmp_path / "none.json") == {} and read_json(tmp_path) == {}


def test_what_cannot_be_written_is_said_before_the_run(tmp_path):
    check_writable(None, tmp_path / "fine.json")
    with pytest.raises(EnvironmentFault, match="cannot write"):
        check_writable(tmp_path / "no" / "folder.json")
    (tmp_path / "link.json").symlink_to("fine.json")
    (tmp_path / "sub").mkdir()
    for other in ("link.json", "sub/../fine.json"):
        with pytest.raises(UsageFault, match="two results cannot be one file"):
            check_writable(tmp_path / "fine.json", tmp_path / other)
        with pytest.raises(UsageFault, match="is what the run reads"):
            check_writable(tmp_path / other, kept=[tmp_path / "fine.json"])


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = Record(stage="4_use_fp16", per_batch_ms=1.5, batch=128, notes=["a note"], windows=[Window(1.5), Window(2.0)])
    record.write(tmp_path / "4_use_fp16.json")
    assert Record.read(tmp_path / "4_use_fp16.json") == record
    (tmp_path / "other.json").write_text(json.dumps({"stage": "x"}))
    (tmp_path / "10_later.json").write_text(json.dumps({"stage": "x", "per_batch_ms": 1, "of_a_later_version": 1}))
    assert [each.stage for each in Record.read_all(tmp_path)] == ["4_use_fp16", "10_later"]


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=9), st.data())
def test_a_window_is_between_the_ends_of_batches(steps, data):
    done_ns, measured = np.cumsum(steps).tolist(), data.draw(st.integers(1, len(steps) - 1))
    found = Window.between(done_ns, measured, images=7 * measured)
    assert found.window_ms == pytest.approx(sum(steps[-measured:]) / 1e6)  # not a batch shorter, nor longer
    assert found.per_batch_ms == pytest.approx(found.window_ms / measured)
    assert found.images_per_s == pytest.approx(7e3 / found.per_batch_ms)


@given(st.lists(st.lists(st.floats(1, 9), min_size=1, max_size=3), min_size=1, max_size=5))
def test_a_record_of_several_runs_is_of_the_one_with_the_median_window(times):
    runs = [
        Record(stage="x", notes=[str(number)], windows=own, peak_device_memory_mb=number)
        for number, own in enumerate([Window(time, submit_ms=time / 10) for time in own] for own in times)
    ]
    found, every = Record.of(runs), sorted(time for own in times for time in own)
    assert sorted(found.repeats_ms) == every and found.per_batch_ms == np.median(every)
    nearest = found.submit_ms * 10
    assert abs(nearest - found.per_batch_ms) == pytest.approx(min(abs(time - found.per_batch_ms) for time in every), abs=1e-9)
    assert any(nearest == pytest.approx(time) for time in times[int(found.notes[-1])])
    assert found.notes[0] == "0" and found.peak_device_memory_mb == 0  # the first one's as well, and its memory


def test_conditions_say_what_was_modelled():
    simulated = Conditions("simulated", "V100", "simulated TensorRT", 128, 8)
    assert str(simulated) == "V100, simulated TensorRT, batch 128 (computed at 8); times are modelled, outputs are computed"
    real = Conditions("tensorrt", "H200", "TensorRT 8.6.0", 1, 1, date="2026-01-01", versions={"runtime": "12.9"})
    assert str(real) == "H200, TensorRT 8.6.0, batch 1, CUDA 12.9, 2026-01-01"


def test_a_class_s_name_does_not_steer_the_terminal():
    assert Predictions(["\x1b[31mcat"]).label(0) == r"\x1b[31mcat"


@pytest.mark.parametrize("moment", ["an import that swallows it", "its second call, after the end"])
def test_an_interruption_is_neither_lost_nor_too_late(tmp_path, moment):
    (tmp_path / "swallows.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    pass\n"
    )
    main = {
        "an import that swallows it": "import swallows; time.sleep(5)",
        "its second call, after the end": "signal.setitimer(signal.ITIMER_REAL, 0.2); atexit.register(time.sleep, 0.5)",
    }[moment]
    (tmp_path / "script.py").write_text(
        f"import atexit, signal, time\nfrom common import program\ndef main():\n    {main}\nprogram.run(main)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], env=environment, capture_output=True, text=True, check=False
    )
    expected = (130, "script: interrupted\n") if moment.startswith("an import") else (0, "")
    assert (done.returncode, done.stderr) == expected


def test_a_window_is_not_disturbed_by_collections_of_what_there_was():
    before = gc.get_freeze_count()
    with pytest.raises(KeyError), undisturbed() as readings:
        assert gc.get_freeze_count() > before + 1000 and len(readings) == 1
        raise KeyError
    assert gc.get_freeze_count() == before
    with undisturbed() as readings:
        pass
    assert len(readings) == 2 and min(readings) > 0
    with undisturbed(timed=False) as readings:
        pass
    assert not readings


def test_a_decoder_s_time_by_itself_is_of_all_its_threads(here, monkeypatch):
    """Two threads that take 40 ms for a batch each do one in 20, however many batches there are."""
    here.simulator.close()  # its threads run one at a time
    monkeypatch.setattr(parts.backend, "current", lambda: SimpleNamespace(simulator=None, clock_ns=time.monotonic_ns))
    monkeypatch.setattr(parts, "DeviceBuffer", lambda nbytes: contextlib.nullcontext())
    monkeypatch.setattr(parts, "Stream", contextlib.nullcontext)
    decoded = list[int]()

    def decode(files, batch):
        decoded.append(files)
        time.sleep(0.04)

    decoder, batches = SimpleNamespace(threads=2, decode=decode), [np.zeros(1)] * 3
    files = [SimpleNamespace(result=partial(int, index)) for index in range(3)]
    run = SimpleNamespace(source=True, decoder=decoder, distinct=3, batches=batches, read_files=files.__getitem__)
    assert 20 <= parts.decode_ms(run)["decode"] < 38
    assert sorted(decoded) == sorted([0, 1, 2] * 2 * parts.ROUNDS)

    def fail(files, batch):
        if decoded:
            raise KeyError(decoded.append(files))
        decode(files, batch)

    decoded.clear()
    decoder.decode = fail
    with pytest.raises(KeyError):
        parts.decode_ms(run)
    assert len(decoded) <= 3, "a thread goes on into memory that is freed"


def test_compute_is_timed_at_the_clock_of_a_window_that_a_power_cap_held_down(monkeypatch):
    """Kernels are at work for as long as the cap needs, before they are timed; where no cap was met, not."""
    session = SimpleNamespace(read={"gpu": {"throttled": ["power cap"]}})
    assert parts.at_cap_ms(session) == parts.CAP_MS
    for told in ({}, {"gpu": None}, {"gpu": {"throttled": ["heat (software)"]}}):
        assert parts.at_cap_ms(SimpleNamespace(read=told)) == 0
    leads, engine = [], SimpleNamespace(output_shape=lambda size: (size, 3), output_type=lambda size: np.float32)
    vars(session).update(
        engine=engine,
        options=None,
        source=None,
        batches=[np.zeros((2, 3), np.float32)],
        distinct=1,
        outputs=[None],
        postprocess=lambda *_: None,
    )
    with monkeypatch.context() as patched:
        patched.setattr(parts, "inferences_of", lambda *_: [])
        patched.setattr(parts, "gpu_ms", lambda work, streams, lead_ms=0.0: leads.append(lead_ms) or 1.0)
        parts.parts_ms(session, page_locked, [])
    assert leads == [0, parts.CAP_MS, 0]  # copies do not heed the clock
    with Stream() as stream, DeviceBuffer(1 << 26) as buffer:
        copies, host = [], page_locked((1 << 24,))

        def copy():
            copies.append(backend.current().clock_ns())
            copy_to_device_async(buffer, host, stream)

        alone = parts.gpu_ms([copy], [stream])
        assert len(copies) == 2
        assert parts.gpu_ms([copy], [stream], lead_ms=20 * alone) == pytest.approx(alone)
        assert 20 <= len(copies) - 4 <= 22


def test_what_several_streams_do_is_timed_to_the_end_of_the_last():
    with Stream() as first, Stream() as second, DeviceBuffer(1 << 22) as small, DeviceBuffer(1 << 26) as large:
        works = [partial(copy_to_device_async, small, page_locked((1 << 20,)), first)]
        works += [partial(copy_to_host_async, page_locked((1 << 24,)), large, second)]
        alone = parts.gpu_ms(works[1:], [second])
        assert parts.gpu_ms(works, [first, second]) == pytest.approx(alone / 2, rel=0.05)  # of each of two


@pytest.mark.parametrize(
    "said, first", [("", "ValueError"), (" \n", "ValueError"), ("\nno end\nat 5", "no end"), ("bad:\n\t x\ny", "bad: x")]
)
def test_what_others_raise_is_said_in_a_line_even_where_it_says_nothing(said, first):
    assert reason(ValueError(said)) == first
