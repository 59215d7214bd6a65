"""Checks that an idle second uses no CPU time, after each kind of failure."""

import socket
import time
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from mcp import StdioServerParameters
from probe import Probe, Stage, raises
from servers import MUTE

from ownertask import ConnectionManager, ConnectionState
from ownertask.mcp import SessionConnectionManager, StdioConnectionManager


async def crash():
    async with anyio.create_task_group() as tg:
        tg.start_soon(raises(OSError("crash")))
        await anyio.sleep_forever()


def swallowing(stage):
    async def swallow():
        while not stage.let_go.is_set():
            with suppress(anyio.get_cancelled_exc_class()):
                await stage.let_go.wait()

    return swallow


@asynccontextmanager
async def open_closed_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with await anyio.connect_tcp(*unused.getsockname()) as stream:
            yield stream


CASES = {
    "opening raises": lambda _: Probe(raises(OSError("opening"))),
    "opening crashes": lambda _: Probe(crash),
    "opening hangs": lambda _: Probe(anyio.sleep_forever),
    "opening is shielded": Probe,
    "closing raises": lambda _: Probe(closing=raises(OSError("closing"))),
    "closing hangs": lambda _: Probe(closing=anyio.sleep_forever),
    "closing is shielded": lambda stage: Probe(closing=stage),
    "closing swallows cancellations": lambda stage: Probe(closing=swallowing(stage)),
    "the connection is lost": lambda _: Probe(),
    "the connection is open": lambda _: Probe(),
    "the port is closed": lambda _: ConnectionManager.from_factory(open_closed_port),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.within(20)
async def test_an_idle_second_uses_no_cpu_time_after(case, grace):
    stage = Stage(shield=True)
    manager = CASES[case](stage)
    try:
        with suppress(OSError):  # includes TimeoutError
            await manager.start(timeout=0.05)
        if case == "the connection is lost":
            manager.connection_lost()
        elif case != "the connection is open":
            with suppress(TimeoutError):
                await manager.stop(timeout=0.01)
        await assert_no_cpu_time_is_used()
        assert (manager.state is ConnectionState.CLOSING) == ("shielded" in case or "swallows" in case)
    finally:
        stage.let_go.set()
        await manager.stop()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.within(20)
async def test_an_idle_second_uses_no_cpu_time_after_servers_fail():
    missing = StdioConnectionManager(StdioServerParameters(command="ownertask-has-no-such-command"))
    mute = SessionConnectionManager(MUTE, start_timeout=0.1)
    for manager in (missing, mute):
        with pytest.raises(OSError, match="."):
            await manager.start()
    await assert_no_cpu_time_is_used()


async def assert_no_cpu_time_is_used():
    before = time.process_time()
    await anyio.sleep(1)
    assert time.process_time() - before < 0.05
