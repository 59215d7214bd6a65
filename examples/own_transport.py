"""A custom transport: a line protocol over TCP, first managed without a class and then with a class.

Usage: python examples/own_transport.py [asyncio|trio]
"""

import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from own_transport_server import running_server
from typing_extensions import override

from ownertask import ConnectionLostError, ConnectionManager


# --8<-- [start:protocol]
class LineConnection:
    """Sends each request as one line, and receives one line in response."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._lines = BufferedByteReceiveStream(stream)
        self._lock = anyio.Lock()
        self._is_broken = False
        self.on_broken: Callable[[Exception | None], object] | None = None

    @property
    def is_busy(self) -> bool:
        return self._lock.locked()

    async def receive(self) -> str:
        return (await self._lines.receive_until(b"\n", max_bytes=1000)).decode()

    async def request(self, line: str) -> str:
        if "\n" in line:
            raise ValueError("a request must be a single line")
        data = f"{line}\n".encode()
        async with self._lock:
            if self._is_broken:
                raise anyio.BrokenResourceError
            try:
                await self._stream.send(data)
                return await self.receive()
            except BaseException as error:
                # The response may still arrive, and the next request would read it as its own.
                self._is_broken = True
                if self.on_broken is not None:
                    self.on_broken(error if isinstance(error, Exception) else None)
                raise


# --8<-- [end:protocol]


# --8<-- [start:connect]
class WrongGreetingError(ConnectionError):
    pass


@asynccontextmanager
async def connect_lines(host: str, port: int) -> AsyncGenerator[LineConnection]:
    async with await anyio.connect_tcp(host, port) as stream:
        connection = LineConnection(stream)
        greeting = await connection.receive()
        if greeting != "READY":
            raise WrongGreetingError(f"expected READY, got {greeting!r}")
        yield connection


# --8<-- [end:connect]


async def use_factory(host: str, port: int) -> None:
    # --8<-- [start:factory]
    manager = ConnectionManager.from_factory(lambda: connect_lines(host, port), start_timeout=10)
    async with manager as connection:
        print(await connection.request("hello from a factory"))
    # --8<-- [end:factory]


# --8<-- [start:manager]
class LineConnectionManager(ConnectionManager[LineConnection]):
    start_timeout = 10.0

    def __init__(self, host: str, port: int) -> None:
        super().__init__(name=f"lines {host}:{port}")
        self.host = host
        self.port = port

    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[LineConnection]:
        async with connect_lines(self.host, self.port) as connection:
            connection.on_broken = self.connection_lost
            yield connection

    # --8<-- [end:manager]

    # --8<-- [start:reconnecting]
    connection_type = LineConnection

    async def watch(self, connection: LineConnection) -> None:
        while True:
            await anyio.sleep(30)
            if not connection.is_busy:  # a slow response is not a loss
                with anyio.fail_after(10):
                    await connection.request("are you there?")

    @override
    def is_permanent(self, exc: BaseException) -> bool:
        return isinstance(exc, WrongGreetingError) or super().is_permanent(exc)

    # --8<-- [end:reconnecting]


# --8<-- [start:use]
async def use_class(host: str, port: int) -> None:
    manager = LineConnectionManager(host, port)
    async with manager as connection:
        print(await connection.request("hello from a class"))
        try:
            await connection.request("quit")  # the server closes the connection
        except anyio.IncompleteRead:
            print("the request failed")
        try:
            await manager.wait_closed()
        except ConnectionLostError as error:
            print(f"connection lost: {type(error.__cause__).__name__}")


# --8<-- [end:use]


async def main() -> None:
    async with running_server() as port:
        await use_factory("127.0.0.1", port)
        await use_class("127.0.0.1", port)


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
