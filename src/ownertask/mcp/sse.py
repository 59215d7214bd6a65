"""A server spoken to by HTTP requests, which speaks through one stream of server-sent events.

The SDK's `sse_client`, in an owner task. The end of the event stream is a loss, and so is a request
that is refused or fails, after which the SDK sends no other.

Source: https://modelcontextprotocol.io/specification/2024-11-05/basic/transports#http-with-sse
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from typing_extensions import override

from .._arguments import checked_timeout
from . import _sdk
from ._http import HttpConnectionManager, Traffic, leaves
from .streams import TransportStreams

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Auth, Request, Response
    from mcp.shared._httpx_utils import McpHttpClientFactory

__all__ = ["SseConnectionManager"]


class SseConnectionManager(HttpConnectionManager):
    """Opens a server's stream of events; the connection is the SDK's pair of streams.

    For calls, put a `SessionConnectionManager` or `ClientConnectionManager` on top.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what the SDK takes, in the usual order
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = 5.0,
        sse_read_timeout: float | None = 300.0,
        auth: "Auth | None" = None,
        httpx_client_factory: "McpHttpClientFactory | None" = None,
        *,
        name: str | None = None,
        on_session_created: Callable[[str], object] | None = None,
    ) -> None:
        """Makes a manager; nothing is opened yet.

        Args:
            url: Where the stream of events is.
            headers: Sent with every request.
            timeout: Seconds for each step of a request but for reading, `None` for any time.
            sse_read_timeout: Seconds without an event after which the connection is lost, `None` for
                any time.
            auth: Authenticates every request: an `httpx2.Auth`, with mcp 1.x an `httpx.Auth`.
            httpx_client_factory: Is given `headers`, `timeout` and `auth`, and makes the HTTP client
                of each run, which is closed with it. `None` means the SDK's.
            name: See `ConnectionManager`; without one, the URL is shown without user-info and query.
            on_session_created: Is given the session's id, if the server tells one.

        Raises:
            TypeError: An argument is of another type, such as an `auth` of the other HTTP library.
            ValueError: `url` is no HTTP URL, a timeout is negative or NaN, or a header cannot be sent.
        """
        super().__init__(url, headers, auth, httpx_client_factory, name=name)
        self.timeout: float | None = checked_timeout("timeout", timeout)
        self.sse_read_timeout: float | None = checked_timeout("sse_read_timeout", sse_read_timeout)
        if on_session_created is not None and not callable(on_session_created):
            kind = type(on_session_created).__name__
            raise TypeError(f"on_session_created must be callable or None, not {kind}")
        self.on_session_created: Callable[[str], object] | None = on_session_created

    @override
    @asynccontextmanager
    async def _open_transport(self, traffic: Traffic) -> AsyncGenerator[TransportStreams]:
        def make_client(*_args: object, **_options: object) -> "AsyncClient":
            return traffic.observed(self._make_client(self.timeout, self.sse_read_timeout))

        is_open = False
        try:
            async with _sdk.sse_streams(self.url, make_client, self.on_session_created) as streams:
                is_open = True
                yield streams
        except BaseException as error:
            is_http = any(isinstance(leaf, _sdk.http.HTTPError) for leaf in leaves(error))
            if traffic.has_asked and not is_open and not is_http:
                self._add_fact("the server did not send an `endpoint` event with the same origin")
            raise

    @override
    def _why_fatal(self, request: "Request", response: "Response") -> str | None:
        if request.method == "POST" and response.is_error:
            return "the server refused a message"
        return None
