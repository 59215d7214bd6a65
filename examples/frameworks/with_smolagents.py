"""smolagents: mcpadapt runs an event loop in a thread, for tools that are called without `await`."""

import asyncio
from threading import Thread

from mcp import ClientSession
from mcpadapt.core import MCPAdapt, ToolAdapter
from mcpadapt.smolagents_adapter import SmolAgentsAdapter
from scenario import Integration, Target, run

from ownertask import ConnectionManager


class ManagedAdapt(MCPAdapt):
    def __init__(self, manager: ConnectionManager[ClientSession], adapter: ToolAdapter) -> None:
        super().__init__([], adapter)
        self.manager = manager
        self.sessions = [manager.current]
        self.thread = Thread(target=self.loop.run_forever)

    def start(self) -> None:
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.manager.start(), self.loop).result()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.manager.stop(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class SmolAgents(Integration):
    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.adapt = ManagedAdapt(self.manager, SmolAgentsAdapter(structured_output=False))

    async def start(self) -> None:
        await asyncio.to_thread(self.adapt.start)

    async def tools(self) -> list[str]:
        self.toolkit = {tool.name: tool for tool in await asyncio.to_thread(self.adapt.tools)}
        return list(self.toolkit)

    async def call(self, tool: str, **arguments: int) -> object:
        return await asyncio.to_thread(self.toolkit[tool], **arguments)

    async def stop(self) -> None:
        await asyncio.to_thread(self.adapt.close)


if __name__ == "__main__":
    run(SmolAgents, "smolagents", "mcpadapt")
