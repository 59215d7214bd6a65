"""Measures how long server processes take to start and to stop, and how soon a loss is detected."""

import os
import signal
from functools import partial
from time import perf_counter

import anyio
from mcp import stdio_client
from stdio import server

from ownertask import ConnectionLostError
from ownertask.mcp import SessionConnectionManager, StdioConnectionManager


async def all_at_once(functions):
    async with anyio.create_task_group() as tg:
        for function in functions:
            tg.start_soon(function)


async def opening(number):
    """Returns the time to open sessions at once, to servers that need half a second to be ready."""
    managers = [SessionConnectionManager(server(seconds=0.5)) for _ in range(number)]
    before = perf_counter()
    await all_at_once(manager.start for manager in managers)
    seconds = perf_counter() - before
    await all_at_once(manager.stop for manager in managers)
    return seconds


async def cycle(number):
    """Returns the time to start servers at once, and to stop them at once."""
    managers = [StdioConnectionManager(server()) for _ in range(number)]
    before = perf_counter()
    await all_at_once(manager.start for manager in managers)
    await all_at_once(manager.stop for manager in managers)
    return perf_counter() - before


async def bare_cycle(number):
    """Does the same with the SDK, in a task for each server."""
    unopened, all_open = number, anyio.Event()

    async def run():
        nonlocal unopened
        async with stdio_client(server()):
            unopened -= 1
            if not unopened:
                all_open.set()
            await all_open.wait()

    before = perf_counter()
    await all_at_once([run] * number)
    return perf_counter() - before


async def loss():
    """Returns the time from the death of a server until `wait_closed()` raises."""
    transport = StdioConnectionManager(server())
    manager = SessionConnectionManager(transport)
    await manager.start()
    os.kill(transport.pid, signal.SIGKILL)
    before = perf_counter()
    try:
        await manager.wait_closed()
    except ConnectionLostError:
        return perf_counter() - before
    raise AssertionError("the loss was not noticed")


async def main(report):
    ten, one = partial(opening, 10), partial(opening, 1)
    await report.compare("open ten slow servers at once", "one slow server", ten, one, 10, goal=1.2)
    for label, number in (("a server", 1), ("ten servers", 10)):
        ours, bare = partial(cycle, number), partial(bare_cycle, number)
        rounds = 60 if number == 1 else 20
        await report.compare(f"start and stop {label}", "the bare SDK", ours, bare, rounds)
    losses = [await loss() * 1000 for _ in range(report.rounds(100))]
    report.add("from SIGKILL to the end of wait_closed()", "", losses, 10, unit="ms")


def measure(report):
    anyio.run(main, report, backend=report.backend)
