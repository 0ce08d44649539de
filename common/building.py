"""A build on a thread of its own, so that the terminal shows its progress and Ctrl-C is heard; and what comes of it."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from common import backend, layers, plans
from common.checked import TensorRTError, logger, require
from common.console import err
from common.engine import Engine
from common.errors import EnvironmentFault
from common.files import sha256, write_bytes


class Building:
    """TensorRT 10 and later report progress and can be told to stop; 8.6 does neither: it gets the elapsed time, and is
    stopped with the process."""

    def __init__(self, trt: Any, config: Any) -> None:
        self._stopped = threading.Event()
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
        self.progress = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._monitor = None
        if hasattr(config, "progress_monitor"):
            config.progress_monitor = self._monitor = monitor(trt, self.progress, self._stopped)

    def wait(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns or raises; ``KeyboardInterrupt`` where it was stopped."""
        with self.progress, ThreadPoolExecutor(1) as pool:
            self.progress.add_task("building", total=None)
            built = pool.submit(work)
            try:
                while not built.done():
                    wait([built], 0.1)
            except KeyboardInterrupt:
                self._stopped.set()
                if self._monitor is None:
                    err.print("0_build: interrupted", style="red")
                    os._exit(130)
                raise  # once the builder has stopped
        return built.result()


def monitor(trt: Any, progress: Progress, stopped: threading.Event) -> Any:
    """Shows TensorRT's phases in ``progress``, and ends the build once it is ``stopped``."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.tasks: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.tasks[phase_name] = progress.add_task(("  " if parent_phase else "") + phase_name, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.update(self.tasks[phase_name], completed=step + 1)
            return not stopped.is_set()

        def phase_finish(self, phase_name: str) -> None:
            progress.remove_task(self.tasks.pop(phase_name))

    return Monitor()


def take_timings(config: Any, path: Path | None) -> None:
    """Give the builder what earlier builds have timed: nothing where that was on another GPU or by another library."""
    for again in (False, True) if path else ():
        try:
            known = b"" if again or path is None or not path.is_file() else path.read_bytes()
            cache = require(config.create_timing_cache(known), "create_timing_cache")
            require(config.set_timing_cache(cache, False), "set_timing_cache")
            return
        except (TensorRTError, OSError) as error:
            err.print(f"the timings in {path} are not used: {error}", markup=False)


def keep_timings(path: Path | None, timings: bytes) -> None:
    """Write them for the next build; the plan is as good without."""
    try:
        if path and timings:
            write_bytes(path, timings)
    except EnvironmentFault as fault:
        err.print(f"timings are not kept: {fault}", style="yellow", markup=False)


def prove(output: Path, plan: bytes, onnx: Path, options: argparse.Namespace, described: dict[str, Any]) -> dict[str, Any]:
    """What the plan is for and of. It is loaded for its layers' precision; where there is no GPU for that, the log tells it."""
    found = layers.logged(logger().layers)
    try:
        if backend.current().cudart is not None:
            found = Engine(output, trusted=options.version_compatible, built=plan).layers or found
    except EnvironmentFault as fault:
        if not options.version_compatible:  # which is for another TensorRT to load
            raise
        err.print(f"not loaded here, so the builder's log tells the layers: {fault}", style="yellow", markup=False)
    told = layers.precisions(found)
    if options.onnx_file is None or options.precision != "fp32":
        layers.require_precision(told, options.precision, output, described.get("quantized", 0))
    asked = "as in the ONNX file" if options.precision == "fp32" else options.precision
    usual: dict[str, Any] = {"precision": asked, "model": onnx.stem, "weights": None, "labels": []}
    return {
        **plans.this_machine(),
        **{name: described.get(name, value) for name, value in usual.items()},
        "precisions": dict(told.most_common()),
        "layers": layers.names(found),
        "version_compatible": options.version_compatible,
        "onnx": onnx.name,
        "onnx_sha256": sha256(onnx),
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
        "command": ["python", Path(sys.argv[0]).name, *sys.argv[1:]],
    }
