"""Detects that a server died, and starts it again.

Usage: python examples/noticing_a_loss.py [asyncio|trio]
"""

import os
import signal
import sys
from math import inf
from pathlib import Path

import anyio
from mcp import StdioServerParameters

from ownertask import ConnectionLostError
from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
manager = SessionConnectionManager(server, name="calculator")


# --8<-- [start:keep_open]
async def keep_open() -> None:
    """Keeps the connection open until this task is cancelled."""
    delay = 0.1
    while True:
        opened_at = inf
        try:
            await manager.start()
            opened_at = anyio.current_time()
            await manager.wait_closed()
        except Exception as error:  # noqa: BLE001 - failed to open, or lost
            print(f"{manager.name} is down: {error!r}")
        if anyio.current_time() - opened_at > 60:
            delay = 0.1  # the connection was open for a while, so retry soon
        await anyio.sleep(delay)
        delay = min(2 * delay, 30.0)


# --8<-- [end:keep_open]


async def kill_server() -> None:
    session = await manager.start()
    result = await session.call_tool("process_id", {})
    [content] = result.content
    assert content.type == "text"
    os.kill(int(content.text), signal.SIGTERM)
    try:
        await manager.wait_closed()
    except ConnectionLostError as error:
        print(f"connection lost: {error.__cause__}")


# --8<-- [start:main]
async def main() -> None:
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(keep_open)
        await kill_server()
        await kill_server()
        task_group.cancel_scope.cancel()
    await manager.stop()


# --8<-- [end:main]

if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
