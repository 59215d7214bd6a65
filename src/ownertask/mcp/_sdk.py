"""Every difference between SDK 1.x and 2.x, and nothing else.

The types come from 2.x, which ownertask is type-checked against.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from importlib.metadata import version
from inspect import Parameter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TextIO, TypeVar, cast, runtime_checkable

from anyio import BrokenResourceError, CancelScope, ClosedResourceError, Lock, WouldBlock
from anyio.lowlevel import checkpoint
from mcp import ClientSession, StdioServerParameters, stdio_client, types
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.lowlevel import Server
from mcp.shared import _httpx_utils
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.message import SessionMessage
from mcp.types import CONNECTION_CLOSED, ErrorData, JSONRPCError
from pydantic import TypeAdapter
from pydantic_core import from_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    import httpx2 as http
    from mcp import Client
    from mcp.client._transport import TransportStreams, WriteStream
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from mcp.shared._httpx_utils import McpHttpClientFactory

__all__ = [
    "FOLLOWS_ALL_REDIRECTS",
    "HAS_CLIENT",
    "SESSION_TERMINATED",
    "HighLevelServer",
    "MCPError",
    "calls_under_way",
    "check_options",
    "client_type",
    "create_mcp_http_client",
    "error_code_of",
    "http",
    "is_answer",
    "low_level_server",
    "message_from_json",
    "message_or_error",
    "message_to_utf8",
    "next_request_within_origin",
    "open_session",
    "ping",
    "read_stream_of",
    "session_of",
    "sse_streams",
    "stdio_streams",
    "streamable_http_streams",
    "valid_message",
]

S = TypeVar("S", bound=ClientSession)

VARIADIC: Final = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)

SDK_VERSION: Final = version("mcp")
HAS_CLIENT: Final = int(SDK_VERSION.partition(".")[0]) >= 2
FOLLOWS_ALL_REDIRECTS: Final = not hasattr(_httpx_utils, "next_request_within_origin")
"""`True` if the HTTP client follows redirects before the SDK sees them, even to another origin."""

SESSION_TERMINATED: Final = -32600 if HAS_CLIENT else 32600
"""The code of the SDK's error *Session terminated*."""

REQUEST_TIMEOUT: Final = -32001 if HAS_CLIENT else 408
"""The code of the SDK's error for a request that received no response in time."""

# Any: the SDK has a model in 1.x, and an adapter in 2.x.
_types: Any = import_module("mcp_types" if HAS_CLIENT else "mcp.types")
_messages: Final[Any] = (
    _types.jsonrpc_message_adapter if HAS_CLIENT else TypeAdapter(_types.JSONRPCMessage)
)

MCPError: Final = import_module("mcp").MCPError if HAS_CLIENT else import_module("mcp").McpError
if TYPE_CHECKING:

    @runtime_checkable
    class HighLevelServer(Protocol):
        """An `MCPServer` of 2.x or a `FastMCP` of 1.x, for type checkers with either version."""

        @property
        def name(self) -> str: ...
        @property
        def session_manager(self) -> StreamableHTTPSessionManager: ...
else:
    HighLevelServer = (
        import_module("mcp.server.mcpserver").MCPServer
        if HAS_CLIENT
        else import_module("mcp.server.fastmcp").FastMCP
    )
    http = import_module("httpx2" if HAS_CLIENT else "httpx")


def client_type() -> "type[Client]":
    """Returns the SDK's `Client`.

    Raises:
        RuntimeError: mcp 1.x is installed, which has no `Client`.
    """
    if not HAS_CLIENT:
        raise RuntimeError(
            f"ClientConnectionManager requires mcp 2 or newer, but mcp {SDK_VERSION} is installed; "
            "use SessionConnectionManager instead"
        )
    from mcp import Client

    return Client


def check_options(
    target: Callable[..., object], options: Iterable[str], reserved: Collection[str]
) -> None:
    """Rejects options that the callable does not accept or that only the manager may pass.

    Args:
        target: A class or a function of the SDK, or a subclass of such a class.
        options: The names of the options.
        reserved: The names of the parameters to which the manager passes arguments.

    Raises:
        TypeError: There is such an option.
    """
    parameters = inspect.signature(target).parameters
    named = {name for name, parameter in parameters.items() if parameter.kind not in VARIADIC}
    taken = sorted(named - set(reserved))
    takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    for option in options:
        if option in reserved or not (takes_all or option in taken):
            is_sdks = target.__module__.partition(".")[0] == "mcp"
            source = f" of mcp {SDK_VERSION}" if is_sdks else ""
            accepted = ", ".join([*taken, "any other option"] if takes_all else taken)
            raise TypeError(
                f"unexpected argument {option!r}: {target.__name__}{source} accepts {accepted}"
            )


@asynccontextmanager
# Any: the types depend on the installed SDK. check_options() has checked the names.
async def open_session(
    session_class: type[S],
    streams: "TransportStreams",
    options: Mapping[str, Any],
    on_crash: Callable[[Exception], object],
) -> "AsyncGenerator[S]":
    """Opens a session. On exit, its pending calls fail.

    If a handler ends the receive loop of 1.x with an exception, the SDK only logs it, and `on_crash` is
    called.

    1.x accepts durations only as a `timedelta`, 2.x only as seconds. On exit from a session, 1.x
    leaves its pending calls waiting forever.
    """
    converted = dict(options)
    seconds = converted.get("read_timeout_seconds")
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if seconds is not None:
        converted["read_timeout_seconds"] = seconds if HAS_CLIENT else timedelta(seconds=seconds)
    session = session_class(*streams, **converted)
    if HAS_CLIENT:
        async with session:
            yield session
        return
    try:
        with _guarded(session, on_crash):
            async with session:
                yield session
    finally:
        _end_calls(session)


@contextmanager
def _guarded(session: ClientSession, on_crash: Callable[[Exception], object]) -> "Generator[None]":
    """Guards the receive loop of 1.x against exceptions in the methods that handle a message."""
    # Any: the types come from 2.x, which does not have these methods.
    methods: Any = session
    handle_response, handle_incoming = methods._handle_response, methods._handle_incoming

    async def handle_response_guarded(message: "SessionMessage") -> None:
        response: Any = message.message
        response_id = methods._normalize_request_id(response.root.id)
        waiting: dict[str | int, Any] = methods._response_streams
        stream = waiting.get(response_id)
        try:
            await handle_response(message)
        except (BrokenResourceError, ClosedResourceError):
            pass  # the caller was cancelled while the response was delivered
        except BaseException:
            # The session was cancelled while the response was delivered. _end_calls() will end the call.
            if stream is not None:
                waiting[response_id] = stream
            raise

    async def handle_incoming_guarded(message: object) -> None:
        try:
            await handle_incoming(message)
        except Exception as error:
            if isinstance(message, Exception):  # with other messages, the receive loop continues
                on_crash(error)
            raise

    methods._handle_response = handle_response_guarded
    methods._handle_incoming = handle_incoming_guarded
    try:
        yield
    finally:
        # The functions refer to the session, so this breaks a reference cycle.
        del methods._handle_response, methods._handle_incoming


def _end_calls(session: ClientSession) -> None:
    error = ErrorData(code=CONNECTION_CLOSED, message="Connection closed")
    # Any: the types come from 2.x, which does not have this attribute.
    waiting: dict[str | int, Any] = vars(session)["_response_streams"]
    for request_id, stream in waiting.items():
        # The call already has its response, or its caller is gone.
        with suppress(WouldBlock, BrokenResourceError, ClosedResourceError):
            stream.send_nowait(JSONRPCError(jsonrpc="2.0", id=request_id, error=error))


def session_of(connection: object) -> ClientSession:
    """Returns the session of a connection, which may be a `Client` of 2.x.

    Raises:
        TypeError: The connection is neither a session nor a client.
    """
    if isinstance(connection, ClientSession):
        return connection
    if HAS_CLIENT and isinstance(connection, client_type()):
        return connection.session
    raise TypeError(f"a ClientSession or a Client is required, not {type(connection).__name__}")


def low_level_server(server: "HighLevelServer | Server[Any]") -> "Server[Any]":
    """Returns the low-level server inside a high-level server, or the low-level server itself."""
    if isinstance(server, HighLevelServer):
        name = "_lowlevel_server" if HAS_CLIENT else "_mcp_server"
        return cast("Server[Any]", getattr(server, name))
    return server


def _dispatcher_of(session: ClientSession) -> object:
    return vars(session)["_dispatcher"] if HAS_CLIENT else session


def read_stream_of(session: ClientSession) -> object:
    """Returns the stream from which the session reads, or `None`.

    In 2.x, a client of a server in the same process has no stream.
    """
    return getattr(_dispatcher_of(session), "_read_stream", None)


def calls_under_way(session: ClientSession) -> int:
    """Returns how many requests of the session wait for a response, except for subscriptions.

    The response to a subscription of 2.x only arrives when the subscription ends.
    """
    if not HAS_CLIENT:
        return len(vars(session)["_response_streams"])
    waiting: Mapping[object, object] = getattr(_dispatcher_of(session), "_pending", {})
    subscriptions: Mapping[object, object] = vars(session)["_listen_routes"]
    return len(waiting) - sum(request_id in waiting for request_id in subscriptions)


async def ping(session: ClientSession) -> None:
    """Sends the cheapest request that the protocol of the session has, and waits for the response.

    The options of the session do not limit how long this call waits. If the call is cancelled, 2.x does
    not notify the server. The notification could block the exit from the session for five seconds.

    The protocol version 2026-07-28 has no ping. Every server must answer `server/discover`.

    Raises:
        Exception: The server answered with an error, or did not answer; see `is_answer()`.
    """
    # Any: 1.x wraps the request, and has no `discover_result`.
    any_types, any_session, forever = cast("Any", types), cast("Any", session), timedelta(days=36500)
    if not HAS_CLIENT:
        request = any_types.ClientRequest(any_types.PingRequest())
        await any_session.send_request(request, types.EmptyResult, forever)
        return
    from mcp.shared.message import ClientMessageMetadata

    request = any_types.PingRequest() if session.discover_result is None else any_types.DiscoverRequest()
    metadata = ClientMessageMetadata(on_resumption_token_update=_ignore_token)
    await any_session.send_request(request, types.EmptyResult, forever.total_seconds(), metadata)


async def _ignore_token(token: str) -> None:
    """With such a callback, 2.x does not cancel a request on the server if its caller is cancelled."""


def is_answer(error: Exception) -> bool:
    """Returns whether the exception that a request raised shows that the server answered."""
    if isinstance(error, ValueError):
        return True  # the result is invalid
    details = vars(error).get("error") if isinstance(error, MCPError) else None
    return isinstance(details, ErrorData) and details.code not in {CONNECTION_CLOSED, REQUEST_TIMEOUT}


def error_code_of(message: "SessionMessage") -> int | None:
    """Returns the code of the error in a message, or `None` if the message is not an error."""
    # Any: 1.x wraps each message.
    response: Any = message.message
    error = getattr(response if HAS_CLIENT else response.root, "error", None)
    return error.code if isinstance(error, ErrorData) else None


@asynccontextmanager
async def stdio_streams(
    server: StdioServerParameters, errlog: TextIO
) -> "AsyncGenerator[TransportStreams]":  # pragma: no cover - for Windows
    """Opens the SDK's transport. If 1.x is cancelled while it closes, it leaves its streams open."""
    async with stdio_client(server, errlog) as streams, _closing(streams):
        yield streams


class _Closable(Protocol):
    async def aclose(self) -> None: ...


async def _close_shielded(stream: _Closable) -> None:
    with CancelScope(shield=True):
        await stream.aclose()


@asynccontextmanager
async def sse_streams(
    url: str,
    make_client: "McpHttpClientFactory",
    on_session_created: Callable[[str], object] | None,
) -> "AsyncGenerator[TransportStreams]":
    """Opens the SDK's transport, which creates and closes its own HTTP client."""
    on_created = cast("Callable[[str], None] | None", on_session_created)
    async with (
        sse_client(url, httpx_client_factory=make_client, on_session_created=on_created) as streams,
        _closing(streams),
    ):
        yield streams


# Any: the types depend on the installed SDK. check_options() has checked the names.
@asynccontextmanager
async def streamable_http_streams(
    url: str, http_client: "http.AsyncClient", options: Mapping[str, Any]
) -> "AsyncGenerator[TransportStreams]":
    """Opens the SDK's transport on a client that it does not close. 1.x yields a third value."""
    async with streamable_http_client(url, http_client=http_client, **options) as all_streams:
        streams = (all_streams[0], all_streams[1])
        async with _closing(streams):
            yield streams if HAS_CLIENT else (streams[0], _SpacedWriteStream(streams[1]))


class _SpacedWriteStream:
    """Wraps the write stream of the streamable HTTP transport of 1.x.

    For each call, the transport starts a task. If it receives the next call before that task runs, which
    happens on trio, it sends the next call twice and never sends the first one.
    """

    def __init__(self, stream: "WriteStream[SessionMessage]") -> None:
        self._stream = stream
        self._lock = Lock()

    async def send(self, item: "SessionMessage", /) -> None:
        async with self._lock:
            await self._stream.send(item)
            with CancelScope(shield=True):
                for _ in range(3):  # the transport receives the call, starts the task, and it runs
                    await checkpoint()

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

    # Memory streams also have methods that the SDK's protocol does not require.
    def __getattr__(self, name: str) -> object:
        if name == "_stream":  # while it is being copied
            raise AttributeError(name)
        return getattr(self._stream, name)


@asynccontextmanager
async def _closing(streams: "TransportStreams") -> "AsyncGenerator[None]":
    async with AsyncExitStack() as streams_to_close:
        for stream in streams:
            streams_to_close.push_async_callback(_close_shielded, stream)
        yield


def next_request_within_origin(response: "http.Response") -> "http.Request | None":
    """Returns the request with which the SDK follows a redirect, or `None` if it does not follow it."""
    return None if FOLLOWS_ALL_REDIRECTS else _httpx_utils.next_request_within_origin(response)


def message_from_json(text: str | bytes) -> "SessionMessage | Exception":
    """Returns the message, or the exception that a read stream carries in place of an invalid one."""
    message = valid_message(text)
    return message_or_error(text) if message is None else message


def valid_message(text: str | bytes) -> "SessionMessage | None":
    """Returns the message, or `None` if the text is not a valid one."""
    # The SDK validates the text without parsing it first, which copies a long text once for each type.
    with suppress(ValueError):
        return SessionMessage(_messages.validate_python(from_json(text), by_name=False))
    return None


def message_or_error(text: str | bytes) -> "SessionMessage | Exception":
    """Does what `message_from_json()` does, but takes longer with a valid message."""
    try:
        return SessionMessage(_messages.validate_json(text, by_name=False))
    except ValueError as exc:
        return exc


def message_to_utf8(message: "SessionMessage") -> bytes:
    """Returns the JSON that the SDK's own transports would send, in UTF-8."""
    model = message.message
    # model_dump_json() would copy the JSON twice, and return text that must be encoded again.
    to_json = model.__pydantic_serializer__.to_json
    if HAS_CLIENT:
        return to_json(model, by_alias=True, exclude_unset=True)
    return to_json(model, by_alias=True, exclude_none=True)
