"""strands-agents: its client runs an event loop in a thread, and has its own handshake."""

import asyncio

from mcp import stdio_client
from mcp.client.streamable_http import streamable_http_client
from scenario import QUICKLY, Integration, Target, run
from strands.tools.mcp import MCPClient
from strands.tools.mcp._compat import negotiate_session

from ownertask.mcp import SessionConnectionManager, ping_every


class ManagedClient(MCPClient):
    async def _async_background_thread(self) -> None:
        self._close_future = asyncio.Future()
        try:
            self.manager = SessionConnectionManager(
                self._transport_callable,
                initialize=negotiate_session,
                reconnect=QUICKLY,
                watch=ping_every(1.0),
                message_handler=self._handle_session_message,
            )
            async with self.manager:
                self._background_thread_session = self.manager.current
                self._init_future.set_result(None)
                await self._close_future
        except Exception as error:  # noqa: BLE001 - start() raises it
            self._init_future.set_exception(error)


class Strands(Integration):
    def __init__(self, target: Target) -> None:
        function = streamable_http_client if isinstance(target, str) else stdio_client
        self.client = ManagedClient(lambda: function(target))

    async def start(self) -> None:
        await asyncio.to_thread(self.client.start)
        self.manager = self.client.manager

    async def tools(self) -> list[str]:
        return [tool.tool_name for tool in self.client.list_tools_sync()]

    async def call(self, tool: str, **arguments: int) -> object:
        result = await self.client.call_tool_async("1", tool, arguments)
        return result["content"][0]["text"]

    async def stop(self) -> None:
        await asyncio.to_thread(self.client.stop, None, None, None)


if __name__ == "__main__":
    run(Strands, "strands-agents")
