"""The pair of streams that a transport is to the SDK's sessions."""

from typing import TYPE_CHECKING

from typing_extensions import TypeAliasType

if TYPE_CHECKING:
    from mcp.client._transport import ReadStream, WriteStream
    from mcp.shared.message import SessionMessage

__all__ = ["TransportStreams"]

TransportStreams = TypeAliasType(
    "TransportStreams", "tuple[ReadStream[SessionMessage | Exception], WriteStream[SessionMessage]]"
)
"""What a transport yields: the stream of what the server says, and the one of what it is told."""
