"""`ConnectionManager[T]`: the class that users call and transport authors subclass.

A manager does not hold a connection itself. Each cycle from opening to closed is a *run*, which has
its own owner task (`_owner.py`). The private state of the manager (`_life.py`) knows the current run.
This module documents the methods. `_starting.py` and `_stopping.py` contain what they do.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Final, Generic, Never, TypeVar, cast, final

from ._lending import lent
from ._life import Life, claiming
from ._owner import Run, current_event_loop
from ._reason import is_a
from ._starting import start, wait_open
from ._stopping import enter, exit_block, run_until_closed, stop
from ._waiting import over_for_good
from .errors import ManagerInUseError, NotConnectedError, OwnerTaskError
from .policy import Reconnecting, ReconnectPolicy
from .state import ConnectionState

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

__all__ = ["ConnectionManager"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

PROGRAMMING_ERRORS: Final = (TypeError, AttributeError, NameError, ImportError, NotImplementedError)
"""Only a change of the code makes them disappear."""


class ConnectionManager(ABC, Generic[T_co]):
    r"""Opens a connection in a dedicated task, so that any task can use it and any task can close it.

    Subclasses implement `open_connection()`, an async context manager. It is entered and exited in
    the *owner task*, which is not part of the caller's task groups and cancel scopes. When a
    connection ends, none of the application's tasks is cancelled. Only calls that use the connection
    or wait for it raise an error.

    After it has stopped or failed, a manager can be started again, even in another event loop. It can
    be created without a running event loop. Dropping the last reference to a manager does not stop it;
    shutting down its event loop does. Call the methods in the event loop in which the manager was
    started. The properties and `connection_lost()` may be used in any thread.

    Example:
        ```python
        from collections.abc import AsyncGenerator
        from contextlib import asynccontextmanager

        import anyio
        from anyio.abc import SocketStream
        from ownertask import ConnectionManager


        class TcpManager(ConnectionManager[SocketStream]):
            @asynccontextmanager
            async def open_connection(self) -> AsyncGenerator[SocketStream]:
                async with await anyio.connect_tcp("example.org", 80) as stream:
                    yield stream


        async def main() -> None:
            manager = TcpManager()
            stream = await manager.start()  # in any task
            await stream.send(b"HEAD / HTTP/1.0\r\n\r\n")
            print(await stream.receive())
            await manager.stop()  # in any other task


        anyio.run(main)
        ```
    """

    start_timeout: float | None = None
    """Maximum time for each attempt to open the connection, in seconds; `None` means no limit.

    `start()` reads the value when it begins the first attempt, and uses it for the attempts that follow.
    If the value is invalid, `start()` raises.
    """

    # Annotated only for type checkers, because Pydantic would turn annotations into fields of a model,
    # even if the model defines a method `watch`.
    if TYPE_CHECKING:
        reconnect: ReconnectPolicy | None = None
        """When to open the connection again after a failure; `None` means never.

        `start()` reads the policy when it begins the first attempt. If it is invalid, `start()` raises.
        """

        # pyright compares this type with the unbound method of a subclass, whose `self` is the `Never`.
        watch: (
            Callable[[T_co], Awaitable[object]] | Callable[[Never, T_co], Awaitable[object]] | None
        ) = None
        """Called with the connection when it opens. When it returns or raises, the connection is lost.

        It runs in a child task of the owner task while the connection is open. A subclass may define an
        async method of this name instead. `start()` reads the attribute when it begins the first
        attempt. If it is not callable, `start()` raises.
        """
    else:
        reconnect = None
        watch = None

    _name: str | None = None

    # The private state is created when it is first used, so that a subclass works even if it is a frozen
    # dataclass or a Pydantic model, or forgets to call super().__init__(). A copy of a manager may hold
    # the state of the original, and then creates its own.
    @property
    def _life(self) -> Life[T_co]:
        life: Life[T_co] | None = self.__dict__.get("_life")  # faster than vars()
        if life is None or life.manager() is not self:
            with claiming:
                life = vars(self).get("_life")
                if life is None or life.manager() is not self:  # no other thread was faster
                    life = Life(self)
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
        factory: Callable[[], AbstractAsyncContextManager[T]],
        *,
        name: str | None = None,
        start_timeout: float | None = None,
        reconnect: ReconnectPolicy | None = None,
        watch: Callable[[T], Awaitable[object]] | None = None,
    ) -> "ConnectionManager[T]":
        """Creates a manager for the async context managers that `factory` returns.

        Example:
            ```python
            @asynccontextmanager
            async def connect() -> AsyncGenerator[SocketStream]:
                async with await anyio.connect_tcp("example.org", 80) as stream:
                    yield stream

            manager = ConnectionManager.from_factory(connect, name="example", start_timeout=10)
            ```

        Args:
            factory: Returns an async context manager. Called once per run, in the owner task.
            name: See `ConnectionManager`. The default contains the name of the factory.
            start_timeout: Maximum time for each attempt to open the connection, in seconds; `None`
                means no limit.
            reconnect: When to open the connection again after a failure; `None` means never.
            watch: An async function that is called with each connection. When it returns or raises, the
                connection is lost.

        Raises:
            TypeError: `factory` or `watch` is not callable, or another argument has the wrong type.
            ValueError: `start_timeout` is negative or NaN.
        """
        from ._factory import FactoryConnectionManager  # a subclass of this class

        return FactoryConnectionManager(
            factory, name=name, start_timeout=start_timeout, reconnect=reconnect, watch=watch
        )

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

    def is_permanent(self, exc: BaseException) -> bool:
        """Returns whether trying again after a failure is pointless. Transport authors can override it.

        A manager with a `ReconnectPolicy` calls it, in the event loop, when the connection was lost or
        failed to open. If it returns `True`, the manager does not try again. The argument is the
        exception that was raised, or the cause of the loss if there is one. For an exception group, the
        manager asks about each exception in it. It also asks the managers that it opened with
        `open_inner()`. If the policy has a `give_up_on`, that function is called instead.

        This implementation returns `True` for programming errors: `TypeError`, `AttributeError`,
        `NameError`, `ImportError`, `NotImplementedError` and their subclasses. An override adds the
        errors that cannot disappear on their own, such as a wrong password, and otherwise returns the
        result of `super().is_permanent(exc)`.

        Example:
            ```python
            class DatabaseManager(ConnectionManager[Database]):
                def is_permanent(self, exc: BaseException) -> bool:
                    return isinstance(exc, WrongPasswordError) or super().is_permanent(exc)
            ```

        Args:
            exc: The exception. It is not an exception group.
        """
        return any(is_a(exc, kind) for kind in PROGRAMMING_ERRORS)

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
    def current(self) -> T_co:
        """An object that follows the manager through restarts, for code that keeps a connection.

        It passes each use on to the connection that is open at that moment. While the connection is
        being opened, or will be opened again, a method that returns a coroutine waits for it, as
        `wait_open()` does. Any other use raises the error that `connection` raises. The object opens
        nothing and repeats no call. If the connection is lost during a call, the exception that the call
        raises gets a note.

        The manager returns the same object each time. Before the first connection, `isinstance()` does
        not know the class of the connection, unless the manager has an attribute `connection_type`.

        Example:
            ```python
            session = manager.current  # may be kept: each call uses the connection that is then open
            result = await session.call_tool("add", {"a": 1, "b": 2})
            ```
        """
        return cast("T_co", self._life.current())

    @property
    def exception(self) -> BaseException | None:
        """The exception with which the last run failed. It is `None` unless the state is `FAILED`.

        It was raised while opening or closing the connection, or it is a `StartTimeoutError` (if
        `start_timeout` expired) or a `ConnectionLostError`.
        """
        run = self._life.run
        return None if run is None else run.exception

    @property
    def reconnecting(self) -> Reconnecting | None:
        """Describes why and when the connection is opened again.

        With a `ReconnectPolicy`, it is set during the delay after a failure and during the attempt that
        follows. The state is then `OPENING`. Otherwise, it is `None`.

        Example:
            ```python
            if (reconnecting := manager.reconnecting) is not None:
                seconds = max(0, reconnecting.due - anyio.current_time())
                print(f"next attempt in {seconds:.0f} s, because of: {reconnecting.exception}")
            ```
        """
        run = self._life.run
        return None if run is None else run.reconnecting

    @final
    async def start(self, timeout: float | None = None) -> T_co:
        """Opens the connection and returns it.

        If the connection is already open, returns it. If it is being opened, joins that attempt. If it
        is being closed, waits for the end of that run and then opens a new connection.

        Example:
            ```python
            session = await manager.start(timeout=10)
            print(await session.list_tools())
            ```

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
        return await start(self._life, timeout, is_kept=True)

    @final
    async def wait_open(self, timeout: float | None = None) -> T_co:
        """Waits until the connection is open, and returns it. Never opens it.

        If the connection is being opened, the call waits for it. If the connection is closing, the call
        waits only if another connection may follow: because of a `ReconnectPolicy`, or because a
        `start()` call is waiting for the end of the current run. Otherwise, the call returns or raises
        what `connection` returns or raises.

        Example:
            ```python
            session = await manager.wait_open(timeout=10)  # for example, while the server restarts
            print(await session.list_tools())
            ```

        Args:
            timeout: Maximum time to wait, in seconds; `None` waits indefinitely.

        Returns:
            The connection, which is open when the call returns.

        Raises:
            ConnectionLostError: The connection was lost and will not be opened again.
            NotConnectedError: The connection is not open, and is not being opened. `__cause__` is the
                `exception` of the last run, if it failed.
            StartTimeoutError: The connection did not open in time. `__cause__` is the last failure, if
                there was one.
            StopTimeoutError: The owner task of the last run is still running after it was cancelled.
            WrongEventLoopError: The manager is running in another event loop.
            OwnerTaskError: The call was made inside the connection that it would wait for.
            ValueError: `timeout` is negative or NaN.

        Cancellation:
            Does not affect the connection. This call does not count as waiting for an attempt: if all
            callers of `start()` go away, the attempt is cancelled.
        """
        opened = await wait_open(self._life, timeout)
        if opened is not None:
            return opened[0]
        # Otherwise, a caller that tries again and again would block the event loop.
        await current_event_loop().checkpoint()
        return self.connection

    @final
    async def stop(self, timeout: float | None = 30.0) -> None:
        """Closes the connection and waits until the owner task ends.

        May be called in any state and by any number of tasks. If the connection is being opened, the
        attempt is cancelled immediately. An exception that the connection raises while it closes is
        logged and available as `exception`, but is not raised here.

        A child task of the connection may also call it. If closing cancels that task, its call ends
        immediately, and `timeout` still applies to closing.

        Example:
            ```python
            await manager.stop(timeout=5)
            ```

        Args:
            timeout: Maximum time for closing, in seconds, before the owner task is cancelled; 0
                cancels it immediately, `None` never. In a child task of the
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
        await stop(self._life, timeout)

    @final
    async def run(self, *, task_status: "TaskStatus[T_co] | None" = None) -> None:
        """Opens the connection and keeps it open until it is stopped or lost, for use in a task group.

        Call it with `connection = await task_group.start(manager.run)`. If `stop()` closes the open
        connection, `run()` returns.

        Example:
            ```python
            async with anyio.create_task_group() as task_group:
                session = await task_group.start(manager.run)
                print(await session.list_tools())
                await manager.stop()  # otherwise, the block waits until the connection is lost
            ```

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
        if self._life.alive_run("run") is not None:
            raise ManagerInUseError(
                self.name,
                f"run() requires a manager that is not running (state: {self.state.value}); "
                "call stop() first",
            )
        await run_until_closed(self._life, task_status)

    async def __aenter__(self) -> T_co:
        """Starts the manager and returns the connection; see `start()`.

        Any number of `async with` blocks can use the manager at the same time. When the last one exits,
        it stops the manager. A connection that `start()` or `run()` opened stays open until `stop()` is
        called.

        Example:
            ```python
            async with manager as session:
                print(await session.list_tools())
            ```
        """
        return await enter(self._life)

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
        await exit_block(self._life)

    async def wait_closed(self) -> None:
        """Waits until the current run ends, and raises its `exception`, if there is one.

        Applications use it to detect a lost connection. If the manager is not running, the call refers
        to the last run and does not wait. If it was never started, the call returns immediately.

        Example:
            ```python
            try:
                await manager.wait_closed()
            except ConnectionLostError as error:
                print(error)  # the text contains the reason
            ```

        Raises:
            ConnectionLostError: The connection was lost.
            BaseException: The exception raised while opening or closing the connection; see `start()`.
            WrongEventLoopError: The manager is running in another event loop.
            OwnerTaskError: The caller is the owner task.

        Cancellation:
            Does not affect the connection.
        """
        run = self._life.alive_run("wait_closed")
        if run is not None:
            if run.is_owner_task():
                raise OwnerTaskError(self.name, "wait_closed")
            run = await over_for_good(run)
        elif (run := self._life.run) is None:
            return
        run.raise_exception()

    def connection_lost(self, exc: BaseException | None = None, *, connection: object = None) -> None:
        """Reports that the connection is dead: closes it and records the loss.

        May be called from any thread and from signal handlers, any number of times. If the connection is
        still being opened, the attempt is cancelled: `start()` raises a `ConnectionLostError` with `exc`
        as its cause. Without `exc`, it raises the exception that `open_connection()` raised, if any. If
        closing takes more than 30 seconds, the owner task is cancelled. If the manager is not running,
        or waits to open the connection again, the call does nothing.

        A late call by a task or callback of a run that is over does not affect a later run, whether the
        manager is used on its own or is part of another one. In a plain thread, which does not inherit
        context variables, such a call applies to the current run. Callers outside the connection should
        pass the `connection` that failed. Then any number of them can report the same connection, and
        only the first report has an effect.

        Example:
            ```python
            session = manager.connection
            try:
                print(await session.list_tools())
            except TimeoutError as error:
                manager.connection_lost(error, connection=session)
            ```

        Args:
            exc: The reason, if one is known. It becomes the `__cause__` of the `ConnectionLostError`,
                unless an earlier call gave one.
            connection: The connection that is dead. If it is no longer open, the call does nothing.
                `current` stands for the connection that is open. The default refers to the current run,
                even if it is still opening its connection.

        Raises:
            TypeError: `exc` is not an exception.
        """
        if exc is not None and not isinstance(exc, BaseException):
            raise TypeError(f"exc must be an exception or None, not {type(exc).__name__}")
        life = self._life
        run = life.run_of_caller() if connection is None else life.current_run
        if run is None or not run.is_alive:
            return
        if connection is None:
            run.command_from_any_thread(lambda: run.report_loss(exc))
        else:
            run.command_from_any_thread(lambda: run.lose(exc) if life.is_open(connection) else None)

    @final
    def add_listener(
        self, callback: "Callable[[ConnectionManager[T_co], ConnectionState, ConnectionState], object]"
    ) -> None:
        """Calls a function at each change of the state, for metrics and status pages.

        The function is called as `callback(manager, old_state, new_state)`, in the event loop of the
        connection and with the context variables of this call. Changes are announced in order. If a
        listener itself changes the state, that change is announced after the current one.

        `manager.state` can differ from `new_state`, because a listener may have changed it. With a
        `ReconnectPolicy`, the state is already `OPENING` when `FAILED` is announced, and `reconnecting`
        describes the failure.

        An exception that a listener raises is logged and affects nothing else. In a closed event loop
        and in a forked child, nothing is announced. A copy of the manager has no listeners.

        Example:
            ```python
            def show(
                manager: ConnectionManager[object], old: ConnectionState, new: ConnectionState
            ) -> None:
                print(f"{manager.name}: {old.value} -> {new.value}")

            manager.add_listener(show)
            ```

        Args:
            callback: The function. Adding it again has no effect.

        Raises:
            TypeError: `callback` is not callable, or is a coroutine function.
        """
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {type(callback).__name__}")
        from inspect import iscoroutinefunction  # slow to import, and few managers need it

        if iscoroutinefunction(callback):
            raise TypeError("callback must be a plain function, not a coroutine function")
        self._life.add_listener(callback)

    @final
    def remove_listener(
        self, callback: "Callable[[ConnectionManager[T_co], ConnectionState, ConnectionState], object]"
    ) -> None:
        """Stops calling a function that `add_listener()` added. Does nothing if it was not added."""
        self._life.remove_listener(callback)

    def _add_fact(self, fact: str) -> None:
        """Stores a note for the exception with which this run may fail. For transports."""
        run = self._run_of_caller()
        if run is not None:
            run.outcome.facts += (fact,)

    def _run_of_caller(self) -> Run[object] | None:
        return self._life.run_of_caller()

    @asynccontextmanager
    async def open_inner(self, manager: "ConnectionManager[T]") -> AsyncGenerator[T]:
        """Opens another manager's connection as part of this manager's run.

        Call it in this manager's `open_connection()`. Both connections then share one owner task, and
        `connection_lost()` of the inner manager applies to the run of this manager. The state of the
        inner manager does not change: its `connection` cannot be read, its `start()` raises, its
        `stop()` does nothing, and its `start_timeout` does not apply. A `watch` method of the inner
        manager's class runs.

        Example:
            ```python
            class ApiManager(ConnectionManager[Api]):
                def __init__(self, transport: ConnectionManager[SocketStream]) -> None:
                    super().__init__()
                    self.transport = transport

                @asynccontextmanager
                async def open_connection(self) -> AsyncGenerator[Api]:
                    async with self.open_inner(self.transport) as stream:
                        yield Api(stream)
            ```

        Args:
            manager: The inner manager.

        Raises:
            ManagerInUseError: The inner manager is running, or is already part of another manager.
            TypeError: `reconnect` or `watch` was set on the inner manager. Set it on the outer one.
        """
        async with lent(manager, manager._life, self.name, self._life) as connection:
            yield connection
