"""ONNX files of any shape, and broken ones: built and run right, or refused in one sentence with no file left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.conftest import onnx_model
from tests.fuzz.place import Draw, Place, Try, endlessly, refused, right_or_refused

SIDES = (1, 2, 3, 5, 7, 8, 13, 31, 64, 100, 225, 1024)
DAMAGES = ("no outputs", "two inputs", "no batch", "cut", "flipped", "empty", "unknown operator")
TYPES = {"half precision": TensorProto.FLOAT16, "bytes": TensorProto.UINT8, "less 128": TensorProto.INT8}


def tries(place: Place, draw: Draw) -> Iterator[Try]:
    def one() -> Try:
        sides = draw.choice(SIDES), draw.choice(SIDES)
        channels, last, batch = (
            draw.choice((1, 2, 3, 3, 4)),
            draw.random() < 0.4,
            draw.choice(("batch", "batch", "batch", 2, 3)),
        )
        damage = draw.choice(("none", "none", *TYPES, "two outputs", "external data", *DAMAGES))
        precision = draw.choice(
            ((), ("--fp16",), ("--int8",), ("--int8", "--calibration-images", str(place.folder / "photos")))
        )
        output = draw.choice(("logits", "logits", "map"))
        case = (sides, channels, last, batch, damage, precision, output)
        return str(case), lambda: build_and_run(place, *case, draw.random())

    photographs = place.folder / "photos"
    if not photographs.exists():
        from PIL import Image

        photographs.mkdir()
        for index in range(2):
            pixels = np.random.default_rng(index).integers(0, 255, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(photographs / f"{index}.png")
    return endlessly(one)


def model_of(sides, channels: int, last: bool, batch, damage: str, output: str) -> onnx.ModelProto:
    """Transpose where the channels come last, a convolution, and a pool and a classifier, or its map of scores."""
    sent, draw = TYPES.get(damage, TensorProto.FLOAT), np.random.default_rng(1)
    kind = sent if damage == "half precision" else TensorProto.FLOAT
    shape = [*sides, channels] if last else [channels, *sides]
    numbers = {"w1": draw.normal(0, 0.3, (5, channels, 3, 3)), "w2": draw.normal(0, 0.5, (7, 5))}
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [helper.make_node("Cast", ["x"], ["f0"], to=kind)]
    nodes += [helper.make_node("Transpose", ["f0"], ["t"], perm=[0, 3, 1, 2])] if last else []
    nodes += [helper.make_node("Conv", ["t" if last else "f0", "w1"], ["c"], pads=[1, 1, 1, 1])]
    if output == "logits":
        nodes += [helper.make_node("GlobalAveragePool", ["c"], ["p"]), helper.make_node("Flatten", ["p"], ["f"])]
        nodes += [helper.make_node("Gemm", ["f", "w2"], ["y"], transB=1)]
        ends = [helper.make_tensor_value_info("y", kind, [batch, 7])]
    else:
        nodes += [helper.make_node("Relu", ["c"], ["y"])]
        ends = [helper.make_tensor_value_info("y", kind, [batch, 5, *sides])]
    starts = [helper.make_tensor_value_info("x", sent, shape if damage == "no batch" else [batch, *shape])]
    if damage == "no outputs":
        ends = []
    elif damage == "two inputs":
        starts.append(helper.make_tensor_value_info("z", kind, [batch, 3]))
    elif damage == "two outputs":
        ends.append(helper.make_tensor_value_info("c", kind, [batch, 5, *sides]))
    elif damage == "unknown operator":
        nodes[-1].op_type = "Frobnicate"
    return onnx_model(nodes, starts, ends, {name: value.astype(dtype) for name, value in numbers.items()})


def build_and_run(place, sides, channels, last, batch, damage, precision, output, where: float) -> str:
    folder = place.folder / "models-of-mine"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    file, plan = folder / "mine.onnx", folder / "mine.plan"
    model = model_of(sides, channels, last, batch, damage, output)
    external = (
        {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0} if damage == "external data" else {}
    )
    onnx.save(model, str(file), **external)
    content = file.read_bytes()
    if damage in ("cut", "empty"):
        file.write_bytes(content[: int(len(content) * where) * (damage == "cut")])
    elif damage == "flipped":
        at = int(len(content) * where)
        file.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
    there = {*folder.rglob("*"), *(place.folder / "models").rglob("*")}
    code, said = place.run("0_build.py", *place.build_options(plan, file), *precision)
    if damage in DAMAGES and damage not in ("cut", "flipped"):
        assert code != 0, f"{damage} was built"
    if code != 0:
        assert {*folder.rglob("*"), *(place.folder / "models").rglob("*")} <= there or precision, "a file was left"
        return refused(code, said)
    runs = [place.run("5_multi_streams.py", "--plan", str(plan), *more) for more in ((), ("--top", "2"))]
    if damage == "flipped":  # in a name or a weight: another model, and perhaps one whose outputs are no numbers
        return right_or_refused(*runs[0]) if runs[0][0] != 1 else "wrong numbers were found"
    assert runs[0][0] == 0, runs[0][1][-600:]
    if output == "map" or damage == "two outputs":
        refused(*runs[1])
    else:
        assert runs[1][0] == 0, runs[1][1][-600:]
    return "right"
