"""A transport of one's own: a TCP connection that a line is sent over, to an echo server here."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import SocketStream

from mooring import ConnectionManager


# --8<-- [start:transport]
class TcpConnectionManager(ConnectionManager[SocketStream]):
    def __init__(self, host: str, port: int) -> None:
        super().__init__(name=f"tcp {host}:{port}")
        self.host = host
        self.port = port

    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[SocketStream]:
        async with await anyio.connect_tcp(self.host, self.port) as stream:
            yield stream


# --8<-- [end:transport]
async def echo(stream: SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data)


async def main() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as task_group:
        task_group.start_soon(listener.serve, echo)
        async with TcpConnectionManager("127.0.0.1", port) as stream:
            await stream.send(b"hello")
            print(await stream.receive())
        task_group.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main)
