"""Ends what a closed event loop left running outside Python, such as a server process.

A task of a closed event loop can never clean up. So a transport also registers a synchronous function,
which runs at the first of these moments, and only in the process that registered it:

* a call on any manager after the event loop was closed
* the garbage collector frees the transport's object (on asyncio, anyio usually prevents this)
* the interpreter exits
"""

import atexit
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import finalize, ref

if TYPE_CHECKING:
    from ._backend import EventLoop

__all__ = ["Leftover", "end_leftovers", "leftovers"]

leftovers: "dict[ref[EventLoop], set[Leftover]]" = {}
"""The registered functions of each event loop."""


class Leftover:
    """Something that must be ended even if its event loop can no longer end it."""

    def __init__(self, loop: "EventLoop", owner: object, end: Callable[[], str]) -> None:
        """Registers a function.

        Args:
            loop: The event loop that should clean up.
            owner: The object whose collection also calls `end`.
            end: Ends what was left, and returns the text of a `ResourceWarning`, or an empty text. If
                it refers to `owner`, `owner` stays alive, and the garbage collector never calls `end`.
        """
        self._loop = ref(loop)
        self._finalizer = finalize(owner, _end, os.getpid(), end)
        self._finalizer.atexit = False
        leftovers.setdefault(self._loop, set()).add(self)

    def end(self) -> None:
        """Calls the function, unless it was called before."""
        registration = self._finalizer.detach()  # at exit, a finalizer cannot be called
        self._remove()
        if registration is not None:
            _, function, arguments, _ = registration
            function(*arguments)

    def forget(self) -> None:
        """Never calls the function, because the event loop cleans up."""
        self._finalizer.detach()
        self._remove()

    def _remove(self) -> None:
        registered = leftovers.get(self._loop, set())
        registered.discard(self)
        if not registered:
            leftovers.pop(self._loop, None)


def end_leftovers() -> None:
    """Ends what closed event loops left behind."""
    for reference in tuple(leftovers):
        loop = reference()
        if loop is None or not loop.is_alive():
            for leftover in tuple(leftovers.pop(reference, ())):
                leftover.end()


@atexit.register  # at import, so that functions which the application registers later run first
def _end_all() -> None:
    for reference in tuple(leftovers):
        for leftover in tuple(leftovers.get(reference, ())):
            leftover.end()


def _end(process_id: int, end: Callable[[], str]) -> None:
    if os.getpid() == process_id:  # a forked child must not end what belongs to its parent
        message = end()
        if message:
            _Warner(message)


class _Warner:
    """Issues a warning while it is freed. Then `-W error` makes Python print it, but not raise it."""

    def __init__(self, message: str) -> None:
        self._message = message

    def __del__(self) -> None:
        warnings.warn(self._message, ResourceWarning, stacklevel=2)
