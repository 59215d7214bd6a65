"""The listeners of a manager, which are called at each change of its state."""

from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Generic, TypeVar

from ._log import ERROR, log
from .state import ConnectionState

__all__ = ["Listeners"]

M = TypeVar("M")

Listener = Callable[[M, ConnectionState, ConnectionState], object]


class Listeners(Generic[M]):
    """Functions to call at each change, in the order in which they were added."""

    def __init__(self) -> None:
        # Each with the context variables of the code that added it. In the context of an owner task, a
        # task that a listener creates would count as a part of the run.
        self._listeners: dict[Listener[M], Context] = {}
        self._changes: deque[tuple[M, ConnectionState, ConnectionState]] = deque()
        self._is_announcing = False

    def add(self, callback: Listener[M]) -> None:
        """Adds a listener, unless it was added before."""
        self._listeners.setdefault(callback, copy_context())

    def remove(self, callback: Listener[M]) -> None:
        """Removes a listener, if it was added."""
        self._listeners.pop(callback, None)

    def queue(self, manager: M, old: ConnectionState, new: ConnectionState) -> None:
        """Records a change. Call it before any foreign code runs, which may cause the next change."""
        self._changes.append((manager, old, new))

    def announce(self) -> None:
        """Calls the listeners for each recorded change, including those that a listener causes."""
        if self._is_announcing:
            return
        self._is_announcing = True
        try:
            while self._changes:
                change = self._changes.popleft()
                for callback, context in tuple(self._listeners.items()):
                    if callback in self._listeners:  # no other listener has removed it
                        self._call(callback, context.copy(), change)
        finally:
            self._is_announcing = False

    def _call(
        self,
        callback: Listener[M],
        context: Context,
        change: tuple[M, ConnectionState, ConnectionState],
    ) -> None:
        try:
            context.run(callback, *change)
        except KeyboardInterrupt:  # from the user, not from the listener
            raise
        except BaseException as exc:  # noqa: BLE001 - it must not affect the connection
            log(
                ERROR,
                "%s: a listener raised an exception",
                getattr(change[0], "name", "?"),
                exc_info=exc,
            )
