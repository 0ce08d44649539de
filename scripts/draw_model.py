"""A picture of a model: its ONNX nodes, in the boxes of the engine's layers that TensorRT fused them into.

    python -m scripts.draw_model models/resnet18-fp16.onnx --plan plans/resnet18-fp16.plan
    python -m scripts.draw_model models/resnet18-fp32.onnx

The layers come from the plan's sidecar, where 0_build.py leaves the engine inspector's names: a fused layer is named after
its nodes. Without a plan, or for nodes that no layer names, the nodes stand alone. Needs the onnx package, not TensorRT.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

from common import models
from common.engine import sidecar
from common.errors import EnvironmentFault, Fault, UsageFault
from common.files import atomic_path

COLOURS = {"Conv": "#0072B2", "Gemm": "#0072B2", "Relu": "#009E73", "Clip": "#009E73", "Sigmoid": "#009E73", "Mul": "#CC79A7",
           "Add": "#CC79A7", "MaxPool": "#E69F00", "GlobalAveragePool": "#E69F00", "QuantizeLinear": "#999999",
           "DequantizeLinear": "#999999", "Cast": "#999999"}
LEFT, WIDE, NODE, GAP = 150, 330, 18, 8  # SVG units: margin for the skipping edges, a box's width, a node's height, space


@dataclass
class Group:
    """Nodes of one engine layer (or one node by itself), and the groups whose outputs they read."""

    layer: str | None
    nodes: list[Any]


def groups(graph: Any, layers: list[str]) -> list[Group]:
    """The graph's nodes in order, those of one layer together where its first one stands; constants are left out."""
    nodes = [node for node in graph.node if node.op_type not in ("Constant",) and not of_weights(node, graph)]
    owner = {name: layer for layer in layers for name in named(layer)}
    found: dict[str, Group] = {}
    ordered = []
    for index, node in enumerate(nodes):
        layer = owner.get(node.name)
        key = layer if layer is not None else f"node {index}"
        if key not in found:
            found[key] = Group(layer, [])
            ordered.append(found[key])
        found[key].nodes.append(node)
    return ordered


def of_weights(node: Any, graph: Any) -> bool:
    """Whether a node only unpacks quantized weights."""
    return node.op_type == "DequantizeLinear" and node.input[0] in {weight.name for weight in graph.initializer}


def named(layer: str) -> list[str]:
    """The ONNX nodes in an engine layer's name: `/conv1/Conv + /relu/Relu`, maybe behind a prefix or in a list."""
    for mark in ("PWN(", "[", "]", "(", ")", "{", "}", ","):
        layer = layer.replace(mark, " + " if mark == "," else " ")
    return [part.strip() for part in layer.split(" + ") if part.strip()]


def svg(title: str, ordered: list[Group], shapes: dict[str, str]) -> str:
    """One column of boxes from input to output; an edge that skips boxes runs in the margin, so that residuals show."""
    tops, y = [], 50
    for group in ordered:
        tops.append(y)
        y += NODE * len(group.nodes) + 2 * GAP + (NODE if group.layer else 0)
        y += GAP
    made_by = {output: index for index, group in enumerate(ordered) for node in group.nodes for output in node.output}
    width = LEFT + WIDE + 170
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 20}" width="{width}" height="{y + 20}" '
             f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
             f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>']
    skips = 0
    for index, group in enumerate(ordered):
        height = NODE * len(group.nodes) + 2 * GAP + (NODE if group.layer else 0)
        dashes = "" if group.layer else ' stroke-dasharray="4 3"'
        parts.append(f'<rect x="{LEFT}" y="{tops[index]}" width="{WIDE}" height="{height}" rx="6" fill="#f4f4f4" '
                     f'stroke="#888"{dashes}/>')
        top = tops[index] + GAP
        if group.layer:
            text = group.layer if len(group.layer) <= 54 else group.layer[:52] + "…"
            parts.append(f'<text x="{LEFT + 10}" y="{top + 12}" fill="#555">{escape(text)}'
                         f"<title>{escape(group.layer)}</title></text>")
            top += NODE
        for row, node in enumerate(group.nodes):
            at = top + row * NODE
            colour, shape = COLOURS.get(node.op_type, "#56B4E9"), escape(shapes.get(node.output[0], ""))
            parts.append(f'<rect x="{LEFT + 10}" y="{at + 2}" width="10" height="{NODE - 6}" fill="{colour}"/>'
                         f'<text x="{LEFT + 26}" y="{at + 12}">{escape(node.op_type)}<title>{escape(node.name)}</title></text>'
                         f'<text x="{LEFT + WIDE - 10}" y="{at + 12}" text-anchor="end" fill="#777">{shape}</text>')
        sources = {made_by[name] for node in group.nodes for name in node.input if made_by.get(name, index) != index}
        for source in sorted(sources):
            bottom = tops[source + 1] - GAP if source + 1 < len(tops) else y
            if source == index - 1:
                parts.append(f'<path d="M{LEFT + WIDE / 2} {bottom} V{tops[index]}" stroke="#444"/>')
            else:
                x = LEFT - 20 - 14 * (skips % 8)
                skips += 1
                parts.append(f'<path d="M{LEFT} {bottom - 6} H{x} V{tops[index] + 8} H{LEFT}" fill="none" stroke="#D55E00"/>'
                             f'<path d="M{LEFT - 6} {tops[index] + 4} l6 4 l-6 4" fill="none" stroke="#D55E00"/>')
    return "".join([*parts, "</svg>\n"])


def tensor_shapes(model: Any) -> dict[str, str]:
    """Shapes as text, `N×64×56×56`."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model).graph
    return {value.name: "×".join(str(d.dim_value or "N") for d in value.type.tensor_type.shape.dim)
            for value in (*graph.value_info, *graph.output)}


def layers_of(plan: Path) -> tuple[list[str], str]:
    """The engine's layer names, and which TensorRT built it."""
    try:
        facts = json.loads(sidecar(plan).read_text(encoding="utf-8"))
        version = facts["tensorrt"]
        return facts["layers"], "the simulated TensorRT" if "simulated" in version else f"TensorRT {version}"
    except (OSError, ValueError, KeyError):
        raise EnvironmentFault(f"{sidecar(plan)} does not name the engine's layers. Build the plan again with "
                               "0_build.py.") from None


def draw(onnx_file: Path, plan: Path | None, output: Path) -> str:
    """Write the picture; returns one line about it."""
    onnx = models.needs("onnx", "a picture of the model")
    if not onnx_file.is_file():
        raise UsageFault(f"{onnx_file}: no such file.")
    model = onnx.load(str(onnx_file))
    layers, engine = layers_of(plan) if plan is not None else ([], "")
    ordered = groups(model.graph, layers)
    fused = [group for group in ordered if group.layer]
    count = sum(len(group.nodes) for group in ordered)
    said = f"{count} nodes" + (f" in {len(fused)} of {len(layers)} layers of {engine}" if layers else "")
    with atomic_path(output) as temporary:
        temporary.write_text(svg(f"{onnx_file.stem}: {said}", ordered, tensor_shapes(model)), encoding="utf-8")
    return f"written: {output}: {said}"


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("onnx", type=Path, metavar="MODEL.onnx")
    p.add_argument("--plan", type=Path, help="a plan built from it by 0_build.py")
    p.add_argument("--output", type=Path, metavar="SVG", help="default: MODEL.svg beside the model")
    options = p.parse_args()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        console.print(draw(options.onnx, options.plan, options.output or options.onnx.with_suffix(".svg")), markup=False)
    except Fault as fault:
        console.print(f"draw_model: error: {fault}", style="red", markup=False)
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
