"""Servers and users for tests of `ConnectionPool`."""

from contextlib import asynccontextmanager

import anyio
from anyio.lowlevel import checkpoint
from probe import Probe
from reopening import settle

from ownertask import ConnectionPool, ConnectionState

DAY = 24 * 3600

ALIVE = {ConnectionState.OPENING, ConnectionState.OPEN, ConnectionState.CLOSING}


class Servers:
    """The `open` function of a pool. It returns a new probe for each call.

    Attributes:
        openings: Awaited while a connection opens, by key. Other keys open at once.
        closings: Awaited while a connection closes, by key.
        refused: Exceptions that `open` raises, by key.
        options: Attributes of each new probe, such as `reconnect`.
        asked: The keys of all calls, in order.
        probes: All probes by key, in order.
        alive: The probes that have an owner task.
        most_alive: The highest number of owner tasks at the same time.
    """

    def __init__(self, *, opening=checkpoint, closing=checkpoint, **options):
        self.opening = opening
        self.closing = closing
        self.openings = {}
        self.closings = {}
        self.refused = {}
        self.options = options
        self.asked = []
        self.probes = {}
        self.alive = set()
        self.most_alive = 0

    def __call__(self, key):
        self.asked.append(key)
        if key in self.refused:
            raise self.refused[key]

        async def open_it():
            await self.openings.get(key, self.opening)()

        async def close_it():
            await self.closings.get(key, self.closing)()

        probe = Probe(open_it, close_it, name=f"server {key}")
        for name, value in self.options.items():
            setattr(probe, name, value)
        probe.add_listener(self._count)
        self.probes.setdefault(key, []).append(probe)
        return probe

    def _count(self, probe, _, new):
        if new in ALIVE:
            self.alive.add(probe)
            self.most_alive = max(self.most_alive, len(self.alive))
        else:
            self.alive.discard(probe)

    def last(self, key):
        """Returns the newest probe of a key."""
        return self.probes[key][-1]

    def of(self, connection):
        """Returns the probe that has this connection open, or `None`."""
        for probe in self.alive:
            if probe.state is ConnectionState.OPEN and probe.connection is connection:
                return probe
        return None


class User:
    """A task inside `pool.acquire()`, until the test calls `leave()`.

    Attributes:
        scope: Cancel it to cancel the task.
        connection: The connection that the block received, `None` before that.
        error: The exception that the block raised.
        is_over: Whether the block ended.
    """

    def __init__(self, task_group, pool, key, timeout=None):
        self.scope = anyio.CancelScope()
        self.connection = None
        self.error = None
        self.is_over = False
        self._may_leave = anyio.Event()
        task_group.start_soon(self._use, pool.acquire(key, timeout))

    @property
    def waits(self):
        return self.connection is None and not self.is_over

    @property
    def is_inside(self):
        return self.connection is not None and not self.is_over

    def leave(self):
        self._may_leave.set()

    async def _use(self, acquired):
        try:
            with self.scope:
                async with acquired as self.connection:
                    await self._may_leave.wait()
        except Exception as error:
            self.error = error
        finally:
            self.is_over = True


async def users(task_group, pool, *keys):
    """Starts a user for each key, one after another, and waits until all of them wait or are inside."""
    started = []
    for key in keys:
        started.append(User(task_group, pool, key))
        await settle()
    return started


async def leave(*leaving):
    for user in leaving:
        user.leave()
    await settle()


async def use(pool, key, timeout=None):
    """Acquires the connection, releases it at once, and returns it."""
    async with pool.acquire(key, timeout) as connection:
        return connection


@asynccontextmanager
async def running(servers, **options):
    """Runs a pool, whose users are cancelled at the end. Checks that nothing is left of it."""
    pool = ConnectionPool(servers, **options)
    await pool.start()
    try:
        async with anyio.create_task_group() as tg:
            yield pool, tg
            tg.cancel_scope.cancel()
        assert pool.stats().waiting == 0
    finally:
        await pool.stop()
    assert not servers.alive
    assert not any(probe.is_acquired for probes in servers.probes.values() for probe in probes)
    stats = pool.stats()
    assert (stats.open, stats.idle, stats.waiting) == (0, 0, 0)
    assert servers.most_alive <= (options.get("max_open") or DAY)


async def slots(pool, task_group, number):
    """Checks that exactly `number` more connections can be open at the same time, and closes them."""
    keys = [object() for _ in range(number + 1)]
    *inside, last = await users(task_group, pool, *keys)
    assert [user.is_inside for user in inside] == [True] * number
    assert last.waits
    last.scope.cancel()
    await leave(*inside)
    for key in keys:
        await pool.discard(key)
    assert pool.stats().waiting == 0


def lasting(seconds):
    """Returns an async function that sleeps."""

    async def sleep():
        await anyio.sleep(seconds)

    return sleep
