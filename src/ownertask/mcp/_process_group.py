"""The process group of a server on POSIX: detecting its leader's exit, and sending signals to all of it.

The id of a process group is the process id of its leader. The kernel does not reuse this id before the
leader is reaped. So the leader is reaped last, and a signal never reaches an unrelated process. Pidfds
are used to wait for the other processes of the group. Where there are no pidfds (on macOS and old
kernels), waiting for the leader reaps it, and the rest of the group is killed once, at that moment.
"""

import os
import select
import signal
from contextlib import suppress
from pathlib import Path
from subprocess import Popen
from threading import Lock
from typing import Final

from anyio import wait_readable

from ._in_thread import in_thread

__all__ = ["ProcessGroup"]

PROC: Final = Path("/proc")

REAP_TIMEOUT: Final = 1.0
"""In seconds. A killed process that takes longer to end is waiting for a device."""


class ProcessGroup:
    """A process that leads a new session, and its descendants in the same group.

    Attributes:
        id: The process id of the leader.
        leader: The process, with its pipes.
        is_over: Whether the group was ended, so that `close()` does not kill it.
    """

    def __init__(self, leader: "Popen[bytes]", *, keep_children: bool) -> None:
        """Takes over the leader. May be called in any thread.

        Args:
            leader: The process, which must lead a session and a group.
            keep_children: Whether the other processes may outlive a leader that exits on its own.
        """
        self.id = leader.pid
        self.leader = leader
        self.is_over = False
        self._keep_children = keep_children
        self._pidfd = _pidfd_of(leader.pid)
        self._was_signaled = False
        self._status: int | None = None
        self._reaping = Lock()
        self._is_reaped = False  # by other code, or because this process ignores SIGCHLD

    @property
    def may_outlive_leader(self) -> bool:
        """`True` if the rest of the group is left alone."""
        return self._keep_children and not self._was_signaled

    async def leader_exited(self) -> int | None:
        """Waits until the leader exits.

        Returns:
            Its status: -N if signal N killed it. If other code took the status, `None`, or 0 where there
            are no pidfds.
        """
        if self._pidfd is None:
            return await in_thread(self._reap_and_kill_rest, abandon_on_cancel=True)
        await wait_readable(self._pidfd)
        return self._peek()

    def _peek(self) -> int | None:
        """Returns the status of the leader, if it has exited, and does not reap it."""
        try:
            result = os.waitid(os.P_PID, self.id, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            self._is_reaped = True
            return None
        if result is None:
            return None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def _reap_and_kill_rest(self) -> int | None:
        with self._reaping:  # a task that was cancelled left its thread alone, and calls this again
            if not self._is_reaped:
                with suppress(
                    ChildProcessError
                ):  # other code took the status; the id may be in use again
                    self._status = os.waitstatus_to_exitcode(os.waitpid(self.id, 0)[1])
                    if not self.may_outlive_leader:
                        self._kill(signal.SIGKILL)
                self._is_reaped = True
        return self._status

    def send_signal(self, number: int) -> None:
        """Sends a signal to every process of the group."""
        self._was_signaled = True
        if self._pidfd is not None:
            self._peek()
        if not self._is_reaped:
            self._kill(number)
        elif self._pidfd is not None:
            with suppress(OSError):  # there is no /proc, or there are too many open files
                for member in self._members():
                    with suppress(ProcessLookupError, PermissionError):
                        signal.pidfd_send_signal(member.fileno(), number)

    def _kill(self, number: int) -> None:
        # PermissionError: all processes of the group now belong to another user.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.id, number)

    async def rest_ended(self) -> None:
        """Waits until no other process of the group is running. Does nothing if there are no pidfds.

        If the other processes cannot be listed, kills the group.
        """
        if self._pidfd is None or self.is_over:
            return
        while True:
            try:
                members = await in_thread(self._members)
            except OSError:
                self.send_signal(signal.SIGKILL)
                return
            if not members:
                return
            for member in members:
                await wait_readable(member)

    def _members(self) -> "list[_Pidfd]":
        """Returns the living processes of the group, without the leader.

        Raises:
            OSError: There is no `/proc`, or there are too many open files.
        """
        if self._is_reaped and (PROC / str(self.id)).exists():
            return []  # an unrelated process has the id now
        names = os.listdir(PROC)  # noqa: PTH208 - creating a Path for each takes far longer
        found = (self._member(int(name)) for name in names if name.isdecimal())
        return [member for member in found if member is not None]

    def _member(self, process_id: int) -> "_Pidfd | None":
        with suppress(ProcessLookupError):
            if process_id != self.id and os.getpgid(process_id) == self.id:
                member = _Pidfd(process_id)
                # Another process may have been given the id in the meantime.
                if not member.has_exited() and os.getpgid(process_id) == self.id:
                    return member
        return None

    def close(self) -> int | None:
        """Closes the pipes and reaps the leader. Kills the group first, unless `is_over` is set.

        Waits for a killed leader for at most `REAP_TIMEOUT` seconds.

        Returns:
            The status of the leader, as `leader_exited()` does, or `None` if it is not known.
        """
        if not self.is_over:
            self.is_over = True
            if not (self._has_exited() and self.may_outlive_leader):
                self.send_signal(signal.SIGKILL)
            self._has_exited(within=REAP_TIMEOUT)
        status = None if self._pidfd is None else self._peek()
        for pipe in filter(None, (self.leader.stdin, self.leader.stdout, self.leader.stderr)):
            pipe.close()
        self._is_reaped = self.leader.poll() is not None or self._is_reaped
        if self._pidfd is not None:
            self._pidfd.close()  # a task of a closed event loop may still refer to it
            self._pidfd = None
        return status

    def _has_exited(self, *, within: float = 0.0) -> bool:
        return self._pidfd is not None and self._pidfd.has_exited(within)


class _Pidfd:
    """A file descriptor that refers to a process. It is closed when this object is freed."""

    def __init__(self, process_id: int) -> None:
        self._descriptor: int | None = None
        self._descriptor = os.pidfd_open(process_id)

    def fileno(self) -> int:
        assert self._descriptor is not None
        return self._descriptor

    def has_exited(self, within: float = 0.0) -> bool:
        """Returns whether the process exits within this time, in seconds. A zombie has exited."""
        poller = select.poll()
        poller.register(self, select.POLLIN)
        return bool(poller.poll(within * 1000))

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None  # another thread may close it, too
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def _pidfd_of(process_id: int) -> _Pidfd | None:
    try:
        return _Pidfd(process_id)
    except (AttributeError, OSError):  # not Linux, an old kernel, or a sandbox
        return None
