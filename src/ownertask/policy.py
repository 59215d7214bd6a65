"""`ReconnectPolicy`: whether and when to try again after a failure. Pure data and arithmetic.

The classes are written by hand. A dataclass would make `import ownertask` measurably slower.
"""

from collections.abc import Callable
from math import isinf, isnan
from sys import maxsize
from typing import dataclass_transform

from ._reason import reason

__all__ = ["ReconnectPolicy", "Reconnecting"]


@dataclass_transform(frozen_default=True)
class _Frozen:
    """An immutable value. Its fields are its slots."""

    __slots__ = ()
    _fields: tuple[str, ...] = ()

    def __setattr__(self, field: str, value: object) -> None:
        raise AttributeError(f"cannot set {field!r}; a {type(self).__name__} cannot be changed")

    def __delattr__(self, field: str) -> None:
        raise AttributeError(f"cannot delete {field!r}; a {type(self).__name__} cannot be changed")

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, field) for field in self._fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Frozen) or type(self) is not type(other):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        shown = ", ".join(f"{field}={getattr(self, field)!r}" for field in self._fields)
        return f"{type(self).__name__}({shown})"

    def __getstate__(self) -> dict[str, object]:
        return dict(zip(self._fields, self._values(), strict=True))

    def __setstate__(self, state: dict[str, object]) -> None:
        _set(self, **state)


def _set(frozen: _Frozen, **values: object) -> None:
    for field, value in values.items():
        object.__setattr__(frozen, field, value)


class ReconnectPolicy(_Frozen):
    """Decides whether and when a manager tries again after its connection was lost or failed to open.

    A policy is immutable, and any number of managers can share it.

    Example:
        ```python
        policy = ReconnectPolicy(initial_delay=1, max_retries=10)
        manager = SessionConnectionManager("http://localhost:8000/mcp", reconnect=policy)
        ```

    Attributes:
        initial_delay: Time before the first retry, in seconds.
        max_delay: Maximum time before a retry, in seconds.
        multiplier: Factor by which the delay grows with each failure in a row.
        jitter: Fraction of the delay by which each delay may randomly be shorter or longer.
        max_retries: Maximum number of retries in a row; `None` means no limit.
        stable_after: Time, in seconds, after which an open connection resets the count of failures.
        give_up_on: Decides whether an exception is permanent; `None` asks the manager.
    """

    __slots__ = _fields = (
        "initial_delay",
        "max_delay",
        "multiplier",
        "jitter",
        "max_retries",
        "stable_after",
        "give_up_on",
    )

    initial_delay: float
    max_delay: float
    multiplier: float
    jitter: float
    max_retries: int | None
    stable_after: float
    give_up_on: Callable[[BaseException], bool] | None

    def __init__(  # noqa: PLR0913 - the fields
        self,
        *,
        initial_delay: float = 0.5,
        max_delay: float = 30.0,
        multiplier: float = 2.0,
        jitter: float = 0.2,
        max_retries: int | None = None,
        stable_after: float = 60.0,
        give_up_on: Callable[[BaseException], bool] | None = None,
    ) -> None:
        """Creates a policy.

        Args:
            initial_delay: Time before the first retry, in seconds.
            max_delay: Maximum time before a retry, in seconds, which also limits `initial_delay`.
                `math.inf` means no limit.
            multiplier: Factor by which the delay grows with each failure in a row, at least 1.
            jitter: Fraction of the delay, between 0 and 1. Each delay is randomly shorter or longer by
                up to this fraction, so that clients do not all return to a server at the same moment.
                0 disables it.
            max_retries: Maximum number of retries in a row. If the last of them fails, so does the
                manager, with that failure. 0 disables retries; `None` means no limit.
            stable_after: Time, in seconds, after which an open connection resets the count of failures.
                The loss of a connection that was open for less time adds one to the count. `math.inf`
                never resets the count.
            give_up_on: Called with the exception that was raised while opening the connection, or with
                the cause of a loss. If it returns a true value, the manager does not try again. If
                `give_up_on` is `None`, the manager calls its own `is_permanent()` instead.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A time is negative or NaN, `multiplier` is less than 1, `jitter` is not between
                0 and 1, or `max_retries` is negative.
        """
        if give_up_on is not None:
            if not callable(give_up_on):
                raise TypeError(f"give_up_on must be callable or None, not {type(give_up_on).__name__}")
            from inspect import iscoroutinefunction  # slow to import, and few policies need it

            if iscoroutinefunction(give_up_on):
                raise TypeError("give_up_on must be a plain function, not a coroutine function")
        _set(
            self,
            initial_delay=_checked_seconds("initial_delay", initial_delay),
            max_delay=_checked_seconds("max_delay", max_delay),
            multiplier=_checked_multiplier(multiplier),
            jitter=_checked_jitter(jitter),
            max_retries=_checked_max_retries(max_retries),
            stable_after=_checked_seconds("stable_after", stable_after),
            give_up_on=give_up_on,
        )

    def delay_after(self, failures: int) -> float:
        """Returns the time to wait before the next attempt, in seconds.

        Args:
            failures: The number of failures in a row, at least 1.

        Raises:
            ValueError: `failures` is less than 1.
        """
        if failures < 1:
            raise ValueError(f"failures must be at least 1, not {failures}")
        delay = float(self.initial_delay)
        if delay > 0:  # 0 times infinity is NaN
            try:
                delay *= float(self.multiplier) ** min(failures - 1, maxsize)
            except OverflowError:
                delay = self.max_delay
        delay = min(delay, self.max_delay)
        longest = min(delay * (1 + self.jitter), self.max_delay)
        if self.jitter == 0 or isinf(longest):
            return longest
        # Importing `random` takes a while, and most programs lose no connection.
        from random import uniform

        return uniform(delay * (1 - self.jitter), longest)  # noqa: S311 - not a secret


class Reconnecting(_Frozen):
    """Describes why and when a manager with a `ReconnectPolicy` opens its connection again.

    Attributes:
        failures: The number of failures in a row. A connection that was open for less than the policy's
            `stable_after` also counts as a failure.
        due: The time at which the next attempt begins, by `anyio.current_time()`.
        exception: The last failure.
    """

    __slots__ = _fields = ("failures", "due", "exception")

    failures: int
    due: float
    exception: BaseException

    def __init__(self, failures: int, due: float, exception: BaseException) -> None:
        """Creates a description.

        Args:
            failures: The number of failures in a row.
            due: The time at which the next attempt begins, by `anyio.current_time()`.
            exception: The last failure.
        """
        _set(self, failures=failures, due=due, exception=exception)

    # The repr of an exception can contain secrets, and it can raise.
    def __repr__(self) -> str:
        exception = f"<{type(self.exception).__name__}: {reason(self.exception)}>"
        return f"{type(self).__name__}(failures={self.failures}, due={self.due}, exception={exception})"


def _check_number(field: str, value: object, unit: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{field} must be {unit}, not {value!r}")


def _checked_seconds(field: str, value: float) -> float:
    _check_number(field, value, "a number of seconds")
    if isnan(value) or value < 0:
        raise ValueError(f"{field} must be a non-negative number of seconds, not {value!r}")
    return value


def _checked_multiplier(value: float) -> float:
    _check_number("multiplier", value, "a number")
    if not value >= 1:
        raise ValueError(f"multiplier must be at least 1, not {value!r}")
    return value


def _checked_jitter(value: float) -> float:
    _check_number("jitter", value, "a number")
    if not 0 <= value <= 1:
        raise ValueError(f"jitter must be between 0 and 1, not {value!r}")
    return value


def _checked_max_retries(value: int | None) -> int | None:
    if value is not None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"max_retries must be an integer or None, not {value!r}")
        if value < 0:
            raise ValueError(f"max_retries must not be negative, not {value!r}")
    return value
