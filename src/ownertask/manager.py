"""`ConnectionManager[T]`: the class that users call and transport authors subclass.

A manager does not hold a connection itself. Each cycle from opening to closed is a *run*, which has
its own owner task (`_owner.py`). This module decides which run a call refers to, how long the caller
waits for it, and what happens to the run if the caller is cancelled.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import count
from types import BuiltinFunctionType, FunctionType, MethodType, TracebackType
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast, final

from ._arguments import checked_timeout
from ._call_stack import place
from ._leftovers import end_leftovers
from ._life import Life, Loan, claiming
from ._owner import STOP_TIMEOUT, Run, checked, current_event_loop, runs_around_caller
from .errors import (
    ConnectionStoppedError,
    ManagerInUseError,
    NotConnectedError,
    OwnerTaskError,
    WrongEventLoopError,
)
from .state import ConnectionState

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

__all__ = ["ConnectionManager"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class ConnectionManager(ABC, Generic[T_co]):
    """Opens a connection in a dedicated task, so that any task can use it and any task can close it.

    Subclasses implement `open_connection()`, an async context manager. It is entered and exited in
    the *owner task*, which is not part of the caller's task groups and cancel scopes. When a
    connection ends, none of the application's tasks is cancelled. Only calls that use the connection
    or wait for it raise an error.

    After it has stopped or failed, a manager can be started again, even in another event loop. It can
    be created without a running event loop. Dropping the last reference to a manager does not stop it;
    shutting down its event loop does. Call the methods in the event loop in which the manager was
    started. The properties and `connection_lost()` may be used in any thread.
    """

    start_timeout: float | None = None
    """Maximum time for each attempt to open the connection, in seconds; `None` means no limit.

    Each attempt reads it when it begins. `start()` raises if it is invalid.
    """

    _name: str | None = None

    # The private state is created when it is first used, so that a subclass works even if it is a frozen
    # dataclass or a Pydantic model, or forgets to call super().__init__(). A copy of a manager may hold
    # the state of the original, and then creates its own.
    @property
    def _life(self) -> Life[T_co]:
        life: Life[T_co] | None = vars(self).get("_life")
        if life is None or life.manager() is not self:
            with claiming:
                life = vars(self).get("_life")
                if life is None or life.manager() is not self:  # no other thread was faster
                    life = Life[T_co](self)
                    vars(self)["_life"] = life
        return life

    def __init__(self, *, name: str | None = None) -> None:
        """Creates a manager without opening a connection.

        Args:
            name: Identifies the manager in logs, in errors and in the name of the owner task. The
                default is the class name. Transports add their target, but never a credential.

        Raises:
            TypeError: `name` is not a string.
        """
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string or None, not {type(name).__name__}")
        self._name = name

    # A copy has only the configuration, because a run can be neither copied nor pickled.
    def __getstate__(self) -> object:
        state = super().__getstate__()
        if isinstance(state, tuple):  # __dict__ and the values of a subclass's __slots__
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
        """Creates a manager for the async context managers that `factory` returns.

        Args:
            factory: Returns an async context manager. Called once per run, in the owner task.
            name: See `ConnectionManager`. The default contains the name of the factory.

        Raises:
            TypeError: `factory` is not callable, or `name` is not a string.
        """
        return _FactoryConnectionManager(factory, name=name)

    @abstractmethod
    def open_connection(self) -> AbstractAsyncContextManager[T_co]:
        """Returns an async context manager that opens the connection, yields it, and closes it.

        The manager calls it once per run, in the owner task. You can also use it directly: `async with
        manager.open_connection()` opens and closes a connection in the calling task. Such a connection
        is not a run and does not change the manager's state. Do not start the manager while such a
        connection is open: a loss that the transport then reports would count as a loss of the run.

        To close the connection, the manager exits the context manager normally. A forced close also
        cancels the code inside it.
        """

    @property
    def name(self) -> str:
        """The name of the manager in logs, in errors and in the name of the owner task."""
        return self._name or type(self).__name__

    @property
    def state(self) -> ConnectionState:
        """The state of the manager."""
        run = self._life.run
        return ConnectionState.NEW if run is None else run.visible_state

    @property
    def connection(self) -> T_co:
        """The connection. It can be read only while the state is `OPEN`.

        Raises:
            WrongEventLoopError: It was read in another event loop. A thread without an event loop may
                read it.
            ConnectionLostError: The connection was lost. `__cause__` is the reason, if one is known.
            NotConnectedError: The connection is not open for another reason. `__cause__` is the
                `exception` of the last run, if it failed.
        """
        run = self._life.run
        if run is None:
            raise NotConnectedError(self.name, ConnectionState.NEW)
        return run.connection

    @property
    def exception(self) -> BaseException | None:
        """The exception with which the last run failed. It is `None` unless the state is `FAILED`.

        It was raised while opening or closing the connection, or it is a `StartTimeoutError` (if
        `start_timeout` expired) or a `ConnectionLostError`.
        """
        run = self._life.run
        return None if run is None else run.exception

    @final
    async def start(self, timeout: float | None = None) -> T_co:
        """Opens the connection and returns it.

        If the connection is already open, returns it. If it is being opened, joins that attempt. If it
        is being closed, waits for the end of that run and then opens a new connection.

        Args:
            timeout: Maximum time for this call to wait, in seconds, including the wait for a closing
                run; `None` waits indefinitely. `start_timeout` limits the attempt itself. The earlier
                of the two applies. If no other caller is waiting when `timeout` expires, the attempt
                is cancelled and fails with the `StartTimeoutError`. The call still waits for the
                cleanup, for at most 10 more seconds.

        Returns:
            The connection, which is open when the call returns.

        Raises:
            ConnectionStoppedError: `stop()` was called while this call was waiting.
            ConnectionLostError: The connection was lost before this call could return it.
            StartTimeoutError: The connection did not open in time.
            StopTimeoutError: The owner task of the last run is still running after it was cancelled.
            ManagerInUseError: The manager is part of another manager. Start that one instead.
            WrongEventLoopError: The manager is running in another event loop.
            OwnerTaskError: The call was made inside the connection that it would wait for: in its owner
                task, or in a child task while it opens.
            ValueError: `timeout` or `start_timeout` is negative or NaN.
            BaseException: The exception that `open_connection()` raised, with its type unchanged and a
                note that names the manager. An exception group that contains a single exception is
                raised as that exception.

        Cancellation:
            If no other caller is waiting for the attempt or has received its connection, the attempt is
            cancelled. The call then ends as soon as the owner task ends, which includes the transport's
            cleanup. If the owner task does not end within 10 seconds, this is logged at `ERROR`, and
            the call ends while the owner task is still running. Further cancellations do not shorten
            this wait. Other callers are not affected. A call that is still waiting for the last run to
            close ends immediately and changes nothing.
        """
        return await self._start(timeout, is_kept=True)

    async def _start(self, timeout: float | None, *, is_kept: bool) -> T_co:
        checked_timeout("timeout", timeout)
        life = self._life
        stops = life.stops
        deadline = None if timeout is None else current_event_loop().time() + timeout
        while (run := self._alive_run("start")) is not None and run.state is ConnectionState.CLOSING:
            await self._wait_for_close(run, stops, timeout, deadline)
        if life.stops != stops:
            raise ConnectionStoppedError(self.name)
        if run is None:
            return await self._join(self._begin(is_kept=is_kept), timeout, deadline, keeps=is_kept)
        if (received := run.received_connection()) is not None:
            return received[0]
        if run.surrounds_caller():
            raise OwnerTaskError(self.name, "start")
        return await self._join(run, timeout, deadline, keeps=False)

    async def _wait_for_close(
        self, run: Run[T_co], stops: int, timeout: float | None, deadline: float | None
    ) -> None:
        if run.is_owner_task():
            raise OwnerTaskError(self.name, "start")
        if run.gave_up:
            if self._life.stops != stops:
                raise ConnectionStoppedError(self.name)
            raise run.stop_timeout_error()
        if timeout is not None and run.has_passed(deadline):
            raise run.start_timeout_error(timeout)
        if run.surrounds_caller():
            run.force_within(STOP_TIMEOUT)  # closing may wait for the caller
        await run.changed(deadline)

    def _alive_run(self, method: str) -> Run[T_co] | None:
        end_leftovers()
        run = self._life.run
        if run is None or not run.is_alive:
            return None
        if not run.is_in_this_loop():
            raise WrongEventLoopError(self.name, f"{method}() was called")
        return run

    def _begin(self, *, is_kept: bool) -> Run[T_co]:
        life = self._life
        start_timeout = checked_timeout("start_timeout", self.start_timeout)
        with claiming:
            if life.borrower is not None:
                raise ManagerInUseError(
                    self.name,
                    f"cannot be started on its own because it is part of {life.borrower}; "
                    "start that manager instead",
                )
            self._alive_run("start")  # raises if a thread with another event loop was faster
            life.run = run = Run(
                life.key, self.name, self.open_connection, start_timeout, is_kept=is_kept
            )
        run.log_opening()
        return run

    async def _join(
        self, run: Run[T_co], timeout: float | None, deadline: float | None, *, keeps: bool
    ) -> T_co:
        """Waits for an attempt to succeed or, if it fails, for its owner task to end.

        Args:
            run: The attempt.
            timeout: The caller's timeout.
            deadline: The time at which it expires.
            keeps: Whether this call keeps the connection open after the last block exits.
        """
        cancellation: BaseException | None = None
        run.starters += 1
        try:
            while run.state is ConnectionState.OPENING and not run.has_passed(deadline):
                await run.changed(deadline)
            # Other tasks may have stopped or lost it since the wake-up, so check again.
            if (received := run.received_connection()) is not None:
                return received[0]
            if run.state is not ConnectionState.OPENING:
                await run.over_or_given_up(deadline)
        except run.cancelled_type as exc:
            cancellation = exc
        finally:
            run.starters -= 1
        if run.starters == 0 and not run.received and not run.is_over and not run.gave_up:
            if timeout is not None and cancellation is None:
                run.expire(timeout)
            cancellation = await run.seen_through() or cancellation
        elif keeps and self._life.blocks.need(cast("Run[object]", run)):
            run.is_kept = False
        # Raise it outside the `except` block, in which a second, native cancellation would look like
        # anyio's.
        if cancellation is not None:
            raise cancellation
        if timeout is None or run.is_over or run.gave_up:
            run.raise_for_starter()
        raise run.start_timeout_error(timeout)

    @final
    async def stop(self, timeout: float | None = STOP_TIMEOUT) -> None:
        """Closes the connection and waits until the owner task ends.

        May be called in any state and by any number of tasks. If the connection is being opened, the
        attempt is cancelled immediately. An exception that the connection raises while it closes is
        logged and available as `exception`, but is not raised here.

        A child task of the connection may also call it. If closing cancels that task, its call ends
        immediately, and `timeout` still applies to closing.

        Args:
            timeout: Maximum time for closing, in seconds, before the owner task is cancelled. The
                default is 30; 0 cancels it immediately, `None` never. In a child task of the
                connection, 30 is the maximum, because closing may wait for that task. If several calls
                are waiting, the earliest deadline applies. After the owner task is cancelled, the call
                waits at most 10 more seconds for it to end.

        Raises:
            StopTimeoutError: The owner task is still running 10 seconds after it was cancelled.
            WrongEventLoopError: The manager is running in another event loop.
            OwnerTaskError: The caller is the owner task.
            ValueError: `timeout` is negative or NaN.

        Cancellation:
            Cancels the owner task as well, and waits at most 10 seconds for it to end before the
            cancellation propagates. On asyncio, a second native `cancel()` ends that wait, and the
            owner task finishes on its own.
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
        elif run.surrounds_caller():
            # Closing may wait for the caller, so only its cancellation ends that wait.
            timeout = STOP_TIMEOUT if timeout is None else min(timeout, STOP_TIMEOUT)
        run.close()
        try:
            await run.over(timeout)
            if not run.is_over:
                await run.forced()
        except run.cancelled_type:
            if run.surrounds_caller():
                # Closing the connection cancels the caller itself. The timeout still applies.
                run.force_within(timeout)
            else:
                await run.forced_shielded()
            raise
        if not run.is_over:
            raise run.stop_timeout_error()

    @final
    async def run(self, *, task_status: "TaskStatus[T_co] | None" = None) -> None:
        """Opens the connection and keeps it open until it is stopped or lost, for use in a task group.

        Call it with `connection = await task_group.start(manager.run)`. If `stop()` closes the open
        connection, `run()` returns.

        Args:
            task_status: Receives the connection. A task group's `start()` passes it.

        Raises:
            ManagerInUseError: The manager is already running, or is part of another manager.
            ConnectionStoppedError: `stop()` was called while the connection was opening.
            ConnectionLostError: The connection was lost.
            BaseException: The exception raised while opening or closing the connection; see `start()`
                for this and for other errors.

        Cancellation:
            Closes the connection as a cancelled `stop()` does. This does not count as a loss.
        """
        if self._alive_run("run") is not None:
            raise ManagerInUseError(
                self.name,
                f"run() requires a manager that is not running (state: {self.state.value}); "
                "call stop() first",
            )
        connection = await self.start()
        run = cast("Run[T_co]", self._life.run)
        if task_status is not None:
            try:
                task_status.started(connection)
            except BaseException:
                await self._stop(run, STOP_TIMEOUT)
                raise
        try:
            await run.over()
        except run.cancelled_type:
            await run.forced_shielded()
            raise
        run.raise_exception()

    async def __aenter__(self) -> T_co:
        """Starts the manager and returns the connection; see `start()`.

        Any number of `async with` blocks can use the manager at the same time. When the last one exits,
        it stops the manager. A connection that `start()` or `run()` opened stays open until `stop()` is
        called.
        """
        self._alive_run("start")
        life = self._life
        waiting = life.blocks.wait(current_event_loop())
        try:
            connection = await self._start(None, is_kept=False)
        except (Exception, waiting.loop.cancelled_type) as exc:  # noqa: BLE001 - raised below
            error: BaseException = exc
        else:
            life.blocks.enter(waiting, cast("Run[object]", life.run))
            return connection
        finally:
            life.blocks.give_up(waiting)
        # The last block may have exited in the meantime. It did not stop the run because of this block.
        run = life.run
        try:
            if run is not None and run.is_in(waiting.loop) and self._is_left(run):
                error = await run.seen_through() or error
            raise error
        finally:
            del error  # breaks a reference cycle through this frame

    def _is_left(self, run: Run[T_co]) -> bool:
        """Returns whether an alive run was opened by `async with` blocks that have all exited."""
        blocks = self._life.blocks
        return run.is_alive and not run.is_kept and blocks.have_finished(cast("Run[object]", run))

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Exits a block. If it was the last one, stops the run that the blocks opened; see `stop()`.

        Any task may exit the block. If the task entered no block, the exit counts for a block whose run
        is over or, if there is none, for the oldest block. Closing may take 30 seconds before the owner
        task is cancelled.

        Raises:
            StopTimeoutError: The owner task is still running 10 seconds after it was cancelled.
            WrongEventLoopError: The manager is running in another event loop.
            OwnerTaskError: The caller is the owner task.
        """
        run = self._alive_run("stop")
        if run is not None and run.is_owner_task():
            raise OwnerTaskError(self.name, "stop")
        belongs = self._life.blocks.exit(current_event_loop().current_task())
        if belongs and run is not None and self._is_left(run):
            await self._stop(run, STOP_TIMEOUT)

    async def wait_closed(self) -> None:
        """Waits until the current run ends, and raises its `exception`, if there is one.

        Applications use it to detect a lost connection. If the manager is not running, the call refers
        to the last run and does not wait. If it was never started, the call returns immediately.

        Raises:
            ConnectionLostError: The connection was lost.
            BaseException: The exception raised while opening or closing the connection; see `start()`.
            WrongEventLoopError: The manager is running in another event loop.
            OwnerTaskError: The caller is the owner task.

        Cancellation:
            Does not affect the connection.
        """
        run = self._alive_run("wait_closed")
        if run is not None:
            if run.is_owner_task():
                raise OwnerTaskError(self.name, "wait_closed")
            await (run.over_inside() if run.surrounds_caller() else run.over())
        elif (run := self._life.run) is None:
            return
        run.raise_exception()

    def connection_lost(self, exc: BaseException | None = None) -> None:
        """Reports that the connection is dead: closes it and records the loss. For transport authors.

        May be called from any thread and from signal handlers, any number of times. If the connection is
        still being opened, the attempt is cancelled: `start()` raises a `ConnectionLostError` with `exc`
        as its cause. Without `exc`, it raises the exception that `open_connection()` raised, if any. If
        closing takes more than 30 seconds, the owner task is cancelled. If the manager is not running,
        the call does nothing.

        A late call by a task or callback of a run that is over does not affect a later run, whether the
        manager is used on its own or is part of another one. In a plain thread, which does not inherit
        context variables, such a call applies to the current run.

        Args:
            exc: The reason, if one is known. It becomes the `__cause__` of the `ConnectionLostError`,
                unless an earlier call gave one.

        Raises:
            TypeError: `exc` is not an exception.
        """
        if exc is not None and not isinstance(exc, BaseException):
            raise TypeError(f"exc must be an exception or None, not {type(exc).__name__}")
        run = self._life.run_of_caller()
        if run is not None and run.is_alive:
            run.command_from_any_thread(lambda: run.lose(exc))

    def _add_fact(self, fact: str) -> None:
        """Stores a note for the exception with which this run may fail. For transports."""
        run = self._run_of_caller()
        if run is not None:
            run.add_fact(fact)

    def _run_of_caller(self) -> Run[object] | None:
        return self._life.run_of_caller()

    @asynccontextmanager
    async def open_inner(self, manager: "ConnectionManager[T]") -> AsyncGenerator[T]:
        """Opens another manager's connection as part of this manager's run.

        Call it in this manager's `open_connection()`. Both connections then share one owner task, and
        `connection_lost()` of the inner manager applies to the run of this manager. The state of the
        inner manager does not change: its `connection` cannot be read, its `start()` raises, its
        `stop()` does nothing, and its `start_timeout` does not apply.

        Args:
            manager: The inner manager.

        Raises:
            ManagerInUseError: The inner manager is running, or is already part of another manager.
        """
        life = manager._life
        own = self._life
        runs = [run for run in runs_around_caller() if own.key in run.parts]
        run = runs[-1] if runs and runs[-1].is_alive and runs[-1].is_in_this_loop() else None
        with claiming:
            if life.borrower is not None:
                raise ManagerInUseError(
                    manager.name,
                    f"already part of {life.borrower}; "
                    "a manager can be part of only one other manager at a time",
                )
            if life.run is not None and life.run.is_alive:
                raise ManagerInUseError(
                    manager.name,
                    f"cannot become part of {self.name} while it is running "
                    f"(state: {manager.state.value}); call stop() first",
                )
            life.loan = loan = Loan(self.name, run, current_event_loop())
        if run is not None:
            run.parts.add(life.key)
        try:
            async with checked(manager.open_connection()) as connection:
                yield connection
        finally:
            if life.loan is loan:
                life.loan = None


_serial_numbers: Final = count(1)


class _FactoryConnectionManager(ConnectionManager[T_co]):
    def __init__(
        self, factory: Callable[[], AbstractAsyncContextManager[T_co]], *, name: str | None
    ) -> None:
        if not callable(factory):
            raise TypeError(f"factory must be callable, not {type(factory).__name__}")
        self._factory_name = _name_of(factory)
        super().__init__(name=f"from_factory({self._factory_name})" if name is None else name)
        self._factory = factory

    def open_connection(self) -> AbstractAsyncContextManager[T_co]:
        return checked(self._factory(), self._factory_name)


def _name_of(factory: object) -> str:
    """Returns the name of a function. Other factories get a number, because many may look the same."""
    function = factory
    for _ in range(9):  # a partial may contain itself
        if isinstance(function, partial):
            function = cast("partial[object]", function).func
        elif isinstance(function, MethodType):
            function = function.__func__
    is_named = isinstance(function, FunctionType | BuiltinFunctionType | type)
    name = str(getattr(function if is_named else type(function), "__name__", "?"))
    if isinstance(function, FunctionType) and name == "<lambda>":
        name = f"<lambda> in {place(function.__code__, function.__code__.co_firstlineno)}"
    elif is_named and function is factory:
        return name
    return f"{name} #{next(_serial_numbers)}"
