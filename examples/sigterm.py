"""Stops a server when the program gets SIGTERM, as from Docker, systemd or Kubernetes.

Usage: python sigterm.py [asyncio|trio]
"""

import os
import signal
import sys
from pathlib import Path

import anyio
from mcp import ClientSession, StdioServerParameters

from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])


async def work(session: ClientSession) -> None:
    """Takes the place of your application, and of the program that sends the signal."""
    print((await session.call_tool("add", {"a": 1, "b": 2})).content)
    os.kill(os.getpid(), signal.SIGTERM)
    await anyio.sleep_forever()


async def main() -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with SessionConnectionManager(server) as session, anyio.create_task_group() as task_group:
            task_group.start_soon(work, session)
            async for _ in signals:
                task_group.cancel_scope.cancel()
                break
    print("SIGTERM received, server stopped")


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
