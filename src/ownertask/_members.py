"""The members of a group or a pool: the managers that it claims when it opens and stops when it closes.

A member has its own owner task, and any task may start and stop it. While it is a member:

* It cannot become part of a second group, pool or manager.
* Its runs have the context variables of the group or pool, so code in them counts as part of the holder.
* After the group or pool begins to close the member, it cannot be started.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from anyio import create_task_group

from ._life import Life, Use, claiming
from ._owner import current_event_loop
from ._reason import is_a
from .errors import ManagerInUseError, StopTimeoutError
from .state import ConnectionState

if TYPE_CHECKING:
    from ._backend import EventLoop
    from .manager import ConnectionManager

__all__ = ["Member", "Members"]

T = TypeVar("T")


class Member(Generic[T]):
    """The membership of a manager in a group or a pool.

    Attributes:
        manager: The manager.
        life: Its private state.
        refuses_start: Whether the manager cannot be started, because its holder is closing it.
        is_removed: Whether the membership ends with the current run of the manager.
    """

    __slots__ = ("_members", "_on_failure", "is_removed", "life", "manager", "refuses_start")

    def __init__(self, manager: "ConnectionManager[T]", life: Life[T], members: "Members[T]") -> None:
        self.manager = manager
        self.life = life
        self.refuses_start = self.is_removed = False
        self._members = members
        self._on_failure: Callable[[BaseException], object] | None = None

    @property
    def holder(self) -> str:
        """The name of the group or pool."""
        return self._members.user

    @property
    def loop(self) -> "EventLoop":
        """The event loop of the group or pool."""
        return self._members.loop

    @property
    def is_valid(self) -> bool:
        """`True` unless the run of the group or pool, or of a removed manager, is over."""
        return self._members.is_alive and (self.is_running or not self.is_removed)

    @property
    def is_running(self) -> bool:
        """`True` if the manager has an owner task that can still run."""
        return self.life.run is not None and self.life.run.is_alive

    @property
    def context(self) -> Context:
        """The context variables for the runs of the manager."""
        return self._members.context

    def stuck_error(self) -> BaseException | None:
        """Returns the error if the manager, or a member inside it, could not be stopped."""
        run = self.life.run
        if run is None or run.is_alive:
            return None if run is None else run.stop_timeout_error()
        error = run.exception
        return error if error is not None and is_a(error, StopTimeoutError) else None

    def report_failures(self, callback: "Callable[[BaseException], object] | None") -> None:
        """Calls a function if the manager fails and will not be opened again, unless it was stopped.

        Args:
            callback: Called with the exception. `None` calls nothing any longer.
        """
        self._on_failure = callback
        if callback is None:
            self.manager.remove_listener(self._changed)
        else:
            self.manager.add_listener(self._changed)

    def _changed(
        self, manager: "ConnectionManager[T]", _old: ConnectionState, new: ConnectionState
    ) -> None:
        error = manager.exception  # `None` if another run follows
        was_stopped = self.life.run is not None and self.life.run.outcome.was_stopped
        report = self._on_failure
        if (
            new is ConnectionState.FAILED
            and error is not None
            and not was_stopped
            and report is not None
        ):
            report(error)

    def remove(self) -> None:
        """Ends the membership, or lets it end with the run of a manager that cannot be stopped."""
        self.refuses_start = self.is_removed = True
        if not self.is_running:
            self.release()

    def release(self) -> None:
        """Ends the membership."""
        if self.life.member is self:
            self.life.member = None
        self._members.forget(self)


class Members(Use, Generic[T]):
    """The members of a group or a pool in one run. Enter it in `open_connection()`.

    Attributes:
        context: The context variables of the owner task.
    """

    def __init__(self, holder: str, life: "Life[Any]") -> None:
        super().__init__(holder, life.run_around_caller(), current_event_loop())
        self.context = copy_context()
        self._members: dict[Member[T], None] = {}
        self._holder = life

    def __enter__(self) -> Self:
        if (other := self._holder.members) is not None and other.is_alive:
            raise ManagerInUseError(self.user, "already open; it can be open only once at a time")
        self._holder.members = self
        if self.run is not None:
            self.run.held += (self,)
        return self

    def __exit__(self, *_: object) -> None:
        for member in tuple(self._members):
            member.release()
        if self.run is not None:
            self.run.held = tuple(held for held in self.run.held if held is not self)
        if self._holder.members is self:  # the holder was not started again after its loop was closed
            self._holder.members = None

    @property
    def levels(self) -> int:
        """The number of levels of managers inside the holder."""
        runs = (member.life.run for member in self._members)
        return 1 + max((run.levels for run in runs if run is not None), default=0)

    def claim(self, managers: "Iterable[tuple[ConnectionManager[T], Life[T]]]") -> list[Member[T]]:
        """Claims managers as members.

        Raises:
            ManagerInUseError: One of them is running or part of another manager. None is claimed.
        """
        with claiming:
            members = [Member(manager, life, self) for manager, life in managers]
            for member in members:
                self._check_unused(member)
            for member in members:
                member.life.member = member
                self._members[member] = None
        return members

    def _check_unused(self, member: Member[T]) -> None:
        life, name = member.life, member.manager.name
        if (borrower := life.borrower or life.holder) is not None:
            raise ManagerInUseError(
                name,
                f"already part of {borrower}; a manager can be part of only one other manager at a time",
            )
        if member.is_running:
            raise ManagerInUseError(
                name,
                f"cannot become part of {self.user} while it is running "
                f"(state: {member.manager.state.value}); call stop() first",
            )

    def forget(self, member: Member[T]) -> None:
        """Removes a member that was released."""
        self._members.pop(member, None)

    async def stop(self) -> None:
        """Stops all members concurrently. From now on, they cannot be started.

        Raises:
            StopTimeoutError: The owner task of a member is still running. The other members are closed.

        Cancellation:
            Cancels the owner tasks of the members, and waits for their end.
        """
        for member in self._members:
            member.refuses_start = True
        running = [member for member in self._members if member.is_running]
        if not running:  # also if the garbage collector ends the owner task after its loop was closed
            return
        try:
            async with create_task_group() as task_group:
                for member in running:
                    task_group.start_soon(_stop, member)
        finally:
            for member in running:
                error = member.stuck_error() if member in self._members else None
                if error is not None:
                    raise error


async def _stop(member: Member[T]) -> None:
    with suppress(StopTimeoutError):  # stop() raises it after the other members are closed
        await member.manager.stop(None)
