"""What is below the batch: kernels and layers of a trace, held against the trace's own tables."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from common import console
from common.trace import TraceError, read
from harness import layers
from tests.conftest import ROOT


@pytest.fixture
def real(tmp_path):
    """The export of a real run: stage 4's pipeline, FP16, three measured batches."""
    path = tmp_path / "serial.sqlite"
    path.write_bytes(gzip.decompress((ROOT / "tests" / "traces" / "h200_trt8.6_nsys2025.3_serial.sqlite.gz").read_bytes()))
    return path


def test_kernels_are_those_of_the_measured_batches(real):
    """By a query of its own: a kernel is a batch's if its launch lies in the batch's range."""
    trace = read(real)
    connection = sqlite3.connect(real)
    expected: dict[str, list[int]] = {}
    for number in trace.measured:
        rows = connection.execute(
            "SELECT s.value, k.end - k.start FROM CUPTI_ACTIVITY_KIND_KERNEL k JOIN CUPTI_ACTIVITY_KIND_RUNTIME r "
            "ON r.correlationId = k.correlationId JOIN StringIds s ON s.id = k.shortName WHERE r.start BETWEEN ? AND ?",
            trace.infer[number].tolist(),
        )
        for name, ns in rows:
            expected.setdefault(name, []).append(ns)
    found = layers.grouped([(kernel, ns) for kernel, _, ns in layers.kernels(real, trace)])
    assert {name: sorted(each) for name, each in found.items()} == {name: sorted(each) for name, each in expected.items()}


def test_a_narrow_terminal_has_kernels_names_whole(real, monkeypatch):
    """Their first words are the same."""
    printed = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=printed, force_terminal=True, no_color=True, width=80))
    console.show("\n".join(layers.of_trace(real, 3)))
    text = Text.from_ansi(printed.getvalue()).plain
    first = "".join(line.split()[0] for line in text.split("By kernel:")[1].splitlines() if line.strip())
    names = {kernel for kernel, _, _ in layers.kernels(real, read(real))}
    assert max(map(len, text.splitlines())) <= 80 and sum(name in first for name in names if len(name) > 60) == 3


def test_a_kernel_s_layer_is_what_tensorrt_calls_it(real):
    """Fused ones bear all their nodes; what comes before the first layer has none."""
    found = layers.kernels(real, read(real))
    of = {layer: kernel for kernel, layer, _ in found}
    assert "image_first_layer" in of["/conv1/Conv + /relu/Relu"] and "kMAX" in of["/maxpool/MaxPool"]
    fused = [layer for layer in of if layer.endswith("Add + /layer1/layer1.0/relu_1/Relu")]
    assert fused == ["/layer1/layer1.0/conv2/Conv + /layer1/layer1.0/Add + /layer1/layer1.0/relu_1/Relu"]
    assert sum(layer == "/fc/Gemm" for _, layer, _ in found) == 3 and not any("enqueue" in layer for layer in of)


def test_a_layer_is_the_innermost_range_around_the_launch():
    """Of the same thread, still going on, and begun inside the batch's range."""
    ranges = [(50, 300, 1, "around all"), (100, 200, 1, "infer"), (110, 150, 1, "ExecutionContext::enqueue")]
    ranges += [(115, 120, 1, "conv"), (116, 140, 2, "another thread's"), (125, 130, 1, "pool"), (250, 260, 1, "late")]
    called = {105: "", 118: "conv", 122: "", 127: "pool", 160: "", 255: ""}
    calls, starts = np.arange(len(called)), np.array([*called])
    trace = SimpleNamespace(
        infer=np.array([[100, 200]]),
        calls=SimpleNamespace(threads=np.ones(len(called)), intervals=np.stack([starts, starts + 1], 1)),
        ranges_of=lambda calls: np.where(starts[calls] <= 200, 0, -1),
    )
    assert layers.layers_of(trace, calls, ranges) == [*called.values()]


def test_a_table_s_shares_are_of_all(real):
    text = "\n".join(layers.of_trace(real, 2))
    assert "3.341 ms a batch over 3 batches, traced: 41 kernels, which take 1.298 ms" in text
    for title in ("what they do", "layer", "kernel"):
        cells = text.split(f"By {title}:")[1].split("By ")[0]
        assert sum(float(line.split("|")[-2].rstrip(" %")) for line in cells.splitlines() if "%" in line) == pytest.approx(
            100, abs=0.2
        )
    assert "| convolution or matrix product | 21.0 |" in text and "36 others" not in text and "39 others" in text
    alike = "\n".join(layers.of_trace(real, 20, alike=True)).split("By layer:")[1].split("By ")[0]
    assert "| /layer#/layer#.#/conv#/Conv + /layer#/layer#.#/Add + /layer#/layer#.#/relu_#/Relu | 5.0 |" in alike


KERNELS = {
    "sm80_xmma_fprop_implicit_gemm_f16f16_nhwckrsc_nhwc_execute_kernel_trt": "convolution or matrix product",
    "void cudnn::bn_fw_inf_1C11_kernel_NCHW": "normalization",
    "cudnn::ops::nchwToNhwcKernel": "layout or copy",
    "vectorized_elementwise_kernel: CUDAFunctor_add": "elementwise",
    "triton_poi_fused_add_relu_3": "elementwise",
    "triton_poi_fused_convolution_mul_sigmoid_33": "elementwise",
    "triton_tem_fused_convolution_3": "convolution or matrix product",
    "sm50_xmma_pooling_fw_4d_FP16": "pooling or reduction",
    "reduce_kernel": "pooling or reduction",
    "nvjet_hsh_64x8": "convolution or matrix product",
    "op_generic_tensor_kernel": "elementwise",
    "some_kernel": layers.OTHER,
}


@pytest.mark.parametrize(("name", "kind"), KERNELS.items())
def test_what_a_kernel_does(name, kind):
    assert layers.kind(name) == kind


def test_pytorch_s_elementwise_kernels_are_told_apart():
    full = (
        "void at::native::vectorized_elementwise_kernel<(int)4, at::native::CUDAFunctor_add<float>, std::array<char *, 3>>(int)"
    )
    assert layers.brief("vectorized_elementwise_kernel", full) == "vectorized_elementwise_kernel: CUDAFunctor_add"
    assert layers.brief("gemm", full) == "gemm"
    full = "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_f16_s16816fprop_64x128>(T1::Params)"
    assert layers.brief("Kernel", full) == "cutlass_tensorop_f16_s16816fprop_64x128"
    assert layers.brief("Kernel2", "void mine::Kernel2<int>()") == "Kernel2"


def test_trtexec_s_profile_is_a_table(tmp_path):
    told = [
        {"count": 10},
        {"name": "conv", "timeMs": 30.0, "averageMs": 3.0, "percentage": 75.0},
        {"name": "f\x1b[31m\nc", "timeMs": 10.0},
    ]
    (tmp_path / "profile.json").write_text(json.dumps(told))
    lines = layers.of_profile(tmp_path / "profile.json", 5)
    (tmp_path / "blocks.json").write_text(json.dumps([*told[:2], {"name": "c1", "timeMs": 4.0}, {"name": "c2", "timeMs": 6.0}]))
    assert "| c# | 2.0 | 1.0000 | 25.0% |" in layers.of_profile(tmp_path / "blocks.json", 5, alike=True)
    assert "| conv | 1.0 | 3.0000 | 75.0% |" in lines and "| f\\x1b[31m\\nc | 1.0 | 1.0000 | 25.0% |" in lines


def test_a_trace_without_kernels_names_is_said(real):
    """A trace that can be compared lacks nothing but what this reads more of it."""
    with sqlite3.connect(real) as connection:
        connection.execute("ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL RENAME COLUMN demangledName TO mangled")
    with pytest.raises(TraceError, match="demangledName"):
        layers.of_trace(real, 5)


def test_what_is_no_trace_is_said(checkout, tmp_path):
    for name, content in (
        ("a.json", "{}"),
        ("b.json", "[]"),
        ("c.sqlite", "text"),
        ("d.json", '[{"count": 0}, {"name": "x"}]'),
        ("e.json", '[{"count": 1}, {"name": "x", "timeMs": Infinity}]'),
        ("f.json", '[{"count": -1}, {"name": "x", "timeMs": 1}]'),
        ("g.json", "[" * 100_000),
        ("h.json", '[{"count": 1}, {"name": "x", "timeMs": -1}]'),
    ):
        (tmp_path / name).write_text(content)
        done = checkout.run("-m", "scripts.layers", tmp_path / name)
        assert done.returncode == 2 and name in done.stderr and "mistake of ours" not in done.stderr


def test_a_simulated_stage_has_kernels_and_no_layers(checkout, tmp_path):
    trace = tmp_path / "4.sqlite"
    done = checkout.run("4_use_fp16.py", "--backend", "simulated", "--batch", "1", "--measure", "3", "--trace", trace)
    assert done.returncode == 0, done.stderr
    text = "\n".join(layers.of_trace(trace, 5))
    assert "over 3 batches" in text and "By kernel:" in text and "By layer:" not in text


def test_what_would_be_left_alone_has_its_own_line():
    for most, left in ((1, "2 others"), (2, "| c |"), (3, "| c |")):
        assert left in layers.table({"a": [3_000_000], "b": [2_000_000], "c": [1_000_000]}, 1, most)[-1]
