"""Pictures of any number and size: read in order, in bounded memory, each looked at once."""

from __future__ import annotations

import csv
import os
import threading
import tracemalloc
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from common import answers
from common.errors import UsageFault
from common.feed import Feed
from common.images import DISTINCT, converted
from common.photographs import load_pixels
from common.pictures import Images, fill
from common.tensors import End, packed
from tests.conftest import SIMULATED
from tests.fuzz.place import memory_bounded
from tests.test_inputs import SIDE, expected, made  # noqa: F401  (a fixture)

TINY = ("--batch", "2", "--charge-batch", "2048")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Forty small pictures, of which some are broken: the first, one in the middle, the last two."""
    folder = tmp_path_factory.mktemp("many")
    for index in range(40):
        pixels = np.random.default_rng(index).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((20, 20), Image.Resampling.BILINEAR).save(folder / f"{index:02d}.png")
    for index in (0, 21, 38, 39):
        (folder / f"{index:02d}.png").write_bytes(b"broken")
    return folder


READABLE = [f"{index:02d}.png" for index in range(40) if index not in (0, 21, 38, 39)]


def arrays(sizes, dtype="u1"):
    return (np.empty((size, 3, SIDE, SIDE), dtype) for size in cycle(sizes))


# -- reading


@pytest.mark.parametrize("folder", [".", "./", "some", "some/", "./some/", "some/..", "some/inner/..", "some/a.png"])
def test_a_picture_s_name_is_its_path_in_the_folder(folder, tmp_path, monkeypatch):
    (tmp_path / "some" / "inner").mkdir(parents=True)
    for name in ("some/a.png", "some/inner/b.PNG"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for given in (Path(folder), tmp_path / folder):
        place = given.parent if given.is_file() else given
        wanted = (
            [given.name] if given.is_file() else sorted(found.relative_to(place).as_posix() for found in given.rglob("*.[pP]*"))
        )
        assert list(Images(given, (3, SIDE, SIDE), 1, encoded=True).names()) == wanted and wanted


def test_pictures_come_in_order_and_broken_ones_are_skipped_by_name(many, capsys):
    images = Images(many, (3, SIDE, SIDE), 1)
    found = list(images.read("u1"))
    assert [name for name, _ in found] == READABLE
    assert all((pixels == load_pixels(many / name, SIDE, SIDE)).all() for name, pixels in found)
    assert [text.split(":")[0] for text in images.unreadable] == ["00.png", "21.png", "38.png", "39.png"]
    assert capsys.readouterr().err.count("skipped") == 4
    assert [name for name, _ in Images(many, (3, SIDE, SIDE), 1).read("f4", 38)] == []


def test_no_more_is_read_than_somebody_asks_for(many):
    before = threading.active_count()
    images = Images(many, (3, SIDE, SIDE), 1)
    read = images.read("u1")
    assert next(read)[0] == "01.png"
    read.close()
    assert len(images.unreadable) == 1 and threading.active_count() == before


def test_a_batch_that_is_not_filled_repeats_its_first_pictures():
    rows = [(str(value), np.full((3, 2, 2), value, np.uint8)) for value in range(3)]
    batch = np.empty((8, 2, 2, 3), np.uint8)
    assert fill(batch, iter(rows)) == ["0", "1", "2"]
    assert batch[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_nothing_but_broken_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UsageFault, match="none of its 1 images can be read"):
        Feed(Images(tmp_path, (3, SIDE, SIDE), 1), arrays([2]), [2], None)


# -- batches


@pytest.mark.parametrize(
    "sizes, most", [([4], None), ([1], None), ([2], 3), ([3, 1], None), ([1, 3, 2], 4), ([64], None), ([36], 9)]
)
@pytest.mark.parametrize("memory", [0, 20_000])
def test_every_picture_is_in_the_batches_once_and_in_order(many, sizes, most, memory, monkeypatch):
    monkeypatch.setattr("common.feed.MEMORY", memory)
    feed = Feed(Images(many, (3, SIDE, SIDE), 1), arrays(sizes), sizes, most)
    assert [len(batch) for batch in feed.batches] == [size for size, _ in zip(cycle(sizes), feed.batches)]
    assert len(feed.batches) <= min(-(-DISTINCT // len(sizes)) * len(sizes), most or 99)
    seen = [(batch.copy(), names) for batch, names in zip(feed.batches, feed.names)]
    assert most or len(seen) % len(sizes) == 0
    first = sum(map(len, feed.names))
    assert feed.left == 0 or feed.left == 40 - first - 1 - (first >= 20)
    for turn in feed.turns():
        seen += [(batch.copy(), names) for batch, names in turn]
    assert [name for _, names in seen for name in names] == READABLE
    for batch, names in seen:
        for row, name in zip(batch, names):
            assert (row == load_pixels(many / name, SIDE, SIDE)).all()


def test_a_turn_is_left_alone_while_it_is_in_use(many):
    feed = Feed(Images(many, (3, SIDE, SIDE), 1), arrays([2]), [2], None)
    for turn in feed.turns():
        before = [batch.copy() for batch, _ in turn]
        threading.Event().wait(0.02)  # the other half is filled meanwhile
        assert all((batch == copy).all() for (batch, _), copy in zip(turn, before))


def test_turns_that_nobody_finishes_leave_no_thread(many):
    before, feed = threading.active_count(), Feed(Images(many, (3, SIDE, SIDE), 1), arrays([2]), [2], None)
    turns = feed.turns()
    next(turns)
    turns.close()
    assert threading.active_count() == before


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path, monkeypatch):
    """As floats they would be 120 MB; the batches are 10 MB, and what is read ahead with them less than 20."""
    monkeypatch.setattr("common.feed.MEMORY", 10_000_000)
    side = 100
    Image.new("RGB", (side, side)).save(tmp_path / "0.png")
    for index in range(1, 1000):
        os.link(tmp_path / "0.png", tmp_path / f"{index}.png")
    tracemalloc.start()
    allocated = (np.empty((4, 3, side, side), np.float32) for _ in iter(int, 1))
    feed = Feed(Images(tmp_path, (3, side, side), 1), allocated, [4], None)
    seen = sum(map(len, feed.names)) + sum(len(names) for turn in feed.turns() for _, names in turn)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == 1000 and peak < 20e6, f"{peak / 1e6:.0f} MB"


# -- large ones


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "1", "CMYK", "RGB"])
def test_a_large_picture_is_not_copied(tmp_path, mode):
    size = 7000
    Image.new(mode, (size, size)).save(tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}")
    pixel = {"RGBA": 4, "LA": 4, "CMYK": 4, "RGB": 4}.get(mode, 1)  # as Pillow has it in memory
    with memory_bounded(64 + pixel * size * size / 1e6):
        load_pixels(next(tmp_path.iterdir()), 224, 224)


@pytest.mark.parametrize("size", [(1000, 1000), (3001, 1499), (700, 2110), (13, 900), (450, 448)])
@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_a_picture_in_strips_is_the_picture_in_one(tmp_path, size, mode):
    """A smooth one; and which way up it is."""
    columns, rows = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    smooth = np.stack([columns * 255, rows * 255, (columns + rows) * 127], -1).astype(np.uint8)
    picture, exif = Image.fromarray(smooth).convert("RGB" if mode == "RGBA" else "L"), Image.Exif()
    exif[0x0112] = 6
    picture.convert(mode).save(tmp_path / "it.png", exif=exif)
    picture.convert(mode).convert("RGB").save(tmp_path / "rgb.png", exif=exif)
    found, same = (load_pixels(tmp_path / name, 60, 50).astype(int) for name in ("it.png", "rgb.png"))
    assert np.abs(found - same).max() <= 4


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    columns, rows = np.meshgrid(np.linspace(0, 1, 4000), np.linspace(0, 1, 3000))
    smooth = np.stack([columns * 255, rows * 255, 128 + 100 * np.sin(9 * columns)], -1).astype(np.uint8)
    for name in ("it.jpg", "it.png"):
        Image.fromarray(smooth).save(tmp_path / name)
    with memory_bounded(64):
        found = load_pixels(tmp_path / "it.jpg", 224, 224)
    assert np.abs(found.astype(int) - load_pixels(tmp_path / "it.png", 224, 224)).max() <= 6


# -- answers


@pytest.mark.parametrize(
    "stage, batch", [("1_baseline", 2), ("6_multi_threads", 2), ("7_cuda_graph", 5), ("9_multi_profiles", 2)]
)
def test_a_stage_answers_for_all_pictures(checkout, made, many, tmp_path, stage, batch):  # noqa: F811
    """Thirty-six in batches of two (and of one): sixteen or less are measured. In batches of five one is not filled."""
    path, plan = tmp_path / "predictions.csv", made(kind="u1", last=True)
    done = checkout.run(f"{stage}.py", *SIMULATED, "--plan", plan, "--batch", batch, "--images", many, "--predictions", path)
    assert done.returncode == 0 and done.stderr.count("skipped") == 4, done.stdout + done.stderr
    rows = list(csv.DictReader(path.open()))
    assert [row["image"] for row in rows] == READABLE
    pixels = np.stack([load_pixels(many / name, SIDE, SIDE) for name in READABLE])
    logits = expected(converted(pixels, "f4"))["logits"]
    assert [int(row["class"]) for row in rows] == logits.argmax(axis=1).tolist()
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [float(row["probability"]) for row in rows] == pytest.approx(shares.max(axis=1).tolist(), abs=1e-4)


def test_pictures_beyond_the_measured_ones_are_named_where_nobody_asks_for_them(checkout, many):
    done = checkout.run("4_use_fp16.py", *SIMULATED, "--plan", checkout.tiny, *TINY, "--images", many)
    assert done.returncode == 0 and "the first 16 of 39 images are measured" in done.stderr, done.stderr


def test_the_likeliest_classes_of_all_pictures(checkout, many):
    done = checkout.run("4_use_fp16.py", *SIMULATED, "--plan", checkout.tiny, *TINY, "--images", many, "--top", "1")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.endswith(".png")] == READABLE


@pytest.mark.parametrize("outputs, batch", [("map", 2), ("logits", 5), ("logits map best", 7)])
def test_outputs_of_all_pictures_as_an_array(checkout, made, many, tmp_path, outputs, batch):  # noqa: F811
    """Where they do not fill the last batch, what it repeats is left out."""
    path, plan = tmp_path / "outputs.npy", made(kind="u1", outputs=outputs)
    what = (*SIMULATED, "--plan", plan, "--batch", batch, "--images", many)
    done = checkout.run("6_multi_threads.py", *what, "--predictions", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "outputs.npy.txt").read_text().split() == READABLE
    found = np.load(path, mmap_mode="r")
    right = expected(converted(np.stack([load_pixels(many / name, SIDE, SIDE) for name in READABLE]), "f4"))
    assert len(found) == len(READABLE)
    for name in outputs.split():
        values = found[name] if " " in outputs else found
        assert values.shape == right[name].shape and np.abs(values - right[name]).max() < 1e-4


def test_the_names_of_the_outputs_are_a_result_too(checkout, many, tmp_path):
    what = ("1_baseline.py", *SIMULATED, "--plan", checkout.tiny, *TINY, "--predictions", tmp_path / "x.npy")
    done = checkout.run(*what, "--json", tmp_path / "x.npy.txt")
    assert done.returncode == 2 and "two results cannot be one file" in done.stderr
    (tmp_path / "x.npy.txt").mkdir()
    done = checkout.run(*what)
    assert done.returncode == 3 and "x.npy.txt: it is there" in done.stderr and not done.stdout
    done = checkout.run(*what[:-1], f"{checkout.tiny}.json")
    assert done.returncode == 2 and "is what the run reads" in done.stderr


def test_outputs_of_any_name_are_written(tmp_path):
    ends = [End("ü→", (-1, 2), "FLOAT"), *(End("long name " * 9 + str(index), (-1, 2), "FLOAT") for index in range(1000))]
    shape, kind = packed(ends, 2)
    outputs = np.zeros(shape, kind)
    outputs["ü→"] = [[[1, 2], [3, 4]]]
    run = SimpleNamespace(engine=SimpleNamespace(outputs=ends), names=[["a", "b"]], distinct=1, outputs=[outputs])
    answers.write_outputs(tmp_path / "x.npy", iter([run]))
    found = np.load(tmp_path / "x.npy", max_header_size=10**6)
    assert found["ü→"].tolist() == [[1, 2], [3, 4]] and len(found.dtype) == 1001


@pytest.mark.parametrize("words", [("--top", "2"), ("--predictions", "x.csv")])
def test_classes_of_what_has_none_are_refused(checkout, made, words):  # noqa: F811
    done = checkout.run("4_use_fp16.py", *SIMULATED, "--plan", made(kind="u1", outputs="map"), "--batch", "2", *words)
    assert done.returncode == 2 and "gives map FLOAT [-1, 6, 16, 16]" in done.stderr and done.stderr.count("error:") == 1
