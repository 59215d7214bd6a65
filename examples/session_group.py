"""The SDK's `ClientSessionGroup`, with sessions from ownertask's managers.

Usage: python session_group.py [asyncio|trio]
"""

import sys
from pathlib import Path

import anyio
from mcp import ClientSession, ClientSessionGroup, StdioServerParameters
from mcp.types import Implementation

from ownertask.mcp import SessionConnectionManager

path = str(Path(__file__).with_name("server.py"))
server = StdioServerParameters(command=sys.executable, args=[path])
managers = {name: SessionConnectionManager(server, name=name) for name in ("red", "green")}
sessions: dict[str, ClientSession] = {}
group = ClientSessionGroup(component_name_hook=lambda tool, info: f"{info.name}.{tool}")


async def connect(name: str) -> None:
    sessions[name] = await managers[name].start()
    await group.connect_with_session(Implementation(name=name, version="1"), sessions[name])


async def disconnect(name: str) -> None:
    try:
        await group.disconnect_from_server(sessions.pop(name))
    finally:
        await managers[name].stop()


async def main() -> None:
    for name in managers:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(connect, name)
    print(*sorted(group.tools))
    print((await group.call_tool("red.add", {"a": 1, "b": 2})).content)
    managers["red"].connection_lost()  # even a lost session can be disconnected
    for name in managers:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(disconnect, name)
    print(*group.tools, *(manager.state.value for manager in managers.values()))


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
