"""How an application is told that a server has died, and starts it again.

Usage: python examples/noticing_a_loss.py [asyncio|trio]
"""

import os
import signal
import sys
from pathlib import Path

import anyio
from mcp import StdioServerParameters

from mooring import ConnectionLostError, ConnectionStoppedError
from mooring.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
manager = SessionConnectionManager(server, name="calculator")


# --8<-- [start:keep_open]
async def keep_open() -> None:
    delay = 0.1
    while True:
        try:
            await manager.start()
            delay = 0.1
            await manager.wait_closed()
        except ConnectionLostError as error:
            print(f"{error}: {error.__cause__}")
        except ConnectionStoppedError:
            return  # stopped while it was being opened
        except Exception as error:  # noqa: BLE001 - of opening, whatever it is
            print(f"{manager.name} cannot be opened: {error!r}")
        else:
            return  # stopped while it was open
        await anyio.sleep(delay)
        delay = min(2 * delay, 60.0)


# --8<-- [end:keep_open]


async def die_and_come_back() -> None:
    for _ in range(2):
        session = await manager.start()
        result = await session.call_tool("process_id", {})
        [content] = result.content
        assert content.type == "text"
        os.kill(int(content.text), signal.SIGTERM)
        try:
            await manager.wait_closed()
        except ConnectionLostError:
            print(f"the state is {manager.state.value}")
    await manager.start()
    await manager.stop()


async def main() -> None:
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(keep_open)
        task_group.start_soon(die_and_come_back)
    print(f"the state is {manager.state.value}")


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
