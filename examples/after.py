"""The class of before.py with ownertask, and several servers that start and stop concurrently.

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


async def start_all() -> None:
    try:
        async with anyio.create_task_group() as task_group:
            for manager in managers.values():
                task_group.start_soon(manager.start)
    except BaseException:
        await stop_all()
        raise


async def stop_all() -> None:
    async with anyio.create_task_group() as task_group:
        for manager in managers.values():
            task_group.start_soon(manager.stop)


async def list_all_tools() -> dict[str, str]:
    return {
        tool.name: name
        for name, manager in managers.items()
        for tool in (await manager.connection.list_tools()).tools
    }


# --8<-- [end:many]


async def run_in_task(function: Callable[[], Coroutine[object, object, None]]) -> None:
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(function)


async def main() -> None:
    calculator = Calculator()
    for function in (calculator.connect, calculator.close, start_all):
        await run_in_task(function)
    print(await list_all_tools())
    await run_in_task(stop_all)
    print(*(manager.state.value for manager in managers.values()))


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
