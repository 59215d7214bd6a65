"""openai-agents: its manager, with a worker task for each server."""

from agents.mcp import MCPServerManager, MCPServerStdio, MCPServerStreamableHttp
from behaviors import Peer
from running import run


class OpenAIAgents(Peer):
    packages = ("openai-agents", "mcp")
    loggers = ("openai.agents",)
    not_offered = frozenset({"lost"})

    def __init__(self, target, *, start_timeout=10.0, reconnect=False):
        retries = 3 if reconnect else 0
        if target.url:
            parameters = {"url": target.url, "headers": target.headers}
            self.server = MCPServerStreamableHttp(parameters, max_retry_attempts=retries)
        else:
            parameters = {"command": target.command, "args": list(target.args), "env": target.env}
            self.server = MCPServerStdio(parameters, max_retry_attempts=retries)
        self.manager = MCPServerManager(
            [self.server], connect_timeout_seconds=start_timeout, strict=True, connect_in_parallel=True
        )

    async def open(self):
        await self.manager.connect_all()

    async def call(self, tool):
        return (await self.server.call_tool(tool, {})).content[0].text

    async def close(self):
        await self.manager.cleanup_all()

    async def reopen(self):
        await self.manager.reconnect(failed_only=False)

    def objects(self):
        return [self.manager, self.server]


if __name__ == "__main__":
    run("openai-agents", OpenAIAgents)
