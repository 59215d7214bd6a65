"""The stdio transport: runs a server as a subprocess and talks to it over its stdin and stdout.

On POSIX, `_server_process.py` runs the server. On Windows, the SDK's `stdio_client` does.
"""

import codecs
import io
import sys
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from mcp import StdioServerParameters
from typing_extensions import override

from .._arguments import checked_count, checked_timeout
from .._copying import attributes_in
from ..manager import ConnectionManager
from ..state import ConnectionState
from . import _sdk
from ._permanent import command_errors_marked, is_command_error
from ._server_exit import ServerExitedError, ServerRecord
from ._server_process import Bounds, server_process
from ._stderr import ErrorLog, ErrorLogWriter, descriptor_of
from .streams import TransportStreams, watched

__all__ = ["StdioConnectionManager"]


class StdioConnectionManager(ConnectionManager[TransportStreams]):
    """Starts a server as a subprocess; the connection is a pair of streams to the server.

    To call the server, pass this manager to a `SessionConnectionManager` or
    `ClientConnectionManager`. A session runs its own tasks, which must live in the same owner task.

    The connection is lost if the server exits. This is detected at once, even if another process still
    holds the server's pipes. The cause of the `ConnectionLostError` is a `ServerExitedError` with the
    exit status and the end of the server's stderr.

    The connection is also lost if the server closes its stdout or stdin but is still running. The cause
    is an `EOFError` or a `BrokenPipeError`. A closed stdout is detected when the stream is read, which a
    session does continuously. A closed stdin is detected by the next call that writes a message.

    Closing follows the order in the specification: it closes the server's stdin, waits for the server to
    exit, then sends SIGTERM, and finally SIGKILL. The signals go to the server's process group, so they
    also end the processes that the server started, unless they left the group. If the server exits on
    its own, the signals end the rest of its group, unless you set `keep_children`. A forced stop (by a
    timeout or a cancellation) waits for at most two seconds at each step.

    On Windows, the SDK's transport runs the server. There, the only sign of a loss is the end of the
    server's stdout, and the arguments from `flush_timeout` to `max_message_bytes` have no effect.

    Example:
        ```python
        server = StdioServerParameters(command="python", args=["server.py"])
        transport = StdioConnectionManager(server, exit_timeout=10)
        async with SessionConnectionManager(transport) as session:
            print(transport.pid, await session.list_tools())
        ```

    Source:
        <https://modelcontextprotocol.io/specification/2025-11-25/basic/lifecycle#shutdown>
    """

    def __init__(  # noqa: PLR0913 - the limits of the steps that end a server
        self,
        server_params: StdioServerParameters,
        errlog: ErrorLog | None = None,
        *,
        flush_timeout: float | None = 0.5,
        exit_timeout: float | None = 2.0,
        terminate_timeout: float | None = 2.0,
        kill_timeout: float | None = 2.0,
        keep_children: bool = False,
        max_message_bytes: int | None = 128 * 2**20,
        name: str | None = None,
    ) -> None:
        """Creates a manager without starting a process.

        Args:
            server_params: The command, its arguments, environment variables and working directory.
                The server inherits only those variables of this process that the SDK considers safe.
                Bytes on its stdout that cannot be decoded are replaced, unless you set
                `encoding_error_handler`.
            errlog: Receives the server's stderr: an object with a `write()` method that accepts text.
                `write()` is called in a thread, in order. At most 32 MiB wait for a slow `errlog`. After
                that, text is dropped, and a marker shows how many bytes are missing. Closing the
                connection waits at most one second for the last text. Only the first error in `write()`
                is logged. A character that the object cannot encode is replaced. `None` means the value
                of `sys.stderr` when the server is started. On Windows, the server writes directly to the
                file descriptor of `errlog`; if it has none, the output is discarded.
            flush_timeout: Maximum time, in seconds, for writing the current message to the server's
                stdin before closing it; `None` means no limit. The defaults of this limit and the next
                three are the values of mcp 2.x. `stop(timeout=...)` limits all steps together.
            exit_timeout: Maximum time, in seconds, for the server to exit after its stdin was closed;
                `None` means no limit.
            terminate_timeout: Maximum time, in seconds, for the process group to end after SIGTERM;
                `None` means no limit.
            kill_timeout: Maximum time, in seconds, to wait for the end of the process group after
                SIGKILL; `None` means no limit. After that, an error is logged, and the processes are
                left alone.
            keep_children: Whether processes that the server started may outlive a server that exits
                before it is sent a signal.
            max_message_bytes: Maximum length of a line that the server writes to its stdout, in bytes;
                `None` means no limit. If the server sends a longer line, the connection is lost.
            name: See `ConnectionManager`. The default contains the base name of the command, but no
                argument and no environment variable.

        Raises:
            TypeError: `server_params` is not `StdioServerParameters`, `errlog` has no `write()` method
                or is a binary stream, or another argument has the wrong type.
            ValueError: The command is empty; the command, an argument, an environment variable or the
                working directory contains a NUL character; the encoding is unknown; a limit is
                negative or NaN; or `max_message_bytes` is not positive.
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
            raise ValueError(
                "server_params.command, .args, .env and .cwd must not contain NUL characters"
            )
        try:
            "".encode(server_params.encoding)
            codecs.getincrementaldecoder(server_params.encoding)
        except LookupError:
            raise ValueError(
                f"server_params.encoding must be a text encoding, not {server_params.encoding!r}"
            ) from None
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
        self.flush_timeout: float | None = checked_timeout("flush_timeout", flush_timeout)
        self.exit_timeout: float | None = checked_timeout("exit_timeout", exit_timeout)
        self.terminate_timeout: float | None = checked_timeout("terminate_timeout", terminate_timeout)
        self.kill_timeout: float | None = checked_timeout("kill_timeout", kill_timeout)
        if not isinstance(keep_children, bool):
            raise TypeError(f"keep_children must be a boolean, not {type(keep_children).__name__}")
        self.keep_children: bool = keep_children
        self.max_message_bytes: int | None = checked_count("max_message_bytes", max_message_bytes)
        self._record = ServerRecord()

    @property
    def pid(self) -> int | None:
        """The process id of the current or last server, or `None` before the first start.

        Always `None` on Windows.
        """
        return self._record.pid

    @property
    def returncode(self) -> int | None:
        """The exit status of the current or last server, or `None` before it exits.

        -N means that signal N killed the server, as in `subprocess`. If the server did not exit on its
        own, this may be the SIGTERM or SIGKILL that was sent to end it. `None` also means that the
        status is unknown. Always `None` on Windows.
        """
        return self._record.returncode

    @property
    def stderr_tail(self) -> str:
        """The last lines of the current or last server's stderr, at most 8192 bytes.

        Always empty on Windows.
        """
        return str(self._record.stderr)

    @override
    def __getstate__(self) -> object:
        state = super().__getstate__()
        attributes_in(state)["_record"] = ServerRecord()
        return state

    @override
    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[TransportStreams]:
        server_params = self.server_params
        if "encoding_error_handler" not in server_params.model_fields_set:
            # With the SDK's default, a bad byte makes the whole message unreadable.
            server_params = server_params.model_copy(update={"encoding_error_handler": "replace"})
        self._record = ServerRecord()
        try:
            async with self._open(server_params) as streams:
                yield streams
        finally:
            if self.stderr_tail:
                self._add_fact(f"the server's stderr ended with:\n{self.stderr_tail}")

    @override
    def is_permanent(self, exc: BaseException) -> bool:
        """Returns whether trying again is pointless after a failure; see `ConnectionManager`.

        In addition to programming errors, these are the errors that are raised if the server cannot be
        started because its command or working directory does not exist or cannot be used. The exit of a
        server is not one of them.
        """
        return is_command_error(exc) or super().is_permanent(exc)

    def _open(
        self, server_params: StdioServerParameters
    ) -> AbstractAsyncContextManager[TransportStreams]:
        errlog = sys.stderr if self.errlog is None else self.errlog
        if sys.platform == "win32":  # pragma: no cover
            return self._open_on_windows(server_params, errlog)
        return server_process(
            self.name,
            server_params,
            bounds=Bounds(
                self.flush_timeout, self.exit_timeout, self.terminate_timeout, self.kill_timeout
            ),
            keep_children=self.keep_children,
            max_message_bytes=self.max_message_bytes,
            record=self._record,
            errlog=ErrorLogWriter(self.name, errlog),
            on_lost=self._lose,
        )

    @asynccontextmanager
    async def _open_on_windows(
        self, server_params: StdioServerParameters, errlog: ErrorLog | None
    ) -> AsyncGenerator[TransportStreams]:  # pragma: no cover
        with descriptor_of(errlog) as stderr:
            async with AsyncExitStack() as stack:
                with command_errors_marked():
                    opening = _sdk.stdio_streams(server_params, stderr)
                    streams = await stack.enter_async_context(opening)
                yield watched(streams, lambda: self._lose(EOFError("the server closed its stdout")))

    def _lose(self, reason: Exception) -> None:
        run = self._run_of_caller()
        if run is not None and run.state is ConnectionState.OPENING:
            what = "the server exited" if isinstance(reason, ServerExitedError) else reason
            self._add_fact(f"{what} during the handshake")
        self.connection_lost(reason)

    def get_streams(self) -> TransportStreams | None:
        """Returns the pair of streams if the state is `OPEN`, otherwise `None`.

        It is also `None` if a session manager opened this transport.
        """
        return self.connection if self.state is ConnectionState.OPEN else None
