"""The result record: what one run of one pipeline came to, as ``--json`` writes it and every table reads it."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from common.files import read_json, write_json

T = TypeVar("T")
FAULTY = 101.0
"""Percent of its limit from which on a result is no result."""
FAULT = "a fault of the measurement: run it again with more batches (--measure)"


def from_json(cls: type[T], content: dict[str, Any]) -> T:
    """A dataclass from a JSON object. What an older or newer version has written besides is left out."""
    names = [each.name for each in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return cls(**{name: content[name] for name in names if content.get(name) is not None})


@dataclass
class Conditions:
    """What ran where: the line beside every table. ``batch`` is the batch that the times are of; a simulated run may compute
    a smaller one, ``computed_batch``. ``engine`` is the library that ran the plan, with its version."""

    backend: str = "tensorrt"
    device: str | None = None
    engine: str | None = None
    batch: int | None = None
    computed_batch: int | None = None
    measured: int | None = None
    date: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        batch = f"batch {self.batch}"
        if self.computed_batch not in (None, self.batch):
            batch += f" (computed at {self.computed_batch})"
        parts = [str(self.device or "unknown GPU"), str(self.engine or "TensorRT"), batch]
        if self.backend == "simulated":
            return ", ".join(parts) + "; times are modelled, outputs are computed"
        parts += [f"CUDA {self.versions['runtime']}"] if "runtime" in self.versions else []
        parts += [self.date] if isinstance(self.date, str) else []  # a list: made on several days
        return ", ".join(parts)


@dataclass
class Window:
    """One measured window, in milliseconds: ``per_batch_ms`` is ``window_ms`` over the number of measured batches.

    ``latency_ms`` is from the submission of a batch to its post-processed outputs; ``energy_j`` is what the whole GPU took in
    the window; ``core_us`` is the core's speed before and after (``common.host``), ``gpu`` the GPU's own word at its end.
    """

    per_batch_ms: float = 0.0
    images_per_s: float | None = None
    window_ms: float | None = None
    window_event_ms: float | None = None
    intervals_ms: list[float] = field(default_factory=list)
    submit_ms: float | None = None
    latency_ms: dict[str, float] | None = None  # median, p95, p99
    energy_j: float | None = None
    core_us: list[float] | None = None
    gpu: dict[str, Any] | None = None


@dataclass
class Record(Window, Conditions):
    """A run of one pipeline. None is what it did not find out.

    The window is the median one of ``windows``, which has those of all runs; everything else is of the process in which that
    window was measured. ``parts_ms`` are the parts of a batch, each run by itself there. ``fp32_…`` compare with the FP32
    plan, the other differences with a serial run of the same plan.
    """

    stage: str = ""
    precision: str | None = None
    batches: int | None = None
    parts_ms: dict[str, float] | None = None  # h2d, compute, d2h, postprocess
    outputs_match: bool | None = None
    max_abs_diff: float | None = None
    top1_agreement: float | None = None
    fp32_max_abs_diff: float | None = None
    fp32_top1_agreement: float | None = None
    races: int | None = None  # None on a GPU, where nobody looks for them
    peak_device_memory_mb: float | None = None
    host: dict[str, Any] | None = None
    plan: str | None = None
    time_base: str | None = None
    notes: list[str] = field(default_factory=list)
    windows: list[Any] = field(default_factory=list)

    arguments: list[str] | None = None  # of the harness, as is the next
    profiled: dict[str, float] | None = None  # the profiled run's window by the host's clock and by CUDA events

    def write(self, path: Path) -> None:
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record in a file; None where there is none."""
        content = read_json(path)
        timed = isinstance(content.get("per_batch_ms"), (int, float)) and content["per_batch_ms"] > 0
        if not timed or "stage" not in content:
            return None
        record = from_json(cls, content)
        record.windows = [from_json(Window, window) for window in record.windows]
        return record

    @classmethod
    def read_all(cls, folder: Path) -> list[Record]:
        """All records of a folder in ladder order. A stage's name is its file's."""
        paths = sorted(folder.glob("*.json"), key=lambda path: ladder_order(path.stem))
        found = [(path.stem, cls.read(path)) for path in paths]
        return [dataclasses.replace(record, stage=name) for name, record in found if record is not None]

    @classmethod
    def of(cls, runs: list[Record]) -> Record:
        """Of all windows of several runs the median one, in the record of its run, with all of them beside it."""
        windows = sorted(((window, run) for run in runs for window in run.windows), key=lambda pair: pair[0].per_batch_ms)
        window, run = windows[len(windows) // 2]
        return dataclasses.replace(run, **vars(window), windows=[each for own in runs for each in own.windows])

    @property
    def faulty(self) -> bool:
        """Faster than its longest part by itself: batches finished in bursts, and the window says nothing of their rate."""
        return 100 * max((self.parts_ms or {}).values(), default=0.0) > FAULTY * self.per_batch_ms

    @property
    def repeats_ms(self) -> list[float]:
        """Milliseconds a batch of every window."""
        return [window.per_batch_ms for window in self.windows]


def ladder_order(name: str) -> tuple[int, str]:
    """Stages by their number; anything else after them, by name."""
    number = name.split("_")[0]
    return (int(number) if number.isdigit() else sys.maxsize, name)
