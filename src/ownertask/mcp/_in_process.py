"""Runs an MCP server in this process, in a task group of the owner task, as a transport."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from copy import copy
from typing import Any, Final, Self, TypeAlias

from anyio import (
    BrokenResourceError,
    ClosedResourceError,
    Event,
    create_memory_object_stream,
    create_task_group,
    move_on_after,
)
from mcp.server.lowlevel import Server
from mcp.shared.message import SessionMessage
from typing_extensions import TypeIs, override

from .._reason import leaves
from ..manager import ConnectionManager
from . import _sdk
from .streams import TransportStreams

__all__ = ["InProcessConnectionManager", "InProcessServer", "is_server"]

InProcessServer: TypeAlias = _sdk.HighLevelServer | Server[Any]  # Any: the result of its lifespan

EXIT_TIMEOUT: Final = 2.0
"""Maximum time for the server to end after its streams are closed, in seconds, as in the SDK.

After this time, the server is cancelled.
"""

CLOSED: Final = (BrokenResourceError, ClosedResourceError)
"""A server raises them when it sends a message after its streams were closed."""


def is_server(value: object) -> TypeIs[InProcessServer]:
    """Returns whether the value is an SDK server."""
    return isinstance(value, _sdk.HighLevelServer | Server)


class InProcessConnectionManager(ConnectionManager[TransportStreams]):
    """Runs an SDK server, including its lifespan, in each run."""

    def __init__(self, server: InProcessServer, *, raise_exceptions: bool) -> None:
        """Creates a manager without starting the server.

        Args:
            server: The server. Several managers may run it at the same time.
            raise_exceptions: Whether an exception in a handler ends the server.
        """
        super().__init__(name=f"{type(server).__name__}({server.name})")
        self._server = server
        self._raise_exceptions = raise_exceptions

    def __deepcopy__(self, memo: object) -> Self:
        return copy(self)  # shares the server, as a deep copy shares functions

    @override
    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[TransportStreams]:
        server = _sdk.low_level_server(self._server)
        ended = Event()
        is_closing = False
        # The memory streams of mcp 2.x also carry the sender's context. With them, the server's handlers
        # and the session's callbacks would run outside of this run: stop() in one would wait for itself.
        to_client, from_server = create_memory_object_stream[SessionMessage | Exception](1)
        to_server, from_client = create_memory_object_stream[SessionMessage | Exception](1)

        async def serve() -> None:
            try:
                await server.run(
                    from_client,
                    to_client,
                    server.create_initialization_options(),
                    raise_exceptions=self._raise_exceptions,
                )
            except Exception as error:
                if is_closing and all(isinstance(leaf, CLOSED) for leaf in leaves(error)):
                    return  # before mcp 1.25, handlers go on, and cannot send their responses
                self.connection_lost(error)  # before the session detects that the streams are closed
                raise
            finally:
                ended.set()
                await to_client.aclose()  # the session's read stream ends

        async with (
            to_client,
            from_server,
            to_server,
            from_client,
            create_task_group() as task_group,
        ):
            task_group.start_soon(serve)
            try:
                yield from_server, to_server
            finally:
                is_closing = True
                await to_server.aclose()
                with move_on_after(EXIT_TIMEOUT):
                    await ended.wait()
                task_group.cancel_scope.cancel()
