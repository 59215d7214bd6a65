"""The timer of a run, of which only one is set at a time."""

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._backend import EventLoop, Timer

__all__ = ["RunTimer"]


class RunTimer:
    """Calls one function later: to begin an attempt, to end it, or to force a close.

    Attributes:
        is_set: Whether a callback was ever scheduled.
    """

    __slots__ = ("_loop", "_timer", "is_set")

    def __init__(self, loop: "EventLoop") -> None:
        self._loop = loop
        self._timer: Timer | None = None
        self.is_set = False

    def set(self, seconds: float, callback: Callable[[], object]) -> None:
        """Calls `callback` after `seconds`. It replaces a callback that was set before."""
        self.cancel()
        if seconds < inf:
            self._timer = self._loop.call_later(seconds, callback)
            self.is_set = True

    def cancel(self) -> None:
        """Cancels the callback."""
        if self._timer is not None:
            self._timer.cancel()

    async def end(self) -> None:
        """Cancels the callback and waits until nothing of it is left."""
        while self._timer is not None:  # stop() or the end of a pause may set another
            self._timer.cancel()
            self._timer = None
            for _ in range(3):  # on trio, a timer is a task, and three iterations start and end it
                await self._loop.shielded(self._loop.checkpoint)
