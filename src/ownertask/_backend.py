"""Starts the owner task on asyncio or trio; no other file imports either.

An owner task is *detached*: no task group and no cancel scope of its starter contains it. On both
backends it runs in the given context and under the given name, whatever task factory the
application has set, and it takes its first step after the call that started it.

On asyncio a foreign `task.cancel()` is not delivered to it. It becomes a call of `on_cancel`, which
cancels the owner's scope, because only that kind of cancellation gets through the shields and
retries inside transports: a native one that comes at the wrong moment hangs the SDK's stdio exit
for ever. On trio nothing but the end of the run cancels a system task from outside.

This file is imported when a run begins, not when ownertask is: asyncio costs more than the rest of
the library together.
"""

import asyncio
import inspect
import signal
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Protocol, TypeVar

from anyio import CancelScope
from anyio.abc import AsyncBackend
from anyio.lowlevel import current_token
from typing_extensions import override

if TYPE_CHECKING:
    from trio.lowlevel import TrioToken

__all__ = ["EventLoop", "current_event_loop"]

T = TypeVar("T")

# How anyio marks its deliveries, which it repeats until the cancelled scope is left.
_ANYIO_CANCELLATION = "Cancelled via cancel scope "

# These cancel the task that runs them and take it back by `uncancel()`. Were it turned into a
# cancellation of the scope, a time-out inside a client's own retry would end the connection.
_SELF_CANCELLING_MODULES = frozenset(
    {"aiohttp.helpers", "async_timeout", "asyncio.taskgroups", "asyncio.timeouts"}
)


class Timer(Protocol):
    """What is to come, and may be cancelled."""

    def cancel(self) -> None:
        """Has it not happen."""


class EventLoop(ABC):
    """The event loop of asyncio, or the run of trio, that a manager's run belongs to."""

    cancelled_type: type[BaseException]
    """What is thrown into a cancelled task."""

    def __init__(self) -> None:
        # asyncio itself refers to its tasks weakly.
        self.owner_tasks: set[object] = set()

    @abstractmethod
    async def wait(self, wake_ups: set[Callable[[], object]], deadline: float | None) -> None:
        """Puts a callback into `wake_ups`, and waits for its call, until `deadline` at most."""

    def create_cancel_scope(self, *, shield: bool = False) -> CancelScope:
        """A cancel scope without a deadline."""
        return _anyio_backend(type(self)).create_cancel_scope(shield=shield)

    def checkpoint(self) -> Awaitable[None]:
        """Gives the other tasks a turn."""
        return _anyio_backend(type(self)).checkpoint()

    def shielded_checkpoint(self) -> Awaitable[None]:
        """Does that, and cannot be cancelled."""
        return _anyio_backend(type(self)).cancel_shielded_checkpoint()

    @abstractmethod
    def is_current(self) -> bool:
        """Whether the caller runs in this loop."""

    @abstractmethod
    def is_closed(self) -> bool:
        """Whether nothing can run in this loop any more; may be asked from any thread."""

    @abstractmethod
    def time(self) -> float:
        """The clock, in seconds, by which cancel scopes count their deadlines here."""

    @abstractmethod
    def current_task(self) -> object:
        """The task that runs at present, or `None`."""

    @abstractmethod
    def is_ending(self, task: object) -> bool:
        """Whether the loop's own end has cancelled `task`; asked in it, outside its cancel scopes."""

    @abstractmethod
    def reraise(self, error: BaseException, task: object) -> None:
        """Lets a `BaseException` go on as it does from other tasks; called in `task`, at its end."""

    @abstractmethod
    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Calls `callback` in the loop after so many seconds, unless the timer is cancelled."""

    @abstractmethod
    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        """Calls `callback` in the loop, soon; never, if the loop is closed."""

    @abstractmethod
    def start_task(
        self,
        coroutine: Coroutine[object, None, None],
        *,
        name: str,
        context: Context,
        on_cancel: Callable[[], object],
    ) -> object:
        """Starts and returns a detached task, which is in `owner_tasks` until it is taken out.

        Args:
            coroutine: What the task runs. On trio, no exception may leave it.
            name: How the task shows in `asyncio.all_tasks()` and in trio's task tree.
            context: The context that the task runs in, not a copy of it.
            on_cancel: Called in the loop for each foreign `task.cancel()` (asyncio only).
        """


_event_loops: dict[object, EventLoop] = {}


def current_event_loop() -> EventLoop:
    """The loop that the calling task runs in, the same object each time.

    Raises:
        RuntimeError: There is none.
    """
    loop = asyncio._get_running_loop()
    # Without a task of asyncio's, this may be trio as a guest in a loop of asyncio's.
    if loop is not None and asyncio.current_task(loop) is not None:
        return _known(loop, _AsyncioEventLoop)
    import trio  # an optional dependency, and the only other that anyio runs on

    return _known(trio.lowlevel.current_trio_token(), _TrioEventLoop)


def _known(native: T, make: Callable[[T], EventLoop]) -> EventLoop:
    if native not in _event_loops:
        for old in [old for old, event_loop in _event_loops.items() if event_loop.is_closed()]:
            del _event_loops[old]
        _event_loops[native] = make(native)
    return _event_loops[native]


@cache
def _anyio_backend(_: type[EventLoop]) -> type[AsyncBackend]:
    # Found once: asking each time costs more than what is then asked for.
    return current_token().backend_class


class _AsyncioOwnerTask(asyncio.Task[None]):
    """A task whose foreign cancellations are turned into calls of `on_cancel`."""

    on_cancel: Callable[[], object]
    loop_is_ending = False

    @override
    def cancel(self, msg: object = None) -> bool:
        if isinstance(msg, str) and msg.startswith(_ANYIO_CANCELLATION):
            return super().cancel(msg)
        frame = inspect.currentframe()
        caller = None if frame is None else frame.f_back
        if caller is not None and caller.f_globals.get("__name__") in _SELF_CANCELLING_MODULES:
            return super().cancel(msg)
        if self.done():
            return False
        # At its end `asyncio.run` calls this while the loop stands still, where anyio's calls raise.
        loop = self.get_loop()
        self.loop_is_ending = not loop.is_running()
        loop.call_soon_threadsafe(self.on_cancel)
        return True


class _AsyncioEventLoop(EventLoop):
    cancelled_type = asyncio.CancelledError

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop

    @override
    async def wait(self, wake_ups: set[Callable[[], object]], deadline: float | None) -> None:
        future = self._loop.create_future()

        def wake_up() -> None:
            if not future.done():
                future.set_result(None)

        wake_ups.add(wake_up)
        timer = None if deadline is None else self._loop.call_at(deadline, wake_up)
        try:
            await future
        finally:
            wake_ups.discard(wake_up)
            if timer is not None:
                timer.cancel()

    @override
    def is_current(self) -> bool:
        return asyncio._get_running_loop() is self._loop

    @override
    def is_closed(self) -> bool:
        return self._loop.is_closed()

    @override
    def time(self) -> float:
        return self._loop.time()

    @override
    def current_task(self) -> object:
        return asyncio.current_task(self._loop)

    @override
    def is_ending(self, task: object) -> bool:
        assert isinstance(task, _AsyncioOwnerTask)
        return task.loop_is_ending

    @override
    def reraise(self, error: BaseException, task: object) -> None:
        # At the end of the loop it has been raised already, and would now stop the clearing up.
        if not self.is_ending(task):
            raise error

    @override
    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return self._loop.call_later(seconds, callback)

    @override
    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(callback)

    @override
    def start_task(
        self,
        coroutine: Coroutine[object, None, None],
        *,
        name: str,
        context: Context,
        on_cancel: Callable[[], object],
    ) -> object:
        task = _AsyncioOwnerTask(coroutine, loop=self._loop, name=name, context=context)
        task.on_cancel = on_cancel
        self.owner_tasks.add(task)
        return task


class _TrioEventLoop(EventLoop):
    def __init__(self, token: "TrioToken") -> None:
        import trio

        super().__init__()
        self._trio = trio
        self.cancelled_type = trio.Cancelled
        self._token = token

    @override
    async def wait(self, wake_ups: set[Callable[[], object]], deadline: float | None) -> None:
        event = self._trio.Event()
        wake_ups.add(event.set)
        try:
            with self._trio.CancelScope(deadline=inf if deadline is None else deadline):
                await event.wait()
        finally:
            wake_ups.discard(event.set)

    @override
    def is_current(self) -> bool:
        lowlevel = self._trio.lowlevel
        return lowlevel.in_trio_run() and lowlevel.current_trio_token() is self._token

    @override
    def is_closed(self) -> bool:
        # trio ends its system tasks before a run is over, so this is about a run that has crashed;
        # its token tells in no other way.
        if self.is_current():
            return False
        try:
            self._token.run_sync_soon(_do_nothing)
        except self._trio.RunFinishedError:
            return True
        return False

    @override
    def time(self) -> float:
        return self._trio.current_time()

    @override
    def current_task(self) -> object:
        return self._trio.lowlevel.current_task()

    @override
    def is_ending(self, task: object) -> bool:
        # Nothing but the end of the run cancels what is around a system task.
        return self._trio.current_effective_deadline() == -inf

    @override
    def reraise(self, error: BaseException, task: object) -> None:
        # Whatever leaves a system task crashes the run. But trio raises a Ctrl-C in whichever task
        # runs just then, a child of this one, too. Sent again from here, where trio puts it off, it
        # goes to the main task.
        if isinstance(error, KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    @override
    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        scope = self._trio.CancelScope()

        async def wait_and_call() -> None:
            with scope:
                await self._trio.sleep(seconds)
                callback()

        self._trio.lowlevel.spawn_system_task(wait_and_call, name="ownertask timer")
        return scope

    @override
    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        with suppress(self._trio.RunFinishedError):
            self._token.run_sync_soon(callback)

    @override
    def start_task(
        self,
        coroutine: Coroutine[object, None, None],
        *,
        name: str,
        context: Context,
        on_cancel: Callable[[], object],
    ) -> object:
        task = self._trio.lowlevel.spawn_system_task(lambda: coroutine, name=name, context=context)
        self.owner_tasks.add(task)
        return task


def _do_nothing() -> None:
    pass
