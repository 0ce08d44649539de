"""Each line of a lesson does something: without any one of its waits a stage fails. And a capture that fails costs no more
than the graph. Stages are run in this process, on a tiny model."""

from __future__ import annotations

import gc
import json
import re
import runpy
import sys
from functools import partial
from types import SimpleNamespace

import pytest

from common import backend, clock, pictures
from common.console import err, out
from common.photographs import synthetic_jpeg
from sim import simulator as simulators
from sim.enums import cudaError_t
from tests.conftest import ROOT, stage_scripts

TINY = (
    "--backend",
    "simulated",
    "--device",
    "v100-sxm2-32gb",
    "--batch",
    "2",
    "--charge-batch",
    "2048",
    "--batches",
    "8",
    "--measure",
    "2",
)
WAITS = re.compile(r"\.(wait|record|synchronize|result)\(")
STAGES = [
    "5_multi_streams.py",
    "6_multi_threads.py",
    "7_cuda_graph.py",
    "8_multi_context.py",
    "10_uint8_input.py",
    "11_jpeg_decode.py",
]


class Stage:
    """Runs a stage's text here, as a script with the tiny plan, on small pictures."""

    def __init__(self, folder, plan, monkeypatch, capsys) -> None:
        self.folder, self.plan, self.monkeypatch, self.capsys = folder, plan, monkeypatch, capsys

    def __call__(self, name: str, text: str, *arguments: str) -> tuple[int, str]:
        """The exit code and all that was printed, on one line."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        self.monkeypatch.setattr(sys, "argv", [str(path), *TINY, "--plan", str(self.plan), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__")
        printed = self.capsys.readouterr()
        return ended.value.code, " ".join((printed.out + printed.err).split())


@pytest.fixture
def stage(checkout, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backend, "_current", None)
    monkeypatch.setattr(pictures, "synthetic_jpeg", partial(synthetic_jpeg, width=60, height=48))
    for console in (out, err):
        monkeypatch.setattr(console, "_width", 10_000)
    yield Stage(tmp_path, checkout.tiny, monkeypatch, capsys)
    simulators.start().close()


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def without(name: str, number: int) -> str:
    """A stage's text with one line's statement taken away."""
    lines = text_of(name).splitlines()
    indent = len(lines[number]) - len(lines[number].lstrip())
    lines[number] = " " * indent + "pass"
    return "\n".join(lines)


def waits(name: str) -> list[int]:
    """Numbers of the lines of a stage's loop that wait, or record what is waited for."""
    text = text_of(name)
    start = text.index('"""', 3)
    numbers = [number for number, line in enumerate(text.splitlines()) if WAITS.search(line)]
    first = text[:start].count("\n")
    others = ("raises what the worker raised", "decoder.decode(")  # the second does more than to wait for its files
    return [number for number in numbers if number > first and not any(each in text.splitlines()[number] for each in others)]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_as_it_is_is_right(stage, name):
    code, said = stage(name, text_of(name))
    assert code == 0 and "right: identical" in said and "not given back" not in said, said


@pytest.mark.parametrize(
    "name, number",
    [
        pytest.param(name, number, id=f"{name}: {text_of(name).splitlines()[number].split('#')[0].strip()}")
        for name in STAGES
        for number in waits(name)
    ],
)
def test_no_wait_can_be_left_out(stage, name, number):
    code, said = stage(name, without(name, number))
    assert code == 1 and "race: nothing orders the" in said, said
    first = said.split("race: nothing orders")[1]
    assert len(re.findall(r"\(\d+_\w+\.py:", first)) >= 2, said  # both places are the stage's own, or its parent's
    harmless = ("stream.synchronize()", "finished[ahead - SLOTS]")  # read for nothing; the decoder happens to leave the time
    if not any(each in text_of(name).splitlines()[number] for each in harmless):
        assert "wrong outputs" in said, said


def test_all_waits_are_tried():
    assert [len(waits(name)) for name in STAGES] == [6, 7, 6, 3, 8, 6]  # the last one's capture is stage 7's


def test_pixels_on_the_host_are_a_slot_s_own(stage):
    text = text_of("11_jpeg_decode.py")
    assert "pixels[index % SLOTS]" in text
    code, said = stage("11_jpeg_decode.py", text.replace("pixels[index % SLOTS]", "pixels[0]"), "--decoder", "pillow")
    assert code == 1 and "race: nothing orders the write of pixels" in said, said


@pytest.mark.parametrize("last", [False, True])
def test_what_the_worker_raises_ends_the_run(stage, last):
    """In the middle of a run, and in its last batch, whose slot nobody waits for again."""
    line = "            slot.returned.synchronize()\n"
    broken = text_of("6_multi_threads.py").replace(
        line, f"{line}            assert index != {7 if last else 3}, 'the worker failed'\n"
    )
    code, said = stage("6_multi_threads.py", broken)
    assert code == 70 and "AssertionError: the worker failed" in said


def test_capture_on_the_first_enqueue_fails_as_published(stage):
    """Without the enqueue that comes before, capture meets TensorRT's initialisation; the stage goes on without a graph."""
    line = "    enqueue(context, slot, stream)  # TensorRT initialises for this shape here, not inside the capture\n"
    text = text_of("7_cuda_graph.py")
    assert text.count(line) == 1
    code, said = stage("7_cuda_graph.py", text.replace(line, ""))
    assert code == 0 and "right: identical" in said and "not given back" not in said
    assert "not captured, so launched one by one" in said and "operation not permitted when stream is capturing" in said


SHORT = ("--no-verify", "--batches", "4", "--measure", "1")
NOT_RAISED = "cudaFreeHost"  # called when the last view of the memory goes, where nothing can be raised
IN_A_CAPTURE = (
    *("cudaStreamBeginCapture", "cudaMemcpyAsync", "cudaStreamEndCapture"),
    *("cudaGraphInstantiate", "cudaGraphDestroy", "cudaGraphUpload"),
)


@pytest.fixture
def light(monkeypatch):
    """Collections of garbage do not look at what other tests have imported: a walk makes three for each call."""
    monkeypatch.setattr(clock, "gc", SimpleNamespace(collect=gc.collect, freeze=lambda: None, unfreeze=lambda: None))
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in stage_scripts() if name[0] != "9"])
def test_a_failing_call_ends_a_stage_by_its_name_or_costs_it_the_graph(stage, light, monkeypatch, name):
    """Every CUDA call of the stage fails once. Only inside a capture does that not end the run; what the run still could
    give back is given back."""
    text, captured, real_start = text_of(name), 0, simulators.start
    stage(name, text, *SHORT)
    calls = backend.current().simulator.calls
    for number in range(1, calls + 1):
        gc.collect()  # what the run before still held is freed in its own process

        def start(*arguments, number=number):
            made = real_start(*arguments)
            made.fail_at(number, cudaError_t.cudaErrorIllegalAddress)
            return made

        monkeypatch.setattr(simulators, "start", start)
        code, said = stage(name, text, *SHORT)
        [call] = [call.split()[0] for call in backend.current().simulator.failed]
        if f"not captured, so launched one by one: {call} failed" in said:
            assert code == 0 and call in IN_A_CAPTURE, (number, call, said)
            captured += 1
        elif f"not captured, so compute by itself was timed with its launches: {call} failed" in said:
            assert code == 0 and call in IN_A_CAPTURE, (number, call, said)
        elif call != NOT_RAISED:
            assert code == 3 and f"{call} failed: cudaErrorIllegalAddress" in said, (number, call, code, said)
        if not call.startswith(("cudaFree", "cudaStreamDestroy", "cudaEventDestroy", "cudaGraph")):
            assert not backend.current().leaks(), (number, call, backend.current().leaks())
    assert calls > 30
    which = name.split("_")[0]
    each = len(IN_A_CAPTURE) - (which == "10")  # whose copy out is not in the graph
    assert captured == each * {"7": 3, "10": 3, "11": 4}.get(which, 0)  # slots


@pytest.mark.parametrize(
    "name, changes",
    [
        ("5_multi_streams.py", {"slots[index % SLOTS]\n            run.begin": "slots[0]\n            run.begin"}),
        ("5_multi_streams.py", {"context.execute_async_v3(compute)": "context.execute_async_v3(copy_out)"}),
        ("6_multi_threads.py", {"SLOTS].result()": "SLOTS]"}),
        (
            "6_multi_threads.py",
            {"slot.host_output, slot.device_output, copy_out": "slots[0].host_output, slot.device_output, copy_out"},
        ),
        ("7_cuda_graph.py", {"if index >= SLOTS:": "if index > SLOTS:"}),
        ("8_multi_context.py", {"contexts[index % count]": "contexts[0]"}),
        ("8_multi_context.py", {"slots[index % len(slots)]": "slots[index % count]"}),
    ],
)
def test_what_two_batches_share_is_a_race(stage, name, changes):
    text = text_of(name)
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    code, said = stage(name, text)
    assert code == 1 and "race: nothing orders the" in said, said


def test_the_number_of_races_is_in_the_record(stage, tmp_path):
    record = tmp_path / "record.json"
    stage("7_cuda_graph.py", text_of("7_cuda_graph.py"), "--json", str(record))
    assert json.loads(record.read_text())["races"] == 0
    racing = text_of("7_cuda_graph.py").replace("    stream.synchronize()  # it has read", "    # it has read")
    code, said = stage("7_cuda_graph.py", racing, "--json", str(record))
    assert code == 1 and "1 race(s)" in said and "per batch" not in said
    assert json.loads(record.read_text())["races"] == 1
