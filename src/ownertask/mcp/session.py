"""An initialized MCP session and its transport in one owner task.

A manager for the streams alone is not enough: the session on top of them has its own task group, which
must also be exited in the task that entered it.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypedDict, cast
from urllib.parse import urlsplit, urlunsplit

from mcp import ClientSession
from typing_extensions import TypeVar, Unpack, override

from .._arguments import checked_reconnect, checked_timeout, checked_watch
from .._copying import attributes_in
from ..manager import ConnectionManager
from ..policy import ReconnectPolicy
from ..state import ConnectionState
from . import _sdk
from ._http import HttpConnectionManager
from ._session_watch import SessionWatch
from ._transport_source import TransportSource, transport_from
from .stdio import StdioConnectionManager
from .streams import TransportStreams, checked_streams
from .websocket import WebSocketConnectionManager

if TYPE_CHECKING:
    from mcp import Client, types
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
S_co = TypeVar("S_co", bound=ClientSession, covariant=True, default=ClientSession)

OWN_TRANSPORTS: Final = (HttpConnectionManager, StdioConnectionManager, WebSocketConnectionManager)


class _CommonOptions(TypedDict, total=False):
    sampling_callback: "SamplingFnT | None"
    """Answers a server that asks for a completion by a language model. [SDK documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/client/callbacks/#the-deprecated-pair
    """
    sampling_capabilities: "types.SamplingCapability | None"
    """Declares what `sampling_callback` supports, such as tools. [SDK documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/api/mcp/client/client/#mcp.client.client.Client.sampling_capabilities
    """
    elicitation_callback: "ElicitationFnT | None"
    """Answers a server that asks the user a question. [SDK documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/client/callbacks/#the-elicitation-callback
    """
    list_roots_callback: "ListRootsFnT | None"
    """Answers a server that asks for the folders in which it may work. [SDK documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/client/callbacks/#the-deprecated-pair
    """
    logging_callback: "LoggingFnT | None"
    """Receives the log messages of the server. [SDK documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/client/callbacks/#the-notification-callbacks
    """
    message_handler: "MessageHandlerFnT | None"
    """Receives the notifications of the server, and the exceptions of the transport. [SDK
    documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/client/callbacks/#the-notification-callbacks
    """
    client_info: "types.Implementation | None"
    """The name and version of your application, which the server can read. [SDK documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/api/mcp/client/client/#mcp.client.client.Client.client_info
    """
    log_level: "types.LoggingLevel | None"
    """The lowest level of log messages that a server of the 2026 protocol sends. Requires mcp 2.x. [SDK
    documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/api/mcp/client/client/#mcp.client.client.Client.log_level
    """


class SessionOptions(_CommonOptions, total=False):
    """The options of the SDK's `ClientSession`, from both [mcp 2.x][2] and [mcp 1.x][1].

    Each option that you leave out has the SDK's default. An option that the installed version lacks
    raises `TypeError`.

    [1]: https://py.sdk.modelcontextprotocol.io/v1/api/#mcp.ClientSession
    [2]: https://py.sdk.modelcontextprotocol.io/api/mcp/client/session/#mcp.client.session.ClientSession
    """

    read_timeout_seconds: float | timedelta | None
    """Maximum time for each request, in seconds or as a `timedelta`, with both mcp 1.x and 2.x; `None`
    waits indefinitely. [SDK documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/api/mcp/client/client/#mcp.client.client.Client.read_timeout_seconds
    """
    # Any: the SDK's own types.
    extensions: dict[str, dict[str, Any]] | None
    """The protocol extensions that the client declares, with their settings. Requires mcp 2.x. [SDK
    documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/advanced/extensions/
    """
    result_claims: "Mapping[str, Sequence[ResultClaim[Any]]] | None"
    """Additional results of tool calls, which an extension defines. Requires mcp 2.x. [SDK
    documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/advanced/extensions/
    """
    notification_bindings: "Sequence[NotificationBinding[Any]] | None"
    """Handlers for notifications that an extension defines. Requires mcp 2.x. [SDK documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/advanced/extensions/
    """
    experimental_task_handlers: object
    """Handlers for the experimental tasks of mcp 1.x. [SDK documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/v1/experimental/tasks-client/
    """


class ClientOptions(_CommonOptions, total=False):
    """The options of the SDK's [`Client`][sdk].

    Each option that you leave out has the SDK's default.

    [sdk]: https://py.sdk.modelcontextprotocol.io/api/mcp/client/client/#mcp.client.client.Client
    """

    raise_exceptions: bool
    """Lets an exception in a handler end a server in this process; `False` by default. [SDK
    documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/api/mcp/client/client/#mcp.client.client.Client.raise_exceptions
    """
    read_timeout_seconds: float | None
    """Maximum time for each request, in seconds; `None`, the default, waits indefinitely. [SDK
    documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/api/mcp/client/client/#mcp.client.client.Client.read_timeout_seconds
    """
    mode: "ConnectMode"
    """How to negotiate the version of the protocol; `"auto"` is the default. [SDK documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/api/mcp/client/client/#mcp.client.client.Client.mode
    """
    prior_discover: "types.DiscoverResult | None"
    """Passes an earlier answer to `server/discover`, so that the client need not ask again. [SDK
    documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/api/mcp/client/client/#mcp.client.client.Client.prior_discover
    """
    input_required_max_rounds: int
    """Maximum number of times that a call may ask for further input; the default is 10. [SDK
    documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/api/mcp/client/client/#mcp.client.client.Client.input_required_max_rounds
    """
    extensions: "Sequence[ClientExtension] | None"
    """The protocol extensions that the client supports. [SDK documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/api/mcp/client/client/#mcp.client.client.Client.extensions
    """
    cache: "CacheConfig | None"
    """How the client caches responses; `None` disables the cache. [SDK documentation][sdk]

    [sdk]: https://py.sdk.modelcontextprotocol.io/api/mcp/client/client/#mcp.client.client.Client.cache
    """


class _OnTransport(ConnectionManager[T_co]):
    """A manager that opens a transport, and a session of the SDK on it."""

    transport: ConnectionManager[TransportStreams]

    def __init__(
        self,
        transport: ConnectionManager[TransportStreams],
        *,
        name: str | None,
        start_timeout: float | None,
        reconnect: ReconnectPolicy | None,
        watch: Callable[[T_co], Awaitable[object]] | None,
    ) -> None:
        self.transport = transport
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


class SessionConnectionManager(_OnTransport[S_co]):
    """Opens a transport and an SDK session on it; `start()` returns the initialized session.

    The connection is lost if the transport reports a loss or ends its read stream, or if the session
    stops reading from it. This also works for transports from other libraries.

    Example:
        ```python
        server = StdioServerParameters(command="python", args=["server.py"])
        manager = SessionConnectionManager(server, name="calculator", read_timeout_seconds=30)
        async with manager as session:
            print(await session.call_tool("add", {"a": 1, "b": 2}))
        ```
    """

    connection_type: type[ClientSession] = ClientSession
    """The class of the connection, for `current`."""

    def __init__(  # noqa: PLR0913 - frameworks need all of them
        self,
        transport: TransportSource,
        *,
        session_class: type[S_co] = ClientSession,  # type: ignore[assignment] # the default of the variable
        initialize: bool | Callable[[S_co], Awaitable[object]] = True,
        name: str | None = None,
        start_timeout: float | None = 60.0,  # the SDK itself waits forever
        reconnect: ReconnectPolicy | None = None,
        watch: Callable[[S_co], Awaitable[object]] | None = None,
        **options: Unpack[SessionOptions],
    ) -> None:
        """Creates a manager without opening anything.

        Args:
            transport: A transport manager, a function that returns a transport, the parameters of a
                stdio server, the URL of a streamable HTTP server, or an SDK server, which then
                runs in this process. See `TransportSource`.
            session_class: The class of the session, for frameworks that have their own subclass of
                `ClientSession`. The manager calls it with the two streams and `options`.
            initialize: Whether to complete the MCP handshake with `session.initialize()`. For another
                handshake, pass an async function, which the manager calls with each new session.
            name: See `ConnectionManager`. The default contains the transport's name.
            start_timeout: Maximum time for opening the transport and completing the handshake, in
                seconds; `None` waits indefinitely.
            reconnect: When to open the connection again after a failure; `None` means never.
            watch: An async function that is called with each session. When it returns or raises, the
                connection is lost.
            **options: The options of `session_class`. See `SessionOptions` for the SDK's class.
                `read_timeout_seconds` may be seconds or a `timedelta` with both mcp 1.x and 2.x.

        Raises:
            TypeError: An argument has the wrong type, or `session_class` does not accept one of the
                options.
            ValueError: `start_timeout` is negative or NaN, or `transport` is neither a valid HTTP URL
                nor valid server parameters.
        """
        super().__init__(
            transport_from(transport),
            name=name,
            start_timeout=start_timeout,
            reconnect=reconnect,
            watch=watch,
        )
        if not (isinstance(session_class, type) and issubclass(session_class, ClientSession)):
            is_class = isinstance(session_class, type)
            kind = (
                session_class.__name__ if is_class else f"an instance of {type(session_class).__name__}"
            )
            raise TypeError(f"session_class must be a subclass of ClientSession, not {kind}")
        if not (isinstance(initialize, bool) or callable(initialize)):
            kind = type(initialize).__name__
            raise TypeError(f"initialize must be True, False or an async function, not {kind}")
        _sdk.check_options(session_class, options, {"dispatcher", "read_stream", "write_stream"})
        vars(self)["connection_type"] = session_class  # the reference shows the default of the class
        self.options: SessionOptions = options
        self._initialize = initialize

    @override
    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[S_co]:
        session_class = cast("type[S_co]", self.connection_type)
        async with (
            self._open_streams() as streams,
            _sdk.open_session(session_class, streams, self.options, self.connection_lost) as session,
        ):
            if self._initialize is True:
                await session.initialize()
            elif self._initialize is not False:
                initialized = self._initialize(session)
                if not isinstance(initialized, Awaitable):
                    kind = type(initialized).__name__
                    raise TypeError(f"initialize() must return an awaitable, not {kind}")
                await initialized
            yield session


class ClientConnectionManager(_OnTransport["Client"]):
    """Opens a transport and the SDK's `Client` on it; `start()` returns the connected client.

    Requires mcp 2.x. By default, the client negotiates the protocol version with the server
    (`mode="auto"`). It detects losses as `SessionConnectionManager` does.

    Example:
        ```python
        manager = ClientConnectionManager("http://localhost:8000/mcp", read_timeout_seconds=30)
        async with manager as client:
            print(await client.call_tool("add", {"a": 1, "b": 2}))
        ```
    """

    def __init__(
        self,
        transport: TransportSource,
        *,
        name: str | None = None,
        start_timeout: float | None = 60.0,  # the SDK itself waits forever
        reconnect: ReconnectPolicy | None = None,
        watch: "Callable[[Client], Awaitable[object]] | None" = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Creates a manager without opening anything.

        Args:
            transport: A transport manager, a function that returns a transport, the parameters of a
                stdio server, the URL of a streamable HTTP server, or an SDK server, which then
                runs in this process. See `TransportSource`.
            name: See `ConnectionManager`. The default contains the transport's name.
            start_timeout: Maximum time for opening the transport and completing the handshake, in
                seconds; `None` waits indefinitely.
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
            transport_from(transport, raise_exceptions=options.get("raise_exceptions", False)),
            name=name,
            start_timeout=start_timeout,
            reconnect=reconnect,
            watch=watch,
        )
        _sdk.check_options(client_type, options, {"server"})
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


def _without_user_info(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
