"""google-adk: it keeps a session for each set of HTTP headers, and has its own handshake."""

from functools import partial

from google.adk.agents import LlmAgent
from google.adk.agents.invocation_context import InvocationContext
from google.adk.sessions import InMemorySessionService
from google.adk.tools.mcp_tool import (
    McpToolset,
    StdioConnectionParams,
    StreamableHTTPConnectionParams,
)
from google.adk.tools.mcp_tool.mcp_session_manager import MCPSessionManager
from google.adk.tools.mcp_tool.session_context import _connect
from google.adk.tools.tool_context import ToolContext
from mcp import ClientSession
from scenario import QUICKLY, Integration, Target, run

from ownertask.mcp import SessionConnectionManager, ping_every


class ManagedSessions(MCPSessionManager):
    async def create_session(self, headers: dict[str, str] | None = None) -> ClientSession:
        transport = partial(self._create_client, self._merge_headers(headers))
        manager = SessionConnectionManager(
            transport, initialize=_connect, reconnect=QUICKLY, watch=ping_every(1.0)
        )
        manager = self.managers.setdefault(self._session_key_for(headers), manager)
        await manager.start()
        return manager.current

    async def close(self) -> None:
        for manager in self.managers.values():
            await manager.stop()


class GoogleADK(Integration):
    def __init__(self, target: Target) -> None:
        if isinstance(target, str):
            parameters = StreamableHTTPConnectionParams(url=target)
        else:
            parameters = StdioConnectionParams(server_params=target)
        self.toolset = McpToolset(connection_params=parameters)
        self.sessions = ManagedSessions(parameters)
        self.sessions.managers = {}
        self.toolset._mcp_session_manager = self.sessions

    async def start(self) -> None:
        self.toolkit = {tool.name: tool for tool in await self.toolset.get_tools()}
        (self.manager,) = self.sessions.managers.values()

    async def tools(self) -> list[str]:
        return list(self.toolkit)

    async def call(self, tool: str, **arguments: int) -> object:
        service = InMemorySessionService()
        session = await service.create_session(app_name="examples", user_id="user")
        agent = LlmAgent(name="examples")
        invocation = InvocationContext(
            invocation_id="1", agent=agent, session=session, session_service=service
        )
        context = ToolContext(invocation)
        result = await self.toolkit[tool].run_async(args=arguments, tool_context=context)
        return result["content"][0]["text"]

    async def stop(self) -> None:
        await self.toolset.close()


if __name__ == "__main__":
    run(GoogleADK, "google-adk")
