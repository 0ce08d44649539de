"""JPEG files to pixels: every decoder gives the same pictures, each in its row, and what a decoder cannot read is Pillow's."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from common import backend, cuda, decode, decoders, jpeg, reader
from common import trace as traces
from common.buffers import DeviceBuffer
from common.errors import EnvironmentFault, UsageFault
from common.images import converted, write
from common.photographs import Loader, load_pixels, synthetic_jpeg
from common.pictures import Images
from export.models import run_onnx
from harness.decoders import make_files, read_rate
from peers.dali import pictures
from reports.made.photographs import cut_out
from sim import device as devices
from tests.conftest import CHEAP, SIMULATED
from tests.test_inputs import SIDE, here, made  # noqa: F401  (fixtures)

OTHERS = [name for name in ("torchvision", "opencv") if all(map(find_spec, jpeg.MODULES[name][0]))]  # imported when used
STAGE = "11_jpeg_decode.py"
TAKEN = SimpleNamespace(input_shape=lambda batch: (batch, 3, SIDE, SIDE), input_type=np.dtype("u1"))


def encoded(seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (90, 70), kind: str = "JPEG", **how) -> bytes:
    """A smooth picture with a coarse pattern, as a file."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode).save(file, kind, **{"quality": 90, **how})
    return file.getvalue()


def lying() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(exif=exif)


def lying_by_xmp() -> bytes:
    return encoded(xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')


def rgb() -> bytes:
    """Without Adobe's segment, so that only the components' names say it."""
    data = encoded(keep_rgb=True)
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


ODD = {  # what is in a file, and what is found odd about it
    "a-progressive": (encoded(1, progressive=True), "progressive"),
    "b-grey": (encoded(2, "L"), "no three colours of 8 bits"),
    "c-cmyk": (encoded(3, "CMYK"), "colours of Adobe's"),
    "c-rgb": (rgb(), "colours that are RGB"),
    "d-lying": (lying(), "not upright"),
    "d-lying-by-xmp": (lying_by_xmp(), "not upright"),
    "e-png": (encoded(5, kind="PNG"), "no JPEG"),
    "f-longer": (encoded(6) + b"more", "its end is no JPEG's"),
    "g-thin": (encoded(7, size=(8, 300)), None),
    "h-upright": (encoded(8, exif=Image.Exif()), None),
    "i-444": (encoded(9, subsampling=0), None),
}
BROKEN = {
    "j-cut": (encoded(10)[:500], "its end is no JPEG's"),
    "k-empty": (b"", "empty"),
    "l-text": (b"no picture" * 9, "no JPEG"),
    "m-header": (b"\xff\xd8\x00" + encoded(11), "a damaged header"),
    "n-no-frame": (b"\xff\xd8\xff\xda\x00\x02\xff\xd9", "no frame"),
    "o-huge": (encoded(12).replace(b"\x00\x46\x00\x5a", b"\xff\xff\xff\xff", 1), "65535×65535"),
}


@pytest.fixture(scope="module")
def photographs() -> list[Path]:
    datasets = pytest.importorskip("sklearn.datasets")
    return sorted((Path(datasets.__file__).parent / "images").glob("*.jpg"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Plain files, and odd and broken ones between them."""
    folder = tmp_path_factory.mktemp("mixed")
    for name, (data, _) in {**ODD, **BROKEN}.items():
        (folder / f"{name}.jpg").write_bytes(data)
        (folder / f"{name}-before.jpg").write_bytes(encoded(sum(name.encode())))
    return folder


@pytest.mark.parametrize("name", [*ODD, *BROKEN])
def test_what_only_pillow_decodes_is_told_by_its_header(name):
    data, why = {**ODD, **BROKEN}[name]
    assert jpeg.oddity(data) == jpeg.oddity(memoryview(data)) == why
    if name in ODD:
        assert load_pixels(data, 8, 8).shape == (3, 8, 8)


@pytest.mark.parametrize("length", range(2, 700, 7))
def test_a_header_that_ends_anywhere_ends_the_search(length):
    data = encoded()[:length]
    assert jpeg.oddity(data + jpeg.END) in (None, "no frame", "a damaged header", "no three colours of 8 bits")


@given(st.data())
def test_a_damaged_header_is_read_without_harm(data):
    """Bytes of a real one changed, among them those of its EXIF segment."""
    content = bytearray(data.draw(st.sampled_from([lying(), encoded(), encoded(mode="CMYK")])))
    for place in data.draw(st.lists(st.integers(0, 700), min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    why = jpeg.oddity(bytes(content))
    assert why == jpeg.oddity(memoryview(content)) and (why is None or why)


@pytest.mark.parametrize("name", OTHERS)
def test_decoders_give_the_same_pictures_and_the_same_classes(checkout, photographs, name):
    """Of photographs: whole, cropped, scaled, of several qualities and subsamplings."""
    files = [path.read_bytes() for path in photographs]
    for number, path in enumerate(photographs * 6):
        with Image.open(path) as picture:
            part = picture.crop((20 * number, 10 * number, 300 + 25 * number, 250 + 10 * number)).resize((500, 375))
            file = BytesIO()
            part.save(file, "JPEG", quality=60 + 6 * (number % 6), subsampling=number % 3)
            files.append(file.getvalue())
    load, by_pillow = Loader(name, 224, 224), Loader("pillow", 224, 224)
    found, same = (np.stack([each(str(index), data) for index, data in enumerate(files)]) for each in (load, by_pillow))
    assert not load.left_to_pillow
    difference = np.abs(found.astype(int) - same)
    assert difference.max() <= 8 and difference.mean() < 0.5
    model = checkout.models / "resnet18-fp32.onnx"
    classes = [run_onnx(model, converted(pixels, np.float32)).argmax(axis=1) for pixels in (found, same)]
    assert (classes[0] == classes[1]).all()


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (1000, 40), (13, 700), (640, 427)])
@pytest.mark.parametrize("wanted", [(224, 224), (96, 160)])
def test_the_part_that_the_gpu_scales_is_the_part_that_pillow_scales(size, wanted):
    with Image.open(BytesIO(encoded(4, size=size))) as picture:
        top, left, bottom, right = decoders.seen(size[1], size[0], *wanted)
        own = picture.resize(wanted[::-1], Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        fit = ImageOps.fit(picture, wanted[::-1], Image.Resampling.BILINEAR, bleed=1 / 16)
        assert np.abs(np.asarray(own).astype(int) - np.asarray(fit)).max() <= 1


def test_a_decoder_that_is_not_there_is_named_with_its_command(here, monkeypatch):  # noqa: F811
    monkeypatch.setattr(jpeg, "installed", lambda name: name == "pillow")
    assert decode.choose("auto", TAKEN) == jpeg.ON_DEVICE  # the simulated GPU has its own
    assert decode.choose("auto", None) == "pillow"
    with pytest.raises(EnvironmentFault, match="--decoder opencv needs cv2: pip install opencv-python-headless"):
        decode.choose("opencv", TAKEN)
    monkeypatch.setattr(backend, "_current", SimpleNamespace(simulator=None))
    assert decode.choose("auto", TAKEN) == "pillow"


def test_a_decoder_that_cannot_be_imported_is_not_there(monkeypatch):
    def unfit(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(jpeg, "import_module", unfit)
    assert not jpeg.installed("torchvision")


@pytest.mark.parametrize("simulator", [None, "one"])
def test_the_gpu_s_decoder_asks_for_a_plan_of_bytes(monkeypatch, simulator):
    """And where no decoder was asked for, a decoder of the host takes its place, with a note."""
    monkeypatch.setattr(backend, "_current", SimpleNamespace(simulator=simulator))
    monkeypatch.setattr(jpeg, "installed", lambda name: True)
    monkeypatch.setattr(decoders, "shared_out", lambda threads: map)
    facts = {"input_shape": lambda batch: (batch, 3, 8, 8), "plan": "a.plan", "input": "x f4", "notes": []}
    floats = SimpleNamespace(**facts, input_type=np.dtype("f4"))
    with pytest.raises(UsageFault, match=r"a\.plan takes x f4: build it with --input bytes"):
        decode.make(decode.choose(jpeg.ON_DEVICE, floats), floats)
    assert decode.choose("auto", floats) == next(name for name in jpeg.MODULES if name != jpeg.ON_DEVICE)
    assert [note.split(" writes ")[0] for note in floats.notes] == ["not decoded on the GPU: its decoder"]


@pytest.mark.parametrize("data", [BROKEN[name][0] for name in BROKEN])
@pytest.mark.parametrize("decoder", ["nvimagecodec", "pillow"])
def test_a_file_that_is_broken_during_the_run_ends_it_by_its_name(here, data, decoder):  # noqa: F811
    with pytest.raises(EnvironmentFault, match=r"b\.jpg can no longer be decoded"):
        decode.make(decoder, TAKEN).to_host([("a.jpg", encoded()), ("b.jpg", data)], np.empty((2, 3, SIDE, SIDE), np.uint8))


def test_only_images_of_the_result_are_named_in_it():
    assert decode.told({"far": "progressive"}, ["a", "b"]) == []
    assert decode.told({"far": "x", "b": "its end is no JPEG's"}, ["a", "b"]) == [
        "1 of 2 images were decoded by Pillow: b (its end is no JPEG's)"
    ]


@pytest.mark.parametrize("name", OTHERS)
def test_every_stage_reads_by_any_decoder_of_the_cpu(checkout, made, mixed, right, tmp_path, name):  # noqa: F811
    plan = (*SIMULATED, "--plan", made(kind="u1", last=True), "--batch", "4", "--decoder", name)
    found, printed = answers(checkout, mixed, tmp_path / "6.csv", "6_multi_threads.py", *plan)
    assert found == right and "were decoded by Pillow" in printed


def test_the_gpu_s_decoder_is_stage_11_s(checkout, mixed):
    done = checkout.run("4_use_fp16.py", *SIMULATED, *CHEAP, "--images", mixed, "--decoder", "nvimagecodec")
    assert done.returncode == 2 and "where 11_jpeg_decode.py takes them" in done.stderr


@pytest.mark.parametrize("count", [1, 16, 17, 40, 128])
def test_files_are_read_in_the_order_of_the_rows(here, tmp_path, count):  # noqa: F811
    """The serial run gets its pixels of the same files, and could not tell."""
    contents: dict[str, Path | Callable[[], bytes]] = {str(index): str(index).encode for index in range(33)}
    contents["7"] = tmp_path / "7.jpg"
    contents["7"].write_bytes(b"7")
    found = decode.Source(contents, decode.CpuDecoder("pillow", TAKEN)).read(list(contents), count).result()
    assert found == [(str(row % 33), str(row % 33).encode()) for row in range(count)]


@pytest.mark.skipif(not reader.THERE, reason="no memory between processes on this system")
@pytest.mark.parametrize("name", ["pillow", *OTHERS])
def test_beside_a_gpu_a_process_reads_and_every_decoder_takes_what_it_gives(here, monkeypatch, tmp_path, name):  # noqa: F811
    here.simulator.close()
    monkeypatch.setattr(backend, "_current", dataclasses.replace(here, simulator=None))
    sources: dict[str, Path | Callable[[], bytes]] = {}
    for index, data in enumerate([encoded(1), lying(), encoded(2, "CMYK"), lying_by_xmp(), encoded(3)[:-99], b"", encoded(4)]):
        sources[str(index)] = tmp_path / f"{index}.jpg"
        (tmp_path / f"{index}.jpg").write_bytes(data)
    found, right = np.empty((2, 9, 3, SIDE, SIDE), np.uint8)
    decoder = decode.make(name, TAKEN, dict[str, str]())
    files = decode.Source(sources, decoder).read(list(sources), 9).result()
    assert all(isinstance(data, memoryview) for _, data in files)
    decoder.decode(files, found)
    left, unreadable = dict(decoder.left_to_pillow), dict(decoder.load.unreadable)
    decoder = decode.make(name, TAKEN, dict[str, str]())
    decoder.decode([(name, bytes(data)) for name, data in files], right)
    assert (found == right).all() and (left, unreadable) == (decoder.left_to_pillow, decoder.load.unreadable)
    sources["1"] = encoded  # is made, not read: so a thread gets them all
    assert not any(isinstance(data, memoryview) for _, data in decode.Source(sources, decoder).read(list(sources), 9).result())


def test_what_is_no_file_is_empty_at_once(tmp_path):
    """A pipe that nobody writes to, a device without an end, a folder, nothing."""
    (tmp_path / "one.jpg").write_bytes(b"one")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    (tmp_path / "linked.jpg").symlink_to("one.jpg")
    (tmp_path / "huge.jpg").touch()
    os.truncate(tmp_path / "huge.jpg", 1 << 42)
    names = ("one", "linked", "pipe", "endless", "gone", "huge")
    paths, found = [*(tmp_path / f"{name}.jpg" for name in names), tmp_path], [b"one", b"one", b"", b"", b"", b"", b""]
    assert [*map(reader.content, paths)] == found
    if reader.THERE:
        assert reader.Reader().read(paths) == found and reader.Reader().read(paths[2:]) == found[2:]


@pytest.mark.skipif(not reader.THERE, reason="no memory between processes on this system")
def test_the_process_that_reads_ends_with_its_maker_and_not_before(tmp_path):
    (path := tmp_path / "a").write_bytes(b"a")

    def gone(pid: int) -> bool:
        return not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    files = reader.Reader()
    kept = files.read([path] * 3)
    os.kill(files.pid, signal.SIGKILL)
    with pytest.raises(EnvironmentFault, match="has ended"):
        files.read([path])
    files = reader.Reader()
    pid = files.pid
    opened = len(os.listdir("/proc/self/fd"))
    assert all(files.read([path]) == [b"a"] for _ in range(50)) and len(os.listdir("/proc/self/fd")) == opened
    assert not gone(pid) and os.getsid(pid) != os.getsid(0), "Ctrl-C is its maker's"
    os.kill(pid, signal.SIGSTOP)
    del files
    assert gone(pid) and kept == [b"a"] * 3
    assert [bytes(each) for each in reader.Reader().read([path, tmp_path / "none", path])] == [b"a", b"", b"a"]

    program = (
        "import sys, time; from common.reader import Reader; files = Reader(); print(files.pid, flush=True); time.sleep({})"
    )
    for seconds in (60, 0):
        with subprocess.Popen([sys.executable, "-c", program.format(seconds)], stdout=subprocess.PIPE, text=True) as maker:
            assert maker.stdout is not None
            pid = int(maker.stdout.readline())
            if seconds:
                maker.kill()
        until = time.monotonic() + 10
        while not gone(pid) and time.monotonic() < until:
            time.sleep(0.02)
        assert gone(pid), seconds


@pytest.mark.skipif(not reader.THERE, reason="no memory between processes on this system")
def test_a_process_that_cannot_read_says_why_and_where_there_can_be_none_a_thread_reads(here, monkeypatch, tmp_path):  # noqa: F811
    (path := tmp_path / "é").write_bytes(bytes(9000))
    program = (
        "import resource, sys; from pathlib import Path; from common.reader import Reader; files = Reader()\n"
        "resource.prlimit(files.pid, resource.RLIMIT_FSIZE, (4096, -1))\n"
        "for _ in range(2):\n try: files.read([Path(sys.argv[1])])\n except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    first, then = done.stdout.splitlines()
    assert first.endswith("has ended, or cannot: [Errno 27] File too large.") and "handle is closed" in then
    here.simulator.close()
    monkeypatch.setattr(backend, "_current", dataclasses.replace(here, simulator=None))
    for executable in ("", None, "/nowhere"):
        monkeypatch.setattr(sys, "executable", executable)
        assert decode.Source({"é": path}, decode.make("pillow", TAKEN)).read(["é"], 2).result() == [("é", bytes(9000))] * 2


def test_two_names_that_print_alike_are_two_files(tmp_path):
    for number, name in enumerate(["a\x07.jpg", "a\\x07.jpg"]):
        (tmp_path / name).write_bytes(encoded(number))
    images = Images(tmp_path, (3, SIDE, SIDE), seed=1, encoded=True)
    sources = [images.sources[name] for name in images.names()]
    assert [path.read_bytes() for path in sources if isinstance(path, Path)] == [encoded(0), encoded(1)]


# -- in the stage


def answers(checkout, folder, path, *arguments) -> tuple[list[tuple[str, str]], str]:
    done = checkout.run(*arguments, "--images", folder, "--predictions", path)
    assert done.returncode == 0, done.stdout + done.stderr
    return [(row["image"], row["class"]) for row in csv.DictReader(path.open())], done.stdout + done.stderr


@pytest.fixture(scope="module")
def right(checkout, made, mixed, tmp_path_factory) -> list[tuple[str, str]]:  # noqa: F811
    """What a stage without a decoder of its own says of them."""
    plan = (*SIMULATED, "--plan", made(kind="u1", last=True), "--batch", "4")
    return answers(checkout, mixed, tmp_path_factory.mktemp("right") / "4.csv", "4_use_fp16.py", *plan)[0]


@pytest.mark.parametrize(
    "decoder, batch", [("nvimagecodec", "1"), *((name, "4") for name in ("nvimagecodec", "pillow", *OTHERS))]
)
def test_odd_and_broken_files_move_no_row(checkout, made, mixed, right, tmp_path, decoder, batch):  # noqa: F811
    """Twenty-eight that can be read: at batch 1 eight are measured, and the others answered afterwards."""
    plan = (*SIMULATED, "--plan", made(kind="u1", last=True), "--batch", batch)
    found, printed = answers(checkout, mixed, tmp_path / "11.csv", STAGE, *plan, "--decoder", decoder)
    assert [name for name, _ in found] == sorted(f"{name}{more}.jpg" for name in ODD for more in ("", "-before")) + [
        f"{name}-before.jpg" for name in BROKEN
    ]
    assert found == right and printed.count("skipped") == len(BROKEN)
    if batch == "1":
        assert re.search(rf"all images  the other {len(found) - 8} at [\d,]+ images/s, from the disk to their answers", printed)
        assert f"of all {len(found)} images {sum(why is not None for _, why in ODD.values())} were decoded by Pillow" in printed
    if decoder != "pillow":
        assert "were decoded by Pillow" in printed and "a-progressive.jpg (progressive)" in printed


@pytest.mark.parametrize("decoder", ["nvimagecodec", "pillow"])
def test_an_image_that_is_not_measured_is_decoded_once(checkout, made, tmp_path, decoder):  # noqa: F811
    """In the pipeline, but for those drawn for the serial run, as many batches as are measured; what cannot be read, once."""
    folder, codes = tmp_path / "files", {index: encoded(index) for index in range(20)}
    folder.mkdir()
    for index, data in codes.items():
        (folder / f"{index:02d}.jpg").write_bytes(data if index != 15 else BROKEN["j-cut"][0])
    done = checkout.run("-c", "import collections, runpy, sys\nfrom common import photographs\n"
                        "seen, load = collections.Counter(), photographs.load_pixels\n"
                        "def counted(source, *size):\n"
                        "    seen[source if isinstance(source, bytes) else source.read_bytes()] += 1\n"
                        "    return load(source, *size)\n"
                        "photographs.load_pixels = counted\n"
                        f"sys.argv = ['{STAGE}', '--backend', 'simulated', '--batch', '1', '--decoder', '{decoder}', "
                        f"'--images', '{folder}', '--plan', '{made(kind='u1')}', "
                        f"'--predictions', '{tmp_path / 'a.csv'}', '--json', '{tmp_path / 'a.json'}']\n"
                        f"try:\n    runpy.run_path('{STAGE}', run_name='__main__')\n"
                        "finally:\n    print('counted', sorted(seen.values()))")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.split("counted ")[1])
    assert 0 < json.loads((tmp_path / "a.json").read_text())["folder_images_per_s"] < 1e5
    assert counts[:12] == [*4 * [1], *8 * [2]] and len(counts) == 20 and min(counts[12:]) > 2, counts
    rows = (tmp_path / "a.csv").read_text().splitlines()
    assert [row.split(".")[0] for row in rows[1:]] == [f"{index:02d}" for index in range(20) if index != 15]


DRIVEN = """import runpy, sys
import numpy as np
from common import decode, decoders, folder
{change}
sys.argv = ['{stage}', '--backend', 'simulated', '--batch', '1', '--decoder', 'nvimagecodec', '--images', '{images}',
            '--plan', '{plan}', '--predictions', '{answers}']
runpy.run_path('{stage}', run_name='__main__')
"""


def driven(checkout, made, tmp_path, change: str):  # noqa: F811
    """Stage 11 on the names of twenty files, of which a batch is one and twelve are not measured, with something changed."""
    (tmp_path / "files").mkdir()
    for index in range(20):
        (tmp_path / "files" / f"{index:02d}.jpg").write_bytes(encoded(index))
    facts = {"stage": STAGE, "images": tmp_path / "files", "plan": made(kind="u1"), "answers": tmp_path / "a.csv"}
    return checkout.run("-c", DRIVEN.format(change=change, **facts))


def test_rows_that_are_shifted_in_a_folder_are_found(checkout, made, tmp_path):  # noqa: F811
    """By what is looked at."""
    done = driven(
        checkout,
        made,
        tmp_path,
        """
finish, late = folder.Once.finish, []
folder.Once.finish = lambda run, index, outputs: finish(run, index, late.append(outputs.copy()) or late[max(0, index - 1)])""",
    )
    assert done.returncode == 1 and "wrong outputs" in done.stderr and not (tmp_path / "a.csv").exists(), done.stderr


def test_a_folder_whose_outputs_fill_the_memory_is_several_runs(checkout, made, tmp_path):  # noqa: F811
    """Of as many batches as are measured, at least; their rows are those of one."""
    found = []
    for name, change in {"one": "", "several": "folder.MEMORY = 1"}.items():
        (tmp_path / name).mkdir()
        told = "\nmake = folder.Once.__init__\nfolder.Once.__init__ = lambda *how: (make(*how), print('run of', how[2]))[0]"
        done = driven(checkout, made, tmp_path / name, change + told)
        assert done.returncode == 0, done.stderr
        found.append((re.findall(r"run of (\d+)", done.stdout), (tmp_path / name / "a.csv").read_text()))
    assert [lengths for lengths, _ in found] == [["12"], ["8", "4"]] and found[0][1] == found[1][1]


@pytest.mark.parametrize("batch", ["1", "2"])
def test_outputs_of_a_folder_have_a_row_for_each_readable_file(checkout, made, mixed, tmp_path, batch):  # noqa: F811
    """Broken ones among them, in full batches and in the last one."""
    plan = (*SIMULATED, "--plan", made(kind="u1", last=True), "--batch", batch)
    for stage in (STAGE, "4_use_fp16.py"):
        done = checkout.run(stage, *plan, "--images", mixed, "--predictions", tmp_path / f"{stage}.npy")
        assert done.returncode == 0, done.stderr
    own, right = (np.load(tmp_path / f"{stage}.npy") for stage in (STAGE, "4_use_fp16.py"))
    assert len(own) == len(ODD) * 2 + len(BROKEN) and np.abs(own - right).max() < 0.05
    assert (tmp_path / f"{STAGE}.npy.txt").read_text() == (tmp_path / "4_use_fp16.py.npy.txt").read_text()


def test_a_damaged_file_of_a_folder_is_decoded_again_by_pillow(checkout, made, tmp_path):  # noqa: F811
    """One of those that are looked at. The run in which it was another picture is worth nothing, whatever it said of it."""
    bad = f"{8 + random.Random(10088).sample(range(12), 8)[3]:02d}.jpg"
    done = driven(
        checkout,
        made,
        tmp_path,
        f"""
class Forgetful(decoders.GpuDecoder):
    def _by_pillow(self, files):
        found = super()._by_pillow(files)
        for row, (name, _) in enumerate(files):
            if name == '{bad}' and name not in self.apart:
                found[row] = np.random.default_rng().integers(0, 256, found[row].shape)
        return found

    def to_host(self, files, destination):
        super().to_host(files, destination)
        self.apart.update({{name: 'a damaged scan' for name, _ in files if name == '{bad}'}})

decode.GpuDecoder = Forgetful""",
    )
    assert done.returncode == 0 and "of all 20 images 1 were decoded by Pillow" in done.stderr, done.stderr
    plan = (*SIMULATED, "--plan", made(kind="u1"), "--batch", "1")
    answers(checkout, tmp_path / "files", tmp_path / "4.csv", "4_use_fp16.py", *plan)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "4.csv").read_text()


@pytest.mark.parametrize("decoder", ["nvimagecodec", "pillow"])
def test_a_batch_takes_what_its_decoder_takes(checkout, tmp_path, decoder):
    """Closed form: 128 files at the device file's rate; copy, compute and post-processing are hidden."""
    path, traced = tmp_path / "11.json", tmp_path / "11.sqlite"
    results = ("--no-controls", "--json", path, "--trace", traced)
    done = checkout.run(STAGE, *SIMULATED, *CHEAP, "--measure", "3", "--decoder", decoder, *results)
    assert done.returncode == 0, done.stdout + done.stderr
    record, device = json.loads(path.read_text()), devices.load("h200")
    decode_ms = 128 / device.decode_rates[decoder] / 1e6
    assert record["parts_ms"]["decode"] == pytest.approx(decode_ms, rel=0.01)
    assert record["per_batch_ms"] == pytest.approx(decode_ms, rel=0.02)
    assert record["outputs_match"] is True and record["max_abs_diff"] == 0 and record["races"] == 0
    assert (record["parts_ms"]["h2d"] == 0) == (decoder == "nvimagecodec")  # its files go over the link while it decodes
    trace = traces.read(traced)  # its batches have one number in all rows
    assert len(trace.decode) == len(trace.infer) and (trace.decode[:, 1] <= trace.infer[:, 0]).all()
    assert (trace.decode[1:, 1] > trace.infer[:-1, 0]).all()
    assert "decode, the longest part by itself" in done.stdout and "\n  decode " in done.stdout


def test_a_modelled_gpu_without_a_rate_is_refused(checkout):
    done = checkout.run("-c", "import sys, runpy\nfrom sim import device\nload = device.load\n"
                        "import dataclasses\ndevice.load = lambda key: dataclasses.replace(load(key), decode_rates={})\n"
                        f"sys.argv = ['{STAGE}', '--backend', 'simulated', '--batch', '2']\n"
                        f"runpy.run_path('{STAGE}', run_name='__main__')")  # fmt: skip
    assert done.returncode == 2 and "no rate of the decoder nvimagecodec" in done.stderr, done.stderr


# -- the GPU's decoder, with nvImageCodec's decoder for the CPU, and a scaler that is not CV-CUDA


class Scaler:
    """CV-CUDA's names for what scales pictures in simulated device memory by Pillow, and arranges them there."""

    TensorLayout, Interp = str, SimpleNamespace(LINEAR=Image.Resampling.BILINEAR)
    Type, ColorConversion = SimpleNamespace(U8=np.uint8), SimpleNamespace(RGB2RGBA="a fourth channel")

    def __init__(self, space) -> None:
        self.space, self.memory, self.streams, self.wrapped = space, [], [], 0

    def as_stream(self, handle):
        self.streams.append(handle)
        return handle

    def array(self, tensor) -> np.ndarray:
        facts = tensor.__cuda_array_interface__
        return self.space.span(facts["data"][0], int(np.prod(facts["shape"]))).view.reshape(facts["shape"])

    def as_tensor(self, buffer, layout):
        assert layout in ("NHWC", "NCHW")
        buffer.cuda = lambda: buffer
        return buffer

    def as_tensors(self, buffers, layout):
        assert layout == "HWC" and all(each.__cuda_array_interface__["stream"] == -1 for each in buffers)
        self.wrapped += 1
        return buffers

    def Tensor(self, shape, dtype, layout, rowalign):
        assert rowalign == 1
        self.memory.append(DeviceBuffer(int(np.prod(shape))))
        return self.as_tensor(decoders.DeviceArray(self.memory[-1].address, shape), layout)

    def hq_resize_into(self, targets, images, *, roi, antialias, interpolation, stream):
        for each in self.streams:  # CV-CUDA comes back to all that it ever got
            cuda.cudart.cudaStreamSynchronize(each)
        for target, image, (top, left, bottom, right) in zip(targets, images, roi):
            row = self.array(target)
            picture = Image.fromarray(self.array(image))
            row[:] = picture.resize(row.shape[1::-1], interpolation, box=(left, top, right, bottom))

    def cvtcolor_into(self, target, source, code, stream):
        cuda.cudart.cudaStreamSynchronize(stream)  # what is before it on the stream
        self.array(target)[..., :3], self.array(target)[..., 3] = self.array(source), 255
        return target

    def reformat_into(self, target, source, stream):
        cuda.cudart.cudaStreamSynchronize(stream)
        self.array(target)[:] = np.moveaxis(self.array(source), -1, 1)


class Codec:
    """nvImageCodec's names, its decoder that of the CPU, its pictures in simulated device memory; ``refused`` are not taken."""

    HW_GPU_ONLY, HYBRID_CPU_GPU, Backend = "the engines", "the multiprocessors", str

    def __init__(self, scaler: Scaler, refused: tuple[int, ...] = ()) -> None:
        codec = pytest.importorskip("nvidia.nvimgcodec")
        self.CodeStream, self.DecodeParams, self.scaler, self.refused = codec.CodeStream, codec.DecodeParams, scaler, refused
        self.whole = codec.Decoder(device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=[codec.Backend(codec.CPU_ONLY)])

    def Decoder(self, backends):
        assert backends == ["the engines", "the multiprocessors"]
        return SimpleNamespace(decode=self.decode)

    def decode(self, streams, *, images, params, cuda_stream):
        assert len(images) == len(streams) and cuda_stream in self.scaler.streams
        found = [np.asarray(each) for each in self.whole.decode(streams, params=params)]
        kept = [image or SimpleNamespace(memory=DeviceBuffer(1 << 18)) for image in images]
        for image, pixels in zip(kept, found):
            self.scaler.memory.append(image.memory)
            image.__cuda_array_interface__ = decoders.DeviceArray(image.memory.address, pixels.shape).__cuda_array_interface__
            self.scaler.array(image)[:] = pixels
        return [None if index in self.refused else image for index, image in enumerate(kept)]


def on_a_gpu(shape: tuple[int, ...], codec, scaler: Scaler) -> decoders.GpuDecoder:
    decoder = decoders.GpuDecoder(SimpleNamespace(input_shape=lambda batch: (batch, *shape), input_type=np.dtype("u1")))
    decoder._simulator, decoder._idle, decoder._lane = None, SimpleQueue(), partial(decoders.Lane, codec, scaler)
    return decoder


def closed(decoder: decoders.GpuDecoder, scaler: Scaler) -> None:
    """What a process leaves to its end, a test does not."""
    while not decoder._idle.empty():
        decoder._idle.get().stream.close()
    for buffer in scaler.memory:
        buffer.close()


@pytest.mark.parametrize("shape", [(SIDE, SIDE, 3), (3, SIDE, SIDE), (SIDE, SIDE, 4), (4, SIDE, SIDE)])
def test_each_picture_gets_to_its_row_on_the_device(here, mixed, shape):  # noqa: F811
    """Batch after batch, as they come: each is decoded into the pictures of the last one."""
    scaler = Scaler(here.simulator.space)
    decoder = on_a_gpu(shape, Codec(scaler, refused=(0,)), scaler)
    files = [(path.name, path.read_bytes()) for path in sorted(mixed.iterdir()) if path.stem not in BROKEN]
    for batch in (files[:9], files, files[::-1], files[3:8]):
        found, right = np.empty((len(batch), *shape), np.uint8), np.empty((len(batch), *shape), np.uint8)
        decoder.to_host(batch, found)
        write(np.stack([load_pixels(data, SIDE, SIDE) for _, data in batch]), right)
        assert np.abs(found.astype(int) - right).reshape(len(batch), -1).max(axis=1).max() <= 8
        refused = next(name for name, data in batch if jpeg.oddity(data) is None)
        assert decoder.left_to_pillow.pop(refused) == "nvImageCodec cannot decode it"
    assert {name.split(".")[0] for name in decoder.left_to_pillow} == {name for name in ODD if ODD[name][1]}
    closed(decoder, scaler)


def test_what_decodes_on_a_gpu_is_made_once(here):  # noqa: F811
    """A stream that is destroyed crashes CV-CUDA, which remembers it; pictures and views of them cost as much as decoding."""
    scaler = Scaler(here.simulator.space)
    decoder, found = on_a_gpu((3, SIDE, SIDE), Codec(scaler), scaler), np.empty((5, 3, SIDE, SIDE), np.uint8)
    for seed in range(4):
        decoder.to_host([(str(index), encoded(5 * seed + index)) for index in range(5)], found)
    pictures, small = set(scaler.memory[1:]), scaler.memory[0]
    assert len(scaler.streams) == 1 and scaler.wrapped == 2 and len(pictures | {small}) == 6
    lane = decoder._idle.get()
    lane.stream.close()
    gone = weakref.ref(lane)
    del lane
    assert gone() is None, "it is in a circle, which the interpreter ends after the libraries"
    closed(decoder, scaler)


def test_a_picture_is_on_the_gpu_when_its_decoding_ends(here, tmp_path):  # noqa: F811
    """Whatever stream asks for it then."""
    scaler = Scaler(here.simulator.space)
    decoder, files = on_a_gpu((3, SIDE, SIDE), Codec(scaler), scaler), [("a.png", encoded(kind="PNG")), ("b.jpg", encoded(2))]
    with DeviceBuffer(2 * 3 * SIDE * SIDE) as buffer, cuda.Stream() as stream:
        decoder.decode(files, buffer, stream)
        found = here.simulator.space.span(buffer.address, buffer.nbytes).view.reshape(2, 3, SIDE, SIDE).copy()
    assert np.abs(found.astype(int) - [load_pixels(data, SIDE, SIDE) for _, data in files]).max() <= 8
    closed(decoder, scaler)


def test_two_threads_never_decode_with_one_decoder(here):  # noqa: F811
    """Nor into one's pictures: a folder is read ahead by one thread while others decode for the pipeline."""
    both, scaler = threading.Barrier(2), Scaler(here.simulator.space)

    class Refusing(Codec):
        def __init__(self) -> None:
            self.CodeStream, self.DecodeParams, self.made = bytes, dict, []

        def Decoder(self, backends):
            self.made.append(backends)
            return self

        def decode(self, streams, **how):
            both.wait(10)  # each is in here while the other is
            return [None for _ in streams]

    codec = Refusing()
    decoder, found = on_a_gpu((3, SIDE, SIDE), codec, scaler), [np.empty((1, 3, SIDE, SIDE), np.uint8) for _ in range(2)]
    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(decoder.to_host, [[("a.jpg", encoded())]] * 2, found))
    assert len(codec.made) == 2 == decoder._idle.qsize() and (found[0] == found[1]).all()
    closed(decoder, scaler)


class Forgetful(Codec):
    """Like the GPU's JPEG engines: below where a scan is cut it leaves what was in the memory before, and says nothing."""

    whole_until = 0.4

    def decode(self, streams, *, images, params, cuda_stream):
        before = [self.scaler.array(image).copy() if image else None for image in images]
        found = super().decode(streams, images=images, params=params, cuda_stream=cuda_stream)
        for index, (image, old) in enumerate(zip(found, before)):
            pixels = self.scaler.array(image)
            cut = int(len(pixels) * self.whole_until)
            if (pixels[-1] == pixels[-1, -1]).all():  # libjpeg's grey
                pixels[cut:] = 255 * (index % 2) if old is None else old[cut:]
        return found


def cut_scan(data: bytes, share: float = 0.4) -> bytes:
    """Of a JPEG file, the header, a share of its scan, and an end."""
    start = data.index(b"\xff\xda")
    return data[: start + int(share * (len(data) - start))] + jpeg.END


@pytest.mark.parametrize("shape", [(SIDE, SIDE, 3), (4, SIDE, SIDE)])
def test_a_scan_that_is_cut_is_pillow_s_once_it_was_seen(here, shape):  # noqa: F811
    """Nobody can tell by its header."""
    scaler = Scaler(here.simulator.space)
    decoder, found = on_a_gpu(shape, Forgetful(scaler), scaler), np.empty((8, *shape), np.uint8)
    whole = [encoded(seed) for seed in range(8)]
    files = [(f"{seed}", cut_scan(data) if seed == 5 else data) for seed, data in enumerate(whole)]
    assert jpeg.oddity(files[5][1]) is None
    right = np.empty_like(found)
    write(np.stack([load_pixels(data, SIDE, SIDE) for _, data in files]), right)
    for batch in ([(f"{seed}", data) for seed, data in enumerate(whole[:5])], files, files[::-1]):
        decoder.to_host(batch, found[: len(batch)])
    assert np.abs(found[::-1].astype(int) - right).max() <= 8
    assert [*decoder.apart] == ["5"] == [*decoder.left_to_pillow] and "a damaged scan" in decoder.left_to_pillow["5"]
    closed(decoder, scaler)


def test_a_file_has_no_fewer_bytes_than_its_picture_takes():
    """A picture in one colour is the shortest there is; a header that lies about its size is not taken at its word."""
    for size in ((500, 375), (4096, 4096), (8, 2000)):
        file = BytesIO()
        Image.new("RGB", size, "red").save(file, "JPEG", quality=90, optimize=True)
        assert jpeg.oddity(file.getvalue()) is None
    assert jpeg.oddity(encoded().replace(b"\x00\x46\x00\x5a", b"\x0f\x46\x0f\x5a", 1)) == "too little for 3930×3910"


@pytest.mark.parametrize("channels", [3, 4])
def test_dali_gives_the_same_pictures(photographs, tmp_path, channels):
    """The peer's pipeline, on the CPU; a fourth plane is opaque, as a plan of bytes takes it."""
    pytest.importorskip("nvidia.dali")
    make = partial(cut_out, photographs, seed=1, width=500, height=375)
    paths = sorted(make_files(tmp_path, 8, make).iterdir())
    (found,) = pictures(paths, 8, 224, 2, device="cpu", channels=channels).run()
    planes = found.as_array().astype(int)
    difference = np.abs(planes[:, :3] - [load_pixels(path, 224, 224) for path in paths])
    assert difference.mean() < 0.5 and difference.max() <= 8, (difference.mean(), difference.max())
    assert planes.shape[1] == channels and (planes[:, 3:] == 255).all()


def test_a_synthetic_file_is_like_a_photograph_s():
    data = synthetic_jpeg(0, 1)
    assert jpeg.oddity(data) is None and 50_000 < len(data) < 90_000 and data == synthetic_jpeg(0, 1)


# -- the table


def test_the_table_from_disk_to_names(checkout, mixed, tmp_path):
    arguments = ("--images", mixed, "--decoders", "nvimagecodec", "pillow", "--out", tmp_path / "new", "--measure", "3")
    done = checkout.run("-m", "scripts.decoders", *SIMULATED, *CHEAP, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    rows, rates = json.loads((tmp_path / "new" / "decoders.json").read_text())["rows"], devices.load("h200").decode_rates
    assert [row["decoder"] for row in rows] == ["nvimagecodec", "pillow"]
    for row in rows:
        rate = 1e9 * rates[row["decoder"]]
        assert row["alone"] == pytest.approx(rate, rel=0.01) and row["images_per_s"] == pytest.approx(rate, rel=0.02)
        assert row["limiter"] == "decode" and row["share"] > 0.98 and row["read"] > 0
    assert (tmp_path / "new" / "decoders.md").read_text().count(f"| {mixed.name} |") == 2
    assert "were decoded by Pillow" in done.stdout


def test_a_wrong_option_is_said_before_there_are_files(checkout, tmp_path):
    done = checkout.run("-m", "scripts.decoders", *SIMULATED, "--bacth", "3", "--out", tmp_path / "none")
    assert done.returncode == 2 and "unrecognized arguments: --bacth 3" in done.stderr and not (tmp_path / "none").exists()


def test_files_are_cut_out_of_photographs(photographs, tmp_path):
    folder = make_files(tmp_path, 6, lambda index: cut_out(photographs, index, 1, 120, 90))
    contents = [path.read_bytes() for path in sorted(folder.iterdir())]
    assert len(set(contents)) == 6 and not any(map(jpeg.oddity, contents))
    assert all(Image.open(BytesIO(data)).size == (120, 90) for data in contents)
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    assert read_rate(tmp_path) > 0


def test_a_file_that_could_not_be_made_is_not_there(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(BROKEN["j-cut"][0])
    with pytest.raises(OSError, match=r"(?i)truncated"):
        make_files(tmp_path / "made", 2, lambda index: cut_out([tmp_path / "cut.jpg"], index, 1, 12, 9))
    assert not list((tmp_path / "made").iterdir())


def test_a_decoder_that_is_not_there_leaves_the_others_their_rows(checkout, mixed, tmp_path):
    done = checkout.run("-m", "scripts.decoders", "--backend", "tensorrt", "--images", mixed, "--out", tmp_path)
    if "no NVIDIA GPU" in done.stderr or "not installed" in done.stderr:
        assert done.returncode == 3 and "no decoder ran" in done.stderr and done.stderr.count("left out") == len(jpeg.MODULES)


def damaged(photographs: list[Path]) -> list[tuple[str, bytes]]:
    """Whole files, and among them cut ones, with an end; one's header promises more than there is."""
    files = [(str(index), cut_out(photographs, index, 2, 500, 375)) for index in range(24)]
    for row, share in ((3, 0.1), (4, 0.5), (11, 0.7), (20, 0.4)):
        files[row] = f"cut-{row}", cut_scan(files[row][1], share)
    files[15] = "lie", files[15][1].replace(b"\x01\x77\x01\xf4", b"\x03\x77\x01\xf4", 1)
    return files


@pytest.mark.gpu
@pytest.mark.skipif(not jpeg.installed(jpeg.ON_DEVICE), reason="nvImageCodec and CV-CUDA are not installed")
def test_the_gpu_s_decoder_leaves_damaged_scans_to_pillow(monkeypatch, photographs):
    monkeypatch.setattr(backend, "_current", None)
    if backend.select().simulator is not None:
        pytest.skip("no GPU answers")
    shape = (3, 224, 224)
    decoder = decoders.GpuDecoder(SimpleNamespace(input_shape=lambda batch: (batch, *shape), input_type=np.dtype("u1")))
    files, right = damaged(photographs), np.empty((24, *shape), np.uint8)
    assert not any(jpeg.oddity(data) for _, data in files)
    found, again = np.empty_like(right), np.empty_like(right)
    write(np.stack([load_pixels(data, 224, 224) for _, data in files]), right)
    decoder.to_host([(str(index), cut_out(photographs, index, 1, 500, 375)) for index in range(24)], found)
    decoder.to_host(files, found)
    decoder.to_host(files[::-1], again)
    assert np.abs(found.astype(int) - again[::-1]).max() <= 4
    assert np.abs(found.astype(int) - right).reshape(24, -1).mean(axis=1).max() < 4
    assert decoder.left_to_pillow.keys() == {name for name, _ in files if not name.isdigit()}


@pytest.mark.gpu
@pytest.mark.skipif(not jpeg.installed(jpeg.ON_DEVICE), reason="nvImageCodec and CV-CUDA are not installed")
@pytest.mark.parametrize("shape", [(224, 224, 3), (3, 224, 224), (224, 224, 4), (4, 224, 224)])
def test_the_gpu_s_decoder_gives_the_same_pictures(monkeypatch, shape, photographs):
    monkeypatch.setattr(backend, "_current", None)
    if backend.select().simulator is not None:
        pytest.skip("no GPU answers")
    decoder = decoders.GpuDecoder(SimpleNamespace(input_shape=lambda batch: (batch, *shape), input_type=np.dtype("u1")))
    files = [(str(index), cut_out(photographs, index, 1, 500, 375)) for index in range(64)]
    files += [(name, data) for name, (data, why) in ODD.items() if why] + [("synthetic", synthetic_jpeg(0, 1))]
    found, right = (np.empty((len(files), *shape), np.uint8) for _ in range(2))
    for batch in (files, files[9::-1], files):  # what it keeps from batch to batch serves the next one
        decoder.to_host(batch, found[: len(batch)])
    write(np.stack([load_pixels(data, 224, 224) for _, data in files]), right)
    difference = np.abs(found.astype(int) - right).reshape(len(files), -1)
    assert difference.mean() < 1.5 and difference.mean(axis=1).max() < 4, difference.mean(axis=1)
    assert decoder.left_to_pillow.keys() == {name for name, (_, why) in ODD.items() if why}


def test_a_file_that_comes_in_pieces_is_read_whole(tmp_path, monkeypatch):
    (path := tmp_path / "a.jpg").write_bytes(bytes(range(256)) * 9)
    whole = os.read
    monkeypatch.setattr(reader.os, "read", lambda file, size: whole(file, min(size, 100)))
    assert reader.read(path) == path.read_bytes()
