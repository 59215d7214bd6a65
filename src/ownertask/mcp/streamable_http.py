"""The streamable HTTP transport: the response to each request is JSON or a stream of events.

Runs the SDK's `streamable_http_client` in an owner task.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypedDict

from mcp.client.streamable_http import streamable_http_client
from typing_extensions import Unpack, override

from .._arguments import checked_timeout
from . import _sdk
from ._http import HttpConnectionManager, Traffic, check_http_type
from .streams import TransportStreams

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Auth, Request, Response
    from mcp.shared._httpx_utils import McpHttpClientFactory

__all__ = ["StreamableHttpConnectionManager", "StreamableHttpOptions"]

TIMEOUT: Final = 30.0
"""Seconds. Both timeouts are the SDK's defaults."""

READ_TIMEOUT: Final = 300.0


class StreamableHttpOptions(TypedDict, total=False):
    """The options of the SDK's `streamable_http_client` that only mcp 2.x has.

    Attributes:
        max_sse_event_size: Maximum size of a server-sent event, in bytes; `None` disables the limit.
    """

    max_sse_event_size: int | None


class StreamableHttpConnectionManager(HttpConnectionManager):
    """Opens the SDK's streamable HTTP transport; the connection is its pair of streams.

    Opening sends no request. The first request, usually a session's handshake, shows whether the
    server can be reached. To call the server, pass this manager to a `SessionConnectionManager` or
    `ClientConnectionManager`.

    The connection is lost if a message cannot be sent or gets no response, or if the server no longer
    knows the session (status 404). On mcp 1.x it is also lost if a response breaks off and cannot be
    resumed. While no messages are being sent, a server that goes away is detected only if the session
    keeps an event stream open.

    Source:
        <https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#streamable-http>
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the SDK's arguments, in the usual order
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = TIMEOUT,
        read_timeout: float | None = READ_TIMEOUT,
        auth: "Auth | None" = None,
        httpx_client_factory: "McpHttpClientFactory | None" = None,
        *,
        name: str | None = None,
        http_client: "AsyncClient | None" = None,
        terminate_on_close: bool = True,
        **options: Unpack[StreamableHttpOptions],
    ) -> None:
        """Creates a manager without opening anything.

        Args:
            url: The server's endpoint.
            headers: Sent with every request.
            timeout: Maximum time for each of connecting, sending, and waiting for a free connection,
                in seconds; 30 by default; `None` waits indefinitely.
            read_timeout: Maximum time without receiving data, in seconds, after which a request
                fails; 300 by default; `None` waits indefinitely. If it expires before the response
                to a message begins, the connection is lost.
            auth: Authenticates every request: an `httpx2.Auth`, or an `httpx.Auth` with mcp 1.x.
            httpx_client_factory: Creates the HTTP client of each run from `headers`, `timeout` and
                `auth`. The client is closed when the run ends. `None` uses the SDK's factory.
            name: See `ConnectionManager`. The default contains the URL without user info and query.
            http_client: Your own HTTP client, which is used as it is and never closed. It cannot be
                combined with `headers`, `timeout`, `read_timeout`, `auth` or `httpx_client_factory`.
            terminate_on_close: Whether closing the connection also ends the session on the server, and
                waits for its response.
            **options: See `StreamableHttpOptions`.

        Raises:
            TypeError: An argument has the wrong type, such as an `auth` from the other HTTP library,
                or the installed SDK does not accept one of the options.
            ValueError: `url` is not an HTTP URL, a timeout is negative or NaN, a header is invalid,
                `max_sse_event_size` is not positive, or `http_client` is combined with another of
                these arguments.
        """
        super().__init__(url, headers, auth, httpx_client_factory, name=name)
        self.timeout: float | None = checked_timeout("timeout", timeout)
        self.read_timeout: float | None = checked_timeout("read_timeout", read_timeout)
        if http_client is not None:
            check_http_type("http_client", http_client, _sdk.http.AsyncClient)
            given = (headers, timeout, read_timeout, auth, httpx_client_factory)
            if given != (None, TIMEOUT, READ_TIMEOUT, None, None):
                raise ValueError(
                    "http_client cannot be combined with headers, timeout, read_timeout, auth or "
                    "httpx_client_factory; configure the client itself"
                )
        self.http_client: AsyncClient | None = http_client
        if not isinstance(terminate_on_close, bool):
            kind = type(terminate_on_close).__name__
            raise TypeError(f"terminate_on_close must be a boolean, not {kind}")
        self.terminate_on_close: bool = terminate_on_close
        _sdk.check_options(streamable_http_client, options)
        size = options.get("max_sse_event_size")
        if size is not None:
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"max_sse_event_size must be a number of bytes or None, not {size!r}")
            if size <= 0:
                raise ValueError(f"max_sse_event_size must be positive or None, not {size!r}")
        self.options: StreamableHttpOptions = options

    @override
    @asynccontextmanager
    async def _open_transport(self, traffic: Traffic) -> AsyncGenerator[TransportStreams]:
        client = self.http_client
        options = {"terminate_on_close": self.terminate_on_close, **self.options}
        if client is not None:
            async with _sdk.streamable_http_streams(
                self.url, traffic.observed(client), options
            ) as streams:
                yield streams
            return
        async with (
            self._make_client(self.timeout, self.read_timeout) as client,
            _sdk.streamable_http_streams(self.url, traffic.observed(client), options) as streams,
        ):
            yield streams

    @override
    def _why_fatal(self, request: "Request", response: "Response") -> str | None:
        # The specification gives the server no other way to report this.
        if (
            response.status_code == HTTPStatus.NOT_FOUND
            and "mcp-session-id" in request.headers
            and request.method != "DELETE"
        ):
            return "the server no longer knows the session"
        return None
