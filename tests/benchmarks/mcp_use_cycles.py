"""Compares starting and stopping a trivial connection with mcp-use's manager, with both in one process.

That manager can be started only once, so the other side has a new one in each cycle.
"""

import asyncio
from functools import partial
from importlib.metadata import version
from time import thread_time

from hand_written import trivial
from mcp_use.client.task_managers.base import ConnectionManager as McpUseManager

from ownertask import ConnectionManager

COUNT = 200


class Trivial(McpUseManager[int]):
    """Does what mcp-use's own subclasses do."""

    async def _establish_connection(self):
        self.context_manager = trivial()
        return await self.context_manager.__aenter__()

    async def _close_connection(self):
        await self.context_manager.__aexit__(None, None, None)


async def cycles(managers):
    """Returns the time for one cycle."""
    before = thread_time()
    for manager in managers():
        await manager.start()
        await manager.stop()
    return (thread_time() - before) / COUNT


def new(create):
    """Creates a manager for each cycle, within the measured time."""
    return (create() for _ in range(COUNT))


async def compare(report):
    create = partial(ConnectionManager.from_factory, trivial)
    to = f"mcp-use {version('mcp-use')}"
    one = [create()] * COUNT
    ours, bare = partial(cycles, partial(new, create)), partial(cycles, partial(new, Trivial))
    await report.compare("create, start and stop", to, ours, bare, 200, goal=1.0)
    ours = partial(cycles, lambda: one)
    await report.compare("start and stop", to, ours, bare, 200, goal=1.0)


def measure(report):
    asyncio.run(compare(report))
