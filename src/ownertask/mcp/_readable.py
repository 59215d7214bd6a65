"""Waits repeatedly until a pipe is readable, on asyncio.

anyio's `wait_readable()` registers the descriptor with the event loop for each call, and removes it
afterwards. For a short message, that takes longer than everything else on this side of the pipe.
"""

from collections.abc import Callable
from typing import Any

from anyio.lowlevel import current_token

__all__ = ["Readable"]


class Readable:
    """Calls a function whenever a pipe is readable while a task waits for that.

    `wait()` registers the pipe with the event loop. The pipe stays registered until it is readable while
    no task waits, or until `close()`.
    """

    def __init__(self, descriptor: int, on_readable: Callable[[], object]) -> None:
        self._descriptor = descriptor
        self._on_readable = on_readable
        # Any: the event loop, whose type only asyncio knows, and its future.
        self._loop: Any = current_token().native_token
        self._waiter: Any = None
        self._is_registered = False

    @staticmethod
    def is_supported() -> bool:
        """Returns whether the current task runs on asyncio."""
        return current_token().backend_class.__name__ != "TrioBackend"

    async def wait(self) -> None:
        """Waits until the function was called, or until `close()`. Only one task can wait at a time."""
        self._waiter = self._loop.create_future()
        if not self._is_registered:
            self._loop.add_reader(self._descriptor, self._call)
            self._is_registered = True
        await self._waiter

    def _call(self) -> None:
        if self._waiter.done():
            self._unregister()  # otherwise, the event loop would call this again and again
        else:
            self._on_readable()
            self._waiter.set_result(None)

    def _unregister(self) -> None:
        if self._is_registered:
            self._is_registered = False
            self._loop.remove_reader(self._descriptor)

    def close(self) -> None:
        """Ends a call of `wait()`, so that the descriptor can be closed."""
        self._unregister()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
