"""A server spoken to by HTTP requests, each of which it answers with JSON or a stream of events.

The SDK's `streamable_http_client`, in an owner task. There is nothing between requests that could
break, so a server's death is noticed at the next one; see the documentation.

Source: https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#streamable-http
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
"""Seconds; the SDK's default, as is the next."""

READ_TIMEOUT: Final = 300.0


class StreamableHttpOptions(TypedDict, total=False):
    """What the SDK's `streamable_http_client` takes on 2.x only.

    Attributes:
        max_sse_event_size: The largest event that is accepted, in bytes; `None` for any.
    """

    max_sse_event_size: int | None


class StreamableHttpConnectionManager(HttpConnectionManager):
    """Opens the SDK's transport; the connection is its pair of streams.

    Opening sends nothing: whether there is a server is known by the handshake of a session. For calls,
    put a `SessionConnectionManager` or `ClientConnectionManager` on top.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what the SDK takes, in the usual order
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
        """Makes a manager; nothing is opened yet.

        Args:
            url: The server's endpoint.
            headers: Sent with every request.
            timeout: Seconds for each step of a request but for reading, 30 if not given, `None` for
                any time.
            read_timeout: Seconds without anything to read after which a request fails, 300 if not
                given, `None` for any time.
            auth: Authenticates every request: an `httpx2.Auth`, with mcp 1.x an `httpx.Auth`.
            httpx_client_factory: Is given `headers`, `timeout` and `auth`, and makes the HTTP client
                of each run, which is closed with it. `None` means the SDK's.
            name: See `ConnectionManager`; without one, the URL is shown without user-info and query.
            http_client: Your own client, which is used as it is, and never closed. It takes the place
                of the arguments from `headers` to `httpx_client_factory`.
            terminate_on_close: Whether a session is ended on the server when the connection is closed.
            **options: See `StreamableHttpOptions`.

        Raises:
            TypeError: An argument is of another type, such as an `auth` of the other HTTP library, or
                the installed SDK has no such option.
            ValueError: `url` is no HTTP URL, a timeout is negative or NaN, a header cannot be sent,
                `max_sse_event_size` is not positive, or `http_client` is given with what it replaces.
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
        # By the specification, which has no other way to say it.
        if (
            response.status_code == HTTPStatus.NOT_FOUND
            and "mcp-session-id" in request.headers
            and request.method != "DELETE"
        ):
            return "the server no longer knows the session"
        return None
