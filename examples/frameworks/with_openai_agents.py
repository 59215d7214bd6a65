"""openai-agents: its servers have connect() and cleanup(), which a subclass replaces."""

import json

from agents import Agent, RunContextWrapper
from agents.mcp import MCPServer, MCPServerStdio, MCPServerStreamableHttp, MCPUtil
from agents.tool_context import ToolContext
from scenario import QUICKLY, Integration, Target, run

from ownertask.mcp import SessionConnectionManager, ping_every


class Managed(MCPServer):
    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.manager = SessionConnectionManager(
            self.create_streams, reconnect=QUICKLY, watch=ping_every(1.0)
        )

    async def connect(self) -> None:
        await self.manager.start()
        self.session = self.manager.current

    async def cleanup(self) -> None:
        await self.manager.stop()


class ManagedStdio(Managed, MCPServerStdio): ...


class ManagedHttp(Managed, MCPServerStreamableHttp): ...


class OpenAIAgents(Integration):
    def __init__(self, target: Target) -> None:
        if isinstance(target, str):
            self.server = ManagedHttp({"url": target})
        else:
            self.server = ManagedStdio({"command": target.command, "args": target.args})
        self.manager = self.server.manager
        self.start, self.stop = self.server.connect, self.server.cleanup

    async def tools(self) -> list[str]:
        agent = Agent("examples")
        tools = await MCPUtil.get_function_tools(
            self.server,
            convert_schemas_to_strict=False,
            run_context=RunContextWrapper(None),
            agent=agent,
        )
        self.toolkit = {tool.name: tool for tool in tools}
        return list(self.toolkit)

    async def call(self, tool: str, **arguments: int) -> object:
        text = json.dumps(arguments)
        context = ToolContext(None, tool_name=tool, tool_call_id="1", tool_arguments=text)
        result = await self.toolkit[tool].on_invoke_tool(context, text)
        return result["text"]


if __name__ == "__main__":
    run(OpenAIAgents, "openai-agents")
