"""The live table of `watch()`, for terminals. Requires rich."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from errno import EIO
from math import ceil
from typing import Final

from anyio import current_time
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.text import Text

from .output import output_errors
from .watch_rows import Row

__all__ = ["TableDisplay", "ago"]

SERVER, STATE, SINCE, ATTEMPTS, NEXT, ERROR = COLUMNS = (
    "server",
    "state",
    "since",
    "attempts",
    "next attempt",
    "last error",
)

STYLES: Final[Mapping[str, str]] = {
    "opening": "cyan",
    "open": "green",
    "lost": "yellow",
    "not open": "yellow",
    "closing": "cyan",
    "closed": "dim",
    "failed": "red",
}
"""The color of each state."""

DROPPED: Final = (ATTEMPTS, SINCE, NEXT, ERROR)
"""The columns that a narrow terminal does not show, in the order in which they are dropped."""

ECHO: Final = "^C"
"""The terminal prints it after the last row. If it wrapped, the next table would be misplaced."""

GAP: Final = 2
"""Spaces between two columns."""

MIN_ERROR: Final = 20
"""The minimum width of the last error. If there is less room, another column is dropped."""

MAX_SERVER: Final = 30
"""Longer names of servers are cut to this width."""

UNITS: Final = ((48 * 3600, 24 * 3600, "d"), (2 * 3600, 3600, "h"), (120, 60, "min"), (0, 1, "s"))
"""The smallest duration in seconds that is shown in each unit, and the unit."""


class TableDisplay:
    """Shows a row for each server, and draws the table again at each change and each second."""

    def __init__(self, console: Console, printable: Callable[[str], str], rows: Sequence[Row]) -> None:
        """Creates a display.

        Args:
            console: The terminal.
            printable: Escapes the characters of a text that cannot be printed.
            rows: The rows in their order in the table.
        """
        self.interval: float | None = 1.0
        self._console = console
        self._printable = printable
        self._rows = rows
        self.block: AbstractContextManager[object] = self._shown()
        self._live = Live(
            console=console,
            auto_refresh=False,  # otherwise, a thread would call `anyio.current_time()`
            get_renderable=self._table,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def record(self, row: Row, text: str) -> None:
        """Does nothing: the table is drawn from the rows."""

    def show(self) -> None:
        with output_errors():
            if not self._console.is_terminal:  # then rich draws nothing
                raise OSError(EIO, "the terminal is gone")
            self._live.refresh()

    @contextmanager
    def _shown(self) -> Generator[None]:
        with output_errors():
            self._live.start()
        try:
            yield
        finally:
            with output_errors():
                self._live.stop()

    def _table(self) -> Text:
        # The `Table` of rich before 14.3 is two columns wider than its widths and gaps.
        now = current_time()
        cells = [self._cells(row, now) for row in self._rows]
        widths = _widths_of(cells, self._console.width - len(ECHO))
        header = {column: Text(column, "bold") for column in COLUMNS}
        lines = [
            Text(" " * GAP).join(_fitted(row[column], width) for column, width in widths.items())
            for row in (header, *cells)
        ]
        return Text("\n", no_wrap=True).join(lines)

    def _cells(self, row: Row, now: float) -> Mapping[str, Text]:
        state, due = row.state, row.due
        return {
            SERVER: Text(row.name),
            STATE: Text(state, STYLES.get(state, "")),
            SINCE: Text(ago(now - row.since)),
            ATTEMPTS: Text(str(row.attempts)),
            NEXT: Text("" if due is None else f"in {ceil(due - now)} s"),
            ERROR: Text(self._printable(row.error), "dim" if state == "open" else ""),
        }


def _widths_of(cells: Sequence[Mapping[str, Text]], width: int) -> dict[str, int]:
    """Returns the columns that a terminal has room for, with their widths.

    Args:
        cells: The cells of each row.
        width: The number of columns of the terminal that may be used.
    """
    longest_name = max(row[SERVER].cell_len for row in cells)
    widths = {
        SERVER: min(max(longest_name, cell_len(SERVER)), MAX_SERVER),
        STATE: max(map(len, STYLES)),
        SINCE: len("100 min ago"),
        ATTEMPTS: len(ATTEMPTS),
        NEXT: len(NEXT),
        ERROR: MIN_ERROR,
    }
    for column in DROPPED:
        if _total(widths) <= width:
            break
        del widths[column]
    rest = SERVER if ERROR not in widths else ERROR
    if rest is ERROR or _total(widths) > width:
        widths[rest] = max(1, width - _total(widths) + widths[rest])
    return widths


def _fitted(cell: Text, width: int) -> Text:
    """Returns a cell of exactly this width."""
    cell = cell.copy()
    cell.truncate(width, overflow="ellipsis", pad=True)
    return cell


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1)


def ago(duration: float) -> str:
    """Returns a time in the past as text, for example `5 s ago`."""
    duration = max(duration, 0)  # an attempt can begin while the row is drawn
    unit, name = next((unit, name) for at_least, unit, name in UNITS if duration >= at_least)
    return f"{int(duration / unit)} {name} ago"
