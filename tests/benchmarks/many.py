"""Benchmarks of groups and pools, as ratios from one run. Not a test: run `nox -s benchmark`."""

import gc
import time
import tracemalloc
from contextlib import asynccontextmanager
from statistics import median

import anyio
from report import Report, parser

from ownertask import ConnectionGroup, ConnectionManager, ConnectionPool

KEYS = 100_000
MAX_OPEN = 1000


@asynccontextmanager
async def trivial():
    yield 1


def trivial_manager(_key=None):
    return ConnectionManager.from_factory(trivial, name="trivial")


async def open_and_close(count):
    """Returns the times to open and to close a group, and its memory while open, each per member."""
    group = ConnectionGroup({number: trivial_manager() for number in range(count)})
    gc.disable()  # a full collection visits all objects of the process
    before = time.perf_counter()
    await group.start()
    opened = time.perf_counter()
    await group.stop()
    closed = time.perf_counter()
    gc.enable()
    tracemalloc.start()
    await group.start()
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await group.stop()
    return (opened - before) / count, (closed - opened) / count, memory / count


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


async def blocks(block, *arguments, count=20_000):
    before = time.perf_counter()
    for _ in range(count):
        async with block(*arguments):
            pass
    return (time.perf_counter() - before) / count


async def warm_key(*, is_used):
    """Compares a block of a pool with a dictionary look-up. Returns the ratios and both times."""
    entries = {"key": [object(), 1]}
    async with ConnectionPool(trivial_manager) as pool:
        async with pool.acquire("key"):
            if is_used:
                return await ratio_of_blocks(pool, entries)
        return await ratio_of_blocks(pool, entries)


async def ratio_of_blocks(pool, entries):
    pairs = [
        (await blocks(pool.acquire, "key"), await blocks(Counter, entries, "key")) for _ in range(9)
    ]
    ours, bare = (median(values) for values in zip(*pairs, strict=True))
    return [a / b for a, b in pairs], ours, bare


class CountedManager(ConnectionManager[int]):
    """Counts the connections that exist."""

    alive = 0
    most = 0

    @asynccontextmanager
    async def open_connection(self):
        CountedManager.alive += 1
        CountedManager.most = max(CountedManager.most, CountedManager.alive)
        try:
            yield 1
        finally:
            CountedManager.alive -= 1


async def many_keys():
    """Returns the time per key of a pool and of managers without a pool."""
    async with ConnectionPool(lambda _key: CountedManager(), max_open=MAX_OPEN) as pool:
        before = time.perf_counter()
        for key in range(KEYS):
            async with pool.acquire(key):
                pass
        ours = (time.perf_counter() - before) / KEYS
        assert pool.stats().opened == KEYS
    assert CountedManager.most <= MAX_OPEN, CountedManager.most
    before = time.perf_counter()
    for _ in range(KEYS // 10):
        async with CountedManager():
            pass
    return ours, (time.perf_counter() - before) / (KEYS // 10)


async def main(report, backend):
    few = [await open_and_close(1000) for _ in range(5)]
    many = [await open_and_close(10_000) for _ in range(3)]
    for index, what in enumerate(("open", "close", "memory")):
        a, b = median(each[index] for each in many), median(each[index] for each in few)
        ratios = [each[index] / b for each in many]
        report.add(f"group, {what}", "1,000 members", ratios, backend)
        unit = (
            f"{a:.0f} and {b:.0f} bytes" if what == "memory" else f"{a * 1e6:.0f} and {b * 1e6:.0f} us"
        )
        print(f"group, {what:6}      {a / b:5.2f} times as much per member, 10,000 to 1,000 ({unit})")
    for is_used in (True, False):
        ratios, ours, bare = await warm_key(is_used=is_used)
        kind = "used" if is_used else "idle"
        value, *_ = report.add(f"pool, {kind} key", "a dictionary look-up", ratios, backend)
        times = f"{ours * 1e9:.0f} and {bare * 1e9:.0f} ns"
        print(f"pool, {kind} key     {value:5.2f} times a dictionary look-up with a counter ({times})")
    ours, bare = await many_keys()
    report.add(f"pool, {KEYS} keys", "a manager for each key", [ours / bare], backend)
    times = f"{ours * 1e6:.0f} and {bare * 1e6:.0f} us"
    print(f"pool, {KEYS} keys  {ours / bare:5.2f} times a manager for each key ({times})")
    print(f"                   at most {CountedManager.most} connections, max_open: {MAX_OPEN}")


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio")
    options = options.parse_args()
    report = Report("many")
    anyio.run(main, report, options.backend, backend=options.backend)
    report.save(options.json)
