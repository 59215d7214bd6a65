"""Shares a Redis client, pings the server, and opens another client after a loss.

Usage: python examples/libraries/with_redis.py
The example requires `redis-server`. It starts a server, kills it, and starts it again.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from local_servers import LocalServer, local_server, loss_of
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ownertask import ConnectionManager, ReconnectPolicy


def redis_manager(url: str, ping_interval: float = 5.0) -> ConnectionManager[Redis]:
    @asynccontextmanager
    async def open_client() -> AsyncGenerator[Redis]:
        no_retries = Retry(NoBackoff(), 0)  # the manager reconnects instead
        async with Redis.from_url(url, socket_timeout=5, retry=no_retries) as client:
            await client.ping()  # a client connects when it sends its first command
            yield client

    async def ping(client: Redis) -> None:
        while True:
            await asyncio.sleep(ping_interval)
            await client.ping()  # raises if the server is gone or does not respond

    return ConnectionManager.from_factory(
        open_client, name="redis", reconnect=ReconnectPolicy(initial_delay=0.1), watch=ping
    )


async def use(manager: ConnectionManager[Redis], server: LocalServer) -> None:
    client = await manager.wait_open()
    print("visits:", await client.incr("visits"))
    async with loss_of(manager):
        server.kill()
    server.start()
    client = await manager.wait_open()  # another client
    print("visits:", await client.incr("visits"))


async def main(server: LocalServer) -> None:
    manager = redis_manager(f"redis://127.0.0.1:{server.port}", ping_interval=0.1)
    await asyncio.create_task(manager.start())
    await asyncio.create_task(use(manager, server))
    await asyncio.create_task(manager.stop())
    print(manager.state.value)


if __name__ == "__main__":
    with local_server("redis") as server:
        asyncio.run(main(server))
