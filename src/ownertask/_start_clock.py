"""The clock of `start_timeout`, which `pause_start_timeout()` can stop."""

from math import inf
from typing import TYPE_CHECKING, Any

from .state import ConnectionState

if TYPE_CHECKING:
    from ._backend import EventLoop
    from ._owner import Run

__all__ = ["StartClock"]


class StartClock:
    """Ends an attempt after `start_timeout`, not counting the time during which the clock was paused."""

    def __init__(self, timeout: float, run: "Run[Any]", loop: "EventLoop") -> None:
        """Creates a paused clock. The first `resume()` starts it.

        Args:
            timeout: The time after which the attempt ends, in seconds.
            run: The run that is being opened. The clock uses its timer.
            loop: The event loop of the run.
        """
        self._timeout = timeout
        self._run = run
        self._loop = loop
        self._time_left = timeout
        self._expires_at = inf
        self._pauses = 1

    def pause(self) -> None:
        """Pauses the clock until `resume()` was called as often as `pause()`."""
        self._pauses += 1
        if self._pauses == 1 and self._run.state is ConnectionState.OPENING:
            self._run.timer.cancel()
            self._time_left = max(0.0, self._expires_at - self._loop.time())

    def resume(self) -> None:
        """Starts the clock again with the time that was left, unless it is still paused."""
        self._pauses -= 1
        # After the attempt, the timer belongs to the close.
        if self._pauses == 0 and self._run.state is ConnectionState.OPENING:
            self._expires_at = self._loop.time() + self._time_left
            self._run.timer.set(self._time_left, lambda: self._run.expire(self._timeout))
