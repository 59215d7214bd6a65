"""Connection managers for MCP sessions and their transports."""

from ._server_exit import ServerExitedError
from ._transport_source import TransportSource
from .config import SessionManagerOptions, managers_from_config
from .ping import ping_every
from .session import (
    ClientConnectionManager,
    ClientOptions,
    SessionConnectionManager,
    SessionOptions,
)
from .sse import SseConnectionManager
from .stdio import StdioConnectionManager
from .streamable_http import StreamableHttpConnectionManager, StreamableHttpOptions
from .streams import TransportStreams
from .websocket import WebSocketConnectionManager, WebSocketHeaders

__all__ = [
    "ClientConnectionManager",
    "ClientOptions",
    "ServerExitedError",
    "SessionConnectionManager",
    "SessionManagerOptions",
    "SessionOptions",
    "SseConnectionManager",
    "StdioConnectionManager",
    "StreamableHttpConnectionManager",
    "StreamableHttpOptions",
    "TransportSource",
    "TransportStreams",
    "WebSocketConnectionManager",
    "WebSocketHeaders",
    "managers_from_config",
    "ping_every",
]
