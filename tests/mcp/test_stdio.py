"""A server as a subprocess: what starts it, what ends it, and what is said of it."""

import logging
import sys
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint
from conftest import resources
from mcp import StdioServerParameters
from probe import raises
from servers import MUTE, STUBBORN, TINY

from mooring import ConnectionLostError, ConnectionState, ConnectionStoppedError
from mooring.mcp import StdioConnectionManager, _sdk

slow = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


def processes():
    return {resource for resource in resources() if resource.startswith("process")}


async def test_the_connection_is_the_pair_of_streams():
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
async def test_C4_a_server_that_ignores_everything_is_gone_when_stop_returns():
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
async def test_P7_a_native_cancel_of_the_owner_leaves_no_process(times):
    import asyncio

    manager = StdioConnectionManager(STUBBORN)
    before = processes()
    await manager.start()
    [owner] = [task for task in asyncio.all_tasks() if "mooring owner" in task.get_name()]
    for _ in range(times):
        owner.cancel()
        await asyncio.sleep(0)
    with pytest.raises(ConnectionLostError):
        await manager.wait_closed()
    assert processes() == before


@slow
@pytest.mark.within(20)
async def test_ten_stubborn_servers_are_stopped_at_once_and_together():
    managers = [StdioConnectionManager(STUBBORN) for _ in range(10)]
    before = processes()
    async with anyio.create_task_group() as tg:
        for manager in managers:
            tg.start_soon(manager.start)
    async with anyio.create_task_group() as tg:
        for manager in managers:
            tg.start_soon(manager.stop)
    assert processes() == before


@pytest.mark.within(20)
async def test_O17_a_stop_while_the_server_is_being_spawned_leaves_no_process():
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


def test_P8_a_loop_that_ends_ends_the_server(anyio_backend_name):
    manager = StdioConnectionManager(MUTE)
    before = processes()
    anyio.run(manager.start, backend=anyio_backend_name)
    assert processes() == before
    assert manager.state is ConnectionState.FAILED


@pytest.mark.parametrize("anyio_backend_name", ["asyncio", "trio"])
def test_a_server_can_be_started_in_one_run_after_another(anyio_backend_name):
    manager = StdioConnectionManager(TINY)

    async def cycle():
        async with manager:
            pass

    for _ in range(2):
        anyio.run(cycle, backend=anyio_backend_name)


@pytest.mark.parametrize(
    ("server_params", "error"),
    [
        (StdioServerParameters(command="mooring-has-no-such-command"), FileNotFoundError),
        (StdioServerParameters(command=__file__), PermissionError),
        (StdioServerParameters(command=sys.executable, cwd="/no/such/folder"), FileNotFoundError),
    ],
)
async def test_O10_a_server_that_cannot_be_started_raises_why(server_params, error):
    manager = StdioConnectionManager(server_params)
    before = processes()
    with pytest.raises(error):
        await manager.start()
    assert processes() == before


def test_O10_bad_input_is_refused_before_anything_is_started():
    with pytest.raises(TypeError, match="server_params must be StdioServerParameters, not str"):
        StdioConnectionManager("python")
    for command in ("", "  "):
        with pytest.raises(ValueError, match=r"server_params\.command must not be empty"):
            StdioConnectionManager(StdioServerParameters(command=command))
    for command, argument in (("a\0b", "c"), ("a", "s3cret\0")):
        with pytest.raises(ValueError, match=r"\.args must not contain NUL") as caught:
            StdioConnectionManager(StdioServerParameters(command=command, args=[argument]))
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
def test_the_default_name_is_the_base_name_of_the_command(command, name):
    manager = StdioConnectionManager(StdioServerParameters(command=command))
    assert manager.name == f"StdioConnectionManager({name})"
    assert StdioConnectionManager(TINY, name="files").name == "files"


async def test_no_argument_and_no_environment_value_is_shown_anywhere(caplog):
    secret = "s3cret"
    server_params = StdioServerParameters(
        command=sys.executable,
        args=["-c", "import sys; sys.exit(0)", f"--token={secret}"],
        env={"TOKEN": secret},
    )
    manager = StdioConnectionManager(server_params)
    with caplog.at_level(logging.DEBUG, logger="mooring"):
        async with manager:
            assert secret not in repr(manager)
        failing = StdioConnectionManager(
            StdioServerParameters(command="mooring-has-no-such-command", args=[secret])
        )
        with pytest.raises(FileNotFoundError) as caught:
            await failing.start()
    assert secret not in f"{caught.value} {caught.value.__notes__} {failing!r} {failing.name}"
    assert secret not in caplog.text


async def test_the_servers_stderr_goes_where_it_is_told(tmp_path):
    path = tmp_path / "errors"
    code = "import sys; sys.stderr.write('hello'); sys.stderr.flush(); sys.stdin.read()"
    with path.open("w") as errlog:
        manager = StdioConnectionManager(
            StdioServerParameters(command=sys.executable, args=["-c", code]), errlog
        )
        async with manager:
            while not path.read_text():  # another process's doing, of which nothing here is told
                await anyio.sleep(0.01)
    assert path.read_text() == "hello"


async def test_without_an_errlog_it_goes_to_sys_stderr_as_it_is_at_the_start(monkeypatch, tmp_path):
    path = tmp_path / "errors"
    manager = StdioConnectionManager(
        StdioServerParameters(
            command=sys.executable, args=["-c", "import sys; sys.stderr.write('hello')"]
        )
    )
    with path.open("w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", file)
        async with manager:
            while not path.read_text():
                await anyio.sleep(0.01)
    assert path.read_text() == "hello"


async def test_O11_writing_to_a_server_that_has_gone_says_that_the_connection_is_closed(monkeypatch):
    """A race that the SDK's 1.x loses now and then, made certain."""

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
