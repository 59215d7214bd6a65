"""The pair of streams that a transport is to the SDK's sessions, and noticing its end.

When a peer dies, the SDK's transports only end the read stream, and stay open. So whoever reads the
stream notices it: there is no task that watches, and no copy of a message.
"""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from anyio import EndOfStream
from typing_extensions import TypeAliasType

if TYPE_CHECKING:
    from mcp.client._transport import ReadStream, WriteStream
    from mcp.shared.message import SessionMessage

__all__ = ["TransportStreams", "watched"]

TransportStreams = TypeAliasType(
    "TransportStreams", "tuple[ReadStream[SessionMessage | Exception], WriteStream[SessionMessage]]"
)
"""What a transport yields: the stream of what the server says, and the one of what it is told."""


def watched(
    streams: TransportStreams,
    on_end: Callable[[], object],
    on_exception: Callable[[Exception], object] = lambda _: None,
) -> TransportStreams:
    """The pair, of which a reader that comes to the end of the read stream calls `on_end`.

    One that gets an exception instead of a message, as the SDK's transports put there, calls
    `on_exception` with it first.
    """
    read_stream, write_stream = streams
    return _WatchedReadStream(read_stream, on_end, on_exception), write_stream


class _WatchedReadStream:
    def __init__(
        self,
        stream: "ReadStream[SessionMessage | Exception]",
        on_end: Callable[[], object],
        on_exception: Callable[[Exception], object],
    ) -> None:
        self._stream = stream
        self._receive = stream.receive
        self._on_end = on_end
        self._on_exception = on_exception
        if not hasattr(stream, "last_context"):
            # The SDK asks for it with each message, and to find that there is none takes its time.
            self.last_context = None

    async def receive(self) -> "SessionMessage | Exception":
        try:
            item = await self._receive()
        except EndOfStream:
            self._on_end()
            raise
        if isinstance(item, Exception):
            self._on_exception(item)
        return item

    async def __anext__(self) -> "SessionMessage | Exception":
        # As receive(), which it does not call: that would be a frame more for each message.
        try:
            item = await self._receive()
        except EndOfStream:
            self._on_end()
            raise StopAsyncIteration from None
        if isinstance(item, Exception):
            self._on_exception(item)
        return item

    def __aiter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self._stream.aclose()

    # The SDK looks up `last_context`, with which a caller's context variables reach its request; and
    # memory streams have more than the SDK's protocol asks for.
    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
