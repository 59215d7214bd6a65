"""Tests for the texts of timeouts, and for notes about refusals that did not cause the loss."""

import anyio
import mcp.client.streamable_http
import pytest
from http_server import http_server
from session_server import (
    FAILURES,
    SessionServer,
    SseServer,
    call,
    in_turn,
    lost,
    opened,
    refused,
    said,
    silent,
    status,
    until_gone,
)

from ownertask import ConnectionState
from ownertask.mcp import (
    SessionConnectionManager,
    SseConnectionManager,
    StreamableHttpConnectionManager,
    _sdk,
)

http = _sdk.http

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

NO_RESPONSE = "no response within 0.3 s"


async def failed_start(manager, kind):
    with anyio.fail_after(4), pytest.raises(kind) as caught:
        await manager.start()
    assert manager.state is ConnectionState.FAILED
    return caught.value


def text_and_notes(error):
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


@pytest.mark.parametrize("kind", [StreamableHttpConnectionManager, SseConnectionManager])
async def test_W8_the_error_of_a_server_that_never_responds_contains_the_read_timeout(kind):
    async with http_server(silent) as url:
        inner = kind(url, None, 4, 0.3)
        error = await failed_start(SessionConnectionManager(inner), http.ReadTimeout)
    assert NO_RESPONSE in text_and_notes(error)
    assert "cancel scope" not in text_and_notes(error)


class NeverConnects(http.AsyncBaseTransport):
    """Fails with a timeout that has no text, as the HTTP library does.

    A connection attempt that really times out would need a host outside of this machine.
    """

    def __init__(self, error):
        self.error = error

    async def handle_async_request(self, request):
        try:
            with anyio.fail_after(0):
                await anyio.sleep_forever()
        except TimeoutError as timeout:
            raise self.error("") from timeout


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (http.ReadTimeout, "no response within 300 s"),
        (http.PoolTimeout, "no free connection within 30 s"),
        (http.ConnectTimeout, "within 30 s"),
    ],
)
async def test_W8_the_error_of_a_timeout_while_opening_contains_the_timeout(kind, text):
    def make_client(headers=None, timeout=None, auth=None):
        return http.AsyncClient(timeout=timeout, transport=NeverConnects(kind))

    inner = StreamableHttpConnectionManager("http://example.org", httpx_client_factory=make_client)
    error = await failed_start(SessionConnectionManager(inner), kind)
    assert text in text_and_notes(error)
    assert "cancel scope" not in text_and_notes(error)


async def test_W8_the_loss_of_a_quiet_sse_stream_contains_the_read_timeout():
    async with http_server(SseServer("/messages")) as url:
        manager = SessionConnectionManager(SseConnectionManager(url, sse_read_timeout=0.3))
        await manager.start()
        loss = await lost(manager)
    assert isinstance(loss.__cause__, http.ReadTimeout)
    assert NO_RESPONSE in said(loss)
    assert "cancel scope" not in said(loss)


async def test_W9_a_refused_get_is_not_noted_when_the_connection_is_lost_later(monkeypatch):
    """No request succeeds in between, so the refusal stays the last one that the transport saw."""
    monkeypatch.setattr(mcp.client.streamable_http, "DEFAULT_RECONNECTION_DELAY_MS", 0)
    may_refuse = anyio.Event()

    async def refuse(request):
        await may_refuse.wait()
        await request.answer("502 Bad Gateway")

    server = SessionServer(GET=in_turn(refuse, status("405 Method Not Allowed")))
    async with until_gone(server) as (manager, session, end_server):
        await call(session)
        may_refuse.set()
        await server.received("GET", 2)
        await anyio.wait_all_tasks_blocked()
        assert manager.state is ConnectionState.OPEN
        await end_server()
        with pytest.raises(FAILURES):
            await call(session)
        loss = await lost(manager)
    assert isinstance(loss.__cause__, http.ConnectError)
    assert "HTTP status 502" not in said(loss)


async def test_W9_a_refused_call_is_not_noted_when_the_connection_is_lost_later():
    server = SessionServer(**{"tools/call": status("403 Forbidden")})
    async with opened(server) as (manager, session):
        await refused(session)
        await session.send_ping()
        manager.connection_lost(ConnectionError("the network is down"))
        loss = await lost(manager)
    assert "the network is down" in str(loss)
    assert "HTTP status 403" not in said(loss)
