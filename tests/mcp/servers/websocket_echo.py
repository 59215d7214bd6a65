"""Echoes every message. Listens on the given port, or on a free one, and prints it."""

import asyncio
import sys

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


async def echo(websocket):
    try:
        async for message in websocket:
            await websocket.send(message)
    except ConnectionClosed:
        pass


async def main():
    options = {"subprotocols": ["mcp"], "compression": None, "max_size": None}
    async with serve(echo, "127.0.0.1", int(*sys.argv[1:]), **options) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
