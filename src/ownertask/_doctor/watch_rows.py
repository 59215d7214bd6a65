"""A server that `ownertask watch` keeps open: its state, its attempts and its last failure."""

from collections.abc import Callable
from typing import Final

from anyio import current_time

from ..manager import ConnectionManager
from ..state import ConnectionState
from .masking import Mask
from .report import text_of

__all__ = ["Row"]

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState

ENDED: Final = frozenset({NEW, CLOSED, FAILED})

LOST: Final = "the connection was lost: "
"""The beginning of the text of a `ConnectionLostError` that has a reason."""


class Row:
    """Follows the connection to one server.

    Attributes:
        name: The name of the server, without secrets.
        error: The last failure in one line, without secrets, or an empty string.
    """

    def __init__(
        self,
        name: str,
        manager: ConnectionManager[object],
        mask: Mask,
        record: "Callable[[Row, str], object]",
    ) -> None:
        """Creates a row.

        Args:
            name: The name of the server, without secrets.
            manager: Its manager. The row becomes one of its listeners.
            mask: Hides secrets in errors.
            record: Called after each change with the row and a text. The text is empty if the change
                does not deserve a line.
        """
        self.name = name
        self.error = ""
        self._manager = manager
        self._mask = mask
        self._record = record
        self._openings = 0
        self._was_open = False
        self._last_due = 0.0
        self._since = current_time()
        manager.add_listener(self._changed)

    @property
    def due(self) -> float | None:
        """The time of the next attempt by `anyio.current_time()`, or `None` if no attempt is pending."""
        reconnecting = self._manager.reconnecting
        return None if reconnecting is None or reconnecting.due <= current_time() else reconnecting.due

    @property
    def state(self) -> str:
        """`new`, `opening`, `open`, `lost`, `not open`, `closing`, `closed` or `failed`."""
        return self._manager.state.value if self.due is None else self._lost

    @property
    def since(self) -> float:
        """When the state began, by `anyio.current_time()`."""
        reconnecting = self._manager.reconnecting
        return self._since if reconnecting is None or self.due is not None else reconnecting.due

    @property
    def attempts(self) -> int:
        """The number of attempts to open the connection, including the current one."""
        return self._openings if self.due is None else self._openings - 1

    @property
    def is_ended(self) -> bool:
        """`True` if the connection is not open, and will not be opened again."""
        return self._manager.state in ENDED

    @property
    def _lost(self) -> str:
        return "lost" if self._was_open else "not open"

    def _changed(self, _: ConnectionManager[object], old: ConnectionState, new: ConnectionState) -> None:
        text = new.value
        if new is OPENING:
            self._openings += 1
        if new is OPENING and old is FAILED:
            return  # the line of the failure describes this attempt
        if new is CLOSING and old is OPENING and current_time() < self._last_due:
            self._openings -= 1  # this attempt did not begin
        if new is OPEN:
            self._was_open = True
        elif new is FAILED:
            text = self._failure()
        self._since = current_time()
        self._record(self, "" if new is CLOSING else text)

    def _failure(self) -> str:
        reconnecting = self._manager.reconnecting
        error = self._manager.exception if reconnecting is None else reconnecting.exception
        assert error is not None  # no listener of this program changes a state
        self.error = " ".join(text_of(error, self._mask).split()).removeprefix(LOST)
        if reconnecting is None:
            return f"failed: {self.error}"
        self._last_due = reconnecting.due
        delay = _seconds(max(0.0, reconnecting.due - current_time()))
        return f"{self._lost}; next attempt in {delay} (attempt {self._openings + 1}): {self.error}"


def _seconds(duration: float) -> str:
    """Returns a duration as text, for example `0.52 s`, `2 s` or `27 s`."""
    return f"{duration:.2g} s" if duration < 9.5 else f"{duration:.0f} s"
