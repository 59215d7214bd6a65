"""`ConnectionPool`: connections by key, opened on demand, shared, and closed when they are idle.

Each connection of a pool has a *slot* from the time at which it begins to open until its owner task
ends. `max_open` is the number of slots. All decisions are made in synchronous code, so that no other
task sees an intermediate state: a slot is neither lost nor given away twice, and a connection that a
user receives is not being closed.
"""

from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from inspect import iscoroutine
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar, cast

from anyio import CancelScope, Event, create_task_group, sleep_until
from anyio.abc import TaskGroup
from typing_extensions import override

from ._arguments import checked_count, checked_timeout
from ._copying import attributes_in
from ._failure import Failure
from ._members import Member, Members
from ._reason import is_a
from .errors import (
    ConnectionLostError,
    ConnectionStoppedError,
    NotConnectedError,
    StartTimeoutError,
    StopTimeoutError,
    WrongEventLoopError,
)
from .manager import ConnectionManager
from .state import ConnectionState

if TYPE_CHECKING:
    from ._life import Life

__all__ = ["ConnectionPool", "PoolStats"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


class PoolStats(NamedTuple):
    """Numbers of a `ConnectionPool`, for metrics.

    Attributes:
        open: The number of open connections, including the idle ones.
        idle: The number of open connections that nobody uses.
        waiting: The number of `acquire()` calls that are waiting for a connection.
        opened: The number of connections that were opened since the pool was created.
        failed: The number of attempts to open a connection that failed since the pool was created.
    """

    open: int
    idle: int
    waiting: int
    opened: int
    failed: int


class ConnectionPool(ConnectionManager["ConnectionPool[K, T]"], Generic[K, T]):
    """Opens a connection when its key is first used, shares it, and closes it after it has been idle.

    For applications with many tenants. The key identifies the tenant, and all requests of a tenant share
    a connection. Start the pool before the first use. Its connection is the pool itself.

    Example:
        ```python
        def session_of(tenant: str) -> SessionConnectionManager:
            headers = {"Authorization": f"Bearer {tokens[tenant]}"}
            return SessionConnectionManager(
                StreamableHttpConnectionManager("http://localhost:8000/mcp", headers=headers)
            )

        pool = ConnectionPool(session_of, max_open=100)
        async with pool:  # while your application runs
            async with pool.acquire("tenant 1") as session:  # in each request
                print(await session.list_tools())
        ```
    """

    def __init__(
        self,
        open: Callable[[K], ConnectionManager[T]],  # noqa: A002 - the word that users look for
        *,
        max_open: int | None = None,
        idle_timeout: float | None = 300.0,
        name: str | None = None,
    ) -> None:
        """Creates a pool without opening a connection.

        Args:
            open: Called with the key to create the manager of each connection. Returns a manager that is
                not running, normally a new one. It runs with the context variables of the pool's
                `start()` call, not of the user.
            max_open: Maximum number of connections that are open, being opened or being closed; `None`
                means no limit.
            idle_timeout: The time after which an unused connection is closed, in seconds; `None` keeps
                it open, unless it has to make room; 0 closes it after its last user.
            name: See `ConnectionManager`.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: `max_open` is not positive, or `idle_timeout` is negative or NaN.
        """
        super().__init__(name=name)
        if not callable(open):
            raise TypeError(f"open must be callable, not {type(open).__name__}")
        self._open = open
        self.max_open: int | None = checked_count("max_open", max_open)
        self.idle_timeout: float | None = checked_timeout("idle_timeout", idle_timeout)
        self._opened = self._failed = 0
        self._open_pool: _OpenPool[K, T] | None = None

    @override
    def __getstate__(self) -> object:
        state = super().__getstate__()
        attributes_in(state).update(_opened=0, _failed=0, _open_pool=None)
        return state

    @override
    @asynccontextmanager
    async def open_connection(self) -> "AsyncGenerator[ConnectionPool[K, T]]":
        with Members[T](self.name, self._life) as members:
            async with create_task_group() as task_group:
                self._open_pool = open_pool = _OpenPool(self, self._create, members, task_group)
                if open_pool.idle_timeout < inf:
                    task_group.start_soon(open_pool.close_idle)
                try:
                    yield self
                finally:
                    try:
                        await open_pool.close()
                    finally:
                        self._opened += open_pool.opened
                        self._failed += open_pool.failed
                        if self._open_pool is open_pool:  # not started again after its loop was closed
                            self._open_pool = None
                    task_group.cancel_scope.cancel()

    def acquire(self, key: K, timeout: float | None = None) -> AbstractAsyncContextManager[T]:
        """Returns a context manager that yields the connection for `key` and shares it with other users.

        Use it with `async with pool.acquire(key) as connection`. If the connection is open, entering
        does not wait. Otherwise, entering opens the connection or waits for the attempt of another user.
        If `max_open` connections exist, the least recently used idle connection is closed to make room.
        If none is idle, entering waits. Keys are served in the order in which they were requested.

        If the connection is lost, the block is not cancelled, but calls on the connection fail. The next
        user gets a new connection.

        Example:
            ```python
            async with pool.acquire("tenant 1", timeout=10) as session:
                print(await session.list_tools())
            ```

        Args:
            key: Identifies the connection. It must contain everything on which the connection depends,
                such as the tenant and the user. It does not appear in logs or errors.
            timeout: Maximum time for entering, in seconds, including the wait for room; `None` waits
                indefinitely.

        Raises:
            NotConnectedError: The pool is not open. If it was lost, `__cause__` is the error.
            ValueError: `timeout` is negative or NaN.
            WrongEventLoopError: The pool is running in another event loop. This error and the following
                ones are raised on entering.
            StartTimeoutError: `timeout` expired.
            ConnectionStoppedError: The pool or the connection was stopped in the meantime.
            ManagerInUseError: The manager that `open` returned is running or is part of another manager.
            TypeError: `open` did not return a `ConnectionManager`.
            BaseException: The exception that opening the connection raised. It is raised in all users
                that wait for the attempt. The next user tries again.

        Cancellation:
            If no other user is waiting for the attempt, the attempt is cancelled; see `start()`.
        """
        open_pool = self._open_pool
        if open_pool is None or open_pool.is_closing:
            raise NotConnectedError(self.name, self.state) from self.exception
        return _Use(open_pool, key, timeout if timeout is None else checked_timeout("timeout", timeout))

    async def discard(self, key: K) -> None:
        """Gives new users of a key a new connection, for example because credentials have changed.

        If nobody uses the current connection, it is closed before the call returns. Otherwise, it is
        closed after its last user. If the key has no connection, or the pool is not open, the call does
        nothing.

        Example:
            ```python
            tokens["tenant 1"] = "new token"
            await pool.discard("tenant 1")
            ```

        Args:
            key: The key of the connection.

        Raises:
            StopTimeoutError: The unused connection could not be closed.
            WrongEventLoopError: The pool is running in another event loop.

        Cancellation:
            Cancels the owner task of the unused connection, and waits for its end.
        """
        open_pool = self._open_pool
        if open_pool is not None and open_pool.is_alive:
            open_pool.check_current("discard")
            await open_pool.discard(key)

    def stats(self) -> PoolStats:
        """Returns the current numbers of connections and waiting calls, and the totals.

        Example:
            ```python
            stats = pool.stats()
            print(f"{stats.open} open, {stats.idle} of them idle, {stats.waiting} calls waiting")
            ```
        """
        open_pool = self._open_pool
        if open_pool is None or not open_pool.is_alive:
            return PoolStats(0, 0, 0, self._opened, self._failed)
        return PoolStats(
            *open_pool.numbers(), self._opened + open_pool.opened, self._failed + open_pool.failed
        )

    def _create(self, key: K) -> "tuple[ConnectionManager[T], Life[T]]":
        manager = self._open(key)
        if not isinstance(manager, ConnectionManager):
            if iscoroutine(manager):
                manager.close()  # prevents the warning that it was never awaited
            raise TypeError(f"open() must return a ConnectionManager, not {type(manager).__name__}")
        return manager, manager._life


class _Entry(Generic[K, T]):
    """A connection of the pool, from its place in the queue to its end.

    Attributes:
        users: The number of blocks that use the connection or wait for it.
        turn: Set when it gets a slot; `None` if it got one at once.
        has_slot: Whether it has a slot.
        member: The membership of its manager in the pool, after the manager was created.
        has_begun: Whether the manager made an attempt to open the connection.
        was_open: Whether its newest attempt succeeded.
        is_open: Whether the connection is open.
        connection: The connection, while it is open.
        is_discarded: Whether it is closed after its last user.
        failure: Why the manager could not be created or started.
        is_gone: Whether it is over or being closed.
    """

    __slots__ = (
        "connection",
        "failure",
        "has_begun",
        "has_slot",
        "is_discarded",
        "is_gone",
        "is_open",
        "key",
        "member",
        "pool",
        "turn",
        "users",
        "was_open",
    )

    def __init__(self, key: K, pool: "_OpenPool[K, T]") -> None:
        self.key = key
        self.pool = pool
        self.users = 0
        self.turn: Event | None = None
        self.has_slot = self.has_begun = self.was_open = False
        self.is_open = self.is_discarded = self.is_gone = False
        self.failure: Failure | None = None
        self.member: Member[T] | None = None
        self.connection: T | None = None

    def changed(self, manager: ConnectionManager[T], old: ConnectionState, new: ConnectionState) -> None:
        """Reports a change of the manager's state to the pool."""
        self.pool.changed(self, manager, old, new)


class _OpenPool(Generic[K, T]):
    """A pool while it is open.

    Attributes:
        open: The entries that new users can use at once.
        idle: The entries that nobody uses, with the time when each will be closed. The least recently
            used one is the first.
        loop: The event loop.
        idle_timeout: The time after which an unused connection is closed, in seconds.
        opened: The number of connections that were opened.
        failed: The number of attempts that failed.
        is_closing: Whether the pool gives out no more connections.
    """

    def __init__(
        self,
        pool: ConnectionPool[K, T],
        create: "Callable[[K], tuple[ConnectionManager[T], Life[T]]]",
        members: Members[T],
        task_group: TaskGroup,
    ) -> None:
        self.open: dict[K, _Entry[K, T]] = {}
        self.idle: dict[_Entry[K, T], float] = {}
        self.loop = members.loop
        self.opened = self.failed = 0
        self._pool = pool
        self._create = create
        self._members = members
        self._task_group = task_group
        self.is_closing = False
        self._entries: dict[K, _Entry[K, T]] = {}  # that new users join
        self._queue: dict[_Entry[K, T], None] = {}  # without a slot, oldest first
        self._idle_again: Event | None = None  # for the task that closes idle connections
        self.idle_timeout = inf if pool.idle_timeout is None else pool.idle_timeout
        self._slots = 0
        self._leaving = 0
        self._open = 0
        self._waiting = 0

    @property
    def is_alive(self) -> bool:
        """`True` unless the run of the pool is over."""
        return self._members.is_alive

    def check_current(self, method: str) -> None:
        """Raises an error unless the caller runs in the event loop of the pool."""
        if not self.loop.is_current():
            if self.is_alive:
                raise WrongEventLoopError(self._pool.name, f"{method}() was called")
            raise NotConnectedError(self._pool.name, self._pool.state)

    def numbers(self) -> tuple[int, int, int]:
        """Returns the numbers of open connections, idle connections, and waiting calls."""
        return self._open, sum(entry.is_open for entry in tuple(self.idle)), self._waiting

    # For users.

    async def enter(self, key: K, timeout: float | None) -> _Entry[K, T]:
        """Waits until the entry of a key is open, makes the caller its user, and returns the entry."""
        deadline = None if timeout is None else self.loop.time() + timeout
        remaining = timeout
        while True:
            entry = self._join(key)
            self._waiting += 1
            try:
                if not entry.has_slot:
                    await self._wait_for_slot(entry, timeout, deadline)
                    remaining = None if deadline is None else max(0.0, deadline - self.loop.time())
                if await self._is_opened(entry, remaining):
                    return entry
            except StartTimeoutError as error:
                self.leave(entry)
                expired = getattr(error, "timeout", None)  # a transport may omit it
                if timeout is None or expired != remaining or remaining == timeout:
                    raise
                raise StartTimeoutError(self._pool.name, timeout, f"; {error}") from error
            except BaseException:
                self.leave(entry)
                raise
            finally:
                self._waiting -= 1
            # It ended before this call could use it.
            self.leave(entry)
            remaining = None if deadline is None else max(0.0, deadline - self.loop.time())

    def leave(self, entry: _Entry[K, T]) -> None:
        """Stops counting a user. An entry without users is closed, or becomes idle."""
        entry.users -= 1
        if entry.users:
            return
        if entry.is_gone:
            entry.failure = None  # breaks a reference cycle through the frames in its traceback
            return
        is_idle = entry.has_begun and not entry.is_discarded
        if is_idle:
            self.idle[entry] = self.loop.time() + self.idle_timeout
            if self._idle_again is None and not self._queue:
                return  # the usual case
        if not self.loop.is_current():
            return  # the garbage collector ends the block after the event loop was closed
        if is_idle:
            if self._idle_again is not None:
                self._idle_again.set()
                self._idle_again = None
            self._give_slots()
        elif entry.has_begun:
            self._close(entry)
        elif entry.has_slot:
            self._end(entry)  # its only user was cancelled when the entry got its slot
        else:
            del self._queue[entry], self._entries[entry.key]

    def _join(self, key: K) -> _Entry[K, T]:
        if self.is_closing:
            raise ConnectionStoppedError(self._pool.name, "acquire()")
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(key, self)
            self._queue[entry] = None
            self._give_slots()
            if not entry.has_slot:
                entry.turn = Event()
        if not entry.users:
            self.idle.pop(entry, None)
        entry.users += 1
        return entry

    async def _wait_for_slot(
        self, entry: _Entry[K, T], timeout: float | None, deadline: float | None
    ) -> None:
        assert entry.turn is not None
        if deadline is None:  # the garbage collector cannot exit a scope outside its loop
            await entry.turn.wait()
            return
        with CancelScope(deadline=deadline):
            await entry.turn.wait()
        if not entry.turn.is_set():
            assert timeout is not None
            detail = f"; all connections are in use (max_open: {self._pool.max_open})"
            raise StartTimeoutError(self._pool.name, timeout, detail)

    async def _is_opened(self, entry: _Entry[K, T], timeout: float | None) -> bool:
        """Waits until an entry is open. Returns `False` if it ended instead."""
        if self.is_closing:
            raise ConnectionStoppedError(self._pool.name, "acquire()")
        if entry.failure is not None:
            entry.failure.raise_()
        if entry.is_gone:
            return False
        try:
            await self._open_entry(entry, timeout)
        except BaseException as error:
            if not entry.has_begun:
                self.failed += 1
                if is_a(error, Exception):
                    entry.failure = Failure(error, is_ours=False)
                self._end(entry)
                await self.loop.checkpoint()  # a caller that tries again must not block the event loop
            raise
        return entry.is_open

    async def _open_entry(self, entry: _Entry[K, T], timeout: float | None) -> None:
        if entry.member is None:
            # A listener keeps the context in which it was added, which must not be that of the user.
            context = self._members.context.copy()
            [entry.member] = self._members.claim([context.run(self._create, entry.key)])
            context.run(entry.member.manager.add_listener, entry.changed)
        manager = entry.member.manager
        if not entry.has_begun or manager.state is OPENING:
            await manager.start(timeout)
        else:  # it may have been lost, and a policy may open it again
            try:
                await manager.wait_open(timeout)
            except (ConnectionLostError, NotConnectedError):  # it will not be opened again
                self._detach(entry)
            else:
                if not entry.is_open:
                    # Another listener of the manager runs this task eagerly. Without a checkpoint, the
                    # caller would try again forever.
                    await self.loop.checkpoint()

    # Slots.

    def _give_slots(self) -> None:
        """Gives free slots to the entries in the queue, and closes idle connections if needed."""
        limit = self._pool.max_open
        while self._queue:
            if limit is None or self._slots < limit:
                entry = next(iter(self._queue))
                del self._queue[entry]
                self._slots += 1
                entry.has_slot = True
                if entry.turn is not None:
                    entry.turn.set()
            elif self.idle and self._leaving < len(self._queue):
                self._close(next(iter(self.idle)))
            else:
                break

    def changed(
        self,
        entry: _Entry[K, T],
        manager: ConnectionManager[T],
        old: ConnectionState,
        new: ConnectionState,
    ) -> None:
        """Follows the state of an entry's manager."""
        if new is OPENING:
            entry.has_begun, entry.was_open = True, False
        elif new is OPEN:
            self._has_opened(entry, manager)
        elif new is CLOSING:
            if old is OPEN:
                self._open -= 1
                self._hide(entry)
            assert entry.member is not None
            assert entry.member.life.run is not None
            if entry.member.life.run.series.policy is None:  # no other run follows
                self._detach(entry)
        else:
            self.failed += new is FAILED and not entry.was_open
            if manager.state is new:  # no other run follows
                self._end(entry)

    def _has_opened(self, entry: _Entry[K, T], manager: ConnectionManager[T]) -> None:
        self.opened += 1
        self._open += 1
        entry.was_open = True
        if manager.state is OPEN:  # no other listener closed it
            entry.is_open, entry.connection = True, manager.connection
            # From now on, a user can enter without start(). So the connection must stay open even if
            # all callers of start() were cancelled in this iteration of the event loop.
            assert entry.member is not None
            assert entry.member.life.run is not None
            entry.member.life.run.received_connection()
            if self._entries.get(entry.key) is entry:
                self.open[entry.key] = entry

    def _hide(self, entry: _Entry[K, T]) -> None:
        entry.is_open, entry.connection = False, None
        if self.open.get(entry.key) is entry:
            del self.open[entry.key]

    def _detach(self, entry: _Entry[K, T]) -> None:
        """Ensures that an entry gets no new users, and that its manager is not started again."""
        entry.is_gone = True
        self._hide(entry)
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
        self.idle.pop(entry, None)
        if entry.member is not None:
            entry.member.refuses_start = True

    def _end(self, entry: _Entry[K, T]) -> None:
        """Frees the slot of an entry after the last run of its manager."""
        self._detach(entry)
        if entry.member is not None:
            entry.member.manager.remove_listener(entry.changed)
            entry.member.release()
        entry.has_slot = False
        self._slots -= 1
        self._give_slots()

    # Closing.

    def _close(self, entry: _Entry[K, T]) -> None:
        """Closes the connection of an entry in a task of the pool."""
        self._detach(entry)
        self._leaving += 1
        context = self._members.context.copy()  # the user may be part of another run
        context.run(self._task_group.start_soon, self._stop_quietly, entry)

    async def _stop(self, entry: _Entry[K, T]) -> None:
        assert entry.member is not None
        try:
            await entry.member.manager.stop()
        finally:
            self._leaving -= 1
            self._give_slots()

    async def _stop_quietly(self, entry: _Entry[K, T]) -> None:
        with suppress(StopTimeoutError):  # the manager has logged it
            await self._stop(entry)

    async def discard(self, key: K) -> None:
        """Replaces the entry that new users of a key join. Closes the old one when it is unused."""
        entry = self._entries.get(key)
        if entry is None or not entry.has_slot:
            return
        if entry.users:
            entry.is_discarded = True
            del self._entries[key]
            self.open.pop(key, None)
        else:
            self._detach(entry)
            self._leaving += 1
            await self._stop(entry)

    async def close_idle(self) -> None:
        """Closes each connection when its idle time is over. Runs until it is cancelled."""
        while True:
            if not self.idle:
                self._idle_again = Event()
                await self._idle_again.wait()
            elif (due := next(iter(self.idle.values()))) > self.loop.time():
                await sleep_until(due)
            else:
                self._close(next(iter(self.idle)))

    async def close(self) -> None:
        """Ends the waiting calls, and closes all connections."""
        self.is_closing = True
        for entry in self._queue:
            assert entry.turn is not None
            entry.turn.set()
        await self._members.stop()


class _Use(Generic[K, T]):
    """The context manager that `acquire()` returns."""

    __slots__ = ("_entry", "_is_entered", "_key", "_pool", "_timeout")

    def __init__(self, pool: _OpenPool[K, T], key: K, timeout: float | None) -> None:
        self._pool = pool
        self._key = key
        self._timeout = timeout
        self._entry: _Entry[K, T] | None = None
        self._is_entered = False

    async def __aenter__(self) -> T:
        if self._is_entered:
            raise RuntimeError("the result of acquire() can be entered only once; call acquire() again")
        if not self._pool.loop.is_current():
            self._pool.check_current("acquire")
        self._is_entered = True
        entry = self._pool.open.get(self._key)
        if entry is not None:
            if not entry.users:
                self._pool.idle.pop(entry, None)
            entry.users += 1
        else:
            entry = await self._pool.enter(self._key, self._timeout)
        self._entry = entry
        return cast("T", entry.connection)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        entry, self._entry = self._entry, None
        if entry is None:
            raise RuntimeError("the block was not entered, or was already exited")
        self._pool.leave(entry)
