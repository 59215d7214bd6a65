"""The runs that follow one another without another `start()`, and the decision whether another follows.

Without a `ReconnectPolicy`, a series has one run. With a policy, a failed run is followed by another
run, which begins in the same step in which the failed run ends. So a manager never has two owner tasks,
and no other code runs between two of them. The calls that wait for a connection, and the `async with`
blocks that use it, belong to the series.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from typing import TYPE_CHECKING, Generic, TypeVar

from ._failure import Failure
from ._log import DEBUG, ERROR, WARNING, log
from ._owner import Run
from ._reason import is_a, leaves, reason
from .policy import Reconnecting, ReconnectPolicy
from .state import ConnectionState

if TYPE_CHECKING:
    from ._backend import EventLoop
    from ._life import Life
    from .manager import ConnectionManager

__all__ = ["Series"]

T = TypeVar("T")


class Series(Generic[T]):
    """One or more runs, with what they have in common.

    Attributes:
        newest: The current or last run.
        key: Identifies the manager in `Run.parts`.
        name: The manager's name.
        start_timeout: Maximum time for each attempt, in seconds; `None` means no limit.
        policy: Decides whether another run follows; `None` if none will.
        watch: Called with each connection.
        is_kept: Whether the connection stays open after the last `async with` block exits.
        starters: The number of `start()` calls that are waiting for a connection.
        received: Whether a `start()` call has returned a connection, or an earlier run had one.
        last_failure: How the run before the newest one failed, until the newest one is open.
    """

    __slots__ = (
        "_context",
        "_delay",
        "_due",
        "_failures",
        "_inner",
        "_life",
        "_manager",
        "is_kept",
        "key",
        "last_failure",
        "name",
        "newest",
        "policy",
        "received",
        "start_timeout",
        "starters",
        "watch",
    )

    def __init__(  # noqa: PLR0913 - what the runs have in common
        self,
        life: "Life[T]",
        manager: "ConnectionManager[T]",
        *,
        start_timeout: float | None,
        policy: ReconnectPolicy | None,
        watch: Callable[[T], Awaitable[object]] | None,
        is_kept: bool,
        context: Context,
    ) -> None:
        """Begins the first run.

        Args:
            life: The private state of the manager.
            manager: The manager. The series keeps it alive until the last run ends.
            start_timeout: See the attribute.
            policy: Decides whether another run follows.
            watch: See the attribute.
            is_kept: See the attribute.
            context: The context variables for the owner tasks.
        """
        self.key = life.key
        self.name = manager.name
        self.start_timeout = start_timeout
        self.watch = watch
        self.is_kept = is_kept
        self.starters = 0
        self.received = False
        self.last_failure: Failure | None = None
        self._life: Life[T] | None = life
        self._manager: ConnectionManager[T] | None = manager
        self.policy = policy
        self._context: Context | None = context
        self._failures = 0
        self._delay = 0.0
        self._due = 0.0
        self._inner: tuple[ConnectionManager[object], ...] = ()
        self.newest: Run[T] = Run(self)

    # Queries.

    @property
    def is_alive(self) -> bool:
        """`True` if the owner task of the newest run can still run."""
        return self.newest.is_alive

    def is_in(self, loop: "EventLoop") -> bool:
        """Returns whether the series belongs to `loop`."""
        return self.newest.loop is loop

    @property
    def reconnecting(self) -> Reconnecting | None:
        """The value of the manager's property with this name."""
        failure = self.last_failure  # read once: this may be another thread
        if failure is None or self.newest.visible_state is not ConnectionState.OPENING:
            return None
        return Reconnecting(self._failures, self._due, failure.exception)

    # For its runs.

    def new_context(self) -> Context:
        """Returns the context variables for the owner task of a run."""
        assert self._context is not None
        return self._context.copy() if self.policy is not None else self._context

    def open_connection(self) -> AbstractAsyncContextManager[T]:
        """Calls the method of the manager."""
        assert self._manager is not None
        self._inner = ()
        return self._manager.open_connection()

    def add_inner(self, manager: "ConnectionManager[object]") -> None:
        """Records that the connection of another manager is part of the newest run."""
        if self.policy is not None:
            self._inner = (*self._inner, manager)

    def opened(self, connection: T) -> None:
        """Records the connection of the newest run, which is about to become `OPEN`."""
        self.last_failure = None
        assert self._life is not None
        self._life.learn(connection)

    def queue(self, old: ConnectionState, new: ConnectionState) -> bool:
        """Records a change for the listeners, before any foreign code runs; see `announce()`.

        Returns:
            Whether there are listeners.
        """
        listeners = None if self._life is None else self._life.listeners
        if listeners is None or self._manager is None:
            return False
        if self.newest.loop.is_alive():  # otherwise, the garbage collector ends the owner task
            listeners.queue(self._manager, old, new)
        return True

    def announce(self) -> None:
        """Calls the listeners of the manager for each change that was queued."""
        if self._life is not None and self._life.listeners is not None:
            self._life.listeners.announce()

    def end(self) -> None:
        """Decides that no run follows the newest one."""
        if self.policy is not None:
            self.policy = None
            self.newest.notify()  # wait_open() may wait for another run
        if self.newest.is_over:
            # Otherwise, only the garbage collector could free the manager.
            self._life = self._manager = self._context = self.watch = None
            self._inner = ()

    def begin_next(self, run: Run[T], failure: Failure) -> bool:
        """Begins another run, if the policy allows it, because `run` is about to end with `failure`.

        The caller then ends `run` without awaiting, and calls `announce_next()`.
        """
        policy = self.policy
        assert policy is not None
        if run.outcome.was_open and run.open_for >= policy.stable_after:
            self._failures = 0
        self._failures += 1
        is_spent = policy.max_retries is not None and self._failures > policy.max_retries
        if is_spent or self._is_permanent(failure, policy) or self.policy is None:
            if not self.starters and self.policy is not None:
                log(
                    WARNING,
                    "%s: not trying again (failures in a row: %d): %s",
                    self.name,
                    self._failures,
                    reason(failure.exception),
                )
            self.end()
            return False
        self._delay = policy.delay_after(self._failures)
        self._due = run.loop.time() + self._delay
        self.received = self.received or run.outcome.was_open
        self.last_failure = failure
        assert self._life is not None
        self.newest = self._life.run = Run(self, self._delay)
        return True

    def announce_next(self, run: Run[T]) -> None:
        """Announces the run that follows `run`, and logs the reason, unless it was logged already."""
        if run.exception is not None and not run.outcome.was_open:
            log(
                WARNING if self._failures == 1 else DEBUG,
                "%s: could not be opened: %s; trying again in %.3g s",
                self.name,
                reason(run.exception),
                self._delay,
            )
        self.newest.announce_opening(ConnectionState.FAILED)

    def _is_permanent(self, failure: Failure, policy: ReconnectPolicy) -> bool:
        cause = failure.exception.__cause__ if failure.is_loss else None
        error = failure.exception if cause is None else cause
        if not is_a(error, Exception):
            return True
        try:
            if policy.give_up_on is not None:
                return bool(policy.give_up_on(error))
            assert self._manager is not None
            managers = (self._manager, *self._inner)
            return any(manager.is_permanent(leaf) for leaf in leaves(error) for manager in managers)
        except BaseException as exc:  # noqa: BLE001 - a bug in it must not end the connection for good
            log(ERROR, "%s: is_permanent() or give_up_on() raised", self.name, exc_info=exc)
            return False
