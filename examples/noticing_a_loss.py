"""How an application is told that a server has died, and starts it again.

Usage: python examples/noticing_a_loss.py [asyncio|trio]
"""

import os
import signal
import sys
from pathlib import Path

import anyio
from mcp import StdioServerParameters

from ownertask import ConnectionLostError
from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
manager = SessionConnectionManager(server, name="calculator")


# --8<-- [start:keep_open]
async def keep_open() -> None:
    """Starts it again whenever it has ended, until this task is cancelled."""
    delay = 0.1
    while True:
        began = anyio.current_time()
        try:
            await manager.start()
            await manager.wait_closed()
        except Exception as error:  # noqa: BLE001 - of opening, or a loss
            print(f"{manager.name} is down: {error!r}")
        if anyio.current_time() - began > 60:
            delay = 0.1  # it has been up for some time
        await anyio.sleep(delay)
        delay = min(2 * delay, 30.0)


# --8<-- [end:keep_open]


async def die_and_come_back() -> None:
    session = await manager.start()
    result = await session.call_tool("process_id", {})
    [content] = result.content
    assert content.type == "text"
    os.kill(int(content.text), signal.SIGTERM)
    try:
        await manager.wait_closed()
    except ConnectionLostError as error:
        print(f"lost, because {error.__cause__}")


# --8<-- [start:main]
async def main() -> None:
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(keep_open)
        await die_and_come_back()
        await die_and_come_back()
        task_group.cancel_scope.cancel()
    await manager.stop()


# --8<-- [end:main]

if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
