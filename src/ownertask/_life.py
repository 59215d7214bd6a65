"""The private state of a manager: its run, its `async with` blocks, and the manager that uses it.

It also begins the first run of each series; `_series.py` begins the runs that follow it.

Threads can start or lend the same manager at the same time, so each check and the change that follows it
are one step; see `claiming`.
"""

import os
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from threading import RLock
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast
from weakref import ref

from ._arguments import checked_reconnect, checked_timeout, checked_watch
from ._blocks import Blocks
from ._leftovers import end_leftovers, leftovers
from ._owner import runs_around_caller
from ._series import Series
from .errors import ManagerInUseError, WrongEventLoopError
from .state import ConnectionState

if TYPE_CHECKING:
    from ._backend import EventLoop
    from ._listeners import Listener, Listeners
    from ._members import Member, Members
    from ._owner import Run
    from .current import Current, Learned
    from .manager import ConnectionManager

__all__ = ["Life", "Loan", "Use", "claiming", "watch_of"]

T = TypeVar("T")

claiming: Final = RLock()
"""Hold it while you check that a manager is not in use and then begin to use it. Do not await."""

if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows cannot fork
    # Otherwise, a child that was forked while another thread holds the lock could never acquire it.
    os.register_at_fork(
        before=claiming.acquire, after_in_parent=claiming.release, after_in_child=claiming.release
    )


class Use:
    """The use of one or more managers by another manager, which is open.

    Attributes:
        user: The name of the other manager.
        run: The run of the other manager. `None` if there is none because `open_connection()` was called
            directly.
        loop: The event loop.
    """

    def __init__(self, user: str, run: "Run[object] | None", loop: "EventLoop") -> None:
        self.user = user
        self.run = run
        self.loop = loop

    @property
    def is_alive(self) -> bool:
        """`True` unless the run is over, or the event loop can no longer run."""
        return self.loop.is_alive() if self.run is None else self.run.is_alive


class Loan(Use):
    """The use of a manager as a part of another one, in the same owner task.

    Attributes:
        is_open: Whether the connection is open.
        connection: The connection, while it is open.
    """

    def __init__(self, user: str, run: "Run[object] | None", loop: "EventLoop") -> None:
        super().__init__(user, run, loop)
        self.is_open = False
        self.connection: object = None


class Life(Generic[T]):
    """The private state of a manager.

    Attributes:
        key: Identifies the manager in `Run.parts`.
        manager: A weak reference to the manager. If a copy of the manager holds the `Life` of the
            original, this reference shows it.
        run: The current or last run.
        stops: The number of `stop()` calls. Each one ends all `start()` calls made before it.
        loan: The use by another manager, which may be over.
        member: The membership in a group or pool, which may be over.
        members: The members of this manager, if it is an open group or pool.
        listeners: Called at each change of the state.
        learned: What `ConnectionManager.current` knows about the connections, after its first use.
    """

    __slots__ = (
        "_blocks",
        "_connection_type",
        "key",
        "learned",
        "listeners",
        "loan",
        "manager",
        "member",
        "members",
        "run",
        "stops",
    )

    def __init__(self, manager: "ConnectionManager[T]") -> None:
        self.key = object()
        self.manager = ref(manager)
        self.run: Run[T] | None = None
        self.stops = 0
        self._blocks: Blocks | None = None
        self.loan: Loan | None = None
        self.member: Member[T] | None = None
        self.members: Members[Any] | None = None  # Any: they may have another type of connection
        self.listeners: Listeners[ConnectionManager[T]] | None = None
        self.learned: Learned | None = None
        self._connection_type: type | None = None

    # Pydantic models are copied and pickled with all of their attributes.
    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()

    @property
    def name(self) -> str:
        """The name of the manager."""
        return self._manager.name

    @property
    def _manager(self) -> "ConnectionManager[T]":
        manager = self.manager()
        assert manager is not None  # one of its methods is running
        return manager

    @property
    def blocks(self) -> Blocks:
        """The `async with` blocks."""
        if self._blocks is None:
            with claiming:
                if self._blocks is None:  # no other thread was faster
                    self._blocks = Blocks()
        return self._blocks

    @property
    def borrower(self) -> str | None:
        """The name of the manager that uses this one, if any."""
        loan = self.loan  # read once: another thread may end the loan at any time
        return loan.user if loan is not None and loan.is_alive else None

    @property
    def holder(self) -> str | None:
        """The name of the group or pool that holds this manager, if any."""
        member = self.member
        return member.holder if member is not None and member.is_valid else None

    def check_not_refused(self) -> "Member[T] | None":
        """Returns the membership of this manager in a group or pool, if any.

        Raises:
            ManagerInUseError: The group or pool is closing this manager.
            WrongEventLoopError: The group or pool is running in another event loop. It could not stop
                this manager there.
        """
        member = self.member
        if member is None or not member.is_valid:
            return None
        if not member.loop.is_current():
            raise WrongEventLoopError(self.name, "start() was called")
        if member.refuses_start:
            raise ManagerInUseError(
                self.name,
                f"cannot be started because {member.holder}, which it is part of, is closing it",
            )
        return member

    def alive_run(self, method: str) -> "Run[T] | None":
        """Returns the run, if its owner task can still run.

        Args:
            method: The method that the caller called.

        Raises:
            WrongEventLoopError: The run belongs to another event loop.
        """
        if leftovers:
            end_leftovers()
        run = self.run
        if run is None or not run.is_alive:
            return None
        if not run.loop.is_current():
            raise WrongEventLoopError(self.name, f"{method}() was called")
        return run

    def begin(self, *, is_kept: bool) -> "Run[T]":
        """Begins the first run of a series.

        Args:
            is_kept: Whether the connection stays open after the last `async with` block exits.

        Raises:
            ManagerInUseError: The manager is part of another manager, or a group or pool is closing it.
            WrongEventLoopError: A thread with another event loop began a run, or the group or pool is
                running in another event loop.
            TypeError: An attribute of the manager has the wrong type.
            ValueError: `start_timeout` is negative or NaN.
        """
        manager = self._manager
        if (start_timeout := manager.start_timeout) is not None:
            checked_timeout("start_timeout", start_timeout)
        if (policy := manager.reconnect) is not None:
            checked_reconnect(policy)
        watch = None if manager.watch is None else watch_of(manager)
        with claiming:
            if self.loan is not None and self.borrower is not None:
                raise ManagerInUseError(
                    self.name,
                    f"cannot be started on its own because it is part of {self.borrower}; "
                    "start that manager instead",
                )
            if self.run is not None and not self.run.is_over:
                self.alive_run("start")  # raises if a thread with another event loop was faster
            member = None if self.member is None else self.check_not_refused()
            old = ConnectionState.NEW if self.run is None else self.run.last_state
            series = Series(
                self,
                manager,
                start_timeout=start_timeout,
                policy=policy,
                watch=watch,
                is_kept=is_kept,
                context=copy_context() if member is None else member.context.copy(),
            )
            self.run = run = series.newest
            series.queue(old, ConnectionState.OPENING)
        try:
            run.announce_opening(old)
        except BaseException:  # Ctrl-C; the caller gets no connection, so nothing may stay open
            run.force()
            raise
        return run

    @property
    def current_run(self) -> "Run[object] | None":
        """The run that the connection is part of: the manager's own, or that of its borrower."""
        loan = self.loan  # read once, as in `borrower`
        return cast("Run[object] | None", self.run) if loan is None or not loan.is_alive else loan.run

    def run_around_caller(self) -> "Run[object] | None":
        """Returns the innermost run of this manager that the caller is part of, if it is alive."""
        runs = [run for run in runs_around_caller() if self.key in run.parts]
        return runs[-1] if runs and runs[-1].is_alive and runs[-1].loop.is_current() else None

    def run_of_caller(self) -> "Run[object] | None":
        """Returns the run that the connection is part of, unless the caller belongs to another run.

        Child tasks and callbacks of an owner task inherit its context, so they belong to its run.
        """
        current = self.current_run
        runs = [run for run in runs_around_caller() if self.key in run.parts]
        return None if runs and runs[-1] is not current else current

    def is_open(self, connection: object) -> bool:
        """Returns whether `connection` is open. `ConnectionManager.current` stands for any."""
        if self.learned is not None and connection is self.learned.existing():
            connection = None
        loan = self.loan
        if loan is not None and loan.is_alive:
            return loan.is_open and (connection is None or loan.connection is connection)
        run = self.run
        return run is not None and run.is_open(connection)

    def learn(self, connection: T) -> None:
        """Records the class of a connection that was just opened, for `ConnectionManager.current`."""
        try:
            self._connection_type = connection.__class__
        except Exception:  # noqa: BLE001 - a foreign property may raise anything
            self._connection_type = type(connection)
        if self.learned is not None:
            self.learned.connection_type = self._connection_type

    def current(self) -> "Current":
        """Returns the object that follows the manager through restarts, the same one each time."""
        with claiming:
            if self.learned is None:
                from .current import Learned  # few managers need it

                self.learned = Learned(self._connection_type)
            return self.learned.current_of(self._manager)

    def add_listener(self, callback: "Listener[ConnectionManager[T]]") -> None:
        """Adds a listener; see `_listeners.py`."""
        if self.listeners is None:
            from ._listeners import Listeners  # few managers have listeners

            self.listeners = Listeners()
        self.listeners.add(callback)

    def remove_listener(self, callback: "Listener[ConnectionManager[T]]") -> None:
        """Removes a listener, if it was added."""
        if self.listeners is not None:
            self.listeners.remove(callback)


def watch_of(manager: "ConnectionManager[T]") -> Callable[[T], Awaitable[object]] | None:
    """Returns the `watch` function or bound method of a manager.

    Raises:
        TypeError: It is neither callable nor `None`.
    """
    return checked_watch(cast("Callable[[T], Awaitable[object]] | None", manager.watch))


def _nothing() -> None:
    """Replaces the private state in a copy."""
