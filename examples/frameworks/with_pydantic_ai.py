"""pydantic-ai: its toolset accepts a fastmcp client."""

from fastmcp.client import Client
from pydantic_ai.mcp import MCPToolset
from scenario import Integration, Target, run
from with_fastmcp import ManagedTransport


class PydanticAI(Integration):
    def __init__(self, target: Target) -> None:
        transport = ManagedTransport(target)
        self.toolset = MCPToolset(Client(transport))
        self.transport = transport

    async def start(self) -> None:
        await self.toolset.__aenter__()
        self.manager = self.transport.manager

    async def tools(self) -> list[str]:
        return [tool.name for tool in await self.toolset.list_tools()]

    async def call(self, tool: str, **arguments: int) -> object:
        result = await self.toolset.direct_call_tool(tool, arguments)
        return result["result"] if isinstance(result, dict) else result

    async def stop(self) -> None:
        await self.toolset.__aexit__(None, None, None)


if __name__ == "__main__":
    run(PydanticAI, "pydantic-ai-slim")
