"""The owner task of one run: it enters the context manager, publishes its value, waits, and exits it.

All other code talks to the owner task through its `Run`, which guarantees:

* The context manager is entered and exited in the same task, once each.
* Every decision is made in synchronous code, so no other task sees an intermediate state.
* When the context manager has exited, the run reaches `CLOSED` or `FAILED`, and then all waiting tasks
  wake up. Neither an exception's methods nor a logging handler can prevent that.
* No exception leaves the owner task, except on asyncio: a `BaseException` that no `start()` is waiting
  for, and an exception that was raised after the outcome was decided.

Use a `Run` only in its own event loop. Its properties may be read in any thread.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar, copy_context
from functools import cache
from inspect import isasyncgen, iscoroutine
from math import inf
from threading import main_thread
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, NoReturn, TypeVar, cast

from ._call_stack import waiting_place
from ._failure import Failure, add_note, leaf
from ._log import DEBUG, ERROR, WARNING, log
from ._reason import is_a
from ._signal_handlers import in_signal_handler
from .errors import (
    ConnectionLostError,
    ConnectionStoppedError,
    NotConnectedError,
    StartTimeoutError,
    StopTimeoutError,
    WrongEventLoopError,
)
from .state import TRANSITIONS, ConnectionState

if TYPE_CHECKING:
    from ._backend import EventLoop, Timer

__all__ = ["CANCEL_GRACE", "STOP_TIMEOUT", "Run", "checked", "current_event_loop", "runs_around_caller"]

T = TypeVar("T")

STOP_TIMEOUT: Final = 30.0
"""Default time, in seconds, that closing may take before the owner task is cancelled."""

CANCEL_GRACE = 10.0
"""Time, in seconds, to wait for a cancelled owner task. The SDK's slowest transport, stdio with a server
that ignores every request to exit, can take up to 6.5 seconds."""

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState

OVER: Final = frozenset({CLOSED, FAILED})

LOST: Final = "the connection was lost"
CANCELLED_OUTSIDE: Final = "the connection was lost because its owner task was cancelled from outside"
CANCELLED_WHILE_OPENING: Final = "opening was cancelled, but neither stop() nor a timeout requested it"
SHUT_DOWN: Final = (
    "the event loop was shut down while the connection was {}; call stop() before the event loop ends"
)

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


class Loss(NamedTuple):
    """A reported loss."""

    message: str
    cause: BaseException | None


class Run(Generic[T]):
    """One cycle of a manager from opening to closed, with one owner task.

    Attributes:
        name: The manager's name.
        parts: The keys of the managers whose connections are part of this run.
        is_kept: Whether the run stays open after the last `async with` block exits.
        starters: The number of `start()` calls that are waiting for this run.
        received: Whether a `start()` call has returned the connection.
        gave_up: Whether the owner task is still running `CANCEL_GRACE` seconds after it was cancelled.
        was_open: Whether the connection was opened.
        cancelled_type: The exception that a cancelled task raises in this event loop.
    """

    def __init__(
        self,
        key: object,
        name: str,
        open_connection: Callable[[], AbstractAsyncContextManager[T]],
        start_timeout: float | None,
        *,
        is_kept: bool,
    ) -> None:
        """Starts the owner task, which takes its first step after this call returns.

        Args:
            key: Identifies the manager.
            name: The manager's name.
            open_connection: Called once, in the owner task.
            start_timeout: Maximum time for opening, in seconds; `None` means no limit.
            is_kept: See the attribute.
        """
        self.name = name
        self.parts = {key}
        self.is_kept = is_kept
        self.starters = 0
        self.received = False
        self.gave_up = False
        # The part of the run that other threads can see. It is replaced as a whole.
        self._status: tuple[ConnectionState, T | None, Failure | None] = (OPENING, None, None)
        self._open_connection: Callable[[], AbstractAsyncContextManager[T]] | None = open_connection
        self._loop = current_event_loop()
        self.cancelled_type = self._loop.cancelled_type
        self._wake_ups: set[Callable[[], object]] = set()
        self.was_open = False
        self._stopped = False
        self._expired_timeout: float | None = None
        self._loss: Loss | None = None
        self._raised: BaseException | None = None
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
        self._owner: object = None
        self._coroutine: object = None
        self._task = self._loop.start_task(
            self._own(), name=self.task_name, context=context, on_cancel=self._cancelled_outside
        )
        self._start_timeout = start_timeout
        self._time_left = start_timeout or 0.0
        self._expires_at = inf
        self._pauses = 1  # resume_start_timeout() starts the clock
        self.resume_start_timeout()

    # Queries. The properties may be read in any thread.

    @property
    def task_name(self) -> str:
        """The name of the owner task."""
        return f"owner task of {self.name}"

    @property
    def state(self) -> ConnectionState:
        """The state of the run. Outside its event loop, use `visible_state`."""
        return self._status[0]

    @property
    def is_over(self) -> bool:
        """`True` if the owner task has exited the context manager."""
        return self._status[0] in OVER

    @property
    def is_alive(self) -> bool:
        """`True` if the owner task can still run. In a forked child or a closed loop it can't."""
        return not self.is_over and self._loop.is_alive()

    @property
    def visible_state(self) -> ConnectionState:
        """The state of the manager during and after this run."""
        return self._visible_status()[0]

    def _visible_status(self) -> tuple[ConnectionState, T | None, Failure | None]:
        can_change = self._loop.is_alive()
        status = self._status  # read last, so that a failure just before the loop closes is still seen
        return status if can_change or status[0] in OVER else (CLOSED, None, None)

    @property
    def connection(self) -> T:
        """The connection.

        Raises:
            WrongEventLoopError: The connection is open, but the caller is running in another event loop.
            ConnectionLostError: The connection was lost.
            NotConnectedError: The connection is not open for another reason.
        """
        state, connection, failure = self._visible_status()
        if state is OPEN:
            if self._loop.is_other():
                raise WrongEventLoopError(self.name, "connection was read")
            return cast("T", connection)
        if failure is not None:
            if failure.is_loss:
                failure.raise_()
            raise NotConnectedError(self.name, state) from failure.exception
        if state is CLOSING and self._loss is not None:
            raise self._loss_error(self._loss)
        raise NotConnectedError(self.name, state)

    @property
    def exception(self) -> BaseException | None:
        """The exception with which the run failed, or `None`."""
        failure = self._status[2]
        return None if failure is None else failure.exception

    @property
    def is_lost(self) -> bool:
        """`True` if a loss was reported."""
        return self._loss is not None

    @property
    def whereabouts(self) -> str:
        """Names the owner task and where it is waiting."""
        return f"the task {self.task_name!r} is waiting {waiting_place(self._coroutine)}"

    def received_connection(self) -> tuple[T] | None:
        """Returns the connection for a `start()` call, in a tuple, if it is open."""
        state, connection, _ = self._status
        if state is not OPEN:
            return None
        self.received = True
        return (cast("T", connection),)

    def is_in_this_loop(self) -> bool:
        """Returns whether the caller is running in the event loop of this run."""
        return self._loop.is_current()

    def is_in(self, loop: "EventLoop") -> bool:
        """Returns whether the run belongs to `loop`."""
        return self._loop is loop

    def surrounds_caller(self) -> bool:
        """Returns whether the caller is the owner task or one of its child tasks or callbacks."""
        return self in runs_around_caller()

    def current_task(self) -> object:
        """Returns the running task."""
        return self._loop.current_task()

    def is_owner_task(self) -> bool:
        """Returns whether the caller is the owner task."""
        return self.surrounds_caller() and self._loop.current_task() is self._owner

    def has_passed(self, deadline: float | None) -> bool:
        """Returns whether `deadline` (a time of the loop) has passed."""
        return deadline is not None and self._loop.time() >= deadline

    # Waiting. A wake-up may be spurious, so callers check the condition again.

    def changed(self, deadline: float | None = None) -> Awaitable[None]:
        """Waits until `state` or `gave_up` changes, or `deadline` has passed."""
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
            while not self.is_over and not self.has_passed(deadline):
                await self.changed(deadline)

    async def over_inside(self) -> None:
        """Waits as `over()`, for a task that closing may have to wait for."""
        while not self.is_over:
            if self.state is CLOSING:
                self.force_within(STOP_TIMEOUT)
            await self.changed()

    async def over_or_given_up(self, deadline: float | None = None) -> None:
        """Waits until the owner task ends, `gave_up` is set, or `deadline` has passed."""
        while not (self.is_over or self.gave_up or self.has_passed(deadline)):
            await self.changed(deadline)

    async def forced(self) -> None:
        """Cancels the owner task, and waits until it ends or `gave_up` is set."""
        self.force()
        await self.over_or_given_up()

    async def forced_shielded(self) -> None:
        """Cancels the owner task and waits as `forced()` does, shielded from the caller's cancellation.

        On asyncio, a native cancellation ends the wait.
        """
        await self._loop.shielded(self.forced)

    async def seen_through(self) -> BaseException | None:
        """Waits as `forced_shielded()`, even through native cancellations. Returns the last of them."""
        self.force()
        cancellation: BaseException | None = None
        while not (self.is_over or self.gave_up):
            try:
                await self._loop.shielded(self.over_or_given_up)
            except self.cancelled_type as exc:
                cancellation = exc
        return cancellation

    # Commands. None of them awaits, because each is one decision.

    def log_opening(self) -> None:
        """Logs the first change of state. The constructor must not run an application's log handlers."""
        log(DEBUG, "%s: %s -> %s", self.name, NEW.value, OPENING.value)

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
            self._move(CLOSING)
        self._cancel()

    def force_within(self, seconds: float | None) -> None:
        """Cancels the owner task after `seconds`, unless it is due earlier. `None` does nothing."""
        can_come = not self._forced and not self.is_over
        if seconds is not None and self._loop.time() + seconds < self._force_at and can_come:
            self._force_at = self._loop.time() + seconds
            self._set_timer(seconds, self._cancel)

    def pause_start_timeout(self) -> None:
        """Stops the clock of `start_timeout` until `resume_start_timeout()` is called as many times."""
        self._pauses += 1
        if self._pauses == 1 and self._timer is not None and self.state is OPENING:
            self._timer.cancel()
            self._time_left = max(0.0, self._expires_at - self._loop.time())

    def resume_start_timeout(self) -> None:
        """Starts the clock of `start_timeout` again with the time that was left, unless still paused."""
        self._pauses -= 1
        timeout = self._start_timeout
        # After the attempt, the timer belongs to force_within() and _cancel().
        if self._pauses == 0 and timeout is not None and self.state is OPENING:
            self._expires_at = self._loop.time() + self._time_left
            self._set_timer(self._time_left, lambda: self.expire(timeout))

    def expire(self, timeout: float) -> None:
        """Cancels the attempt to open the connection, because it has taken `timeout` seconds."""
        if self.state is OPENING:
            self._expired_timeout = timeout
            self._move(CLOSING)
            self._cancel()

    def lose(self, cause: BaseException | None, message: str = LOST) -> None:
        """Records a loss. Closes an open connection, or cancels the attempt to open it.

        Only the first cause that is reported before the run is over counts.
        """
        was_opening = self.state is OPENING
        if was_opening or self.state is OPEN:
            self._loss = Loss(message, leaf(cause, self.cancelled_type))
            self._move(CLOSING)
            if was_opening:
                self._cancel()
            else:
                self.force_within(STOP_TIMEOUT)
        elif self._loss is not None and self._loss.cause is None:
            self._loss = self._loss._replace(cause=leaf(cause, self.cancelled_type))

    def command_from_any_thread(self, command: Callable[[], object]) -> None:
        """Calls a command of this run: immediately in its event loop, otherwise soon.

        In a signal handler, only `call_soon_threadsafe()` is safe. It also ends a loop's wait for I/O.
        """
        if self.is_in_this_loop() and not in_signal_handler():
            command()
        else:
            self._loop.call_soon_threadsafe(command)

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
        failure = self._status[2]
        if failure is not None:
            failure.raise_()

    def raise_for_starter(self) -> NoReturn:
        """Raises the error for a `start()` call that waited for this run and gets no connection."""
        exception = self.exception
        if not self._stopped or (exception is not None and not is_a(exception, Exception)):
            self.raise_exception()
        if self._stopped:
            raise ConnectionStoppedError(self.name)
        # The owner task did not end in time.
        if self._expired_timeout is not None:
            raise self.start_timeout_error(self._expired_timeout)
        raise self._loss_error(cast("Loss", self._loss))

    # The owner task.

    async def _own(self) -> None:
        self._coroutine = coroutine = self._hold()
        await self._loop.contain(coroutine, self.task_name)
        while self._timer is not None:  # stop() or the end of a pause may set another
            self._timer.cancel()
            self._timer = None
            for _ in range(3):  # on trio, a timer is a task, and three iterations start and end it
                await self._loop.shielded(self._loop.checkpoint)
        error, task = leaf(self._raised, self.cancelled_type), self._task
        self._raised = self._coroutine = None
        try:
            self._settle(error)
        except BaseException as exc:  # noqa: BLE001 - the run must end, even if this is a bug
            if not self.is_over:
                self._move(FAILED, failure=Failure(exc if error is None else error, is_ours=False))
            self._loop.reraise(exc, task)
        try:
            if error is not None and not is_a(error, Exception) and not self.starters:
                self._loop.reraise(error, task)
        finally:
            del self, error, task  # this frame is reachable from the traceback of the exception

    async def _hold(self) -> None:
        """Enters the context manager, waits, and exits it. Stores the exception that it raised."""
        self._owner = self._loop.current_task()
        try:
            with self._scope, self._quiet_scope:
                try:
                    await self._enter_and_exit()
                except BaseException as exc:
                    # The scopes must see no exception except a cancellation.
                    if leaf(exc, self.cancelled_type) is None or not self._loop.is_current():
                        raise
                    self._raised = exc
        except BaseException as exc:  # noqa: BLE001 - every exception must wake the waiting tasks
            self._loop.check_not_collected()
            if self._raised is None:
                self._raised = exc
        finally:
            del self  # this frame is in the traceback of the exception

    async def _enter_and_exit(self) -> None:
        assert self._open_connection is not None
        try:
            async with checked(self._open_connection()) as connection:
                try:
                    self._publish(connection)
                    del connection
                    while self.state is OPEN:
                        await self.changed()
                except BaseException:
                    # A normal close raises nothing, and during a forced one lose() does nothing. So the
                    # event loop is ending, or the transport crashed and its exit will raise the cause.
                    self.lose(None)
                    raise
        finally:
            del self

    def _publish(self, connection: T) -> None:
        if self.state is not OPENING:
            return  # stopped, lost or timed out in the iteration in which opening succeeded
        self.was_open = True
        if self._timer is not None:
            self._timer.cancel()
        self._move(OPEN, connection=connection)

    def _cancelled_outside(self) -> None:
        if not self.is_over:
            self.lose(None, CANCELLED_OUTSIDE)
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
        self._notify()
        if not self._complained:
            self._complained = True
            log(ERROR, "%s: could not be stopped; %s", self.name, self.whereabouts)

    def _set_timer(self, seconds: float, callback: Callable[[], object]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, callback)

    def _settle(self, error: BaseException | None) -> None:
        """Decides how the run ended, given the exception that the context manager raised, if any."""
        loop_ends = self._loop.is_ending(self._task)
        # While Python exits, a daemon thread may see the loss of a server that the exit ended.
        level = DEBUG if loop_ends or not main_thread().is_alive() else WARNING
        self._loop.owner_tasks.discard(self._task)
        # These refer to this run and its manager.
        self._open_connection = self._task = self._owner = None
        failure = self._failure_of(error, loop_ends=loop_ends)
        reported = None if self._loss is None else self._loss.cause
        self._move(CLOSED if failure is None else FAILED, failure=failure)
        # The outcome is final. The code below only adds notes and logs, and may fail.
        if failure is not None:
            for fact in self._facts:
                add_note(failure.exception, fact)
        if error is not None and failure is not None:
            is_cause = failure.has_cause(error)
            phase = "opening" if not self.was_open else "open" if is_cause else "closing"
            add_note(error, f"ownertask: raised by {self.name} while {phase}")
            is_raised = failure.exception is error and not self.was_open and not self._stopped
            if not is_cause and not is_raised:
                log(WARNING, "%s: error while closing", self.name, exc_info=error)
        if failure is not None and failure.is_loss:
            if reported is not None and reported is not error:
                phase = "open" if self.was_open else "opening"
                add_note(reported, f"ownertask: raised by {self.name} while {phase}")
            log(level, "%s", failure.exception, exc_info=failure.exception)

    def _failure_of(self, error: BaseException | None, *, loop_ends: bool) -> Failure | None:
        loss = self._loss
        if self._expired_timeout is not None:
            failure = StartTimeoutError(self.name, self._expired_timeout)
            failure.__cause__ = error
            return Failure(failure, is_ours=True)
        if loss is None and error is None:
            if self.state is not OPENING:
                return None
            loss = Loss(CANCELLED_WHILE_OPENING, None)
        # While opening, a loss without a reason says less than the exception.
        is_bare = loss is None or (loss.cause is None and loss.message is LOST and not self.was_open)
        if error is not None and is_bare:
            return Failure(error, is_ours=False)
        assert loss is not None
        if loss.cause is None and error is None and loop_ends:
            loss = Loss(SHUT_DOWN.format("open" if self.was_open else "being opened"), None)
        elif loss.cause is None:
            loss = Loss(loss.message, error)
        return Failure(self._loss_error(loss), is_ours=True)

    def _loss_error(self, loss: Loss) -> ConnectionLostError:
        return ConnectionLostError(self.name, loss.message, loss.cause)

    def _move(
        self, state: ConnectionState, *, connection: T | None = None, failure: Failure | None = None
    ) -> None:
        old = self.state
        assert state in TRANSITIONS[old], f"{self.name}: {old} -> {state}"
        self._status = (state, connection, failure)
        self._notify()
        log(DEBUG, "%s: %s -> %s", self.name, old.value, state.value)

    def _notify(self) -> None:
        for wake_up in tuple(self._wake_ups):
            wake_up()
