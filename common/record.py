"""The result record: what one run of one pipeline came to, as ``--json`` writes it and every table reads it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from common.files import read_json, write_json

T = TypeVar("T")
FAULTY = 101.0
"""Percent of its limit from which on a result is no result."""
LARGEST = 1e18
OF_THE_FIRST = "fp32_max_abs_diff", "fp32_top1_agreement", "peak_device_memory_mb"
"""What the first of several runs tells: later ones need not find it out, or find a GPU that others have used before them."""
FAULT = "a fault of the measurement: run it again with more batches (--measure)"


def from_json(cls: type[T], content: Any, left_out: list[str] | None = None) -> T:
    """A dataclass from a JSON object. What an older or newer version has written besides, or in another form, is left out;
    names of the latter are added to ``left_out``."""
    kinds = {each.name: str(each.type) for each in dataclasses.fields(cls)}  # type: ignore[arg-type]
    known = {name: value for name, value in content.items() if name in kinds and value is not None}
    fit = {name: value for name, value in known.items() if fits(kinds[name], value)}
    if left_out is not None:
        left_out += known.keys() - fit.keys()
    return cls(**fit)


def fits(kind: str, value: Any) -> bool:
    """Whether a value is of an annotated type that JSON has; a number, whether it could be of a measurement."""
    outer, _, inner = kind.replace(" | None", "").rstrip("]").partition("[")
    if outer == "Any" or not isinstance(value, (list, dict, int, float)) or isinstance(value, bool):
        return outer in ("Any", type(value).__name__)
    if isinstance(value, (list, dict)):
        each = value.values() if isinstance(value, dict) else value
        return outer == type(value).__name__ and all(fits(inner.rpartition(", ")[2], one) for one in each)
    return outer in ("float", type(value).__name__) and abs(value) < LARGEST


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

    @classmethod
    def between(cls, done_ns: Sequence[int], measured: int, images: float, **read: Any) -> Window:
        """The window of the last ``measured`` batches, which have ``images`` images: from the end of the batch before them to
        the end of the last, by the times at which each batch was finished."""
        window_ms = (done_ns[-1] - done_ns[-1 - measured]) / 1e6
        return cls(window_ms / measured, images / window_ms * 1e3, window_ms, **read)


@dataclass
class Record(Window, Conditions):
    """A run of one pipeline. None is what it did not find out.

    ``per_batch_ms`` is the median of ``windows``, which has those of all runs. The rest of the window is that of the
    nearest one, and everything else is of the process in which that was measured, but for ``OF_THE_FIRST`` and its notes.
    ``parts_ms`` are the parts of a batch, each run by itself there. ``fp32_…`` compare the plan with the FP32 one; the other
    differences are from a serial run of the same plan. ``folder_images_per_s`` is by the wall clock, whatever the backend.
    """

    stage: str = ""
    precision: str | None = None
    input: str = "float32"  # NumPy's name of what an image's values are sent as; of records of before they said so, too
    batches: int | None = None
    parts_ms: dict[str, float] | None = None  # of ``common.parts.ALL_PARTS``
    outputs_match: bool | None = None
    max_abs_diff: float | None = None
    top1_agreement: float | None = None
    fp32_max_abs_diff: float | None = None
    fp32_top1_agreement: float | None = None
    races: int | None = None  # None on a GPU, where nobody looks for them
    peak_device_memory_mb: float | None = None
    folder_images_per_s: float | None = None  # of the images that were not measured; None where nobody asked for them
    host: dict[str, str] | None = None  # processor, system
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
        left_out: list[str] = []
        record = from_json(cls, content, left_out)
        if record.per_batch_ms < 1 / LARGEST or "stage" not in content:
            return None
        windows = [from_json(Window, window) for window in record.windows if isinstance(window, dict)]
        record.windows = [window for window in windows if window.per_batch_ms > 0]
        record.notes += [f"its record's {name} has another form, and is left out" for name in sorted(left_out)]
        return record

    @classmethod
    def read_all(cls, folder: Path, problems: list[str] | None = None) -> list[Record]:
        """All records of a folder in ladder order. A stage's name is its file's. ``problems`` gets a line for each file that
        should be one, and is none."""
        paths = sorted(folder.glob("*.json"), key=lambda path: ladder_order(path.stem))
        found = [(path.stem, cls.read(path)) for path in paths if path.suffixes[-2:] != [".perfetto", ".json"]]
        none = [name for name, record in found if record is None and "stages" not in read_json(folder / f"{name}.json")]
        if problems is not None:
            problems += [f"{name}.json is left out: no record of a time" for name in none]
        return [dataclasses.replace(record, stage=name) for name, record in found if record is not None]

    @classmethod
    def of(cls, runs: list[Record]) -> Record:
        """Several runs as one: the median time of all windows, in the record of the window nearest to it and of its run."""
        windows = [(window, run) for run in runs for window in run.windows]
        middle = median(window.per_batch_ms for window, _ in windows)
        window, run = min(windows, key=lambda pair: abs(pair[0].per_batch_ms - middle))
        rate = (window.images_per_s or 0.0) * window.per_batch_ms / middle or None
        facts = {**vars(window), "per_batch_ms": middle, "images_per_s": rate}
        facts.update({name: getattr(runs[0], name) for name in OF_THE_FIRST})
        notes = [*dict.fromkeys(runs[0].notes + run.notes)]
        return dataclasses.replace(run, **facts, notes=notes, windows=[each for each, _ in windows])

    @property
    def faulty(self) -> bool:
        """Faster than its longest part by itself: batches finished in bursts, and the window says nothing of their rate."""
        return 100 * max((self.parts_ms or {}).values(), default=0.0) > FAULTY * self.per_batch_ms

    @property
    def repeats_ms(self) -> list[float]:
        """Milliseconds a batch of every window."""
        return [window.per_batch_ms for window in self.windows]


LADDER = 10
"""The last stage that is run unless it is asked for: what starts from pictures in files is as slow as their decoder."""


def ladder_order(name: str) -> tuple[int, str]:
    """Stages by their number; anything else after them, by name."""
    number = name.split("_")[0]
    return (int(number) if number.isdigit() else sys.maxsize, name)


def numbered(folder: Path, last: int) -> list[Path]:
    """The numbered stages in a folder, up to the ``last``, in order."""
    found = sorted(folder.glob("[1-9]*_*.py"), key=lambda path: ladder_order(path.stem))
    return [path for path in found if ladder_order(path.stem)[0] <= last]
