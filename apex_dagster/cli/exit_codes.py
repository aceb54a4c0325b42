"""What the exit code of every command means, and the errors that end a command with one."""

from __future__ import annotations

from click import ClickException

from apex_dagster.errors import (
    ApexError,
    InvalidInput,
    OutcomeUnknown,
    ServerNotStarted,
    StoreUnavailable,
)

ATTENTION, WRONG_USE, UNREACHABLE = 1, 2, 3

HELP = "Exit codes: 0 done, 1 something needs attention, 2 wrong use, 3 a server is not reachable."


class NeedsAttention(ClickException):
    exit_code = ATTENTION


class WrongUse(ClickException):
    exit_code = WRONG_USE


class Unreachable(ClickException):
    exit_code = UNREACHABLE


def as_click(error: Exception, message: str) -> ClickException:
    """What to raise for click to print `message` and exit; `error` decides the code."""
    if isinstance(error, StoreUnavailable | OutcomeUnknown | ServerNotStarted):
        return Unreachable(message)
    if isinstance(error, ApexError) and not isinstance(error, InvalidInput):
        return NeedsAttention(message)
    return WrongUse(message)  # of an argument or of a setting
