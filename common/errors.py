"""The ways in which a run can end other than well: a sentence for the user and an exit code each."""

from __future__ import annotations

VERIFIED, WRONG, USAGE, ENVIRONMENT, OURS, INTERRUPTED = 0, 1, 2, 3, 70, 130
"""Exit codes: outputs verified; wrong outputs or a race; wrong options; something missing; a mistake of ours; interrupted."""


class Fault(Exception):
    """Ends the run with its message on one line and ``exit_code``; no traceback."""

    exit_code = ENVIRONMENT


def reason(error: BaseException) -> str:
    """What an exception of somebody else's says, its first line, and what begins there; its type where it says nothing."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {rest[0].strip()[:120]}" if first.endswith(":") and rest else first


class EnvironmentFault(Fault):
    pass


class MissingModule(EnvironmentFault):
    """An option needs it."""


class WrongOutputs(Fault):
    exit_code = WRONG


class UsageFault(Fault):
    exit_code = USAGE
