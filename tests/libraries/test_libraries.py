"""Runs the examples for other libraries with real servers, which it kills and restarts."""

import asyncio
import gc
import logging
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import anyio
import pytest

from ownertask import ConnectionState, StartTimeoutError

ROOT = Path(__file__).parents[2]
PRINTED = {
    "aiomqtt": ["received: b'21 degrees'", "received: b'22 degrees'"],
    "asyncpg": ["before: 2", "after: 4"],
    "asyncssh": ["before: guest ran whoami", "after: guest ran whoami"],
    "grpc": ["before: ONE", "after: TWO"],
    "httpx": [
        "before: 200",
        "the request failed (All connection attempts failed), the client is still open",
        "after: 200",
    ],
    "psycopg_pool": ["before: 2", "after: 4"],
    "redis": ["visits: 1", "visits: 1"],  # the server keeps nothing
}
RECONNECTING = sorted(PRINTED.keys() - {"httpx"})
if not any(map(find_spec, RECONNECTING)):  # one skip for all libraries
    pytest.skip(
        f"{', '.join(RECONNECTING)} are not installed; `nox -s libraries` installs them",
        allow_module_level=True,
    )

asyncio_only = pytest.mark.usefixtures("asyncio_only")  # these libraries do not support trio
once = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.mark.parametrize("library", PRINTED)
def test_the_program_uses_two_connections_one_after_the_other(library, example):
    path = f"examples/libraries/with_{library}.py"
    command = [sys.executable, "-X", "dev", path]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert printed.stdout.splitlines() == [*PRINTED[library], "closed"]
    assert "Warning: " not in printed.stderr
    assert "Exception ignored" not in printed.stderr


@asyncio_only
@pytest.mark.within(30)
@pytest.mark.parametrize("library", PRINTED)
async def test_a_killed_server_is_replaced_and_nothing_is_left(library, example, server, capsys):
    await example.main(server)
    assert capsys.readouterr().out.splitlines() == [*PRINTED[library], "closed"]


@pytest.fixture
def manager(library, example, server):
    """A manager for a running server."""
    address = f"127.0.0.1:{server.port}"
    database = f"postgresql://postgres@{address}/postgres"
    return {
        "aiomqtt": lambda: example.mqtt_manager(server.port, "rooms/#", print),
        "asyncpg": lambda: example.postgres_manager(database),
        "asyncssh": lambda: example.ssh_manager(server.port, f"{server.folder}/known_hosts"),
        "grpc": lambda: example.channel_manager(address),
        "psycopg_pool": lambda: example.PoolManager(database, reconnect_timeout=0.2),
        "redis": lambda: example.redis_manager(f"redis://{address}", ping_interval=0.1),
    }[library]()


@asyncio_only
@once
@pytest.mark.within(30)
@pytest.mark.parametrize("library", RECONNECTING)
async def test_a_start_waits_for_a_server_that_is_down(library, manager, server):
    server.kill()
    manager.start_timeout = 1.0  # a channel keeps trying
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(manager.start)
        await reconnecting(manager)
        server.start()
    assert manager.state is ConnectionState.OPEN
    await manager.stop()


@asyncio_only
@once
@pytest.mark.within(30)
@pytest.mark.parametrize("library", RECONNECTING)
async def test_a_stop_while_the_server_is_down_leaves_nothing(library, example, manager, server):
    await manager.start()
    server.kill()
    if library == "psycopg_pool":
        with pytest.raises(example.OperationalError):
            await example.add(manager, 1, 1)  # an idle pool does not detect the loss
    await reconnecting(manager)
    await manager.stop()
    assert manager.state is ConnectionState.CLOSED


@asyncio_only
@once
@pytest.mark.within(30)
@pytest.mark.parametrize("library", sorted({*RECONNECTING} - {"aiomqtt", "grpc"}))
async def test_a_start_gives_up_on_a_silent_server_and_leaves_nothing(library, manager, server, caplog):
    """aiomqtt 2.5 does not close the socket of such an attempt, and gRPC 1.85 takes 20 seconds."""
    caplog.set_level(logging.ERROR, "psycopg.pool")  # records keep exceptions, which keep sockets
    server.kill()
    with socket.create_server(("127.0.0.1", server.port)):
        before = sockets_and_tasks()
        with pytest.raises(StartTimeoutError):
            await manager.start(0.5)
        assert sockets_and_tasks() == before
    assert manager.state is ConnectionState.FAILED


def sockets_and_tasks():
    """Counts open sockets while the silent server still exists. Its end would also close them."""
    gc.collect()  # garbage does not count
    sockets = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of the directory
            sockets += str(descriptor.readlink()).startswith("socket:")
    return sockets, asyncio.all_tasks()


async def reconnecting(manager):
    """Waits until the manager reports a failure. Uses the connection if a loss would not be detected."""
    failed = anyio.Event()

    def on_change(manager, old, new):
        if new is ConnectionState.FAILED:
            failed.set()

    manager.add_listener(on_change)
    await failed.wait()
    manager.remove_listener(on_change)


END_CONNECTION = {  # while the server keeps running
    "asyncpg": lambda connection: connection.execute("SELECT pg_terminate_backend(pg_backend_pid())"),
    "redis": lambda client: client.client_kill_filter(_type="normal", skipme=False),
}


@asyncio_only
@once
@pytest.mark.within(30)
@pytest.mark.parametrize("library", END_CONNECTION)
async def test_a_connection_that_the_server_ends_is_replaced(library, example, server, manager):
    connection = await manager.start()
    async with example.loss_of(manager):
        with suppress(Exception):  # the call fails, or succeeds just before
            await END_CONNECTION[library](connection)
    assert await manager.wait_open() is not connection
    await manager.stop()
