"""Checks that many starts, stops, kills and cancellations over stdio leak nothing.

`nox -s soak` runs 2,000 cycles.
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
# Less than the cost of leaking one manager, one task or one frame per cycle.
BYTES_PER_CYCLE = 400

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL"),
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


async def use_in_a_block(manager):
    async with manager:
        pass


ACTIONS = [start_and_stop, stop_by_force, kill, cancel_the_start, cancel_the_stop, use_in_a_block]


def lasting_resources():
    # Before Python 3.12, asyncio waits for each child process in a thread, which ends a moment later.
    return {name for name in resources() if not name.startswith("thread asyncio-waitpid")}


def median_slope(values):
    """Returns the median slope over all pairs of values (Theil-Sen).

    Memory that is allocated once hardly changes it, even late in the test. A leak in each cycle does.
    """
    pairs = combinations(enumerate(values), 2)
    return statistics.median((b - a) / (n - m) for (m, a), (n, b) in pairs)


@pytest.mark.within(3000)
async def test_invariant_10_repeated_stdio_cycles_leak_nothing(record_property):
    managers = [StdioConnectionManager(TINY), SessionConnectionManager(TINY)]
    actions = [(action, manager) for action in ACTIONS for manager in managers]

    async def cycle(number):
        action, manager = actions[number % len(actions)]
        await action(manager)
        await manager.stop()  # in case the call succeeded before it was cancelled

    for number in range(len(actions)):  # a first round, for everything that is allocated only once
        await cycle(number)
    tasks, rest = len(all_tasks()), lasting_resources()
    memory = []
    tracemalloc.start()
    try:
        for number in range(CYCLES):
            await cycle(number)
            assert len(all_tasks()) == tasks
            assert lasting_resources() == rest
            if (number + 1) % len(actions) == 0:
                gc.collect()
                memory.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # Caches fill up in the first rounds. With few cycles, that would look like a leak.
    memory = memory[len(memory) // 3 :]
    if len(memory) > 15:
        slope = median_slope(memory) / len(actions)
        print(f"{slope:.0f} bytes per cycle")
        assert slope < BYTES_PER_CYCLE
    record_property("cycles", CYCLES)
