"""Tests for stdio servers: starting and stopping them, and reporting their errors."""

import asyncio
import logging
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint
from conftest import resources
from mcp import StdioServerParameters
from probe import raises
from servers import MUTE, STUBBORN, TINY, python_server

from ownertask import ConnectionLostError, ConnectionState, ConnectionStoppedError, StartTimeoutError
from ownertask.mcp import SessionConnectionManager, StdioConnectionManager, _sdk

only_posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
slow = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


def processes():
    return {resource for resource in resources() if resource.startswith("process")}


async def test_the_connection_is_a_pair_of_streams():
    manager = StdioConnectionManager(TINY)
    assert manager.get_streams() is None
    async with manager as streams:
        assert manager.get_streams() is streams
        read_stream, write_stream = streams
        assert hasattr(read_stream, "receive")
        assert hasattr(write_stream, "send")
    assert manager.get_streams() is None


@slow
@pytest.mark.within(20)
async def test_C4_a_server_that_ignores_eof_and_sigterm_is_gone_when_stop_returns():
    manager = StdioConnectionManager(STUBBORN)
    before = processes()
    await manager.start()
    assert processes() - before
    await manager.stop()
    assert processes() == before
    assert manager.state is ConnectionState.CLOSED


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.within(20)
async def test_P7_a_native_cancel_of_the_owner_task_leaves_no_process(times):
    manager = StdioConnectionManager(STUBBORN)
    before = processes()
    await manager.start()
    [owner] = [task for task in asyncio.all_tasks() if "owner task of " in task.get_name()]
    for _ in range(times):
        owner.cancel()
        await asyncio.sleep(0)
    with pytest.raises(ConnectionLostError):
        await manager.wait_closed()
    assert processes() == before


@only_posix
@slow
@pytest.mark.parametrize(
    "server",
    [
        pytest.param(STUBBORN, id="ignores everything"),
        pytest.param(MUTE, id="never reads"),
        pytest.param(
            python_server("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"), id="is stopped"
        ),
    ],
)
@pytest.mark.within(30)  # stopping them one by one would take longer
async def test_C4_ten_servers_that_do_not_exit_can_be_stopped_concurrently(server):
    managers = [StdioConnectionManager(server) for _ in range(10)]
    before = processes()
    async with anyio.create_task_group() as tg:
        for manager in managers:
            tg.start_soon(manager.start)
    assert len(processes() - before) == 10
    async with anyio.create_task_group() as tg:
        for manager in managers:
            tg.start_soon(manager.stop)
    assert processes() == before
    assert {manager.state for manager in managers} == {ConnectionState.CLOSED}


@only_posix
@slow
@pytest.mark.parametrize("holds", ["nothing", "the pipes"])
@pytest.mark.parametrize("how", ["stopped", "killed"])
@pytest.mark.within(20)
# With the oldest supported anyio, asyncio leaves a pipe to the garbage collector if its other end is
# still open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_P10_a_child_process_that_outlives_the_server_is_left_running(holds, how):
    """mcp 1.x and 2.x do the same. If the child holds the pipes, the server's death is not detected."""
    pipes = "" if holds == "the pipes" else ", **dict.fromkeys(['stdin', 'stdout', 'stderr'], -3)"
    server = python_server(
        "import os, subprocess, sys\n"
        "code = 'import time; time.sleep(600)'\n"
        f"child = subprocess.Popen([sys.executable, '-c', code]{pipes})\n"
        "print(os.getpid(), child.pid, file=sys.stderr, flush=True)\n"
        "sys.stdin.read()"
    )
    errlog = Pids()
    manager = StdioConnectionManager(server, errlog)
    try:
        reader, _ = await manager.start()
        await errlog.complete.wait()
        process_id, child_id = map(int, errlog.text.split())
        if how == "killed":
            os.kill(process_id, signal.SIGKILL)
            with anyio.move_on_after(0.5 if holds == "the pipes" else None) as waiting:
                with pytest.raises(anyio.EndOfStream):
                    await reader.receive()
            assert waiting.cancelled_caught == (holds == "the pipes")
        await manager.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)
        os.kill(child_id, 0)
    finally:
        os.kill(child_id, signal.SIGKILL)


class Pids:
    def __init__(self):
        self.text = ""
        self.complete = anyio.Event()

    def write(self, text):
        self.text += text
        if self.text.endswith("\n"):
            self.complete.set()


@slow
@pytest.mark.parametrize(
    "code",
    [
        pytest.param("for _ in range(8_000): print('x' * 999)", id="floods its stdout"),
        pytest.param(
            "for _ in range(8_000): print('x' * 999, end='')", id="prints without an end of line"
        ),
    ],
)
@pytest.mark.within(30)
async def test_O12_a_server_that_sends_no_valid_message_causes_a_start_timeout(code):
    """The output ends after 8 MB because the SDK needs quadratic time to read a long line."""
    code += "\nimport time; time.sleep(600)"
    manager = SessionConnectionManager(python_server(code), start_timeout=0.5)
    before = processes()
    logging.getLogger("mcp.client.stdio").setLevel(logging.CRITICAL)  # it would log every line
    try:
        with pytest.raises(StartTimeoutError):
            await manager.start()
    finally:
        logging.getLogger("mcp.client.stdio").setLevel(logging.NOTSET)
    assert processes() == before


async def test_the_server_gets_only_the_safe_variables_and_those_in_env(monkeypatch):
    monkeypatch.setenv("OWNERTASK_TESTS_TOKEN", "s3cret")
    server = python_server("import os, sys; print(*os.environ, file=sys.stderr); sys.stdin.read()")
    server.env = {"OF_ITS_OWN": "1"}
    manager = StdioConnectionManager(server)
    async with manager:
        pass
    names = set(manager.stderr_tail.split())
    assert {"OF_ITS_OWN", "PATH"} <= names
    assert "OWNERTASK_TESTS_TOKEN" not in names


async def test_O13_an_encoding_error_handler_set_by_the_user_is_kept():
    server = python_server("import os, sys; os.write(1, b'\\xff\\n'); sys.stdin.read()")
    for handler, seen in ((None, "\ufffd"), ("replace", "\ufffd"), ("ignore", "")):
        if handler is not None:
            server = server.model_copy(update={"encoding_error_handler": handler})
        async with StdioConnectionManager(server) as (reader, _):
            error = await reader.receive()
        assert error.errors()[0]["input"] == seen
    assert "encoding_error_handler" not in TINY.model_fields_set  # the user's object is not modified


@pytest.mark.within(20)
async def test_O17_a_stop_while_the_server_process_is_starting_leaves_no_process():
    manager = StdioConnectionManager(STUBBORN)
    before = processes()

    async def start():
        with suppress(ConnectionStoppedError):
            await manager.start()

    for turns in range(5):
        async with anyio.create_task_group() as tg:
            tg.start_soon(start)
            for _ in range(turns):
                await checkpoint()
            await manager.stop(timeout=0)
            assert processes() == before


def test_P8_the_end_of_the_event_loop_ends_the_server(anyio_backend_name):
    manager = StdioConnectionManager(MUTE)
    before = processes()
    anyio.run(manager.start, backend=anyio_backend_name)
    assert processes() == before
    assert manager.state is ConnectionState.FAILED


@pytest.mark.parametrize("anyio_backend_name", ["asyncio", "trio"])
def test_a_server_can_be_started_in_one_event_loop_after_another(anyio_backend_name):
    manager = StdioConnectionManager(TINY)

    async def cycle():
        async with manager:
            pass

    for _ in range(2):
        anyio.run(cycle, backend=anyio_backend_name)


@pytest.mark.parametrize(
    ("server_params", "error"),
    [
        (StdioServerParameters(command="ownertask-has-no-such-command"), FileNotFoundError),
        (StdioServerParameters(command=__file__), PermissionError),
        (StdioServerParameters(command=sys.executable, cwd="/no/such/folder"), FileNotFoundError),
    ],
)
async def test_O10_start_raises_the_os_error_if_the_server_cannot_be_started(server_params, error):
    manager = StdioConnectionManager(server_params)
    before = processes()
    with pytest.raises(error):
        await manager.start()
    assert processes() == before


def test_O10_the_constructor_rejects_invalid_arguments():
    with pytest.raises(TypeError, match="server_params must be StdioServerParameters, not str"):
        StdioConnectionManager("python")
    for command in ("", "  "):
        with pytest.raises(ValueError, match=r"server_params\.command must not be empty"):
            StdioConnectionManager(StdioServerParameters(command=command))
    for parameters in (
        {"command": "a\0b"},
        {"args": ["s3cret\0"]},
        {"env": {"A\0": "b"}},
        {"env": {"A": "s3cret\0"}},
        {"cwd": "/\0"},
    ):
        with pytest.raises(ValueError, match=r"\.env and \.cwd must not contain NUL") as caught:
            StdioConnectionManager(StdioServerParameters(**{"command": "a", **parameters}))
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("python", "python"),
        ("/usr/bin/python3", "python3"),
        ("C:\\Tools\\node.exe", "node.exe"),
        ("server --token=s3cret", "server"),
    ],
)
def test_the_default_name_shows_only_the_base_name_of_the_command(command, name):
    manager = StdioConnectionManager(StdioServerParameters(command=command))
    assert manager.name == f"StdioConnectionManager({name})"
    assert StdioConnectionManager(TINY, name="files").name == "files"


async def test_arguments_and_environment_values_never_appear_in_names_errors_or_logs(caplog):
    secret = "s3cret"
    server_params = StdioServerParameters(
        command=sys.executable,
        args=["-c", "import sys; sys.exit(0)", f"--token={secret}"],
        env={"TOKEN": secret},
    )
    manager = StdioConnectionManager(server_params)
    with caplog.at_level(logging.DEBUG, logger="ownertask"):
        async with manager:
            assert secret not in repr(manager)
        failing = StdioConnectionManager(
            StdioServerParameters(command="ownertask-has-no-such-command", args=[secret])
        )
        with pytest.raises(FileNotFoundError) as caught:
            await failing.start()
    assert secret not in f"{caught.value} {caught.value.__notes__} {failing!r} {failing.name}"
    assert secret not in caplog.text


async def test_O11_writing_to_a_server_that_exited_is_reported_as_connection_closed(monkeypatch):
    """Forces a race condition that occasionally occurs in mcp 1.x."""

    @asynccontextmanager
    async def stdio_client(server, errlog):
        sender, receiver = anyio.create_memory_object_stream()
        async with anyio.create_task_group() as tg, sender, receiver:
            tg.start_soon(raises(anyio.BrokenResourceError()))
            yield receiver, sender

    monkeypatch.setattr(_sdk, "stdio_client", stdio_client)
    manager = StdioConnectionManager(TINY)
    await manager.start()
    with pytest.raises(ConnectionLostError) as caught:
        await manager.wait_closed()
    assert str(caught.value.__cause__) == "Connection closed"
    assert type(caught.value.__cause__).__module__ == "mcp.shared.exceptions"


async def test_killing_a_server_that_already_exited_is_not_an_error(monkeypatch):
    """Forces another race condition of mcp 1.x."""

    @asynccontextmanager
    async def stdio_client(server, errlog):
        sender, receiver = anyio.create_memory_object_stream()
        try:
            yield receiver, sender
        finally:
            raise ProcessLookupError

    monkeypatch.setattr(_sdk, "stdio_client", stdio_client)
    manager = StdioConnectionManager(TINY)
    await manager.start()
    await manager.stop(timeout=0)
    assert manager.state is ConnectionState.CLOSED
    with pytest.raises(ExceptionGroup):  # the same error from the user's code still propagates
        async with manager.open_connection():
            os.kill(2**22 + 1, signal.SIGCONT)


def loop_without_subprocesses(base, error=NotImplementedError):
    class LoopWithoutSubprocesses(base):
        async def subprocess_exec(self, *args, **options):
            raise error

    return LoopWithoutSubprocesses


@pytest.mark.parametrize("kind", [StdioConnectionManager, SessionConnectionManager])
@pytest.mark.parametrize("error", [NotImplementedError, NotImplementedError("by the loop")])
@pytest.mark.parametrize("eager", [False, True])
@only_posix  # on Windows, mcp 1.x then starts the server without the event loop
# If starting a server fails with an error that is not an OSError, mcp 1.x does not close its streams.
@pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_F24_an_event_loop_that_cannot_start_subprocesses_is_named_in_the_error(kind, error, eager):
    if eager and sys.version_info < (3, 12):
        pytest.skip("Python 3.11 has no eager tasks")
    server = python_server("s3cret")
    server.env = {"TOKEN": "s3cret"}
    manager = kind(server)
    caught = []

    async def main():
        for _ in range(2):
            with pytest.raises(NotImplementedError) as info:
                await manager.start()
            caught.append(info.value)

    def loop_factory():
        loop = loop_without_subprocesses(asyncio.SelectorEventLoop, error)()
        if eager:
            loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    anyio.run(main, backend_options={"loop_factory": loop_factory})
    for exc in caught:
        assert str(exc) == (
            f"the event loop {__name__}.loop_without_subprocesses.<locals>.LoopWithoutSubprocesses "
            "cannot start subprocesses; use asyncio's default event loop, uvloop or trio"
        )
        assert isinstance(exc.__cause__, NotImplementedError)
        assert exc.__notes__ == [f"ownertask: raised by {manager.name} while opening"]
        assert "s3cret" not in repr(exc)
    assert manager.state is ConnectionState.FAILED
