"""The states of a connection manager, and the table of the moves between them.

The table is data: the owner task asserts each of its moves against it, and the documentation draws
its diagram from it.
"""

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

__all__ = ["TRANSITIONS", "ConnectionState"]


class ConnectionState(enum.Enum):
    """Where a manager is in the life of its connection."""

    NEW = "new"
    """`start()` was never called."""
    OPENING = "opening"
    """The owner task is entering the context manager."""
    OPEN = "open"
    """The connection can be used. In no other state can it be read."""
    CLOSING = "closing"
    """The owner task is leaving the context manager."""
    CLOSED = "closed"
    """The run is over, as it was asked to be."""
    FAILED = "failed"
    """The run is over, and `exception` says why."""

    if not TYPE_CHECKING:
        # By identity, as members compare; Enum's own, in Python, is much slower.
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
"""From each state, the states that may follow it."""
