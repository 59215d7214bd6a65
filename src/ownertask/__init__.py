"""Open an async connection in one task, use it from any task, close it from any task.

Importing this package imports neither `mcp` nor asyncio or trio. The managers for MCP are in
`ownertask.mcp`.
"""

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

__all__ = [
    "ConnectionLostError",
    "ConnectionManager",
    "ConnectionManagerError",
    "ConnectionState",
    "ConnectionStoppedError",
    "ManagerInUseError",
    "NotConnectedError",
    "OwnerTaskError",
    "ReconnectPolicy",
    "Reconnecting",
    "StartTimeoutError",
    "StopTimeoutError",
    "WrongEventLoopError",
    "pause_start_timeout",
]

__version__ = "0.1.0"
