"""Connects to a server over a Unix domain socket.

Usage: python examples/http_unix_socket.py [asyncio|trio]
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
        import httpx2 as httpx
    except ImportError:
        import httpx


# --8<-- [start:http_unix_socket]
async def main(path: str) -> None:
    def make_client(
        headers: dict[str, str] | None = None,
        timeout: httpx.Timeout | None = None,
        auth: httpx.Auth | None = None,
    ) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=path)  # a new one for each client
        return httpx.AsyncClient(transport=transport, headers=headers, timeout=timeout, auth=auth)

    url = "http://localhost:8000/mcp"
    transport = StreamableHttpConnectionManager(url, httpx_client_factory=make_client)
    async with SessionConnectionManager(transport) as session:
        print((await session.call_tool("add", {"a": 1, "b": 2})).content)


# --8<-- [end:http_unix_socket]

if __name__ == "__main__":
    with TemporaryDirectory() as folder, running_uvicorn(f"--uds={folder}/socket"):
        anyio.run(main, f"{folder}/socket", backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
