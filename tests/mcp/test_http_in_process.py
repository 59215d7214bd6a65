"""Tests with the SDK's own servers under uvicorn, in the same event loop as their clients."""

from contextlib import asynccontextmanager

import anyio
import pytest
import uvicorn

from ownertask import ConnectionState
from ownertask.mcp import SessionConnectionManager, SseConnectionManager, StreamableHttpConnectionManager

try:
    from mcp.server.mcpserver import MCPServer
except ImportError:  # mcp 1.x
    from mcp.server.fastmcp import FastMCP as MCPServer

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Field 'lifespan' has an incomplete definition"),  # from mcp 1.24
]


class Server(uvicorn.Server):
    def __init__(self, app):
        # uvicorn's own logging configuration would enable loggers that other tests disabled.
        super().__init__(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=5))
        self.has_started = anyio.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.has_started.set()

    @property
    def url(self):
        host, port = self.servers[0].sockets[0].getsockname()
        return f"http://{host}:{port}"


@asynccontextmanager
async def serving(app):
    server = Server(app)
    async with anyio.create_task_group() as tg:
        tg.start_soon(server.serve)
        await server.has_started.wait()
        yield server.url
        server.should_exit = True


def a_server():
    server = MCPServer("in process")

    @server.tool()
    def add(a: int, b: int) -> int:
        return a + b

    return server


@pytest.mark.parametrize("transport", ["sse", "streamable-http"])
def test_start_use_and_stop_in_three_tasks_work_with_a_server_in_the_same_loop(transport):
    """Runs on asyncio, the only backend that uvicorn supports.

    `anyio.run()` starts a new event loop and ends the server's tasks together with it.
    """
    sums = []

    async def main():
        server = a_server()
        app = server.sse_app() if transport == "sse" else server.streamable_http_app()
        async with serving(app) as url:
            if transport == "sse":
                manager = SessionConnectionManager(SseConnectionManager(f"{url}/sse"))
            else:
                manager = SessionConnectionManager(StreamableHttpConnectionManager(f"{url}/mcp"))

            async def add(number):
                result = await manager.connection.call_tool("add", {"a": number, "b": number})
                sums.append(result.content[0].text)

            with anyio.fail_after(15):
                async with anyio.create_task_group() as tg:
                    tg.start_soon(manager.start)
                await add(1)
                async with anyio.create_task_group() as tg:
                    tg.start_soon(add, 2)
                async with anyio.create_task_group() as tg:
                    tg.start_soon(manager.stop)
            assert manager.state is ConnectionState.CLOSED
            assert manager.exception is None

    anyio.run(main)
    assert sums == ["2", "4"]
