"""Tests for stdio servers: starting and stopping them, and reporting their errors."""

import asyncio
import logging
import sys
from contextlib import suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint
from conftest import resources
from mcp import StdioServerParameters
from servers import MUTE, SHORT_BOUNDS, STUBBORN, TINY, python_server

from ownertask import ConnectionLostError, ConnectionState, ConnectionStoppedError, StartTimeoutError
from ownertask.mcp import SessionConnectionManager, StdioConnectionManager

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
    code += "\nimport time; time.sleep(600)"
    transport = StdioConnectionManager(python_server(code), **SHORT_BOUNDS)
    manager = SessionConnectionManager(transport, start_timeout=0.5)
    before = processes()
    with pytest.raises(StartTimeoutError):
        await manager.start()
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
    server = python_server("import os, sys; os.write(1, b'\\xffx\\n'); sys.stdin.read()")
    for handler, seen in ((None, "\ufffdx"), ("replace", "\ufffdx"), ("ignore", "x")):
        if handler is not None:
            server = server.model_copy(update={"encoding_error_handler": handler})
        async with StdioConnectionManager(server) as (reader, _):
            error = await reader.receive()
        assert error.errors()[0]["input"] == seen
    assert "encoding_error_handler" not in TINY.model_fields_set  # the user's object is not modified


@pytest.mark.within(20)
async def test_O17_a_stop_while_the_server_process_is_starting_leaves_no_process():
    manager = StdioConnectionManager(STUBBORN, **SHORT_BOUNDS)
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
    manager = StdioConnectionManager(MUTE, **SHORT_BOUNDS)
    before = processes()
    anyio.run(manager.start, backend=anyio_backend_name)
    assert processes() == before
    assert manager.state is ConnectionState.FAILED


def test_P8_a_healthy_server_exits_on_its_own_at_the_end_of_the_event_loop(anyio_backend, caplog):
    """`asyncio.run()` then cancels all tasks, also those that watch the server."""
    manager = StdioConnectionManager(TINY)
    backend, options = anyio_backend
    anyio.run(manager.start, backend=backend, backend_options=options)
    assert manager.returncode == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


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
    for encoding in ("no-such-encoding", "base64"):
        with pytest.raises(ValueError, match=r"server_params\.encoding must be a text encoding, not '"):
            StdioConnectionManager(StdioServerParameters(command="a", encoding=encoding))
    with pytest.raises(TypeError, match="keep_children must be a boolean, not str"):
        StdioConnectionManager(TINY, keep_children="no")
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


class LoopWithoutSubprocesses(asyncio.SelectorEventLoop):
    async def subprocess_exec(self, *args, **options):
        raise NotImplementedError


@only_posix
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": LoopWithoutSubprocesses})])
async def test_F24_an_event_loop_that_cannot_start_subprocesses_can_run_servers():
    async with SessionConnectionManager(TINY) as session:
        assert not (await session.list_tools()).tools
