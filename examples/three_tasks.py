"""One session that is started, used and stopped in different tasks."""

import asyncio
import sys
from pathlib import Path

from mcp import StdioServerParameters

from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
manager = SessionConnectionManager(server)


async def use() -> None:
    result = await manager.connection.call_tool("add", {"a": 1, "b": 2})
    print(result.content)


async def main() -> None:
    await asyncio.create_task(manager.start())  # opened in one task,
    await asyncio.gather(use(), use())  # used in others,
    await asyncio.create_task(manager.stop())  # closed in yet another


asyncio.run(main())
