"""Managers for MCP: sessions, and the transports below them."""

from .session import (
    ClientConnectionManager,
    ClientOptions,
    SessionConnectionManager,
    SessionOptions,
)
from .stdio import StdioConnectionManager
from .streams import TransportStreams
from .websocket import WebSocketConnectionManager, WebSocketHeaders

__all__ = [
    "ClientConnectionManager",
    "ClientOptions",
    "SessionConnectionManager",
    "SessionOptions",
    "StdioConnectionManager",
    "TransportStreams",
    "WebSocketConnectionManager",
    "WebSocketHeaders",
]
