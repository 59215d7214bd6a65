"""A server for own_transport.py and its tests.

Usage: python own_transport_server.py
The program prints its port, and runs until it is interrupted.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream


@asynccontextmanager
async def running_server() -> AsyncGenerator[int]:
    """Runs the server on a free port, and yields the port."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as task_group:
        task_group.start_soon(listener.serve, serve)
        yield listener.extra(SocketAttribute.local_port)
        task_group.cancel_scope.cancel()


async def serve(stream: SocketStream) -> None:
    lines = BufferedByteReceiveStream(stream)
    async with stream:
        try:
            await stream.send(b"READY\n")
            while (line := await lines.receive_until(b"\n", max_bytes=1000)) != b"quit":
                await stream.send(line.upper() + b"\n")
        except (anyio.BrokenResourceError, anyio.IncompleteRead):
            pass  # the client closed the connection


async def main() -> None:
    async with running_server() as port:
        print(port, flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main)
