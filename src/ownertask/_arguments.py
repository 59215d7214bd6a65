"""Checks for arguments that several public functions share."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import AsyncGeneratorType, CoroutineType
from typing import TypeVar

from .policy import ReconnectPolicy

__all__ = [
    "checked_count",
    "checked_opened",
    "checked_reconnect",
    "checked_seconds",
    "checked_timeout",
    "checked_watch",
]

T = TypeVar("T")


def checked_opened(
    opened: AbstractAsyncContextManager[T], function: str = "open_connection"
) -> AbstractAsyncContextManager[T]:
    """Returns `opened`, the result of a function, if it is an async context manager.

    Raises:
        TypeError: `opened` is something else.
    """
    kind = type(opened)
    if hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__"):  # faster than isinstance()
        return opened
    hint = ""
    if isinstance(opened, CoroutineType | AsyncGeneratorType):
        hint = "; is the decorator @asynccontextmanager missing?"
        if isinstance(opened, CoroutineType):
            opened.close()  # prevents the warning that it was never awaited
    raise TypeError(f"{function}() must return an async context manager, not {kind.__name__}{hint}")


def checked_timeout(argument: str, value: float | None) -> float | None:
    """Returns `value` if it is a duration in seconds or `None`.

    Raises:
        TypeError: `value` is not a number. A boolean does not count as one.
        ValueError: `value` is negative or NaN.
    """
    return None if value is None else checked_seconds(argument, value, " or None")


def checked_seconds(argument: str, value: float, or_none: str = "") -> float:
    """Returns `value` if it is a duration in seconds.

    Raises:
        TypeError: `value` is not a number. A boolean does not count as one.
        ValueError: `value` is negative or NaN.
    """
    if type(value) is float and value >= 0:  # nearly always, so that the checks below take no time
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a number of seconds{or_none}, not {value!r}")
    if not value >= 0:  # also rejects NaN
        raise ValueError(f"{argument} must be a non-negative number of seconds{or_none}, not {value!r}")
    return value


def checked_count(argument: str, value: int | None) -> int | None:
    """Returns `value` if it is a positive integer or `None`.

    Raises:
        TypeError: `value` is not an integer. A boolean does not count as an integer.
        ValueError: `value` is not positive.
    """
    if value is not None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{argument} must be an integer or None, not {type(value).__name__}")
        if value <= 0:
            raise ValueError(f"{argument} must be positive, not {value}")
    return value


def checked_reconnect(value: ReconnectPolicy | None) -> ReconnectPolicy | None:
    """Returns `value` if it is a policy or `None`.

    Raises:
        TypeError: `value` is something else.
    """
    if value is not None and not isinstance(value, ReconnectPolicy):
        raise TypeError(f"reconnect must be a ReconnectPolicy or None, not {type(value).__name__}")
    return value


def checked_watch(
    value: Callable[[T], Awaitable[object]] | None,
) -> Callable[[T], Awaitable[object]] | None:
    """Returns `value` if it is callable or `None`.

    Raises:
        TypeError: `value` is something else.
    """
    if value is not None and not callable(value):
        raise TypeError(f"watch must be callable or None, not {type(value).__name__}")
    return value
