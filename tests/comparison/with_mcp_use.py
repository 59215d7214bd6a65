"""mcp-use 1.7: its client, whose connectors use connection managers."""

import asyncio
import os

from behaviors import Peer
from running import run

os.environ["MCP_USE_ANONYMIZED_TELEMETRY"] = "false"  # mcp-use reads it when it is imported

from mcp_use.client import MCPClient


class McpUse(Peer):
    packages = ("mcp-use", "mcp")
    loggers = ("mcp_use",)
    not_offered = frozenset({"start_timeout"})  # only for HTTP requests

    def __init__(self, target, *, start_timeout=None, reconnect=False):
        if target.url:
            server = {"url": target.url, "headers": target.headers, "auth": None}
        else:
            server = {"command": target.command, "args": list(target.args), "env": target.env}
        self.client = MCPClient({"mcpServers": {"server": server}})

    async def open(self):
        self.session = await self.client.create_session("server")

    async def call(self, tool):
        return (await self.session.call_tool(tool, {})).content[0].text

    async def close(self):
        await self.client.close_all_sessions()

    async def lost(self):
        while self.session.is_connected:  # it has no event
            await asyncio.sleep(0.05)

    def objects(self):
        return [self.client]


if __name__ == "__main__":
    run("mcp-use", McpUse)
