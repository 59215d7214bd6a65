"""Tests for the processes of a stdio server: how their exit is reported, and that they are ended.

A process of a server connects to the test over a Unix socket. When it ends, the kernel closes its end.
"""

import asyncio
import copy
import errno
import gc
import logging
import os
import pickle
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from anyio.lowlevel import checkpoint
from conftest import resources
from forked_python import forking
from mcp import StdioServerParameters
from proof import clocks
from proof.sweep import Driven
from reopening import lost
from servers import TINY, python_server, stdio_server

from ownertask import ConnectionLostError, ConnectionState
from ownertask.mcp import (
    ServerExitedError,
    SessionConnectionManager,
    StdioConnectionManager,
    _process_group,
    _server_process,
    _spawning,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="on Windows, the SDK runs the server")
slow = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfds and /proc")

MEMBER = Path(__file__).parent / "servers" / "group_member.py"

SHORT = {"flush_timeout": 0.05, "exit_timeout": 0.05, "terminate_timeout": 0.05}

# The code that ends a server, its status, and what the error says.
ENDS = [
    ("os._exit(0)", 0, "exited with status 0"),
    ("os._exit(3)", 3, "exited with status 3"),
    ("os.kill(os.getpid(), signal.SIGKILL)", -9, "was killed by SIGKILL"),
]
if sys.platform == "linux":
    number = signal.SIGRTMIN + 1
    ENDS.append((f"os.kill(os.getpid(), {number})", -number, f"was killed by signal {number}"))
ends = pytest.mark.parametrize(("end", "status", "text"), ENDS, ids=[text for _, _, text in ENDS])


class Member:
    """A process of a server."""

    def __init__(self, connection, name, process_id):
        self.connection = connection
        self.name = name
        self.id = int(process_id)

    def is_alive(self):
        try:
            return bool(self.connection.recv(1))
        except BlockingIOError:
            return True
        except ConnectionResetError:  # it did not read what the test sent
            return False

    def run(self, code):
        self.connection.sendall(code.encode() + b"\n")

    async def ended(self):
        await anyio.wait_readable(self.connection)
        assert not self.is_alive()


class Family:
    """The processes of a server. Each of them connects to the test."""

    def __init__(self, folder):
        self.path = f"{folder}/socket"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(100)
        self.listener.setblocking(False)
        self.members = []

    def server(self, code):
        return stdio_server(MEMBER, self.path, code)

    async def member(self, name):
        """Waits until a process with this name has connected."""
        while True:
            for member in self.members:
                if member.name == name:
                    self.members.remove(member)
                    self.members.append(member)
                    return member
            await anyio.wait_readable(self.listener)
            self.accept()

    def accept(self):
        connection, _ = self.listener.accept()
        connection.settimeout(5)
        name = connection.recv(100).decode().split()
        connection.setblocking(False)
        if name:
            self.members.append(Member(connection, *name))
        else:  # it was killed before
            connection.close()

    def is_gone(self):
        return not any(member.is_alive() for member in self.members)

    def close(self):
        with suppress(BlockingIOError):
            while True:
                self.accept()
        self.listener.close()
        for member in self.members:
            if member.is_alive():
                with suppress(ProcessLookupError):
                    os.kill(member.id, signal.SIGKILL)
            member.connection.close()


class Fifo:
    """A pipe with a name. At its end, no process holds it open for writing."""

    def __init__(self, folder):
        self.path = str(folder / "fifo")
        os.mkfifo(self.path)

    def __enter__(self):
        self.descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        return self

    def __exit__(self, *_):
        os.close(self.descriptor)
        Path(self.path).unlink()

    async def ready(self):
        await anyio.wait_readable(self.descriptor)
        assert os.read(self.descriptor, 6) == b"ready\n"

    def is_gone(self):
        try:
            return os.read(self.descriptor, 1) == b""
        except BlockingIOError:
            return False

    async def gone(self):
        await anyio.wait_readable(self.descriptor)
        assert self.is_gone()


class Text:
    def write(self, text):
        pass


@pytest.fixture
def family():
    folder = tempfile.mkdtemp(dir="/tmp")  # the path of a socket must be short
    found = Family(folder)
    yield found
    found.close()
    shutil.rmtree(folder)


@pytest.fixture
def without_pidfds(monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)


@pytest.fixture(params=["with pidfds", "without pidfds"])
def pidfds(request, monkeypatch):
    if request.param == "without pidfds":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("there are no pidfds")
    return request.param


# How the end of a server is reported.


@ends
@pytest.mark.parametrize("use", ["nothing", "a reader", "a session", "a call"])
async def test_S1_a_server_that_ends_is_reported(family, end, status, text, use):
    server = family.server(
        "print('one\\nthe last words\\n\\n ', file=sys.stderr); join('server'); serve()"
    )
    transport = manager = StdioConnectionManager(server)
    if use in {"a session", "a call"}:
        manager = SessionConnectionManager(transport)
    assert transport.pid is transport.returncode is None
    connection = await manager.start()
    member = await family.member("server")
    assert transport.pid == member.id
    assert transport.returncode is None
    async with anyio.create_task_group() as tg:
        if use == "a reader":
            tg.start_soon(expect, anyio.EndOfStream, connection[0].receive)
        elif use == "a call":
            tg.start_soon(expect, Exception, connection.call_tool, "hang", {})
            await anyio.wait_all_tasks_blocked()
        member.run(end)
        error = await lost(manager)
    assert family.is_gone()
    cause = error.__cause__
    assert type(cause) is ServerExitedError
    assert str(cause) == f"the server {text}; its stderr ended with 'the last words'"
    assert str(cause) in str(error)
    assert cause.returncode == transport.returncode == status
    assert cause.stderr_tail == transport.stderr_tail == "one\nthe last words\n\n \n"
    assert f"the server's stderr ended with:\n{cause.stderr_tail}" in cause.__notes__
    assert transport.pid == member.id
    assert copy.copy(transport).pid is copy.copy(transport).returncode is None
    await manager.start()
    assert transport.pid != member.id
    assert transport.returncode is None
    await manager.stop()
    assert transport.returncode == 0


async def expect(kind, function, *args):
    with pytest.raises(kind):
        await function(*args)


@ends
@pytest.mark.parametrize("reads", [True, False])
async def test_S1_a_server_that_ends_during_the_handshake_is_reported(end, status, text, reads):
    code = f"import os, signal, sys; print('bye', file=sys.stderr, flush=True); {end}"
    if reads:
        code = f"import sys; sys.stdin.readline()\n{code}"
    manager = SessionConnectionManager(python_server(code))
    with pytest.raises(ConnectionLostError) as caught:
        await manager.start()
    cause = caught.value.__cause__
    assert type(cause) is ServerExitedError
    assert cause.returncode == status
    assert f"the server {text}; its stderr ended with 'bye'" in str(caught.value)
    assert "the server exited during the handshake" in caught.value.__notes__


@ends
async def test_S1_a_server_that_ends_while_it_is_stopped_is_not_a_loss(family, end, status, text):
    manager = StdioConnectionManager(family.server(f"join('server'); sys.stdin.read(); {end}"))
    await manager.start()
    await family.member("server")
    await manager.stop()
    assert manager.state is ConnectionState.CLOSED
    assert manager.returncode == status
    assert family.is_gone()


@slow
@pytest.mark.parametrize(("ignores", "status"), [("", -15), ("ignore_sigterm()", -9)])
async def test_the_status_tells_which_signal_stopped_the_server(family, ignores, status):
    manager = StdioConnectionManager(
        family.server(f"{ignores}\njoin('server')\ntime.sleep(600)"), **SHORT
    )
    await manager.start()
    await family.member("server")
    await manager.stop()
    assert manager.returncode == status
    assert manager.state is ConnectionState.CLOSED
    assert family.is_gone()


def test_the_text_of_a_server_exited_error_has_the_last_line_of_stderr():
    assert str(ServerExitedError(None)) == "the server exited with an unknown status"
    assert not hasattr(ServerExitedError(0), "__notes__")
    for tail in ("", "\n", "  \n\t\n"):
        assert str(ServerExitedError(0, tail)) == "the server exited with status 0"
    text = str(ServerExitedError(-15, "first\n" + "x" * 5000 + "the end\r\n"))
    assert text.startswith("the server was killed by SIGTERM; its stderr ended with 'xxx")
    assert text.endswith("xthe end'")
    assert len(text) < 300


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))]
)
def test_a_server_exited_error_can_be_copied_and_pickled(duplicate):
    error = ServerExitedError(-9, "a\nb\n")
    error.add_note("more")
    other = duplicate(error)
    assert type(other) is ServerExitedError
    assert (other.returncode, other.stderr_tail) == (-9, "a\nb\n")
    assert str(other) == str(error)
    assert other.__notes__ == error.__notes__ == ["the server's stderr ended with:\na\nb\n", "more"]
    other.add_note("of the copy")
    assert "of the copy" not in error.__notes__
    assert str(duplicate(ServerExitedError(0))) == "the server exited with status 0"


@pytest.mark.parametrize(
    ("closes", "exits"),
    [([0], False), ([1], False), ([0], True), ([1], True), ([0, 1], True), ([1, 0], True)],
)
async def test_S1_a_server_that_closes_a_pipe_is_lost(family, monkeypatch, closes, exits):
    """If it also exits soon, the status is the reason."""
    if exits:
        monkeypatch.setattr(_server_process, "STATUS_GRACE", 30)
    manager = StdioConnectionManager(family.server("join('server'); time.sleep(600)"), **SHORT)
    reader, writer = await manager.start()
    member = await family.member("server")
    async with anyio.create_task_group() as tg:
        for descriptor in closes:
            member.run(f"os.close({descriptor}); connection.sendall(b'closed')")
            await anyio.wait_readable(member.connection)
            assert member.connection.recv(6) == b"closed"
            assert manager.state is ConnectionState.OPEN
            if descriptor == 1:
                tg.start_soon(expect, anyio.EndOfStream, reader.receive)
            else:
                tg.start_soon(expect, anyio.BrokenResourceError, writer.send, a_message())
            await anyio.wait_all_tasks_blocked()
        if exits:
            assert manager.state is ConnectionState.OPEN
            member.run("os._exit(3)")
        error = await lost(manager)
    if exits:
        kind, text = ServerExitedError, "the server exited with status 3"
    elif closes == [1]:
        kind, text = EOFError, "the server closed its stdout"
    else:
        kind, text = BrokenPipeError, "the server closed its stdin"
    assert type(error.__cause__) is kind
    assert str(error.__cause__) == text
    assert text in str(error)
    assert family.is_gone()


def a_message(text="ping"):
    from ownertask.mcp import _sdk

    return _sdk.message_from_json(f'{{"jsonrpc": "2.0", "method": "notifications/{text}"}}')


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.within(20)
async def test_S1_the_last_messages_before_the_exit_are_received(busy):
    code = (
        "import sys; sys.stdin.readline()\n"
        'for n in range(30): print(\'{"jsonrpc": "2.0", "method": "notifications/n%d"}\' % n)\n'
    )
    for _ in range(10):
        manager = StdioConnectionManager(python_server(code))
        reader, writer = await manager.start()
        received = []
        with suppress(anyio.EndOfStream):
            await writer.send(a_message())
            while True:
                received.append(await reader.receive())
                if busy:
                    await checkpoint()
                    if len(received) == 1:
                        await anyio.to_thread.run_sync(wait_for_exit, manager.pid)
        assert len(received) == 30
        assert "notifications/n29" in str(received[-1])
        assert (await lost(manager)).__cause__.returncode == 0


def wait_for_exit(process_id):
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOWAIT)


@only_linux
async def test_S1_all_of_stderr_is_read_when_the_server_exits():
    code = (
        "import fcntl, os, sys; fcntl.fcntl(2, fcntl.F_SETPIPE_SZ, 2**20)\n"
        "os.write(2, b'x' * 500_000 + b'\\nthe last words\\n'); sys.exit(3)"
    )
    manager = StdioConnectionManager(python_server(code), Text())
    await manager.start()
    wait_for_exit(manager.pid)  # blocks the event loop, so that everything happens at once
    error = await lost(manager)
    assert str(error.__cause__).endswith("status 3; its stderr ended with 'the last words'")


# Other processes that belong to a server.


@slow
@pytest.mark.parametrize("use", ["nothing", "a reader", "a session"])
@pytest.mark.parametrize("starts", ["start(child)", "fork(lambda: exec(child))"])
async def test_S2_a_server_that_dies_while_its_child_holds_its_pipes_is_lost(
    family, use, starts, pidfds
):
    child = "ignore_sigterm(); join('child'); time.sleep(600)"
    server = family.server(f"child = {child!r}; {starts}; join('server'); serve()")
    transport = manager = StdioConnectionManager(server, **SHORT)
    if use == "a session":
        manager = SessionConnectionManager(transport)
    connection = await manager.start()
    member = await family.member("server")
    child = await family.member("child")
    async with anyio.create_task_group() as tg:
        if use == "a reader":
            tg.start_soon(expect, anyio.EndOfStream, connection[0].receive)
            await anyio.wait_all_tasks_blocked()
        member.run("os._exit(3)")
        error = await lost(manager)
    assert error.__cause__.returncode == 3
    if pidfds == "without pidfds":
        await child.ended()
    assert family.is_gone()


LAUNCHERS = {
    "exits": "join('launcher'); start(real); time.sleep(600)",
    "waits": "start(real).wait()",
    "execs": "os.execv(sys.executable, [sys.executable, __file__, path, real])",
}


@slow
@pytest.mark.parametrize("kind", LAUNCHERS)
@pytest.mark.parametrize("ignores", ["", "ignore_sigterm(); "])
async def test_S3_the_server_behind_a_launcher_is_gone_when_stop_returns(family, kind, ignores):
    real = f"{ignores}join('server'); time.sleep(600)"
    manager = StdioConnectionManager(family.server(f"real = {real!r}; {LAUNCHERS[kind]}"), **SHORT)
    await manager.start()
    await family.member("server")
    if kind == "exits":
        launcher = await family.member("launcher")
        launcher.run("os._exit(0)")
        await launcher.ended()
    await manager.stop()
    assert family.is_gone()
    # The exit of the launcher is a loss, unless stop() was faster.
    assert manager.state is ConnectionState.CLOSED or kind == "exits"


@slow
@pytest.mark.parametrize("ignores", ["", "trap '' TERM; "])
@pytest.mark.parametrize("lost_first", [False, True])
async def test_S3_a_shell_that_leaves_the_server_behind(tmp_path, ignores, lost_first):
    with Fifo(tmp_path) as fifo:
        code = (
            f"{ignores}exec 9>$0; (exec sleep 600) & echo ready >&9; {'' if lost_first else 'read line'}"
        )
        server = StdioServerParameters(command="/bin/sh", args=["-c", code, fifo.path])
        manager = StdioConnectionManager(server, **SHORT)
        await manager.start()
        await fifo.ready()
        if lost_first:
            await lost(manager)
        await manager.stop()
        assert fifo.is_gone()


@slow
@pytest.mark.parametrize("how", ["exits at the end of stdin", "is lost", "ignores the end of stdin"])
async def test_S3_children_are_kept_if_the_server_exits_before_a_signal(family, how, pidfds):
    end = "sys.stdin.read()" if how == "exits at the end of stdin" else "time.sleep(600)"
    child = "ignore_sigterm(); join('child'); time.sleep(600)"
    server = family.server(f"join('server'); start({child!r}, **NOTHING); {end}")
    manager = StdioConnectionManager(server, keep_children=True, **SHORT)
    if end == "sys.stdin.read()":
        manager.exit_timeout = None
    await manager.start()
    member = await family.member("server")
    child = await family.member("child")
    if how == "is lost":
        member.run("os._exit(0)")
        await lost(manager)
    await manager.stop()
    assert not member.is_alive()
    if how != "ignores the end of stdin":
        child.run("connection.sendall(b'alive')")
        await anyio.wait_readable(child.connection)
        assert child.is_alive()
    else:
        if pidfds == "without pidfds":
            await child.ended()
        assert not child.is_alive()


@slow
async def test_S3_kept_children_that_hold_the_pipes_do_not_delay_stop(family):
    child = "ignore_sigterm(); join('child'); time.sleep(600)"
    server = family.server(f"join('server'); start({child!r}); sys.stdin.read()")
    manager = StdioConnectionManager(
        server, keep_children=True, exit_timeout=None, terminate_timeout=None
    )
    await manager.start()
    child = await family.member("child")
    await manager.stop()
    assert child.is_alive()


@slow
async def test_S6_a_forked_child_that_holds_the_pipes_does_not_keep_the_server(family):
    """The child exits at SIGTERM, long after the server itself."""
    server = family.server("fork(lambda: exec(\"join('child'); time.sleep(600)\")); serve()")
    manager = SessionConnectionManager(StdioConnectionManager(server, exit_timeout=None))
    await manager.start()
    await family.member("child")
    await manager.stop()
    assert family.is_gone()
    assert manager.state is ConnectionState.CLOSED


@pytest.mark.parametrize("anyio_backend_name", ["asyncio", "trio"])
def test_S6_a_fork_of_this_process_that_holds_the_pipes_does_not_keep_the_server(anyio_backend_name):
    """Such a child holds the other end of the server's stdin, so the server never reads its end."""
    program = f"""
import os, signal, sys, anyio
from servers import TINY
from ownertask.mcp import SessionConnectionManager, StdioConnectionManager

async def main():
    transport = StdioConnectionManager(TINY, exit_timeout=0.2)
    manager = SessionConnectionManager(transport)
    await manager.start()
    ready, holds = os.pipe()
    child = os.fork()
    if not child:
        os.close(ready)
        signal.pause()
    os.close(holds)
    await manager.stop()
    print(manager.state.value, transport.returncode)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

anyio.run(main, backend={anyio_backend_name!r})
"""
    # Python 3.12 warns if a process with threads forks.
    assert run_program(program, "-W", "ignore::DeprecationWarning") == "closed -15\n"


def run_program(program, *options):
    folder = Path(__file__).parents[1]
    with forking():
        result = subprocess.run(
            [sys.executable, "-W", "error", *options, "-c", program],
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    return result.stdout


@only_linux
@slow
@pytest.mark.within(20)
async def test_S8_a_process_that_forks_on_and_on_is_ended(tmp_path):
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.open(sys.argv[1], os.O_WRONLY)\n"
        "if os.fork(): time.sleep(600)\n"
        "os.write(os.open(sys.argv[1], os.O_WRONLY), b'ready\\n')\n"
        "while True:\n"
        "    if os.fork(): os._exit(0)\n"
    )
    for _ in range(5):
        with Fifo(tmp_path) as fifo:
            server = StdioServerParameters(command=sys.executable, args=["-S", "-c", code, fifo.path])
            manager = StdioConnectionManager(server, **SHORT)
            await manager.start()
            await fifo.ready()
            await manager.stop()
            assert fifo.is_gone()


@slow
async def test_S8_a_process_that_left_the_group_is_not_ended(family):
    child = "join('child'); time.sleep(600)"
    server = family.server(f"join('server'); start({child!r}, start_new_session=True); serve()")
    manager = StdioConnectionManager(server)
    await manager.start()
    child = await family.member("child")
    await manager.stop()
    child.run("connection.sendall(b'alive')")
    await anyio.wait_readable(child.connection)
    assert child.is_alive()


@slow
@only_linux
async def test_S8_a_zombie_in_the_group_does_not_delay_stop(family, caplog):
    """The zombie's parent has left the group, so it stays a zombie."""
    code = """
def parent():
    os.setpgid(0, 0)
    os.setpgid(child, group)
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    join('parent')
    time.sleep(600)
def grandparent():
    global child
    child = os.fork()
    if not child:
        signal.pause()
    parent()
group = os.getpid()
fork(grandparent)
serve()
"""
    manager = StdioConnectionManager(family.server(code), terminate_timeout=1, kill_timeout=1)
    await manager.start()
    parent = await family.member("parent")
    await manager.stop()
    assert parent.is_alive()
    assert manager.returncode == 0
    assert not caplog.records


@slow
@only_linux
async def test_S8_a_status_that_other_code_has_taken_is_unknown(family):
    child = "ignore_sigterm(); join('child'); time.sleep(600)"
    server = family.server(f"join('server'); start({child!r}); serve()")
    manager = StdioConnectionManager(server, **SHORT)
    await manager.start()
    member = await family.member("server")
    await family.member("child")
    os.kill(member.id, signal.SIGKILL)
    take_status(member.id)
    error = await lost(manager)
    assert str(error.__cause__) == "the server exited with an unknown status"
    assert manager.returncode is error.__cause__.returncode is None
    assert family.is_gone()


@slow
@only_linux
async def test_S8_a_status_can_be_taken_while_the_server_is_stopped(family):
    child = "ignore_sigterm(); join('child'); time.sleep(600)"
    server = family.server(f"join('server'); start({child!r}); sys.stdin.read()")
    manager = StdioConnectionManager(server, exit_timeout=None, terminate_timeout=0.05)
    await manager.start()
    member = await family.member("server")
    await family.member("child")
    async with anyio.create_task_group() as tg:
        tg.start_soon(manager.stop)
        await anyio.to_thread.run_sync(take_status, member.id)
    assert manager.state is ConnectionState.CLOSED
    assert family.is_gone()


def take_status(process_id):
    with suppress(ChildProcessError):
        os.waitpid(process_id, 0)


@only_linux
@pytest.mark.parametrize("anyio_backend_name", ["asyncio", "trio"])
def test_S8_a_program_that_ignores_sigchld_can_run_servers(anyio_backend_name):
    program = f"""
import os, signal, sys, anyio
from servers import TINY, STUBBORN, python_server
from ownertask.mcp import SessionConnectionManager, StdioConnectionManager

signal.signal(signal.SIGCHLD, signal.SIG_IGN)

async def main():
    manager = StdioConnectionManager(TINY)
    async with manager:
        pass
    print(manager.state.value, manager.returncode)
    manager = StdioConnectionManager(STUBBORN, exit_timeout=0.05, terminate_timeout=0.05)
    async with SessionConnectionManager(manager):
        pass
    try:
        os.kill(manager.pid, 0)
    except ProcessLookupError:
        print("gone")
    manager = StdioConnectionManager(python_server("import sys; sys.exit(3)"))
    await manager.start()
    try:
        await manager.wait_closed()
    except Exception as error:
        print(error.__cause__)

anyio.run(main, backend={anyio_backend_name!r})
"""
    expected = "closed None\ngone\nthe server exited with an unknown status\n"
    assert run_program(program) == expected


@slow
@only_linux
async def test_S8_nobody_is_signaled_if_another_process_has_the_id_of_the_leader(
    family, monkeypatch, tmp_path
):
    """A fake /proc contains the id, as if a process had got it after the status was taken."""
    child = "join('child'); time.sleep(600)"
    server = family.server(f"join('server'); start({child!r}, **NOTHING); serve()")
    manager = StdioConnectionManager(server, **SHORT)
    await manager.start()
    member = await family.member("server")
    child = await family.member("child")
    (tmp_path / str(member.id)).mkdir()
    (tmp_path / str(child.id)).mkdir()
    monkeypatch.setattr(_process_group, "PROC", tmp_path)
    os.kill(member.id, signal.SIGKILL)
    take_status(member.id)
    await lost(manager)
    child.run("connection.sendall(b'alive')")
    await anyio.wait_readable(child.connection)
    assert child.is_alive()


# Systems that lack something.


@slow
async def test_without_pidfds_a_server_is_started_and_stopped(family, without_pidfds):
    transport = StdioConnectionManager(family.server("join('server'); serve()"))
    async with SessionConnectionManager(transport):
        member = await family.member("server")
        assert transport.pid == member.id
    assert transport.returncode == 0
    assert family.is_gone()


@slow
@pytest.mark.parametrize("ignores", ["", "ignore_sigterm(); "])
async def test_without_pidfds_the_rest_of_the_group_is_killed(family, without_pidfds, ignores):
    child = f"{ignores}join('child'); time.sleep(600)"
    server = family.server(f"{ignores}join('server'); start({child!r}); time.sleep(600)")
    manager = StdioConnectionManager(server, **SHORT)
    await manager.start()
    member = await family.member("server")
    child = await family.member("child")
    await manager.stop()
    assert not member.is_alive()
    assert manager.returncode == (-9 if ignores else -15)
    await child.ended()


@only_linux
@slow
@pytest.mark.parametrize("lacks", ["/proc", "descriptors"])
@pytest.mark.parametrize("is_taken", [False, True])
async def test_S3_the_group_is_killed_at_once_if_its_members_cannot_be_listed(
    family, monkeypatch, tmp_path, lacks, is_taken
):
    """If the status was taken, too, nothing can be signaled safely. Everything else is cleaned up."""
    child = "ignore_sigterm(); join('child'); time.sleep(600)"
    server = family.server(f"join('server'); start({child!r}); sys.stdin.read(); os._exit(0)")
    manager = StdioConnectionManager(server, terminate_timeout=None)
    await manager.start()
    member = await family.member("server")
    child = await family.member("child")
    if lacks == "/proc":
        monkeypatch.setattr(_process_group, "PROC", tmp_path / "missing")
    else:
        monkeypatch.setattr(os, "pidfd_open", raise_emfile)
    if is_taken:
        os.kill(member.id, signal.SIGKILL)
        take_status(member.id)
        error = await lost(manager)
        assert error.__cause__.returncode is None
        assert not hasattr(error, "__notes__")
    else:
        await manager.stop()
        assert manager.state is ConnectionState.CLOSED
        await child.ended()


def raise_emfile(*_):
    raise OSError(errno.EMFILE, "too many open files")


# The steps that end a server, and their bounds.


@pytest.mark.parametrize(
    "argument",
    ["flush_timeout", "exit_timeout", "terminate_timeout", "kill_timeout", "max_message_bytes"],
)
def test_the_bounds_are_checked(argument):
    assert getattr(StdioConnectionManager(TINY, **{argument: None}), argument) is None
    assert getattr(StdioConnectionManager(TINY, **{argument: 7}), argument) == 7
    for value in (-1, *([0] if argument == "max_message_bytes" else [float("nan")])):
        with pytest.raises(ValueError, match=f"{argument} must be "):
            StdioConnectionManager(TINY, **{argument: value})
    for value in ("1", True):
        with pytest.raises(TypeError, match=f"{argument} must be "):
            StdioConnectionManager(TINY, **{argument: value})


class FakeGroup:
    """A process group whose leader exits on cue. The pipes are real.

    Args:
        leader: What ends the leader: "eof", a signal, or `None` if nothing does.
        rest: The signal that ends the rest of the group, 0 if there is none, `None` if nothing does.
        keep_children: See `ProcessGroup`.
    """

    id = 4321

    def __init__(self, leader, rest, *, keep_children=False):
        self.log = []
        self.ends_leader = leader
        self.ends_rest = rest
        self.keep_children = keep_children
        self.is_over = self.is_closed = False
        self.status = None
        self.exited = anyio.Event()
        self.rest_gone = anyio.Event()
        if rest == 0:
            self.rest_gone.set()
        self.stdin, stdin = os.pipe()
        stdout, self.stdout = os.pipe()
        stderr, self.stderr = os.pipe()
        self.leader = SimpleNamespace(
            stdin=Closing(stdin, self.eof),
            stdout=os.fdopen(stdout, "rb", 0),
            stderr=os.fdopen(stderr, "rb", 0),
        )

    @property
    def may_outlive_leader(self):
        return self.keep_children and not self.log

    async def leader_exited(self):
        await self.exited.wait()
        return self.status

    async def rest_ended(self):
        await self.rest_gone.wait()

    def eof(self):
        self.at_eof = anyio.current_time()
        if self.ends_leader == "eof":
            self.exited.set()

    def send_signal(self, number):
        self.log.append((round(anyio.current_time() - self.began, 3), number))
        if number == self.ends_leader:
            self.status = -number
            self.exited.set()
        if number == self.ends_rest:
            self.rest_gone.set()

    def close(self):
        self.is_closed = True
        for pipe in (self.leader.stdin, self.leader.stdout, self.leader.stderr):
            pipe.close()
        for descriptor in (self.stdin, self.stdout, self.stderr):
            os.close(descriptor)


class Closing:
    """A pipe that reports when it is closed."""

    def __init__(self, descriptor, on_close):
        self.file = os.fdopen(descriptor, "wb", 0)
        self.on_close = on_close

    @property
    def closed(self):
        return self.file.closed

    def fileno(self):
        return self.file.fileno()

    def close(self):
        if not self.file.closed:
            self.file.close()
            self.on_close()


TERM, KILL = signal.SIGTERM, signal.SIGKILL
FAKE_BOUNDS = {"flush_timeout": 1, "exit_timeout": 10, "terminate_timeout": 100, "kill_timeout": 1000}


def run_fake(monkeypatch, clock, use, *group_args, fill=False, bounds=FAKE_BOUNDS, **group_options):
    """Opens a manager with a fake group, and calls `use` with the manager and the group."""

    async def main():
        group = FakeGroup(*group_args, **group_options)

        async def spawned(*_, **__):
            return group

        monkeypatch.setattr(_server_process, "spawned", spawned)
        manager = StdioConnectionManager(TINY, keep_children=group.keep_children, **bounds)
        _, writer = await manager.start()
        async with anyio.create_task_group() as tg:
            if fill:
                tg.start_soon(expect, anyio.ClosedResourceError, writer.send, a_message("x" * 1_000_000))
                await anyio.sleep(1)
            group.began = anyio.current_time()
            await use(manager, group)
        assert group.is_closed
        assert manager.state is ConnectionState.CLOSED
        return group

    return clocks.run(main, clock=clock)


clock = pytest.mark.parametrize("clock", [clock for clock in clocks.CLOCKS if clock != "uvloop"])
fills = pytest.mark.parametrize("fill", [False, True])

# What ends the leader, what ends the rest, the signals and their times, the time of the end. The last
# signal is for a process that the search for members missed.
NORMAL = [
    ("eof", 0, [(0, TERM), (0, KILL)], 0),
    (TERM, 0, [(10, TERM), (10, KILL)], 10),
    (KILL, 0, [(10, TERM), (110, KILL)], 110),
    ("eof", TERM, [(0, TERM), (0, KILL)], 0),
    ("eof", KILL, [(0, TERM), (100, KILL)], 100),
    (TERM, KILL, [(10, TERM), (110, KILL)], 110),
    ("eof", None, [(0, TERM), (100, KILL)], 1100),
    (None, 0, [(10, TERM), (110, KILL)], 1110),
]


@clock
@fills
@pytest.mark.parametrize(("leader", "rest", "signals", "end"), NORMAL)
def test_C4_each_step_is_limited_by_its_own_bound(
    monkeypatch, caplog, clock, fill, leader, rest, signals, end
):
    async def use(manager, group):
        await manager.stop(timeout=None)
        group.stopped_at = anyio.current_time() - group.began

    group = run_fake(monkeypatch, clock, use, leader, rest, fill=fill)
    flush = 1 if fill else 0  # a message that nobody reads is written until the bound
    assert group.log == [(time + flush, number) for time, number in signals]
    assert group.stopped_at == pytest.approx(end + flush, abs=0.01)
    assert group.is_over
    survives = None in {leader, rest}
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    name = "StdioConnectionManager(" + Path(sys.executable).name + ")"
    assert (
        errors == [f"{name}: could not kill all processes in the server's process group 4321"] * survives
    )


@clock
@pytest.mark.parametrize(
    ("leader", "signals"),
    [("eof", []), (TERM, [(10, TERM), (110, KILL)]), (KILL, [(10, TERM), (110, KILL)])],
)
def test_S3_the_bounds_of_a_server_with_kept_children(monkeypatch, clock, leader, signals):
    async def use(manager, group):
        await manager.stop(timeout=None)

    group = run_fake(monkeypatch, clock, use, leader, KILL, keep_children=True)
    assert group.log == signals


@clock
def test_without_bounds_each_step_waits_forever(monkeypatch, clock):
    async def use(manager, group):
        async with anyio.create_task_group() as tg:
            tg.start_soon(manager.stop, None)
            await anyio.sleep(8e4)
            assert group.log == []
            group.exited.set()
            await anyio.sleep(8e4)
            assert group.log == [(8e4, TERM)]
            group.rest_gone.set()

    bounds = dict.fromkeys(FAKE_BOUNDS)
    group = run_fake(monkeypatch, clock, use, None, None, bounds=bounds)
    assert group.log == [(8e4, TERM), (16e4, KILL)]


# When it is cancelled, the signals and their times, and the time of the end: 0.5 s for the
# message, and two seconds for each other step that is left.
FORCED = [
    (0, True, [(2.5, TERM), (4.5, KILL)], 6.5),
    (0.5, True, [(3.0, TERM), (5.0, KILL)], 7.0),
    (0, False, [(2, TERM), (4, KILL)], 6),
    (5, False, [(7, TERM), (9, KILL)], 11),
    (50, False, [(10, TERM), (52, KILL)], 54),
    (500, False, [(10, TERM), (110, KILL), (502, KILL)], 504),
]


@clock
@pytest.mark.parametrize("how", ["a timeout", "a scope"])
@pytest.mark.parametrize(("at", "fill", "signals", "end"), FORCED)
def test_C4_a_forced_stop_takes_at_most_two_seconds_for_each_step(
    monkeypatch, caplog, clock, how, at, fill, signals, end
):
    async def use(manager, group):
        if how == "a timeout":
            await manager.stop(timeout=at)
        else:
            with anyio.move_on_after(at):
                await manager.stop(timeout=None)
        group.stopped_at = anyio.current_time() - group.began

    group = run_fake(monkeypatch, clock, use, None, None, fill=fill)
    assert group.log == signals
    assert group.stopped_at == pytest.approx(end, abs=0.01)
    assert "could not kill all processes in the server's process group 4321" in caplog.text


@clock
@pytest.mark.parametrize(("leader", "end"), [("eof", 0), (TERM, 2), (KILL, 4)])
def test_C4_a_forced_stop_ends_as_soon_as_the_group_is_gone(monkeypatch, clock, leader, end):
    async def use(manager, group):
        await manager.stop(timeout=0)
        group.stopped_at = anyio.current_time() - group.began

    group = run_fake(monkeypatch, clock, use, leader, 0)
    assert group.stopped_at == pytest.approx(end, abs=0.01)


@clock
def test_C4_short_bounds_are_not_extended_by_a_forced_stop(monkeypatch, clock):
    async def use(manager, group):
        await manager.stop(timeout=0)
        group.stopped_at = anyio.current_time() - group.began

    bounds = {"flush_timeout": 0, "exit_timeout": 0, "terminate_timeout": 0.25, "kill_timeout": 0.5}
    group = run_fake(monkeypatch, clock, use, None, None, bounds=bounds)
    assert group.log == [(0, TERM), (0.25, KILL)]
    assert group.stopped_at == pytest.approx(0.75, abs=0.01)


# Interrupting a stop at each point.

DEAF = "trap '' TERM; exec 9>$0; echo said >&2; (exec sleep 600) & (exec sleep 600) & echo ready >&9; {}"
LEADERS = {"deaf": "exec sleep 600", "exits": "read line; exit 0"}
TINY_BOUNDS = {"flush_timeout": 0.01, "exit_timeout": 0.02, "terminate_timeout": 0.02}


def deaf_server(path, leader="deaf"):
    """Returns a server with two children that ignore everything except SIGKILL."""
    return StdioServerParameters(command="/bin/sh", args=["-c", DEAF.format(LEADERS[leader]), path])


# The interruptions, and how many suspensions later the second and third follow.
INTERRUPTIONS = [
    *((kinds, 0) for kinds in ("scope", "task")),
    *(
        (kinds, later)
        for kinds in ("scope, task", "task, task", "task, scope", "task, task, task")
        for later in (0, 1, 2, 4)
    ),
]


@slow
@pytest.mark.parametrize(("kinds", "later"), INTERRUPTIONS)
@pytest.mark.parametrize("leader", LEADERS)
@pytest.mark.within(60)
async def test_P7_wherever_the_end_of_a_server_is_interrupted_its_group_is_gone(
    tmp_path, monkeypatch, anyio_backend_name, kinds, later, leader
):
    if anyio_backend_name == "trio" and "task" in kinds:
        pytest.skip("trio has no native cancellation")
    kinds = kinds.split(", ")
    end = _server_process._Server.end
    world = SimpleNamespace()

    def at_point(when):
        if when == "after":
            return False
        world.points += 1
        if world.kinds and world.points >= world.due:
            world.due = world.points + later
            interrupt = getattr(world, world.kinds.pop(0))
            if anyio_backend_name == "trio":
                world.tasks.start_soon(interrupt_soon, interrupt)
            else:
                interrupt()
        return False

    async def interrupt_soon(interrupt):
        interrupt()

    async def driven(server, bounds):
        await Driven(end(server, bounds), at_point)

    async def hold():
        with anyio.CancelScope() as scope, suppress(asyncio.CancelledError):
            world.scope = scope.cancel
            if anyio_backend_name == "asyncio":
                world.task = asyncio.current_task().cancel
            with Fifo(tmp_path) as fifo:
                manager = StdioConnectionManager(deaf_server(fifo.path, leader), Text(), **TINY_BOUNDS)
                try:
                    async with manager.open_connection():
                        await fifo.ready()
                finally:
                    # The synchronous fallback kills, but waits only for the leader.
                    if len(kinds) == 1:
                        assert fifo.is_gone()
                    else:
                        select.select([fifo.descriptor], [], [], 5)
                        assert fifo.is_gone()
                    world.status = manager.returncode

    monkeypatch.setattr(_server_process._Server, "end", driven)
    for k in count(1):
        world.due, world.points, world.kinds = k, 0, list(kinds)
        before = resources()
        async with anyio.create_task_group() as world.tasks:
            world.tasks.start_soon(hold)
        await threads_ended()
        gc.collect()  # a traceback may contain pidfds
        assert world.status == (-9 if leader == "deaf" else 0) or (leader, world.status) == ("exits", -9)
        left = {each for each in resources() - before if "AnyIO worker" not in each}
        assert not left, f"left at point {k}: {left}"
        if len(world.kinds) == len(kinds):  # the point was not reached
            break
    assert k > 3


@only_linux
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_P7_a_native_cancellation_while_members_are_listed_leaves_no_pidfd(tmp_path, monkeypatch):
    reached, let_go = threading.Event(), threading.Event()
    list_names = os.listdir

    def listdir(path):
        reached.set()
        let_go.wait(20)
        return list_names(path)

    async def hold(fifo):
        manager = StdioConnectionManager(deaf_server(fifo.path, "exits"), terminate_timeout=0.05)
        async with manager.open_connection():
            await fifo.ready()
            monkeypatch.setattr(os, "listdir", listdir)

    with Fifo(tmp_path) as fifo:
        task = asyncio.create_task(hold(fifo))
        await anyio.to_thread.run_sync(reached.wait)
        task.cancel()
        await asyncio.sleep(0)
        let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert fifo.is_gone()


async def threads_ended():
    """Waits for the library's threads, which a second native cancellation leaves alone."""
    for thread in threading.enumerate():
        if thread.name.startswith(("errlog of", "ownertask")):
            await anyio.to_thread.run_sync(thread.join, 5)


@slow
@pytest.mark.parametrize("how", ["timeout", "scope", "native", "native twice"])
@pytest.mark.within(60)
async def test_P7_a_stop_that_is_cut_short_at_any_time_leaves_nothing(tmp_path, anyio_backend_name, how):
    if anyio_backend_name == "trio" and "native" in how:
        pytest.skip("trio has no native cancellation")

    async def stop(manager):
        with suppress(asyncio.CancelledError):
            await manager.stop()

    for step in range(12):
        with Fifo(tmp_path) as fifo:
            manager = StdioConnectionManager(deaf_server(fifo.path), Text(), **TINY_BOUNDS)
            await manager.start()
            await fifo.ready()
            seconds = step * 0.006
            if how == "timeout":
                await manager.stop(timeout=seconds)
            elif how == "scope":
                with anyio.move_on_after(seconds):
                    await manager.stop()
            else:
                task = asyncio.create_task(stop(manager))
                await asyncio.sleep(seconds)
                task.cancel()
                if how == "native twice":
                    await asyncio.sleep(0)
                    task.cancel()
                await task
                await manager.wait_closed()
            assert fifo.is_gone()
            assert manager.state is ConnectionState.CLOSED


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_S3_kept_children_survive_a_stop_that_is_interrupted_twice(family):
    child = "join('child'); time.sleep(600)"
    server = family.server(f"join('server'); start({child!r}, **NOTHING); serve()")
    manager = StdioConnectionManager(server, keep_children=True)

    async def hold():
        async with manager.open_connection():
            member = await family.member("server")
            await family.member("child")
            member.run("os._exit(0)")
            wait_for_exit(member.id)
            cancel(5)

    def cancel(times):
        task.cancel()
        if times > 1:
            asyncio.get_running_loop().call_soon(cancel, times - 1)

    task = asyncio.create_task(hold())
    with pytest.raises(asyncio.CancelledError):
        await task
    child = await family.member("child")
    child.run("connection.sendall(b'alive')")
    await anyio.wait_readable(child.connection)
    assert child.is_alive()


# Starting a process.


class SlowPopen:
    """Replaces `Popen`. It waits until the test lets it go on."""

    def __init__(self):
        self.reached = threading.Event()
        self.let_go = threading.Event()
        self.reaped = threading.Event()
        self.error = None
        self.process = None

    def __call__(self, *args, **options):
        self.reached.set()
        self.let_go.wait(20)
        if self.error is not None:
            raise self.error
        self.process = subprocess.Popen(*args, **options)
        self.process.poll = self.poll
        return self.process

    def poll(self):
        subprocess.Popen.poll(self.process)
        self.reaped.set()


@pytest.fixture
def popen(monkeypatch):
    popen = SlowPopen()
    monkeypatch.setattr(_spawning, "Popen", popen)
    yield popen
    popen.let_go.set()
    if popen.process is not None and popen.process.returncode is None:  # the test failed
        os.killpg(popen.process.pid, signal.SIGKILL)
        popen.process.communicate()


@slow
@pytest.mark.parametrize("how", ["scope", "stop", "native", "native twice"])
@pytest.mark.parametrize("fails", [False, True])
async def test_O17_a_start_that_is_cancelled_while_popen_blocks_leaves_no_process(
    tmp_path, monkeypatch, popen, anyio_backend_name, how, fails
):
    if anyio_backend_name == "trio" and "native" in how:
        pytest.skip("trio has no native cancellation")
    monkeypatch.setattr(_spawning, "SPAWN_GRACE", 0.1)
    popen.error = OSError("late") if fails else None
    with Fifo(tmp_path) as fifo:
        manager = StdioConnectionManager(deaf_server(fifo.path))
        if how == "scope":
            async with anyio.create_task_group() as tg:
                tg.start_soon(manager.start)
                await anyio.to_thread.run_sync(popen.reached.wait)
                tg.cancel_scope.cancel()
        elif how == "stop":
            async with anyio.create_task_group() as tg:
                tg.start_soon(expect, Exception, manager.start)
                await anyio.to_thread.run_sync(popen.reached.wait)
                await manager.stop(timeout=0)
        else:

            async def hold():
                async with manager.open_connection():
                    pass

            task = asyncio.create_task(hold())
            await anyio.to_thread.run_sync(popen.reached.wait)
            task.cancel()
            if how == "native twice":
                await asyncio.sleep(0)
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert popen.process is None
        popen.let_go.set()
        if not fails:
            await anyio.to_thread.run_sync(popen.reaped.wait, 5)
        await threads_ended()
        if not fails:
            assert popen.process.returncode == -9
            assert popen.process.stdin.closed
            with suppress(BlockingIOError):
                assert os.read(fifo.descriptor, 6) in {b"", b"ready\n"}


@slow
@pytest.mark.parametrize("how", ["scope", "task", "task twice", "task three times"])
@pytest.mark.within(30)
async def test_O17_wherever_a_start_is_cancelled_no_process_is_left(
    tmp_path, monkeypatch, anyio_backend_name, how
):
    if anyio_backend_name == "trio" and "task" in how:
        pytest.skip("trio has no native cancellation")
    monkeypatch.setattr(_spawning, "SPAWN_GRACE", 30)
    spawned = _spawning.spawned
    processes = []

    def popen(*args, **options):
        processes.append(subprocess.Popen(*args, **options))
        return processes[-1]

    monkeypatch.setattr(_spawning, "Popen", popen)

    async def is_cancelled_at(k):
        points = 0
        scope = anyio.CancelScope()
        task = None

        def at_point(when):
            nonlocal points
            points += when == "before"
            if when == "before" and points >= k:
                if how == "scope":
                    tg.start_soon(cancel)
                elif points - k < ["task", "task twice", "task three times"].index(how) + 1:
                    task.cancel()
            return False

        async def cancel():
            scope.cancel()

        async def driven(*args, **options):
            group = None

            async def call():
                nonlocal group
                group = await spawned(*args, **options)

            await Driven(call(), at_point)
            return group

        async def hold():
            nonlocal task
            if anyio_backend_name == "asyncio":
                task = asyncio.current_task()
            with scope, suppress(asyncio.CancelledError):
                async with StdioConnectionManager(python_server("input()")).open_connection():
                    pass

        monkeypatch.setattr(_server_process, "spawned", driven)
        async with anyio.create_task_group() as tg:
            tg.start_soon(hold)
        return points >= k

    def left():
        return {each for each in resources() if each.startswith(("process", "descriptor"))}

    for k in count(1):
        before = left()
        was_cancelled = await is_cancelled_at(k)
        for process in processes:
            await anyio.to_thread.run_sync(process.wait, 1)
        await threads_ended()
        assert left() <= before
        if not was_cancelled:
            break
    assert k > 1


@pytest.mark.parametrize("error", [OSError("no"), MemoryError("no"), ValueError("no")])
async def test_O10_errors_of_popen_propagate(popen, error):
    popen.error = error
    popen.let_go.set()
    manager = StdioConnectionManager(TINY)
    with pytest.raises(type(error)) as caught:
        await manager.start()
    assert caught.value is error
    assert manager.pid is None


async def test_ten_servers_start_concurrently(monkeypatch):
    """Each `Popen` waits until the other nine are running, too."""
    barrier = threading.Barrier(10)

    def popen(*args, **options):
        barrier.wait(20)
        return subprocess.Popen(*args, **options)

    monkeypatch.setattr(_spawning, "Popen", popen)
    managers = [StdioConnectionManager(TINY) for _ in range(10)]
    async with anyio.create_task_group() as tg:
        for manager in managers:
            tg.start_soon(manager.start)
    assert len({manager.pid for manager in managers}) == 10
    async with anyio.create_task_group() as tg:
        for manager in managers:
            tg.start_soon(manager.stop)
    assert [manager.returncode for manager in managers] == [0] * 10


async def test_S8_a_server_that_other_code_reaped_before_a_pidfd_was_opened(monkeypatch):
    """Its id may be in use again, so nobody is signaled."""
    process = subprocess.Popen(["false"], stdin=subprocess.PIPE)  # noqa: ASYNC220 - ends at once
    os.waitpid(process.pid, 0)  # noqa: ASYNC222
    group = _process_group.ProcessGroup(process, keep_children=False)
    monkeypatch.setattr(os, "killpg", pytest.fail)
    assert await group.leader_exited() is None
    assert await group.leader_exited() is None
    group.send_signal(signal.SIGKILL)
    assert group.close() is None


async def test_only_the_first_reason_of_a_loss_is_reported():
    """The end of a pipe and the exit can be detected at the same time."""
    reasons = []
    process = SimpleNamespace(
        _reported=anyio.Event(), _group=SimpleNamespace(is_over=False), _on_lost=reasons.append
    )
    for reason in (EOFError("first"), EOFError("second")):
        _server_process._Server._report(process, reason)
    assert [str(reason) for reason in reasons] == ["first"]
