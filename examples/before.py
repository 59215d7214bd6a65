"""The error without ownertask: an `AsyncExitStack` that is closed in another task.

Usage: python examples/before.py
"""

import asyncio
import sys
from contextlib import AsyncExitStack

from mcp import ClientSession, StdioServerParameters, stdio_client

server = StdioServerParameters(command=sys.executable, args=["examples/server.py"])


# --8<-- [start:stack]
class Calculator:
    def __init__(self) -> None:
        self.stack = AsyncExitStack()

    async def connect(self) -> None:
        streams = await self.stack.enter_async_context(stdio_client(server))
        self.session = await self.stack.enter_async_context(ClientSession(*streams))
        await self.session.initialize()

    async def close(self) -> None:
        await self.stack.aclose()


# --8<-- [end:stack]


async def main() -> None:
    calculator = Calculator()
    await asyncio.create_task(calculator.connect())
    await asyncio.create_task(calculator.close())


if __name__ == "__main__":
    asyncio.run(main())
