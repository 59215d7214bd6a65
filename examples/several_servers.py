"""Connects to the servers in a configuration file, and shows a status line for each manager.

Usage: python examples/several_servers.py [asyncio|trio]
One server never answers, one does not exist, and the example kills another. On a terminal, the
example updates the status lines in place. Press Ctrl-C to end it early.
"""

import os
import sys
from pathlib import Path

import anyio
from http_server import running_server
from mcp import ClientSession
from reconnecting import StatusPage, kill

from ownertask import ConnectionGroup, ReconnectPolicy
from ownertask.mcp import managers_from_config

FOLDER = Path(__file__).parent


# --8<-- [start:group]
def create_group(environment: dict[str, str]) -> ConnectionGroup[str, ClientSession]:
    managers = managers_from_config(
        FOLDER / "several_servers.json",
        environment=environment,
        reconnect=ReconnectPolicy(initial_delay=0.2),
    )
    return ConnectionGroup(managers, member_timeout=1, name="group")


# --8<-- [end:group]


# --8<-- [start:use]
async def call_all(group: ConnectionGroup[str, ClientSession]) -> dict[str, str]:
    """Calls the servers that are open now, and reports why the others are not open."""
    report: dict[str, str] = {}
    for name, session in list(group.connection.items()):
        result = await session.call_tool("add", {"a": 1, "b": 2})
        report[name] = f"1 + 2 = {result.content[0].model_dump()['text']}"
    for name, error in group.failures.items():
        report[name] = f"{type(error).__name__}: {error}"
    return report


# --8<-- [end:use]


async def main(url: str) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "EXAMPLES": str(FOLDER), "WEB_URL": url}
    group = create_group(environment)
    managers = group.managers
    page = StatusPage([group, *managers.values()])
    report: dict[str, str] = {}
    async with anyio.create_task_group() as background:
        background.start_soon(page.count_down)
        async with group:
            await kill(managers["flaky"], 1)
            for name in ("green", "web"):  # on a busy machine, the group may be open before them
                await managers[name].wait_open()
            report = await call_all(group)
        background.cancel_scope.cancel()
    for name, result in sorted(report.items()):
        print(f"{name}: {result}")


if __name__ == "__main__":
    backend = sys.argv[1] if len(sys.argv) > 1 else "asyncio"
    options = {"restrict_keyboard_interrupt_to_checkpoints": True} if backend == "trio" else {}
    try:
        with running_server("streamable-http") as url:
            anyio.run(main, url, backend=backend, backend_options=options)
    except* KeyboardInterrupt:
        print("interrupted; all connections are closed")
