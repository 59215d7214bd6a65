"""The owner task of one run: it enters the context manager, publishes its value, waits, and exits it.

All other code talks to the owner task through its `Run`, which guarantees:

* The context manager is entered and exited in the same task, once each.
* Every decision is made in synchronous code, so no other task sees an intermediate state.
* The run always reaches `CLOSED` or `FAILED`, and then all waiting tasks wake up.
* No exception leaves the owner task, except on asyncio: a `BaseException` that no `start()` is waiting
  for, and an exception that a logging handler raised.

Use a `Run` only in its own event loop. Its properties may be read in any thread.
"""

import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import ContextVar, copy_context
from copy import copy
from functools import cache
from inspect import isasyncgen, iscoroutine
from math import inf
from typing import TYPE_CHECKING, Final, Generic, NoReturn, TypeVar, cast

from ._call_stack import waiting_place
from .errors import (
    ConnectionLostError,
    ConnectionManagerError,
    ConnectionStoppedError,
    NotConnectedError,
    StartTimeoutError,
    StopTimeoutError,
)
from .state import TRANSITIONS, ConnectionState

if TYPE_CHECKING:
    from logging import Logger

    from ._backend import EventLoop, Timer

__all__ = ["CANCEL_GRACE", "STOP_TIMEOUT", "Run", "checked", "runs_around_caller"]

E = TypeVar("E", bound=ConnectionManagerError)
T = TypeVar("T")

DEBUG: Final = 10
"""`logging.DEBUG`, without importing `logging`."""

STOP_TIMEOUT: Final = 30.0
"""Default time, in seconds, that closing may take before the owner task is cancelled."""

CANCEL_GRACE = 10.0
"""Time, in seconds, to wait for a cancelled owner task. The SDK's slowest transport, stdio with a server
that ignores every request to exit, can take up to 6.5 seconds."""

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState

# The runs that the current code is part of. Child tasks and callbacks of an owner task inherit
# this variable.
_runs_around: ContextVar[tuple["Run[object]", ...]] = ContextVar("ownertask_runs_around", default=())
runs_around_caller: Final = _runs_around.get


def checked(
    opened: AbstractAsyncContextManager[T], function: str = "open_connection"
) -> AbstractAsyncContextManager[T]:
    """Returns `opened`, the result of a function, if it is an async context manager.

    Raises:
        TypeError: `opened` is something else.
    """
    if isinstance(opened, AbstractAsyncContextManager):
        return opened
    hint = ""
    if iscoroutine(opened) or isasyncgen(opened):
        hint = "; is the decorator @asynccontextmanager missing?"
        if iscoroutine(opened):
            opened.close()  # prevents the warning that it was never awaited
    kind = type(opened).__name__
    raise TypeError(f"{function}() must return an async context manager, not {kind}{hint}")


def _copy(error: E) -> E:
    """Returns a copy without traceback and context, so that each caller can raise its own."""
    copied = copy(error)
    copied.__cause__ = error.__cause__
    return copied


def add_note(error: BaseException, note: str) -> None:
    """Adds a note to an exception, once, if the exception accepts notes."""
    if note not in getattr(error, "__notes__", ()):
        with suppress(Exception):  # some exceptions are immutable
            error.add_note(note)


# Importing ownertask must not import asyncio or logging, which take at least as long as the rest of it.
# So these functions import them when a run begins. They are cached, because executing the import
# statement each time would add three percent to a start and a stop.


@cache
def _logger() -> "Logger":
    from logging import getLogger

    return getLogger("ownertask")


@cache
def _event_loop_finder() -> "Callable[[], EventLoop]":
    from ._backend import current_event_loop

    return current_event_loop


class Run(Generic[T]):
    """One cycle of a manager from opening to closed, with one owner task.

    Attributes:
        life: Identifies the manager.
        name: The manager's name.
        starters: The number of `start()` calls that are waiting for this run.
        state: The state of the run. Outside its event loop, use `visible_state`.
        is_over: Whether the owner task has exited the context manager.
        received: Whether a `start()` call has returned the connection.
        gave_up: Whether the owner task is still running `CANCEL_GRACE` seconds after it was cancelled.
    """

    def __init__(
        self,
        life: object,
        name: str,
        open_connection: Callable[[], AbstractAsyncContextManager[T]],
        start_timeout: float | None,
    ) -> None:
        """Starts the owner task, which takes its first step after this call returns.

        Args:
            life: Identifies the manager.
            name: The manager's name.
            open_connection: Called once, in the owner task.
            start_timeout: Maximum time for opening, in seconds; `None` means no limit.
        """
        self.life = life
        self.name = name
        self.starters = 0
        self.state: ConnectionState = NEW
        self.is_over = False
        self.received = False
        self.gave_up = False
        self._open_connection: Callable[[], AbstractAsyncContextManager[T]] | None = open_connection
        self._start_timeout = start_timeout
        self._process_id = os.getpid()
        self._loop = _event_loop_finder()()
        self._wake_ups: set[Callable[[], object]] = set()
        self._connection: T | None = None
        self._was_open = False
        self._stopped = False
        self._timed_out = False
        self._loss: ConnectionLostError | None = None
        self._failure: _Failure | None = None
        self._facts: list[str] = []
        self._timer: Timer | None = None
        self._force_at = inf
        self._forced = False
        self._complained = False
        self._scope = self._loop.create_cancel_scope()
        # Nested in the other scope. If the owner swallows its cancellation, the backend delivers it
        # again and again in a busy loop. Shielding this scope ends that.
        self._quiet_scope = self._loop.create_cancel_scope()
        context = copy_context()
        around = [run for run in runs_around_caller() if not run.is_over]
        context.run(_runs_around.set, (*around, cast("Run[object]", self)))
        self._coroutine = self._own()
        self._task = self._loop.start_task(
            self._coroutine, name=self.task_name, context=context, on_cancel=self._cancelled_outside
        )
        if start_timeout is not None:
            self._set_timer(start_timeout, self._run_out_of_time)
        self._move(OPENING)

    # Queries. The properties may be read in any thread.

    @property
    def task_name(self) -> str:
        """The name of the owner task."""
        return f"owner task of {self.name}"

    @property
    def is_alive(self) -> bool:
        """`True` if the owner task can still run. In a forked child or a closed loop it can't."""
        return not self.is_over and self._process_id == os.getpid() and not self._loop.is_closed()

    @property
    def visible_state(self) -> ConnectionState:
        """The state of the manager during and after this run."""
        return self.state if self.is_over or self.is_alive else CLOSED

    @property
    def connection(self) -> T:
        """The connection.

        Raises:
            ConnectionLostError: The connection was lost.
            NotConnectedError: The connection is not open for another reason.
        """
        state = self.visible_state
        if state is OPEN:
            return cast("T", self._connection)
        loss, cause = self._loss, self.exception  # while the run is closing, there is no exception yet
        if loss is not None and state is not OPENING and (cause is None or cause is loss):
            raise _copy(loss)
        if cause is not None:
            raise NotConnectedError(self.name, state) from cause
        raise NotConnectedError(self.name, state)

    @property
    def exception(self) -> BaseException | None:
        """The exception with which the run failed, or `None`."""
        return None if self._failure is None else self._failure.exception

    @property
    def whereabouts(self) -> str:
        """Names the owner task and where it is waiting."""
        return f"the task {self.task_name!r} is waiting {waiting_place(self._coroutine)}"

    def is_in_this_loop(self) -> bool:
        """Returns whether the caller is running in the event loop of this run."""
        return self._loop.is_current()

    def surrounds_caller(self) -> bool:
        """Returns whether the caller is the owner task or one of its child tasks or callbacks."""
        return self in runs_around_caller()

    def is_owner_task(self) -> bool:
        """Returns whether the caller is the owner task."""
        return self.surrounds_caller() and self._loop.current_task() is self._task

    # Waiting. A wake-up may be spurious, so callers check the condition again.

    def changed(self, deadline: float | None = None) -> Awaitable[None]:
        """Waits until `state` or `gave_up` changes, or `deadline` (a time of the loop) has passed."""
        return self._loop.wait(self._wake_ups, deadline)

    async def over(self, within: float | None = None) -> None:
        """Waits until the owner task has exited the context manager, for at most `within` seconds."""
        if within is None:
            while not self.is_over:
                await self.changed()
        elif within > 0:
            deadline = self._loop.time() + within
            # Many owner tasks end within one iteration of the event loop, and waiting for one is cheaper
            # than setting a timer.
            await self._loop.checkpoint()
            while not self.is_over and self._loop.time() < deadline:
                await self.changed(deadline)

    async def over_or_given_up(self) -> None:
        """Waits until the owner task ends or `gave_up` is set."""
        while not (self.is_over or self.gave_up):
            await self.changed()

    async def forced(self) -> None:
        """Cancels the owner task, and waits until it ends or `gave_up` is set."""
        self.force()
        await self.over_or_given_up()

    async def forced_shielded(self) -> None:
        """Cancels the owner task and waits as `forced()` does, shielded from the caller's cancellation.

        On asyncio, a native cancellation ends the wait.
        """
        with self._loop.create_cancel_scope(shield=True):
            await self.forced()

    async def seen_through(self) -> BaseException | None:
        """Waits as `forced_shielded()`, also through native cancellations, and returns the last one."""
        self.force()
        cancellation: BaseException | None = None
        while not (self.is_over or self.gave_up):
            try:
                with self._loop.create_cancel_scope(shield=True):
                    await self.over_or_given_up()
            except self._loop.cancelled_type as exc:
                cancellation = exc
        return cancellation

    # Commands. None of them awaits, because each is one decision.

    def close(self) -> None:
        """Begins to close the connection, or cancels the attempt to open it."""
        if self.state is OPENING:
            self.force()
        elif self.state is OPEN:
            self._stopped = True
            self._move(CLOSING)

    def force(self) -> None:
        """Begins to close the connection, and cancels the owner task."""
        if self.state is OPENING or self.state is OPEN:
            self._stopped = True
            self._loss = None
            self._move(CLOSING)
        self._cancel()

    def force_within(self, seconds: float | None) -> None:
        """Cancels the owner task after `seconds`, unless it is due earlier. `None` does nothing."""
        can_come = not self._forced and not self.is_over
        if seconds is not None and self._loop.time() + seconds < self._force_at and can_come:
            self._force_at = self._loop.time() + seconds
            self._set_timer(seconds, self._cancel)

    def lose(self, cause: BaseException | None, message: str = "the connection was lost") -> None:
        """Records a loss, and closes an open connection.

        If the connection is still being opened, the loss takes effect when opening ends.
        """
        if self.state is OPENING or self.state is OPEN:
            if self._loss is None:
                self._loss = ConnectionLostError(self.name, message)
            if self.state is OPEN:
                self._move(CLOSING)
                self.force_within(STOP_TIMEOUT)
        if self._loss is not None and self._loss.__cause__ is None:
            self._loss.__cause__ = self._leaf(cause)

    def lose_from_any_thread(self, cause: BaseException | None) -> None:
        """Calls `lose()`: immediately in the event loop of the run, otherwise soon."""
        if self.is_in_this_loop():
            self.lose(cause)
        else:
            self._loop.call_soon_threadsafe(lambda: self.lose(cause))

    def add_fact(self, fact: str) -> None:
        """Stores a note for the exception with which this run may fail."""
        self._facts.append(fact)

    def start_timeout_error(self, timeout: float) -> StartTimeoutError:
        """Returns the error for a `start()` call whose timeout has expired."""
        detail = "" if self.is_over else f"; {self.whereabouts}"
        error = StartTimeoutError(self.name, timeout, detail)
        error.__cause__ = self.exception
        for fact in self._facts:
            add_note(error, fact)
        return error

    def stop_timeout_error(self) -> StopTimeoutError:
        """Returns the error for a call that stops waiting for the owner task."""
        return StopTimeoutError(self.name, self.whereabouts)

    def raise_exception(self) -> None:
        """Raises the exception with which the run failed, if it failed."""
        if self._failure is not None:
            self._failure.raise_()

    def raise_for_starter(self) -> NoReturn:
        """Raises the error for a `start()` call that waited for this run and gets no connection."""
        if not self._stopped or not isinstance(self.exception, Exception | None):
            self.raise_exception()
        if self._stopped:
            raise ConnectionStoppedError(self.name)
        if self._loss is not None:  # the owner task did not end in time
            raise _copy(self._loss)
        raise self.start_timeout_error(cast("float", self._start_timeout))

    # The owner task.

    async def _own(self) -> None:
        raised: BaseException | None = None
        try:
            assert self._open_connection is not None
            with self._scope, self._quiet_scope:
                async with checked(self._open_connection()) as connection:
                    try:
                        self._publish(connection)
                        while self.state is OPEN:
                            await self.changed()
                    except BaseException:
                        # A normal close raises nothing, and during a forced one lose() does nothing. So
                        # the event loop is ending, or the transport crashed and its exit will raise
                        # the cause.
                        self.lose(None)
                        raise
        except BaseException as exc:  # noqa: BLE001 - every exception must wake the waiting tasks
            if not self._loop.is_current():
                return  # the loop is closed, and the owner's coroutine is being garbage collected
            raised = exc
        while self._timer is not None:  # a concurrent stop() may set another timer
            self._timer.cancel()
            self._timer = None
            for _ in range(3):  # on trio, a timer is a task, and three iterations start and end it
                await self._loop.shielded_checkpoint()
        error = self._leaf(raised)
        task = self._task
        try:
            self._settle(error)
        except Exception as exc:  # noqa: BLE001 - a failure to log must not crash trio
            self._loop.reraise(exc, task)
        if error is not None and not isinstance(error, Exception) and not self.starters:
            self._loop.reraise(error, task)

    def _publish(self, connection: T) -> None:
        if self.state is not OPENING or self._forced:
            return  # stopped or timed out in the iteration in which opening succeeded
        self._was_open = True
        if self._timer is not None:
            self._timer.cancel()
        self._connection = connection
        self._move(OPEN)
        if self._loss is not None:
            self.lose(None)

    def _run_out_of_time(self) -> None:
        self._timed_out = True
        self._cancel()

    def _cancelled_outside(self) -> None:
        if not self.is_over:
            self.lose(None, "the connection was lost because its owner task was cancelled from outside")
            if self.state is OPENING:
                self._move(CLOSING)
            self._cancel()

    def _cancel(self) -> None:
        if not self.is_over and (self.gave_up or not self._forced):
            self.gave_up = False
            self._forced = True
            self._scope.cancel()
            self._quiet_scope.shield = False
            self._set_timer(CANCEL_GRACE, self._give_up)

    def _give_up(self) -> None:
        """Reports that the owner task does not end, wakes the waiting tasks, and stops cancelling it."""
        self._quiet_scope.shield = True
        self.gave_up = True
        if self.state is OPENING:
            self._move(CLOSING)
        self._notify()
        if not self._complained:
            self._complained = True
            _logger().error("%s: could not be stopped; %s", self.name, self.whereabouts)

    def _set_timer(self, seconds: float, callback: Callable[[], object]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, callback)

    def _settle(self, error: BaseException | None) -> None:
        """Decides how the run ended, given the exception that the context manager raised, if any."""
        loss_is_expected = self._loop.is_ending(self._task)
        was_opening = self.state is OPENING
        failure = self._failure_of_opening(error) if was_opening else self._failure_of_rest(error)
        if failure is not None:
            for fact in self._facts:
                add_note(failure, fact)
            self._failure = _Failure(failure, ours=failure is not error)
        self._connection = None
        self._loop.owner_tasks.discard(self._task)
        self._open_connection = self._task = (
            None  # breaks reference cycles with this run and its manager
        )
        self._move(CLOSED if failure is None else FAILED)
        # The outcome is final. The code below only adds a note and logs, and may fail.
        if error is not None:
            phase = "opening" if not self._was_open else "open" if self._is_cause(error) else "closing"
            self._note(error, phase)
            if not was_opening and not self._is_cause(error):
                _logger().warning("%s: error while closing", self.name, exc_info=error)
        loss = self._loss
        if loss is not None and failure is loss:
            if loss.__cause__ is not None and loss.__cause__ is not error:
                self._note(loss.__cause__, "open")
            log = _logger().debug if loss_is_expected else _logger().warning
            log("%s", loss, exc_info=loss)

    def _is_cause(self, error: BaseException) -> bool:
        return self._loss is not None and self._loss.__cause__ is error

    def _failure_of_opening(self, error: BaseException | None) -> BaseException:
        if self._timed_out:
            failure = StartTimeoutError(self.name, cast("float", self._start_timeout))
            failure.__cause__ = error
            return failure
        if error is not None:
            return error
        if self._loss is None:
            message = "opening was cancelled, but neither stop() nor a timeout requested it"
            self._loss = ConnectionLostError(self.name, message)
        return self._loss

    def _failure_of_rest(self, error: BaseException | None) -> BaseException | None:
        loss = self._loss
        if loss is None:
            return error
        if loss.__cause__ is None:
            loss.__cause__ = error
        return loss

    def _note(self, error: BaseException, phase: str) -> None:
        add_note(error, f"ownertask: raised by {self.name} while {phase}")

    def _leaf(self, raised: BaseException | None) -> BaseException | None:
        """Strips cancellations from the exception, and unwraps groups that hold a single exception."""
        error = raised
        while isinstance(error, BaseExceptionGroup):
            error = group = cast("BaseExceptionGroup[BaseException]", error)
            if group.subgroup(self._loop.cancelled_type) is not None:
                error = group.split(self._loop.cancelled_type)[1]
            elif len(group.exceptions) == 1:
                error = group.exceptions[0]
            else:
                break
        return None if isinstance(error, self._loop.cancelled_type) else error

    def _move(self, state: ConnectionState) -> None:
        old, self.state = self.state, state
        assert state in TRANSITIONS[old], f"{self.name}: {old} -> {state}"
        self.is_over = state is CLOSED or state is FAILED
        self._notify()
        if _logger().isEnabledFor(DEBUG):
            _logger().debug("%s: %s -> %s", self.name, old.value, state.value)

    def _notify(self) -> None:
        for wake_up in tuple(self._wake_ups):
            wake_up()


class _Failure:
    """An exception that several tasks raise, each time with its original traceback and context."""

    def __init__(self, exception: BaseException, *, ours: bool) -> None:
        self.exception = exception
        self._ours = ours
        self._traceback = exception.__traceback__
        self._context = exception.__context__

    def raise_(self) -> NoReturn:
        if self._ours and isinstance(self.exception, ConnectionManagerError):
            raise _copy(self.exception)
        try:
            raise self.exception.with_traceback(self._traceback)
        finally:
            # Raising replaced the context with the exception that the caller was handling.
            with suppress(Exception):  # some exceptions are immutable
                self.exception.__context__ = self._context
            del self  # this frame is in the traceback
