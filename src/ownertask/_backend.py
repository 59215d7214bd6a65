"""Starts the owner task on asyncio or trio. No other file imports either.

An owner task is *detached*: it is not a child of the starting task's task groups or cancel scopes. On
both backends it runs in the given context and under the given name, even if the application has set
its own task factory. It takes its first step after the call that starts it has returned.

On asyncio, a `task.cancel()` from outside does not reach the coroutine. The task calls `on_cancel`
instead, which cancels the owner's scope. Only a scope repeats its cancellation, so a transport that
shields itself for a while, or retries, cannot miss it. A native one that arrives at the wrong moment
makes the exit of the SDK's stdio transport hang forever. On trio, only the end of the trio run cancels a
system task from outside.

This file is imported when a run begins, because importing asyncio takes longer than importing the
rest of ownertask.
"""

import asyncio
import inspect
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Final, Protocol, TypeVar
from weakref import ref

from anyio import CancelScope
from anyio.abc import AsyncBackend
from anyio.lowlevel import current_token
from typing_extensions import override

if TYPE_CHECKING:
    from trio.lowlevel import RunVar

__all__ = ["EventLoop", "current_event_loop", "running"]

T = TypeVar("T")

# anyio cancels tasks with this message, again and again until they exit the cancelled scope.
_ANYIO_CANCELLATION = "Cancelled via cancel scope "

# These modules cancel the task that runs them, and later call `uncancel()`. If their cancellations
# were turned into a cancellation of the scope, a timeout inside a client's retry loop would end the
# connection.
_SELF_CANCELLING_MODULES = frozenset(
    {"aiohttp.helpers", "async_timeout", "asyncio.taskgroups", "asyncio.timeouts"}
)


class Timer(Protocol):
    """A scheduled callback."""

    def cancel(self) -> None:
        """Cancels the callback."""


class EventLoop(ABC):
    """The asyncio event loop or the trio run in which a manager was started.

    The loop itself holds this object.
    """

    cancelled_type: type[BaseException]
    """The exception class that is thrown into a cancelled task."""

    def __init__(self) -> None:
        self._process_id = os.getpid()
        # asyncio keeps only weak references to its tasks.
        self.owner_tasks: set[object] = set()

    def is_alive(self) -> bool:
        """Returns whether tasks can still run. In a forked child or a closed loop they can't.

        May be called from any thread.
        """
        return self.is_of_this_process() and not self._is_closed()

    def is_of_this_process(self) -> bool:
        """Returns whether the loop was first used in this process, and not before a fork."""
        return self._process_id == os.getpid()

    @property
    @abstractmethod
    def native(self) -> object:
        """The asyncio loop or the `TrioToken`, or `None` if the asyncio loop has been freed."""

    @abstractmethod
    async def wait(self, wake_ups: set[Callable[[], object]], deadline: float | None) -> None:
        """Adds a callback to `wake_ups` and waits until it is called or `deadline` has passed."""

    async def shielded(self, function: Callable[[], Awaitable[None]]) -> None:
        """Calls and awaits a function, shielded from the cancel scopes around the caller."""
        try:
            with self.create_cancel_scope(shield=True):
                await function()
        except BaseException:
            self.check_not_collected()
            raise

    def check_not_collected(self) -> None:
        """Raises `GeneratorExit` if the loop is closed and the garbage collector is closing the caller.

        Call it after a cancel scope raised an exception. Outside its loop, a scope cannot be exited.
        """
        if not self.is_current():
            raise GeneratorExit

    def create_cancel_scope(self, *, shield: bool = False) -> CancelScope:
        """Creates a cancel scope without a deadline."""
        return _anyio_backend(type(self)).create_cancel_scope(shield=shield)

    def checkpoint(self) -> Awaitable[None]:
        """Lets other tasks run once."""
        return _anyio_backend(type(self)).checkpoint()

    @abstractmethod
    def is_current(self) -> bool:
        """Returns whether the caller is running in this loop."""

    def is_other(self) -> bool:
        """Returns whether the caller is running in another loop."""
        native = running()
        return native is not None and native is not self.native

    @abstractmethod
    def _is_closed(self) -> bool:
        """Returns whether the loop is closed. May be called from any thread."""

    @abstractmethod
    def contain(self, coroutine: Coroutine[object, None, None], name: str) -> Awaitable[None]:
        """Awaits `coroutine` so that a scope that it leaves open does not end a trio run.

        Args:
            coroutine: The coroutine to await.
            name: The name of the task in which it runs, if that is a new one.
        """

    @abstractmethod
    def time(self) -> float:
        """Returns the time, in seconds, of the clock that deadlines of cancel scopes use.

        It never raises, because the garbage collector may end a block after the loop was closed.
        """

    @abstractmethod
    def current_task(self) -> object:
        """Returns the running task, or `None`."""

    @abstractmethod
    def is_ending(self, task: object) -> bool:
        """Returns whether the shutdown of the loop cancelled `task`.

        Call it in the task that called `contain()`.
        """

    @abstractmethod
    def reraise(self, error: BaseException, task: object) -> None:
        """Lets an exception propagate as far as the backend allows.

        Call it at the end of the task that called `contain()`.
        """

    @abstractmethod
    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Calls `callback` in the loop after `seconds`, unless the timer is cancelled first."""

    @abstractmethod
    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        """Calls `callback` in the loop soon. Does nothing if the loop is closed."""

    @abstractmethod
    def start_task(
        self,
        coroutine: Coroutine[object, None, None],
        *,
        name: str,
        context: Context,
        on_cancel: Callable[[], object],
    ) -> object:
        """Starts a detached task, adds it to `owner_tasks`, and returns it.

        Args:
            coroutine: The coroutine to run. On trio, it must not raise.
            name: The name of the task, as shown by `asyncio.all_tasks()` and trio's task tree.
            context: The context in which the task runs. It is not copied.
            on_cancel: Called in the loop for each `task.cancel()` from outside (asyncio only).
        """


_ATTRIBUTE: Final = "_ownertask_event_loop"


def running() -> object:
    """Returns the asyncio loop or the `TrioToken` in which the caller runs, or `None`.

    One of the two may run inside the other, for example trio in guest mode.
    """
    sniffio = sys.modules.get("sniffio")  # trio imports it, and records there whether it is running
    if sniffio is not None and getattr(sniffio.thread_local, "name", None) == "trio":
        token: object = sys.modules["trio"].lowlevel.current_trio_token()
        return token
    return asyncio._get_running_loop()


def current_event_loop() -> EventLoop:
    """Returns the loop in which the caller is running, the same object each time.

    Raises:
        anyio.NoEventLoopError: No event loop is running.
    """
    native = running()
    if native is None:
        current_token()  # raises
    loop = asyncio._get_running_loop()
    if loop is None or native is not loop:
        return _trio_event_loop()
    event_loop = getattr(loop, _ATTRIBUTE, None)
    if type(event_loop) is not _AsyncioEventLoop or not event_loop.is_of_this_process():
        event_loop = _AsyncioEventLoop(loop)
        setattr(loop, _ATTRIBUTE, event_loop)
    return event_loop


def _trio_event_loop() -> EventLoop:
    variable = _trio_variables.get(_ATTRIBUTE)
    if variable is None:
        from trio.lowlevel import RunVar  # trio is optional, and the only other backend of anyio

        # Several threads may get here at once. All of them must use the same variable.
        variable = _trio_variables.setdefault(_ATTRIBUTE, RunVar(_ATTRIBUTE))
    event_loop = variable.get(None)
    if event_loop is None or not event_loop.is_of_this_process():
        event_loop = _TrioEventLoop()
        variable.set(event_loop)
    return event_loop


_trio_variables: "dict[str, RunVar[_TrioEventLoop | None]]" = {}


@cache
def _anyio_backend(_: type[EventLoop]) -> type[AsyncBackend]:
    # Cached: looking up the backend takes longer than the calls that need it.
    return current_token().backend_class


class _AsyncioOwnerTask(asyncio.Task[None]):
    """A task that calls `on_cancel` when other code cancels it."""

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
        # While shutting down, `asyncio.run` calls this when the loop is not running. anyio's functions
        # would raise then, so `on_cancel` is called when the loop runs again.
        loop = self.get_loop()
        self.loop_is_ending = not loop.is_running()
        loop.call_soon_threadsafe(self.on_cancel)
        return True


class _AsyncioEventLoop(EventLoop):
    cancelled_type = asyncio.CancelledError

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._reference = ref(loop)  # so that a manager does not keep the loop of its last run

    @property
    @override
    def native(self) -> object:
        return self._reference()

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = self._reference()
        assert loop is not None
        return loop

    @override
    async def wait(self, wake_ups: set[Callable[[], object]], deadline: float | None) -> None:
        future = self._loop.create_future()

        def wake_up() -> None:
            if not future.done():
                future.set_result(None)

        wake_ups.add(wake_up)
        timer = None
        if deadline is not None and deadline < inf:
            timer = self._loop.call_at(deadline, wake_up)
        try:
            await future
        finally:
            wake_ups.discard(wake_up)
            if timer is not None:
                timer.cancel()

    @override
    def _is_closed(self) -> bool:
        loop = self._reference()
        return loop is None or loop.is_closed()

    @override
    def contain(self, coroutine: Coroutine[object, None, None], name: str) -> Awaitable[None]:
        return coroutine

    @override
    def is_current(self) -> bool:
        loop = self._reference()
        return loop is not None and running() is loop

    @override
    def time(self) -> float:
        loop = self._reference()
        return 0.0 if loop is None else loop.time()

    @override
    def current_task(self) -> object:
        return asyncio.current_task(self._loop)

    @override
    def is_ending(self, task: object) -> bool:
        assert isinstance(task, _AsyncioOwnerTask)
        return task.loop_is_ending

    @override
    def reraise(self, error: BaseException, task: object) -> None:
        # During shutdown, the main task has already raised it, and raising it again would stop the
        # cleanup.
        if not self.is_ending(task):
            raise error

    @override
    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return self._loop.call_later(seconds, callback)

    @override
    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        loop = self._reference()
        if loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(callback)

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
    def __init__(self) -> None:
        import trio

        self._trio = trio
        self.cancelled_type = trio.Cancelled
        self._token = trio.lowlevel.current_trio_token()
        self._clock = trio.lowlevel.current_clock()
        super().__init__()

    @property
    @override
    def native(self) -> object:
        return self._token

    @override
    def is_current(self) -> bool:
        return running() is self._token

    @override
    async def wait(self, wake_ups: set[Callable[[], object]], deadline: float | None) -> None:
        event = self._trio.Event()
        wake_ups.add(event.set)
        try:
            if deadline is None:  # closing a task outside its loop must not touch a scope
                await event.wait()
            else:
                with self._trio.CancelScope(deadline=deadline):
                    await event.wait()
        finally:
            wake_ups.discard(event.set)

    @override
    def _is_closed(self) -> bool:
        # trio ends its system tasks before a trio run ends normally, so this matters only after a crash.
        # The token offers no other way to find out.
        if self.is_current():
            return False
        try:
            self._token.run_sync_soon(_do_nothing, idempotent=True)
        except (self._trio.RunFinishedError, OSError):  # OSError: the run has crashed
            return True
        return False

    @override
    def time(self) -> float:
        return self._clock.current_time()

    @override
    def current_task(self) -> object:
        return self._trio.lowlevel.current_task()

    @override
    async def contain(self, coroutine: Coroutine[object, None, None], name: str) -> None:
        # If a task ends with an open nursery or a corrupted stack of cancel scopes, trio raises an error
        # in its place. From a system task, that error would crash the whole trio run. So the task that
        # runs foreign code is a child.
        is_done = False

        async def run() -> None:
            nonlocal is_done
            await coroutine
            is_done = True

        try:
            async with self._trio.open_nursery() as nursery:
                nursery.start_soon(self._trio.lowlevel.enable_ki_protection(run), name=name)
        except BaseException:
            # Afterwards, only trio raises here: for a broken stack, or because the trio run ends.
            if not is_done:
                raise

    @override
    def is_ending(self, task: object) -> bool:
        # Only the end of the trio run cancels the scope around a system task.
        return self._trio.current_effective_deadline() == -inf

    @override
    def reraise(self, error: BaseException, task: object) -> None:
        # An exception that leaves a system task crashes the trio run. However, trio raises Ctrl-C in the
        # task that happens to be running, which may be a child of this one. Here trio defers the
        # signal, so if it is sent again from here, it reaches the main task.
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
        with suppress(self._trio.RunFinishedError, OSError):
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
        task = self._trio.lowlevel.spawn_system_task(
            lambda: coroutine, name="ownertask supervisor", context=context
        )
        self.owner_tasks.add(task)
        return task


def _do_nothing() -> None:
    pass
