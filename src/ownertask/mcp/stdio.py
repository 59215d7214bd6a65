"""A server as a subprocess, spoken to over its stdin and stdout.

The SDK's `stdio_client`, in an owner task. Closing follows the specification's order: the server's
stdin is closed, and if it does not exit then, it is terminated, and killed at last. Each of these
waits is bounded by the SDK.

Source: https://modelcontextprotocol.io/specification/2025-11-25/basic/lifecycle#shutdown
"""

import io
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from mcp import StdioServerParameters
from typing_extensions import override

from ..manager import ConnectionManager
from ..state import ConnectionState
from . import _sdk
from ._stderr import ErrorLog, StderrTail, piped_stderr
from .streams import TransportStreams, watched

__all__ = ["StdioConnectionManager"]


class StdioConnectionManager(ConnectionManager[TransportStreams]):
    """Starts a server as a subprocess; the connection is its pair of streams.

    For calls, put a `SessionConnectionManager` or `ClientConnectionManager` on top: a session has
    tasks of its own, which need an owner as much as the transport does.

    A server that closes its stdout, most often by its end, is lost: that is noticed by whoever reads
    the stream, as a session does all the time. What it has written to its stderr at last is a note on
    the error.
    """

    def __init__(
        self,
        server_params: StdioServerParameters,
        errlog: ErrorLog | None = None,
        *,
        name: str | None = None,
    ) -> None:
        """Makes a manager; no process is started yet.

        Args:
            server_params: The command, its arguments, environment and folder. Of ownertask's own
                environment the server gets the SDK's safe variables only. Bytes that are no text are
                replaced, unless it has an `encoding_error_handler` of your choice.
            errlog: Where the server's stderr goes: whatever has a `write()` that takes text. It is
                called in the event loop. `None` means `sys.stderr` as it is when the server is
                started.
            name: See `ConnectionManager`; without one, the command's base name is shown, and never
                an argument or an environment value.

        Raises:
            TypeError: `server_params` or `errlog` is something else, or `name` is no string.
            ValueError: The command is empty, or there is a NUL character in it, in an argument, in a
                variable or in the folder.
        """
        if not isinstance(server_params, StdioServerParameters):
            raise TypeError(
                f"server_params must be StdioServerParameters, not {type(server_params).__name__}"
            )
        words = server_params.command.split()
        if not words:
            raise ValueError("server_params.command must not be empty")
        variables = server_params.env or {}
        folder = str(server_params.cwd or "")
        texts = (server_params.command, *server_params.args, *variables, *variables.values(), folder)
        if any("\0" in text for text in texts):
            # Else uvloop would cut an argument off there, without a word.
            raise ValueError(
                "server_params.command, .args, .env and .cwd must not contain NUL characters"
            )
        is_binary = isinstance(errlog, io.RawIOBase | io.BufferedIOBase)
        if errlog is not None and (is_binary or not callable(getattr(errlog, "write", None))):
            raise TypeError(
                "errlog must be None or an object whose write() method accepts text, "
                f"not {type(errlog).__name__}"
            )
        # Of a whole command line given as the command, only the first word is shown.
        base_name = words[0].replace("\\", "/").rpartition("/")[2]
        super().__init__(name=f"{type(self).__name__}({base_name})" if name is None else name)
        self.server_params: StdioServerParameters = server_params
        self.errlog: ErrorLog | None = errlog
        self._stderr_tail = StderrTail()

    @property
    def stderr_tail(self) -> str:
        """The last lines, 8192 bytes at most, of what the current or last server wrote to its stderr."""
        return str(self._stderr_tail)

    @override
    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[TransportStreams]:
        tail = self._stderr_tail = StderrTail()
        errlog = sys.stderr if self.errlog is None else self.errlog
        server_params = self.server_params
        if "encoding_error_handler" not in server_params.model_fields_set:
            # With the SDK's own choice one bad byte ends the reading, and every request hangs.
            server_params = server_params.model_copy(update={"encoding_error_handler": "replace"})
        try:
            async with (
                piped_stderr(self.name, errlog, tail) as stderr,
                _sdk.stdio_streams(server_params, stderr) as streams,
            ):
                yield watched(streams, self._lose)
        finally:
            if self.stderr_tail:
                self._add_fact(f"the server's stderr ended with:\n{self.stderr_tail}")

    def _lose(self) -> None:
        run = self._run_of_caller()
        if run is not None and run.state is ConnectionState.OPENING:
            self._add_fact("the server closed its stdout during the handshake")
        self.connection_lost(EOFError("the server closed its stdout"))

    def get_streams(self) -> TransportStreams | None:
        """The pair of streams while the state is `OPEN`, else `None`."""
        return self.connection if self.state is ConnectionState.OPEN else None
