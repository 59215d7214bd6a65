"""Opens and closes a connection step by step, so that it can be interrupted at each step.

A *step* is a point at which the owner task suspends and hands control to the event loop. Then other code
can run, and for example cancel the caller.
"""

from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final, Generic, TypeVar, cast

from typing_extensions import override

from ..manager import ConnectionManager

__all__ = ["MAX_STEPS", "Steps", "chosen_steps", "count_steps"]

T = TypeVar("T")

MAX_STEPS: Final = 16
"""If an opening or a closing has more steps, it is interrupted only at some of them."""


class Steps:
    """Counts the steps of the opening or the closing of a connection.

    Attributes:
        taken: The number of steps so far.
    """

    def __init__(self, at: int = 0, interrupt: Callable[[], object] = lambda: None) -> None:
        """Prepares an interruption.

        Args:
            at: The number of the step at which `interrupt` is called.
            interrupt: Called in the owner task, just before it suspends.
        """
        self.taken = 0
        self._at = at
        self._interrupt = interrupt

    def take(self) -> None:
        """Counts a step."""
        self.taken += 1
        if self.taken == self._at:
            self._interrupt()


def count_steps(manager: ConnectionManager[T], opening: Steps, closing: Steps) -> None:
    """Counts the steps of the connections that `manager` opens from now on."""
    # An attribute of the object hides the method. A subclass may not allow setting attributes.
    open_connection = type(manager).open_connection
    vars(manager)["open_connection"] = lambda: _Stepped(open_connection(manager), opening, closing)


class _Stepped(AbstractAsyncContextManager[T], Generic[T]):
    """Behaves like another async context manager, and counts its steps."""

    def __init__(self, inner: AbstractAsyncContextManager[T], opening: Steps, closing: Steps) -> None:
        self._inner = inner
        self._opening = opening
        self._closing = closing

    @override
    async def __aenter__(self) -> T:
        return await _Driver(_coroutine(self._inner.__aenter__()), self._opening)

    @override
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        exiting = self._inner.__aexit__(exc_type, exc_value, traceback)
        return await _Driver(_coroutine(exiting), self._closing)


async def _coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable


class _Driver(Generic[T]):
    """Awaits a coroutine, and counts its suspensions.

    This is not a generator, because error messages could not show where a generator is waiting.
    """

    __slots__ = ("_coroutine", "_steps")

    # Any: event loops send and receive anything.
    def __init__(self, coroutine: Coroutine[Any, Any, T], steps: Steps) -> None:
        self._coroutine = coroutine
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, T]:
        return cast("Generator[Any, Any, T]", self)

    def __next__(self) -> object:
        return self.send(None)

    def send(self, value: object) -> object:
        trap = self._coroutine.send(value)
        self._steps.take()
        return trap

    def throw(self, error: BaseException) -> object:
        trap = self._coroutine.throw(error)
        self._steps.take()
        return trap


def chosen_steps(total: int) -> list[int]:
    """Returns the steps to interrupt: all of them, or the first `MAX_STEPS // 2` and as many others.

    Args:
        total: The number of steps that were counted.
    """
    if total <= MAX_STEPS:
        return list(range(1, total + 1))
    half = MAX_STEPS // 2
    return [*range(1, half + 1), *(half + (total - half) * n // half for n in range(1, half + 1))]
