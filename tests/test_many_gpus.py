"""Stage 12: the predictions of one pipeline by many processes, nothing lost and nothing twice, whoever is killed."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock
from types import SimpleNamespace

import numpy as np
import pytest

from common import flow, many, options
from common.cuda import CudaError
from common.errors import OURS, EnvironmentFault, MissingModule, UsageFault, WrongOutputs
from common.files import read_json
from common.photographs import synthetic_jpeg
from common.postprocess import Predictions
from common.record import Record
from common.shards import Pictures, shards, tidy
from harness import side_by_side
from sim import clock, predict_scale
from sim.enums import cudaError_t as CudaErrors
from tests.conftest import SIMULATED

STAGE, COUNT, SHARD, POISONED = "12_many_gpus.py", 150, 16, 50
OPTIONS = (*SIMULATED, "--plan", "plans/tiny.plan", "--batch", "4", "--decoder", "pillow")
HERE = ("--shard", SHARD, "--format", "csv", "--gpus", 2)
KILLS = signal.SIGTERM, signal.SIGKILL
ALONE = (STAGE, "--part", "0/1")  # without Ray, whose start takes a test longer than all else
with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install -e '.[ray]'")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Small ones, one of them no picture and one of them empty."""
    folder = tmp_path_factory.mktemp("photographs")
    for index in range(COUNT):
        (folder / f"{index:04d}.jpg").write_bytes(synthetic_jpeg(index, 7, 60, 48))
    (folder / f"{POISONED:04d}.jpg").write_bytes(b"no picture")
    (folder / f"{COUNT - 1:04d}.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def right(checkout, photographs, tmp_path_factory) -> dict[str, tuple[str, float]]:
    """Class and probability of each picture by stage 11, in one process."""
    path = tmp_path_factory.mktemp("right") / "names.csv"
    done = checkout.run("11_jpeg_decode.py", *OPTIONS, "--images", photographs, "--predictions", path, "--no-controls")
    assert done.returncode == 0, done.stderr
    return {row["image"]: (row["class"], float(row["probability"])) for row in rows(path)}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def check(out: Path, right: dict[str, tuple[str, float]]) -> None:
    """Each picture once, in order, with the class that one pipeline gives it; the others with the reason."""
    found = [row for path in sorted(out.glob("*.csv")) for row in rows(path)]
    assert [int(row["index"]) for row in found] == list(range(COUNT))
    assert [row["image"] for row in found] == [f"{index:04d}.jpg" for index in range(COUNT)]
    assert {row["image"]: row["error"] for row in found if row["error"]} == {"0050.jpg": "no JPEG", "0149.jpg": "empty"}
    predicted = {row["image"]: (row["class"], float(row["probability"])) for row in found if not row["error"]}
    assert predicted.keys() == right.keys()
    for name, (number, probability) in predicted.items():
        assert number == right[name][0] and probability == pytest.approx(right[name][1], abs=1e-6)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_parts_without_ray_do_all_of_it(checkout, photographs, right, tmp_path):
    for index in range(2):
        done = checkout.run(STAGE, *OPTIONS, *HERE, "--images", photographs, "--predictions", tmp_path, "--part", f"{index}/2")
        assert done.returncode == 0, done.stderr
        assert len(list(tmp_path.glob("*.csv"))) == (5, 10)[index]
        assert ("2 of them cannot be read" in done.stdout) == bool(index)  # both lie in odd shards
    check(tmp_path, right)


def test_parquet_in_parquet_out_and_folders_by_their_address(checkout, photographs, right, tmp_path):
    """Rows of two files with row groups that are no shards; a folder's address stands for a bucket's."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    contents = [path.read_bytes() for path in sorted(photographs.iterdir())]
    for name, part in (("a", contents[:70]), ("b", contents[70:])):
        (tmp_path / "tables").mkdir(exist_ok=True)
        table = arrow.table({"label": list(range(len(part))), "image": part})
        parquet.write_table(table, tmp_path / "tables" / f"{name}.parquet", row_group_size=33)
    for images, out in ((tmp_path / "tables", "rows"), (photographs.as_uri(), "files")):
        where = ("--images", images, "--predictions", tmp_path / out, "--shard", 16, "--part", "0/1")
        done = checkout.run(STAGE, *OPTIONS, *where)
        assert done.returncode == 0, done.stderr
        found = [row for path in sorted((tmp_path / out).glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]
        assert [row["index"] for row in found] == list(range(COUNT))
        wrong = {POISONED: "no JPEG", COUNT - 1: "empty"}
        expected = [(right.get(f"{index:04d}.jpg", (None,))[0], wrong.get(index)) for index in range(COUNT)]
        assert [(row["class"], row["error"]) for row in found] == expected
        assert found[71]["image"] == ("b.parquet#1" if out == "rows" else "0071.jpg")


def test_pictures_in_structs_of_parquet_and_names_that_look_like_rows(tmp_path):
    """As Hugging Face keeps them, between columns that are no pictures; beside a folder's pipe, subfolders and odd names."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    structs = [{"bytes": b"one", "path": "a"}, {"bytes": b"two", "path": None}, None]
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    lists = arrow.array([[b"x"]] * 3, arrow.list_(arrow.binary()))
    (tmp_path / "t.parquet").mkdir()
    parquet.write_table(
        arrow.table({"other": lists, "image": arrow.array(structs, kind)}), tmp_path / "t.parquet" / "p.parquet"
    )
    (tmp_path / "b.parquet#7.jpg").write_bytes(b"three")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
    for root in (str(tmp_path), tmp_path.as_uri()):
        pictures = Pictures(root)
        assert pictures.names == ["b.parquet#7.jpg", *(f"t.parquet/p.parquet#{row}" for row in range(3))]
        assert [read() for read in pictures.sources(pictures.names)] == [b"three", b"one", b"two", b""]
    for root in (str(tmp_path / "t.parquet" / "p.parquet"), (tmp_path / "t.parquet" / "p.parquet").as_uri()):
        assert Pictures(root).names == ["#0", "#1", "#2"]
        assert [read() for read in Pictures(root).sources(["#1"])] == [b"two"]
    parquet.write_table(arrow.table({"image": arrow.array([b"large"], arrow.large_binary())}), tmp_path / "large.parquet")
    large = Pictures(str(tmp_path / "large.parquet"))
    assert [read() for read in large.sources(large.names)] == [b"large"]


def test_what_holds_no_pictures_is_named(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(EnvironmentFault, match=r"cut\.parquet cannot be read as Parquet"):
        Pictures(str(tmp_path)).names  # noqa: B018
    parquet.write_table(arrow.table({"label": [1]}), tmp_path / "cut.parquet")
    with pytest.raises(UsageFault, match=r"cut\.parquet has no column of bytes"):
        Pictures(str(tmp_path)).names  # noqa: B018
    with pytest.raises(UsageFault, match="--images foo://bar"):
        Pictures("foo://bar").names  # noqa: B018
    parquet.write_table(arrow.table({"image": [b"one"]}), tmp_path / "cut.parquet")
    for out in (tmp_path / "out", tmp_path):
        with pytest.raises(UsageFault, match="lies in --images"):
            shards(Pictures(str(tmp_path)), out, 16, ".csv", {})
    parquet.write_table(arrow.table({"image": arrow.array([], arrow.binary())}), tmp_path / "cut.parquet")
    for root, what in ((str(tmp_path), "nor a row of Parquet"), ((tmp_path / "none").as_uri(), r"--images file:.*Cannot list")):
        with pytest.raises((UsageFault, EnvironmentFault), match=what):
            Pictures(root).names  # noqa: B018


def heard(read) -> bytes | str:
    try:
        return read()
    except OSError as error:
        return str(error)


def test_rows_that_cannot_be_had_say_why_and_shift_no_others(tmp_path):
    """A row group that is damaged, and a file that has fewer rows now; a suffix in capitals."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, table = tmp_path / "T.PARQUET", arrow.table({"image": [b"0", b"1", b"2", b"3", b"4", b"5"]})
    parquet.write_table(table, path, row_group_size=2)
    pictures = Pictures(str(tmp_path))
    assert pictures.names == [f"T.PARQUET#{row}" for row in range(6)]
    page = parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = path.read_bytes()
    path.write_bytes(data[:page] + b"\xff" * 8 + data[page + 8 :])
    found = [heard(read) for read in pictures.sources(pictures.names)]
    assert found[:2] + found[4:] == [b"0", b"1", b"4", b"5"]
    assert all(why.startswith("T.PARQUET is damaged: ") for why in found[2:4])
    parquet.write_table(table.slice(0, 3), path)
    found = [heard(read) for read in pictures.sources(pictures.names)]
    assert found == [b"0", b"1", b"2", *["T.PARQUET has 3 rows"] * 3]


@pytest.mark.parametrize("names, first", [(["a", "a.bytes"], "structs"), (["image", "image"], "numbers")])
def test_columns_whose_names_are_alike_are_told_apart(tmp_path, names, first):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    other = arrow.array([{"bytes": 1}] if first == "structs" else [1])
    parquet.write_table(arrow.table([other, arrow.array([b"one"])], names), tmp_path / "a.parquet")
    pictures = Pictures(str(tmp_path))
    assert [read() for read in pictures.sources(pictures.names)] == [b"one"]


def test_a_folder_that_cannot_be_listed_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.jpg").touch()
    listed = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert Pictures(str(tmp_path)).names == ["a.jpg"]
    assert capsys.readouterr().err == f"skipped {tmp_path / 'closed'}: Permission denied\n"
    for root, why in (("closed", "Permission denied"), ("none", "No such file or directory")):
        with pytest.raises(UsageFault, match=f"--images .*{root}: {why}"):
            Pictures(str(tmp_path / root)).names  # noqa: B018


def test_a_file_too_large_for_a_picture_is_not_read(tmp_path):
    (tmp_path / "huge.jpg").touch()
    os.truncate(tmp_path / "huge.jpg", 1 << 42)
    pictures = Pictures(str(tmp_path))
    assert [heard(read) for read in pictures.sources(pictures.names)] == ["4,398,046,511,104 bytes are no picture"]


def test_what_is_done_is_of_the_same_pictures_and_the_same_plan(tmp_path, photographs):
    pictures, out = Pictures(str(photographs)), tmp_path / "out"
    every, left = shards(pictures, out, 16, ".csv", {"precision": "fp16"})
    assert (
        left == every
        and sum(len(shard.names) for shard in every) == COUNT
        and every[-1].path.endswith("000000144-000000149.csv")
    )
    every[3].write([], [], [], [], [])
    begun = [out / f".{Path(shard.path).name}.a1b2c3" for shard in every[3:5]]
    for path in begun:
        path.touch()
    tidy(out, every)
    assert [path.exists() for path in begun] == [False, True]  # the other may be being written
    assert shards(pictures, out, 16, ".csv", {"precision": "fp16"})[1] == [shard for shard in every if shard != every[3]]
    for size, facts in ((17, {"precision": "fp16"}), (16, {"precision": "fp32"})):
        with pytest.raises(Exception, match="predictions of another run"):
            shards(pictures, out, size, ".csv", facts)
    with pytest.raises(UsageFault, match="No such file"):
        shards(Pictures(str(tmp_path / "nothing")), out, 16, ".csv", {})
    odd = Pictures(str(tmp_path / "odd"))
    odd.names = ["no UTF-8 \udcff.jpg"]
    assert [shard.names for shard in shards(odd, tmp_path / "other", 16, ".csv", {})[1]] == [odd.names]


def test_a_part_that_is_gone_ends_in_a_row_and_a_folder_of_another_run_in_a_sentence(checkout, photographs, tmp_path):
    where = ("--images", photographs, "--predictions", tmp_path / "out", "--part", "0/1")
    assert checkout.run(STAGE, *OPTIONS, *where, "--shard", 60).returncode == 0
    done = checkout.run(STAGE, *OPTIONS, *where, "--shard", 61)
    assert done.returncode == 2 and "predictions of another run (shard 60 and not 61)" in " ".join(done.stderr.split())
    done = checkout.run(STAGE, *OPTIONS, *where, "--shard", 60, "--json", tmp_path / "out" / "000000060-000000119.parquet")
    assert done.returncode == 2 and "write its results elsewhere" in done.stderr
    done = checkout.run(STAGE, *OPTIONS, *where[:-2], "--plan", "plans/none.plan", "--shard", 60)  # before Ray is started
    assert done.returncode == 3 and "error: there is no plan" in done.stderr and "workers:" not in done.stderr


def test_without_ray_the_run_ends_in_a_sentence(checkout, photographs, tmp_path):
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError('no ray', name='ray')")
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['pyarrow'] = None")
    where = ("--images", photographs, "--predictions", tmp_path / "out")
    done = checkout.run(STAGE, *OPTIONS, *where, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 3 and "no pyarrow in this Python: pip install -e '.[ray]', or --format csv" in done.stderr
    assert not (tmp_path / "out").exists()  # whose work.json would refuse the other format
    done = checkout.run(STAGE, *OPTIONS, *where, "--format", "csv", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 3 and "there is no ray in this Python: pip install -e '.[ray]', or --part 0/1" in done.stderr


@pytest.fixture
def pipeline(checkout, monkeypatch):
    """Stage 11's, without an end, in this process."""
    monkeypatch.chdir(checkout.folder)
    monkeypatch.setattr(flow, "TURN", 50)
    monkeypatch.setattr(clock, "STALL_S", 60.0)  # the simulated host waits for no thread that has nothing to say to it
    words = [*OPTIONS, "--images", "none", "--predictions", "none"]
    started = time.monotonic()
    made = flow.Flow(options.many("").parse_args(list(map(str, words))), import_module("11_jpeg_decode").infer)
    assert time.monotonic() < started + clock.STALL_S
    yield made
    made.close()
    with pytest.raises((flow.Ended, CudaError)):
        made.predict([("late", gone)])  # who is late hears of it when the thread has left the simulated host
    made.here.simulator.close()


SHIFTED = """
from importlib import import_module
from types import SimpleNamespace
import numpy as np
from common import program
stage = import_module("12_many_gpus")
infer = stage.stage_11.infer

def shifted(run):
    finish, late = run.finish, []
    run.finish = lambda index, outputs: finish(index, SHIFT)
    infer(run)

stage.stage_11 = SimpleNamespace(infer=shifted)
program.run(stage.main)
"""


@pytest.mark.parametrize("shift", ["np.roll(outputs, 1, axis=0)", "late.append(outputs.copy()) or late[max(0, index - 1)]"])
def test_a_pipeline_that_gives_a_picture_another_s_outputs_takes_no_shard(checkout, photographs, tmp_path, shift):
    """Every worker holds what comes out of its pipeline to a serial run before it begins: its rows, and its batches."""
    (checkout.folder / "shifted.py").write_text(SHIFTED.replace("SHIFT", shift))
    where = ("--images", photographs, "--predictions", tmp_path / "out", *HERE[:-2], "--part", "0/1")
    done = checkout.run("shifted.py", *OPTIONS, *where)
    assert done.returncode == 1 and "shifted: error: " in done.stderr, done.stderr
    assert not list((tmp_path / "out").glob("*.csv"))


def gone() -> bytes:
    raise FileNotFoundError(2, "gone")


def test_pictures_go_in_from_anywhere_and_rows_come_back_in_order(pipeline, monkeypatch):
    """Also where the pipeline is built anew meanwhile, and where a file is gone."""
    data = [synthetic_jpeg(index, 7, 60, 48) for index in range(5)]
    contents = [(str(index), partial(bytes, data[index % 5])) for index in range(210)]
    contents[100] = ("100", gone)
    found, again = pipeline.predict(contents).rows, pipeline.predict(contents).rows
    assert len(contents) > 4 * len(pipeline.batches) and found == again and found[100] == (None, None, "gone")
    assert all(row == found[index % 5] for index, row in enumerate(found) if index != 100)
    assert len(found) == len(contents) and len(set(found[:5])) > 2 and not pipeline.unreadable


def test_batches_keep_their_order_whichever_of_the_decoder_s_threads_asks_first():
    idle = object.__new__(flow.Flow)
    vars(idle).update(here=SimpleNamespace(clock_ns=time.monotonic_ns), _rest=Event(), _error=flow.Ended())
    vars(idle).update(_incoming=SimpleQueue(), _going=deque(), _taken=0, _asked=0)
    asked = [idle.read_files(index) for index in range(3)]
    parts = [flow.Part([(str(index), b"")], None) for index in range(2)]
    with ThreadPoolExecutor(2) as threads:
        last, second = threads.submit(asked[2].result), threads.submit(asked[1].result)
        for part in parts:
            idle._incoming.put(part)
        assert asked[0].result() == parts[0].files and second.result(10) == parts[1].files
        idle.close()
        with pytest.raises(flow.Ended):
            last.result(10)
    assert list(idle._going) == parts


def test_a_plan_without_classes_is_refused_before_there_is_a_pipeline(monkeypatch):
    monkeypatch.setattr(options, "select_backend", lambda chosen: (None, SimpleNamespace(batch=1)))
    monkeypatch.setattr(flow, "load", lambda *_: SimpleNamespace(classifies=False, plan="boxes.plan", outputs=["boxes"]))
    with pytest.raises(UsageFault, match=r"boxes\.plan gives boxes, and this is for classes"):
        flow.Flow(Namespace(), None)


def test_of_a_shard_only_a_few_batches_are_in_memory():
    """However many it has: those that are read ahead, and as many on their way. Its time is from the first to the last."""
    one, begun, answered, most = object.__new__(flow.Flow), [], [], []

    def begin(batch):
        begun.append(batch)
        most.append(len(begun) - len(answered))
        return lambda: batch

    def answer(_):
        answered.append(begun[len(answered)])
        number = len(answered)
        return flow.Answer([name for name, _ in answered[-1]], number, number + 1, number)

    vars(one).update(size=SimpleNamespace(batch=2), _queue=SimpleQueue, _incoming=SimpleQueue(), _turn=Lock())
    vars(one).update(_begin=begin, _answer=answer)
    found = one.predict([(str(index), gone) for index in range(199)])
    assert found == flow.Answer([str(index) for index in range(199)], 1, 101, 5050)
    assert max(most) == 2 * flow.AHEAD + 1 and not one.room()


def test_a_shard_s_batches_are_not_dealt_with_another_s():
    """Who asks first has all of its batches on their way before those of the next."""
    one, sent = object.__new__(flow.Flow), []
    vars(one).update(
        size=SimpleNamespace(batch=1), _queue=SimpleQueue, _turn=Lock(), _answer=lambda _: flow.Answer([], 0, 1, 0)
    )
    one._begin = lambda batch: time.sleep(0.001) or partial(sent.append, batch[0][0])
    one._incoming = SimpleQueue()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(one.predict, ([(shard, gone)] * 40 for shard in "ab")))
    assert sent in (["a"] * 40 + ["b"] * 40, ["b"] * 40 + ["a"] * 40)


@pytest.mark.parametrize("takes_s, threads", [(0.0, 1), (0.0005, 10), (0.01, flow.AHEAD)])
def test_files_that_come_at_once_are_read_by_one_thread_and_slow_ones_by_many(takes_s, threads):
    """Every thread that reads costs the decoder, and is worth it where it waits."""
    reader = object.__new__(flow.Flow)
    vars(reader).update(here=SimpleNamespace(simulator=None), unreadable={}, _took=[], _pool=None)

    def slow() -> bytes:
        if takes_s:  # to sleep for no time is to let others go first
            time.sleep(takes_s)
        return b"picture"

    batches = [[(f"{index}-{row}", slow) for row in range(8)] for index in range(flow.TRIED + 1)]
    found = [begun() for begun in map(reader._begin, batches)]
    assert found == [[(name, b"picture") for name, _ in batch] for batch in batches]
    assert threads <= reader._pool._max_workers <= min(2 * threads - 1, flow.AHEAD)
    if threads > 1:  # the first files may be slow for once: a disk that wakes up
        vars(reader).update(_took=[], _pool=None)
        for read in (slow, *[bytes] * (flow.TRIED - 1)):
            reader._begin([("it", read)])
        assert reader._pool._max_workers == 1


def test_a_pipeline_that_fails_is_heard_by_who_waits(pipeline, monkeypatch):
    monkeypatch.setattr(flow, "PATIENCE_S", 3.0)
    simulator = pipeline.here.simulator
    simulator.fail_at(simulator.calls + 40, CudaErrors.cudaErrorIllegalAddress)
    contents = [(str(index), bytes) for index in range(400)]
    for _ in range(2):  # and everybody after
        with pytest.raises(CudaError, match="cudaErrorIllegalAddress"):
            pipeline.predict(contents)


def test_the_link_of_each_gpu_alone_and_of_all_at_once(checkout):
    """A simulated link is shared with nobody."""
    done = checkout.run("-m", "harness.side_by_side", "link", *SIMULATED, "--gpus", 2, "--out", "side")
    assert done.returncode == 0, done.stderr
    for row in read_json(checkout.folder / "side" / "link.json")["rows"]:
        rate, count = 55.43 if row["what"] == "copy h2d" else 55.34, len(row["gpus"].split(","))
        assert row["together"] == pytest.approx(count * rate, rel=0.01) and row["efficiency"] == pytest.approx(1, rel=0.01)


def test_shards_are_done_again_side_by_side_and_a_gpu_without_one_is_no_result(tmp_path, monkeypatch):
    """Predictions that were there would make a rate of nothing, and a GPU without work half of what two can do."""
    given, asked = Namespace(what="12_many_gpus", backend="simulated", arguments=[], out=tmp_path, gpus=2, each=False), []

    def stage(commands):
        for *words, json_path in commands.values():
            folder, place = Path(words[words.index("--predictions") + 1]), words[words.index("--part") + 1][0]
            assert folder.is_dir() and not (folder / place).exists()
            (folder / place).touch()
            asked.append(folder)
            Path(json_path).write_text(json.dumps({"images_per_s": 11987.5 if int(place) < count else 0}))
        return {}

    monkeypatch.setattr(side_by_side, "at_once", stage)
    for count in (2, 2, 1):
        with pytest.raises(UsageFault, match="--shard") if count < 2 else contextlib.nullcontext():
            _, both = side_by_side.compare(given)
            assert both["each"] == "11,987.5, 11,987.5" and both["efficiency"] == 1
    assert len({*asked}) == 6 and not any(folder.exists() for folder in asked)


def test_what_gpus_do_at_once_is_a_share_of_the_first_one_s_alone(monkeypatch):
    each = {(0,): [10.0], (1,): [9.0], (0, 1): [8.0, 7.0]}
    monkeypatch.setattr(side_by_side, "rates", lambda options, gpus, index: [("it", "images/s", each[tuple(gpus)])])
    found = side_by_side.compare(Namespace(gpus=2, each=True))
    assert [row["efficiency"] for row in found] == [1, 0.9, 0.75]


def test_each_process_side_by_side_has_a_gpu_of_its_own():
    said = side_by_side.at_once({gpu: ["-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"] for gpu in (0, 3)})
    assert said == {0: "0\n", 3: "3\n"}
    with pytest.raises(EnvironmentFault, match="on GPU 3: exit code 5: why"):
        side_by_side.at_once({0: ["-c", "pass"], 3: ["-c", "import sys; print('why', file=sys.stderr); sys.exit(5)"]})


@pytest.mark.parametrize("switch, cores, decodes, images, limiter", [
    (1, 32, False, 8000.0, "each GPU's link"),
    (4, 32, False, 2 * 55.43e9 / 55.43e6, "the switch"),
    (1, 16, True, 16 * 462.0, "the host's cores"),
    (1, 32, True, 8000.0, "each process's decoder"),
])  # fmt: skip
def test_n_gpus_do_n_times_one_s_work_until_they_share_something(switch, cores, decodes, images, limiter):
    record = Record(images_per_s=1000.0, parts_ms={"h2d": 2.0, "compute": 1.0})
    shared = Namespace(device="h200", gpus_a_switch=switch, cores=cores)
    found = predict_scale.row("work", record, 55_430_000, 1_000_000, decodes, shared)
    assert found["images_per_s_1"] == pytest.approx(1000.0) and found["images_per_s_8"] == pytest.approx(images)
    assert found["limiter"] == limiter and found["host_gb_s"] == pytest.approx(images / 1000)


@pytest.fixture
def ray_that_starts(monkeypatch):
    """In Ray's place: what it is started with, two GPUs, and handlers of its own for signals."""
    asked: list[dict[str, object]] = []

    def init(**options):
        asked.append(options)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return contextlib.closing(SimpleNamespace(close=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL)))

    services = SimpleNamespace(canonicalize_bootstrap_address=lambda address: address)
    core = SimpleNamespace(init=init, cluster_resources=lambda: {"GPU": 2.0}, _private=SimpleNamespace(services=services))
    core.exceptions = SimpleNamespace(RayError=OSError)
    context = SimpleNamespace(get_current=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "ray", core)
    monkeypatch.setitem(sys.modules, "ray.data", SimpleNamespace(DataContext=context))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    core.asked = asked
    return core


def chosen_for(*words: str) -> Namespace:
    return options.many("").parse_args(["--images", "none", "--predictions", "none", "--backend", "simulated", *words])


@pytest.mark.parametrize("words, shards, workers", [((), 9, 2), (("--gpus", "2"), 1, 1), (("--gpus", "1"), 9, 1)])
def test_there_are_no_more_workers_than_shards(ray_that_starts, capsys, words, shards, workers):
    chosen, heard = chosen_for(*words), signal.getsignal(signal.SIGTERM)
    with many.ray(chosen, shards):
        said = capsys.readouterr().err
        assert (
            chosen.gpus == workers and f"workers: {workers}, " in said and ("there are no more shards" in said) == (shards == 1)
        )
        assert signal.getsignal(signal.SIGTERM) == heard and "CUDA_VISIBLE_DEVICES" not in os.environ
    assert signal.getsignal(signal.SIGTERM) == heard
    with pytest.raises(UsageFault, match="--gpus 3: Ray sees 2"), many.ray(chosen_for("--gpus", "3"), 1):
        pass


def test_sigterm_while_ray_starts_is_an_interruption(ray_that_starts):
    """Ray makes an exit of it, with a code of its own and no word."""
    ray_that_starts.init = lambda **_: sys.exit(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), many.ray(chosen_for(), 9):
        pass


def test_a_cluster_that_is_not_there_is_not_waited_for(ray_that_starts):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        fault = pytest.raises(EnvironmentFault, match=f"--address {address}: no Ray cluster answers there")
        with fault, many.ray(chosen_for("--address", address), 9):
            pass
        nobody.listen()
        with many.ray(chosen_for("--address", address), 9):
            assert ray_that_starts.asked == [{"address": address, "logging_level": "error"}]
    with many.ray(chosen_for("--address", "local"), 9):
        assert ray_that_starts.asked[1]["num_gpus"] == 2


def test_a_full_disk_ends_the_run_in_one_sentence(pipeline, photographs, tmp_path, monkeypatch):
    """Whichever worker sees it first; what is done is not done again."""
    monkeypatch.setattr(sys, "argv", [STAGE])
    words = ("--images", photographs, "--predictions", tmp_path / "out", "--shard", SHARD, "--format", "csv")
    chosen, asked = options.many("").parse_args(list(map(str, words))), []

    def deal(chosen, shards):
        for each in shards:
            asked.append(each)
            path = each.path if len(asked) == 1 else tmp_path / "out" / "work.json" / "in a file"
            yield many.do(pipeline, Pictures(chosen.images), replace(each, path=str(path)))

    with pytest.raises(EnvironmentFault, match=r"^cannot write .*in a file: File exists\. What is done is kept"):
        many.run(chosen, deal)
    assert len(asked) == 2 and len(list((tmp_path / "out").glob("*.csv"))) == 1


@pytest.mark.parametrize("kind", [UsageFault, MissingModule])
def test_options_that_no_worker_can_take_are_said_once(photographs, tmp_path, monkeypatch, kind):
    """As the answer to a shard, through Ray's pickles: an exception would have Ray start the worker three times more."""
    stage = import_module("12_many_gpus")
    monkeypatch.setattr(sys, "argv", [STAGE])
    monkeypatch.setattr(stage, "Flow", lambda *_: (_ for _ in ()).throw(kind("a batch of 999 does not fit")))
    words = ("--images", photographs, "--predictions", tmp_path / "out", "--shard", SHARD)

    chosen = options.many("").parse_args(list(map(str, words)))
    worker = stage.Worker(chosen)  # in which nothing is raised

    def by_ray(_, shards):
        answers = worker({"shard": [pickle.dumps(each) for each in shards]})
        return map(pickle.loads, answers["done"])

    for deal in (by_ray, stage.by_itself):
        with pytest.raises(kind, match=r"^a batch of 999 does not fit$"):
            many.run(chosen, deal)
        assert not list((tmp_path / "out").iterdir()), "the right options would be another run's"


def test_after_an_error_a_worker_s_process_ends_for_ray_to_start_another(monkeypatch, capsys):
    """For after one of CUDA's it is good for nothing more."""
    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    with pytest.raises(SystemExit) as ended:
        many.answer(lambda shard: 1 // shard, {"shard": [pickle.dumps(1), pickle.dumps(0)]})
    assert ended.value.code == OURS and "ZeroDivisionError" in capsys.readouterr().err


def test_a_plan_of_another_precision_is_said_before_a_worker_is_started(checkout, photographs, tmp_path):
    """Each of four would die of it with a traceback, and Ray say as much in 800 lines."""
    plan = checkout.plans / "resnet18-fp16.simulated.plan"
    words = ("--images", photographs, "--predictions", tmp_path / "out", "--plan", plan, "--precision", "int8")
    with pytest.raises(EnvironmentFault, match="is no int8 engine: its layers work in 21 fp16"):
        many.run(options.many("").parse_args(list(map(str, words))), lambda *_: pytest.fail("a worker is started"))
    assert not (tmp_path / "out").exists()


def test_a_run_takes_from_the_named_plan_what_nobody_says(photographs, tmp_path, monkeypatch):
    """Its precision, and 64 of its batches a shard. What killed workers have begun of shards that are there is removed."""
    monkeypatch.setattr(sys, "argv", [STAGE])
    plan, out, seen = tmp_path / "mine.plan", tmp_path / "out", []
    plan.touch()
    monkeypatch.setattr(options, "usual_batch", lambda named: 2 if named == plan else 128)
    words = ["--images", photographs, "--predictions", out, "--plan", plan, "--format", "csv", "--json", tmp_path / "a.json"]
    named = dict.fromkeys(("precision", "batch", "input", "decoder", "device", "engine", "gpu"))

    def deal(chosen, shards):
        seen.append((chosen.precision, [len(each.names) for each in shards]))
        for each in shards:
            each.write([], [], [], [], [])
            (out / f".{Path(each.path).name}.a1b2c3").touch()
            counts = {"images": len(each.names), "unreadable": 0, "by_pillow": 0}
            yield {**counts, "worker": "a:1", "begun_s": 0.0, "ended_s": 1.0, "conditions": {**named, "scale": 1}}

    many.run(options.many("").parse_args(list(map(str, words))), deal)
    assert seen == [(None, [128, COUNT - 128])] and not list(out.glob(".*"))
    assert read_json(tmp_path / "a.json")["images"] == COUNT
    words[-1] = tmp_path / "no folder" / "a.json"
    with pytest.raises(EnvironmentFault, match=r"there is no folder .*no folder that can be written to"):
        many.run(options.many("").parse_args(list(map(str, words))), deal)
    assert len(seen) == 1


class Driver:
    """The stage in a process of its own, with Ray but for ``ALONE``; ``said`` is all that it and its workers say."""

    def __init__(self, checkout, out: Path, photographs: Path, script: object, words: tuple[str, ...]) -> None:
        self.out, self.log, self.record = out, *(out.parent / f"{out.name}.{suffix}" for suffix in ("log", "json"))
        where = ("--images", photographs, "--predictions", out, "--json", self.record)
        command = [sys.executable, script, *OPTIONS, *HERE, *where, *words]
        surroundings = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}  # a cluster that nobody has asked for is left alone
        with self.log.open("w") as log:
            outputs = {"stdout": log, "stderr": subprocess.STDOUT}
            self.process = subprocess.Popen([*map(str, command)], cwd=checkout.folder, env=surroundings, **outputs)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, count: int) -> None:
        """Until so many shards are done."""
        while len(list(self.out.glob("*.csv"))) < count:
            assert self.process.poll() is None, self.said
            time.sleep(0.02)

    def workers(self) -> list[int]:
        """Of this driver; their parent is its raylet."""
        mine = set()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command, status = (entry / "cmdline").read_bytes(), (entry / "stat").read_text()
                parent = Path("/proc", status.rpartition(") ")[2].split()[1])
                above = int((parent / "stat").read_text().rpartition(") ")[2].split()[1])
            except (OSError, IndexError):
                continue
            if b"MapWorker" in command and above == self.process.pid:
                mine.add(int(entry.name))
        return sorted(mine)

    def end(self) -> int:
        return self.process.wait(timeout=120)


@pytest.fixture
def drive(checkout, photographs, tmp_path) -> Iterator:
    started: list[Driver] = []

    def start(script: object, *words: str) -> Driver:
        started.append(Driver(checkout, tmp_path / "names", photographs, script, words))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()


BROKEN = """
import os, signal, sys, time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from common import program
from common.errors import EnvironmentFault
stage = import_module("12_many_gpus")

class Broken(stage.Worker):
    def __init__(self, chosen):
        for number in range(FAIL):
            with suppress(FileExistsError):
                (chosen.predictions / f".started-{number}").touch(exist_ok=False)
                raise EnvironmentFault("this plan is no plan here")
        super().__init__(chosen)

    def do(self, shard):
        if KILLS in range(shard.first, shard.first + len(shard.names)):
            os.kill(os.getpid(), signal.SIGKILL)
        out = Path(shard.path).parent
        while len(list(out.glob("*.csv"))) >= HOLD and not (out.parent / "go").exists():
            (out.parent / f"holds-{os.getpid()}").touch()
            time.sleep(0.05)
        return super().do(shard)

stage.Worker = Broken
program.run(stage.main)
"""


def broken(folder: Path, fail: int = 0, kills: int = -1, hold: int = COUNT) -> Path:
    """The stage with workers of which the first ``fail`` cannot start, that die of a picture, or that wait
    for a file ``go`` beside the predictions when ``hold`` shards are done."""
    script = folder / "broken.py"
    script.write_text(BROKEN.replace("FAIL", str(fail)).replace("KILLS", str(kills)).replace("HOLD", str(hold)))
    return script


def forget_the_starts(out: Path) -> None:
    for path in out.glob(".started-*"):
        path.unlink()


@with_ray
def test_a_killed_worker_s_shards_are_done_by_another(checkout, drive, right):
    driver = drive(broken(checkout.folder, hold=2))
    driver.wait_for(2)
    while not (holds := list(driver.out.parent.glob("holds-*"))):
        time.sleep(0.02)
    killed = int(holds[0].name.split("-")[1])
    assert os.getpriority(os.PRIO_PROCESS, killed) == os.getpriority(os.PRIO_PROCESS, driver.process.pid)
    os.kill(killed, signal.SIGKILL)
    (driver.out.parent / "go").touch()
    assert driver.end() == 0, driver.said
    check(driver.out, right)
    workers = read_json(driver.record)["workers"]
    assert sum(each["images"] for each in workers) == COUNT and "2 of them cannot be read" in driver.said
    assert any(not each["worker"].endswith(f":{killed}") for each in workers)
    assert {each["gpu"] for each in workers} <= {"0", "1"}  # dealt out by Ray, as real ones are


@with_ray
@pytest.mark.parametrize("number", [signal.SIGINT, *(pytest.param(each, marks=pytest.mark.slow) for each in KILLS)])
def test_a_driver_that_was_ended_does_the_rest_when_it_is_started_again(checkout, drive, right, number):
    """Also where one of its workers cannot load the plan, which costs only that worker; and without Ray."""
    driver = drive(broken(checkout.folder, hold=2))
    driver.wait_for(2)
    workers = driver.workers()
    driver.process.send_signal(number)
    assert driver.end() == (-number if number == signal.SIGKILL else 130), driver.said
    assert number == signal.SIGKILL or driver.said.endswith("broken: interrupted\n")
    while any(Path("/proc", str(worker)).exists() for worker in workers):  # they outlive a killed driver by a moment
        time.sleep(0.1)
    before = {path: path.stat().st_mtime_ns for path in driver.out.glob("*.csv")}
    by_ray = number == signal.SIGINT
    again = drive(broken(checkout.folder, fail=1)) if by_ray else drive(*ALONE)
    assert again.end() == 0, again.said
    assert f"{len(before)} of 10 shards are done already" in again.said
    assert ("this plan is no plan here" in again.said) == by_ray
    assert before == {path: path.stat().st_mtime_ns for path in before}
    forget_the_starts(driver.out)
    check(driver.out, right)


@with_ray
@pytest.mark.slow
def test_a_plan_that_no_worker_can_load_ends_the_run_with_its_reason(checkout, drive, right):
    driver = drive(broken(checkout.folder, fail=999))
    assert driver.end() == 3, driver.said
    last = driver.said.strip().splitlines()[-1]
    assert "this plan is no plan here" in last and not list(driver.out.glob("*.csv"))
    assert drive(*ALONE).end() == 0
    forget_the_starts(driver.out)
    check(driver.out, right)


@with_ray
@pytest.mark.slow
def test_a_picture_that_kills_is_told_and_costs_only_the_shards_beside_it(checkout, drive, right):
    driver = drive(broken(checkout.folder, kills=POISONED))
    assert driver.end() == 3, driver.said
    last = driver.said.strip().splitlines()[-1]
    assert "of 10 shards are not done" in last and "000000048-000000063" in last, driver.said
    assert len(list(driver.out.glob("*.csv"))) >= 7  # what was on its way beside it each time is left, too
    assert drive(*ALONE).end() == 0
    forget_the_starts(driver.out)
    check(driver.out, right)


def test_a_batch_counts_its_own_pictures_that_were_left_to_pillow():
    """Not those of other shards, which are on their way at the same time; and none that not even Pillow could read."""
    one, answers = flow.Flow.__new__(flow.Flow), SimpleQueue()
    left = {"0": "grey", "1": "cut", "9": "another batch's"}
    one.source = SimpleNamespace(decoder=SimpleNamespace(left_to_pillow=left))
    one.unreadable, one.predictions = {"1": "cut"}, Predictions([])
    one.here = SimpleNamespace(races=list, clock_ns=lambda: 5)
    one._going = deque([flow.Part([("0", b""), ("1", b""), ("2", b"")], answers)])
    one.finish(0, np.eye(3, dtype=np.float32))
    answer = answers.get()
    assert answer.by_pillow == 1 and [why for *_, why in answer.rows] == [None, "cut", None]
    one.here.races = lambda: ["of two streams"]
    one._going.append(flow.Part([("2", b"")], answers))
    one.finish(0, np.eye(3, dtype=np.float32))
    assert isinstance(answers.get(), WrongOutputs)  # whatever the rows are


def test_the_rate_of_a_gpu_is_not_counted_twice_where_its_worker_died():
    """Two workers of one GPU, a second each with ten pictures, one after the other: a GPU's rate, and another GPU's. Another
    host's GPUs have the same numbers."""

    def shard(worker, gpu, begun_s, host="host", scale=1):
        conditions = {"scale": scale, "gpu": gpu}
        counts = {"images": 10, "unreadable": 0, "by_pillow": 0}
        return {"worker": f"{host}:{worker}", "begun_s": begun_s, "ended_s": begun_s + 1.0, "conditions": conditions, **counts}

    done = [shard(1, "0", 0.0), shard(2, "0", 1.0), shard(3, "1", 0.0)]
    found = many.summary(done)
    assert found["images_per_s"] == 20 and [each["images_per_s"] for each in found["workers"]] == [10, 10, 10]
    assert many.summary([*done, shard(1, "0", 50.0, "other")])["images_per_s"] == 30
    assert many.summary([shard(1, "0", 0.0), shard(1, "0", 0.25)])["images_per_s"] == 16  # side by side
    assert many.summary([shard(1, "0", 0.0, scale=32)])["images_per_s"] == 320  # four pictures are charged as 128
    assert many.summary([shard(1, None, 0.0), shard(2, None, 0.0)])["images_per_s"] == 20  # simulated ones have no number
