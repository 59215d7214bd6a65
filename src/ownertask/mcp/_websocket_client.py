"""A WebSocket client based on the `websockets` library; mcp 2.x has none.

* Each text message is one JSON-RPC message. If it is not valid, the reader receives an exception.
* There is no task and no buffer between a caller and the library, except for writing on trio. There, a
  task writes each message, because a cancelled caller would leave half a message on the wire.
* Closing takes at most `close_timeout`, even if the peer is frozen. It leaves no socket and no task.
* The library's own log of handshakes and frames is never written, because it shows headers.
"""

import logging
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from inspect import signature
from math import inf
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import anyio
from anyio import BrokenResourceError, CancelScope, ClosedResourceError, EndOfStream
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint, current_token
from typing_extensions import TypeAliasType
from websockets import exceptions
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.version import version as library_version

from .._reason import is_a
from . import _sdk
from ._base_streams import BaseReadStream, BaseStream
from ._permanent import REFUSALS
from .streams import TransportStreams

if TYPE_CHECKING:
    from mcp.shared.message import SessionMessage
    from websockets.trio.client import ClientConnection as TrioClientConnection

__all__ = ["check_proxy", "check_url", "is_refusal", "websocket_streams"]

UNSUPPORTED_DATA: Final = 1003
PROXY_SCHEMES: Final = frozenset({"http", "https", "socks4", "socks4a", "socks5", "socks5h"})
HAS_PROXY: Final = "proxy" in signature(connect).parameters
SENDS_ENCODED_TEXT: Final = "text" in signature(ClientConnection.send).parameters

# Not created by getLogger(), so no configuration can set it to DEBUG.
_logger = logging.Logger("ownertask.websocket", logging.WARNING)  # noqa: LOG001
_logger.parent = logging.getLogger("ownertask")


WebSocket = TypeAliasType("WebSocket", "ClientConnection | TrioClientConnection")

Send = TypeAliasType("Send", Callable[[bytes], Awaitable[None]])


def check_url(url: str) -> None:
    """Rejects a URL that the library would reject later in an error that shows the whole URL.

    Raises:
        ValueError: It is not a WebSocket URL.
    """
    from websockets.uri import parse_uri

    try:
        parse_uri(url)
    except (exceptions.InvalidURI, ValueError):
        raise ValueError(
            "url must start with ws:// or wss:// and have a host; a port up to 65535, a user name with "
            "a password, a path and a query are optional; a fragment is not allowed"
        ) from None


def check_proxy(proxy: str) -> None:
    """Rejects an invalid proxy URL in the same way.

    Raises:
        ValueError: It is not a proxy URL, or the library is too old to support proxies.
    """
    if not HAS_PROXY:
        raise ValueError(f"proxy requires websockets 15 or newer; {library_version} is installed")
    try:
        parts = urlsplit(proxy)
        has_extras = parts.path not in {"", "/"} or parts.query or parts.fragment
        has_half_of_user_info = (parts.username is None) != (parts.password is None)
        is_right = (
            parts.scheme in PROXY_SCHEMES
            and parts.hostname is not None
            and parts.port != 0
            and not has_extras
            and not has_half_of_user_info
        )
    except ValueError:
        is_right = False
    if not is_right:
        raise ValueError(
            "proxy must be a URL that starts with " + ", ".join(sorted(PROXY_SCHEMES)) + " and "
            "has a host; a port and a user name with a password are optional"
        )


def is_refusal(error: BaseException) -> bool:
    """Returns whether the server refused the upgrade because the client is not authorized."""
    return is_a(error, InvalidStatus) and error.response.status_code in REFUSALS


@asynccontextmanager
async def websocket_streams(
    url: str,
    options: Mapping[str, object],
    *,
    close_timeout: float | None,
    on_end: Callable[[ConnectionClosed], object],
    add_fact: Callable[[str], object],
) -> AsyncGenerator[TransportStreams]:
    """Opens a connection, and closes it within `close_timeout` seconds.

    Args:
        url: A URL that passed `check_url()`.
        options: Other arguments of the library's `connect()`.
        close_timeout: Maximum time for finishing a write and for the closing handshake together, in
            seconds; `None` waits indefinitely.
        on_end: Called when the connection ends before this context manager is exited. The reader
            calls it after the last message. If nothing was read yet, it is called at once.
        add_fact: Called with the status of a refused upgrade.
    """
    opening = _connector()(url, **options, close_timeout=close_timeout, logger=_logger)
    # If the library followed a redirect, it would send the headers to another server.
    vars(opening)["process_redirect"] = _unchanged
    scheme = urlsplit(url).scheme
    thrown: BaseException | None = None
    with CancelScope() as scope:
        async with (
            _opened(opening, scheme, add_fact) as websocket,
            anyio.create_task_group() as task_group,
        ):
            send = _sender(websocket)
            if not isinstance(websocket, ClientConnection):
                send = _sender_in_tasks(send, task_group)
            reader, writer = _ReadStream(websocket, on_end), _WriteStream(send)
            watching = CancelScope()
            task_group.start_soon(_watch, websocket, reader, on_end, watching)
            try:
                yield reader, writer
            except BaseException as exc:
                thrown = exc
                raise
            finally:
                reader.is_closed = writer.is_closed = True
                watching.cancel()
                scope.deadline = anyio.current_time() + (inf if close_timeout is None else close_timeout)
    if thrown is not None:  # closing was cut off, and the scope swallowed the error
        raise thrown


def _connector() -> Callable[..., AbstractAsyncContextManager[WebSocket]]:
    """Returns the library's `connect` for the backend in use."""
    if current_token().backend_class.__name__ != "TrioBackend":
        return connect
    try:
        from websockets.trio.client import connect as trio_connect
    except ImportError as exc:
        raise ImportError(
            "on trio, WebSocketConnectionManager requires websockets 17 or newer; "
            f"websockets {library_version} is installed"
        ) from exc
    return trio_connect


def _unchanged(error: Exception) -> Exception:
    return error


@asynccontextmanager
async def _opened(
    opening: AbstractAsyncContextManager[WebSocket], scheme: str, add_fact: Callable[[str], object]
) -> AsyncGenerator[WebSocket]:
    """Opens the connection, makes the library's errors clear, and closes the socket in any case."""
    websocket: WebSocket | None = None
    try:
        async with AsyncExitStack() as stack:
            try:
                websocket = await stack.enter_async_context(opening)
            except InvalidStatus as exc:
                status = f"HTTP {exc.response.status_code}"
                asks_for = exc.response.headers.get("WWW-Authenticate", "").partition(" ")[0]
                scheme_asked = f", WWW-Authenticate: {asks_for}" if asks_for else ""
                add_fact(f"the server refused the {scheme}:// upgrade with {status}{scheme_asked}")
                raise
            except Exception as exc:
                if type(exc).__name__ == "InvalidProxy":  # shows the URL; websockets 13 lacks it
                    raise ValueError("the proxy URL in the environment is invalid") from None
                if isinstance(exc.__cause__, ssl.SSLError):  # trio's own error has no text
                    raise exc.__cause__ from None
                raise
            yield websocket
    finally:
        if isinstance(websocket, ClientConnection):
            await _abort(websocket)


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    if isinstance(websocket, ClientConnection):
        await websocket.close(code, reason)
    else:
        await websocket.aclose(code, reason)


async def _abort(websocket: ClientConnection) -> None:
    """Closes what a cancelled closing handshake left open. On trio, the nursery does that."""
    with CancelScope(shield=True):
        websocket.transport.abort()
        await websocket.wait_closed()
        await checkpoint()  # lets the cancelled ping task end


async def _watch(
    websocket: WebSocket,
    reader: "_ReadStream",
    on_end: Callable[[ConnectionClosed], object],
    watching: CancelScope,
) -> None:
    """Reports the end if nobody reads. Otherwise the reader reports it, after the last message."""
    with watching:
        await websocket.wait_closed()
        if not reader.is_read or reader.is_closed:
            try:
                await websocket.ping()  # raises ConnectionClosed with the code and the reason
            except ConnectionClosed as closed:
                on_end(closed)


class _ReadStream(BaseReadStream):
    """The server's messages. Each is read from the library when the caller asks for it."""

    def __init__(self, websocket: WebSocket, on_end: Callable[[ConnectionClosed], object]) -> None:
        self._websocket = websocket
        self._on_end = on_end
        self.is_read = False

    async def receive(self) -> "SessionMessage | Exception":
        if self.is_closed:
            raise ClosedResourceError
        self.is_read = True
        try:
            message = await self._websocket.recv()
            while isinstance(message, bytes):
                await _close(self._websocket, UNSUPPORTED_DATA, "MCP messages are text")
                message = await self._websocket.recv()
        except ConnectionClosed as closed:
            self._on_end(closed)
            raise EndOfStream from None
        return _sdk.message_from_json(message)


class _WriteStream(BaseStream):
    """The messages to the server."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def send(self, item: "SessionMessage", /) -> None:
        if self.is_closed:
            raise ClosedResourceError
        try:
            await self._send(_sdk.message_to_utf8(item))
        except ConnectionClosed:
            raise BrokenResourceError from None


def _sender(websocket: WebSocket) -> Send:
    """Returns a function that sends text in UTF-8. Older versions of the library encode it again."""
    if SENDS_ENCODED_TEXT:
        return partial(websocket.send, text=True)

    async def send(text: bytes) -> None:
        await websocket.send(text.decode())

    return send


def _sender_in_tasks(send_directly: Send, task_group: TaskGroup) -> Send:
    """Sends in the transport's own tasks, so a cancelled caller does not cut off a message."""

    async def send(text: bytes) -> None:
        is_sent = False
        ended = anyio.Event()

        async def send_in_task() -> None:
            nonlocal is_sent
            try:
                with suppress(ConnectionClosed):
                    await send_directly(text)
                    is_sent = True
            finally:
                ended.set()

        task_group.start_soon(send_in_task)
        await ended.wait()
        if not is_sent:
            raise BrokenResourceError

    return send
