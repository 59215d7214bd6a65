"""`ScriptedConnectionManager`: opens, fails, loses and closes a fake connection as scripted.

It uses no network, process or thread. It waits only for timers of the event loop and for functions that
the test passes. So it behaves the same on asyncio, on trio and in virtual time.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from inspect import iscoroutine
from math import inf, isnan
from typing import TypeAlias, TypeVar

from anyio import CancelScope, create_task_group, sleep, sleep_forever
from anyio.lowlevel import checkpoint
from typing_extensions import override

from .._arguments import checked_reconnect, checked_timeout, checked_watch
from .._copying import attributes_in
from ..manager import ConnectionManager
from ..policy import ReconnectPolicy

__all__ = ["ScriptedConnectionManager", "ScriptedRun"]

T_co = TypeVar("T_co", covariant=True)

Wait: TypeAlias = float | Callable[[], Awaitable[object]]
"""A number of seconds, or an async function that returns when the wait is over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptedRun:
    """Describes one run of a `ScriptedConnectionManager`.

    Each wait is a number of seconds or an async function. `math.inf` waits until the wait is cancelled.
    A function, such as the `wait` method of an event, is called in each run that reaches it, and the
    wait is over when the function returns. If the function raises an exception, the effect is the same
    as if a real connection raised it at this point. So a function can raise a new exception in each run.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A time is negative or NaN, another argument makes an argument ineffective, or a
            connection that refuses to close would never close.

    Attributes:
        opens_after: How long the opening takes. `stop()` and timeouts cancel this wait.
        fails_with: The exception with which the opening fails, after `opens_after`.
        lost_after: How long the connection is open before it is lost. 0 means as early as possible, so a
            `start()` call that waited for the connection may raise `ConnectionLostError`. `None` means
            that the connection is not lost.
        lost_with: The cause of the loss.
        closes_after: How long the closing takes, also after a loss. A forced stop cancels this wait.
        refuses_to_close: Whether `closes_after` ignores cancellation, so that a forced stop must wait.
    """

    opens_after: float | Callable[[], Awaitable[object]] = 0.0
    fails_with: BaseException | None = None
    lost_after: float | Callable[[], Awaitable[object]] | None = None
    lost_with: BaseException | None = None
    closes_after: float | Callable[[], Awaitable[object]] = 0.0
    refuses_to_close: bool = False

    def __post_init__(self) -> None:
        _check_wait("opens_after", self.opens_after)
        _check_exception("fails_with", self.fails_with)
        if self.lost_after is not None:
            _check_wait("lost_after", self.lost_after, " or None")
        _check_exception("lost_with", self.lost_with)
        _check_wait("closes_after", self.closes_after)
        if not isinstance(self.refuses_to_close, bool):
            kind = type(self.refuses_to_close).__name__
            raise TypeError(f"refuses_to_close must be a boolean, not {kind}")
        self._check_contradictions()

    def _check_contradictions(self) -> None:
        """Raises an error if an argument would have no effect, or if the run could never end."""
        if self.lost_with is not None and self.lost_after is None:
            raise ValueError("lost_with has no effect without lost_after")
        if self.fails_with is not None:
            if self.lost_after is not None:
                raise ValueError("lost_after has no effect with fails_with")
            if callable(self.closes_after) or self.closes_after > 0:
                raise ValueError("closes_after has no effect with fails_with")
        if self.refuses_to_close and not callable(self.closes_after) and self.closes_after in {0, inf}:
            raise ValueError(
                "refuses_to_close requires closes_after: a positive and finite number of seconds, or an "
                "async function that returns"
            )


class ScriptedConnectionManager(ConnectionManager[T_co]):
    """Opens, fails, loses and closes a fake connection as scripted, for tests of applications.

    The first run follows the first `ScriptedRun`, the second run follows the second, and so on. The last
    `ScriptedRun` repeats. Without any, each run opens and closes at once. If a run is cancelled while it
    opens, its `ScriptedRun` is also used up. Only the connection is a fake, so states, errors, policies
    and timeouts work as with any manager, also in a group, a pool or another manager.

    The connection is the same object in each run. So a late `connection_lost(connection=...)` from an
    earlier run also ends the current run. To tell runs apart, use `openings`.

    A copy has the same connection and the same script, and begins with the first run of the script.

    Example:
        ```python
        manager = ScriptedConnectionManager(
            create_autospec(ClientSession, instance=True),
            ScriptedRun(fails_with=OSError("connection refused")),  # the first attempt fails,
            ScriptedRun(lost_after=0.1),  # the next connection is soon lost,
            ScriptedRun(),  # and the last one stays open
            reconnect=ReconnectPolicy(initial_delay=0),
        )
        session = await manager.start()
        ```
    """

    def __init__(
        self,
        connection: T_co,
        *runs: ScriptedRun,
        name: str | None = None,
        start_timeout: float | None = None,
        reconnect: ReconnectPolicy | None = None,
        watch: Callable[[T_co], Awaitable[object]] | None = None,
    ) -> None:
        """Creates a manager without opening anything.

        Args:
            connection: The object that `start()` returns, usually a mock.
            *runs: Descriptions of the runs.
            name: See `ConnectionManager`. The default is the class name.
            start_timeout: Maximum time for each attempt to open the connection, in seconds; `None`
                means no limit.
            reconnect: When to open the connection again after a failure; `None` means never.
            watch: An async function that is called with the connection in each run. When it returns or
                raises, the connection is lost.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: `start_timeout` is negative or NaN.
        """
        super().__init__(name=name)
        for run in runs:
            if not isinstance(run, ScriptedRun):
                raise TypeError(f"runs must be ScriptedRun objects, not {type(run).__name__}")
        self._connection = connection
        self._runs = runs or (ScriptedRun(),)
        self._openings = 0
        self.start_timeout: float | None = checked_timeout("start_timeout", start_timeout)
        self.reconnect: ReconnectPolicy | None = checked_reconnect(reconnect)
        if checked_watch(watch) is not None:
            vars(self)["watch"] = watch  # pyright would infer another type from an assignment

    @property
    def openings(self) -> int:
        """The number of attempts to open the connection, including failed attempts."""
        return self._openings

    @property
    def connection_type(self) -> type[T_co]:
        """The class of the connection, for `current`."""
        return self._connection.__class__  # the class that a mock stands for

    @override
    def __getstate__(self) -> object:
        state = super().__getstate__()
        attributes_in(state)["_openings"] = 0
        return state

    @override
    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[T_co]:
        run = self._runs[min(self._openings, len(self._runs) - 1)]
        self._openings += 1
        await _wait("opens_after", run.opens_after)
        if run.fails_with is not None:
            # Many runs may raise the same object. Its traceback would grow each time.
            raise BaseException.with_traceback(run.fails_with, None)
        try:
            if run.lost_after is None:
                yield self._connection
            else:
                async with self._losing(run.lost_after, run.lost_with):
                    yield self._connection
        except GeneratorExit:  # the event loop ended, so nothing can be awaited
            raise
        except BaseException:
            await _close(run)
            raise
        await _close(run)

    @asynccontextmanager
    async def _losing(self, lost_after: Wait, cause: BaseException | None) -> AsyncGenerator[None]:
        """Reports a loss during the block."""

        async def lose() -> None:
            await checkpoint()  # an eager task would report the loss before the connection is open
            try:
                await _wait("lost_after", lost_after)
            except Exception as error:  # noqa: BLE001 - it is the cause of the loss
                self.connection_lost(error)
            else:
                self.connection_lost(cause)

        async with create_task_group() as task_group:
            task_group.start_soon(lose)
            yield
            task_group.cancel_scope.cancel()


async def _close(run: ScriptedRun) -> None:
    with CancelScope(shield=run.refuses_to_close):
        await _wait("closes_after", run.closes_after)


async def _wait(argument: str, until: Wait) -> None:
    if callable(until):
        awaitable = until()
        if not isinstance(awaitable, Awaitable):
            kind = type(awaitable).__name__
            raise TypeError(f"{argument}() must return an awaitable, not {kind}")
        await awaitable
    elif until == inf:
        await sleep_forever()
    else:
        await sleep(until)


def _check_wait(argument: str, value: object, or_none: str = "") -> None:
    if callable(value):
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = ""
        if iscoroutine(value):
            value.close()  # prevents the warning that it was never awaited
            hint = "; pass the function itself, without calling it"
        elif callable(getattr(value, "wait", None)):
            hint = "; pass its method `wait`"
        kind = type(value).__name__
        expected = f"a number of seconds or an async function{or_none}"
        raise TypeError(f"{argument} must be {expected}, not {kind}{hint}")
    if isnan(value) or value < 0:
        raise ValueError(f"{argument} must be a non-negative number of seconds, not {value!r}")


def _check_exception(argument: str, value: object) -> None:
    if value is None or isinstance(value, BaseException):
        return
    shown = f"{value!r}; pass an instance" if isinstance(value, type) else type(value).__name__
    raise TypeError(f"{argument} must be an exception or None, not {shown}")
