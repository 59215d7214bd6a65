"""The pair of streams that a transport yields, and detection of its end.

When the peer dies, the SDK's transports end the read stream but stay open. The task that reads the
stream detects this, so no extra task watches the connection and no message is copied.
"""

from collections.abc import Callable
from copy import copy
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from anyio import EndOfStream
from typing_extensions import TypeAliasType

if TYPE_CHECKING:
    from mcp.client._transport import ReadStream, WriteStream
    from mcp.shared.message import SessionMessage

__all__ = ["TransportStreams", "watched"]

TransportStreams = TypeAliasType(
    "TransportStreams", "tuple[ReadStream[SessionMessage | Exception], WriteStream[SessionMessage]]"
)
"""The streams that a transport yields: one to read the server's messages, one to write to the server.

The read stream contains an exception in place of a message that could not be read.
"""


def watched(
    streams: TransportStreams,
    on_end: Callable[[], object],
    on_exception: Callable[[Exception], object] = lambda _: None,
) -> TransportStreams:
    """Returns the pair with a read stream that calls `on_end` when a reader reaches its end.

    The SDK's transports put exceptions into the read stream in place of messages. When a reader
    comes to one, `on_exception` is called with it before the reader receives it.
    """
    read_stream, write_stream = streams
    return _WatchedReadStream(read_stream, on_end, on_exception), write_stream


class _WatchedReadStream:
    """Acts as the stream that it wraps. Each way to read it calls back."""

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
            # The SDK reads `last_context` with each message. A missing one would go through
            # __getattr__ each time, which is slow.
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
        # Repeats receive(): calling it would add a frame to each message.
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

    # Memory streams also have methods that the SDK's protocol does not require. `with` looks up its
    # methods in the class.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        cast("Callable[[], object]", self.close)()

    def __copy__(self) -> "_WatchedReadStream":
        return self._rewatched(copy(self._stream))

    def _rewatched(self, stream: "ReadStream[SessionMessage | Exception]") -> "_WatchedReadStream":
        return _WatchedReadStream(stream, self._on_end, self._on_exception)

    def _receive_nowait(
        self, receive_nowait: "Callable[[], SessionMessage | Exception]"
    ) -> "SessionMessage | Exception":
        try:
            item = receive_nowait()
        except EndOfStream:
            self._on_end()
            raise
        if isinstance(item, Exception):
            self._on_exception(item)
        return item

    def _clone(
        self, clone: "Callable[[], ReadStream[SessionMessage | Exception]]"
    ) -> "_WatchedReadStream":
        return self._rewatched(clone())

    # The SDK looks up `last_context`, which carries a caller's context variables to its request.
    def __getattr__(self, name: str) -> object:
        if name == "_stream" or (name.startswith("__") and name.endswith("__")):
            # Python looks for special methods while it copies, before this object has a stream.
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        attribute = getattr(self._stream, name)
        if name == "receive_nowait":
            return partial(self._receive_nowait, attribute)
        if name == "clone":
            return partial(self._clone, attribute)
        return attribute
