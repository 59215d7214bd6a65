"""A custom transport: a line protocol over TCP, with its manager and a server to try it.

Usage: python examples/own_transport.py [asyncio|trio]
"""

import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from typing_extensions import override

from ownertask import ConnectionLostError, ConnectionManager


# --8<-- [start:protocol]
class LineConnection:
    """Sends each request as one line, and receives one line in response."""

    def __init__(self, stream: SocketStream, on_broken: Callable[[Exception | None], object]) -> None:
        self._stream = stream
        self._lines = BufferedByteReceiveStream(stream)
        self._lock = anyio.Lock()
        self._is_broken = False
        self._on_broken = on_broken

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
                self._on_broken(error if isinstance(error, Exception) else None)
                raise


# --8<-- [end:protocol]


# --8<-- [start:manager]
class WrongGreetingError(ConnectionError):
    pass


class LineConnectionManager(ConnectionManager[LineConnection]):
    start_timeout = 10.0

    def __init__(self, host: str, port: int) -> None:
        super().__init__(name=f"lines {host}:{port}")
        self.host = host
        self.port = port

    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[LineConnection]:
        async with await anyio.connect_tcp(self.host, self.port) as stream:
            connection = LineConnection(stream, on_broken=self.connection_lost)
            greeting = await connection.receive()
            if greeting != "READY":
                raise WrongGreetingError(f"expected READY, got {greeting!r}")
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


async def serve(stream: SocketStream) -> None:
    lines = BufferedByteReceiveStream(stream)
    async with stream:
        await stream.send(b"READY\n")
        while (line := await lines.receive_until(b"\n", max_bytes=1000)) != b"quit":
            await stream.send(line.upper() + b"\n")


# --8<-- [start:use]
async def use(port: int) -> None:
    manager = LineConnectionManager("127.0.0.1", port)
    async with manager as connection:
        print(await connection.request("hello"))
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
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port: int = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as task_group:
        task_group.start_soon(listener.serve, serve)
        await use(port)
        task_group.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
