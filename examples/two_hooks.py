"""Interrupts a client with two hooks and the same client with one method, and counts open connections.

Usage: python two_hooks.py [asyncio|trio]
"""

import logging
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from ownertask import ConnectionManager

open_streams: set[SocketStream] = set()


@asynccontextmanager
async def connect_tcp(port: int) -> AsyncGenerator[SocketStream]:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        open_streams.add(stream)
        try:
            yield stream
        finally:
            open_streams.discard(stream)


@asynccontextmanager
async def logged_in(stream: SocketStream) -> AsyncGenerator[None]:
    lines = BufferedByteReceiveStream(stream)
    await stream.send(b"login\n")
    await lines.receive_until(b"\n", max_bytes=1000)
    yield
    await stream.send(b"logout\n")
    await lines.receive_until(b"\n", max_bytes=1000)


class TwoHooks:
    def __init__(self, port: int) -> None:
        self.port = port

    async def connect(self) -> None:
        self._tcp = connect_tcp(self.port)
        self.stream = await self._tcp.__aenter__()
        self._login = logged_in(self.stream)
        await self._login.__aenter__()

    async def close(self) -> None:
        await self._login.__aexit__(None, None, None)
        await self._tcp.__aexit__(None, None, None)


class OneMethod(ConnectionManager[SocketStream]):
    def __init__(self, port: int) -> None:
        super().__init__(name=f"port {port}")
        self.port = port

    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[SocketStream]:
        async with connect_tcp(self.port) as stream, logged_in(stream):
            yield stream


class Stack(OneMethod):
    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[SocketStream]:
        async with AsyncExitStack() as stack:
            stream = await stack.enter_async_context(connect_tcp(self.port))
            await stack.enter_async_context(logged_in(stream))
            yield stream


class HooksInside(OneMethod):
    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[SocketStream]:
        self.hooks = TwoHooks(self.port)
        try:
            await self.hooks.connect()
            yield self.hooks.stream
        finally:
            await self.hooks.close()


class Server:
    """Responds to each line. A slow server ignores logins, and a rude server hangs up at logouts."""

    def __init__(self, *, is_slow: bool = False, is_rude: bool = False) -> None:
        self.is_slow = is_slow
        self.is_rude = is_rude
        self.login_received = anyio.Event()

    async def serve(self, stream: SocketStream) -> None:
        lines = BufferedByteReceiveStream(stream)
        async with stream:
            while True:
                try:
                    line = await lines.receive_until(b"\n", max_bytes=1000)
                except anyio.IncompleteRead:
                    return
                if line == b"login":
                    self.login_received.set()
                    if self.is_slow:
                        await anyio.sleep_forever()
                if line == b"logout" and self.is_rude:
                    return
                await stream.send(b"ok\n")


Hook = Callable[[], Coroutine[object, object, object]]


async def cancel_start(server: Server, start: Hook, stop: Hook) -> None:
    """Cancels the start after the TCP connection opened and before the login finished."""
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(start)
        await server.login_received.wait()
        task_group.cancel_scope.cancel()


async def fail_in_stop(server: Server, start: Hook, stop: Hook) -> None:
    """Starts and stops. The server hangs up instead of responding to the logout."""
    await start()
    with suppress(anyio.IncompleteRead):
        await stop()


def hooks_of(client: TwoHooks | OneMethod) -> tuple[Hook, Hook]:
    if isinstance(client, TwoHooks):
        return client.connect, client.close
    return client.start, client.stop


async def main() -> None:
    logging.getLogger("ownertask").setLevel(logging.CRITICAL)  # the error while closing is intended
    interruptions = [(cancel_start, Server(is_slow=True)), (fail_in_stop, Server(is_rude=True))]
    for interrupt, server in interruptions:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as task_group:
            task_group.start_soon(listener.serve, server.serve)
            for kind in (TwoHooks, OneMethod, Stack, HooksInside):
                server.login_received = anyio.Event()
                client = kind(port)
                await interrupt(server, *hooks_of(client))
                print(f"{interrupt.__name__}: {kind.__name__} left {len(open_streams)} open")
                while open_streams:
                    await open_streams.pop().aclose()
            task_group.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
