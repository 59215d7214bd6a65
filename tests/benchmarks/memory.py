"""Compares the memory of an idle connection and of a task that holds the same context manager."""

import asyncio
import gc
import tracemalloc

import anyio
import trio
from hand_written import trivial

from ownertask import ConnectionManager

COUNT = 2000


async def hold_asyncio():
    async with trivial():
        await asyncio.get_running_loop().create_future()


async def hold_trio():
    async with trivial():
        await trio.sleep_forever()


async def of_managers(count=COUNT):
    """Returns the bytes of one manager with its open connection."""
    managers = [None] * count
    before = allocated()
    for number in range(count):
        managers[number] = manager = ConnectionManager.from_factory(trivial)
        await manager.start()
    memory = allocated() - before
    for manager in managers:
        await manager.stop()
    return memory / count


async def of_asyncio_tasks(count=COUNT):
    tasks = [None] * count
    before = allocated()
    for number in range(count):
        tasks[number] = asyncio.create_task(hold_asyncio())
        await anyio.lowlevel.checkpoint()
    memory = allocated() - before
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return memory / count


async def of_trio_tasks(count=COUNT):
    async with trio.open_nursery() as nursery:
        before = allocated()
        for _ in range(count):
            nursery.start_soon(hold_trio)
            await trio.lowlevel.checkpoint()
        memory = allocated() - before
        nursery.cancel_scope.cancel()
    return memory / count


def allocated():
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def compare(report):
    bare = {"asyncio": of_asyncio_tasks, "trio": of_trio_tasks}[report.backend]
    tracemalloc.start()
    await report.compare("memory of an idle connection", "a task", of_managers, bare, 5, goal=1.8)
    tracemalloc.stop()


def measure(report):
    anyio.run(compare, report, backend=report.backend)
