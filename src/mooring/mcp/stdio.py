"""A server as a subprocess, spoken to over its stdin and stdout.

The SDK's `stdio_client`, in an owner task. Closing follows the specification's order: the server's
stdin is closed, and if it does not exit then, it is terminated, and killed at last. Each of these
waits is bounded by the SDK.

Source: https://modelcontextprotocol.io/specification/2025-11-25/basic/lifecycle#shutdown
"""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TextIO

from mcp import StdioServerParameters
from typing_extensions import override

from ..manager import ConnectionManager
from ..state import ConnectionState
from . import _sdk
from .streams import TransportStreams

__all__ = ["StdioConnectionManager"]


class StdioConnectionManager(ConnectionManager[TransportStreams]):
    """Starts a server as a subprocess; the connection is its pair of streams.

    For calls, put a `SessionConnectionManager` or `ClientConnectionManager` on top: a session has
    tasks of its own, which need an owner as much as the transport does.
    """

    def __init__(
        self,
        server_params: StdioServerParameters,
        errlog: TextIO | None = None,
        *,
        name: str | None = None,
    ) -> None:
        """Makes a manager; no process is started yet.

        Args:
            server_params: The command, its arguments, environment and folder. Of mooring's own
                environment the server gets the SDK's safe variables only.
            errlog: Where the server's stderr goes: an open file with a descriptor. `None` means
                `sys.stderr` as it is when the server is started.
            name: See `ConnectionManager`; without one, the command's base name is shown, and never
                an argument or an environment value.

        Raises:
            TypeError: `server_params` is something else, or `name` is no string.
            ValueError: The command is empty, or it or an argument contains a NUL character.
        """
        if not isinstance(server_params, StdioServerParameters):
            raise TypeError(
                f"server_params must be StdioServerParameters, not {type(server_params).__name__}"
            )
        words = server_params.command.split()
        if not words:
            raise ValueError("server_params.command must not be empty")
        if any("\0" in argument for argument in (server_params.command, *server_params.args)):
            # Else uvloop would cut the argument off there, without a word.
            raise ValueError("server_params.command and .args must not contain NUL characters")
        # Of a whole command line given as the command, only the first word is shown.
        base_name = words[0].replace("\\", "/").rpartition("/")[2]
        super().__init__(name=f"{type(self).__name__}({base_name})" if name is None else name)
        self.server_params: StdioServerParameters = server_params
        self.errlog: TextIO | None = errlog

    @override
    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[TransportStreams]:
        errlog = sys.stderr if self.errlog is None else self.errlog
        async with _sdk.stdio_streams(self.server_params, errlog) as streams:
            yield streams

    def get_streams(self) -> TransportStreams | None:
        """The pair of streams while the state is `OPEN`, else `None`."""
        return self.connection if self.state is ConnectionState.OPEN else None
