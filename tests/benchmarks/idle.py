"""Measures what 50,000 idle connections cost: CPU time, and the time to stop all of them."""

from functools import partial
from time import process_time, thread_time

import anyio
from hand_written import TASKS, trivial

from ownertask import ConnectionManager

SECONDS = 2


async def start(create, count):
    owners = [create() for _ in range(count)]
    for owner in owners:
        await owner.start()
    return owners


async def stop_each(create, count):
    """Returns the time to stop all of them, one after the other."""
    owners = await start(create, count)
    before = thread_time()
    for owner in owners:
        await owner.stop()
    return thread_time() - before


async def stop_at_once(create, count):
    """Returns the time to stop all of them, with a task for each."""
    owners = await start(create, count)
    before = thread_time()
    async with anyio.create_task_group() as tg:
        for owner in owners:
            tg.start_soon(owner.stop)
    return thread_time() - before


async def share_of_cpu(create, count):
    """Returns the share of one core that idle connections need, in percent."""
    managers = await start(create, count)
    before = process_time()
    await anyio.sleep(SECONDS)
    seconds = process_time() - before
    for manager in managers:
        await manager.stop()
    return seconds / SECONDS * 100


async def main(report):
    count = 5_000 if report.quick else 50_000
    create, create_bare = partial(ConnectionManager.from_factory, trivial), TASKS[report.backend]
    for way, stop in (("one by one", stop_each), ("at once", stop_at_once)):
        ours, bare = partial(stop, create, count), partial(stop, create_bare, count)
        label = f"stop {count:,} connections, {way}"
        await report.compare(label, "hand-written tasks", ours, bare, 3, goal=3.0)
    shares = [await share_of_cpu(create, count) for _ in range(report.rounds(3))]
    report.add(f"CPU of {count:,} idle connections", "one core", shares, 0.05, unit="percent")


def measure(report):
    anyio.run(main, report, backend=report.backend)
