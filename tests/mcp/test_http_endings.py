"""Tests for the DELETE request that ends a session on the server, also after a loss or a forced stop."""

from contextlib import suppress

import anyio
import pytest
from http_server import http_server
from session_server import (
    KINDS,
    Log,
    SessionServer,
    call,
    event,
    in_turn,
    lost,
    opened,
    refused,
    silent,
    status,
    until_gone,
    works,
)

from ownertask import ConnectionState, ConnectionStoppedError, StartTimeoutError
from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

kinds = pytest.mark.parametrize("kind", KINDS)


async def lose(manager):
    manager.connection_lost(ConnectionError("the application noticed it"))
    loss = await lost(manager)
    assert "the application noticed it" in str(loss.__cause__)


async def stop_at_once(manager):
    with anyio.fail_after(1):
        await manager.stop(timeout=0)
    assert manager.state is ConnectionState.CLOSED


ENDS = {"a loss": lose, "a forced stop": stop_at_once}
ends = pytest.mark.parametrize("end", ENDS)


@kinds
@ends
async def test_W6_the_session_is_ended_on_the_server(kind, end):
    server = SessionServer()
    async with opened(server, kind) as (manager, session):
        await session.list_tools()
        await ENDS[end](manager)
        await server.received("DELETE")
        assert manager.exception is None or end == "a loss"
    assert server.count("DELETE") == 1
    assert server.all("DELETE")[0].headers["mcp-session-id"] == "1"


@kinds
@ends
async def test_W6_the_session_is_ended_on_the_server_although_a_call_is_pending(kind, end):
    server = SessionServer(**{"tools/call": silent})
    async with opened(server, kind) as (manager, session):
        async with anyio.create_task_group() as tg:
            tg.start_soon(refused, session)
            await server.received("tools/call")
            await ENDS[end](manager)
        await server.received("DELETE")
    assert server.count("DELETE") == 1


async def test_W6_the_session_is_ended_on_the_server_after_its_probe_failed_with_5xx(monkeypatch):
    monkeypatch.setattr("ownertask.mcp._http_session.PROBE_TIMEOUT", 0.3)
    monkeypatch.setattr("ownertask.mcp._http_session.PROBE_INTERVAL", 0.02)
    down = status("502 Bad Gateway")
    server = SessionServer(**{"tools/call": down, "probe": down})
    async with opened(server) as (manager, session):
        await refused(session)
        await lost(manager)
        await server.received("DELETE")
    assert server.count("DELETE") == 1


async def start(manager):
    with suppress(ConnectionStoppedError):
        await manager.start()


@pytest.mark.parametrize("how", ["cancelled", "timed out", "stopped"])
async def test_W6_the_session_is_ended_on_the_server_if_start_did_not_complete(how):
    async def begin(request):
        """Sends the session's id and a notification, but not the result of the handshake."""
        await request.begin_events(mcp_session_id="1")
        await event("begun")(request)
        await request.stream.receive()

    server, log = SessionServer(initialize=begin), Log()
    async with http_server(server) as url:
        transport = StreamableHttpConnectionManager(url)
        manager = SessionConnectionManager(transport, logging_callback=log)
        if how == "timed out":
            with pytest.raises(StartTimeoutError):
                await manager.start(timeout=0.5)
        else:
            async with anyio.create_task_group() as tg:
                tg.start_soon(start, manager)
                await log.received("begun")  # so the client also received the id
                if how == "stopped":
                    await manager.stop()
                tg.cancel_scope.cancel()
        await manager.stop()
        await server.received("DELETE")
    assert server.count("DELETE") == 1
    assert server.all("DELETE")[0].headers["mcp-session-id"] == "1"


@kinds
@ends
async def test_W6_a_server_that_never_answers_the_delete_causes_only_a_short_delay(kind, end):
    server = SessionServer(DELETE=silent)
    async with opened(server, kind) as (manager, session):
        await session.list_tools()
        with anyio.fail_after(2.5):
            await ENDS[end](manager)
        await server.received("DELETE")
    assert server.count("DELETE") == 1


@ends
@pytest.mark.parametrize("why", ["terminate_on_close=False", "no session id"])
async def test_W6_no_delete_is_sent_if_it_is_disabled_or_there_is_no_session_id(why, end):
    server = SessionServer()
    options = {"terminate_on_close": False} if why == "terminate_on_close=False" else {}
    if why == "no session id":
        server.session_id = None
    async with opened(server, **options) as (manager, session):
        await session.list_tools()
        await ENDS[end](manager)
        new_session = await manager.start()
        await works(manager, new_session)
    assert server.count("DELETE") == 0


async def test_W6_no_delete_is_sent_for_a_session_that_the_server_forgot():
    server = SessionServer(**{"tools/call": in_turn(status("404 Not Found"), SessionServer().answer)})
    async with opened(server) as (manager, session):
        await refused(session)
        await lost(manager)
        new_session = await manager.start()
        await call(new_session)
        await works(manager, new_session)
        assert server.count("DELETE") == 0
    assert server.count("DELETE") == 1


class OneSessionServer(SessionServer):
    """Refuses a second session until the first one was deleted."""

    has_session = False

    async def answer(self, request):
        if request.method == "DELETE":
            self.has_session = False
        elif request.method == "POST" and request.message["method"] == "initialize":
            if self.has_session:
                await request.answer("503 Service Unavailable")
                return
            self.has_session = True
        await super().answer(request)


@kinds
@ends
async def test_W6_a_server_for_one_session_can_be_used_again(kind, end):
    server = OneSessionServer()
    async with opened(server, kind) as (manager, session):
        await session.list_tools()
        for _ in range(2):
            await ENDS[end](manager)
            session = await manager.start()  # noqa: PLW2901 - the next session of the same manager
            await works(manager, session)
        other = kind(StreamableHttpConnectionManager(manager.transport.url))
        with pytest.raises(Exception, match="503"):  # the server really refuses a second session
            await other.start()


async def test_W6_a_server_that_is_gone_does_not_delay_the_end():
    server = SessionServer()
    async with until_gone(server) as (manager, session, end_server):
        await call(session)
        await end_server()
        await refused(session)
        with anyio.fail_after(2):
            await lost(manager)
