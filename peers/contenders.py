"""Who is compared by ``compare_engines``, in the order of its tables. Packages are imported by whom they serve."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from peers import on_onnx_runtime, on_pytorch, on_tensorrt
from peers.task import Contender, Ready

KINDS: list[tuple[str, str, Callable[..., AbstractContextManager[Ready]]]] = [
    ("PyTorch eager", "fp32 fp16", on_pytorch.pytorch),
    ("PyTorch compile (default)", "fp32 fp16", partial(on_pytorch.pytorch, mode="default")),
    ("PyTorch compile (reduce-overhead)", "fp16", partial(on_pytorch.pytorch, mode="reduce-overhead")),
    ("PyTorch compile (max-autotune)", "fp16", partial(on_pytorch.pytorch, mode="max-autotune")),
    ("Torch-TensorRT", "fp16", on_tensorrt.torch_tensorrt),
    ("ONNX Runtime CPU", "fp32 int8", on_onnx_runtime.on_cpu),
    ("ONNX Runtime CUDA", "fp32 fp16", partial(on_onnx_runtime.on_gpu, provider="CUDA")),
    ("ONNX Runtime CUDA (NHWC)", "fp16", partial(on_onnx_runtime.on_gpu, provider="CUDA", prefer_nhwc="1")),
    ("ONNX Runtime CUDA (CUDA graph)", "fp16", partial(on_onnx_runtime.on_gpu, provider="CUDA", enable_cuda_graph="1")),
    ("ONNX Runtime TensorRT", "fp16", partial(on_onnx_runtime.on_gpu, provider="TensorRT")),
    ("TensorRT", "fp32 fp16 int8", on_tensorrt.tensorrt),
    ("TensorRT (CUDA graph)", "fp32 fp16 int8", partial(on_tensorrt.tensorrt, graph=True)),
    ("TensorRT pipeline (stage 7)", "fp16 int8", on_tensorrt.pipeline),
]
CONTENDERS = [Contender(name, precision, prepare) for name, precisions, prepare in KINDS for precision in precisions.split()]
