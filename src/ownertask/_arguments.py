"""Checks for arguments that several public functions share."""

import math

__all__ = ["checked_size", "checked_timeout"]


def checked_timeout(argument: str, value: float | None) -> float | None:
    """Returns `value` if it is a duration in seconds or `None`.

    Raises:
        TypeError: `value` is not a number. A boolean does not count as one.
        ValueError: `value` is negative or NaN.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a number of seconds or None, not {value!r}")
    if math.isnan(value) or value < 0:
        raise ValueError(f"{argument} must be a non-negative number of seconds or None, not {value!r}")
    return value


def checked_size(argument: str, value: int | None) -> int | None:
    """Returns `value` if it is a positive number of bytes or `None`.

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
