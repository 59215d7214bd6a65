"""The owner task of one run: it enters the context manager, publishes its value, waits, and exits it.

All other code talks to the owner task through its `Run`, which guarantees:

* The context manager is entered and exited in the same task, once each.
* Every decision is made in synchronous code, so no other task sees an intermediate state.
* When the context manager has exited, the run reaches `CLOSED` or `FAILED`, and then all waiting tasks
  wake up. Neither an exception's methods nor a logging handler nor a listener can prevent that.
* No exception leaves the owner task, except on asyncio: a `BaseException` that no `start()` is waiting
  for, and an exception that was raised after the outcome was decided.

Use a `Run` only in its own event loop. Its properties may be read in any thread.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from math import inf
from threading import main_thread
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ._arguments import checked_opened
from ._failure import Failure, leaf
from ._log import DEBUG, ERROR, WARNING, log
from ._outcome import CANCELLED_OUTSIDE, LOST, Loss
from ._reason import is_a
from ._run_view import CLOSED, CLOSING, FAILED, OPEN, OPENING, OVER, RunView
from ._start_clock import StartClock
from ._timer import RunTimer
from .state import TRANSITIONS, ConnectionState

if TYPE_CHECKING:
    from ._backend import EventLoop
    from ._members import Members
    from ._series import Series

__all__ = ["CANCEL_GRACE", "STOP_TIMEOUT", "Run", "current_event_loop", "runs_around_caller"]

T = TypeVar("T")

STOP_TIMEOUT: Final = 30.0
"""Default time, in seconds, that closing may take before the owner task is cancelled."""

CANCEL_GRACE = 10.0
"""Time, in seconds, to wait for a cancelled owner task. The SDK's slowest transport, stdio with a server
that ignores every request to exit, can take up to 6.5 seconds. A group or a pool gets a tenth more for
each level of managers inside it, so that it can report which manager did not end."""

# The runs that the current code is part of. Child tasks and callbacks of an owner task inherit
# this variable.
# Any: they may have any type of connection.
_runs_around: ContextVar[tuple["Run[Any]", ...]] = ContextVar("ownertask_runs_around", default=())
runs_around_caller: Final = _runs_around.get


# Importing ownertask must not import asyncio or trio, which takes longer than importing the rest of it.
# So this is imported when a run begins. The function is cached, because executing the import statement
# each time is slow.
@cache
def _event_loop_finder() -> "Callable[[], EventLoop]":
    from ._backend import current_event_loop

    return current_event_loop


def current_event_loop() -> "EventLoop":
    """Returns the event loop in which the caller is running.

    Raises:
        anyio.NoEventLoopError: No event loop is running.
    """
    return _event_loop_finder()()


class Run(RunView[T]):
    """One cycle of a manager from opening to closed, with one owner task.

    Attributes:
        parts: The keys of the managers whose connections are part of this run.
        held: The members of the groups and pools that are part of this run.
        timer: Begins or ends the attempt, or forces the close.
        start_clock: The clock of `start_timeout`, until the run is over.
        open_for: For how long the connection was open before it was lost, in seconds.
        queued: The number of `start()` calls that wait for the end of this run to begin another.
        cancelled_type: The exception that a cancelled task raises in this event loop.
    """

    __slots__ = (
        "__weakref__",
        "_complained",
        "_force_at",
        "_forced",
        "_opened_at",
        "_quiet_scope",
        "_raised",
        "_scope",
        "_task",
        "cancelled_type",
        "held",
        "open_for",
        "parts",
        "queued",
        "start_clock",
        "timer",
    )

    def __init__(self, series: "Series[T]", delay: float | None = None) -> None:
        """Starts the owner task, which takes its first step after this call returns.

        Args:
            series: The series to which the run belongs.
            delay: Time to wait before the connection is opened, in seconds.
        """
        super().__init__(series, _event_loop_finder()(), is_delayed=delay is not None)
        self.parts: tuple[object, ...] = (series.key,)
        self.held: tuple[Members[Any], ...] = ()  # Any: they may have any type of connection
        self.cancelled_type = self.loop.cancelled_type
        self.timer = RunTimer(self.loop)
        self.open_for = 0.0
        self._opened_at = inf
        self.queued = 0
        self._raised: BaseException | None = None
        self._force_at = inf
        self._forced = False
        self._complained = False
        self._scope = self.loop.create_cancel_scope()
        # Nested in the other scope. If the owner swallows its cancellation, the backend delivers it
        # again and again in a busy loop. Shielding this scope ends that.
        self._quiet_scope = self.loop.create_cancel_scope()
        self._coroutine = self._own()
        self._task = self.loop.start_task(
            self._coroutine,
            name=self.task_name,
            context=series.new_context(),
            on_cancel=self._cancelled_outside,
        )
        self.start_clock: StartClock | None = None
        if series.start_timeout is not None:
            self.start_clock = StartClock(series.start_timeout, self, self.loop)
            if delay is None:
                self.start_clock.resume()
        if delay is not None:
            self.timer.set(delay, self._end_delay)

    @property
    def levels(self) -> int:
        """The number of levels of groups and pools inside this run."""
        return max((members.levels for members in self.held), default=0)

    def surrounds_caller(self) -> bool:
        """Returns whether the caller is the owner task or one of its child tasks or callbacks."""
        return self in runs_around_caller()

    def is_owner_task(self) -> bool:
        """Returns whether the caller is the owner task."""
        return self.surrounds_caller() and self.loop.current_task() is self._task

    # Commands. None of them awaits, because each is one decision.

    def announce_opening(self, old: ConnectionState) -> None:
        """Logs and announces the first change, which the caller has queued in the series."""
        log(DEBUG, "%s: %s -> %s", self.name, old._value_, OPENING._value_)
        self.series.announce()

    def notify(self) -> None:
        """Wakes the waiting tasks, which check their conditions again."""
        for waiter in tuple(self._waiters):
            self.loop.wake_up(waiter)

    def close(self) -> None:
        """Begins to close the connection, or cancels the attempt to open it. No other run follows."""
        self.series.end()
        if self.state is OPENING:
            self.force()
        elif self.state is OPEN:
            self.outcome.was_stopped = True
            self._move(CLOSING)

    def force(self) -> None:
        """Begins to close the connection, and cancels the owner task. No other run follows."""
        if self.is_over:
            return
        self.series.end()
        if self.state is OPENING or self.state is OPEN:
            self.outcome.was_stopped = True
            self._move(CLOSING)
        self._cancel()

    def force_within(self, seconds: float | None) -> None:
        """Cancels the owner task after `seconds`. An earlier deadline stays. `None` does nothing."""
        can_come = not self._forced and not self.is_over
        if seconds is not None and self.loop.time() + seconds < self._force_at and can_come:
            self._force_at = self.loop.time() + seconds
            self.timer.set(seconds, self._cancel)

    def expire(self, timeout: float) -> None:
        """Cancels the attempt to open the connection, because it has taken `timeout` seconds."""
        if self.state is OPENING:
            self.outcome.expired_timeout = timeout
            self._move(CLOSING)
            self._cancel()

    def report_loss(self, cause: BaseException | None, message: str = LOST) -> None:
        """Records a loss as `lose()` does, unless the attempt has not begun."""
        if not self.is_delayed:
            self.lose(cause, message)

    def lose(self, cause: BaseException | None, message: str = LOST) -> None:
        """Records a loss. Closes an open connection, or cancels the attempt to open it.

        Only the first cause that is reported before the run is over counts.
        """
        was_opening = self.state is OPENING
        loss = self.outcome.loss
        if self.state is OPEN and self._opened_at < inf:
            self.open_for = self.loop.time() - self._opened_at
        if was_opening or self.state is OPEN:
            self.outcome.loss = Loss(message, leaf(cause, self.cancelled_type))
            self._move(CLOSING)
            if was_opening:
                self._cancel()
            else:
                self.force_within(STOP_TIMEOUT)
        elif loss is not None and loss.cause is None:
            self.outcome.loss = loss._replace(cause=leaf(cause, self.cancelled_type))

    def command_from_any_thread(self, command: Callable[[], object]) -> None:
        """Calls a command of this run: immediately in its event loop, otherwise soon.

        In a signal handler, only `call_soon_threadsafe()` is safe. It also ends a loop's wait for I/O.
        """
        if self.loop.is_current() and not self.loop.in_signal_handler():
            command()
        else:
            self.loop.call_soon_threadsafe(command)

    # The owner task.

    async def _own(self) -> None:
        around = runs_around_caller()
        if around:
            around = tuple(run for run in around if not run.is_over)
        _runs_around.set((*around, self))
        del around
        is_broken = await self._hold()
        self.loop.leave_scopes(is_broken=is_broken)
        if self.timer.is_set:
            await self.timer.end()
        error = None if self._raised is None else leaf(self._raised, self.cancelled_type)
        task, series = self._task, self.series
        self._raised = self._coroutine = self.start_clock = None
        try:
            self._settle(error)
        except BaseException as exc:  # noqa: BLE001 - the run must end, even if this is a bug
            if not self.is_over:
                self._move(FAILED, failure=Failure(exc if error is None else error, is_ours=False))
            self.loop.reraise(exc, task)
        finally:
            if series.newest is self:
                series.end()
                del self.series  # breaks a reference cycle
        try:
            if error is not None and not is_a(error, Exception) and not series.starters:
                self.loop.reraise(error, task)
        finally:
            del self, error, task, series  # this frame is reachable from the traceback of the exception

    async def _hold(self) -> bool:
        """Enters the context manager, waits, and exits it. Stores the exception that it raised.

        Returns:
            Whether exiting the cancel scopes around the context manager raised an exception.
        """
        try:
            with self._scope, self._quiet_scope:
                try:
                    while self.is_delayed:
                        await self.changed()
                    async with checked_opened(self.series.open_connection()) as connection:
                        try:
                            self._publish(connection)
                            watch = self.series.watch
                            if watch is not None and self.state is OPEN:
                                from ._watching import watched  # imports anyio; few managers need it

                                async with watched(watch, connection, self.lose):
                                    await self._closing()
                            del connection
                            while self.state is OPEN:
                                await self.changed()
                        except BaseException:
                            # A normal close raises nothing, and during a forced one lose() does
                            # nothing. So the event loop is ending, or the transport crashed and its
                            # exit will raise the cause.
                            self.lose(None)
                            raise
                except BaseException as exc:
                    # The scopes must see no exception except a cancellation.
                    if leaf(exc, self.cancelled_type) is None or not self.loop.is_current():
                        raise
                    self._raised = exc
        except BaseException as exc:  # noqa: BLE001 - every exception must wake the waiting tasks
            self.loop.check_not_collected()
            if self._raised is None:
                self._raised = exc
            return True
        else:
            return False
        finally:
            del self  # this frame is in the traceback of the exception

    def _publish(self, connection: T) -> None:
        if self.state is not OPENING:
            return  # stopped, lost or timed out in the iteration in which opening succeeded
        self.outcome.was_open = True
        if self.series.policy is not None:
            self._opened_at = self.loop.time()
        self.series.opened(connection)
        if self.timer.is_set:
            self.timer.cancel()
        self._move(OPEN, connection=connection)

    async def _closing(self) -> None:
        while self.state is OPEN:
            await self.changed()

    def _end_delay(self) -> None:
        self.is_delayed = False
        if self.start_clock is not None:
            self.start_clock.resume()
        self.notify()

    def _cancelled_outside(self) -> None:
        if not self.is_over:
            self.series.end()
            self.lose(None, CANCELLED_OUTSIDE)
            self._cancel()

    def _cancel(self) -> None:
        # Without a task, the run is just ending: is_permanent() or another foreign function called this.
        if self._task is not None and (self.gave_up or not self._forced):
            self.gave_up = False
            self._forced = True
            self._scope.cancel()
            self._quiet_scope.shield = False
            self.timer.set(CANCEL_GRACE * (1 + 0.1 * self.levels), self._give_up)

    def _give_up(self) -> None:
        """Reports that the owner task does not end, wakes the waiting tasks, and stops cancelling it."""
        self._quiet_scope.shield = True
        self.gave_up = True
        self.notify()
        if not self._complained:
            self._complained = True
            log(ERROR, "%s: could not be stopped; %s", self.name, self.whereabouts)

    def _settle(self, error: BaseException | None) -> None:
        """Decides how the run ended, given the exception that the context manager raised, if any."""
        task = self._task
        self.loop.owner_tasks.discard(task)
        self._task = None
        if error is None and self.state is CLOSING and self.outcome.is_normal:
            self._move(CLOSED)
            return
        loop_ends = self.loop.is_ending(task)
        # While Python exits, a daemon thread may see the loss of a server that the exit ended.
        is_exiting = loop_ends or not main_thread().is_alive()
        last = None if self.series.policy is not None else self.series.last_failure
        failure = self.outcome.failure(error, loop_ends=loop_ends, last=last)
        # The next run begins before this one is over, so that no call can begin another in between.
        is_followed = False
        if not is_exiting and self.series.policy is not None:
            is_followed = self.series.begin_next(self, failure)
        self._move(FAILED, failure=failure)
        # The outcome is final. The code below only adds notes and logs, and may fail.
        try:
            self.outcome.explain(failure, error, DEBUG if is_exiting else WARNING)
        finally:
            if is_followed:
                self.series.announce_next(self)

    def _move(
        self, state: ConnectionState, *, connection: T | None = None, failure: Failure | None = None
    ) -> None:
        old = self.state
        assert state in TRANSITIONS[old], f"{self.name}: {old} -> {state}"
        self._status = (state, connection, failure)
        self.state = state
        self.is_over = state in OVER
        series = self.series
        is_observed = series.queue(old, state)
        if series.newest is not self:
            series.queue(state, OPENING)
        self.notify()
        log(DEBUG, "%s: %s -> %s", self.name, old._value_, state._value_)  # `value` takes much longer
        if is_observed:
            series.announce()
