"""Sends pings while the connection is open, and detects that the server froze.

Usage: python examples/keep_alive.py [asyncio|trio]
The example starts a server, and freezes it with SIGSTOP.
"""

import os
import signal
import sys
from contextlib import suppress

import anyio
from http_server import running_server
from mcp import ClientSession

from ownertask import ConnectionLostError, ConnectionState
from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager


# --8<-- [start:keep_alive]
async def wait_closed(manager: SessionConnectionManager, interval: float, timeout: float) -> None:
    """Waits like `manager.wait_closed()`, and sends a ping after every `interval` seconds."""
    while True:
        with anyio.move_on_after(interval):
            await manager.wait_closed()
            return
        if manager.state is ConnectionState.OPEN:
            await ping(manager, timeout)


async def ping(manager: SessionConnectionManager, timeout: float) -> None:
    session = manager.connection
    # An error from the server is also a response. If the connection is lost, wait_closed() raises.
    with anyio.move_on_after(timeout) as scope, suppress(Exception):
        await session.send_ping()
    is_same = manager.state is ConnectionState.OPEN and manager.connection is session
    if scope.cancelled_caught and is_same:
        manager.connection_lost(TimeoutError(f"no response to a ping within {timeout} s"))


# --8<-- [end:keep_alive]


async def main(url: str) -> None:
    transport = StreamableHttpConnectionManager(url, terminate_on_close=False)
    manager = SessionConnectionManager(transport, name="calculator")
    pid = await process_id(await manager.start())
    try:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(wait_closed_and_print, manager)
            os.kill(pid, signal.SIGSTOP)
    finally:
        os.kill(pid, signal.SIGCONT)


async def wait_closed_and_print(manager: SessionConnectionManager) -> None:
    try:
        await wait_closed(manager, interval=0.1, timeout=1)
    except ConnectionLostError as error:
        print(error)


async def process_id(session: ClientSession) -> int:
    [content] = (await session.call_tool("process_id", {})).content
    assert content.type == "text"
    return int(content.text)


if __name__ == "__main__":
    with running_server("streamable-http") as url:
        anyio.run(main, url, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
