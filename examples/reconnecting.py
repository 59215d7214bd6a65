"""Keeps servers connected, and shows a status line for each of them while some of them die.

Usage: python examples/reconnecting.py [asyncio|trio]
The example kills its own servers. On a terminal, it updates the status lines in place.
"""

import logging
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import anyio
from mcp import ClientSession, StdioServerParameters

from ownertask import ConnectionManager, ConnectionState, ReconnectPolicy
from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
missing = StdioServerParameters(command="no-such-command")

green = SessionConnectionManager(server, name="green", reconnect=ReconnectPolicy())
red = SessionConnectionManager(server, name="red", reconnect=ReconnectPolicy())
gray = SessionConnectionManager(missing, name="gray", reconnect=ReconnectPolicy())


# --8<-- [start:status]
def status(manager: ConnectionManager[object]) -> str:
    """Describes a manager in one line."""
    line = f"{manager.name:7}  {manager.state.value}"
    if (reconnecting := manager.reconnecting) is not None:
        seconds = max(0.0, reconnecting.due - anyio.current_time())
        when = f"retry in {seconds:.1f} s" if seconds else "trying now"
        reason = reconnecting.exception.__cause__ or reconnecting.exception
        return f"{line}  failures: {reconnecting.failures}  {when}  {reason}"
    return line if manager.exception is None else f"{line}  {manager.exception}"


# --8<-- [end:status]


COLORS = {ConnectionState.OPEN: 32, ConnectionState.OPENING: 33, ConnectionState.FAILED: 31}


class StatusPage:
    """Prints a line at each change of a state. On a terminal, shows one line for each manager."""

    def __init__(self, managers: Sequence[ConnectionManager[object]]) -> None:
        self._managers = managers
        self._is_terminal = sys.stdout.isatty()
        self._is_drawn = False
        if self._is_terminal:  # a log record would move the lines
            logging.getLogger("ownertask").addHandler(logging.NullHandler())
        for manager in managers:
            manager.add_listener(self.changed)

    def changed(
        self, manager: ConnectionManager[object], old: ConnectionState, new: ConnectionState
    ) -> None:
        if self._is_terminal:
            self.draw()
        elif new is manager.state:  # not FAILED if another run follows
            print(status(manager), flush=True)

    def draw(self) -> None:
        width = shutil.get_terminal_size().columns
        page = f"\x1b[{len(self._managers)}A" if self._is_drawn else ""  # moves up to the first line
        for manager in self._managers:
            color = COLORS.get(manager.state, 0)
            page += f"\x1b[{color}m{status(manager)[:width]}\x1b[0m\x1b[K\n"
        self._is_drawn = True
        print(page, end="")

    async def count_down(self) -> None:
        while self._is_terminal:
            self.draw()
            await anyio.sleep(0.1)


# --8<-- [start:use]
class Caller:
    """Stands for a framework that is given a session once and keeps it."""

    def __init__(self, session: ClientSession) -> None:
        self.session = session
        self.results = Counter[str]()

    async def run(self) -> None:
        while True:
            try:
                await self.session.call_tool("add", {"a": 1, "b": 2})
                self.results["answered"] += 1
            except Exception:  # noqa: BLE001 - the error of a call whose connection was lost
                self.results["failed"] += 1
            await anyio.sleep(0.02)


callers = [Caller(green.current), Caller(red.current)]
# --8<-- [end:use]


async def kill(manager: ConnectionManager[ClientSession], times: int) -> None:
    """Kills the server, and waits until the manager is connected to the next one."""
    await manager.start()
    for _ in range(times):
        session = await manager.wait_open()
        [content] = (await session.call_tool("process_id", {})).content
        assert content.type == "text"
        os.kill(int(content.text), signal.SIGTERM)
        with suppress(Exception):
            await session.send_ping()  # fails when the loss is detected
    await manager.wait_open()
    await anyio.sleep(0.3)  # the callers use the last connection for a while


async def main() -> None:
    managers = (green, red, gray)
    page = StatusPage(managers)
    async with anyio.create_task_group() as background:
        background.start_soon(page.count_down)
        with suppress(FileNotFoundError):  # the policy doesn't try again
            await gray.start()
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(kill, green, 1)
            task_group.start_soon(kill, red, 2)
            await green.start()
            await red.start()
            for caller in callers:
                background.start_soon(caller.run)
        background.cancel_scope.cancel()
    for manager in managers:
        await manager.stop()
    for manager, caller in zip(managers, callers, strict=False):
        print(manager.name, dict(sorted(caller.results.items())))


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
