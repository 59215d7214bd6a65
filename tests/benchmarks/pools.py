"""Measures pools: a block of a key with an open connection, and many keys with few connections."""

from functools import partial
from time import thread_time

import anyio
from hand_written import trivial

from ownertask import ConnectionManager, ConnectionPool

KEYS, MAX_OPEN = 20_000, 1000


class Counter:
    """A dictionary look-up with a counter, in a block."""

    __slots__ = ("entries", "key")

    def __init__(self, entries, key):
        self.entries = entries
        self.key = key

    async def __aenter__(self):
        entry = self.entries[self.key]
        entry[1] += 1
        return entry[0]

    async def __aexit__(self, *exc_info):
        self.entries[self.key][1] -= 1


def manager(_key=None):
    return ConnectionManager.from_factory(trivial)


async def blocks(block, count=5_000):
    """Returns the time for one block."""
    before = thread_time()
    for _ in range(count):
        async with block():
            pass
    return (thread_time() - before) / count


async def keys():
    """Returns the time for each key of a pool that keeps few connections open."""
    async with ConnectionPool(manager, max_open=MAX_OPEN) as pool:
        before = thread_time()
        for key in range(KEYS):
            async with pool.acquire(key):
                pass
        assert pool.stats().opened == KEYS
        return (thread_time() - before) / KEYS


async def main(report):
    bare = partial(blocks, partial(Counter, {"key": [object(), 0]}, "key"))
    async with ConnectionPool(manager) as pool:
        ours = partial(blocks, partial(pool.acquire, "key"))
        await report.compare("pool, idle key", "a dictionary look-up", ours, bare, 40)
        async with pool.acquire("key"):
            await report.compare("pool, used key", "a dictionary look-up", ours, bare, 40)
    await report.compare(f"pool, {KEYS:,} keys", "a manager for each", keys, partial(blocks, manager), 5)


def measure(report):
    anyio.run(main, report, backend=report.backend)
