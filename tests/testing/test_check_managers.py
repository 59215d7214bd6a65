"""Checks that all managers of this library keep the rules."""

import json
import os
import signal
from contextlib import suppress
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from http_server import http_server, result_of_initialize
from servers import SHORT_BOUNDS, TINY
from session_server import KINDS, SessionServer, SseServer, result_of, status
from testing import broken
from websocket_peers import websocket_server

from ownertask import ConnectionGroup, ConnectionManager, ConnectionPool
from ownertask.mcp import (
    SessionConnectionManager,
    SseConnectionManager,
    StdioConnectionManager,
    StreamableHttpConnectionManager,
    WebSocketConnectionManager,
)
from ownertask.testing import _steps, check_connection_manager

pytestmark = pytest.mark.within(60)

# httpx does not close its async generators when a request is cancelled, and then the garbage collector
# complains.
leaves_garbage = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


TWO_BACKENDS = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
"""Saves time. The others run a manager in memory, and a session with a server process."""


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """The sweeps of these managers interrupt each step."""
    monkeypatch.setattr(_steps, "MAX_STEPS", 4)


async def use_peer(peer):
    await peer.ping()


async def end_peer(peer):
    await peer.end()


async def test_a_good_manager_passes(monkeypatch):
    monkeypatch.undo()
    await check_connection_manager(broken.Good, use=use_peer, lose=end_peer)


@TWO_BACKENDS
async def test_from_factory_passes():
    async def watch(peer):
        await peer.ended.wait()

    def make():
        return ConnectionManager.from_factory(broken.Good().open_connection, watch=watch)

    await check_connection_manager(make, use=use_peer, lose=end_peer)


@TWO_BACKENDS
async def test_a_group_passes():
    def make():
        return ConnectionGroup({"a": broken.Good(), "b": broken.Good()}, strict=True)

    async def use(members):
        await members["a"].ping()
        await members["b"].ping()

    async def lose(members):
        await members["a"].end()

    await check_connection_manager(make, use=use, lose=lose)


@TWO_BACKENDS
async def test_a_pool_passes():
    async def use(pool):
        async with pool.acquire("a") as peer:
            await peer.ping()

    await check_connection_manager(lambda: ConnectionPool(lambda _: broken.Good()), use=use)


# Sessions.


async def use_session(session):
    await session.list_tools()


async def end_server(session):
    with suppress(Exception):
        await session.call_tool("exit", {"code": 3})


@TWO_BACKENDS
async def test_the_streams_of_a_server_process_pass():
    managers = []

    def make():
        managers.append(StdioConnectionManager(TINY, **SHORT_BOUNDS))
        return managers[-1]

    async def lose(streams):
        [manager] = [manager for manager in managers if manager.get_streams() is streams]
        os.kill(manager.pid, signal.SIGKILL)

    await check_connection_manager(make, lose=lose)


async def test_a_session_with_a_server_process_passes():
    await check_connection_manager(
        lambda: SessionConnectionManager(StdioConnectionManager(TINY)), use=use_session, lose=end_server
    )


class ForgetfulServer(SessionServer):
    """Can forget its sessions."""

    has_forgotten = False

    async def __call__(self, request):
        if request.method == "POST" and request.message.get("method") == "initialize":
            self.has_forgotten = False
        if self.has_forgotten:
            await status("404 Not Found")(request)
        else:
            await super().__call__(request)

    async def forget(self, _):
        self.has_forgotten = True


@leaves_garbage
@TWO_BACKENDS
@pytest.mark.parametrize("kind", KINDS)
async def test_a_session_over_http_passes(kind):
    server = ForgetfulServer()
    async with http_server(server) as url:
        await check_connection_manager(
            lambda: kind(StreamableHttpConnectionManager(url)), use=use_session, lose=server.forget
        )


class PingingSseServer(SseServer):
    """Answers pings."""

    async def __call__(self, request):
        await super().__call__(request)
        if request.method == "POST" and request.message["method"] == "ping":
            pong = {"jsonrpc": "2.0", "id": request.message["id"], "result": {}}
            await self.events.send_event("message", pong)

    async def end(self, _):
        await self.events.stream.aclose()


@leaves_garbage
@TWO_BACKENDS
async def test_a_session_over_sse_passes():
    server = PingingSseServer("/messages")
    async with http_server(server) as url:
        await check_connection_manager(
            lambda: SessionConnectionManager(SseConnectionManager(url)),
            use=lambda session: session.send_ping(),
            lose=server.end,
        )


@TWO_BACKENDS
async def test_a_session_over_a_websocket_passes(anyio_backend_name):
    if anyio_backend_name == "trio" and not find_spec("websockets.trio"):
        pytest.skip("websockets has a trio client since 17")

    def serve(websocket):
        for text in websocket:
            request = SimpleNamespace(message=json.loads(text))
            method = request.message["method"]
            if method == "initialize":
                websocket.send(json.dumps(result_of_initialize(request)))
            elif method == "tools/list":
                websocket.send(json.dumps(result_of(request)))
            elif method == "ping":
                websocket.close()

    async def lose(session):
        with suppress(Exception):
            await session.send_ping()

    with websocket_server(serve) as url:
        await check_connection_manager(
            lambda: SessionConnectionManager(WebSocketConnectionManager(url)), use=use_session, lose=lose
        )
