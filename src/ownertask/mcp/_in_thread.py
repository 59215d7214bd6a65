"""Calls functions that may block in daemon threads.

anyio's worker threads are not daemon threads. If an event loop is closed while a task waits for such a
thread, the interpreter cannot exit before the thread ends.
"""

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

from anyio import Event

from .._backend import current_event_loop

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(function: Callable[[], T], *, abandon_on_cancel: bool = False) -> T:
    """Calls a function in a new thread, and returns its result.

    Args:
        function: The function.
        abandon_on_cancel: Whether a cancelled caller leaves the function running in its thread. If not,
            even a cancelled caller waits for the function, which must not take long.
    """
    loop = current_event_loop()
    is_done = Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised in the caller's task
            errors.append(error)
        loop.call_soon_threadsafe(is_done.set)

    thread = Thread(target=run, name="ownertask", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is exiting, or there are too many threads
        if abandon_on_cancel:
            raise
        return function()
    if abandon_on_cancel:
        await is_done.wait()
    else:
        await loop.shielded(is_done.wait)
    thread.join()  # the thread is about to end
    if errors:
        raise errors.pop()
    return results.pop()
