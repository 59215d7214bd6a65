"""Connects to a server over streamable HTTP. The example starts the server.

Usage: python examples/streamable_http.py [asyncio|trio]
"""

import sys

import anyio
from http_server import running_server

from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager


# --8<-- [start:streamable_http]
async def main(url: str) -> None:
    transport = StreamableHttpConnectionManager(url, headers={"Authorization": "Bearer ..."})
    async with SessionConnectionManager(transport) as session:
        result = await session.call_tool("add", {"a": 1, "b": 2})
        print(result.content)


# --8<-- [end:streamable_http]
if __name__ == "__main__":
    with running_server("streamable-http") as url:
        anyio.run(main, url, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
