"""Several tasks share one connection. The first one opens it, and the last one closes it.

Usage: python sharing.py [asyncio|trio]
"""

import sys
from pathlib import Path

import anyio
from mcp import StdioServerParameters

from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
manager = SessionConnectionManager(server)


async def job(number: int) -> None:
    async with manager as session:
        result = await session.call_tool("add", {"a": number, "b": number})
        [content] = result.content
        assert content.type == "text"
        print(f"{number} + {number} = {content.text}")
        await anyio.sleep(number / 10)  # the rest of the job
    print(f"job {number} ended, state: {manager.state.value}")


async def main() -> None:
    async with anyio.create_task_group() as task_group:
        for number in range(1, 4):
            task_group.start_soon(job, number)


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
