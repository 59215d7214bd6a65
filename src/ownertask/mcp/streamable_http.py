"""The streamable HTTP transport: the response to each request is JSON or a stream of events.

Runs the SDK's `streamable_http_client` in an owner task.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypedDict

from anyio import create_task_group
from mcp.client.streamable_http import streamable_http_client
from typing_extensions import Unpack, override

from .._arguments import checked_timeout
from .._owner import Run
from .._reason import leaves
from . import _sdk
from ._http import HttpConnectionManager, check_http_type
from ._http_calls import CallTraffic
from ._http_errors import raise_for_status
from ._http_listening import Listening
from ._http_session import ServerSession
from ._http_traffic import Traffic
from .streams import TransportStreams

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Auth
    from mcp.shared._httpx_utils import McpHttpClientFactory

__all__ = ["StreamableHttpConnectionManager", "StreamableHttpOptions"]


class StreamableHttpOptions(TypedDict, total=False):
    """The options of the SDK's `streamable_http_client` that only mcp 2.x has."""

    max_sse_event_size: int | None
    """Maximum size of a server-sent event, in bytes; 1 MiB by default; `None` disables the limit.
    [SDK documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/api/mcp/client/streamable_http/#mcp.client.streamable_http.streamable_http_client
    """


class StreamableHttpConnectionManager(HttpConnectionManager):
    """Opens the SDK's streamable HTTP transport; the connection is its pair of streams.

    Opening sends no request. The first request, usually a session's handshake, shows whether the
    server can be reached. To call the server, pass this manager to a `SessionConnectionManager` or
    `ClientConnectionManager`.

    Once the connection is open, a failed call does not affect other calls. Its error has the HTTP
    status or another reason. The connection is lost if the server cannot be connected to, or no longer
    knows the session. If the server refuses a call in a session, a `ping` shows within about five
    seconds whether the session lives. As long as it lives, the event stream for the server's messages
    is opened again when it ends. So if the server goes away, this is usually detected without a call.

    Closing the connection ends the session on the server, even after a loss.

    Example:
        ```python
        transport = StreamableHttpConnectionManager(
            "http://localhost:8000/mcp", headers={"Authorization": "Bearer token"}
        )
        async with SessionConnectionManager(transport) as session:
            print(await session.list_tools())
        ```

    Source:
        <https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#streamable-http>
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the SDK's arguments, in the usual order
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = 30.0,
        read_timeout: float | None = 300.0,
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
                in seconds; `None` waits indefinitely. The default is the SDK's.
            read_timeout: Maximum time without receiving data, in seconds, after which a call fails;
                `None` waits indefinitely. The default is the SDK's.
            auth: Authenticates every request: an `httpx2.Auth`, or an `httpx.Auth` with mcp 1.x.
            httpx_client_factory: Creates the HTTP client of each run from `headers`, `timeout` and
                `auth`. The client is closed when the run ends. `None` uses the SDK's factory.
            name: See `ConnectionManager`. The default contains the URL without user info and query.
            http_client: Your own HTTP client, which is used as it is and never closed. It cannot be
                combined with `headers`, `timeout`, `read_timeout`, `auth` or `httpx_client_factory`.
            terminate_on_close: Whether closing the connection also ends the session on the server. A
                normal close waits for the server's response. After a loss or a failed start, this takes
                at most one second; if the owner task was cancelled, at most 0.1 seconds.
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
            if given != (None, 30.0, 300.0, None, None):
                raise ValueError(
                    "http_client cannot be combined with headers, timeout, read_timeout, auth or "
                    "httpx_client_factory; configure the client itself"
                )
        self.http_client: AsyncClient | None = http_client
        if not isinstance(terminate_on_close, bool):
            kind = type(terminate_on_close).__name__
            raise TypeError(f"terminate_on_close must be a boolean, not {kind}")
        self.terminate_on_close: bool = terminate_on_close
        _sdk.check_options(streamable_http_client, options, {"http_client", "url"})
        size = options.get("max_sse_event_size")
        if size is not None:
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"max_sse_event_size must be a number of bytes or None, not {size!r}")
            if size <= 0:
                raise ValueError(f"max_sse_event_size must be positive or None, not {size!r}")
        self.options: StreamableHttpOptions = options

    @override
    def _create_traffic(
        self, lose: Callable[[Exception], object], run: "Run[object] | None"
    ) -> CallTraffic:
        return CallTraffic(lose, self.name, lambda: run is not None and not run.outcome.was_open)

    @override
    @asynccontextmanager
    async def _open_transport(self, traffic: Traffic) -> AsyncGenerator[TransportStreams]:
        assert isinstance(traffic, CallTraffic)
        run = self._run_of_caller()
        async with AsyncExitStack() as client_to_close:
            client = self.http_client
            if client is None:
                client = self._make_client(self.timeout, self.read_timeout)
                await client_to_close.enter_async_context(client)
            is_healthy = False
            try:
                async with self._open_streams(client, traffic) as streams:
                    yield streams
                is_healthy = traffic.failure is None and not (
                    run is not None and run.outcome.loss is not None
                )
            except BaseException as error:
                kinds = {type(leaf) for leaf in leaves(error)}
                if traffic.refused is not None and kinds == {_sdk.MCPError}:
                    raise_for_status(traffic.refused, error)
                raise
            finally:
                # The SDK itself does not do this after a loss, and waits for a dead server.
                if self.terminate_on_close:
                    await traffic.session.end(is_healthy=is_healthy)

    @asynccontextmanager
    async def _open_streams(
        self, client: "AsyncClient", traffic: CallTraffic
    ) -> AsyncGenerator[TransportStreams]:
        with traffic.guarded():
            async with create_task_group() as tasks:
                traffic.session = ServerSession(client, self.name, tasks, traffic.fail)
                traffic.listening = Listening(traffic.session, traffic.note)
                options = {"terminate_on_close": False, **self.options}
                async with _sdk.streamable_http_streams(
                    self.url, traffic.observed(client), options
                ) as streams:
                    yield streams
                tasks.cancel_scope.cancel()
