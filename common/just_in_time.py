"""TensorRT for RTX compiles an engine's kernels on the GPU that runs it: when, and where they are kept for the next process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import backend
from common.checked import logger, require
from common.console import err
from common.errors import Fault
from common.files import write_bytes


def runtime_config(trt_engine: Any, plan: Path) -> tuple[Any, ...]:
    """What ``create_execution_context`` takes: nothing, but with TensorRT for RTX how it compiles.

    Eagerly: a context waits for the kernels of its shape instead of running others while they are compiled, so that no
    measured batch is slower than the next. What the last process compiled lies beside the plan.
    """
    trt = backend.current().tensorrt
    if not hasattr(trt, "IRuntimeCache"):
        return ()
    path, settings = Path(f"{plan}.cache"), require(trt_engine.create_runtime_config(), "create_runtime_config")
    settings.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    runtime_cache = require(settings.create_runtime_cache(), "create_runtime_cache")
    if path.is_file() and not runtime_cache.deserialize(path.read_bytes()):
        err.print(f"{path} is not used: {logger().said() or 'of another GPU, driver or TensorRT'}", markup=False)
    require(settings.set_runtime_cache(runtime_cache), "set_runtime_cache")
    return (settings,)


def keep(runtime_config: tuple[Any, ...], plan: Path) -> None:
    """Write what this process has compiled beside the plan."""
    for settings in runtime_config:
        runtime_cache = require(settings.get_runtime_cache(), "get_runtime_cache")
        try:
            write_bytes(Path(f"{plan}.cache"), bytes(require(runtime_cache.serialize(), "serialize")))
        except Fault as fault:
            err.print(f"compiled kernels are not kept: {fault}", style="yellow", markup=False)
