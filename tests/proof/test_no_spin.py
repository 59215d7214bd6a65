"""After a failure of any kind, a second in which nothing happens costs no CPU time."""

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
async def refused():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with await anyio.connect_tcp(*unused.getsockname()) as stream:
            yield stream


CASES = {
    "opening raises": lambda _: Probe(raises(OSError("opening"))),
    "opening crashes": lambda _: Probe(crash),
    "opening hangs": lambda _: Probe(anyio.sleep_forever),
    "opening shields itself": Probe,
    "closing raises": lambda _: Probe(closing=raises(OSError("closing"))),
    "closing hangs": lambda _: Probe(closing=anyio.sleep_forever),
    "closing shields itself": lambda stage: Probe(closing=stage),
    "closing swallows cancellations": lambda stage: Probe(closing=swallowing(stage)),
    "it is lost": lambda _: Probe(),
    "it is open": lambda _: Probe(),
    "its port is refused": lambda _: ConnectionManager.from_factory(refused),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.within(20)
async def test_nothing_spins_after(case, grace):
    stage = Stage(shield=True)
    manager = CASES[case](stage)
    try:
        with suppress(OSError):  # of which time-outs are a kind
            await manager.start(timeout=0.05)
        if case == "it is lost":
            manager.connection_lost()
        elif case != "it is open":
            with suppress(TimeoutError):
                await manager.stop(timeout=0.01)
        await nothing_spins()
        assert (manager.state is ConnectionState.CLOSING) == ("s itself" in case or "swallows" in case)
    finally:
        stage.let_go.set()
        await manager.stop()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.within(20)
async def test_nothing_spins_after_servers_have_failed():
    missing = StdioConnectionManager(StdioServerParameters(command="ownertask-has-no-such-command"))
    mute = SessionConnectionManager(MUTE, start_timeout=0.1)
    for manager in (missing, mute):
        with pytest.raises(OSError, match="."):
            await manager.start()
    await nothing_spins()


async def nothing_spins():
    before = time.process_time()
    await anyio.sleep(1)
    assert time.process_time() - before < 0.05
