"""The `async with` blocks of a manager. The last block that exits stops the run.

A block belongs to a series of runs (`_series.py`), so a `ReconnectPolicy` does not end it.

Each exit is matched with one entry: the newest that the same task made. Blocks may also be exited in
another task. In a task without an entry, an exit is matched with the oldest entry, preferably in a run
that is over, because a connection in use should rather close late than early.
"""

from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary, ref

if TYPE_CHECKING:
    from ._backend import EventLoop

__all__ = ["Blocks"]


class Series(Protocol):
    """The part of a series that matters here."""

    @property
    def is_alive(self) -> bool:
        """`True` if an owner task can still run."""
        ...

    def is_in(self, loop: "EventLoop") -> bool:
        """Returns whether the series belongs to `loop`."""
        ...


class Blocks:
    """The entries of the blocks that have not exited yet."""

    def __init__(self) -> None:
        self._waiting: set[Waiting] = set()
        self._series: Series | None = None
        self._tasks: list[ref[object]] = []  # one entry each, in the current series, oldest first
        self._has_exit = False  # in the current series
        # Entries in series that are over: the total, and the number per task, if the task still exists.
        self._over = 0
        self._over_by_task: WeakKeyDictionary[object, int] = WeakKeyDictionary()

    def wait(self, loop: "EventLoop") -> "Waiting":
        """Counts a block from now on, before it has a connection."""
        waiting = Waiting(loop)
        self._waiting.add(waiting)
        return waiting

    def give_up(self, waiting: "Waiting") -> None:
        """Stops counting a block that gets no connection."""
        self._waiting.discard(waiting)

    def enter(self, waiting: "Waiting", series: Series) -> None:
        """Records that a block has a connection."""
        self._waiting.discard(waiting)
        self._sort_out(series)
        self._tasks.append(ref(waiting.loop.current_task()))

    def exit(self, task: object) -> bool:
        """Removes the entry that matches an exit in `task`. Returns whether its series is alive."""
        self._sort_out(self._series)
        here = ref(task)
        if here in self._tasks:
            self._remove(len(self._tasks) - 1 - self._tasks[::-1].index(here))
            return True
        if task in self._over_by_task:
            self._forget_one(task)
        elif self._over > sum(self._over_by_task.values()):
            self._over -= 1
        elif self._over:
            self._forget_one(next(iter(self._over_by_task)))
        elif self._tasks:
            self._remove(0)
            return True
        return False

    def need(self, series: Series) -> bool:
        """Returns whether a block uses the connection, or waits to enter."""
        self._sort_out(self._series)
        is_used = self._series is series and bool(self._tasks)
        return is_used or any(series.is_in(waiting.loop) for waiting in tuple(self._waiting))

    def have_finished(self, series: Series) -> bool:
        """Returns whether blocks used the connection, and all of them have exited."""
        return not self.need(series) and self._series is series and self._has_exit

    def _remove(self, index: int) -> None:
        del self._tasks[index]
        self._has_exit = True

    def _sort_out(self, series: Series | None) -> None:
        """Moves the entries of a series that is over, and makes `series` the current one."""
        if self._series is not None and (self._series is not series or not self._series.is_alive):
            for task in self._tasks:
                self._over += 1
                if (living := task()) is not None:
                    self._over_by_task[living] = self._over_by_task.get(living, 0) + 1
            self._tasks.clear()
        if self._series is not series:
            self._has_exit = False
        self._series = series if series is not None and series.is_alive else None

    def _forget_one(self, task: object) -> None:
        self._over -= 1
        self._over_by_task[task] -= 1
        if not self._over_by_task[task]:
            del self._over_by_task[task]


class Waiting:
    """A block that waits for its connection.

    Attributes:
        loop: The event loop in which it waits.
    """

    def __init__(self, loop: "EventLoop") -> None:
        self.loop = loop
