"""Sends pings while no message arrives, and detects that the server froze.

Usage: python keep_alive.py [asyncio|trio]
The example starts a server, and freezes it with SIGSTOP.
"""

import os
import signal
import sys

import anyio
from http_server import running_server
from mcp import ClientSession

from ownertask import ConnectionLostError
from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager, ping_every


async def main(url: str) -> None:
    transport = StreamableHttpConnectionManager(url, terminate_on_close=False)
    watch = ping_every(0.1, timeout=1)
    manager = SessionConnectionManager(transport, name="calculator", watch=watch)
    pid = await process_id(await manager.start())
    os.kill(pid, signal.SIGSTOP)
    try:
        await manager.wait_closed()
    except ConnectionLostError as error:
        print(error)
    finally:
        os.kill(pid, signal.SIGCONT)


async def process_id(session: ClientSession) -> int:
    [content] = (await session.call_tool("process_id", {})).content
    assert content.type == "text"
    return int(content.text)


if __name__ == "__main__":
    with running_server("streamable-http") as url:
        anyio.run(main, url, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
