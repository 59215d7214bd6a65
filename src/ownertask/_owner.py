"""The owner task of one run: it enters the context manager, publishes its value, waits, and exits it.

Everybody else talks to the owner through its `Run`, and may count on this:

* The context manager is entered and exited in the same task, once each.
* Every decision is taken in synchronous code, so that nobody sees half of one.
* Whatever happens in the owner, the run reaches `CLOSED` or `FAILED`, and all waiters wake up.
* Nothing is raised out of the owner, but (on asyncio only) a `BaseException` that nobody waits for.

Except for its properties, a `Run` is to be used in its own event loop only.
"""

import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import ContextVar, copy_context
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

T = TypeVar("T")

DEBUG: Final = 10
"""The level of `logging`, which is not imported yet."""

STOP_TIMEOUT: Final = 30.0
"""Seconds that closing may take before the owner is cancelled, where nobody has said otherwise."""

CANCEL_GRACE = 10.0
"""Seconds that a cancelled owner is waited for. The slowest transport of the SDK's, stdio with a
server that ignores everything, needs 6.5."""

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState

# Inherited by the child tasks and the callbacks of an owner: the runs that this code is a part of.
_runs_around: ContextVar[tuple["Run[object]", ...]] = ContextVar("ownertask_runs_around", default=())
runs_around_caller: Final = _runs_around.get


def checked(opened: AbstractAsyncContextManager[T]) -> AbstractAsyncContextManager[T]:
    """What `open_connection()` returned, if that is an async context manager.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(opened, AbstractAsyncContextManager):
        return opened
    hint = ""
    if iscoroutine(opened) or isasyncgen(opened):
        hint = "; is the decorator @asynccontextmanager missing?"
        if iscoroutine(opened):
            opened.close()  # it was not meant to run, and shall not warn that it never did
    kind = type(opened).__name__
    raise TypeError(f"open_connection() must return an async context manager, not {kind}{hint}")


def add_note(error: BaseException, note: str) -> None:
    """Adds a note, once, to an exception that can take one."""
    if note not in getattr(error, "__notes__", ()):
        with suppress(Exception):  # an exception may be frozen
            error.add_note(note)


# These import when a run begins what `import ownertask` must not: asyncio, and logging, which takes as
# long as all of ownertask. Cached, since such a statement alone is a thirtieth of a start and a stop.


@cache
def _logger() -> "Logger":
    from logging import getLogger

    return getLogger("ownertask")


@cache
def _event_loop_finder() -> "Callable[[], EventLoop]":
    from ._backend import current_event_loop

    return current_event_loop


class Run(Generic[T]):
    """One passage of a manager from `start()` to closed.

    Attributes:
        life: What identifies the manager.
        name: The manager's name.
        starters: How many calls of `start()` wait for this run.
        state: Where the run is. To others than its own event loop, `visible_state` tells.
        is_over: Whether the owner task has left the context manager.
        received: Whether a call of `start()` has returned the connection.
        gave_up: Whether the owner has outlived `CANCEL_GRACE`.
    """

    def __init__(
        self,
        life: object,
        name: str,
        open_connection: Callable[[], AbstractAsyncContextManager[T]],
        start_timeout: float | None,
    ) -> None:
        """Starts the owner task, which takes its first step later.

        Args:
            life: What identifies the manager.
            name: The manager's name.
            open_connection: Called once, in the owner task.
            start_timeout: Seconds that opening may take, `None` for any time.
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
        # Inside the other. Shielded, it ends the cancelling of an owner that swallows cancellations,
        # which would otherwise go on at full speed.
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

    # What may be asked. The properties may be read in any thread.

    @property
    def task_name(self) -> str:
        """The name of the owner task."""
        return f"owner task of {self.name}"

    @property
    def is_alive(self) -> bool:
        """Whether the owner task can still do something: not in a forked child or a closed loop."""
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
            NotConnectedError: The connection is not open, for another reason.
        """
        state = self.visible_state
        if state is OPEN:
            return cast("T", self._connection)
        if self._loss is not None and state is not OPENING:
            raise self._loss.built_anew()
        error = NotConnectedError(self.name, state)
        if self.exception is not None:
            error.__cause__ = self.exception
        raise error

    @property
    def exception(self) -> BaseException | None:
        """Why the run failed, if it did."""
        return None if self._failure is None else self._failure.exception

    @property
    def whereabouts(self) -> str:
        """The name of the owner task, and where it waits."""
        return f"the task {self.task_name!r} is waiting {waiting_place(self._coroutine)}"

    def is_in_this_loop(self) -> bool:
        """Whether the caller runs in the event loop of this run."""
        return self._loop.is_current()

    def surrounds_caller(self) -> bool:
        """Whether the caller is the owner task, or a child task or a callback of it."""
        return self in runs_around_caller()

    def is_owner_task(self) -> bool:
        """Whether the caller is the owner task."""
        return self.surrounds_caller() and self._loop.current_task() is self._task

    # What may be waited for. Who wakes up looks again, since a wake-up may mean nothing.

    def changed(self, deadline: float | None = None) -> Awaitable[None]:
        """Waits for a change of `state` or of `gave_up`, until a time of the loop's at most."""
        return self._loop.wait(self._wake_ups, deadline)

    async def over(self, within: float | None = None) -> None:
        """Waits until the owner task has left the context manager, for so many seconds at most."""
        if within is None:
            while not self.is_over:
                await self.changed()
        elif within > 0:
            deadline = self._loop.time() + within
            # One turn is all that many an owner needs, and is cheaper than a timer.
            await self._loop.checkpoint()
            while not self.is_over and self._loop.time() < deadline:
                await self.changed(deadline)

    async def over_or_given_up(self) -> None:
        """Waits until the owner task has ended, or has been given up."""
        while not (self.is_over or self.gave_up):
            await self.changed()

    async def forced(self) -> None:
        """Cancels the owner, and waits until it has ended, or has been given up."""
        self.force()
        await self.over_or_given_up()

    async def forced_shielded(self) -> None:
        """Does that in a cancelled caller. On asyncio, a native cancellation ends the wait."""
        with self._loop.create_cancel_scope(shield=True):
            await self.forced()

    async def seen_through(self) -> BaseException | None:
        """Does that, too, and returns the last native cancellation that came meanwhile."""
        self.force()
        cancellation: BaseException | None = None
        while not (self.is_over or self.gave_up):
            try:
                with self._loop.create_cancel_scope(shield=True):
                    await self.over_or_given_up()
            except self._loop.cancelled_type as exc:
                cancellation = exc
        return cancellation

    # What may be asked for. None of these awaits: each is one decision.

    def close(self) -> None:
        """Has the connection closed; while it is being opened, cancels that."""
        if self.state is OPENING:
            self.force()
        elif self.state is OPEN:
            self._stopped = True
            self._move(CLOSING)

    def force(self) -> None:
        """Has the connection closed, and cancels the owner."""
        if self.state is OPENING or self.state is OPEN:
            self._stopped = True
            self._loss = None
            self._move(CLOSING)
        self._cancel()

    def force_within(self, seconds: float | None) -> None:
        """Cancels the owner in so many seconds at most; does nothing if that is `None`."""
        can_come = not self._forced and not self.is_over
        if seconds is not None and self._loop.time() + seconds < self._force_at and can_come:
            self._force_at = self._loop.time() + seconds
            self._set_timer(seconds, self._cancel)

    def lose(self, cause: BaseException | None, message: str = "the connection was lost") -> None:
        """Records a loss, and ends an open connection. While opening, it shows once that is done."""
        if self.state is OPENING or self.state is OPEN:
            if self._loss is None:
                self._loss = ConnectionLostError(self.name, message)
            if self.state is OPEN:
                self._move(CLOSING)
                self.force_within(STOP_TIMEOUT)
        if self._loss is not None and self._loss.__cause__ is None:
            self._loss.__cause__ = self._leaf(cause)

    def lose_from_any_thread(self, cause: BaseException | None) -> None:
        """`lose()`, at once in the event loop of the run, else soon."""
        if self.is_in_this_loop():
            self.lose(cause)
        else:
            self._loop.call_soon_threadsafe(lambda: self.lose(cause))

    def add_fact(self, fact: str) -> None:
        """Has it noted on what this run fails with, if it does."""
        self._facts.append(fact)

    def start_timeout_error(self, timeout: float) -> StartTimeoutError:
        """The error for a caller of `start()` whose time has run out."""
        detail = "" if self.is_over else f"; {self.whereabouts}"
        error = StartTimeoutError(self.name, timeout, detail)
        error.__cause__ = self.exception
        for fact in self._facts:
            add_note(error, fact)
        return error

    def stop_timeout_error(self) -> StopTimeoutError:
        """The error for a caller who will wait no longer."""
        return StopTimeoutError(self.name, self.whereabouts)

    def raise_exception(self) -> None:
        """Raises why the run failed, if it did."""
        if self._failure is not None:
            self._failure.raise_()

    def raise_for_starter(self) -> NoReturn:
        """Raises why a call of `start()` that has waited for this run gets no connection."""
        if not self._stopped or not isinstance(self.exception, Exception | None):
            self.raise_exception()
        if self._stopped:
            raise ConnectionStoppedError(self.name)
        if self._loss is not None:  # given up while it was closing
            raise self._loss.built_anew()
        raise self.start_timeout_error(cast("float", self._start_timeout))

    # The owner's own.

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
                        # A wish to close comes through the state. This is a crash of the transport,
                        # whose cause comes out of its exit, or the end of the event loop.
                        self.lose(None)
                        raise
        except BaseException as exc:  # noqa: BLE001 - no waiter may hang, whatever it was
            if not self._loop.is_current():
                return  # the loop was closed under the owner, which is being collected
            raised = exc
        while self._timer is not None:  # a stop() that comes meanwhile sets another
            self._timer.cancel()
            self._timer = None
            for _ in range(3):  # on trio it is a task, which takes so many turns to start and end
                await self._loop.shielded_checkpoint()
        error = self._leaf(raised)
        task = self._task
        try:
            self._settle(error)
        except Exception as exc:  # noqa: BLE001 - logging has failed, and shall not crash trio
            self._loop.reraise(exc, task)
        if error is not None and not isinstance(error, Exception) and not self.starters:
            self._loop.reraise(error, task)

    def _publish(self, connection: T) -> None:
        if self.state is not OPENING or self._forced:
            return  # stopped, or out of time, in the very tick of success
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
        """Says that the owner cannot be ended, wakes who waits for it, and lets it be."""
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
        """Decides how the run has ended, given what came out of the context manager."""
        loss_is_expected = self._loop.is_ending(self._task)
        was_opening = self.state is OPENING
        failure = self._failure_of_opening(error) if was_opening else self._failure_of_rest(error)
        if failure is not None:
            for fact in self._facts:
                add_note(failure, fact)
            self._failure = _Failure(failure, ours=failure is not error)
        self._connection = None
        self._loop.owner_tasks.discard(self._task)
        self._open_connection = self._task = None  # both refer to this run, or to its manager
        self._move(CLOSED if failure is None else FAILED)
        # All is decided. What follows may fail, and nobody waits for it.
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
        """What was raised, without cancellations and without groups of one."""
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
    """An exception that is raised by many, as it was when it was first raised."""

    def __init__(self, exception: BaseException, *, ours: bool) -> None:
        self.exception = exception
        self._ours = ours
        self._traceback = exception.__traceback__
        self._context = exception.__context__

    def raise_(self) -> NoReturn:
        if self._ours and isinstance(self.exception, ConnectionManagerError):
            raise self.exception.built_anew()
        try:
            raise self.exception.with_traceback(self._traceback)
        finally:
            # Raising has put there what the caller was handling at the time.
            with suppress(Exception):  # an exception may be frozen
                self.exception.__context__ = self._context
            del self  # this frame is in the traceback
