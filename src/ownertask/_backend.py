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
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context
from math import inf
from types import TracebackType, coroutine
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from weakref import ref

from anyio import CancelScope
from anyio.lowlevel import current_token
from typing_extensions import override

from ._signal_handlers import in_signal_handler

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


class Scope(Protocol):
    """A cancel scope of anyio or trio."""

    @property
    def shield(self) -> bool:
        """`True` if the scope ignores the cancellation of the scopes around it."""
        ...

    @shield.setter
    def shield(self, value: bool, /) -> None: ...

    def cancel(self) -> None:
        """Cancels the code inside the scope."""

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool | None: ...


class EventLoop(ABC):
    """The asyncio event loop or the trio run in which a manager was started.

    The loop itself holds this object.
    """

    cancelled_type: type[BaseException]
    """The exception class that is thrown into a cancelled task."""

    # These are attributes, because calling a method that wraps them would take as long as most of them.
    create_cancel_scope: Callable[[], Scope]
    """Creates a cancel scope without a deadline."""

    checkpoint: Callable[[], Awaitable[None]]
    """Lets other tasks run once."""

    # Imported with this module. Later, an interpreter that is exiting may be unable to import it.
    in_signal_handler = staticmethod(in_signal_handler)

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
    async def wait(self, waiters: set[Any], deadline: float | None) -> None:
        """Adds a waiter to a set, and waits until it is woken up or `deadline` has passed."""

    @abstractmethod
    def wake_up(self, waiter: Any) -> None:  # noqa: ANN401 - the class depends on the backend
        """Wakes up a waiter of this loop: a future (asyncio) or an event (trio)."""

    async def shielded(self, function: Callable[[], Awaitable[None]]) -> None:
        """Calls and awaits a function, shielded from the cancel scopes around the caller."""
        scope = self.create_cancel_scope()
        scope.shield = True
        try:
            with scope:
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
    def leave_scopes(self, *, is_broken: bool) -> None:
        """Leaves the cancel scopes and nurseries that foreign code did not exit in the current task.

        Args:
            is_broken: Whether exiting the outermost cancel scope raised an exception.
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
        """Returns whether the shutdown of the loop cancelled `task`. Call it in that task."""

    @abstractmethod
    def reraise(self, error: BaseException, task: object) -> None:
        """Lets an exception propagate as far as the backend allows. Call it at the end of `task`."""

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


@coroutine
def _one_iteration() -> Generator[None]:
    """Does what `asyncio.sleep(0)` does, in less time."""
    yield


class _AsyncioOwnerTask(asyncio.Task[None]):
    """A task that calls `on_cancel` when other code cancels it."""

    __slots__ = ("loop_is_ending", "on_cancel")

    on_cancel: Callable[[], object]
    loop_is_ending: bool

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
        self.create_cancel_scope = type(CancelScope())  # anyio's class for asyncio
        self.checkpoint = _one_iteration

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
    async def wait(self, waiters: set[Any], deadline: float | None) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        waiters.add(future)
        timer = None
        if deadline is not None and deadline < inf:
            timer = self._loop.call_at(deadline, self.wake_up, future)
        try:
            await future
        finally:
            waiters.discard(future)
            if timer is not None:
                timer.cancel()

    @override
    def wake_up(self, waiter: Any) -> None:
        if not waiter.done():
            waiter.set_result(None)

    @override
    def _is_closed(self) -> bool:
        loop = self._reference()
        return loop is None or loop.is_closed()

    @override
    def leave_scopes(self, *, is_broken: bool) -> None:
        pass

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
        task.loop_is_ending = False
        self.owner_tasks.add(task)
        return task


class _TrioEventLoop(EventLoop):
    def __init__(self) -> None:
        import trio

        self._trio = trio
        self.cancelled_type = trio.Cancelled
        self.create_cancel_scope = trio.CancelScope
        self.checkpoint = trio.lowlevel.checkpoint
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
    async def wait(self, waiters: set[Any], deadline: float | None) -> None:
        event = self._trio.Event()
        waiters.add(event)
        try:
            if deadline is None:  # closing a task outside its loop must not touch a scope
                await event.wait()
            else:
                with self._trio.CancelScope(deadline=deadline):
                    await event.wait()
        finally:
            waiters.discard(event)

    @override
    def wake_up(self, waiter: Any) -> None:
        waiter.set()

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
    def leave_scopes(self, *, is_broken: bool) -> None:
        task: Any = self._trio.lowlevel.current_task()
        if not is_broken and not task.child_nurseries:
            return
        # Otherwise, trio would raise an error at the end of the task, and an error in a system task
        # crashes the whole trio run. In a system task, only private names can prevent that. A child task
        # would contain the error, but would make each start and stop much slower.
        for nursery in task.child_nurseries:
            nursery.cancel_scope.cancel()
            nursery._closed = True  # refuses new tasks
        task._child_nurseries.clear()
        task._activate_cancel_status(task.parent_nursery._cancel_status)

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
        task = self._trio.lowlevel.spawn_system_task(lambda: coroutine, name=name, context=context)
        self.owner_tasks.add(task)
        return task


def _do_nothing() -> None:
    pass
