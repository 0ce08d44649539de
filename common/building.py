"""Running a build on a thread of its own, so that the terminal shows its progress and Ctrl-C is heard."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from common.console import err


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
