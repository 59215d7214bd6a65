"""Timeouts for opening, for requests, and for closing.

Usage: python timeouts.py [asyncio|trio]
"""

import sys
from pathlib import Path

import anyio
from mcp import StdioServerParameters

from ownertask import StartTimeoutError
from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
silent_server = StdioServerParameters(
    command=sys.executable, args=["-c", "import time; time.sleep(600)"]
)


async def main() -> None:
    manager = SessionConnectionManager(
        server,
        start_timeout=20,  # for each attempt to open the connection
        read_timeout_seconds=30,  # for each request (an option of the SDK)
    )
    session = await manager.start(timeout=10)  # how long this call waits
    await session.call_tool("add", {"a": 1, "b": 2})
    await manager.stop(timeout=5)  # if closing takes longer, the owner task is cancelled

    try:
        await SessionConnectionManager(silent_server, start_timeout=0.5).start()
    except StartTimeoutError as error:
        print(error)


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
