"""Connects to a server over a Unix domain socket.

Usage: python http_unix_socket.py [asyncio|trio]
The example starts a server that listens on a socket in a new folder.
"""

import sys
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import anyio
from http_server import running_uvicorn

from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager

if TYPE_CHECKING:
    import httpx2 as httpx
else:
    try:
        import httpx2 as httpx  # the HTTP library of mcp 2.x
    except ImportError:
        import httpx  # the HTTP library of mcp 1.x


async def main(path: str) -> None:
    transport = StreamableHttpConnectionManager(
        "http://localhost:8000/mcp",
        httpx_client_factory=lambda headers=None, timeout=None, auth=None: httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=path),  # a new one for each client
            headers=headers,
            timeout=timeout,
            auth=auth,
        ),
    )
    async with SessionConnectionManager(transport) as session:
        print((await session.call_tool("add", {"a": 1, "b": 2})).content)


if __name__ == "__main__":
    with TemporaryDirectory() as folder, running_uvicorn(f"--uds={folder}/socket"):
        anyio.run(main, f"{folder}/socket", backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
