"""fastmcp: its client, which keeps a session in a task.

Without `reconnect`, the application enters the client once. With it, it enters the client for each call,
because the client reconnects on entry.
"""

import asyncio
from contextlib import nullcontext

from behaviors import Peer
from fastmcp import Client
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport
from running import run


class FastMCP(Peer):
    packages = ("fastmcp", "mcp")
    loggers = ("fastmcp",)

    def __init__(self, target, *, start_timeout=None, reconnect=False):
        if target.url:
            self.transport = StreamableHttpTransport(target.url, target.headers)
        else:
            self.transport = StdioTransport(target.command, list(target.args), target.env)
        self.client = Client(self.transport, init_timeout=start_timeout)
        self.is_entered_by_calls = reconnect

    async def open(self):
        if not self.is_entered_by_calls:
            await self.client.__aenter__()

    async def call(self, tool):
        async with self.client if self.is_entered_by_calls else nullcontext():
            return (await self.client.call_tool(tool, {})).content[0].text

    async def close(self):
        await self.client.close()

    async def lost(self):
        while self.client.is_connected():  # it has no event
            await asyncio.sleep(0.05)

    def objects(self):
        return [self.client, self.transport]


if __name__ == "__main__":
    run("fastmcp", FastMCP)
