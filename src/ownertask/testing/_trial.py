"""Creates and calls the managers for the check of a rule, and limits the time of each call."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from inspect import iscoroutine
from typing import Final, Generic, NoReturn, TypeVar

from anyio import (
    CancelScope,
    current_time,
    get_running_tasks,
    sleep,
    sleep_forever,
)

from .._call_stack import waiting_place
from ..errors import ConnectionManagerError, StopTimeoutError
from ..manager import ConnectionManager
from ..policy import ReconnectPolicy
from ..state import ConnectionState
from ._leaks import Snapshot, first_leak

__all__ = ["BrokenRuleError", "Trial", "alongside", "described", "set_policy"]

T = TypeVar("T")
R = TypeVar("R")

HELPER: Final = "ownertask.testing: "
"""The names of the check's own managers begin with this."""

BACKGROUND: Final = f"{HELPER}background"

OVER: Final = {ConnectionState.NEW, ConnectionState.CLOSED, ConnectionState.FAILED}


class BrokenRuleError(Exception):
    """A rule is broken.

    Attributes:
        seen: A description of what happened.
        sentence: The broken rule, if it is not the rule that is being checked.
        cause: The exception that the manager raised, if any.
    """

    def __init__(self, seen: str, cause: BaseException | None = None, sentence: str = "") -> None:
        super().__init__(seen)
        self.seen = seen
        self.cause = cause
        self.sentence = sentence


class Trial(Generic[T]):
    """Creates, calls and stops the managers for the check of one rule.

    Attributes:
        timeout: Maximum time for each call, in seconds.
        opening_steps: How many steps an opening takes.
        closing_steps: How many steps a closing takes.
    """

    opening_steps = 0
    closing_steps = 0

    def __init__(
        self,
        make_manager: Callable[[], ConnectionManager[T]],
        use: Callable[[T], Awaitable[object]] | None,
        lose: Callable[[T], Awaitable[object]] | None,
        timeout: float,
    ) -> None:
        self.timeout = timeout
        self._make_manager = make_manager
        self._use = use
        self._lose = lose
        # An application may keep managers and connections, so the garbage collector must not close what
        # they leave open.
        self._made: list[ConnectionManager[T]] = []
        self._used: list[T] = []
        self._before = Snapshot()

    # Managers.

    def make(self) -> ConnectionManager[T]:
        """Returns a new manager.

        Raises:
            TypeError: `make_manager` did not return a manager.
            ValueError: `make_manager` returned the same manager again.
        """
        manager = self._make_manager()
        if not isinstance(manager, ConnectionManager):
            if iscoroutine(manager):
                manager.close()  # prevents the warning that it was never awaited
            kind = type(manager).__name__
            raise TypeError(f"make_manager must return a ConnectionManager, not {kind}")
        if any(manager is made for made in self._made):
            raise ValueError("make_manager must return a new manager each time")
        self._made.append(manager)
        set_policy(manager, None)  # otherwise a lost manager would be opened again
        return manager

    async def end(self) -> None:
        """Stops all managers, even if one of the calls is cancelled or raises."""
        async with AsyncExitStack() as calls:
            for manager in self._made:
                calls.push_async_callback(self._end, manager)

    async def _end(self, manager: ConnectionManager[T]) -> None:
        with CancelScope(shield=True), suppress(StopTimeoutError):
            # A subclass may have its own stop(), although it should not.
            await ConnectionManager[T].stop(manager, 0)

    # Calls.

    async def start(self, manager: ConnectionManager[T]) -> T:
        """Starts a manager, and uses its connection."""
        connection = await self.call("start()", manager.start)
        self.look()
        await self.use(connection)
        return connection

    async def stop(self, manager: ConnectionManager[T]) -> None:
        """Stops a manager normally, and checks that it is closed."""
        await self.call("stop()", lambda: manager.stop(timeout=None))
        self.check_closed(manager, "after stop()")

    async def use(self, connection: T) -> None:
        """Uses a connection, if the author passed a function for this."""
        self._used.append(connection)
        use = self._use
        if use is not None:
            await self.call_detached("use()", lambda: use(connection))

    async def lose(self, connection: T) -> None:
        """Makes the peer end the connection."""
        lose = self._lose
        assert lose is not None
        await self.call_detached("lose()", lambda: lose(connection))

    async def keep_using(self, connection: T) -> None:
        """Uses a connection again and again, and ignores exceptions."""
        pause = 0.01
        while self._use is not None:
            with suppress(Exception):
                await self._use(connection)
            await sleep(pause)
            pause = min(2 * pause, 1.0)
        await sleep_forever()

    async def call(self, name: str, function: Callable[[], Awaitable[R]]) -> R:
        """Calls and awaits a function that should not raise."""
        results: list[R] = []

        async def keep_result() -> None:
            results.append(await function())

        error = await self.error_of(name, keep_result)
        if error is not None:
            raise BrokenRuleError(f"{name} raised {described(error)}", error)
        return results[0]

    async def call_detached(self, name: str, function: Callable[[], Awaitable[R]]) -> R:
        """Calls and awaits a function in an owner task, because the function may ignore cancellation."""

        async def detached() -> R:
            results: list[R] = []
            errors: list[Exception] = []

            @asynccontextmanager
            async def result() -> AsyncGenerator[None]:
                try:
                    results.append(await function())
                except Exception as exc:  # noqa: BLE001 - raised below, without a note
                    errors.append(exc)
                yield

            helper = ConnectionManager.from_factory(result, name=HELPER + name)
            await helper.start()
            await helper.stop()
            for error in errors:
                raise error
            return results[0]

        return await self.call(name, detached)

    async def error_of(self, name: str, function: Callable[[], Awaitable[object]]) -> Exception | None:
        """Calls and awaits a function, and returns the exception that the function raises, if any.

        Raises:
            BrokenRuleError: The call did not end in time.
        """
        scope = CancelScope()
        place = "it blocked the event loop"
        deadline = current_time() + self.timeout

        async def expire() -> None:
            nonlocal place
            await sleep(self.timeout)
            place = self._whereabouts()
            scope.cancel()
            await sleep_forever()

        async with alongside(expire):
            with scope:
                error = None
                try:
                    await function()
                except Exception as exc:  # noqa: BLE001 - the caller decides
                    error = exc
                # A function that ignores its cancellation or blocks the event loop ends too late.
                if current_time() <= deadline:
                    return error
        raise BrokenRuleError(f"{name} did not end within {self.timeout:g} s; {place}")

    def _whereabouts(self) -> str:
        tasks = [task for task in get_running_tasks() if self._before.is_new(task)]
        places = [
            f"{task.name!r} was waiting {waiting_place(task.coro)}"
            for task in tasks
            if str(task.name).startswith("owner task of ") and not str(task.name).endswith(BACKGROUND)
        ]
        return "; ".join(places) or "no owner task was waiting"

    # Checks.

    def look(self) -> None:
        """Remembers the processes of an open connection."""
        self._before.look()

    def check_closed(self, manager: ConnectionManager[T], when: str) -> None:
        """Checks that a manager was closed and that nothing failed."""
        if manager.state is not ConnectionState.CLOSED:
            self.fail_for_state(manager, when)

    def fail_for_state(self, manager: ConnectionManager[T], when: str) -> NoReturn:
        """Reports a wrong state."""
        error = manager.exception
        seen = f"{when}, the state was {manager.state.value}"
        if error is not None:
            seen += f" because of {described(error)}"
        if manager.state not in OVER:
            seen += f"; {self._whereabouts()}"
        raise BrokenRuleError(seen, error)

    async def check_works_again(self, manager: ConnectionManager[T], when: str) -> None:
        """Starts a manager that failed or was stopped, uses its connection, and stops it.

        Another connection may replace, and so hide, what the last one left.
        """
        await self.check_nothing_is_left(f"after {when}")
        try:
            await self.start(manager)
            await self.stop(manager)
        except BrokenRuleError as broken:
            broken.seen = f"after {when}, the manager was started again: {broken.seen}"
            raise

    async def check_nothing_is_left(self, when: str) -> None:
        """Checks that no resource is left that did not exist when the trial began."""
        left = await first_leak(self._before, self.timeout)
        if left is not None:
            leak, what = left
            raise BrokenRuleError(f"{when}, {what}", sentence=leak.sentence)


@asynccontextmanager
async def alongside(
    function: Callable[[], Awaitable[object]],
) -> AsyncGenerator[ConnectionManager[None]]:
    """Runs a function in another task during the block. The function must not return.

    Unlike a task group, this does not change the exception that the block raises.

    Yields:
        The manager of the other task. If something cancels that task, its state is not `OPEN` anymore.
    """
    helper = ConnectionManager.from_factory(nullcontext, name=BACKGROUND, watch=lambda _: function())
    await helper.start()
    try:
        yield helper
    finally:
        with suppress(StopTimeoutError):  # the function ignores its cancellation
            await helper.stop(0)


def set_policy(manager: ConnectionManager[object], policy: ReconnectPolicy | None) -> None:
    """Sets a policy, also if the manager is a frozen dataclass or forbids to set attributes."""
    with suppress(AttributeError):  # a property that computes the policy
        object.__setattr__(manager, "reconnect", policy)


def described(error: BaseException) -> str:
    """Returns the type of an exception. The text of an exception may contain secrets."""
    kind = type(error).__name__
    return f"{kind} ({error})" if isinstance(error, ConnectionManagerError) else kind
