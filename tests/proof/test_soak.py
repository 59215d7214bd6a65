"""Many starts, stops, kills and cancellations over stdio leave nothing that adds up.

`nox -s soak` takes 2,000 cycles.
"""

import gc
import os
import signal
import statistics
import sys
import tracemalloc
from itertools import combinations

import anyio
import pytest
from conftest import all_tasks, resources
from servers import TINY

from ownertask.mcp import SessionConnectionManager, StdioConnectionManager

CYCLES = 1000 if os.environ.get("OWNERTASK_PROOF") == "soak" else 36
# What one manager, one task or one frame that is left each time would cost at the least.
BYTES_PER_CYCLE = 400

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows"),
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]


async def start_and_stop(manager):
    await manager.start()
    await manager.stop()


async def stop_by_force(manager):
    await manager.start()
    await manager.stop(timeout=0)


async def kill(manager):
    before = resources()
    await manager.start()
    [server] = {name for name in resources() - before if name.startswith("process")}
    os.kill(int(server.split()[1]), signal.SIGKILL)
    await manager.stop()


async def cancel_the_start(manager):
    async with anyio.create_task_group() as tg:
        tg.start_soon(manager.start)
        await anyio.wait_all_tasks_blocked()
        tg.cancel_scope.cancel()


async def cancel_the_stop(manager):
    await manager.start()
    async with anyio.create_task_group() as tg:
        tg.start_soon(manager.stop)
        await anyio.wait_all_tasks_blocked()
        tg.cancel_scope.cancel()


async def hold(manager):
    async with manager:
        pass


WAYS = [start_and_stop, stop_by_force, kill, cancel_the_start, cancel_the_stop, hold]


def lasting_resources():
    # Below Python 3.12, asyncio's thread that has told of a child's end ends a moment after that.
    return {name for name in resources() if not name.startswith("thread asyncio-waitpid")}


def median_slope(values):
    """Of all pairs, so that what is loaded once, late, is no slope, and a leak is one (Theil-Sen)."""
    pairs = combinations(enumerate(values), 2)
    return statistics.median((b - a) / (n - m) for (m, a), (n, b) in pairs)


@pytest.mark.within(3000)
async def test_invariant_10_many_cycles_over_stdio_leave_nothing_that_adds_up(record_property):
    managers = [StdioConnectionManager(TINY), SessionConnectionManager(TINY)]
    ways = [(way, manager) for way in WAYS for manager in managers]

    async def cycle(number):
        way, manager = ways[number % len(ways)]
        await way(manager)
        await manager.stop()  # what was opened before it could be cancelled

    for number in range(len(ways)):  # so that what is made once is made
        await cycle(number)
    tasks, rest = len(all_tasks()), lasting_resources()
    memory = []
    tracemalloc.start()
    try:
        for number in range(CYCLES):
            await cycle(number)
            assert len(all_tasks()) == tasks
            assert lasting_resources() == rest
            if (number + 1) % len(ways) == 0:
                gc.collect()
                memory.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # In the first rounds caches fill up, which a few cycles cannot be told from a leak.
    memory = memory[len(memory) // 3 :]
    if len(memory) > 15:
        slope = median_slope(memory) / len(ways)
        print(f"{slope:.0f} bytes per cycle")
        assert slope < BYTES_PER_CYCLE
    record_property("cycles", CYCLES)
