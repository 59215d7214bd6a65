"""After every kind of failure, at once: a second in which nothing happens costs no CPU time."""

import time
from contextlib import suppress

import anyio
import pytest
from mcp import StdioServerParameters
from probe import Probe, Stage, raises
from servers import MUTE

from mooring import ConnectionManager
from mooring.mcp import SessionConnectionManager, StdioConnectionManager


async def swallow_cancellations(stage):
    while not stage.let_go.is_set():
        with anyio.CancelScope() as scope, suppress(anyio.get_cancelled_exc_class()):
            await stage.let_go.wait()
        del scope


async def crash():
    async with anyio.create_task_group() as tg:
        tg.start_soon(raises(ValueError("crash")))
        await anyio.sleep_forever()


@pytest.mark.within(60)
async def test_no_failure_leaves_anything_spinning(grace):
    stages = [Stage(shield=True), Stage(shield=True), Stage(shield=True)]
    shielded = Probe(closing=stages[0], name="shielded")
    stubborn = Probe(closing=lambda: swallow_cancellations(stages[1]), name="stubborn")
    stuck = Probe(opening=stages[2], name="stuck")
    lost = Probe(name="lost")
    idle = Probe(name="idle")
    refused = ConnectionManager.from_factory(lambda: tcp_connection("127.0.0.1", 1))
    missing = StdioConnectionManager(StdioServerParameters(command="no-such-command"))
    failing = [
        shielded,
        stubborn,
        Probe(raises(ValueError("opening"))),
        Probe(closing=raises(ValueError("closing"))),
        Probe(crash),
        Probe(anyio.sleep_forever),
        refused,
        missing,
        SessionConnectionManager(MUTE, start_timeout=0.1),
        lost,
        idle,
    ]
    errors = []
    for manager in failing:
        with suppress(Exception):
            await manager.start(timeout=0.2 if isinstance(manager, Probe) else None)
    with suppress(Exception):
        await stuck.start(timeout=0.01)
    lost.connection_lost()
    for manager in failing[:-1]:
        try:
            await manager.stop(timeout=0.01)
        except Exception as error:
            errors.append(type(error).__name__)
    assert errors == ["StopTimeoutError", "StopTimeoutError"]

    before = time.process_time()
    await anyio.sleep(1)
    took = time.process_time() - before
    for stage in stages:
        stage.let_go.set()
    for manager in [*failing, stuck]:
        await manager.stop()
    assert took < 0.05


def tcp_connection(host, port):
    return Connecting(host, port)


class Connecting:
    def __init__(self, host, port):
        self.target = host, port

    async def __aenter__(self):
        self.stream = await anyio.connect_tcp(*self.target)

    async def __aexit__(self, *_):
        await self.stream.aclose()
