"""The error without ownertask: an `AsyncExitStack` that is closed in another task.

Usage: python before.py
"""

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from mcp import ClientSession, StdioServerParameters, stdio_client

path = str(Path(__file__).with_name("server.py"))
server = StdioServerParameters(command=sys.executable, args=[path])


class Calculator:
    def __init__(self) -> None:
        self.stack = AsyncExitStack()

    async def connect(self) -> None:
        streams = await self.stack.enter_async_context(stdio_client(server))
        self.session = await self.stack.enter_async_context(ClientSession(*streams))
        await self.session.initialize()

    async def close(self) -> None:
        await self.stack.aclose()


async def main() -> None:
    calculator = Calculator()
    await asyncio.create_task(calculator.connect())
    print(await calculator.session.call_tool("add", {"a": 1, "b": 2}))
    await asyncio.create_task(calculator.close())  # RuntimeError


if __name__ == "__main__":
    asyncio.run(main())
