"""The part of an agent framework that opens a session and keeps it, with ownertask.

Usage: python session_manager.py
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from mcp import ClientSession, StdioServerParameters

from ownertask import ReconnectPolicy
from ownertask.mcp import SessionConnectionManager


class Tool:
    """A tool for agents. It keeps the session, and still works after a restart."""

    def __init__(self, session: ClientSession, name: str) -> None:
        self.session = session
        self.name = name

    async def call(self, **arguments: int) -> str:
        result = await self.session.call_tool(self.name, arguments)
        [content] = result.content
        assert content.type == "text"
        return content.text


class McpServer:
    """A server that an agent uses. It is given as a command or a URL."""

    def __init__(self, server: StdioServerParameters | str) -> None:
        # After three failures in a row, connect() raises the last one. Without a limit, it would wait.
        policy = ReconnectPolicy(max_retries=3)
        self.manager = SessionConnectionManager(server, reconnect=policy)

    async def connect(self) -> None:
        await self.manager.start()

    async def close(self) -> None:
        await self.manager.stop()

    async def tools(self) -> dict[str, Tool]:
        session = self.manager.current  # follows the manager to each new session
        result = await session.list_tools()
        return {tool.name: Tool(session, tool.name) for tool in result.tools}


async def main() -> None:
    path = str(Path(__file__).with_name("server.py"))
    server = McpServer(StdioServerParameters(command=sys.executable, args=[path]))
    await asyncio.create_task(server.connect())
    tools = await server.tools()
    print("1 + 1 =", await tools["add"].call(a=1, b=1))
    os.kill(int(await tools["process_id"].call()), signal.SIGTERM)
    with suppress(Exception):
        await server.manager.current.send_ping()  # fails when the loss is detected
    print("2 + 2 =", await tools["add"].call(a=2, b=2))  # waits for the next session
    await asyncio.create_task(server.close())


if __name__ == "__main__":
    asyncio.run(main())
