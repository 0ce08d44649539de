"""The old command for a picture of a model, which Netron now draws."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    print("To see a model's graph: pip install netron, then netron models/resnet18-fp16.onnx.", file=sys.stderr)
    print("The layers that TensorRT fused its nodes into are in PLAN.json beside the plan, key `layers`.", file=sys.stderr)
    sys.exit(2)
