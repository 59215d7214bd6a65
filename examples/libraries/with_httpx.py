"""Shares an HTTP client, and closes it in another task.

Usage: python examples/libraries/with_httpx.py
The example starts a server, kills it, and starts it again.
"""

import asyncio

import httpx
from local_servers import LocalServer, local_server

from ownertask import ConnectionManager


def http_manager(url: str) -> ConnectionManager[httpx.AsyncClient]:
    return ConnectionManager.from_factory(lambda: httpx.AsyncClient(base_url=url), name="http")


async def status(client: httpx.AsyncClient) -> int:
    while True:
        try:
            return (await client.get("/")).status_code
        except httpx.TransportError:
            await asyncio.sleep(0.1)


async def use(manager: ConnectionManager[httpx.AsyncClient], server: LocalServer) -> None:
    client = manager.connection
    print("before:", await status(client))
    server.kill()
    try:
        await client.get("/")
    except httpx.TransportError as error:
        print(f"the request failed ({error}), the client is still {manager.state.value}")
    server.start()
    print("after:", await status(client))


async def main(server: LocalServer) -> None:
    manager = http_manager(f"http://127.0.0.1:{server.port}")
    await asyncio.create_task(manager.start())
    await asyncio.create_task(use(manager, server))
    await asyncio.create_task(manager.stop())
    print(manager.state.value)


if __name__ == "__main__":
    with local_server("web") as server:
        asyncio.run(main(server))
