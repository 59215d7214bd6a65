"""The process group of a server on POSIX: detecting its leader's exit, and sending signals to all of it.

The id of a process group is the process id of its leader. The kernel does not use it again before the
leader is reaped. So the leader is reaped last, and a signal never reaches a stranger. Other processes
of the group are waited for through pidfds. Where there are none (on macOS and old kernels), waiting for
the leader reaps it, and the rest of the group is killed once, at that moment.
"""

import os
import select
import signal
from contextlib import suppress
from pathlib import Path
from subprocess import Popen
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
        is_over: Whether `close()` does not have to kill the group.
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
        self._pidfd = _open_pidfd(leader.pid)
        self._was_signalled = False
        self._is_reaped = False  # by other code, or because this process ignores SIGCHLD

    @property
    def may_outlive_leader(self) -> bool:
        """`True` if the rest of the group is left alone."""
        return self._keep_children and not self._was_signalled

    async def leader_exited(self) -> int | None:
        """Waits until the leader exits.

        Returns:
            Its status: -N if signal N killed it, and `None` if other code has taken the status.
        """
        if self._pidfd is None:
            return await in_thread(self._reap_and_kill_rest, abandon_on_cancel=True)
        await wait_readable(self._pidfd)
        status = self._peek()
        if status is None:
            return None
        return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status

    def _peek(self) -> "os.waitid_result | None":
        """Returns the status of the leader, if it has exited, and does not reap it."""
        try:
            return os.waitid(os.P_PID, self.id, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            self._is_reaped = True
            return None

    def _reap_and_kill_rest(self) -> int:
        status = self.leader.wait()
        self._is_reaped = True
        if not self.may_outlive_leader:
            self._kill(signal.SIGKILL)
        return status

    def send_signal(self, number: int) -> None:
        """Sends a signal to every process of the group."""
        self._was_signalled = True
        if self._pidfd is not None:
            self._peek()
        if not self._is_reaped:
            self._kill(number)
        elif self._pidfd is not None:
            for member in self._open_members():
                with suppress(ProcessLookupError, PermissionError):
                    signal.pidfd_send_signal(member, number)
                os.close(member)

    def _kill(self, number: int) -> None:
        # PermissionError: all processes of the group now belong to another user.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.id, number)

    async def rest_ended(self) -> None:
        """Waits until the leader is the only process in the group. A zombie does not count."""
        if self._pidfd is None or self.is_over:
            return
        while True:
            try:
                members = await in_thread(self._open_members)
            except OSError:  # there is no /proc, or there are too many open files
                self.send_signal(signal.SIGKILL)
                return
            if not members:
                return
            try:
                for member in members:
                    await wait_readable(member)
            finally:
                for member in members:
                    os.close(member)

    def _open_members(self) -> list[int]:
        """Returns pidfds of the living processes of the group, without the leader."""
        if self._is_reaped and (PROC / str(self.id)).exists():
            return []  # a stranger has the id now
        members: list[int] = []
        try:
            for name in os.listdir(PROC):  # noqa: PTH208 - creating a Path for each takes far longer
                if name.isdecimal() and name != str(self.id):
                    self._open_member(int(name), members)
        except BaseException:
            for member in members:
                os.close(member)
            raise
        return members

    def _open_member(self, process_id: int, members: list[int]) -> None:
        with suppress(ProcessLookupError):
            if os.getpgid(process_id) != self.id:
                return
            member = os.pidfd_open(process_id)
            members.append(member)
            # Another process could have got the id in the meantime.
            if _has_exited(member) or os.getpgid(process_id) != self.id:
                os.close(members.pop())

    def close(self) -> None:
        """Closes the pipes and reaps the leader. Kills the group first, unless `is_over` is set.

        Waits for a killed leader for at most `REAP_TIMEOUT` seconds.
        """
        if not self.is_over:
            self.is_over = True
            self.send_signal(signal.SIGKILL)
            if self._pidfd is not None:
                _has_exited(self._pidfd, within=REAP_TIMEOUT)
        for pipe in (self.leader.stdin, self.leader.stdout, self.leader.stderr):
            if pipe is not None:
                pipe.close()
        self.leader.poll()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def _open_pidfd(process_id: int) -> int | None:
    try:
        return os.pidfd_open(process_id)
    except (AttributeError, OSError):  # not Linux, an old kernel, or a sandbox
        return None


def _has_exited(pidfd: int, *, within: float = 0.0) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(within * 1000))
