"""The HTTP+SSE transport: messages are sent as requests, and received on one event stream.

Runs the SDK's `sse_client` in an owner task.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from typing_extensions import override

from .._arguments import checked_timeout
from .._owner import Run
from .._reason import leaves
from . import _sdk
from ._http import HttpConnectionManager
from ._http_errors import shown_url, status_error
from ._http_events import EndpointEvents
from ._http_traffic import Traffic
from .streams import TransportStreams

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Auth, Request, Response
    from mcp.shared._httpx_utils import McpHttpClientFactory

__all__ = ["SseConnectionManager"]


class SseConnectionManager(HttpConnectionManager):
    """Opens a server's event stream; the connection is the SDK's pair of streams.

    To call the server, pass this manager to a `SessionConnectionManager` or
    `ClientConnectionManager`.

    The connection is lost if the event stream ends or breaks off. It is also lost if a message cannot
    be sent or the server refuses it, because the SDK sends no more messages after that.

    Example:
        ```python
        transport = SseConnectionManager("http://localhost:8000/sse", sse_read_timeout=60)
        async with SessionConnectionManager(transport) as session:
            print(await session.list_tools())
        ```

    Source:
        <https://modelcontextprotocol.io/specification/2024-11-05/basic/transports#http-with-sse>
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the SDK's arguments, in the usual order
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
        """Creates a manager without opening anything.

        Args:
            url: The URL of the event stream.
            headers: Sent with every request.
            timeout: Maximum time for each of connecting, sending, and waiting for a free connection,
                in seconds; `None` waits indefinitely.
            sse_read_timeout: Maximum time without receiving data, in seconds, after which the
                connection is lost; `None` waits indefinitely.
            auth: Authenticates every request: an `httpx2.Auth`, or an `httpx.Auth` with mcp 1.x.
            httpx_client_factory: Creates the HTTP client of each run from `headers`, `timeout` and
                `auth`. The client is closed when the run ends. `None` uses the SDK's factory.
            name: See `ConnectionManager`. The default contains the URL without user info and query.
            on_session_created: Called with the session id if the server sends one in the URL of its
                `endpoint` event.

        Raises:
            TypeError: An argument has the wrong type, such as an `auth` from the other HTTP library.
            ValueError: `url` is not an HTTP URL, a timeout is negative or NaN, or a header is invalid.
        """
        super().__init__(url, headers, auth, httpx_client_factory, name=name)
        self.timeout: float | None = checked_timeout("timeout", timeout)
        self.sse_read_timeout: float | None = checked_timeout("sse_read_timeout", sse_read_timeout)
        if on_session_created is not None and not callable(on_session_created):
            kind = type(on_session_created).__name__
            raise TypeError(f"on_session_created must be callable or None, not {kind}")
        self.on_session_created: Callable[[str], object] | None = on_session_created

    @override
    def _create_traffic(self, lose: Callable[[Exception], object], run: "Run[object] | None") -> Traffic:
        return _SseTraffic(lose, self.url)

    @override
    @asynccontextmanager
    async def _open_transport(self, traffic: Traffic) -> AsyncGenerator[TransportStreams]:
        assert isinstance(traffic, _SseTraffic)

        def make_client(*_args: object, **_options: object) -> "AsyncClient":
            return traffic.observed(self._make_client(self.timeout, self.sse_read_timeout))

        is_open = False
        try:
            with traffic.guarded():
                async with _sdk.sse_streams(self.url, make_client, self.on_session_created) as streams:
                    is_open = True
                    yield streams
        except BaseException as error:
            is_http = any(isinstance(leaf, _sdk.http.HTTPError) for leaf in leaves(error))
            if traffic.has_asked and not is_open and not is_http and traffic.failure is None:
                self._add_fact("the server did not send an `endpoint` event")
            raise


class _SseTraffic(Traffic):
    """Observes the requests of an SSE connection.

    The SDK sends no more messages after a failure to send one, so that failure ends the connection.

    Attributes:
        has_asked: Whether a request was sent and did not fail.
    """

    def __init__(self, lose: Callable[[Exception], object], url: str) -> None:
        super().__init__(lose)
        self.has_asked = False
        self._url = url

    @override
    async def send(self, request: "Request", send: "Callable[[], Awaitable[Response]]") -> "Response":
        self.has_asked = True
        try:
            response = await send()
        except Exception as error:
            self.has_asked = False
            if request.method == "POST" or isinstance(error, _sdk.http.ConnectError):
                self.fail(error)
            raise
        if request.method == "POST" and not response.is_success and not _is_followed(response):
            # The SDK's error would show the whole URL, and the SDK would log it.
            await response.aclose()
            refusal = status_error(response, f"the server refused a message to {shown_url(request.url)}")
            self.fail(refusal)
            raise refusal
        self.note(request, response)
        if request.method == "GET" and response.is_success:
            response.stream = EndpointEvents(response, self._url, self.fail)
        return response


def _is_followed(response: "Response") -> bool:
    return _sdk.next_request_within_origin(response) is not None
