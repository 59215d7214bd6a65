"""`ConnectionGroup`: any number of connections that are opened and closed together.

Each member has its own owner task. So a member that is slow, fails, is lost or is restarted does not
affect the others.
"""

import sys
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from copy import copy
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from anyio import CancelScope, Event, Semaphore, create_task_group, move_on_after
from anyio.abc import TaskGroup
from typing_extensions import override

from ._arguments import checked_count, checked_timeout
from ._copying import attributes_in
from ._log import WARNING, log
from ._members import Member, Members
from ._reason import is_a, leaves, reason
from .errors import (
    ConnectionLostError,
    ConnectionManagerError,
    ConnectionStoppedError,
    NotConnectedError,
    StartTimeoutError,
    WrongEventLoopError,
)
from .manager import ConnectionManager
from .state import ConnectionState

if TYPE_CHECKING:
    from ._backend import EventLoop
    from ._life import Life

__all__ = ["ConnectionGroup"]

K = TypeVar("K")
T = TypeVar("T")
V = TypeVar("V")

ENDED: Final = {ConnectionState.NEW, ConnectionState.CLOSED, ConnectionState.FAILED}


class ConnectionGroup(ConnectionManager[Mapping[K, T]], Generic[K, T]):
    """Opens and closes any number of connections together.

    The connection of a group is a read-only mapping from keys to the connections that are open. It is
    live: it follows each member through losses and restarts.

    Each member can also be started and stopped on its own. For example,
    `await group.managers[key].start()` opens a lost connection again. While the group is running, its
    members cannot become part of another manager. They run with the context variables of the group's
    `start()` call.

    Example:
        ```python
        group = ConnectionGroup(
            {
                "calculator": SessionConnectionManager("http://localhost:8000/mcp"),
                "weather": SessionConnectionManager("https://weather.invalid/mcp"),
            }
        )
        async with group as sessions:
            for key, session in sessions.items():
                print(key, await session.list_tools())
            for key, error in group.failures.items():
                print(f"{key} is not available: {error}")
        ```
    """

    def __init__(
        self,
        managers: Mapping[K, ConnectionManager[T]],
        *,
        strict: bool = False,
        member_timeout: float | None = 30.0,
        max_concurrent_starts: int | None = None,
        name: str | None = None,
    ) -> None:
        """Creates a group without opening a connection.

        Args:
            managers: The members. They must not be running when the group is started.
            strict: Whether the group ends if a member cannot be opened in time, or if it is lost and is
                not opened again. The member's own `stop()` does not end the group. If `False`, the group
                works with the members that are open.
            member_timeout: Maximum time for `start()` to wait for each member, in seconds; `None` waits
                indefinitely. It begins when the member's attempt begins. When it expires, the attempt
                is cancelled, unless the member has a `ReconnectPolicy`. Such a member keeps trying until
                its policy gives up or the group stops.
            max_concurrent_starts: Maximum number of members that the group opens at the same time;
                `None` means no limit.
            name: See `ConnectionManager`.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: `member_timeout` is negative or NaN, `max_concurrent_starts` is not positive, or
                the same manager has two keys.
        """
        super().__init__(name=name)
        if not isinstance(managers, Mapping):
            raise TypeError(f"managers must be a mapping, not {type(managers).__name__}")
        self._managers: dict[K, ConnectionManager[T]] = {}
        seen: set[int] = set()
        for key, manager in managers.items():
            _check_type("managers", manager)
            if id(manager) in seen:
                raise ValueError(f"managers: {manager.name} has two keys")
            seen.add(id(manager))
            self._managers[key] = manager
        if not isinstance(strict, bool):
            raise TypeError(f"strict must be a boolean, not {type(strict).__name__}")
        self.strict: bool = strict
        self.member_timeout: float | None = checked_timeout("member_timeout", member_timeout)
        self.max_concurrent_starts: int | None = checked_count(
            "max_concurrent_starts", max_concurrent_starts
        )
        self._opened: _Opened[K, T] | None = None

    # A manager can be a member of only one group at a time, so a copy of a group has copies of its
    # members.
    @override
    def __getstate__(self) -> object:
        state = super().__getstate__()
        copies = {key: copy(manager) for key, manager in self._managers.items()}
        attributes_in(state).update(_managers=copies, _opened=None)
        return state

    @property
    def managers(self) -> Mapping[K, ConnectionManager[T]]:
        """The members by key, open or not. The mapping is read-only and follows each change."""
        return _Live(self._managers)

    @property
    def failures(self) -> Mapping[K, BaseException]:
        """The reasons why members are not open, by key. It is computed each time it is read.

        A reason is the `exception` of the member, the last failure of a member that tries again, or a
        `StartTimeoutError` for a member whose first attempt takes longer than `member_timeout`. A member
        that was stopped, or that is still being opened within `member_timeout`, has no entry.
        """
        opened = self._opened
        found: dict[K, BaseException] = {}
        for key, manager in tuple(self._managers.items()):
            error = manager.exception
            if error is None and (reconnecting := manager.reconnecting) is not None:
                error = reconnecting.exception
            timeout = None if opened is None else opened.late.get(key)
            if error is None and timeout is not None and manager.state is not ConnectionState.OPEN:
                error = StartTimeoutError(manager.name, timeout)
            if error is not None:
                found[key] = error
        return found

    @override
    def is_permanent(self, exc: BaseException) -> bool:
        """Returns whether trying again is pointless, according to the group or any member."""
        cause = exc.__cause__ if is_a(exc, ConnectionLostError) else None
        error = exc if cause is None else cause
        managers = tuple(self._managers.values())
        return super().is_permanent(exc) or any(
            manager.is_permanent(leaf) for leaf in leaves(error) for manager in managers
        )

    @override
    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[Mapping[K, T]]:
        with Members[T](self.name, self._life) as members:
            marks = members.claim((manager, manager._life) for manager in self._managers.values())
            async with create_task_group() as task_group:
                self._opened = opened = _Opened(self, members, task_group)
                try:
                    await opened.open(dict(zip(self._managers, marks, strict=True)))
                    yield _OpenConnections(self._managers)
                finally:
                    try:
                        await opened.close()
                    finally:
                        if self._opened is opened:  # not started again after its loop was closed
                            self._opened = None

    async def add(self, key: K, manager: ConnectionManager[T]) -> T:
        """Opens the connection of a new member, adds it to the open group, and returns the connection.

        The member stays in the group when the group is stopped and started again. If its connection
        cannot be opened within `member_timeout`, the group does not keep the member.

        Example:
            ```python
            session = await group.add("search", SessionConnectionManager("http://localhost:8000/mcp"))
            ```

        Args:
            key: The key of the new member.
            manager: The new member. It must not be running.

        Raises:
            NotConnectedError: The group is not open.
            ManagerInUseError: The manager is running, or is already part of another manager.
            StartTimeoutError: The connection did not open within `member_timeout`.
            ConnectionStoppedError: The group or the manager was stopped in the meantime.
            WrongEventLoopError: The group is running in another event loop.
            TypeError: `manager` is not a `ConnectionManager`.
            ValueError: `key` is in use.
            BaseException: The exception that opening the connection raised; see `start()`.

        Cancellation:
            Cancels the attempt. The group does not keep the manager.
        """
        _check_type("manager", manager)
        opened = self._opened_here("add")
        if opened is None or not opened.is_open:
            raise NotConnectedError(self.name, self.state)
        if key in self._managers or opened.is_adding(key):
            raise ValueError(f"key: {self.name} already has a member with the key for {manager.name}")
        connection = await opened.add(key, opened.claim(manager, manager._life))
        # Since opened.add() checked that the group is open, no other task has run. So the group cannot
        # have closed the member.
        self._managers[key] = manager
        return connection

    async def remove(self, key: K) -> None:
        """Removes a member, and stops it if the group is running.

        Example:
            ```python
            await group.remove("calculator")
            ```

        Raises:
            KeyError: The group has no member with this key.
            StopTimeoutError: The member is still running after its owner task was cancelled. The group
                has removed it, but tries to stop it again when the group itself stops.
            WrongEventLoopError: The group is running in another event loop.

        Cancellation:
            Cancels the owner task of the member, and waits for its end. The member is removed.
        """
        opened = self._opened_here("remove")
        del self._managers[key]
        if opened is not None:
            await opened.remove(key)

    def _opened_here(self, method: str) -> "_Opened[K, T] | None":
        opened = self._opened
        if opened is None or not opened.is_alive:
            return None
        if not opened.loop.is_current():
            raise WrongEventLoopError(self.name, f"{method}() was called")
        return opened


def _check_type(argument: str, manager: object) -> None:
    if not isinstance(manager, ConnectionManager):
        kind = type(manager).__name__
        raise TypeError(f"{argument}: a member must be a ConnectionManager, not {kind}")


class _Opened(Generic[K, T]):
    """A group while it is open.

    Attributes:
        late: The timeout of each member whose first attempt takes longer than that timeout, by key.
        is_open: Whether each member is open, has failed or is late, and the group is not closing.
    """

    def __init__(self, group: ConnectionGroup[K, T], members: Members[T], task_group: TaskGroup) -> None:
        self.late: dict[K, float] = {}
        self.is_open = False
        self._group = group
        self._members = members
        self._task_group = task_group
        self._marks: dict[K, Member[T]] = {}
        self._adding: set[K] = set()
        self._first_attempts = CancelScope()
        self._errors: list[BaseException] = []
        self._turns = Semaphore(group.max_concurrent_starts or sys.maxsize, fast_acquire=True)

    @property
    def is_alive(self) -> bool:
        """`True` unless the run of the group is over."""
        return self._members.is_alive

    @property
    def loop(self) -> "EventLoop":
        """The event loop of the group."""
        return self._members.loop

    async def open(self, marks: dict[K, Member[T]]) -> None:
        """Starts the members. Returns when each one is open, has failed, or is late."""
        self._marks = marks
        if self._group.strict:
            for mark in marks.values():
                mark.report_failures(self._fail)
        with self._first_attempts:
            async with create_task_group() as task_group:
                for key, mark in tuple(marks.items()):
                    await self._turns.acquire()
                    task_group.start_soon(self._take_turn, key, mark)
        if self._errors:
            raise self._errors[0]
        self.is_open = True

    async def close(self) -> None:
        """Stops the members. This also ends the `start()` calls that are waiting."""
        self.is_open = False
        for mark in self._marks.values():
            mark.report_failures(None)
        await self._members.stop()

    async def add(self, key: K, mark: Member[T]) -> T:
        """Opens the connection of a new member, which has just been claimed."""
        self._adding.add(key)
        try:
            async with self._turns:
                self._check_open()
                connection = await mark.manager.start(self._group.member_timeout)
            if not self.is_open:
                await mark.manager.stop()  # the group is closing it; waits for its end
                self._check_open()
        except BaseException:
            if self.is_open:
                mark.remove()
            raise
        finally:
            self._adding.discard(key)
        self._marks[key] = mark
        if self._group.strict:
            mark.report_failures(self._fail)
        return connection

    def claim(self, manager: ConnectionManager[T], life: "Life[T]") -> Member[T]:
        """Claims a new member."""
        [mark] = self._members.claim([(manager, life)])
        return mark

    def _check_open(self) -> None:
        if not self.is_open:
            raise ConnectionStoppedError(self._group.name, "add()")

    def is_adding(self, key: K) -> bool:
        """Returns whether another call is adding a member with this key."""
        return key in self._adding

    async def remove(self, key: K) -> None:
        """Stops a member. From now on, it cannot be started until it has been stopped."""
        mark = self._marks.pop(key)
        mark.report_failures(None)
        mark.refuses_start = True
        try:
            await mark.manager.stop()
        finally:
            mark.remove()

    async def _take_turn(self, key: K, mark: Member[T]) -> None:
        try:
            is_settled = Event()
            self._task_group.start_soon(self._start, key, mark, is_settled)
            timeout = self._group.member_timeout
            with move_on_after(timeout):
                await is_settled.wait()
            if timeout is not None and not is_settled.is_set():
                self.late[key] = timeout
                error = self._group.failures.get(key)  # `None` if it was removed or has just opened
                if self._group.strict and error is not None:
                    self._fail(error)
        finally:
            self._turns.release()

    async def _start(self, key: K, mark: Member[T], is_settled: Event) -> None:
        manager = mark.manager
        timeout = self._group.member_timeout if manager.reconnect is None else None
        try:
            if not mark.refuses_start:  # it may have been removed before the first step of this task
                await manager.start(timeout)
        except ConnectionStoppedError:
            pass  # by the member's own stop(), or by the group's
        except ConnectionLostError:
            pass  # the member has logged it
        except Exception as error:  # noqa: BLE001 - logged, or raised by the owner task
            is_own = is_a(error, ConnectionManagerError) or manager.exception is error
            if not is_own and manager.state in ENDED:
                self._fail(error)  # nothing was opened; perhaps `start_timeout` is invalid
            elif not self._group.strict:  # otherwise, the group's start() raises it
                name = "a member" if is_a(error, ConnectionManagerError) else manager.name
                log(WARNING, "%s: could not open %s: %s", self._group.name, name, reason(error))
        except BaseException as error:
            if manager.exception is not error:
                raise  # the group is being closed, or the garbage collector ends this task
            self._fail(error)  # raised here, SystemExit would end an asyncio loop
        finally:
            self.late.pop(key, None)
            is_settled.set()

    def _fail(self, error: BaseException) -> None:
        """Ends the group, which is strict or cannot open."""
        if self.is_open:
            self._group.connection_lost(error)
        else:
            self._errors.append(error)
            self._first_attempts.cancel()


class _Live(Mapping[K, V]):
    """A read-only view of a dictionary, which may change during an iteration over the view."""

    def __init__(self, items: Mapping[K, V]) -> None:
        self._items = items

    @override
    def __getitem__(self, key: K) -> V:
        return self._items[key]

    @override
    def __iter__(self) -> Iterator[K]:
        return iter(tuple(self._items))

    @override
    def __len__(self) -> int:
        return len(self._items)


class _OpenConnections(Mapping[K, T]):
    """The connections of the members that are open."""

    def __init__(self, managers: Mapping[K, ConnectionManager[T]]) -> None:
        self._managers = managers

    @override
    def __getitem__(self, key: K) -> T:
        manager = self._managers[key]
        try:
            return manager.connection
        except (ConnectionLostError, NotConnectedError) as error:
            raise KeyError(key) from error

    @override
    def __iter__(self) -> Iterator[K]:
        for key, manager in tuple(self._managers.items()):
            if manager.state is ConnectionState.OPEN:
                yield key

    @override
    def __len__(self) -> int:
        return sum(1 for _ in self)
