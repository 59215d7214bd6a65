"""Creates a transport manager from each value that a session manager accepts as its transport."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from inspect import iscoroutine
from typing import cast

from mcp import StdioServerParameters
from typing_extensions import TypeAliasType

from ..manager import ConnectionManager
from ._http import checked_url
from ._http_errors import shown_url
from ._in_process import InProcessConnectionManager, InProcessServer, is_server
from .stdio import StdioConnectionManager
from .streamable_http import StreamableHttpConnectionManager
from .streams import MessageReadStream, MessageWriteStream, TransportStreams

__all__ = ["TransportSource", "transport_from"]

SdkStreams = TypeAliasType(
    "SdkStreams", TransportStreams | tuple[MessageReadStream, MessageWriteStream, object]
)

TransportSource = TypeAliasType(
    "TransportSource",
    ConnectionManager[SdkStreams]
    | Callable[[], AbstractAsyncContextManager[SdkStreams]]
    | StdioServerParameters
    | str
    | InProcessServer,
)
"""The values that a session manager or a client manager accepts as its transport:

* a transport manager. Do not start it yourself.
* a function without arguments that returns a transport, such as
  `functools.partial(sse_client, url)`. Each run calls it once.
* the parameters of a stdio server.
* the URL of a streamable HTTP server.
* an SDK server, which then runs in this process: an `MCPServer` (in mcp 1.x, a `FastMCP`) or a
  low-level `Server`.

A transport is an async context manager that yields a read stream and a write stream. A third value,
which mcp 1.x can add, is ignored.
"""


def transport_from(
    source: TransportSource, *, raise_exceptions: bool = False
) -> ConnectionManager[TransportStreams]:
    """Returns a manager of the transport.

    Args:
        source: The value of the argument `transport`.
        raise_exceptions: Whether an exception in a handler ends a server in this process.

    Raises:
        TypeError: `source` has the wrong type.
        ValueError: `source` is neither a valid HTTP URL nor valid server parameters.
    """
    kind = type(source).__name__
    if isinstance(source, ConnectionManager):
        return cast("ConnectionManager[TransportStreams]", source)
    if isinstance(source, StdioServerParameters):
        return StdioConnectionManager(source)
    if isinstance(source, str):
        try:
            url = checked_url("transport", source)
        except ValueError as error:
            raise ValueError(f"{error}; for a command, pass StdioServerParameters") from None
        return StreamableHttpConnectionManager(url, name=shown_url(url))
    if is_server(source):
        return InProcessConnectionManager(source, raise_exceptions=raise_exceptions)
    if isinstance(source, AbstractAsyncContextManager):
        # It may be callable, because @asynccontextmanager creates objects that are also decorators.
        raise TypeError(
            "transport must be a function that returns an async context manager, because each run needs "
            f"a new one; pass a lambda that creates it, not the {kind} itself"
        )
    if callable(source):
        return cast("ConnectionManager[TransportStreams]", ConnectionManager.from_factory(source))
    hint = ""
    if iscoroutine(source):
        source.close()  # prevents the warning that it was never awaited
        hint = "; pass the function itself, without calling it"
    raise TypeError(
        "transport must be a ConnectionManager, a function that returns a transport, "
        f"StdioServerParameters, a URL or an SDK server, not {kind}{hint}"
    )
