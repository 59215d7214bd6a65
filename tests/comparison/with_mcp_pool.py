"""mcp-pool: a pool of one session, which it checks once a second."""

import asyncio

import mcp  # noqa: F401 - the pool imports it when it opens the first session, which takes long
from behaviors import Peer
from mcpool import EventHooks, MCPPool, PoolConfig
from running import run


class McpPool(Peer):
    packages = ("mcp-pool", "mcp")
    loggers = ("mcpool",)

    def __init__(self, target, *, start_timeout=None, reconnect=False):
        self.failed = asyncio.Event()
        options = {"min_sessions": 1, "max_sessions": 1, "health_check_interval_s": 1.0}
        if start_timeout is not None:
            options |= {"connect_timeout_s": start_timeout, "retry_count": 0}
        if target.url:
            options |= {"endpoint": target.url, "mcp_headers": target.headers}
        else:
            server = {
                "endpoint": target.command,
                "stdio_args": list(target.args),
                "stdio_env": target.env,
            }
            options |= {"transport": "stdio", **server}
        hooks = EventHooks(on_health_check_failed=self.check_failed)
        self.pool = MCPPool(PoolConfig(**options, event_hooks=hooks))

    async def check_failed(self, _):
        self.failed.set()

    async def open(self):
        await self.pool.start()
        async with self.pool.session():  # raises an error, which start() only logs
            pass

    async def call(self, tool):
        return (await self.pool.call_tool(tool, {})).content[0].text

    async def close(self):
        await self.pool.shutdown()

    async def lost(self):
        await self.failed.wait()

    def objects(self):
        return [self.pool]


if __name__ == "__main__":
    run("mcp-pool", McpPool)
