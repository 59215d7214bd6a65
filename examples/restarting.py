"""Kills a server between two calls. The second call waits for the new server.

Usage: python examples/restarting.py [asyncio|trio]
"""

# --8<-- [start:program]
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import anyio
from mcp import StdioServerParameters

from ownertask import ReconnectPolicy
from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
# --8<-- [start:policy]
manager = SessionConnectionManager(server, name="calculator", reconnect=ReconnectPolicy())
# --8<-- [end:policy]
session = manager.current  # still works after a restart


async def call(tool: str, **arguments: int) -> str:
    result = await session.call_tool(tool, arguments)  # waits while the server is started again
    [content] = result.content
    assert content.type == "text"
    return content.text


async def kill_server() -> None:
    os.kill(int(await call("process_id")), signal.SIGTERM)
    with suppress(Exception):
        await session.send_ping()  # fails when the loss is detected


async def main() -> None:
    async with manager:
        print("1 + 1 =", await call("add", a=1, b=1))
        await kill_server()
        print("2 + 2 =", await call("add", a=2, b=2))


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
# --8<-- [end:program]
