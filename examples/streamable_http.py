"""Connects to a server over streamable HTTP. The example starts the server.

Usage: python streamable_http.py [asyncio|trio]
"""

import sys

import anyio
from http_server import running_server

from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager


async def main(url: str) -> None:
    transport = StreamableHttpConnectionManager(url, headers={"Authorization": "Bearer ..."})
    async with SessionConnectionManager(transport) as session:
        result = await session.call_tool("add", {"a": 1, "b": 2})
        print(result.content)


if __name__ == "__main__":
    with running_server("streamable-http") as url:
        anyio.run(main, url, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
