"""TensorRT's calls, checked: each answers what it should, or raises with its name and with what TensorRT logged."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from common import backend
from common.errors import EnvironmentFault


class TensorRTError(EnvironmentFault):
    """A TensorRT call failed; the message has the call and what TensorRT logged."""


def logger() -> Any:
    """The process's TensorRT logger: it prints nothing, and keeps the last error and the layers of the engine built last."""
    return _logger(backend.current().tensorrt)


@functools.cache
def _logger(trt: Any) -> Any:
    class Kept(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last, self.layers = "", ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last = " ".join(msg.split())
            elif msg.startswith(("Layers:", "Engine Layer Information:")):
                self.layers = msg

        def said(self) -> str:
            """The last error, once."""
            last, self.last = self.last, ""
            return last

    return Kept()


def require(result: Any, call: str, reason: object = "TensorRT gave no reason") -> Any:
    """Return ``result``, or raise ``TensorRTError`` where TensorRT answered False or None."""
    if result is None or result is False:
        raise TensorRTError(f"{call} failed: {logger().said() or reason}.")
    return result


def started(kind: Callable[[Any], Any], call: str) -> Any:
    """A Builder or Runtime. Raises ``TensorRTError`` where it cannot start; the bindings since 10 raise ``TypeError`` then."""
    try:
        return require(kind(logger()), call)
    except TypeError as error:
        return require(None, call, error)
