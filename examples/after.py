"""The class of before.py with ownertask, and several servers that start and stop concurrently.

Usage: python examples/after.py [asyncio|trio]
"""

import sys
from collections.abc import Callable, Coroutine

import anyio
from mcp import StdioServerParameters

from ownertask import ConnectionGroup
from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=["examples/server.py"])


# --8<-- [start:calculator]
class Calculator:
    def __init__(self) -> None:
        self.manager = SessionConnectionManager(server)

    async def connect(self) -> None:
        await self.manager.start()

    async def close(self) -> None:
        await self.manager.stop()


# --8<-- [end:calculator]


# --8<-- [start:many]
names = ("red", "green", "blue")
group = ConnectionGroup(
    {name: SessionConnectionManager(server, name=name) for name in names},
    strict=True,  # start() raises if one of them fails
)


async def list_all_tools() -> dict[str, str]:
    return {
        tool.name: name
        for name, session in list(group.connection.items())
        for tool in (await session.list_tools()).tools
    }


# --8<-- [end:many]


async def run_in_task(function: Callable[[], Coroutine[object, object, object]]) -> None:
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(function)


async def main() -> None:
    calculator = Calculator()
    await run_in_task(calculator.connect)
    await run_in_task(calculator.close)
    await run_in_task(group.start)
    print(await list_all_tools())
    await run_in_task(group.stop)
    print(*(manager.state.value for manager in group.managers.values()))


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
