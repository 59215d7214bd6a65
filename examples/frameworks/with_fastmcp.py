"""fastmcp: its client opens sessions through a transport class."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastmcp import Client
from fastmcp.client.transports import ClientTransport
from fastmcp.client.transports.base import TransportOptions
from mcp import ClientSession
from scenario import QUICKLY, Integration, Target, run

from ownertask.mcp import SessionConnectionManager


class ManagedTransport(ClientTransport):
    def __init__(self, target: Target) -> None:
        self.target = target

    @asynccontextmanager
    async def connect_session(
        self, *, transport_options: TransportOptions | None = None, **session_options: object
    ) -> AsyncGenerator[ClientSession]:
        kind = (transport_options or TransportOptions()).session_class
        self.manager = SessionConnectionManager(
            self.target, session_class=kind, reconnect=QUICKLY, **session_options
        )
        async with self.manager:
            yield self.manager.current


class FastMCP(Integration):
    def __init__(self, target: Target) -> None:
        self.transport = ManagedTransport(target)
        self.client = Client(self.transport)

    async def start(self) -> None:
        await self.client.__aenter__()
        self.manager = self.transport.manager

    async def tools(self) -> list[str]:
        return [tool.name for tool in await self.client.list_tools()]

    async def call(self, tool: str, **arguments: int) -> object:
        return (await self.client.call_tool(tool, arguments)).content

    async def stop(self) -> None:
        await self.client.close()


if __name__ == "__main__":
    run(FastMCP, "fastmcp")
