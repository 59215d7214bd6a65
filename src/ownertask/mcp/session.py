"""An initialized MCP session and its transport in one owner task.

A manager for the streams alone is not enough: the session on top of them has its own task group, which
must also be exited in the task that entered it.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar
from urllib.parse import urlsplit, urlunsplit

from mcp import ClientSession, StdioServerParameters
from typing_extensions import Unpack, override

from .._arguments import checked_reconnect, checked_timeout, checked_watch
from .._copying import attributes_in
from ..manager import ConnectionManager
from ..policy import ReconnectPolicy
from ..state import ConnectionState
from . import _sdk
from ._http import HttpConnectionManager, checked_url
from ._http_errors import shown_url
from ._session_watch import SessionWatch
from .stdio import StdioConnectionManager
from .streamable_http import StreamableHttpConnectionManager
from .streams import TransportStreams, checked_streams
from .websocket import WebSocketConnectionManager

if TYPE_CHECKING:
    import mcp_types
    from mcp import Client
    from mcp.client import CacheConfig, ClientExtension, NotificationBinding, ResultClaim
    from mcp.client.client import ConnectMode
    from mcp.client.session import (
        ElicitationFnT,
        ListRootsFnT,
        LoggingFnT,
        MessageHandlerFnT,
        SamplingFnT,
    )

__all__ = ["ClientConnectionManager", "ClientOptions", "SessionConnectionManager", "SessionOptions"]

T_co = TypeVar("T_co", covariant=True)

START_TIMEOUT: Final = 60.0
"""Seconds for opening the transport and completing the handshake. The SDK itself waits forever."""


OWN_TRANSPORTS: Final = (HttpConnectionManager, StdioConnectionManager, WebSocketConnectionManager)


class _CommonOptions(TypedDict, total=False):
    sampling_callback: "SamplingFnT | None"
    sampling_capabilities: "mcp_types.SamplingCapability | None"
    elicitation_callback: "ElicitationFnT | None"
    list_roots_callback: "ListRootsFnT | None"
    logging_callback: "LoggingFnT | None"
    message_handler: "MessageHandlerFnT | None"
    client_info: "mcp_types.Implementation | None"
    log_level: "mcp_types.LoggingLevel | None"


class SessionOptions(_CommonOptions, total=False):
    """The options of the SDK's `ClientSession`, from both mcp 1.x and 2.x.

    An option that the installed version lacks raises `TypeError`.
    """

    read_timeout_seconds: float | timedelta | None
    # Any: the SDK's own types.
    extensions: dict[str, dict[str, Any]] | None
    result_claims: "Mapping[str, Sequence[ResultClaim[Any]]] | None"
    notification_bindings: "Sequence[NotificationBinding[Any]] | None"
    experimental_task_handlers: object


class ClientOptions(_CommonOptions, total=False):
    """The options of the SDK's `Client`."""

    raise_exceptions: bool
    read_timeout_seconds: float | None
    mode: "ConnectMode"
    prior_discover: "mcp_types.DiscoverResult | None"
    input_required_max_rounds: int
    extensions: "Sequence[ClientExtension] | None"
    cache: "CacheConfig | None"


class _OnTransport(ConnectionManager[T_co]):
    """A manager that opens a transport, and a session of the SDK on it."""

    transport: ConnectionManager[TransportStreams]

    def __init__(
        self,
        transport: ConnectionManager[TransportStreams] | StdioServerParameters | str,
        *,
        name: str | None,
        start_timeout: float | None,
        reconnect: ReconnectPolicy | None,
        watch: Callable[[T_co], Awaitable[object]] | None,
    ) -> None:
        self.transport = _as_transport(transport)
        default_name = f"{type(self).__name__} on {self.transport.name}"
        super().__init__(name=default_name if name is None else name)
        self.start_timeout: float | None = checked_timeout("start_timeout", start_timeout)
        # A subclass may define a policy, or a method `watch`.
        if checked_reconnect(reconnect) is not None:
            self.reconnect = reconnect
        if checked_watch(watch) is not None:
            vars(self)["watch"] = watch  # pyright would infer another type from an assignment

    @asynccontextmanager
    async def _open_streams(self) -> AsyncGenerator[TransportStreams]:
        """Opens the transport, and reports a loss if the session can no longer read from it."""
        watch = SessionWatch(self.connection_lost, self._is_closing)
        try:
            async with self.open_inner(self.transport) as opened:
                streams = checked_streams(opened, self.transport.name)
                yield watch.watched(streams, for_writing=not isinstance(self.transport, OWN_TRANSPORTS))
        except BaseException as error:
            watch.closed(error)
            raise
        watch.closed(None)

    def _is_closing(self) -> bool:
        run = self._run_of_caller()
        return run is None or run.state not in {ConnectionState.OPENING, ConnectionState.OPEN}

    # A transport can be part of only one manager at a time, so a copy of a manager has a copy of it.
    @override
    def __getstate__(self) -> object:
        state = super().__getstate__()
        attributes_in(state)["transport"] = copy(self.transport)
        return state


class SessionConnectionManager(_OnTransport[ClientSession]):
    """Opens a transport and an SDK session on it; `start()` returns the initialized session.

    The connection is lost if the transport reports a loss or ends its read stream, or if the session
    stops reading from it. This also works for a transport from `ConnectionManager.from_factory()`.
    """

    connection_type = ClientSession
    """The class of the connection, for `current`."""

    def __init__(
        self,
        transport: ConnectionManager[TransportStreams] | StdioServerParameters | str,
        *,
        name: str | None = None,
        start_timeout: float | None = START_TIMEOUT,
        reconnect: ReconnectPolicy | None = None,
        watch: Callable[[ClientSession], Awaitable[object]] | None = None,
        **options: Unpack[SessionOptions],
    ) -> None:
        """Creates a manager without opening anything.

        Args:
            transport: A transport manager, the parameters of a stdio server, or the URL of a streamable
                HTTP server. Do not start the transport manager yourself. Its connection must be a read
                stream and a write stream; a third value, which mcp 1.x can add, is ignored.
            name: See `ConnectionManager`. The default contains the transport's name.
            start_timeout: Maximum time for opening the transport and completing the handshake, in
                seconds; 60 by default; `None` waits indefinitely.
            reconnect: When to open the connection again after a failure; `None` means never.
            watch: An async function that is called with each session. When it returns or raises, the
                connection is lost.
            **options: The options of the SDK's `ClientSession`; see `SessionOptions`.
                `read_timeout_seconds` may be seconds or a `timedelta` with both mcp 1.x and 2.x.

        Raises:
            TypeError: An argument has the wrong type, or the installed SDK does not accept one of the
                options.
            ValueError: `start_timeout` is negative or NaN, or `transport` is neither a valid HTTP URL
                nor valid server parameters.
        """
        super().__init__(
            transport, name=name, start_timeout=start_timeout, reconnect=reconnect, watch=watch
        )
        _sdk.check_options(ClientSession, options)
        self.options: SessionOptions = options

    @override
    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[ClientSession]:
        async with (
            self._open_streams() as streams,
            _sdk.open_session(streams, self.options, self.connection_lost) as session,
        ):
            await session.initialize()
            yield session


class ClientConnectionManager(_OnTransport["Client"]):
    """Opens a transport and the SDK's `Client` on it; `start()` returns the connected client.

    Requires mcp 2.x. By default, the client negotiates the protocol version with the server
    (`mode="auto"`). It detects losses as `SessionConnectionManager` does.
    """

    def __init__(
        self,
        transport: ConnectionManager[TransportStreams] | StdioServerParameters | str,
        *,
        name: str | None = None,
        start_timeout: float | None = START_TIMEOUT,
        reconnect: ReconnectPolicy | None = None,
        watch: "Callable[[Client], Awaitable[object]] | None" = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Creates a manager without opening anything.

        Args:
            transport: A transport manager, the parameters of a stdio server, or the URL of a streamable
                HTTP server. Do not start the transport manager yourself. Its connection must be a read
                stream and a write stream; a third value, which mcp 1.x can add, is ignored.
            name: See `ConnectionManager`. The default contains the transport's name.
            start_timeout: Maximum time for opening the transport and completing the handshake, in
                seconds; 60 by default; `None` waits indefinitely.
            reconnect: When to open the connection again after a failure; `None` means never.
            watch: An async function that is called with each client. When it returns or raises, the
                connection is lost.
            **options: The options of the SDK's `Client`; see `ClientOptions`.

        Raises:
            RuntimeError: mcp 1.x is installed.
            TypeError: An argument has the wrong type, or the installed SDK does not accept one of the
                options.
            ValueError: `start_timeout` is negative or NaN, `transport` is neither a valid HTTP URL nor
                valid server parameters, or the SDK rejects an option's value.
        """
        client_type = _sdk.client_type()
        super().__init__(
            transport, name=name, start_timeout=start_timeout, reconnect=reconnect, watch=watch
        )
        _sdk.check_options(client_type, options)
        cache = options.get("cache")
        if cache is not None and cache.target_id is None and isinstance(transport, str):
            # The SDK would use the URL, but it sees only the transport.
            options["cache"] = replace(cache, target_id=_without_user_info(transport))
        self.options: ClientOptions = options
        self._create_client()  # opens nothing; lets the SDK check the values of the options

    @property
    def connection_type(self) -> "type[Client]":
        """The class of the connection, for `current`."""
        return _sdk.client_type()

    def _create_client(self) -> "Client":
        return _sdk.client_type()(self._open_streams(), **self.options)

    @override
    @asynccontextmanager
    async def open_connection(self) -> "AsyncGenerator[Client]":
        async with self._create_client() as client:
            yield client


def _as_transport(
    transport: ConnectionManager[TransportStreams] | StdioServerParameters | str,
) -> ConnectionManager[TransportStreams]:
    if isinstance(transport, ConnectionManager):
        return transport
    if isinstance(transport, StdioServerParameters):
        return StdioConnectionManager(transport)
    if not isinstance(transport, str):
        raise TypeError(
            "transport must be a ConnectionManager, StdioServerParameters or a URL, not "
            + type(transport).__name__
        )
    try:
        url = checked_url("transport", transport)
    except ValueError as error:
        raise ValueError(f"{error}; for a command, pass StdioServerParameters") from None
    return StreamableHttpConnectionManager(url, name=shown_url(url))


def _without_user_info(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
