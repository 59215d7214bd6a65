"""A server as a subprocess on POSIX: starts it, detects its exit, and ends all of its processes.

* The server leads its own session and process group, so a Ctrl-C in the terminal does not reach it.
* Its exit is detected at once, even if another process still holds its pipes.
* When the context manager exits, no process of the group is left, even if its task was cancelled at any
  point. A process that does not end after SIGKILL is logged.
* Pipes are closed, and the process is reaped, when no task uses them.

Source:
    <https://modelcontextprotocol.io/specification/2025-11-25/basic/lifecycle#shutdown>
"""

import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import Final, NamedTuple

from anyio import CancelScope, Event, create_task_group, get_cancelled_exc_class, move_on_after
from anyio.abc import TaskGroup
from mcp import StdioServerParameters

from .._backend import current_event_loop
from .._leftovers import Leftover
from .._log import ERROR, log
from ._process_group import ProcessGroup
from ._server_exit import ServerRecord
from ._server_streams import ServerReadStream, ServerWriteStream
from ._spawning import spawned
from ._stderr import ErrorLogWriter, StderrPipe
from .streams import TransportStreams

__all__ = ["Bounds", "server_process"]

STATUS_GRACE: Final = 0.5
"""Time, in seconds, to wait for the exit status after the server closed a pipe, and for the reader to
receive the last messages after the server exited."""


class Bounds(NamedTuple):
    """The maximum times, in seconds, of the steps that end a server. `None` means no limit."""

    flush: float | None
    exit: float | None
    terminate: float | None
    kill: float | None

    def forced(self) -> "Bounds":
        """Returns bounds for a forced stop. Their sum is less than the owner task's `CANCEL_GRACE`."""
        return Bounds(
            flush=_at_most(0.5, self.flush),
            exit=_at_most(2.0, self.exit),
            terminate=_at_most(2.0, self.terminate),
            kill=_at_most(2.0, self.kill),
        )


def _at_most(limit: float, seconds: float | None) -> float:
    return limit if seconds is None else min(seconds, limit)


@asynccontextmanager
async def server_process(  # noqa: PLR0913 - the options of the manager
    name: str,
    server_params: StdioServerParameters,
    *,
    bounds: Bounds,
    keep_children: bool,
    max_message_bytes: int | None,
    record: ServerRecord,
    errlog: ErrorLogWriter,
    on_lost: Callable[[Exception], object],
) -> AsyncGenerator[TransportStreams]:
    """Starts a server, and ends it on exit.

    Args:
        name: The name of the manager, for the log.
        server_params: The command and its environment.
        bounds: How long ending the server may take.
        keep_children: Whether processes that the server started may outlive a server that exits on its
            own.
        max_message_bytes: The maximum length of a message from the server; `None` means no limit.
        record: Receives the process id, the exit status and the stderr of the server.
        errlog: Receives the stderr, too.
        on_lost: Called with the reason when the server exits on its own or closes a pipe.
    """
    loop = current_event_loop()
    group = await spawned(name, server_params, keep_children=keep_children)
    record.pid = group.id
    server = _Server(name, group, record, errlog, on_lost)
    leftover = Leftover(loop, server, partial(_end_left_behind, name, group, record, errlog))

    def is_in_loop() -> bool:
        # If not, the loop is closed and its tasks are garbage collected, or this is a forked child.
        return loop.is_current() and loop.is_of_this_process()

    try:
        async with create_task_group() as task_group:
            try:
                yield server.open_streams(task_group, server_params, max_message_bytes)
            finally:
                if is_in_loop():
                    await server.end(bounds)
    finally:
        if is_in_loop():
            leftover.forget()
            _release(group, record, errlog)
        else:
            leftover.end()


def _end_left_behind(
    name: str, group: ProcessGroup, record: ServerRecord, errlog: ErrorLogWriter
) -> str:
    _release(group, record, errlog)
    return (
        f"{name}: the server process {group.id} was still running and was killed; "
        "call stop() before the event loop ends"
    )


def _release(group: ProcessGroup, record: ServerRecord, errlog: ErrorLogWriter) -> None:
    """Ends what `_Server.end()` could not end, because it was interrupted or never called."""
    status = group.close()
    if record.returncode is None:
        record.returncode = status
    errlog.end_soon()


class _Server:
    """A running server: its streams, and the tasks that watch it."""

    def __init__(
        self,
        name: str,
        group: ProcessGroup,
        record: ServerRecord,
        errlog: ErrorLogWriter,
        on_lost: Callable[[Exception], object],
    ) -> None:
        self._name = name
        self._group = group
        self._record = record
        self._errlog = errlog
        self._on_lost = on_lost
        self._scopes: set[CancelScope] = set()
        self._context = copy_context()
        self._exited = Event()
        self._reported = Event()
        self._has_pipe_ended = False
        self._is_terminated = False
        self._is_over = False
        self._cancelled_type = get_cancelled_exc_class()

    def open_streams(
        self, task_group: TaskGroup, server_params: StdioServerParameters, max_message_bytes: int | None
    ) -> TransportStreams:
        """Starts to watch the server, and returns its stdout and stdin."""
        self._task_group = task_group
        pipes = self._group.leader
        assert pipes.stdin is not None
        assert pipes.stdout is not None
        assert pipes.stderr is not None
        coding = server_params.encoding, server_params.encoding_error_handler
        self._stdin = pipes.stdin
        self._stderr = StderrPipe(pipes.stderr.fileno(), self._record.stderr, self._errlog)
        self._reader = ServerReadStream(pipes.stdout.fileno(), *coding, max_message_bytes, self._ended)
        self._writer = ServerWriteStream(pipes.stdin.fileno(), *coding, self._start_soon, self._ended)
        self._start_soon(partial(self._persist, self._watch))
        self._start_soon(partial(self._persist, self._stderr.read))
        return self._reader, self._writer

    def _start_soon(self, function: Callable[[], Awaitable[None]]) -> None:
        """Starts a task that runs until `end()` cancels it, even if the owner task is cancelled."""
        scope = CancelScope(shield=True)

        async def run() -> None:
            with scope:
                await function()
            self._scopes.discard(scope)

        self._scopes.add(scope)
        # `on_lost` looks up its run in the context. A sender's context could contain an earlier run.
        self._context.copy().run(self._task_group.start_soon, run)

    async def _persist(self, function: Callable[[], Awaitable[None]]) -> None:
        """Calls a function again if it is cancelled while the server still needs it.

        When asyncio's event loop ends, it cancels all tasks natively, and no scope protects from that.
        """
        while not self._is_over:
            try:
                await function()
            except self._cancelled_type:
                if self._is_over:
                    raise
            else:
                return

    async def _watch(self) -> None:
        self._record.returncode = await self._group.leader_exited()
        self._exited.set()
        if not self._reported.is_set():
            self._stderr.read_rest()
            self._reader.finish()
            with move_on_after(STATUS_GRACE):
                await self._reader.drained.wait()
            self._report(self._record.exit_error())

    async def _ended(self, reason: Exception) -> None:
        """Reports a loss because a stream ended, and waits until it is reported."""
        if not self._has_pipe_ended:
            self._has_pipe_ended = True
            self._start_soon(partial(self._report_end, reason))
        await self._reported.wait()

    async def _report_end(self, reason: Exception) -> None:
        if isinstance(reason, EOFError | BrokenPipeError):
            with move_on_after(STATUS_GRACE):
                await self._exited.wait()  # _watch() reports the loss
                return
        self._report(reason)

    def _report(self, reason: Exception) -> None:
        # If the group is over, the interpreter is exiting.
        if not self._reported.is_set() and not self._group.is_over:
            self._on_lost(reason)
        self._reported.set()

    async def end(self, bounds: Bounds) -> None:
        """Ends the server. If the caller is cancelled, ends it faster."""
        self._reported.set()
        self._reader.close()
        # A server that is blocked in a write neither reads its stdin nor exits.
        self._start_soon(partial(self._persist, self._reader.discard))
        try:
            await self._end(bounds)
        except self._cancelled_type:
            with CancelScope(shield=True):
                await self._end(bounds.forced())
            raise
        finally:
            self._is_over = True
            self._writer.shut()  # a second native cancellation may have interrupted the steps
            for scope in self._scopes:
                scope.cancel()

    async def _end(self, bounds: Bounds) -> None:
        """Ends the server step by step. If it is called again, it continues with the current step."""
        if not self._stdin.closed:
            with move_on_after(bounds.flush):
                await self._writer.flush()
            self._writer.shut()
            self._stdin.close()
        if not self._is_terminated:
            with move_on_after(bounds.exit):
                await self._exited.wait()
            if not (self._exited.is_set() and self._group.may_outlive_leader):
                self._group.send_signal(signal.SIGTERM)
            self._is_terminated = True
        await self._is_gone(bounds.terminate)
        if not (self._exited.is_set() and self._group.may_outlive_leader):
            # Even if nothing was found: a process that forks and exits all the time is hard to find.
            self._group.send_signal(signal.SIGKILL)
            if not await self._is_gone(bounds.kill):
                message = "%s: could not kill all processes in the server's process group %d"
                log(ERROR, message, self._name, self._group.id)
        self._group.is_over = True
        self._stderr.read_rest()
        await self._errlog.aclose()

    async def _is_gone(self, within: float | None) -> bool:
        """Waits for the processes that must end. Returns `False` if time runs out first."""
        with move_on_after(within):
            if not self._exited.is_set():
                await self._exited.wait()
            if not self._group.may_outlive_leader:
                await self._group.rest_ended()
            return True
        return False
