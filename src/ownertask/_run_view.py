"""A run as other code sees it: its state, its connection, and how it failed.

The properties may be read in any thread. They read one tuple, which contains the state, the connection
and the failure, and is replaced as a whole. In the event loop of the run, the attributes `state` and
`is_over` are faster.
"""

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar, cast

from ._call_stack import waiting_place
from ._failure import Failure
from ._outcome import Outcome
from .errors import NotConnectedError, StartTimeoutError, StopTimeoutError, WrongEventLoopError
from .state import ConnectionState

if TYPE_CHECKING:
    from ._backend import EventLoop
    from ._series import Series
    from .policy import Reconnecting

__all__ = ["RunView"]

T = TypeVar("T")

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState

OVER: Final = frozenset({CLOSED, FAILED})


class RunView(Generic[T]):
    """One cycle of a manager from opening to closed, as other code sees it.

    Attributes:
        name: The manager's name.
        series: The series to which this run belongs, until the last run of the series is over.
        loop: The event loop.
        state: The state of the run. Outside its event loop, use `visible_state`.
        is_over: Whether the owner task has exited the context manager.
        outcome: What has happened so far.
        is_delayed: Whether the attempt to open the connection has not begun.
        gave_up: Whether the owner task is still running `CANCEL_GRACE` seconds after it was cancelled.
    """

    __slots__ = (
        "_coroutine",
        "_status",
        "_waiters",
        "gave_up",
        "is_delayed",
        "is_over",
        "loop",
        "name",
        "outcome",
        "series",
        "state",
    )

    def __init__(self, series: "Series[T]", loop: "EventLoop", *, is_delayed: bool) -> None:
        self.name = series.name
        self.series = series
        self.loop = loop
        self.outcome = Outcome(self.name)
        self.is_delayed = is_delayed
        self.gave_up = False
        self.state: ConnectionState = OPENING
        self.is_over = False
        # Any: the connection, which is `None` unless the run is open.
        self._status: tuple[ConnectionState, Any, Failure | None] = (OPENING, None, None)
        self._waiters: set[Any] = set()
        self._coroutine: object = None

    @property
    def reconnecting(self) -> "Reconnecting | None":
        """Why and when the connection is opened again."""
        series = self._series
        return None if series is None else series.reconnecting

    @property
    def _series(self) -> "Series[T] | None":
        return getattr(self, "series", None)  # another thread may be ending it

    @property
    def task_name(self) -> str:
        """The name of the owner task."""
        return f"owner task of {self.name}"

    @property
    def is_alive(self) -> bool:
        """`True` if the owner task can still run. In a forked child or a closed loop it can't."""
        return not self.is_over and self.loop.is_alive()

    @property
    def last_state(self) -> ConnectionState:
        """The state of the manager after this run, whose owner task can no longer run."""
        state = self._status[0]
        return state if state in OVER else CLOSED

    @property
    def visible_state(self) -> ConnectionState:
        """The state of the manager during and after this run."""
        return self._visible_status()[0]

    def _visible_status(self) -> tuple[ConnectionState, Any, Failure | None]:
        can_change = self.loop.is_alive()
        status = self._status  # read last, so that a failure just before the loop closes is still seen
        return status if can_change or status[0] in OVER else (CLOSED, None, None)

    @property
    def connection(self) -> T:
        """The connection.

        Raises:
            WrongEventLoopError: The connection is open or being opened again, but the caller is running
                in another event loop.
            ConnectionLostError: The connection was lost.
            NotConnectedError: The connection is not open for another reason.
        """
        state, connection, failure = self._visible_status()
        if state is OPEN:
            if self.loop.is_other():
                raise WrongEventLoopError(self.name, "connection was read")
            return cast("T", connection)
        if state is OPENING:
            failure = self._last_failure
        if failure is not None:
            if failure.is_loss:
                failure.raise_()
            raise NotConnectedError(self.name, state) from failure.exception
        if state is CLOSING and self.outcome.loss is not None:
            raise self.outcome.loss_error()
        raise NotConnectedError(self.name, state)

    @property
    def _last_failure(self) -> Failure | None:
        series = self._series
        return None if series is None else series.last_failure

    @property
    def exception(self) -> BaseException | None:
        """The exception with which the run failed, or `None`."""
        failure = self._status[2]
        return None if failure is None else failure.exception

    @property
    def whereabouts(self) -> str:
        """Names the owner task and where it is waiting."""
        return f"the task {self.task_name!r} is waiting {waiting_place(self._coroutine)}"

    def is_open(self, connection: object) -> bool:
        """Returns whether the run is open, with `connection` if one is given."""
        state, current, _ = self._status
        return state is OPEN and (connection is None or current is connection)

    def received_connection(self) -> tuple[T] | None:
        """Returns the connection for a `start()` call, in a tuple, if it is open."""
        state, connection, _ = self._status
        if state is not OPEN:
            return None
        self.series.received = True
        return (connection,)

    def has_passed(self, deadline: float | None) -> bool:
        """Returns whether `deadline` (a time of the loop) has passed."""
        return deadline is not None and self.loop.time() >= deadline

    def changed(self, deadline: float | None = None) -> Awaitable[None]:
        """Waits until `state` or `gave_up` changes, or `deadline` has passed.

        A wake-up may be spurious, so callers check the condition again; see `_waiting.py`.
        """
        return self.loop.wait(self._waiters, deadline)

    def start_timeout_error(self, timeout: float) -> StartTimeoutError:
        """Returns the error for a call whose timeout has expired."""
        is_waiting = self.is_over or self.is_delayed
        return self.outcome.start_timeout_error(
            timeout, self.exception, self._last_failure, "" if is_waiting else self.whereabouts
        )

    def stop_timeout_error(self) -> StopTimeoutError:
        """Returns the error for a call that stops waiting for the owner task."""
        return StopTimeoutError(self.name, self.whereabouts)

    def raise_exception(self) -> None:
        """Raises the exception with which the run failed, if it failed."""
        failure = self._status[2]
        if failure is not None:
            failure.raise_()

    def raise_for_starter(self) -> NoReturn:
        """Raises the error for a `start()` call that waited for this run and gets no connection."""
        self.outcome.raise_for_starter(self._status[2], "" if self.is_over else self.whereabouts)
