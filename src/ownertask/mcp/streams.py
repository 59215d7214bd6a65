"""The pair of streams that a transport yields, and detection of its end.

When the peer dies, the SDK's transports end the read stream but stay open. The task that reads the
stream detects this, so no extra task watches the connection and no message is copied.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, Protocol, Self, cast

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, WouldBlock
from typing_extensions import TypeAliasType

if TYPE_CHECKING:
    from mcp.client._transport import ReadStream, WriteStream
    from mcp.shared.message import SessionMessage

__all__ = [
    "MessageReadStream",
    "MessageWriteStream",
    "ReadObserver",
    "TransportStreams",
    "checked_streams",
    "observed",
    "watched",
    "watched_for_writing",
]

P = ParamSpec("P")

OnLeft = TypeAliasType("OnLeft", "Callable[[BaseException | None, type[BaseException] | None], object]")

if TYPE_CHECKING:
    # With mcp 1.x, type checkers do not know these base classes. They accept a class with an unknown
    # base as any other class, such as the memory streams that the session of 1.x requires. The members
    # that are declared here have types with both mcp 1.x and 2.x.
    class MessageReadStream(ReadStream[SessionMessage | Exception], Protocol):
        """Reads the messages of a server."""

        async def receive(self) -> SessionMessage | Exception:
            """Waits for the next message."""
            ...

        async def aclose(self) -> None:
            """Closes the stream."""

        def __aiter__(self) -> "MessageReadStream": ...
        async def __anext__(self) -> SessionMessage | Exception: ...
        async def __aenter__(self) -> Self: ...
        async def __aexit__(
            self,
            exc_type: type[BaseException] | None,
            exc_val: BaseException | None,
            exc_tb: TracebackType | None,
        ) -> bool | None: ...

    class MessageWriteStream(WriteStream[SessionMessage], Protocol):
        """Sends messages to a server."""

        async def send(self, item: SessionMessage, /) -> None:
            """Sends a message."""

        async def aclose(self) -> None:
            """Closes the stream."""

        async def __aenter__(self) -> Self: ...
        async def __aexit__(
            self,
            exc_type: type[BaseException] | None,
            exc_val: BaseException | None,
            exc_tb: TracebackType | None,
        ) -> bool | None: ...
else:
    MessageReadStream = TypeAliasType("MessageReadStream", "ReadStream[SessionMessage | Exception]")
    MessageWriteStream = TypeAliasType("MessageWriteStream", "WriteStream[SessionMessage]")

TransportStreams = TypeAliasType("TransportStreams", tuple[MessageReadStream, MessageWriteStream])
"""The streams that a transport yields: one to read the server's messages, one to write to the server.

The read stream contains an exception in place of a message that could not be read.
"""


def _ignore(*_: object) -> None:
    pass


def watched(
    streams: TransportStreams,
    on_end: Callable[[], object],
    on_exception: Callable[[Exception], object] = _ignore,
    on_left: OnLeft = _ignore,
    *,
    answers_itself: bool = False,
) -> TransportStreams:
    """Returns the pair with a read stream that calls `on_end` when a reader reaches its end.

    The SDK's transports put exceptions into the read stream in place of messages. When a reader
    comes to one, `on_exception` is called with it before the reader receives it.

    If a reader closes or exits the stream before the end of the stream, `on_left` is called with two
    values: the exception with which the reader exits, and the type of the exception with which the
    last attempt to read failed.

    If the stream is already watched, the earlier functions are called first.

    If `answers_itself` is true, the transport itself answers a call that did not reach the server, with
    the error code `CONNECTION_CLOSED`.
    """
    read_stream, write_stream = streams
    if isinstance(read_stream, _WatchedReadStream):
        return read_stream.watched_by(on_end, on_exception, on_left), write_stream
    watched_stream = _WatchedReadStream(read_stream, on_end, on_exception, on_left)
    watched_stream.answers_itself = answers_itself
    return watched_stream, write_stream


def watched_for_writing(streams: TransportStreams, on_broken: Callable[[], object]) -> TransportStreams:
    """Returns the pair with a write stream that calls `on_broken` when it accepts no more messages."""
    read_stream, write_stream = streams
    return read_stream, _WatchedWriteStream(write_stream, on_broken)


class ReadObserver(Protocol):
    """Learns what the reader of a stream does."""

    def reading(self) -> None:
        """The reader waits for the next message, so it has processed the last one."""

    def received(self, item: "SessionMessage | Exception", *, answers_itself: bool) -> None:
        """The reader receives a message, or an exception in place of a message."""


@contextmanager
def observed(stream: object, observer: ReadObserver) -> "Generator[bool]":
    """Calls the methods of `observer` while the block runs, if the stream comes from `watched()`.

    Yields `True` if it does. When the block begins, the reader may already be waiting for a message.
    Without an observer, each message costs only one check.
    """
    if not isinstance(stream, _WatchedReadStream):
        yield False
        return
    with stream.observed(observer):
        yield True


def checked_streams(opened: object, transport: str) -> TransportStreams:
    """Returns the pair of streams in the value that a transport yielded. mcp 1.x can add a third value.

    Raises:
        TypeError: `opened` is not such a pair.
    """
    kind = type(opened).__name__
    if isinstance(opened, tuple | list):
        values = cast("Sequence[object]", opened)
        if len(values) in {2, 3} and hasattr(values[0], "receive") and hasattr(values[1], "send"):
            return cast("TransportStreams", (values[0], values[1]))
        kinds = ", ".join(type(value).__name__ for value in values)
        kind = f"{kind}[{kinds}]"
    raise TypeError(
        f"{transport}: a transport must yield a read stream and a write stream, as the SDK's transports "
        f"do, not {kind}"
    )


def _each(first: Callable[P, object], second: Callable[P, object]) -> Callable[P, object]:
    def call_each(*args: P.args, **kwargs: P.kwargs) -> None:
        first(*args, **kwargs)
        second(*args, **kwargs)

    return call_each


class _Closable(Protocol):
    def close(self) -> None: ...


class _WatchedReadStream:
    """Wraps a read stream. Every way to read it triggers the callbacks."""

    def __init__(
        self,
        stream: "ReadStream[SessionMessage | Exception]",
        on_end: Callable[[], object],
        on_exception: Callable[[Exception], object],
        on_left: OnLeft,
    ) -> None:
        self._stream = stream
        self._receive: Callable[[], Awaitable[SessionMessage | Exception]] = stream.receive
        self._observer: ReadObserver | None = None
        self._on_end = on_end
        self._on_exception = on_exception
        self._on_left = on_left
        self._failed_with: type[BaseException] | None = None
        self.answers_itself = False
        if not hasattr(stream, "last_context"):
            # The SDK reads `last_context` with each message. A missing one would go through
            # __getattr__ each time, which is slow.
            self.last_context = None

    def watched_by(
        self,
        on_end: Callable[[], object],
        on_exception: Callable[[Exception], object],
        on_left: OnLeft,
    ) -> "_WatchedReadStream":
        """Returns a stream that also calls these functions, without another layer on each message."""
        stream = _WatchedReadStream(
            self._stream,
            _each(self._on_end, on_end),
            _each(self._on_exception, on_exception),
            _each(self._on_left, on_left),
        )
        stream.answers_itself = self.answers_itself
        return stream

    @contextmanager
    def observed(self, observer: ReadObserver) -> "Generator[None]":
        receive = self._receive

        def receive_observed() -> "Awaitable[SessionMessage | Exception]":
            observer.reading()
            return receive()

        self._receive = receive_observed
        self._observer = observer
        try:
            yield
        finally:
            self._receive = receive
            self._observer = None

    async def receive(self) -> "SessionMessage | Exception":
        try:
            item = await self._receive()
        except BaseException as error:
            self._failed(error)
            raise
        if self._observer is not None:
            self._observer.received(item, answers_itself=self.answers_itself)
        if isinstance(item, Exception):
            self._on_exception(item)
        return item

    async def __anext__(self) -> "SessionMessage | Exception":
        # Repeats receive(): calling it would add a frame to each message.
        try:
            item = await self._receive()
        except BaseException as error:
            self._failed(error)
            if isinstance(error, EndOfStream):
                raise StopAsyncIteration from None
            raise
        if self._observer is not None:
            self._observer.received(item, answers_itself=self.answers_itself)
        if isinstance(item, Exception):
            self._on_exception(item)
        return item

    def __aiter__(self) -> Self:
        return self

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, EndOfStream):
            self._on_end()
        if not isinstance(error, WouldBlock):
            self._failed_with = type(error)

    def _leave(self, error: BaseException | None) -> None:
        if self._failed_with is None or not issubclass(self._failed_with, EndOfStream):
            self._on_left(error, self._failed_with)

    async def aclose(self) -> None:
        self._leave(None)
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self._leave(exc_val)
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
        self._leave(exc_val)
        cast("_Closable", self._stream).close()

    def __copy__(self) -> "_WatchedReadStream":
        return self._rewatched(copy(self._stream))

    def _rewatched(self, stream: "ReadStream[SessionMessage | Exception]") -> "_WatchedReadStream":
        # Closing the copy does not mean that the reader of the original leaves it.
        return _WatchedReadStream(stream, self._on_end, self._on_exception, _ignore)

    def _receive_nowait(
        self, receive_nowait: "Callable[[], SessionMessage | Exception]"
    ) -> "SessionMessage | Exception":
        try:
            item = receive_nowait()
        except BaseException as error:
            self._failed(error)
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
        if name == "close":
            return partial(self.__exit__, None, None, None)
        return attribute


class _WatchedWriteStream:
    """Wraps a write stream. A session uses only the methods of the SDK's protocol."""

    def __init__(self, stream: "WriteStream[SessionMessage]", on_broken: Callable[[], object]) -> None:
        self._stream = stream
        self._on_broken = on_broken

    async def send(self, item: "SessionMessage", /) -> None:
        try:
            await self._stream.send(item)
        except (BrokenResourceError, ClosedResourceError):
            self._on_broken()
            raise

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
