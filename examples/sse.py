"""Connects to a server over SSE. The example starts the server.

Usage: python sse.py [asyncio|trio]
"""

import sys

import anyio
from http_server import running_server

from ownertask.mcp import SessionConnectionManager, SseConnectionManager


async def main(url: str) -> None:
    transport = SseConnectionManager(url, headers={"Authorization": "Bearer ..."}, timeout=10)
    async with SessionConnectionManager(transport) as session:
        result = await session.call_tool("add", {"a": 1, "b": 2})
        print(result.content)


if __name__ == "__main__":
    with running_server("sse") as url:
        anyio.run(main, url, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
