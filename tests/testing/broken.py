"""Managers that break the rules of `ownertask.testing`, each with a common mistake."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import asynccontextmanager, contextmanager, suppress

import anyio
import trio
from anyio.lowlevel import checkpoint

from ownertask import ConnectionManager, ConnectionState


class Peer:
    """A connection that works until it is closed, or until the peer ends it."""

    def __init__(self):
        self.is_closed = False
        self.ended = anyio.Event()

    async def ping(self):
        await checkpoint()
        if self.is_closed or self.ended.is_set():
            raise anyio.ClosedResourceError

    async def end(self):
        self.ended.set()


class Good(ConnectionManager[Peer]):
    """Keeps all rules. It opens and closes in several steps, and detects the end of the connection."""

    async def watch(self, peer):
        await peer.ended.wait()

    async def handshake(self):
        for _ in range(3):
            await checkpoint()

    async def say_goodbye(self):
        for _ in range(3):
            await checkpoint()

    @asynccontextmanager
    async def open_connection(self):
        peer = Peer()
        await self.handshake()
        try:
            yield peer
        finally:
            peer.is_closed = True
            await self.say_goodbye()


class Refused(Good):
    """Connects to a server that is not running."""

    async def handshake(self):
        raise ConnectionRefusedError("the password is hunter2")


class OpensInConstructor(Good):
    def __init__(self):
        super().__init__()
        self.socket = closed_later(socket.socket())


class NeedsEventLoop(Good):
    def __init__(self):
        super().__init__()
        self.loop = anyio.lowlevel.current_token()


class StartsItself(Good):
    """Has its own state, so it looks started after it is created."""

    @property
    def state(self):
        return ConnectionState.OPENING if super().state is ConnectionState.NEW else super().state


class NeedsOwnerTask(Good):
    """Reads the manager's state, which does not change if the connection is opened directly."""

    async def handshake(self):
        assert self.state is ConnectionState.OPENING


class HoldsLock(Good):
    """Overrides `start()` and `stop()` to hold a lock, which only one task can acquire and release."""

    def __init__(self):
        super().__init__()
        self.lock = anyio.Lock()

    async def start(self, timeout=None):
        if self.state in {ConnectionState.NEW, ConnectionState.CLOSED}:
            await self.lock.acquire()
        return await super().start(timeout)

    async def stop(self, timeout=30.0):
        await super().stop(timeout)
        self.lock.release()


class ClosesOnlyByCancellation(Good):
    """Waits forever for the peer, unless it is cancelled."""

    async def say_goodbye(self):
        if self.state is not ConnectionState.NEW:
            await anyio.sleep_forever()


class Wrapper:
    def __init__(self, peer):
        self.ping = peer.ping


class StopsOnce(Good):
    """Overrides `stop()`, and raises if there is nothing to stop."""

    async def stop(self, timeout=30.0):
        if self.state is ConnectionState.CLOSED:
            raise RuntimeError("not connected")
        await super().stop(timeout)


class WrapsInStart(Good):
    """Overrides `start()` to return another object."""

    async def start(self, timeout=None):
        return Wrapper(await super().start(timeout))


class FlagIsNotReset(Good):
    """Sets a flag when it closes, and never resets it."""

    is_closing = False

    async def say_goodbye(self):
        self.is_closing = self.state is not ConnectionState.NEW

    @asynccontextmanager
    async def open_connection(self):
        async with super().open_connection() as peer:
            peer.is_closed = self.is_closing
            yield peer


class RefusesToStartWhileClosing(Good):
    """Overrides `start()` to raise while the manager is closing. The original method waits."""

    async def start(self, timeout=None):
        if self.state is ConnectionState.CLOSING:
            raise RuntimeError("still closing")
        return await super().start(timeout)


class IgnoresForcedStop(Good):
    """Suppresses its cancellation and continues."""

    release = None  # set by the test

    async def say_goodbye(self):
        try:
            await checkpoint()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self.release.wait()


class FailsWhenForced(Good):
    async def say_goodbye(self):
        try:
            await checkpoint()
        except anyio.get_cancelled_exc_class():
            raise ConnectionAbortedError from None


class OpeningFlagIsNotReset(Good):
    """Sets a flag while it opens, and does not reset the flag if it is cancelled."""

    is_opening = False

    async def handshake(self):
        if self.is_opening:
            raise RuntimeError("already opening")
        self.is_opening = True
        await super().handshake()
        self.is_opening = False


class TurnsCancellationIntoError(Good):
    async def handshake(self):
        try:
            await super().handshake()
        except BaseException:
            raise ConnectionError("could not connect") from None


class RetriesWhenCancelled(Good):
    """Tries again after each exception, even after a cancellation."""

    release = None  # set by the test

    async def handshake(self):
        try:
            await super().handshake()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.release.wait()


class ShieldsStart(Good):
    """Overrides `start()`, so that its caller cannot be cancelled."""

    async def start(self, timeout=None):
        with anyio.CancelScope(shield=True):
            return await super().start(timeout)


class StopsOnlyOpen(Good):
    """Overrides `stop()`, and does nothing while the connection is being opened."""

    async def stop(self, timeout=30.0):
        if self.state is ConnectionState.OPEN:
            await super().stop(timeout)


class RaisesWhenStopped(Good):
    """Overrides `start()` to raise another exception."""

    async def start(self, timeout=None):
        try:
            return await super().start(timeout)
        except Exception:
            raise ConnectionError("could not connect") from None


class ClosingFlagIsNotReset(Good):
    """Sets a flag while it closes, and does not reset the flag if it is cancelled."""

    is_closing = False

    async def handshake(self):
        await super().handshake()
        if self.is_closing:
            raise RuntimeError("still closing")

    async def say_goodbye(self):
        await checkpoint()
        self.is_closing = True
        await anyio.sleep(0.001)
        self.is_closing = False


class LosesReason(Good):
    """Overrides `connection_lost()`, and does not pass the exception on."""

    def connection_lost(self, exc=None, *, connection=None):
        super().connection_lost(connection=connection)


class IgnoresReport(Good):
    def connection_lost(self, exc=None, *, connection=None):
        """Does nothing, because the class has its own way to lose a connection."""


class DiesForever(Good):
    """Sets a flag when the connection is lost, and never resets it."""

    is_dead = False

    def connection_lost(self, exc=None, *, connection=None):
        self.is_dead = True
        super().connection_lost(exc, connection=connection)

    async def handshake(self):
        await super().handshake()
        if self.is_dead:
            raise RuntimeError("dead")


class DetectsNothing(Good):
    watch = None


class StopsAtTheEnd(Good):
    """Stops itself when the peer ends the connection, instead of reporting a loss."""

    watch = None

    @asynccontextmanager
    async def open_connection(self):
        async with super().open_connection() as peer, anyio.create_task_group() as task_group:

            async def wait():
                await peer.ended.wait()
                with suppress(anyio.get_cancelled_exc_class()):
                    await self.stop()

            task_group.start_soon(wait)
            yield peer
            task_group.cancel_scope.cancel()


class GivesUpTooEarly(Good):
    """Treats all errors except timeouts as permanent."""

    def is_permanent(self, exc):
        return not isinstance(exc, TimeoutError)


class SharesConnection(Good):
    """Shares one connection with all other managers, and closes it when it stops."""

    shared = None

    @asynccontextmanager
    async def open_connection(self):
        cls = type(self)
        async with super().open_connection() as peer:
            if cls.shared is None:
                cls.shared = peer
            shared = cls.shared
            try:
                yield shared
            finally:
                cls.shared, shared.is_closed = None, True


class EndsOthers(Good):
    """Reports the loss of all connections when one is closed."""

    existing = deque(maxlen=2)  # noqa: RUF012 - the newest managers

    def __init__(self):
        super().__init__()
        self.existing.append(self)

    async def say_goodbye(self):
        for manager in self.existing:
            if manager is not self:
                manager.connection_lost()


class CancelsAllTasks(Good):
    """Cancels all tasks that began while the connection was open, including unrelated tasks."""

    @asynccontextmanager
    async def open_connection(self):
        async with super().open_connection() as peer:
            before = asyncio.all_tasks()
            try:
                yield peer
            finally:
                for task in asyncio.all_tasks() - before:
                    task.cancel()


# Leaks. The test ends the leftover resources.

LEFT = []


def closed_later(resource):
    LEFT.append(resource.close)
    return resource


@contextmanager
def leaks_ended():
    """Ends the resources that the managers of a test left behind."""
    try:
        yield
    finally:
        while LEFT:
            LEFT.pop()()
        wait_for_workers()


class LeavesTask(Good):
    """Starts a task that does not end with the connection."""

    async def say_goodbye(self):
        await super().say_goodbye()
        scope = anyio.CancelScope()

        async def send_heartbeats():
            with scope:
                await anyio.sleep_forever()

        LEFT.append(scope.cancel)
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.spawn_system_task(send_heartbeats)
        else:
            self.task = asyncio.create_task(send_heartbeats())


class LeavesThread(Good):
    """Starts a thread that waits for work, and never ends it."""

    async def handshake(self):
        await super().handshake()
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait, name="reader", daemon=True)
        thread.start()
        LEFT.extend([thread.join, stop.set])


class LeavesBusyWorker(Good):
    """Abandons a worker thread that is still working."""

    async def say_goodbye(self):
        release = threading.Event()
        LEFT.append(release.set)
        with anyio.move_on_after(0.01):
            await anyio.to_thread.run_sync(release.wait, abandon_on_cancel=True)


class LeavesSocketWhenCancelled(Good):
    """Closes the socket at the end, but not if it is cancelled halfway."""

    async def handshake(self):
        self.socket = closed_later(socket.socket())
        await super().handshake()

    async def say_goodbye(self):
        self.socket.close()


class LeavesSocketWhenForced(LeavesSocketWhenCancelled):
    """Waits before it closes the socket."""

    async def handshake(self):
        self.socket = closed_later(socket.socket())

    async def say_goodbye(self):
        await checkpoint()
        self.socket.close()


class Descriptor(Peer):
    """Is closed only when it is deleted."""

    def __init__(self):
        super().__init__()
        self.number = os.open(os.devnull, os.O_RDONLY)

    def __del__(self):
        os.close(self.number)


class NeverClosesDescriptor(Good):
    """Keeps it until the manager is deleted."""

    async def handshake(self):
        self.descriptor = Descriptor()


class LeavesDescriptorWhenLost(Good):
    """Keeps it after a loss until it is replaced by that of the next connection."""

    @asynccontextmanager
    async def open_connection(self):
        async with super().open_connection() as peer:
            self.descriptor = Descriptor()
            try:
                yield peer
            finally:
                if not peer.ended.is_set():
                    del self.descriptor


class NeverClosesConnection(ConnectionManager[Peer]):
    """Returns a connection that stays open until the application deletes it."""

    @asynccontextmanager
    async def open_connection(self):
        yield Descriptor()


class LeavesServer(Good):
    """Starts a process and does not end it."""

    command = "input()"

    async def handshake(self):
        self.process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-ISc", self.command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        LEFT.append(self.end)

    def end(self):
        self.process.kill()
        with self.process:
            pass

    async def say_goodbye(self):
        self.process.stdout.close()


class LeavesZombie(LeavesServer):
    """Ends the process, but does not read its exit status."""

    async def say_goodbye(self):
        self.process.kill()
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
        self.process.stdout.close()


class LeavesGrandchild(LeavesServer):
    """Ends the process that it started, but not the descendants of that process."""

    command = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-ISc", "input()"], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
child.wait()
"""

    async def handshake(self):
        await super().handshake()
        pid = int(self.process.stdout.readline())
        LEFT.append(lambda: kill(pid))

    async def say_goodbye(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def wait_for_workers():
    while any("from owner task" in thread.name for thread in threading.enumerate()):
        time.sleep(0)  # trio reports neither the end of the job nor the change of the name


def kill(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, 9)
