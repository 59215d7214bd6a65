"""Kills its own MCP server between two calls. The manager starts the server again."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from mcp import StdioServerParameters

from ownertask import ReconnectPolicy
from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
manager = SessionConnectionManager(server, reconnect=ReconnectPolicy())
session = manager.current  # follows the manager to each new session


async def process_id() -> int:
    result = await session.call_tool("process_id", {})  # waits while the manager reconnects
    [content] = result.content
    assert content.type == "text"
    return int(content.text)


async def main() -> None:
    async with manager:
        first = await process_id()
        os.kill(first, signal.SIGTERM)
        try:
            await session.send_ping()
        except Exception as error:  # noqa: BLE001 - the SDK's error
            print(f"a call fails if the server dies during it: {error!r}")
        print("the next call reaches a new server:", await process_id() != first)


if __name__ == "__main__":
    asyncio.run(main())
