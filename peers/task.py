"""What is compared by ``compare_engines``: the task, and the one face behind which every engine does it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.children import output_of
from common.files import sha256
from common.plans import ROOT
from common.record import Record
from export import models
from peers.lane import Lane


@dataclass(frozen=True)
class Task:
    """What every contender is to do: a model with these weights, batches of this size; ``classes``: how many it knows."""

    model: str
    weights: str
    batch: int
    classes: int = 1000

    @property
    def tag(self) -> str:
        return models.tag(self.model, self.weights, models.SEED)

    @property
    def weights_sha256(self) -> str:
        """The hash of a file of weights; `random` and `imagenet` are names already."""
        return sha256(Path(self.weights)) if Path(self.weights).is_file() else self.weights

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        side = models.MODELS[self.model]
        return (self.batch, 3, side, side)

    def onnx(self, precision: str) -> Path:
        return ROOT / "models" / f"{self.tag}-{precision}.onnx"

    def plan(self, precision: str) -> Path:
        """For this batch alone: a plan for many sizes has kernels chosen for one of them."""
        return ROOT / "plans" / f"{self.tag}-{precision}-b{self.batch}.plan"

    def export(self, calibration_images: Path | None) -> None:
        """Make the ONNX files, the INT8 one too where it can be calibrated; raises ``EnvironmentFault``."""
        self.build("--export-only", *(["--int8", "--calibration-images", calibration_images] if calibration_images else []))

    def build(self, *options: object) -> None:
        """Run 0_build.py for the model; raises ``EnvironmentFault``."""
        output_of(ROOT / "0_build.py", "--model", self.model, "--weights", self.weights, *options)


class Missing(Exception):
    """This machine lacks what the contender needs; the message says what."""


@dataclass
class Ready:
    """A model that can run. ``load`` takes a batch, N×3×S×S FP32, to where it is read from: page-locked memory, for a GPU.
    ``infer`` is what is timed: from there to logits in host memory, to its end. ``output`` copies these, N×C FP32."""

    version: str  # the library and its version
    load: Callable[[np.ndarray], None]
    infer: Callable[[], None]
    output: Callable[[], np.ndarray]
    device: str = "CPU"
    lane: Lane | None = None  # of one on a GPU: times the parts of a batch, and batches sent one ahead
    memory_mb: Callable[[], float | None] = lambda: None  # device memory that it holds
    build_s: float | None = None  # seconds of an earlier build, whose result was only loaded
    command: str | None = None  # of the vendor's own tool that times the same
    rate: Callable[[], Record] | None = None  # of a pipeline: the record of a measured window

    @classmethod
    def on_cpu(cls, version: str, run: Callable[[np.ndarray], np.ndarray]) -> Ready:
        """``run``: from images to logits."""
        kept = dict[str, np.ndarray]()
        load, infer = lambda images: kept.update(images=images), lambda: kept.update(logits=run(kept["images"]))
        return cls(version, load, infer, lambda: kept["logits"])


@dataclass(frozen=True)
class Contender:
    """One way to run a model. ``prepare(task, precision)`` loads, compiles or builds it, or raises ``Missing``; everything is
    given back at the end of its context."""

    name: str
    precision: str
    prepare: Callable[[Task, str], AbstractContextManager[Ready]]
