"""Makes mcp-use 1.7 use ownertask's managers. Its client then reconnects after a server was killed.

Usage: python examples/frameworks/patched_mcp_use.py

The example calls a tool over each transport, kills the server, and calls the tool again. Except over
stdio, it restarts the server on the same port.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import anyio
from mcp import ClientSession

from ownertask import ConnectionLostError, ConnectionManager
from ownertask.mcp import (
    SseConnectionManager,
    StdioConnectionManager,
    StreamableHttpConnectionManager,
    TransportStreams,
    WebSocketConnectionManager,
)

os.environ["MCP_USE_ANONYMIZED_TELEMETRY"] = "false"  # mcp-use reads it when it is imported

from mcp_use.client import MCPClient, config
from mcp_use.client.connectors import http, stdio
from mcp_use.client.connectors.base import BaseConnector
from mcp_use.client.middleware import CallbackClientSession
from mcp_use.client.session import MCPSession

SERVER = str(Path(__file__).with_name("patched_mcp_use_server.py"))

for name in ("ownertask", "mcp", "mcp_use"):
    logging.getLogger(name).setLevel(logging.CRITICAL)  # the losses are intended


class ForMcpUse(ConnectionManager[TransportStreams]):
    """Adds what mcp-use expects of a connection manager."""

    def get_streams(self) -> TransportStreams:
        return self.connection  # raises after a loss, so mcp-use knows that it is disconnected

    async def close(self) -> None:  # called before mcp-use tries SSE instead of streamable HTTP
        await self.stop()


class Stdio(ForMcpUse, StdioConnectionManager): ...


class Sse(ForMcpUse, SseConnectionManager): ...


class StreamableHttp(ForMcpUse, StreamableHttpConnectionManager): ...


stdio.StdioConnectionManager = Stdio
http.SseConnectionManager = Sse
http.StreamableHttpConnectionManager = StreamableHttp
reconnect_if_lost = BaseConnector._ensure_connected


async def ensure_connected(connector: BaseConnector) -> None:
    """Reconnects once for all callers, and initializes the new session."""
    async with vars(connector).setdefault("reconnecting", asyncio.Lock()):
        if not connector.is_connected:
            connector._initialized = False
            # A separate task, because mcp-use enters the session's cancel scope and never exits it.
            await asyncio.create_task(reconnect_if_lost(connector))
        await connector.initialize()  # does nothing if the session is initialized


BaseConnector._ensure_connected = ensure_connected


class WebSocket(ForMcpUse, WebSocketConnectionManager): ...


class WebSocketConnector(BaseConnector):
    """Replaces mcp-use's class, which cannot use the two streams of a manager."""

    def __init__(self, url: str, headers: dict[str, str] | None = None, auth: object = None) -> None:
        super().__init__()
        self.url = url
        self.headers = dict(headers or {})
        if isinstance(auth, str):
            self.headers["Authorization"] = f"Bearer {auth}"

    @property
    def public_identifier(self) -> str:
        return f"websocket:{self.url}"

    async def connect(self) -> None:
        if self._connected:
            return
        self._connection_manager = WebSocket(self.url, self.headers)
        session = ClientSession(
            *await self._connection_manager.start(),
            list_roots_callback=self.list_roots_callback,
            message_handler=self._internal_message_handler,
            client_info=self.client_info,
        )
        await session.__aenter__()
        self.client_session = CallbackClientSession(
            session, self.public_identifier, self.middleware_manager
        )
        self._connected = True


config.WebSocketConnector = WebSocketConnector


class Server:
    """A server that can be restarted. Over stdio, the client starts it."""

    def __init__(self, transport: str) -> None:
        self.transport = transport
        self.process: subprocess.Popen[str] | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        if self.transport == "stdio":
            return
        command = [sys.executable, SERVER, self.transport, str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()

    @property
    def config(self) -> Mapping[str, object]:
        """The server's entry in the configuration of mcp-use."""
        address = f"127.0.0.1:{self.port}"
        entries: dict[str, Mapping[str, object]] = {
            "stdio": {"command": sys.executable, "args": [SERVER, "stdio"]},
            "SSE": {"url": f"http://{address}/sse", "auth": None},
            "streamable HTTP": {"url": f"http://{address}/mcp", "auth": None},
            "WebSocket": {"ws_url": f"ws://{address}/mcp", "auth": None},
        }
        return entries[self.transport]


async def call(session: MCPSession) -> int:
    result = await session.call_tool("process_id", {})
    assert not result.isError, result
    return int(result.content[0].text)


async def use(server: Server) -> None:
    client = MCPClient({"mcpServers": {"example": server.config}})
    session = await client.create_session("example")
    manager = session.connector._connection_manager
    assert isinstance(manager, ForMcpUse)
    first = await call(session)

    os.kill(first, signal.SIGKILL)
    server.stop()
    server.start()
    with suppress(ConnectionLostError):
        await manager.wait_closed()
    assert not session.is_connected

    others = [asyncio.create_task(call(session)) for _ in range(2)]
    with anyio.fail_after(20):
        second = await call(session)  # begins first, and reconnects
    assert second != first
    assert await asyncio.gather(*others) == [second, second]
    assert session.connector._connection_manager is not manager
    assert session.is_connected
    await client.close_all_sessions()


def has_child_process() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


async def check(transport: str) -> None:
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    server = Server(transport)
    try:
        async with asyncio.timeout(60):
            await use(server)
    finally:
        server.stop()
    await anyio.wait_all_tasks_blocked()
    assert asyncio.all_tasks() == tasks, asyncio.all_tasks() - tasks
    assert {
        thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")
    } <= threads
    assert not has_child_process()
    print(f"{transport}: reconnected to a new server; no task, thread or process is left")


async def main() -> None:
    print(", ".join(f"{name} {version(name)}" for name in ("mcp-use", "mcp")))
    for transport in ("stdio", "SSE", "streamable HTTP", "WebSocket"):
        await check(transport)


if __name__ == "__main__":
    asyncio.run(main())
