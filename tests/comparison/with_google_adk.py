"""google-adk: a toolset. Its session manager opens sessions when they are needed."""

from behaviors import Peer
from google.adk.agents import LlmAgent
from google.adk.agents.invocation_context import InvocationContext
from google.adk.sessions import InMemorySessionService
from google.adk.tools.mcp_tool import (
    McpToolset,
    StdioConnectionParams,
    StreamableHTTPConnectionParams,
)
from google.adk.tools.tool_context import ToolContext
from mcp import StdioServerParameters
from running import run


class GoogleADK(Peer):
    packages = ("google-adk", "mcp")
    loggers = ("google_adk",)
    not_offered = frozenset({"lost"})

    def __init__(self, target, *, start_timeout=5.0, reconnect=False):
        if target.url:
            parameters = StreamableHTTPConnectionParams(
                url=target.url, headers=target.headers, timeout=start_timeout
            )
        else:
            server = StdioServerParameters(
                command=target.command, args=list(target.args), env=target.env
            )
            parameters = StdioConnectionParams(server_params=server, timeout=start_timeout)
        self.toolset = McpToolset(connection_params=parameters)

    async def open(self):
        self.tools = {tool.name: tool for tool in await self.toolset.get_tools()}

    async def call(self, tool):
        service = InMemorySessionService()
        session = await service.create_session(app_name="comparison", user_id="user")
        agent = LlmAgent(name="comparison")
        invocation = InvocationContext(
            invocation_id="1", agent=agent, session=session, session_service=service
        )
        result = await self.tools[tool].run_async(args={}, tool_context=ToolContext(invocation))
        if "error" in result:  # it returns the text of an error to the model
            raise RuntimeError(result["error"])
        return result["content"][0]["text"]

    async def close(self):
        await self.toolset.close()

    def objects(self):
        return [self.toolset]


if __name__ == "__main__":
    run("google-adk", GoogleADK)
