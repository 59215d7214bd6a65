"""Starts a server process in a thread.

Starting a process can block, for example if the command is on a slow file system, and nothing can
interrupt it. In a thread, it does not block the event loop, and delays a cancelled task only briefly.
"""

from functools import partial
from subprocess import PIPE, Popen
from threading import Event, Lock
from typing import Final

from anyio import CancelScope
from mcp import StdioServerParameters
from mcp.client.stdio import get_default_environment

from .._backend import current_event_loop
from .._leftovers import Leftover
from ._in_thread import in_thread
from ._permanent import command_errors_marked
from ._process_group import ProcessGroup

__all__ = ["spawned"]

SPAWN_GRACE: Final = 2.0
"""Time, in seconds, that a cancelled task waits for a process that is being started. After that, the
thread that starts the process also ends it."""


async def spawned(
    name: str, server_params: StdioServerParameters, *, keep_children: bool
) -> ProcessGroup:
    """Starts the process in a thread, and returns its process group."""
    spawning = _Spawning(server_params, keep_children=keep_children)
    loop = current_event_loop()
    leftover = Leftover(loop, spawning, partial(spawning.end_left_behind, name))
    try:
        await in_thread(spawning.run, abandon_on_cancel=True)
    except BaseException:
        if loop.is_current():
            with CancelScope(shield=True):
                await in_thread(partial(spawning.abandon, SPAWN_GRACE))
        else:  # the event loop is closed, and its tasks are garbage collected
            leftover.end()
        raise
    finally:
        leftover.forget()
    assert spawning.group is not None
    return spawning.group


class _Spawning:
    """The creation of a process in a thread. If it is abandoned, it also ends the process."""

    def __init__(self, server_params: StdioServerParameters, *, keep_children: bool) -> None:
        self._server_params = server_params
        self._keep_children = keep_children
        self._lock = Lock()
        self._is_over = Event()  # cleared while the process is being created
        self._is_over.set()
        self._is_abandoned = False
        self.group: ProcessGroup | None = None

    def run(self) -> None:
        """Creates the process."""
        server_params = self._server_params
        with self._lock:
            if self._is_abandoned:
                return
            self._is_over.clear()
        try:
            with command_errors_marked():
                process = Popen(  # noqa: S603 - the user chose the command
                    [server_params.command, *server_params.args],
                    bufsize=0,
                    stdin=PIPE,
                    stdout=PIPE,
                    stderr=PIPE,
                    cwd=server_params.cwd,
                    env=get_default_environment() | (server_params.env or {}),
                    start_new_session=True,
                )
            group = ProcessGroup(process, keep_children=self._keep_children)
            with self._lock:
                self.group = group
                if self._is_abandoned:
                    group.close()
        finally:
            self._is_over.set()

    def end_left_behind(self, name: str) -> str:
        """Ends the process because the event loop cannot. Returns a warning."""
        self.abandon(SPAWN_GRACE)
        if self.group is None:
            return ""
        return (
            f"{name}: the server process {self.group.id} was being started and was killed; "
            "call stop() before the event loop ends"
        )

    def abandon(self, within: float) -> None:
        """Ends the process. If it is not created within this time, in seconds, `run()` ends it."""
        self._is_over.wait(within)
        with self._lock:
            self._is_abandoned = True
            if self.group is not None:
                self.group.close()
