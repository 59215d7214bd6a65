"""Tests for HTTP servers that die, freeze or forget a session, and for the resulting errors."""

import os
import signal

import anyio
import mcp
import pytest
from http_server import http_server, result_of_initialize
from proxy import tcp_proxy
from servers import http_process
from session_server import SessionServer, opened, silent, status

from ownertask import ConnectionLostError, ConnectionState
from ownertask.mcp import (
    ClientConnectionManager,
    SessionConnectionManager,
    SseConnectionManager,
    StreamableHttpConnectionManager,
    _sdk,
)

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
    pytest.mark.within(30),
]

ERROR = mcp.MCPError if _sdk.HAS_CLIENT else mcp.McpError
# On mcp 1.x, a call that was not sent raises one of the other two.
FAILURES = (ERROR, anyio.ClosedResourceError, anyio.BrokenResourceError)
KINDS = [SessionConnectionManager, *([ClientConnectionManager] if _sdk.HAS_CLIENT else [])]
MANAGERS = {"sse": SseConnectionManager, "streamable-http": StreamableHttpConnectionManager}
transports = pytest.mark.parametrize("transport", list(MANAGERS))
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module", params=list(MANAGERS))
def server(request):
    """Yields the manager class, process and URL of a server that no test kills."""
    with http_process(request.param) as (process, url):
        yield MANAGERS[request.param], process, url


async def loss_of(manager):
    with anyio.fail_after(10), pytest.raises(ConnectionLostError) as caught:
        await manager.wait_closed()
    assert manager.state is ConnectionState.FAILED
    return caught.value


async def fails(session, tool, **options):
    with anyio.fail_after(10), pytest.raises(FAILURES):
        await session.call_tool(tool, {}, **options)


@pytest.mark.parametrize(
    ("transport", "kind"),
    [
        ("sse", SessionConnectionManager),
        ("streamable-http", SessionConnectionManager),
        ("streamable-http", KINDS[-1]),
    ][: len(KINDS) + 1],
)
async def test_P1_P2_P4_when_the_server_dies_pending_calls_fail_and_the_connection_is_lost(
    transport, kind
):
    progress = anyio.Event()

    async def on_progress(*_):
        progress.set()

    with http_process(transport) as (process, url):
        manager = kind(MANAGERS[transport](url))
        session = await manager.start()
        async with anyio.create_task_group() as tg:
            # The response to this call is a stream that has already begun. The call is sent alone,
            # because a 1.x server may not respond to the first of several simultaneous requests.
            tg.start_soon(lambda: fails(session, "wait", progress_callback=on_progress))
            await progress.wait()
            for _ in range(3):
                tg.start_soon(fails, session, "wait")
            await anyio.wait_all_tasks_blocked()
            process.kill()
        process.wait()  # the next call must not reach a server whose sockets are still open
        if manager.state is ConnectionState.OPEN:
            with pytest.raises(FAILURES):
                await session.call_tool("add", {"a": 1, "b": 2})
        loss = await loss_of(manager)
    assert isinstance(loss.__cause__, _sdk.http.TransportError)


@transports
async def test_P1_P4_the_death_of_an_idle_server_is_detected_through_the_event_stream(transport):
    with http_process(transport) as (process, url):
        manager = SessionConnectionManager(MANAGERS[transport](url))
        await manager.start()
        await anyio.wait_all_tasks_blocked()
        process.kill()
        loss = await loss_of(manager)
    assert isinstance(loss.__cause__, _sdk.http.TransportError)


async def test_C5_C4_a_frozen_server_does_not_delay_stop_beyond_its_timeout(server):
    transport, process, url = server
    manager = SessionConnectionManager(transport(url))
    await manager.start()
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with anyio.fail_after(5):
            await manager.stop(timeout=0.2)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert manager.state is ConnectionState.CLOSED


@kinds
async def test_C4_a_normal_close_raises_nothing(server, kind):
    transport, _, url = server
    manager = kind(transport(url))
    session = await manager.start()
    assert (await session.call_tool("add", {"a": 1, "b": 2})).content[0].text == "3"
    await manager.stop()
    assert manager.state is ConnectionState.CLOSED
    assert manager.exception is None


async def test_P3_stop_with_an_unresponsive_peer_is_bounded_and_fails_pending_calls(server):
    transport, _, direct_url = server
    async with tcp_proxy(direct_url) as (proxy, url):
        manager = SessionConnectionManager(transport(url))
        session = await manager.start()
        proxy.go_deaf()
        async with anyio.create_task_group() as tg:
            for _ in range(3):
                tg.start_soon(fails, session, "add")
            await anyio.wait_all_tasks_blocked()
            await manager.stop(timeout=0.2)
        assert manager.state is ConnectionState.CLOSED
        proxy.listens.set()


async def test_P2_a_reset_in_the_middle_of_a_message_fails_a_call_and_ends_the_only_stream(server):
    transport, _, direct_url = server
    async with tcp_proxy(direct_url) as (proxy, url):
        manager = SessionConnectionManager(transport(url))
        session = await manager.start()
        await session.call_tool("add", {"a": 1, "b": 2})  # after this, no other request is pending
        proxy.cut_after = 20
        await fails(session, "wait")
        proxy.cut_after = None
        if transport is SseConnectionManager:
            loss = await loss_of(manager)
            assert isinstance(loss.__cause__, _sdk.http.TransportError)
        else:
            await session.call_tool("add", {"a": 1, "b": 2})
            await manager.stop()
            assert manager.exception is None


@kinds
async def test_P5_a_session_that_the_server_forgot_is_lost_with_the_404_as_its_cause(kind):
    async def answer(request):
        if request.method != "POST":
            await request.answer("405 Method Not Allowed")
        elif request.message["method"] == "initialize":
            await request.answer(body=result_of_initialize(request), mcp_session_id="1")
        elif request.message["method"] == "notifications/initialized":
            await request.answer("202 Accepted")
        else:
            await request.answer("404 Not Found")

    async with http_server(answer) as url:
        manager = kind(StreamableHttpConnectionManager(url))
        session = await manager.start()
        await fails(session, "add")
        loss = await loss_of(manager)
    assert isinstance(loss.__cause__, _sdk.http.HTTPStatusError)
    assert str(loss.__cause__) == ("HTTP status 404 Not Found: the server no longer knows the session")
    assert "HTTP status 405" not in "".join(getattr(loss, "__notes__", ()))


@kinds
async def test_H1_a_call_that_waits_when_another_one_finds_the_session_gone_names_the_reason(kind):
    server = SessionServer(**{"tools/call": silent, "tools/list": status("404 Not Found")})
    errors = []

    async def wait(session):
        with pytest.raises(ERROR) as caught:
            await session.call_tool("add", {})
        errors.append(caught.value)

    async with opened(server, kind) as (manager, session):
        async with anyio.create_task_group() as tg:
            tg.start_soon(wait, manager.current)
            await server.received("tools/call")
            with pytest.raises(ERROR, match="Session terminated"):
                await session.list_tools()
        loss = await loss_of(manager)
    (error,) = errors
    assert error.__notes__ == [
        f"ownertask: {manager.name} lost its connection during this call: {loss.__cause__}"
    ]
    assert "no longer knows the session" in error.__notes__[0]


async def test_a_message_refused_by_an_sse_server_loses_the_connection():
    calls = anyio.Event()

    async def answer(request):
        if request.method == "GET":
            await request.begin_events()
            await request.send_event("endpoint", "/messages")
            answers.append(request)
            await anyio.sleep_forever()
        elif request.message["method"] == "tools/call":
            calls.set()
            await request.answer("401 Unauthorized", www_authenticate="Bearer")
        else:
            await request.answer("202 Accepted")
            if request.message["method"] == "initialize":
                await answers[0].send_event("message", result_of_initialize(request))

    answers = []
    async with http_server(answer) as url:
        manager = SessionConnectionManager(SseConnectionManager(url))
        session = await manager.start()
        await fails(session, "add")
        assert calls.is_set()
        loss = await loss_of(manager)
    assert str(loss.__cause__).startswith("HTTP status 401 Unauthorized, WWW-Authenticate: Bearer: ")
