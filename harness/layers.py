"""Below the batch: which kernels, and which of the model's layers, a batch's time goes to, and what lies between them.

    python -m scripts.layers out/4_use_fp16.sqlite                     a traced stage
    python -m scripts.layers out/eager.sqlite out/tensorrt.sqlite      two contenders, one after the other
    python -m scripts.layers --alike out/tensorrt.sqlite               of a model of many blocks that are alike
    python -m scripts.layers profile.json                              what trtexec --exportProfile wrote

A trace is `nsys export --type sqlite` of a run whose batches bear the ladder's ranges, as those of the stages and of
`scripts.compare_engines --mark` do. TensorRT names the layer that launches a kernel, unless a CUDA graph does; a layer's name
has the nodes in it that were fused into it.
"""

from __future__ import annotations

import json
import re
from argparse import ArgumentTypeError
from bisect import bisect_right
from pathlib import Path

import numpy as np

from common import program
from common.console import printable, show
from common.errors import UsageFault
from common.files import grid, grouped
from common.options import natural, positive
from common.trace import PUSH_POP, Trace, TraceError, numbers, opened, read
from harness.analysis import analyse

KINDS = {
    "normalization": r"batch_?norm|bn_|layer_?norm",
    "pooling or reduction": r"pool|reduc|mean|softmax",
    "convolution or matrix product": r"^(?!triton_(poi|red|per)).*(conv|gemm|fprop|cutlass|nvjet|wgrad|dgrad|scudnn|gemv|mma_)",
    "layout or copy": r"nchw|nhwc|transpose|permut|copy|_mov|cast|convert|reformat|memset",
    "elementwise": r"elementwise|pointwise|relu|add|mul|sigmoid|clamp|generated|triton|silu|bias|op_generic_tensor",
}
"""What a kernel does: the first kind of which its name has a word. A convolution's tells its layout too, pooling's as well; one
that Triton made of several operators is named after them all, and after a convolution whose result it only goes on with."""
OTHER, GRAPH = "other", "a whole CUDA graph"
COLUMNS = [
    ("name", "name", "{}"),
    ("launches a batch", "launches", "{:.1f}"),
    ("ms a batch", "per_batch_ms", "{:.4f}"),
    ("share", "share", "{:.1%}"),  # of all kernels' time
]


def kind(kernel: str) -> str:
    """What a kernel does, as far as its name tells."""
    return next((name for name, words in KINDS.items() if re.search(words, kernel, re.IGNORECASE)), OTHER)


def kernels(path: Path, trace: Trace) -> list[tuple[str, str, int]]:
    """(kernel, layer or "", ns) of all kernels that the measured batches submitted."""
    with opened(path) as reader:
        named = "CUPTI_ACTIVITY_KIND_KERNEL k JOIN StringIds s ON s.id = k.shortName JOIN StringIds f ON f.id = k.demangledName"
        rows = reader.rows(named, "k.start, k.correlationId, s.value, f.value")
        calls = trace.calls_of(trace.kernels)
        layers = layers_of(trace, calls, reader.ranges(None, PUSH_POP))
    own = np.isin(trace.ranges_of(calls), trace.measured)
    lengths = np.diff(trace.kernels.intervals)[:, 0]
    names = {(start, correlation): brief(str(short), str(full)) for start, correlation, short, full in rows}
    keys = zip(trace.kernels.intervals[:, 0].tolist(), trace.kernels.correlations.tolist())
    found = [(names.get(key, GRAPH), layer, int(ns)) for key, layer, ns in zip(keys, layers, lengths)]
    return [each for each, is_own in zip(found, own) if is_own]


def brief(short: str, full: str) -> str:
    """PyTorch's elementwise kernels are all called alike, and CUTLASS's; what they do is among the template's arguments."""
    if re.fullmatch(r"Kernel\d?", short) and (named := re.search(r"<(cutlass\w+)", full)):
        return named[1]
    inner = re.findall(r"(\w*(?:[Ff]unctor|_kernel_cuda|Ops)\w*)", full.partition("<")[2])
    return f"{short}: {inner[0]}" if "elementwise" in short and inner else short


def layers_of(trace: Trace, calls: np.ndarray, ranges: list[tuple]) -> list[str]:
    """The name of the innermost range around each kernel's launch that is inside the batch's own; "" where there is none."""
    found, inside = [""] * len(calls), trace.ranges_of(calls)
    threads = grouped(zip(numbers(ranges, 2).tolist(), ranges))
    starts = {thread: [row[0] for row in own] for thread, own in threads.items()}
    for index in np.flatnonzero((calls >= 0) & (inside >= 0)):
        thread, called = trace.calls.threads[calls[index]], trace.calls.intervals[calls[index], 0]
        last = bisect_right(starts[thread], called) - 1
        while threads[thread][last][1] < called:  # the batch's own range ends after it
            last -= 1
        start, _, _, name = threads[thread][last]
        found[index] = str(name) if start > trace.infer[inside[index], 0] else ""
    return ["" if name.endswith("ExecutionContext::enqueue") else name for name in found]


def table(times: dict[str, list[int]], batches: int, most: int) -> list[str]:
    """The ``most`` longest of what has so many times (ns) over so many batches, and what is left together, if it is several."""
    most += len(times) == most + 1
    total = sum(map(sum, times.values())) or 1
    ordered = sorted(times.items(), key=lambda item: -sum(item[1]))
    rest = [ns for _, each in ordered[most:] for ns in each]
    shown = [*ordered[:most], *([(f"{len(ordered) - most} others", rest)] if rest else [])]
    cells = [(printable(name), len(each) / batches, sum(each) / 1e6 / batches, sum(each) / total) for name, each in shown]
    return grid([dict(zip((key for _, key, _ in COLUMNS), row)) for row in cells], COLUMNS)


def of_trace(path: Path, most: int, alike: bool = False) -> list[str]:
    """What a trace tells, in Markdown; ``alike``: layers of which only numbers differ together. Raises ``TraceError``."""
    trace = read(path)
    found, batches, told = kernels(path, trace), len(trace.measured), analyse(trace)
    if not found:
        raise TraceError(f"{path}: no kernel of it can be told to be of a measured batch.")
    kernels_ms = f"{len(found) / batches:.0f} kernels, which take {told.compute_ms:.3f} ms"
    gaps_ms = f"{told.launch_gaps_ms:.3f} ms of gaps between them; {told.launches} launches."
    whole = f"{told.per_batch_ms:.3f} ms a batch over {batches} batches, traced: {kernels_ms}, and {gaps_ms}"
    lines = [f"## {path.stem}", "", whole, ""]
    for title, pairs in (
        ("what they do", [(kind(kernel), ns) for kernel, _, ns in found]),
        ("layer", [(re.sub(r"\d+", "#", layer) if alike else layer, ns) for _, layer, ns in found if layer]),
        ("kernel", [(kernel, ns) for kernel, _, ns in found]),
    ):
        if pairs:
            lines += [f"By {title}:", "", *table(grouped(pairs), batches, most), ""]
    return lines


def of_profile(path: Path, most: int, alike: bool = False) -> list[str]:
    """What trtexec tells of a plan's layers, in Markdown. Raises ``UsageFault`` for what it has not written."""
    try:
        first, *layers = json.loads(path.read_text(encoding="utf-8"))
        runs = positive(str(first["count"]))
        told = ((str(each["name"]), int(float(each["timeMs"]) * 1e6 / runs)) for each in layers)  # of all runs together
        times = grouped((re.sub(r"\d+", "#", name) if alike else name, natural(str(ns))) for name, ns in told)
        return [f"## {path.stem}: {runs} runs", "", *table(times, 1, most), ""]
    except (OSError, LookupError, TypeError, ValueError, ArgumentTypeError, OverflowError, RecursionError):
        raise UsageFault(f"{path} is not what trtexec --exportProfile writes.") from None


def main() -> None:
    p = program.parser(__doc__)
    p.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a trace, or a profile of trtexec's")
    p.add_argument("--most", type=positive, default=12, metavar="N", help="of each table's longest (default: %(default)s)")
    p.add_argument("--alike", action="store_true", help="one row for layers of which only numbers differ")
    options = p.parse_args()
    for path in options.files:
        of = of_profile if path.suffix == ".json" else of_trace
        show("\n".join(of(path, options.most, options.alike)))


if __name__ == "__main__":
    program.run(main)
