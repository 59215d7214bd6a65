"""`ownertask watch`: keeps connections open, and shows their states.

It closes the connections before it ends, even if the reader of stdout is gone. Listeners only record the
changes. The task that called `keep_open()` shows them, so an output error is raised in that task and
never inside a manager.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from time import strftime
from typing import Final, Protocol, TypeVar

from anyio import Event, create_task_group, get_cancelled_exc_class, move_on_after
from typing_extensions import override

from ..errors import StopTimeoutError
from ..group import ConnectionGroup
from ..manager import ConnectionManager
from ..mcp import SessionConnectionManager, ping_every
from ..policy import ReconnectPolicy
from .arguments import Arguments
from .interrupts import Interrupts
from .output import OutputError, Screen
from .watch_rows import Row

__all__ = ["keep_open", "watch"]

T = TypeVar("T")

PING_INTERVAL: Final = 15.0
"""Seconds without a message from a server before it is pinged."""


class Display(Protocol):
    """Shows the rows.

    Attributes:
        interval: Maximum time between two calls of `show()`, in seconds; `None` means no limit.
        block: A context manager. It is entered before the first call of `show()`.
    """

    interval: float | None
    block: AbstractContextManager[object]

    def record(self, row: Row, text: str) -> None:
        """Records a change for the next call of `show()`."""
        ...

    def show(self) -> None:
        """Shows the changes.

        Raises:
            OutputError: The output cannot be written.
        """
        ...


class Lines(Display):
    """Writes a line for each change."""

    def __init__(self, screen: Screen) -> None:
        self.interval = None
        self.block = nullcontext()
        self._screen = screen
        self._lines: list[str] = []

    @override
    def record(self, row: Row, text: str) -> None:
        if text:
            self._lines.append(f"{strftime('%H:%M:%S')} {row.name}: {text}")

    @override
    def show(self) -> None:
        lines, self._lines = self._lines, []
        for line in lines:
            self._screen.line(line)


class Board:
    """The rows of all servers, and the display that shows them."""

    def __init__(self, managers: Mapping[str, ConnectionManager[object]], screen: Screen) -> None:
        self._changed = Event()
        self.rows = [
            Row(screen.clean(name), manager, screen.mask, self._record)
            for name, manager in managers.items()
        ]
        if screen.console is None:
            self.display: Display = Lines(screen)
        else:
            from .watch_table import TableDisplay  # rich may not be installed

            self.display = TableDisplay(screen.console, screen.printable, self.rows)

    @property
    def running(self) -> list[str]:
        """The names of the servers whose connections are open, or may be opened again."""
        return [row.name for row in self.rows if not row.is_ended]

    def wake(self) -> None:
        """Ends the wait in `show_until()`."""
        self._changed.set()

    async def show_until(self, is_over: Callable[[], bool]) -> None:
        """Shows each change until a condition is met. After a change of the condition, call `wake()`.

        Raises:
            OutputError: The output cannot be written.
        """
        while True:
            self._changed = Event()
            self.display.show()
            if is_over():
                return
            with move_on_after(self.display.interval):
                await self._changed.wait()

    def _record(self, row: Row, text: str) -> None:
        self.display.record(row, text)
        self.wake()


async def watch(arguments: Arguments, screen: Screen, interrupts: Interrupts) -> bool:
    """Keeps connections to all servers open, and shows their states; see `keep_open()`."""
    managers: dict[str, SessionConnectionManager] = {}
    for target in arguments.targets:
        managers[target.name] = SessionConnectionManager(
            target.transport,
            name=target.name,
            start_timeout=arguments.timeout,
            reconnect=ReconnectPolicy(),
            watch=ping_every(PING_INTERVAL, timeout=arguments.timeout),
            **target.options,
        )
    handler = logging.NullHandler()  # otherwise, Python would print warnings
    logging.getLogger().addHandler(handler)
    try:
        return await keep_open(managers, screen, interrupts)
    finally:
        logging.getLogger().removeHandler(handler)


async def keep_open(
    managers: Mapping[str, ConnectionManager[T]], screen: Screen, interrupts: Interrupts
) -> bool:
    """Keeps connections open, and shows their states.

    Args:
        managers: The managers by the names of the servers. Each has a `ReconnectPolicy`.
        screen: Where the changes are shown.
        interrupts: The source of the cancellation. The second signal forces the connections to close.

    Returns:
        `False`, after all servers have failed permanently.

    Raises:
        OutputError: The output cannot be written. The connections are closed.

    Cancellation:
        Closes the connections, and shows how they close.
    """
    # A group that waited for its members would count as opening until all of them are open. If it were
    # stopped then, it would cancel the members that are open instead of closing them.
    group = ConnectionGroup(managers, member_timeout=0, name="watch")
    board = Board(managers, screen)
    try:
        with board.display.block:
            try:
                await group.start()
                await board.show_until(lambda: not board.running)
            finally:
                with interrupts.cleanup():
                    await _close(group.stop, board, screen)
                board.display.show()  # the last changes of a forced close
    except get_cancelled_exc_class():
        if board.running:
            screen.line(f"could not be stopped: {', '.join(board.running)}", "red")
        else:
            screen.line("closed")
        raise
    subject = "the server" if len(board.rows) == 1 else "all servers"
    screen.line(f"{subject} failed permanently", "red")
    return False


async def _close(stop: Callable[[], Awaitable[None]], board: Board, screen: Screen) -> None:
    """Stops the group and shows the changes. If the output fails, it still stops the group."""
    is_stopped = False

    async def close() -> None:
        nonlocal is_stopped
        with suppress(StopTimeoutError):  # the caller looks at the states
            await stop()
        is_stopped = True
        board.wake()

    number = len(board.running)
    async with create_task_group() as task_group:
        task_group.start_soon(close)
        with suppress(OutputError):  # the caller writes another line, which raises it again
            if number:
                screen.line(f"closing {number} connection{'s' if number > 1 else ''}")
            await board.show_until(lambda: is_stopped)
