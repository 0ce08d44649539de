"""A name that the drop-ins do not have is an AttributeError of one sentence: ``hasattr`` works, and its author knows why."""

from __future__ import annotations

from enum import EnumMeta, IntEnum
from typing import TYPE_CHECKING, Any, NoReturn


def lack(name: str, *arguments: Any, what: str = "simulated TensorRT") -> NoReturn:
    """Say that a library does not have a name, which begins with the class that it was looked for in."""
    what = "simulated CUDA runtime" if name.startswith(("cuda", "CU", "nvrtc")) else what
    layers = ".add_" in name or ".mark_" in name
    has = "takes networks from ONNX files only" if layers else "has what TensorRT scripts need to run an ONNX model"
    raise AttributeError(f"the {what} has no {name}; it {has} (docs/check_your_pipeline.md)")


class OfClass(type):
    def __getattr__(cls, name: str) -> Any:
        if cls.__module__.startswith("sim."):
            lack(f"{cls.__name__}.{name}")
        raise AttributeError(f"{cls.__name__} has no {name}")  # a script's own class


class Ours(metaclass=OfClass):
    if not TYPE_CHECKING:  # which knows the names better

        def __getattr__(self, name: str) -> Any:
            return OfClass.__getattr__(type(self), name)


if TYPE_CHECKING:
    from enum import IntEnum as Enumeration
else:

    class OfEnum(EnumMeta):
        def __getattr__(cls, name: str) -> Any:
            members = vars(cls).get("_member_map_", {})  # where Python looks for them before 3.12
            return members[name] if name in members else lack(f"{cls.__name__}.{name}")

    class Enumeration(IntEnum, metaclass=OfEnum):
        pass
