"""The stdio transport: runs a server as a subprocess and talks to it over its stdin and stdout.

Runs the SDK's `stdio_client` in an owner task.
"""

import io
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TextIO

from anyio.lowlevel import current_token
from mcp import StdioServerParameters
from typing_extensions import override

from ..manager import ConnectionManager
from ..state import ConnectionState
from . import _sdk
from ._copying import attributes_in
from ._stderr import ErrorLog, StderrTail, piped_stderr
from .streams import TransportStreams, watched

__all__ = ["StdioConnectionManager"]


class StdioConnectionManager(ConnectionManager[TransportStreams]):
    """Starts a server as a subprocess; the connection is a pair of streams to the server.

    To call the server, pass this manager to a `SessionConnectionManager` or
    `ClientConnectionManager`. A session runs its own tasks, which must live in the same owner task.

    If the server closes its stdout, usually because it exited, the connection is lost. The task that
    reads the stream detects this. A session reads continuously. The last lines of the server's stderr
    are attached to the error as a note.

    Closing follows the order in the specification: the SDK closes the server's stdin, waits for the
    server to exit, then terminates it, and finally kills it. It waits about two seconds at each step.
    On mcp 1.x, a forced stop (by a timeout or a cancellation) kills the server immediately.

    Source:
        <https://modelcontextprotocol.io/specification/2025-11-25/basic/lifecycle#shutdown>
    """

    def __init__(
        self,
        server_params: StdioServerParameters,
        errlog: ErrorLog | None = None,
        *,
        name: str | None = None,
    ) -> None:
        """Creates a manager without starting a process.

        Args:
            server_params: The command, its arguments, environment variables and working directory.
                The server inherits only those variables of this process that the SDK considers safe.
                Bytes on its stdout that cannot be decoded are replaced, unless you set
                `encoding_error_handler`.
            errlog: Receives the server's stderr: an object with a `write()` method that accepts text.
                `write()` is called in the event loop, so it must not block. If it raises, this is
                logged, and the rest is not written. `None` means the value of `sys.stderr` when the
                server is started. On Windows, the server writes directly to the file descriptor of
                `errlog`; if it has none, the output is discarded.
            name: See `ConnectionManager`. The default contains the base name of the command, but no
                argument and no environment variable.

        Raises:
            TypeError: `server_params` is not `StdioServerParameters`, `errlog` has no `write()` method
                or is a binary stream, or `name` is not a string.
            ValueError: The command is empty, or the command, an argument, an environment variable or
                the working directory contains a NUL character.
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
            # uvloop would silently truncate an argument at this character.
            raise ValueError(
                "server_params.command, .args, .env and .cwd must not contain NUL characters"
            )
        is_binary = isinstance(errlog, io.RawIOBase | io.BufferedIOBase)
        if errlog is not None and (is_binary or not callable(getattr(errlog, "write", None))):
            raise TypeError(
                "errlog must be None or an object whose write() method accepts text, "
                f"not {type(errlog).__name__}"
            )
        # The command may be a whole command line, so show only its first word.
        base_name = words[0].replace("\\", "/").rpartition("/")[2]
        super().__init__(name=f"{type(self).__name__}({base_name})" if name is None else name)
        self.server_params: StdioServerParameters = server_params
        self.errlog: ErrorLog | None = errlog
        self._stderr_tail = StderrTail()

    @property
    def stderr_tail(self) -> str:
        """The last lines of the current or most recent server's stderr, at most 8192 bytes.

        Always empty on Windows.
        """
        return str(self._stderr_tail)

    @override
    def __getstate__(self) -> object:
        state = super().__getstate__()
        attributes_in(state)["_stderr_tail"] = StderrTail()
        return state

    @override
    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[TransportStreams]:
        tail = self._stderr_tail = StderrTail()
        errlog = sys.stderr if self.errlog is None else self.errlog
        server_params = self.server_params
        if "encoding_error_handler" not in server_params.model_fields_set:
            # With the SDK's default, one bad byte ends the reader task and every request hangs.
            server_params = server_params.model_copy(update={"encoding_error_handler": "replace"})
        try:
            async with (
                piped_stderr(self.name, errlog, tail) as stderr,
                _started(server_params, stderr) as streams,
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
        """Returns the pair of streams if the state is `OPEN`, otherwise `None`.

        It is also `None` if a session manager opened this transport.
        """
        return self.connection if self.state is ConnectionState.OPEN else None


@asynccontextmanager
async def _started(
    server_params: StdioServerParameters, stderr: TextIO
) -> AsyncGenerator[TransportStreams]:
    """Opens the SDK's transport. The error names an event loop that can't start subprocesses."""
    async with AsyncExitStack() as stack:
        try:
            streams = await stack.enter_async_context(_sdk.stdio_streams(server_params, stderr))
        except NotImplementedError as error:
            loop = type(current_token().native_token)
            raise NotImplementedError(
                f"the event loop {loop.__module__}.{loop.__qualname__} cannot start subprocesses; use "
                "asyncio's default event loop, uvloop or trio"
            ) from error
        yield streams
