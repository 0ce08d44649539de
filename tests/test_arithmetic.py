"""Outputs that are kept in files: the same bits as computed ones, of the same model and the same bytes, or none."""

from __future__ import annotations

import io
import os
import shutil

import numpy as np
import pytest

from common.images import noise_images
from sim import arithmetic, simulator
from sim import tensorrt as trt
from tests.conftest import CHEAP, SIMULATED


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TRT_LADDER_OUTPUTS", str(tmp_path / "outputs"))
    simulator.start()
    yield tmp_path / "outputs"
    simulator.start().close()


class Process:
    """An engine as a new process loads it."""

    def __init__(self, plan) -> None:
        self.engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan.read_bytes())

    def logits(self, images: np.ndarray) -> np.ndarray:
        [outputs] = self.engine._arithmetic.outputs({"images": images}).values()
        return outputs

    @property
    def computed(self) -> bool:
        return "_session" in vars(self.engine._arithmetic)


def images(seed: int, count: int = 2, side: int = 32) -> np.ndarray:
    return noise_images(range(count), (3, side, side), seed)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_another_process_gets_the_bits_that_it_would_have_computed(checkout, folder, monkeypatch, precision):
    plan, sent = checkout.plans / f"resnet18-{precision}.simulated.plan", images(1, side=224)
    first, second = Process(plan), Process(plan)
    found = [each.logits(sent) for each in (first, second, second)]
    assert first.computed and not second.computed and len(list(folder.iterdir())) == 1
    monkeypatch.setenv("TRT_LADDER_OUTPUTS", "")
    monkeypatch.chdir(folder)
    alone = Process(plan)
    right = alone.logits(sent)
    assert alone.computed and len(list(folder.iterdir())) == 1
    for each in found:
        assert (each.dtype, each.shape, each.tobytes()) == (right.dtype, right.shape, right.tobytes())


def test_what_is_not_the_same_is_computed(checkout, folder):
    """Of two batches with one bit between them, of their halves, of another plan: each has a file of its own."""
    right, other = images(1, 4), images(1, 4)
    other.view(np.uint8).reshape(-1)[-1] ^= 1
    for number, sent in enumerate((right, other, right[::-1].copy(), right[:2].copy(), right[2:].copy()), 1):
        one = Process(checkout.tiny)
        one.logits(sent)
        assert one.computed and len(list(folder.iterdir())) == number
    plan = checkout.plans / "another.plan"
    tiny = ("--onnx-file", "tiny.onnx", "--profile", "1,1024,2048", "--output", plan)
    assert checkout.run("0_build.py", *SIMULATED, "--fp16", *tiny).returncode == 0
    one = Process(plan)
    assert one.logits(right).tobytes() == Process(checkout.tiny).logits(right).tobytes() and one.computed


def test_types_and_shapes_tell_the_same_bytes_apart(folder, monkeypatch):
    """Also what does not depend on the inputs: ONNX Runtime, the processor, and how this module asks."""

    def key(*arrays: np.ndarray, plan: bytes = b"plan") -> str:
        asked = arithmetic.Arithmetic(plan, b"", ["y"])
        asked._from_file = lambda key, inputs: [key]
        return asked.outputs({f"x{index}": array for index, array in enumerate(arrays)})["y"]

    zeros = np.zeros((4, 4), np.float32)
    assert key(zeros) == key(zeros.copy())
    keys = [key(zeros), key(zeros.reshape(2, 8)), key(zeros.view(np.int32)), key(zeros, plan=b"another")]
    keys += [key(zeros, zeros), key(zeros, zeros + 1), key(zeros + 1, zeros)]
    assert key(zeros[:, ::2]) == key(zeros[:, :2].copy())
    for where, what in (
        ("onnxruntime.__version__", "0"),
        ("sim.arithmetic.processor", lambda: "another"),
        ("os.cpu_count", lambda: 1000),
        ("sim.arithmetic.SOURCE", b"changed"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, what)
            keys.append(key(zeros))
    assert len({*keys}) == len(keys) == 11 and key(zeros) == keys[0]


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}]), allow_pickle=True)
    return file.getvalue()


HOSTILE = {"nothing": b"", "words": b"words", "zip": b"PK\3\4", "pickle": pickled()}  # with the right digest


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "longer", "another's", "folder", "pipe", "huge", "link", *HOSTILE, *range(0, 240, 16)]
)
def test_a_damaged_file_is_computed_again_and_mended(checkout, folder, damage):
    sent = images(1)
    right = Process(checkout.tiny).logits(sent)
    [path] = folder.iterdir()
    whole = path.read_bytes()
    if isinstance(damage, int):
        path.write_bytes(bytes(byte ^ (index == damage) for index, byte in enumerate(whole)))
        assert len(whole) > damage
    elif damage == "another's":
        Process(checkout.tiny).logits(images(2))
        [other] = {*folder.iterdir()} - {path}
        shutil.copy(other, path)
    elif damage in ("folder", "pipe"):
        path.unlink()
        {"folder": os.mkdir, "pipe": os.mkfifo}[damage](path)
    elif damage == "huge":
        with path.open("ab") as file:
            file.truncate(1 << 40)
    elif damage == "link":
        path.rename(target := path.with_name("somebody's"))
        target.write_text("somebody's")
        path.symlink_to(target)
    elif damage in HOSTILE:
        path.write_bytes(arithmetic.sealed(path.stem, HOSTILE[damage]))
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-1], "longer": whole + b"\0"}[damage])
    one = Process(checkout.tiny)
    assert one.logits(sent).tobytes() == right.tobytes() and one.computed
    if damage == "link":
        assert path.read_text() == "somebody's"
    elif damage not in ("folder", "pipe"):
        assert path.read_bytes() == whole


def test_without_a_folder_to_write_to_nothing_is_kept(checkout, folder, monkeypatch):
    folder.write_text("a file")
    for named in (str(folder), "/dev/null/outputs", "/proc/outputs"):
        monkeypatch.setenv("TRT_LADDER_OUTPUTS", named)
        for _ in range(2):
            one = Process(checkout.tiny)
            one.logits(images(1))
            assert one.computed
    assert folder.read_text() == "a file"


def test_who_has_no_home_has_no_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("TRT_LADDER_OUTPUTS")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert arithmetic.folder() == tmp_path / ".cache" / "trt-ladder"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    assert arithmetic.folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert arithmetic.folder() == tmp_path / "caches" / "trt-ladder"


def test_the_oldest_go_and_nothing_else_does(checkout, folder, monkeypatch):
    """But for what a process has left that was ended while it wrote."""
    assert (arithmetic.FILES, arithmetic.LARGEST) == (2000, 1 << 20)
    monkeypatch.setattr(arithmetic, "FILES", 8)
    folder.mkdir()
    mine, left = [folder / f"mine-{index}.outputs" for index in range(12)], folder / f".{'0' * 64}.outputs.0123abcd"
    (folder / f"{'1' * 64}.outputs").symlink_to(folder / "nothing")
    for path in (*mine, left):
        path.write_text("older than all")
        os.utime(path, (0, 0))
    one = Process(checkout.tiny)
    for seed in range(40):
        one.logits(images(seed))
        kept = {each for each in folder.iterdir() if each.is_file()} - {*mine}
        assert min(seed + 1, 4) <= len(kept) <= 8
    assert all(path.exists() for path in mine) and not left.exists()
    last = Process(checkout.tiny)
    last.logits(images(39))
    assert not last.computed
    monkeypatch.setattr(arithmetic, "LARGEST", 79)  # two images' scores are 80 bytes
    before = {*folder.iterdir()}
    one.logits(images(40))
    assert {*folder.iterdir()} == before


def test_outputs_of_a_right_run_do_not_hide_a_wrong_one(checkout, folder):
    """Nor is what is kept spoilt by the wrong one."""
    text = (checkout.folder / "5_multi_streams.py").read_text(encoding="utf-8")
    assert text.count("compute.wait(slot.copied)") == 1
    (checkout.folder / "hurried.py").write_text(text.replace("compute.wait(slot.copied)", "pass"), encoding="utf-8")
    counts = []
    for name, code, said in (
        ("5_multi_streams", 0, "right: identical"),
        ("hurried", 1, "wrong outputs"),
        ("5_multi_streams", 0, "right: identical"),
    ):
        done = checkout.run(f"{name}.py", *SIMULATED, *CHEAP, "--plan", checkout.tiny)
        assert done.returncode == code and said in done.stdout + done.stderr, done.stdout + done.stderr
        counts.append(len(list(folder.iterdir())))
    assert counts[0] < counts[1] == counts[2]
