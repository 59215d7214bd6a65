"""A class for connections of a line protocol over TCP, which detects the end of a connection.

Usage: python own_transport.py [asyncio|trio]
"""

import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from own_transport_server import running_server
from typing_extensions import override

from ownertask import ConnectionLostError, ConnectionManager


class LineConnection:
    """Sends each request as one line, and receives one line in response."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self.lines = BufferedByteReceiveStream(stream)
        self.lock = anyio.Lock()
        self.on_broken: Callable[[BaseException], object] | None = None

    async def receive(self) -> str:
        return (await self.lines.receive_until(b"\n", max_bytes=1000)).decode()

    async def request(self, line: str) -> str:
        if "\n" in line:
            raise ValueError("a request must be a single line")
        async with self.lock:
            try:
                with anyio.fail_after(10):
                    await self.stream.send(f"{line}\n".encode())
                    return await self.receive()
            except BaseException as error:
                # The response may still arrive, and the next request would read it as its own.
                if self.on_broken is not None:
                    self.on_broken(error)
                await anyio.aclose_forcefully(self.stream)
                raise


class WrongGreetingError(ConnectionError):
    pass


class LineConnectionManager(ConnectionManager[LineConnection]):
    start_timeout = 10.0
    connection_type = LineConnection

    def __init__(self, host: str, port: int) -> None:
        super().__init__(name=f"lines {host}:{port}")
        self.host = host
        self.port = port

    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[LineConnection]:
        async with await anyio.connect_tcp(self.host, self.port) as stream:
            connection = LineConnection(stream)
            connection.on_broken = partial(self.connection_lost, connection=connection)
            greeting = await connection.receive()
            if greeting != "READY":
                raise WrongGreetingError(f"expected READY, got {greeting!r}")
            yield connection

    async def watch(self, connection: LineConnection) -> None:
        while True:
            await anyio.sleep(30)
            await connection.request("are you there?")

    @override
    def is_permanent(self, exc: BaseException) -> bool:
        return isinstance(exc, WrongGreetingError) or super().is_permanent(exc)


async def main() -> None:
    async with running_server() as port:
        manager = LineConnectionManager("127.0.0.1", port)
        async with manager as connection:
            print(await connection.request("hello"))
            try:
                await connection.request("quit")  # the server closes the connection
            except anyio.IncompleteRead as error:
                print(f"the request failed: {error!r}")
            try:
                await manager.wait_closed()
            except ConnectionLostError as error:
                print(error)


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
