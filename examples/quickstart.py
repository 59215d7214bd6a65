"""A real MCP server, started by one task, called by others, and stopped by yet another.

Usage: python examples/quickstart.py [asyncio|trio]
"""

import sys
from pathlib import Path

import anyio
from mcp import StdioServerParameters

from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
# --8<-- [start:manager]
manager = SessionConnectionManager(server)
# --8<-- [end:manager]


def say(what: str) -> None:
    task = str(anyio.get_current_task().name).rpartition(".")[2]
    print(f"{task:<10} {what:<26} state: {manager.state.value}")


# --8<-- [start:opener]
async def opener() -> None:
    say("starts the server")
    await manager.start()
    say("has started it, and ends")


# --8<-- [end:opener]


# --8<-- [start:caller]
async def caller(number: int) -> None:
    result = await manager.connection.call_tool("add", {"a": number, "b": number})
    [content] = result.content
    assert content.type == "text"
    say(f"{number} + {number} = {content.text}")


# --8<-- [end:caller]


# --8<-- [start:closer]
async def closer() -> None:
    say("stops the server")
    await manager.stop()
    say("has stopped it")


# --8<-- [end:closer]


async def main() -> None:
    say("has a manager")
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(opener, name="opener")
    async with anyio.create_task_group() as task_group:
        for number in range(1, 4):
            task_group.start_soon(caller, number, name=f"caller {number}")
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(closer, name="closer")
    say("is done")


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
