"""Opens, uses and closes a connection of your own in three tasks."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ownertask import ConnectionManager

Connection = tuple[StreamReader, StreamWriter]


@asynccontextmanager
async def connect(port: int) -> AsyncGenerator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def use(manager: ConnectionManager[Connection]) -> None:
    reader, writer = await manager.start()  # the connection is already open
    writer.write(b"hello\n")
    print(await reader.readline())


async def serve(reader: StreamReader, writer: StreamWriter) -> None:
    writer.write((await reader.readline()).upper())
    writer.close()


async def main() -> None:
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        manager = ConnectionManager.from_factory(lambda: connect(port), name="lines", start_timeout=10)
        await asyncio.create_task(manager.start())
        await asyncio.create_task(use(manager))
        await asyncio.create_task(manager.stop())
        print(manager.state)


asyncio.run(main())
