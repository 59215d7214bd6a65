"""The states of a connection manager, and the table of transitions between them.

The owner task checks each transition against the table. The documentation's diagram is generated
from it.
"""

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

__all__ = ["TRANSITIONS", "ConnectionState"]


class ConnectionState(enum.Enum):
    """The state of a manager.

    Example:
        ```python
        is_ready = manager.state is ConnectionState.OPEN
        ```
    """

    NEW = "new"
    """The manager has never been started."""
    OPENING = "opening"
    """The owner task is entering the context manager."""
    OPEN = "open"
    """The connection is open. It can be read only in this state."""
    CLOSING = "closing"
    """The owner task is exiting the context manager."""
    CLOSED = "closed"
    """The run ended without an error, or its event loop was closed, or this process is a fork."""
    FAILED = "failed"
    """The run ended with an error; see `exception`."""

    if not TYPE_CHECKING:
        # Members compare by identity. Enum's own __hash__ is written in Python and much slower.
        __hash__ = object.__hash__


TRANSITIONS: Mapping[ConnectionState, frozenset[ConnectionState]] = MappingProxyType(
    {
        ConnectionState.NEW: frozenset({ConnectionState.OPENING}),
        ConnectionState.OPENING: frozenset(
            {ConnectionState.OPEN, ConnectionState.CLOSING, ConnectionState.FAILED}
        ),
        ConnectionState.OPEN: frozenset({ConnectionState.CLOSING}),
        ConnectionState.CLOSING: frozenset({ConnectionState.CLOSED, ConnectionState.FAILED}),
        ConnectionState.CLOSED: frozenset({ConnectionState.OPENING}),
        ConnectionState.FAILED: frozenset({ConnectionState.OPENING}),
    }
)
"""Maps each state to the states that may follow it."""
