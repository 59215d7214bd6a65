"""What users call and transport authors subclass: `ConnectionManager[T]`.

A manager holds no connection itself. Each passage from `start()` to closed is a run with an owner
task of its own (`_owner.py`). What is here decides which run a call is about, how long its caller
waits for it, and what becomes of the run when the caller is cancelled.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar, cast, final

import anyio

from ._arguments import checked_timeout
from ._owner import STOP_TIMEOUT, Run, checked, runs_around_caller
from .errors import (
    ConnectionStoppedError,
    NotConnectedError,
    OwnerTaskError,
    StartTimeoutError,
    WrongEventLoopError,
)
from .state import ConnectionState

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

__all__ = ["ConnectionManager"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class ConnectionManager(ABC, Generic[T_co]):
    """Opens a connection in a task of its own, so that any task can use it and any task close it.

    Subclasses implement `open_connection()`, an async context manager. It is entered and exited in
    the *owner task*, which belongs to no task group and no cancel scope of the caller's. Nothing
    that happens to the connection cancels a task of the application or raises into it.

    A manager can be started again after it was stopped or has failed, also in another event loop.
    It needs no running event loop to be made. Dropping the last reference to it does not stop it;
    the end of its event loop does. All methods belong in the event loop of the run; the properties
    and `connection_lost()` may be used in any thread.
    """

    start_timeout: float | None = None
    """Seconds that an attempt to open may take, whoever waits for it; `None` for any time."""

    _life: "_Life[T_co]"
    _name: str | None = None

    # In __new__, so that a subclass works that forgets super().__init__(), or is a (frozen) dataclass.
    # Not for type checkers, which take the constructor's signature from __init__.
    if not TYPE_CHECKING:

        def __new__(cls, *_args: object, **_kwargs: object) -> Self:
            """Makes the private state."""
            self = super().__new__(cls)
            object.__setattr__(self, "_life", _Life())
            return self

    def __init__(self, *, name: str | None = None) -> None:
        """Makes a manager; nothing is opened yet.

        Args:
            name: What the manager is called in logs, errors and the owner task's name. Without one,
                it is called after its class, and transports add their target, never a credential.

        Raises:
            TypeError: `name` is no string.
        """
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string or None, not {type(name).__name__}")
        self._name = name

    # A copy has the configuration only: a run cannot be had twice, and none can be pickled.
    def __getstate__(self) -> object:
        state = super().__getstate__()
        if isinstance(state, tuple):  # of __dict__ and of the values in a subclass's __slots__
            attributes, slots = cast("tuple[dict[str, object], object]", state)
            return {key: attributes[key] for key in attributes if key != "_life"} or None, slots
        attributes = cast("dict[str, object]", state)
        return {key: attributes[key] for key in attributes if key != "_life"}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.state.value}>"

    @staticmethod
    def from_factory(
        factory: Callable[[], AbstractAsyncContextManager[T]], *, name: str | None = None
    ) -> "ConnectionManager[T]":
        """A manager of whatever `factory()` returns, without a subclass.

        Args:
            factory: Called once per run, in the owner task; returns an async context manager.
            name: See `ConnectionManager`; without one, the factory's own name is used.

        Raises:
            TypeError: `factory` cannot be called, or `name` is no string.
        """
        return _FactoryConnectionManager(factory, name=name)

    @abstractmethod
    def open_connection(self) -> AbstractAsyncContextManager[T_co]:
        """An async context manager that opens the connection, yields it, and closes it.

        Called once per run, in the owner task. It is public, too, as the plain form: `async with
        manager.open_connection()` opens a connection that lives and dies in the calling task. It is no
        run, and has no part in the manager's state; while it is open, leave the manager unstarted, as
        what the transport then has to say of a loss would be taken for the run's.
        """

    @property
    def name(self) -> str:
        """What the manager is called in logs, errors and the owner task's name."""
        return self._name or type(self).__name__

    @property
    def state(self) -> ConnectionState:
        """Where the manager is in the life of its connection."""
        run = self._life.run
        return ConnectionState.NEW if run is None else run.visible_state

    @property
    def connection(self) -> T_co:
        """The connection. It can be read if and only if the state is `OPEN`.

        Raises:
            ConnectionLostError: It was lost; `__cause__` is the reason, if one is known.
            NotConnectedError: It is not open for another reason.
        """
        run = self._life.run
        if run is None:
            raise NotConnectedError(self.name, ConnectionState.NEW)
        return run.connection

    @property
    def exception(self) -> BaseException | None:
        """Why the last run failed, or `None`. It is set if and only if the state is `FAILED`.

        That is the error of opening, a `ConnectionLostError`, or an error of closing.
        """
        run = self._life.run
        return None if run is None else run.exception

    @final
    async def start(self, *, timeout: float | None = None) -> T_co:
        """Opens the connection and returns it.

        A connection that is open already is returned as it is; an attempt that is under way is
        joined; a close that is under way is waited for, and a new connection opened after it.

        Args:
            timeout: Seconds of this caller's patience, `None` for any. It covers the wait for a
                close, too. `start_timeout` bounds the attempt itself; the earlier one wins.

        Returns:
            The connection. It was open when the call returned.

        Raises:
            ConnectionStoppedError: `stop()` was called meanwhile.
            ConnectionLostError: The connection was lost before this caller could have it.
            StartTimeoutError: It was not open in time.
            StopTimeoutError: The owner of the last run still lives, though it was cancelled.
            WrongEventLoopError: The manager is alive in another event loop.
            OwnerTaskError: The caller is a part of the connection that it waits for.
            ValueError: `timeout` is negative or NaN.
            BaseException: What `open_connection()` has raised, of its own type, with a note that
                names the manager. An exception group of one is raised as that one.

        Cancellation:
            If nobody else waits for the attempt, it is cancelled, and the call ends when the owner
            task has ended, which is when the transport has cleaned up, or 10 seconds have passed.
            That, and the log at `ERROR` which it leaves, is the only case in which anything of an
            attempt outlives the call. Further cancellations do not shorten it. A `timeout` that has
            run out does the same. Others who wait for the same attempt are not disturbed.
        """
        checked_timeout("timeout", timeout)
        stops = self._life.stops
        if timeout is None:
            return await self._start(stops)
        with anyio.move_on_after(timeout):
            return await self._start(stops)
        run = self._life.run
        raise StartTimeoutError(self.name, timeout) if run is None else run.start_timeout_error(timeout)

    async def _start(self, stops: int) -> T_co:
        while (run := self._alive_run("start")) is not None and run.state is ConnectionState.CLOSING:
            if run.is_owner_task():
                raise OwnerTaskError(self.name, "start")
            if self._life.stops != stops:
                await run.over_or_given_up()
                raise ConnectionStoppedError(self.name)
            if run.gave_up:
                raise run.stop_timeout_error()
            await run.changed()
        if self._life.stops != stops:
            raise ConnectionStoppedError(self.name)
        if run is None:
            run = self._begin()
        elif run.state is ConnectionState.OPEN:
            run.received = True
            return run.connection
        elif run.surrounds_caller():
            raise OwnerTaskError(self.name, "start")
        return await self._join(run)

    def _alive_run(self, method: str) -> Run[T_co] | None:
        run = self._life.run
        if run is None or not run.is_alive:
            return None
        if not run.is_in_this_loop():
            raise WrongEventLoopError(self.name, method)
        return run

    def _begin(self) -> Run[T_co]:
        life = self._life
        if life.is_lent:
            raise RuntimeError(
                f"{self.name}: cannot be started on its own because it is part of "
                f"{life.borrower_name}; start that manager instead"
            )
        start_timeout = checked_timeout("start_timeout", self.start_timeout)
        life.run = Run(life, self.name, self.open_connection, start_timeout)
        return life.run

    async def _join(self, run: Run[T_co]) -> T_co:
        """Waits for an attempt, and if it comes to nothing, until its owner has ended."""
        run.starters += 1
        try:
            while run.state is ConnectionState.OPENING:
                await run.changed()
            # Between the wake-up and here others may have stopped or lost it, so look again.
            if run.state is ConnectionState.OPEN:
                run.received = True
                return run.connection
            await run.over_or_given_up()
        except anyio.get_cancelled_exc_class() as exc:
            cancellation: BaseException = exc
        else:
            return run.raise_for_starter()
        finally:
            run.starters -= 1
        if run.starters == 0 and not run.received and not run.is_over:
            cancellation = await run.seen_through() or cancellation
        # Not inside the handler: it would take a native cancellation that came second for anyio's.
        raise cancellation

    @final
    async def stop(self, timeout: float | None = STOP_TIMEOUT) -> None:
        """Closes the connection, and waits until the owner task has ended.

        May be called in any state, by any number of tasks. While the connection is being opened,
        the attempt is cancelled at once. What the connection raises while it closes is logged, kept
        in `exception`, and not raised here.

        Args:
            timeout: Seconds that closing may take before the owner is cancelled, 30 if not given. 0
                cancels it at once, `None` never. Of several calls, the earliest deadline counts. A
                cancelled owner is waited for 10 seconds more.

        Raises:
            StopTimeoutError: The owner is still alive after that.
            WrongEventLoopError: The manager is alive in another event loop.
            OwnerTaskError: The caller is the owner task.
            ValueError: `timeout` is negative or NaN.

        Cancellation:
            The owner is cancelled, too, and waited for as above, before the cancellation goes on. A
            native `cancel()` of an asyncio task that comes second ends that wait, and the owner goes
            on to its end by itself.
        """
        checked_timeout("timeout", timeout)
        run = self._alive_run("stop")
        if run is not None and run.is_owner_task():
            raise OwnerTaskError(self.name, "stop")
        self._life.stops += 1
        if run is not None:
            await self._stop(run, timeout)

    async def _stop(self, run: Run[T_co], timeout: float | None) -> None:
        if run.state is ConnectionState.OPENING:
            timeout = 0
        run.close()
        try:
            await run.over(timeout)
            if not run.is_over:
                await run.forced()
        except anyio.get_cancelled_exc_class():
            if run.surrounds_caller():
                # The close that it has asked for cancels it, and is still to end in time.
                run.force_within(timeout)
            else:
                await run.forced_shielded()
            raise
        if not run.is_over:
            raise run.stop_timeout_error()

    @final
    async def run(self, *, task_status: "TaskStatus[T_co] | None" = None) -> None:
        """Holds the connection open for as long as this call lasts, for use in a task group.

        `connection = await task_group.start(manager.run)` starts it. It ends when the connection
        has ended: quietly after a `stop()`, with an error after a loss.

        Args:
            task_status: Is given the connection; a task group's `start()` passes it.

        Raises:
            RuntimeError: A run is alive already.
            ConnectionLostError: The connection was lost.
            BaseException: What opening or closing the connection has raised; see `start()`.

        Cancellation:
            Closes the connection as a cancelled `stop()` does. That is no loss.
        """
        if self._alive_run("run") is not None:
            raise RuntimeError(
                f"{self.name}: run() requires a manager that is not running "
                f"(state: {self.state.value}); call stop() first"
            )
        connection = await self.start()
        run = cast("Run[T_co]", self._life.run)
        try:
            if task_status is not None:
                task_status.started(connection)
            await run.over()
        except anyio.get_cancelled_exc_class():
            await run.forced_shielded()
            raise
        finally:
            if not run.is_over and not run.gave_up:
                await self._stop(run, STOP_TIMEOUT)
        run.raise_exception()

    async def __aenter__(self) -> T_co:
        """Starts the manager; see `start()`.

        Raises:
            RuntimeError: The manager is entered already, and alive.
        """
        self._check_not_entered()
        connection = await self.start()
        self._check_not_entered()  # somebody may have been faster
        entry = (anyio.get_current_task().id, cast("Run[T_co]", self._life.run))
        self._life.entries.append(entry)
        return connection

    def _check_not_entered(self) -> None:
        if any(run.is_alive for _, run in self._life.entries):
            raise RuntimeError(
                f"{self.name}: already in use by an `async with` block; exit that block first"
            )

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops the run that was entered, and no later one; see `stop()`. Any task may do it."""
        entries = self._life.entries
        alive = self._alive_run("stop")
        if alive is not None and alive.is_owner_task():
            raise OwnerTaskError(self.name, "stop")
        if not entries:
            return
        # What this task has entered; else what is over, as that of the others may be in use.
        here = anyio.get_current_task().id
        entry = min(entries, key=lambda entry: (entry[0] != here, entry[1].is_alive))
        entries.remove(entry)
        if alive is not None and entry[1] is alive:
            await self._stop(alive, STOP_TIMEOUT)

    async def wait_closed(self) -> None:
        """Waits for the end of the run that is alive, and raises its `exception`, if it has one.

        This is how an application is told of a loss. If no run is alive, it is about the last one.

        Raises:
            ConnectionLostError: The connection was lost.
            BaseException: What opening or closing the connection has raised; see `start()`.
            WrongEventLoopError: The manager is alive in another event loop.
            OwnerTaskError: The caller is the owner task.

        Cancellation:
            Has no effect on the connection.
        """
        run = self._alive_run("wait_closed")
        if run is not None:
            if run.is_owner_task():
                raise OwnerTaskError(self.name, "wait_closed")
            await run.over()
        elif (run := self._life.run) is None:
            return
        run.raise_exception()

    def connection_lost(self, exc: BaseException | None = None) -> None:
        """Says that the connection is dead: it is closed, and the loss recorded. For transports.

        May be called from any thread and any number of times. While the connection is being opened
        it is remembered: what `open_connection()` raises wins, else `start()` raises the loss.
        Without a live run it does nothing. Called from within a run that is over, by a task or a
        callback that has outlived it, it does nothing to a later run.

        Args:
            exc: The reason, if one is known.

        Raises:
            TypeError: `exc` is no exception.
        """
        if exc is not None and not isinstance(exc, BaseException):
            raise TypeError(f"exc must be an exception or None, not {type(exc).__name__}")
        run = self._run_of_caller()
        if run is not None and run.is_alive:
            run.lose_from_any_thread(exc)

    def _add_fact(self, fact: str) -> None:
        """Has what the transport knows noted on the error of this run, if it fails. For transports."""
        run = self._run_of_caller()
        if run is not None:
            run.add_fact(fact)

    def _run_of_caller(self) -> Run[object] | None:
        """The run that the calling code is a part of, else the current or last one."""
        life = self._life
        if life.loan is not None and life.is_lent:
            return life.loan[0]._run_of_caller()
        around = [run for run in runs_around_caller() if run.life is life]
        return around[-1] if around else cast("Run[object] | None", life.run)

    @asynccontextmanager
    async def open_inner(self, manager: "ConnectionManager[T]") -> AsyncGenerator[T]:
        """Opens another manager's connection inside the run of this one; for `open_connection()`.

        Both then live in one owner task. `connection_lost()` of the inner manager is that of this
        one for as long as its connection is open.

        Args:
            manager: The inner manager.

        Raises:
            RuntimeError: It is alive, or lent to another manager already.
        """
        life = manager._life
        if life.is_lent:
            raise RuntimeError(
                f"{manager.name}: already part of {life.borrower_name}; "
                "a manager can be part of one other manager at a time"
            )
        if life.run is not None and life.run.is_alive:
            raise RuntimeError(
                f"{manager.name}: cannot become part of {self.name} while it is running "
                f"(state: {manager.state.value}); call stop() first"
            )
        around = [run for run in runs_around_caller() if run.life is self._life]
        life.loan = loan = (self, around[-1] if around else None)
        try:
            async with checked(manager.open_connection()) as connection:
                yield connection
        finally:
            if life.loan is loan:
                life.loan = None


class _Life(Generic[T]):
    """The private state of a manager: its current or last run, and who makes use of it.

    Attributes:
        stops: How often `stop()` was called, which ends every `start()` that was queued before.
        entries: What `async with` has entered and not left: by which task, and which run.
        loan: To whom it is lent by `open_inner()`, and in which run, if in one.
    """

    def __init__(self) -> None:
        self.run: Run[T] | None = None
        self.stops = 0
        self.entries: list[tuple[int, Run[T]]] = []
        self.loan: tuple[ConnectionManager[object], Run[object] | None] | None = None

    @property
    def is_lent(self) -> bool:
        """Whether another manager has it open, and not in a run that has died with its loop."""
        return self.loan is not None and (self.loan[1] is None or self.loan[1].is_alive)

    @property
    def borrower_name(self) -> str:
        """The name of that manager."""
        assert self.loan is not None
        return self.loan[0].name


class _FactoryConnectionManager(ConnectionManager[T_co]):
    def __init__(
        self, factory: Callable[[], AbstractAsyncContextManager[T_co]], *, name: str | None
    ) -> None:
        if not callable(factory):
            raise TypeError(f"factory must be callable, not {type(factory).__name__}")
        factory_name = getattr(factory, "__name__", type(factory).__name__)
        super().__init__(name=f"from_factory({factory_name})" if name is None else name)
        self._factory = factory

    def open_connection(self) -> AbstractAsyncContextManager[T_co]:
        return self._factory()
