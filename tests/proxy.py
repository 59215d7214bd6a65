"""A TCP proxy that runs in the test's event loop and can fail on cue."""

import socket
import struct
from contextlib import asynccontextmanager

import anyio
from http_server import tcp_server


class Proxy:
    """Forwards connections to the local port `target`.

    Attributes:
        listens: Data is forwarded only while this event is set.
        cut_after: Number of bytes from the server to forward before the connection is reset; `None`
            disables the reset.
    """

    def __init__(self, target):
        self.target = target
        self.listens = anyio.Event()
        self.listens.set()
        self.cut_after = None

    def go_deaf(self):
        self.listens = anyio.Event()

    async def serve(self, client):
        async with (
            await anyio.connect_tcp("127.0.0.1", self.target) as server,
            anyio.create_task_group() as tg,
        ):
            tg.start_soon(self.forward_requests, client, server, tg.cancel_scope)
            async for data in server:
                await self.listens.wait()
                if self.cut_after is not None:
                    await client.send(data[: self.cut_after])
                    raw = client.extra(anyio.abc.SocketAttribute.raw_socket)
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                await client.send(data)
            tg.cancel_scope.cancel()

    async def forward_requests(self, client, server, scope):
        async for data in client:
            await self.listens.wait()
            await server.send(data)
        scope.cancel()


@asynccontextmanager
async def tcp_proxy(url):
    """Yields the proxy and the URL of the server through the proxy."""
    target = int(url.partition("://")[2].partition(":")[2].partition("/")[0])
    proxy = Proxy(target)
    async with tcp_server(proxy.serve) as port:
        yield proxy, url.replace(f":{target}", f":{port}")
