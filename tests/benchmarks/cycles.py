"""Compares starting and stopping a trivial connection with a hand-written task.

The times are CPU times, because nothing waits for another process.
"""

from functools import partial
from time import thread_time

import anyio
from hand_written import TASKS, trivial

from ownertask import ConnectionManager


async def cycles(manager, count=200):
    """Returns the time for one cycle."""
    before = thread_time()
    for _ in range(count):
        await manager.start()
        await manager.stop()
    return (thread_time() - before) / count


async def compare(report):
    ours = partial(cycles, ConnectionManager.from_factory(trivial))
    bare = partial(cycles, TASKS[report.backend]())
    await report.compare("start and stop", "a hand-written task", ours, bare, 200, goal=2.0)


def measure(report):
    anyio.run(compare, report, backend=report.backend)
