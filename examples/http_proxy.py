"""Connects to a server through an HTTP proxy.

Usage: python http_proxy.py [asyncio|trio]
The example starts a server, and runs a small proxy.
"""

import os
import re
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from http_server import running_server

from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager

if TYPE_CHECKING:
    import httpx2 as httpx
else:
    try:
        import httpx2 as httpx  # the HTTP library of mcp 2.x
    except ImportError:
        import httpx  # the HTTP library of mcp 1.x


class Proxy:
    """An HTTP proxy without TLS that handles one request per connection."""

    def __init__(self) -> None:
        self.requests = 0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[str]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as task_group:
            task_group.start_soon(listener.serve, self.forward)
            yield f"http://127.0.0.1:{port}"
            task_group.cancel_scope.cancel()

    async def forward(self, client: SocketStream) -> None:
        self.requests += 1
        async with client:
            received = BufferedByteReceiveStream(client)
            head = (await received.receive_until(b"\r\n\r\n", 65536)).decode()
            # A request to a proxy has the whole URL in its first line.
            found = re.fullmatch(r"(\w+) http://([^/:]+):(\d+)(\S+) HTTP/1.1\r\n(.*)", head, re.DOTALL)
            assert found is not None
            method, host, port, target, headers = found.groups()
            async with (
                await anyio.connect_tcp(host, int(port)) as server,
                anyio.create_task_group() as task_group,
            ):
                new_head = f"{method} {target} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n\r\n"
                await server.send(new_head.encode())
                task_group.start_soon(self.copy, received, server)
                await self.copy(server, client)
                task_group.cancel_scope.cancel()

    @staticmethod
    async def copy(source: ByteReceiveStream, target: ByteSendStream) -> None:
        try:
            async for chunk in source:
                await target.send(chunk)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # the other side closed the connection


async def main(url: str) -> None:
    proxy = Proxy()
    async with proxy.running() as proxy_url:
        await call_through(proxy_url, url)
        print(f"proxy=: {proxy.requests > 0}")
        for variables in ({"HTTP_PROXY": proxy_url}, {"NO_PROXY": "127.0.0.1"}):
            proxy.requests = 0
            os.environ.update(variables)
            async with SessionConnectionManager(url) as session:
                await session.call_tool("add", {"a": 1, "b": 2})
            print(f"{next(iter(variables))}: {proxy.requests > 0}")


async def call_through(proxy_url: str, url: str) -> None:
    transport = StreamableHttpConnectionManager(
        url,
        httpx_client_factory=lambda headers=None, timeout=None, auth=None: httpx.AsyncClient(
            proxy=proxy_url, headers=headers, timeout=timeout, auth=auth
        ),
    )
    async with SessionConnectionManager(transport) as session:
        print((await session.call_tool("add", {"a": 1, "b": 2})).content)


if __name__ == "__main__":
    with running_server("streamable-http") as url:
        anyio.run(main, url, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
