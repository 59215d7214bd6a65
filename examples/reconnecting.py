"""Prints a line at each change of the state of two managers.

Usage: python reconnecting.py [asyncio|trio]
One server does not exist. The program kills the other server twice.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import anyio
from mcp import StdioServerParameters

from ownertask import ConnectionManager, ConnectionState, ReconnectPolicy
from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
missing = StdioServerParameters(command="no-such-command")

red = SessionConnectionManager(server, name="red", reconnect=ReconnectPolicy())
gray = SessionConnectionManager(missing, name="gray", reconnect=ReconnectPolicy())


def status(manager: ConnectionManager[object]) -> str:
    """Describes a manager in one line."""
    line = f"{manager.name:5} {manager.state.value}"
    if (reconnecting := manager.reconnecting) is not None:
        seconds = max(0.0, reconnecting.due - anyio.current_time())
        reason = reconnecting.exception.__cause__ or reconnecting.exception
        return f"{line}  failures: {reconnecting.failures}  retry in {seconds:.1f} s  {reason}"
    return line if manager.exception is None else f"{line}  {manager.exception}"


def changed(manager: ConnectionManager[object], old: ConnectionState, new: ConnectionState) -> None:
    if new is manager.state:  # not FAILED if another attempt follows
        print(status(manager), flush=True)


async def kill_server() -> None:
    session = await red.wait_open()
    [content] = (await session.call_tool("process_id", {})).content
    assert content.type == "text"
    os.kill(int(content.text), signal.SIGTERM)
    with suppress(Exception):
        await session.send_ping()  # fails when the loss is detected


async def main() -> None:
    red.add_listener(changed)
    gray.add_listener(changed)
    with suppress(FileNotFoundError):  # the policy doesn't try again
        await gray.start()
    async with red:
        await kill_server()
        await kill_server()
        await red.wait_open()


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
