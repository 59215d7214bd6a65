"""Checks of arguments that more than one public call takes."""

import math

__all__ = ["checked_timeout"]


def checked_timeout(argument: str, value: float | None) -> float | None:
    """A duration in seconds or `None`, if `value` is that.

    Raises:
        TypeError: It is not a number; neither is a boolean.
        ValueError: It is negative or NaN.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a number of seconds or None, not {value!r}")
    if math.isnan(value) or value < 0:
        raise ValueError(f"{argument} must be a non-negative number of seconds or None, not {value!r}")
    return value
