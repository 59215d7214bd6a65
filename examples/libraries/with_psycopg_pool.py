"""Shares a pool of PostgreSQL connections, and opens another pool after the first one gave up.

Usage: python examples/libraries/with_psycopg_pool.py
The example requires PostgreSQL. It starts a server, kills it, and starts it again.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from anyio import CancelScope
from local_servers import LocalServer, local_server, loss_of
from psycopg import AsyncConnection, OperationalError
from psycopg_pool import AsyncConnectionPool

from ownertask import ConnectionManager, ReconnectPolicy

Pool = AsyncConnectionPool[AsyncConnection]


class PoolManager(ConnectionManager[Pool]):
    reconnect = ReconnectPolicy(initial_delay=0.1)
    start_timeout = 30.0

    def __init__(self, url: str, reconnect_timeout: float = 60.0) -> None:
        super().__init__(name="pool")
        self.url = url
        self.reconnect_timeout = reconnect_timeout

    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[Pool]:
        def give_up(_: Pool) -> None:
            self.connection_lost(OperationalError("the pool could not reconnect"))

        pool = Pool(
            self.url,
            kwargs={"connect_timeout": 3},  # less than the 5 seconds that `close()` waits
            open=False,
            reconnect_timeout=self.reconnect_timeout,
            reconnect_failed=give_up,
        )
        try:
            await pool.open(wait=True)  # without `wait`, it would open even without a server
            yield pool
        finally:
            with CancelScope(shield=True):  # a cancelled `close()` would leave tasks and connections
                await pool.close()


async def add(manager: PoolManager, a: int, b: int) -> int:
    pool = await manager.wait_open()
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT %s::int + %s", (a, b))
        [result] = await cursor.fetchone() or []
    return int(result)


async def use(manager: PoolManager, server: LocalServer) -> None:
    print("before:", await add(manager, 1, 1))
    async with loss_of(manager):
        server.kill()
        with suppress(OperationalError):
            await add(manager, 1, 1)  # a pool does not check its idle connections
    server.start()
    print("after:", await add(manager, 2, 2))


async def main(server: LocalServer) -> None:
    manager = PoolManager(
        f"postgresql://postgres@127.0.0.1:{server.port}/postgres", reconnect_timeout=0.2
    )
    await asyncio.create_task(manager.start())
    await asyncio.create_task(use(manager, server))
    await asyncio.create_task(manager.stop())
    print(manager.state.value)


if __name__ == "__main__":
    with local_server("postgres") as server:
        asyncio.run(main(server))
