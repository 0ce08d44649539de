"""A picture of a model: its ONNX nodes, in the boxes of the engine's layers that TensorRT fused them into.

    python -m scripts.draw_model models/resnet18-fp16.onnx --plan plans/resnet18-fp16.plan
    python -m scripts.draw_model models/resnet18-fp32.onnx

The layers come from the plan's sidecar, where 0_build.py leaves the engine inspector's names: a fused layer is named after
its nodes. Without a plan, or for nodes that no layer names, the nodes stand alone. Needs the onnx package, not TensorRT.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from html import escape
from itertools import accumulate, count, cycle
from pathlib import Path
from typing import Any

from common.console import err
from common.errors import EnvironmentFault, Fault, UsageFault
from common.files import read_json, write_text
from common.plans import sidecar
from export import models

COLOURS = {
    **dict.fromkeys(("Conv", "Gemm"), "#0072B2"),
    **dict.fromkeys(("Relu", "Clip", "Sigmoid"), "#009E73"),
    **dict.fromkeys(("Mul", "Add"), "#CC79A7"),
    **dict.fromkeys(("MaxPool", "GlobalAveragePool"), "#E69F00"),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "Cast"), "#999999"),
}
LEFT, WIDE, NODE, GAP = 150, 330, 18, 8  # SVG units: margin for the skipping edges, a box's width, a node's height, space


@dataclass
class Group:
    """ONNX nodes of one engine layer, or one node by itself (``layer`` is None)."""

    layer: str | None
    nodes: list[Any]

    @property
    def height(self) -> int:
        return NODE * (len(self.nodes) + bool(self.layer)) + 2 * GAP


def groups(graph: Any, layers: list[str]) -> list[Group]:
    """The graph's nodes in order, those of one layer together where its first one stands. Constants, and nodes that only
    unpack quantized weights, are left out."""
    weights = {weight.name for weight in graph.initializer}
    owner = {name: layer for layer in layers for name in named(layer)}
    found: dict[str, Group] = {}
    for index, node in enumerate(graph.node):
        if node.op_type == "Constant" or (node.op_type == "DequantizeLinear" and node.input[0] in weights):
            continue
        layer = owner.get(node.name)
        found.setdefault(layer or f"node {index}", Group(layer, [])).nodes.append(node)
    return list(found.values())


def named(layer: str) -> list[str]:
    """The ONNX nodes in an engine layer's name: `/conv1/Conv + /relu/Relu`, maybe behind a prefix or in a list."""
    parts = re.split(r" \+ |,", re.sub(r"PWN\(|[][(){}]", " ", layer))
    return [part.strip() for part in parts if part.strip()]


def svg(title: str, ordered: list[Group], shapes: dict[str, str]) -> str:
    """One column of boxes from input to output; an edge that skips boxes runs in the margin, so that residuals show.
    ``shapes`` are those of the nodes' outputs as text, `N×64×56×56`."""
    tops = list(accumulate((group.height + GAP for group in ordered), initial=50))
    made_by = {output: index for index, group in enumerate(ordered) for node in group.nodes for output in node.output}
    width, height = LEFT + WIDE + 170, tops[-1] + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>'
    ]
    lanes = cycle(range(LEFT - 20, LEFT - 132, -14))
    for index, group in enumerate(ordered):
        parts.append(box(group, tops[index], shapes))
        sources = {made_by.get(name, index) for node in group.nodes for name in node.input} - {index}
        for source in sorted(sources):
            bottom = tops[source + 1] - GAP
            if source == index - 1:
                parts.append(f'<path d="M{LEFT + WIDE / 2} {bottom} V{tops[index]}" stroke="#444"/>')
                continue
            parts.append(
                f'<path d="M{LEFT} {bottom - 6} H{next(lanes)} V{tops[index] + 8} H{LEFT}" fill="none" stroke="#D55E00"/>'
                f'<path d="M{LEFT - 6} {tops[index] + 4} l6 4 l-6 4" fill="none" stroke="#D55E00"/>'
            )
    return "".join([*parts, "</svg>\n"])


def box(group: Group, top: int, shapes: dict[str, str]) -> str:
    """A group's nodes under its layer's name; a node by itself is dashed."""
    dashes = "" if group.layer else ' stroke-dasharray="4 3"'
    size = f'width="{WIDE}" height="{group.height}"'
    drawn = f'<rect x="{LEFT}" y="{top}" {size} rx="6" fill="#f4f4f4" stroke="#888"{dashes}/>'
    top += GAP
    if group.layer:
        name = escape(group.layer if len(group.layer) <= 54 else group.layer[:52] + "…")
        drawn += f'<text x="{LEFT + 10}" y="{top + 12}" fill="#555">{name}<title>{escape(group.layer)}</title></text>'
        top += NODE
    for y, node in zip(count(top, NODE), group.nodes):
        colour, shape = COLOURS.get(node.op_type, "#56B4E9"), escape(shapes.get(node.output[0], ""))
        drawn += (
            f'<rect x="{LEFT + 10}" y="{y + 2}" width="10" height="{NODE - 6}" fill="{colour}"/>'
            f'<text x="{LEFT + 26}" y="{y + 12}">{escape(node.op_type)}<title>{escape(node.name)}</title></text>'
            f'<text x="{LEFT + WIDE - 10}" y="{y + 12}" text-anchor="end" fill="#777">{shape}</text>'
        )
    return drawn


def draw(onnx_file: Path, plan: Path | None, output: Path) -> str:
    """Write the picture; returns one line about it."""
    onnx, inference = (models.needs(package, "a picture of the model") for package in ("onnx", "onnx.shape_inference"))
    if not onnx_file.is_file():
        raise UsageFault(f"{onnx_file}: no such file.")
    facts = {"layers": []} if plan is None else read_json(sidecar(plan))
    if "layers" not in facts:
        raise EnvironmentFault(f"{plan}.json does not name the engine's layers. Build the plan again with 0_build.py.")
    model = onnx.load(str(onnx_file))
    ordered = groups(model.graph, facts["layers"])
    said = f"{sum(len(group.nodes) for group in ordered)} nodes"
    if plan is not None:
        builder = "the simulated TensorRT" if "simulated" in facts["tensorrt"] else f"TensorRT {facts['tensorrt']}"
        said += f" in {sum(group.layer is not None for group in ordered)} of {len(facts['layers'])} layers of {builder}"
    graph = inference.infer_shapes(model).graph
    dimensions = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)}
    shapes = {name: "×".join(str(each.dim_value or "N") for each in found) for name, found in dimensions.items()}
    write_text(output, svg(f"{onnx_file.stem}: {said}", ordered, shapes))
    return f"written: {output}: {said}"


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("onnx", type=Path, metavar="MODEL.onnx")
    p.add_argument("--plan", type=Path, help="a plan built from it by 0_build.py")
    p.add_argument("--output", type=Path, metavar="SVG", help="default: MODEL.svg beside the model")
    options = p.parse_args()
    try:
        err.print(draw(options.onnx, options.plan, options.output or options.onnx.with_suffix(".svg")), markup=False)
    except Fault as fault:
        err.print(f"draw_model: error: {fault}", style="red", markup=False)
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
