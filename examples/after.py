"""The class of before.py with ownertask. Any task can open and close it.

Usage: python after.py
"""

import asyncio
import sys
from pathlib import Path

from mcp import StdioServerParameters

from ownertask.mcp import SessionConnectionManager

path = str(Path(__file__).with_name("server.py"))
server = StdioServerParameters(command=sys.executable, args=[path])


class Calculator:
    def __init__(self) -> None:
        self.manager = SessionConnectionManager(server)

    async def connect(self) -> None:
        self.session = await self.manager.start()

    async def close(self) -> None:
        await self.manager.stop()


async def main() -> None:
    calculator = Calculator()
    await asyncio.create_task(calculator.connect())
    print(await calculator.session.call_tool("add", {"a": 1, "b": 2}))
    await asyncio.create_task(calculator.close())


if __name__ == "__main__":
    asyncio.run(main())
