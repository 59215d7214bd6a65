"""Tests for `ping_every()`. Most of them run with virtual time."""

import copy
import inspect
import json
import math
import os
import pickle
import signal
import sys
from contextlib import asynccontextmanager, contextmanager, suppress

import anyio
import mcp
import pytest
from memory_server import MemoryServer
from proof import clocks
from servers import TINY, http_process, websocket_process
from session_server import SessionServer, in_turn, opened, reset, result_of, silent

from ownertask import ConnectionLostError, ConnectionManager, ConnectionState
from ownertask.mcp import (
    ClientConnectionManager,
    SessionConnectionManager,
    SseConnectionManager,
    StdioConnectionManager,
    StreamableHttpConnectionManager,
    WebSocketConnectionManager,
    _sdk,
    ping_every,
)
from ownertask.mcp.ping import GRACE, RETRY

KINDS = [SessionConnectionManager, *([ClientConnectionManager] if _sdk.HAS_CLIENT else [])]
INTERVAL = 30
HOUR = 3600
TIMEOUT = inspect.signature(ping_every).parameters["timeout"].default
LOST = f"the server did not respond to a ping within {TIMEOUT:g} s"

kinds = pytest.mark.parametrize("kind", KINDS)
virtual = pytest.mark.parametrize("clock", ["asyncio", "trio"])
has_stop = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGSTOP")
only_1 = pytest.mark.skipif(_sdk.HAS_CLIENT, reason="mcp 2.x reads messages while a handler runs")
only_2 = pytest.mark.skipif(not _sdk.HAS_CLIENT, reason="mcp 1.x has no such connection")


class Server(MemoryServer):
    """Also records the notifications of the client, except `notifications/initialized`."""

    def __init__(self):
        super().__init__()
        self.notifications = []

    def _handle(self, request):
        if "method" not in request:
            return  # the response to a request of the server
        if "id" not in request and request["method"] != "notifications/initialized":
            self.notifications.append(request)
        super()._handle(request)

    def nothing_asked(self):
        """Checks that no request waits for an answer."""
        with pytest.raises(anyio.WouldBlock):
            self._next_request.receive_nowait()


@asynccontextmanager
async def watching(manager, watch):
    """Runs `watch` while the body runs, as the manager does."""

    async def run():
        try:
            await watch(manager.connection)
        except Exception as error:
            manager.connection_lost(error)

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(run)
        yield
        task_group.cancel_scope.cancel()


def in_memory(body, clock, kind=SessionConnectionManager, watch=None, **options):
    """Runs `body(server, manager, session)` with virtual time, while the session is watched."""

    async def main():
        server = Server()
        transport = ConnectionManager.from_factory(server, name="transport")
        manager = kind(transport, name="session", **options)
        session = await manager.start()
        async with watching(manager, ping_every(INTERVAL) if watch is None else watch):
            await body(server, manager, session)
        await manager.stop()
        server.close()

    clocks.run(main, clock=clock)


class Time:
    """Virtual time since it was created."""

    def __init__(self):
        self._begin = anyio.current_time()

    def is_about(self, seconds):
        return anyio.current_time() - self._begin == pytest.approx(seconds, abs=0.01)

    async def until(self, seconds):
        await anyio.sleep_until(self._begin + seconds)


async def next_ping(server, method="ping"):
    request = await server.next_request()
    assert request["method"] == method
    return request


async def lost(manager):
    with pytest.raises(ConnectionLostError) as caught:
        await manager.wait_closed()
    assert isinstance(caught.value.__cause__, TimeoutError)
    return caught.value


# Silence.


@virtual
@kinds
def test_P3_a_server_that_does_not_respond_to_a_ping_is_lost(clock, kind):
    async def body(server, manager, session):
        time = Time()
        await next_ping(server)
        assert time.is_about(INTERVAL)
        error = await lost(manager)
        assert time.is_about(INTERVAL + TIMEOUT + GRACE)
        assert str(error.__cause__) == LOST
        assert str(error) == f"session: the connection was lost: {LOST}"
        server.nothing_asked()

    in_memory(body, clock, kind)


@virtual
@kinds
def test_P3_a_server_that_responds_to_every_ping_is_alive(clock, kind):
    async def body(server, manager, session):
        time = Time()
        for number in range(1, 11):
            server.answer(await next_ping(server))
            assert time.is_about(number * INTERVAL)
        await anyio.sleep(1)
        assert manager.state is ConnectionState.OPEN

    in_memory(body, clock, kind)


@virtual
@kinds
def test_P3_the_response_to_a_ping_may_take_as_long_as_the_timeout(clock, kind):
    async def body(server, manager, session):
        request = await next_ping(server)
        await anyio.sleep(TIMEOUT - 1)
        server.answer(request)
        await next_ping(server)
        assert manager.state is ConnectionState.OPEN

    in_memory(body, clock, kind)


ERRORS = {"method not found": -32601, "an invalid request": -32600, "any error of the server": -32000}
SIGNS = {
    "a notification": {"method": "notifications/tools/list_changed"},
    "an unknown notification": {"method": "notifications/of/something/else", "params": {}},
    "a request": {"id": 1, "method": "ping"},
    "a message that is not JSON-RPC": ValueError("nonsense"),
}


@virtual
@pytest.mark.parametrize("code", ERRORS.values(), ids=ERRORS)
@kinds
def test_P3_an_error_in_response_to_a_ping_is_a_sign_of_life(clock, code, kind):
    async def body(server, manager, session):
        time = Time()
        for number in range(1, 4):
            request = await next_ping(server)
            assert time.is_about(number * INTERVAL)
            server.put({"id": request["id"], "error": {"code": code, "message": "no"}})
        await anyio.sleep(1)
        assert manager.state is ConnectionState.OPEN

    in_memory(body, clock, kind)


@virtual
@kinds
def test_P3_an_invalid_result_of_a_ping_is_a_sign_of_life(clock, kind):
    async def body(server, manager, session):
        for _ in range(3):
            server.answer(await next_ping(server), _meta=1)
        await anyio.sleep(1)
        assert manager.state is ConnectionState.OPEN

    in_memory(body, clock, kind)


@virtual
@pytest.mark.parametrize("message", SIGNS.values(), ids=SIGNS)
@kinds
def test_P3_any_message_is_a_sign_of_life_so_no_ping_is_sent(clock, message, kind):
    async def body(server, manager, session):
        time = Time()
        for number in range(1, 11):
            await time.until(number * (INTERVAL - 1))
            server.put(message)
        server.nothing_asked()
        await next_ping(server)
        assert time.is_about(10 * (INTERVAL - 1) + INTERVAL)

    in_memory(body, clock, kind)


@virtual
@pytest.mark.parametrize("message", SIGNS.values(), ids=SIGNS)
@kinds
def test_P3_any_message_after_a_ping_is_a_sign_of_life(clock, message, kind):
    """A late response to that ping is a sign of life too. No task of the application receives it."""
    received = []

    async def receive(message):
        received.append(message)

    async def body(server, manager, session):
        request = await next_ping(server)
        await anyio.sleep(TIMEOUT - 1)
        time = Time()
        server.put(message)
        await time.until(INTERVAL - 1)
        received.clear()
        server.answer(request)
        await next_ping(server)
        assert time.is_about(2 * INTERVAL - 1)
        assert manager.state is ConnectionState.OPEN
        assert not received
        assert not server.notifications

    in_memory(body, clock, kind, message_handler=receive)


@virtual
@kinds
def test_P3_messages_are_no_substitute_for_pings_if_no_more_arrive(clock, kind):
    """The first ping has no response. The second is sent all the same, but a third would be too many."""

    async def body(server, manager, session):
        time = Time()
        for is_asked in (True, True, False):
            if is_asked:
                await next_ping(server)
                assert time.is_about(INTERVAL)
            else:
                await anyio.sleep(INTERVAL + 1)
                server.nothing_asked()
            time = Time()
            server.put(SIGNS["a notification"])
            await anyio.sleep(1)
        await lost(manager)
        assert time.is_about(INTERVAL + TIMEOUT + GRACE)

    in_memory(body, clock, kind)


@virtual
@kinds
def test_P3_an_exception_of_the_transport_is_not_a_sign_of_life(clock, kind):
    async def body(server, manager, session):
        time = Time()
        await time.until(INTERVAL - 1)
        server.put(ConnectionError("the transport tries again"))
        await time.until(INTERVAL + 1)
        await next_ping(server)
        server.put(ConnectionError("the transport tries again"))
        await lost(manager)
        assert time.is_about(INTERVAL + TIMEOUT + GRACE)

    in_memory(body, clock, kind)


@virtual
@kinds
def test_P3_without_a_timeout_silence_is_never_a_loss(clock, kind):
    async def body(server, manager, session):
        await next_ping(server)
        await anyio.sleep(1000 * HOUR)
        assert manager.state is ConnectionState.OPEN
        server.nothing_asked()

    in_memory(body, clock, kind, ping_every(INTERVAL, timeout=None))


@virtual
@kinds
def test_P3_the_time_limit_of_the_sessions_requests_does_not_apply_to_pings(clock, kind):
    async def body(server, manager, session):
        for _ in range(3):
            request = await next_ping(server)
            await anyio.sleep(TIMEOUT - 1)
            server.nothing_asked()
            server.answer(request)
        assert manager.state is ConnectionState.OPEN
        await next_ping(server)
        error = await lost(manager)
        assert error.__cause__.__cause__ is None

    in_memory(body, clock, kind, read_timeout_seconds=1)


@virtual
@kinds
def test_P3_a_ping_that_timed_out_leaves_no_request_behind(clock, kind):
    async def main():
        server = Server()
        async with kind(ConnectionManager.from_factory(server)) as connection:
            session = _sdk.session_of(connection)
            with pytest.raises(TimeoutError, match="did not respond to a ping"):
                await ping_every(INTERVAL)(connection)
            assert _sdk.calls_under_way(session) == 0
            assert not server.notifications
            server.answer(await next_ping(server))
            await anyio.sleep(1)
            await connection.list_tools()
            assert _sdk.read_stream_of(session)._observer is None
        server.close()

    clocks.run(main, clock=clock)


@virtual
@kinds
def test_P3_stopping_the_manager_ends_an_unanswered_ping_at_once(clock, kind):
    async def body(server, manager, session):
        await next_ping(server)
        server.refuse_messages("broken")  # nothing can be sent to the server from now on
        time = Time()
        await manager.stop()
        assert time.is_about(0)

    in_memory(body, clock, kind)


@virtual
@kinds
def test_P3_a_response_that_arrived_while_blocking_code_ran_counts(clock, kind):
    def block(seconds):
        if clock == "trio":
            import trio

            trio.lowlevel.current_clock().jump(seconds)
        else:
            import asyncio

            asyncio.get_running_loop().jumping.now += seconds

    async def body(server, manager, session):
        for _ in range(5):
            server_was_asked = await next_ping(server)
            block(HOUR)
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            server.answer(server_was_asked)
        await anyio.sleep(1)
        assert manager.state is ConnectionState.OPEN

    in_memory(body, clock, kind)


# Calls under way.


@virtual
@kinds
def test_P3_silence_during_a_call_is_not_a_loss(clock, kind):
    async def body(server, manager, session):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(session.call_tool, "slow", {})
            request = await server.next_request()
            ping = await next_ping(server)
            await anyio.sleep(HOUR)
            server.nothing_asked()
            assert manager.state is ConnectionState.OPEN
            time = Time()
            server.answer(request, content=[])
            server.answer(ping)
        await next_ping(server)
        assert time.is_about(INTERVAL)
        await lost(manager)

    in_memory(body, clock, kind)


@virtual
@kinds
def test_P3_a_call_that_begins_after_the_ping_counts_too(clock, kind):
    async def body(server, manager, session):
        await next_ping(server)
        await anyio.sleep(TIMEOUT - 1)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(session.call_tool, "slow", {})
            request = await server.next_request()
            await anyio.sleep(HOUR)
            assert manager.state is ConnectionState.OPEN
            server.answer(request, content=[])

    in_memory(body, clock, kind)


@virtual
@kinds
def test_P3_when_the_call_is_cancelled_a_silent_server_is_lost(clock, kind):
    """The server may still be busy with the call, so it has as long as after a ping."""

    async def body(server, manager, session):
        with anyio.move_on_after(HOUR):
            await session.call_tool("slow", {})
        begin = anyio.current_time()
        await lost(manager)
        assert TIMEOUT <= anyio.current_time() - begin <= 2 * TIMEOUT + 2 * GRACE

    in_memory(body, clock, kind)


@virtual
@only_1
def test_P3_silence_while_a_handler_of_the_application_runs_is_not_a_loss(clock):
    """mcp 1.x reads nothing while a person answers a question of the server."""

    async def handle(message):
        await anyio.sleep(HOUR)

    async def body(server, manager, session):
        await anyio.sleep(1)  # the watch has begun
        server.put(SIGNS["a notification"])
        server.answer(await next_ping(server))
        await anyio.sleep(HOUR)
        assert manager.state is ConnectionState.OPEN
        await next_ping(server)
        await lost(manager)

    in_memory(body, clock, message_handler=handle)


@virtual
@only_2
def test_P3_a_subscription_is_not_a_call(clock):
    async def body(server, manager, client):
        server.on_handshake = lambda _: None

        async def listen():
            with suppress(mcp.MCPError):
                async with client.listen(tools_list_changed=True):
                    pytest.fail("the server does not respond")

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(listen)
            assert (await server.next_request())["method"] == "subscriptions/listen"
            time = Time()
            await lost(manager)
            assert time.is_about(INTERVAL + TIMEOUT + GRACE)
            task_group.cancel_scope.cancel()

    in_memory(body, clock, ClientConnectionManager, mode="2026-07-28")


# Protocols and connections.


@virtual
@only_2
def test_P3_where_the_protocol_has_no_ping_the_server_is_asked_what_it_can_do(clock):
    async def body(server, manager, client):
        asked = []
        server.on_handshake = asked.append
        await anyio.sleep(INTERVAL + 1)
        [request] = asked
        assert request["method"] == "server/discover"
        assert "2026-07-28" in json.dumps(request["params"])
        server.put({"id": request["id"], "error": {"code": -32601, "message": "no"}})
        await anyio.sleep(INTERVAL + 1)
        server.answer(asked[1], supportedVersions=["2026-07-28"], capabilities={}, cacheScope="public")
        await anyio.sleep(INTERVAL + 1)
        assert len(asked) == 3
        await lost(manager)
        server.nothing_asked()

    in_memory(body, clock, ClientConnectionManager, mode="2026-07-28")


@asynccontextmanager
async def bare_session(server):
    async with server() as streams, mcp.ClientSession(*streams[:2]) as session:
        await session.initialize()
        yield session


@virtual
@pytest.mark.parametrize("answer", [True, False, "error"])
def test_P3_of_a_bare_session_the_responses_to_pings_are_signs_of_life(clock, answer):
    async def main():
        server = Server()
        manager = ConnectionManager.from_factory(lambda: bare_session(server))
        await manager.start()
        async with watching(manager, ping_every(INTERVAL)):
            for _ in range(3 if answer else 0):
                request = await next_ping(server)
                if answer is True:
                    server.answer(request)
                else:
                    server.put({"id": request["id"], "error": {"code": -32601, "message": "no"}})
            time = Time()
            await next_ping(server)
            await lost(manager)
            assert time.is_about(INTERVAL + TIMEOUT + GRACE)
        server.close()

    clocks.run(main, clock=clock)


@virtual
def test_P3_silence_during_a_call_of_a_bare_session_is_not_a_loss(clock):
    async def main():
        server = Server()
        manager = ConnectionManager.from_factory(lambda: bare_session(server))
        session = await manager.start()
        async with watching(manager, ping_every(INTERVAL)), anyio.create_task_group() as task_group:
            task_group.start_soon(session.call_tool, "slow", {})
            request = await server.next_request()
            await anyio.sleep(HOUR)
            assert manager.state is ConnectionState.OPEN
            server.answer(request, content=[])
        await manager.stop()
        server.close()

    clocks.run(main, clock=clock)


@only_2
async def test_P3_a_client_of_a_server_in_this_process_can_be_watched():
    from mcp.server.mcpserver import MCPServer

    async with mcp.Client(MCPServer("here")) as client:
        with anyio.move_on_after(0.3):
            await ping_every(0.01, timeout=0.5)(client)
            pytest.fail("the server responds")


async def test_P3_another_connection_is_refused_with_its_type():
    with pytest.raises(TypeError, match="a ClientSession or a Client is required, not tuple"):
        await ping_every(INTERVAL)((1, 2))


# Over HTTP, the transport answers a call that could not be sent.


@pytest.mark.parametrize("method", ["reset", "silent"])
# The SDK leaves its generators to the garbage collector, and trio warns about it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_P3_over_http_a_ping_that_only_the_transport_answers_is_not_a_sign_of_life(
    method, monkeypatch
):
    monkeypatch.setattr("ownertask.mcp.ping.RETRY", 0.02)
    server = SessionServer(ping={"reset": reset, "silent": silent}[method])
    async with opened(server) as (manager, _), watching(manager, ping_every(0.05, timeout=0.3)):
        error = await lost(manager)
        assert "did not respond to a ping within 0.3 s" in str(error)
        assert (error.__cause__.__cause__ is not None) is (method == "reset")
    assert server.count("ping") == 1 if method == "silent" else server.count("ping") > 1
    assert RETRY > 0.02


async def test_P3_over_http_another_ping_is_sent_if_one_fails(monkeypatch):
    async def answer(request):
        await request.answer(body=result_of(request))

    monkeypatch.setattr("ownertask.mcp.ping.RETRY", 0.01)
    server = SessionServer(ping=in_turn(reset, reset, answer, reset, answer))
    async with opened(server) as (manager, _), watching(manager, ping_every(0.02, timeout=3)):
        await server.received("ping", 8)
        assert manager.state is ConnectionState.OPEN


# Real servers.


async def process_id(session):
    result = await session.call_tool("process_id", {})
    return int(result.content[0].text)


@contextmanager
def frozen(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


two_backends = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


@has_stop
@two_backends
@pytest.mark.within(20)
async def test_P3_a_frozen_stdio_server_is_lost():
    transport = StdioConnectionManager(TINY, exit_timeout=0.1, terminate_timeout=0.1)
    manager = SessionConnectionManager(transport)
    pid = await process_id(await manager.start())
    async with watching(manager, ping_every(0.05, timeout=0.2)):
        with frozen(pid):
            await lost(manager)


@has_stop
@two_backends
@pytest.mark.parametrize("kind", KINDS[-1:])
@pytest.mark.within(20)
async def test_P3_a_stdio_server_that_continues_before_the_timeout_is_alive(kind):
    """The server answers pings with an error."""
    async with kind(TINY) as session:
        with anyio.move_on_after(0.5) as scope:
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(ping_every(0.01, timeout=10), session)
                with frozen(await process_id(session)):
                    await anyio.sleep(0.2)
                await anyio.sleep_forever()
        assert scope.cancelled_caught  # the watch did not raise
        await process_id(session)


@two_backends
@pytest.mark.parametrize("kind", KINDS[-1:])
@pytest.mark.within(20)
async def test_P3_a_stdio_server_that_runs_one_tool_at_a_time_is_alive(kind):
    manager = kind(TINY)
    async with manager as session, watching(manager, ping_every(0.02, timeout=0.1)):
        await session.call_tool("block", {"seconds": 0.7})
        assert manager.state is ConnectionState.OPEN


@pytest.fixture(scope="module", params=["sse", "streamable-http", "websocket"])
def server_over_network(request):
    is_websocket = request.param == "websocket"
    serving = websocket_process("websockets") if is_websocket else http_process(request.param)
    with serving as (process, url):
        yield request.param, process, url


def transport_to(kind, url):
    if kind == "sse":
        return SseConnectionManager(url)
    if kind == "streamable-http":
        return StreamableHttpConnectionManager(url, terminate_on_close=False)
    return WebSocketConnectionManager(url, proxy=None, ping_interval=None, close_timeout=0.1)


@has_stop
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("kind", KINDS[-1:])
@pytest.mark.within(20)
async def test_P3_a_server_over_the_network_is_alive_until_it_freezes(server_over_network, kind):
    """A client of mcp 2.x negotiates the protocol version 2026-07-28 with some of the servers."""
    transport, process, url = server_over_network
    manager = kind(transport_to(transport, url))
    await manager.start()
    async with watching(manager, ping_every(0.02, timeout=1.5)):
        await anyio.sleep(0.3)
        assert manager.state is ConnectionState.OPEN
        with frozen(process.pid):
            await lost(manager)


# Arguments.


@pytest.mark.parametrize("argument", ["interval", "timeout"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (0, ValueError),
        (-1, ValueError),
        (math.nan, ValueError),
        (True, TypeError),
        ("30", TypeError),
        ([], TypeError),
    ],
)
def test_an_invalid_argument_is_refused_at_once_by_its_name(argument, value, kind):
    with pytest.raises(kind, match=f"^{argument} must be a (positive )?number of seconds, not "):
        ping_every(**{"interval": 30, argument: value})


def test_an_interval_is_required_and_finite():
    with pytest.raises(TypeError, match="^interval must be a number of seconds, not None"):
        ping_every(None)
    with pytest.raises(ValueError, match="^interval must be finite"):
        ping_every(math.inf)


def test_a_watch_can_be_copied_and_pickled_with_its_manager():
    watch = ping_every(30, timeout=5)
    for copied in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
        assert (copied.func, copied.args) == (watch.func, watch.args)
