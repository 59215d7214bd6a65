"""Starts a real MCP server in one task, calls it from three others, and stops it in a fifth.

Usage: python quickstart.py [asyncio|trio]
"""

import sys
from pathlib import Path

import anyio
from mcp import StdioServerParameters

from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
manager = SessionConnectionManager(server)


def report(event: str) -> None:
    task = str(anyio.get_current_task().name).rpartition(".")[2]
    print(f"{task:<10} {event:<26} state: {manager.state.value}")


async def opener() -> None:
    report("starting the server")
    await manager.start()
    report("server started, task ends")


async def caller(number: int) -> None:
    result = await manager.connection.call_tool("add", {"a": number, "b": number})
    [content] = result.content
    assert content.type == "text"
    report(f"{number} + {number} = {content.text}")


async def closer() -> None:
    report("stopping the server")
    await manager.stop()
    report("server stopped")


async def main() -> None:
    report("manager created")
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(opener, name="opener")
    async with anyio.create_task_group() as task_group:
        for number in range(1, 4):
            task_group.start_soon(caller, number, name=f"caller {number}")
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(closer, name="closer")
    report("done")


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
    print("Next: docs/tutorial/first-connection.md explains this program; docs/how-to has recipes.")
