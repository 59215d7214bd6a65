"""Open an async connection in one task, use it from any task, close it from any task.

Importing this package imports neither `mcp` nor asyncio or trio. The managers for MCP are in
`ownertask.mcp`.
"""

from typing import TYPE_CHECKING

from .errors import (
    ConnectionLostError,
    ConnectionManagerError,
    ConnectionStoppedError,
    ManagerInUseError,
    NotConnectedError,
    OwnerTaskError,
    StartTimeoutError,
    StopTimeoutError,
    WrongEventLoopError,
)
from .manager import ConnectionManager
from .policy import Reconnecting, ReconnectPolicy
from .start_timeout import pause_start_timeout
from .state import ConnectionState

if TYPE_CHECKING:
    from .group import ConnectionGroup
    from .pool import ConnectionPool, PoolStats

__all__ = [
    "ConnectionGroup",
    "ConnectionLostError",
    "ConnectionManager",
    "ConnectionManagerError",
    "ConnectionPool",
    "ConnectionState",
    "ConnectionStoppedError",
    "ManagerInUseError",
    "NotConnectedError",
    "OwnerTaskError",
    "PoolStats",
    "ReconnectPolicy",
    "Reconnecting",
    "StartTimeoutError",
    "StopTimeoutError",
    "WrongEventLoopError",
    "pause_start_timeout",
]

__version__ = "0.1.0"


# Importing anyio takes longer than importing the rest of the package, and few programs need these.
def __getattr__(name: str) -> object:
    if name == "ConnectionGroup":
        from .group import ConnectionGroup

        return ConnectionGroup
    if name in {"ConnectionPool", "PoolStats"}:
        from . import pool

        found: object = getattr(pool, name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
