"""The same with ownertask, for several servers, which are closed at once.

Usage: python examples/after.py [asyncio|trio]
"""

import sys
from collections.abc import Callable, Coroutine

import anyio
from mcp import StdioServerParameters

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
managers = {name: SessionConnectionManager(server, name=name) for name in ("red", "green", "blue")}


async def open_all() -> None:
    try:
        async with anyio.create_task_group() as task_group:
            for manager in managers.values():
                task_group.start_soon(manager.start)
    except BaseException:
        await close_all()
        raise


async def close_all() -> None:
    async with anyio.create_task_group() as task_group:
        for manager in managers.values():
            task_group.start_soon(manager.stop)


async def tools_of_all() -> dict[str, str]:
    return {
        tool.name: name
        for name, manager in managers.items()
        for tool in (await manager.connection.list_tools()).tools
    }


# --8<-- [end:many]


async def in_a_task(function: Callable[[], Coroutine[object, object, None]]) -> None:
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(function)


async def main() -> None:
    calculator = Calculator()
    for function in (calculator.connect, calculator.close, open_all):
        await in_a_task(function)
    print(await tools_of_all())
    await in_a_task(close_all)
    print(*(manager.state.value for manager in managers.values()))


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
