"""The SDK's own servers under uvicorn, in the loop in which the connections to them are."""

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

# The SDK leaves its generator of server-sent events to the garbage collector, and 1.24 some streams.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Field 'lifespan' has an incomplete definition"),  # by mcp 1.24
]


class Server(uvicorn.Server):
    def __init__(self, app):
        # Its configuration of logging would switch on what other tests have switched off.
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
def test_a_server_in_the_same_loop_is_started_used_and_stopped_in_three_tasks(transport):
    """On asyncio, as uvicorn knows no other; in a loop of its own, which ends the server's tasks."""
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
