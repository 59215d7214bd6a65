"""Measures how the cost of an operation grows with a number, from 1 to 10,000.

Each result is the exponent with which the cost grows between 1,000 and 10,000: 1 if it is proportional.
Caches make even the exponent of plain tasks a little larger. The garbage collector is off, because a
full collection visits all objects of the process.
"""

import gc
import tracemalloc
from contextlib import asynccontextmanager
from functools import partial
from math import log
from statistics import median
from time import thread_time

import anyio
from anyio.lowlevel import checkpoint
from hand_written import TASKS, trivial

from ownertask import ConnectionGroup, ConnectionLostError, ConnectionManager, ConnectionPool

NUMBERS = (1, 10, 100, 1000, 10_000)
FROM, GOAL = 1000, 1.1
create = partial(ConnectionManager.from_factory, trivial)


async def all_at_once(functions):
    async with anyio.create_task_group() as tg:
        for function in functions:
            tg.start_soon(function)


async def start_and_stop(create, number):
    """Returns the times to start a number of managers at once, and to stop them."""
    managers = [create() for _ in range(number)]
    before = thread_time()
    await all_at_once(manager.start for manager in managers)
    started = thread_time()
    await all_at_once(manager.stop for manager in managers)
    return {"start": started - before, "stop": thread_time() - started}


async def group(number):
    members = ConnectionGroup({key: create() for key in range(number)})
    before = thread_time()
    await members.start()
    started = thread_time()
    await members.stop()
    return {"open": started - before, "close": thread_time() - started}


async def members(number):
    """Adds members to an open group one by one, and removes them."""
    group = ConnectionGroup({})
    async with group:
        before = thread_time()
        for key in range(number):
            await group.add(key, create())
        added = thread_time()
        for key in range(number):
            await group.remove(key)
        return {"add": added - before, "remove": thread_time() - added}


async def slots(number):
    """Returns the time in which a number of tasks use different keys of a pool with one connection."""

    async def use(key):
        async with pool.acquire(key):
            await checkpoint()

    async with ConnectionPool(lambda _key: create(), max_open=1) as pool:
        before = thread_time()
        await all_at_once(partial(use, key) for key in range(number))
        return {"slots": thread_time() - before}


async def pool(number):
    """Uses one key after another, one key in many tasks, and then closes all of them."""

    async def use(pool):
        async with pool.acquire("key"):
            await checkpoint()

    connections = ConnectionPool(lambda _key: create())
    await connections.start()
    before = thread_time()
    for key in range(number):
        async with connections.acquire(key):
            pass
    keys = thread_time()
    await all_at_once(partial(use, connections) for _ in range(number))
    tasks = thread_time()
    await connections.stop()
    return {"keys": keys - before, "tasks": tasks - keys, "close": thread_time() - tasks}


class Gate(ConnectionManager):
    """Opens when the gate opens."""

    def __init__(self):
        super().__init__()
        self.gate = anyio.Event()

    @asynccontextmanager
    async def open_connection(self):
        await self.gate.wait()
        yield self


async def waiters(number, *, method):
    """Returns the time in which a number of tasks call a method, wait for the opening and return."""
    manager = Gate()
    async with anyio.create_task_group() as tg:
        tg.start_soon(manager.start)
        await anyio.wait_all_tasks_blocked()  # wait_open() raises before the attempt begins
        before = thread_time()
        for _ in range(number):
            tg.start_soon(getattr(manager, method))
        await anyio.wait_all_tasks_blocked()
        manager.gate.set()
    seconds = thread_time() - before
    await manager.stop()
    return {"": seconds}


async def wait_closed(number):
    manager = create()
    await manager.start()
    before = thread_time()
    async with anyio.create_task_group() as tg:
        for _ in range(number):
            tg.start_soon(manager.wait_closed)
        await anyio.wait_all_tasks_blocked()
        await manager.stop()
    return {"": thread_time() - before}


async def listeners(number):
    manager = create()
    heard = []
    functions = [lambda *arguments, number=number: heard.append(number) for number in range(number)]
    before = thread_time()
    for function in functions:
        manager.add_listener(function)
    added = thread_time()
    await manager.start()
    await manager.stop()
    called = thread_time()
    for function in functions:
        manager.remove_listener(function)
    assert len(heard) == 4 * number, len(heard)
    return {"add": added - before, "call": called - added, "remove": thread_time() - called}


async def lost(number):
    """Reports the same loss many times, while as many tasks wait for the end."""
    manager = create()

    async def wait():
        try:
            await manager.wait_closed()
        except ConnectionLostError:
            pass

    await manager.start()
    before = thread_time()
    async with anyio.create_task_group() as tg:
        for _ in range(number):
            tg.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        for _ in range(number):
            manager.connection_lost()
    return {"": thread_time() - before}


async def memory(number):
    """Returns the memory of a number of idle connections, in bytes."""
    tracemalloc.start()
    managers = [create() for _ in range(number)]
    for manager in managers:
        await manager.start()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for manager in managers:
        await manager.stop()
    return {"": size}


async def grow(report, label, function, numbers=NUMBERS):
    """Adds the exponents of the growth, and the cost per item, compared with the cost at 1,000."""
    costs = {number: [] for number in numbers}
    for _ in range(report.rounds(9)):
        for number in numbers:
            gc.collect()
            gc.disable()
            costs[number].append(await function(number))
            gc.enable()
    last = numbers[-1]
    for part in costs[last][0]:
        pairs = zip(costs[last], costs[FROM], strict=True)
        exponents = [log(many[part] / few[part], last / FROM) for many, few in pairs]
        each = {number: median(cost[part] for cost in costs[number]) / number for number in numbers}
        each = {number: round(cost / each[FROM], 3) for number, cost in each.items()}
        report.add(f"{label}{part}", f"{FROM:,} to {last:,}", exponents, GOAL, "exponent", costs=each)


async def main(report):
    bare = partial(start_and_stop, TASKS[report.backend])
    await grow(report, "hand-written tasks, ", bare)
    await grow(report, "connections, ", partial(start_and_stop, create))
    await grow(report, "group, ", group)
    await grow(report, "group, ", members)
    await grow(report, "pool, ", pool)
    await grow(report, "pool, ", slots)
    for method in ("start", "wait_open"):
        await grow(report, f"waiters in {method}()", partial(waiters, method=method))
    many = partial(waiters, method="start")
    await grow(report, "waiters in start()", many, (FROM, 16_000))
    await grow(report, "waiters in wait_closed()", wait_closed)
    await grow(report, "listeners, ", listeners)
    await grow(report, "callers of connection_lost()", lost)
    await grow(report, "memory", memory)


def measure(report):
    anyio.run(main, report, backend=report.backend)
