"""TensorRT as a contender: the plan for one batch, enqueued or replayed as a CUDA graph; stage 7's pipeline over it; and
what would run it through Torch-TensorRT."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from common import backend
from common.buffers import DeviceBuffer
from common.children import record_of
from common.cuda import Stream
from common.engine import Engine
from common.errors import EnvironmentFault, Fault
from common.libraries import first
from common.plans import ROOT, unusable
from export import models
from peers.lane import Enqueue, Lane, growth_mb
from peers.on_pytorch import pytorch
from peers.task import Missing, Ready, Task


@contextlib.contextmanager
def tensorrt(task: Task, precision: str, graph: bool = False) -> Iterator[Ready]:
    """The plan for this batch, built by 0_build.py when missing; its kernels launched one by one, or as a ``graph``."""
    try:
        here = backend.select("tensorrt")
    except Fault as fault:
        raise Missing(f"TensorRT and an NVIDIA GPU ({fault})") from None
    plan, wanted = task.plan(precision), [] if precision == "fp32" else [f"--{precision}"]
    if reason := unusable(plan, plan):
        if not here.kind.builds:
            raise Missing(f"a plan: {reason}")
        profile = ",".join([str(task.batch)] * 3)
        try:
            task.build("--backend", "tensorrt", *wanted, "--profile", profile, "--output", plan)
        except EnvironmentFault as fault:
            raise Missing(f"a plan; the build failed: {fault}") from None
    memory_mb, engine = growth_mb(), Engine(plan)
    engine.require_precision(precision)
    context, shape = engine.create_context(engine.profile_for(task.batch)), engine.input_shape(task.batch)
    context.set_input_shape(shape)
    with ExitStack() as resources:
        stream, bound = resources.enter_context(Stream()), list[DeviceBuffer]()

        def runner(device_input: DeviceBuffer, device_output: DeviceBuffer) -> Enqueue:
            def enqueue() -> None:
                if bound != [device_input, device_output]:
                    bound[:] = device_input, device_output
                    context.bind(device_input, device_output)
                context.execute_async_v3(stream)

            if not graph:
                return enqueue
            enqueue()  # TensorRT gets ready for this shape, which must not be captured
            stream.synchronize()
            with stream.capture() as captured:
                enqueue()
            resources.enter_context(captured)
            return lambda: captured.launch(stream)

        lane = Lane(resources, stream, shape, engine.output_shape(task.batch), runner, engine.input_type)
        build_s, words = engine.facts.get("build_s"), command(plan, task, graph)
        yield Ready(here.library, lane.load, lane.infer, lane.output, here.device, lane, memory_mb, build_s, words)


def command(plan: Path, task: Task, graph: bool) -> str:
    """What times a plan with trtexec as its row is timed here: copies and compute in turn (they overlap without
    ``--exposeDMA``, and each takes longer), the host spinning, warmed up."""
    words = [f"trtexec --loadEngine={plan.name}", f"--shapes={models.INPUT}:{'x'.join(map(str, task.input_shape))}"]
    words += ["--exposeDMA", "--useSpinWait", *["--useCudaGraph"] * graph, "--warmUp=400", "--duration=2"]
    return " ".join([*words, "--percentile=90,95,99", "--exportTimes=times.json"])


@contextlib.contextmanager
def pipeline(task: Task, precision: str) -> Iterator[Ready]:
    """The same plan in stage 7's pipeline: several batches in flight, post-processing included."""
    with tensorrt(task, precision) as ready:
        what = ["--backend", "tensorrt", "--plan", task.plan(precision), "--precision", precision, "--batch", task.batch]
        rate = partial(record_of, ROOT / "7_cuda_graph.py", *what, "--no-controls")
        yield replace(ready, rate=rate, command=None)


@contextlib.contextmanager
def torch_tensorrt(task: Task, precision: str) -> Iterator[Ready]:
    """PyTorch's own way to TensorRT: the model compiled by it, and run by PyTorch."""
    if not first("torch_tensorrt"):
        whole = "torch-tensorrt and the TensorRT that it is made for, builder included: for PyTorch 2.11, TensorRT 10.15"
        raise Missing(f"{whole}, whose libraries PyPI does not have")
    with pytorch(task, precision, backend="torch_tensorrt") as ready:
        yield ready
