"""Shares a connection to PostgreSQL, and opens another connection after a loss.

Usage: python examples/libraries/with_asyncpg.py
The example requires PostgreSQL. It starts a server, kills it, and starts it again.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg
from local_servers import LocalServer, local_server, loss_of

from ownertask import ConnectionManager, ReconnectPolicy


def postgres_manager(url: str) -> ConnectionManager[asyncpg.Connection]:
    @asynccontextmanager
    async def open_connection() -> AsyncGenerator[asyncpg.Connection]:
        connection = await asyncpg.connect(url)
        try:
            yield connection
        finally:
            await connection.close()

    async def closed(connection: asyncpg.Connection) -> None:
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())
        if not connection.is_closed():
            await ended.wait()
        raise ConnectionError("PostgreSQL closed the connection")

    return ConnectionManager.from_factory(
        open_connection, name="postgres", reconnect=ReconnectPolicy(initial_delay=0.1), watch=closed
    )


async def use(manager: ConnectionManager[asyncpg.Connection], server: LocalServer) -> None:
    connection = manager.current
    print("before:", await connection.fetchval("SELECT 1 + 1"))
    async with loss_of(manager):
        server.kill()
    query = asyncio.create_task(connection.fetchval("SELECT 2 + 2"))  # waits for the next connection
    server.start()
    print("after:", await query)


async def main(server: LocalServer) -> None:
    manager = postgres_manager(f"postgresql://postgres@127.0.0.1:{server.port}/postgres")
    await asyncio.create_task(manager.start())
    await asyncio.create_task(use(manager, server))
    await asyncio.create_task(manager.stop())
    print(manager.state.value)


if __name__ == "__main__":
    with local_server("postgres") as server:
        asyncio.run(main(server))
