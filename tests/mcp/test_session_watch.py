"""Tests for sessions that can no longer read: on foreign transports, and without a receive loop."""

import asyncio
import logging
import os
import signal
from contextlib import asynccontextmanager, suppress

import anyio
import mcp
import pytest
from mcp import stdio_client
from mcp.client.sse import sse_client
from memory_server import MemoryServer
from reopening import lost
from servers import TINY, http_process

from ownertask import ConnectionLostError, ConnectionManager, ConnectionState
from ownertask.mcp import (
    ClientConnectionManager,
    SessionConnectionManager,
    StdioConnectionManager,
    _sdk,
    _session_watch,
)

if _sdk.HAS_CLIENT:
    from mcp.client.streamable_http import streamable_http_client as streamable_http

    KINDS = [SessionConnectionManager, ClientConnectionManager]
    ERROR = mcp.MCPError
else:
    from mcp.client.streamable_http import streamablehttp_client as streamable_http

    KINDS = [SessionConnectionManager]
    ERROR = mcp.McpError

kinds = pytest.mark.parametrize("kind", KINDS)
only_1 = pytest.mark.skipif(_sdk.HAS_CLIENT, reason="the receive loop of mcp 2.x survives this")
only_2 = pytest.mark.skipif(
    not _sdk.HAS_CLIENT, reason="the receive loop of mcp 1.x does not survive this"
)


@pytest.fixture
def server():
    server = MemoryServer()
    yield server
    server.close()


def on(kind, factory, **options):
    return kind(ConnectionManager.from_factory(factory, name="transport"), name="session", **options)


def close_read_stream(server):
    """A session that waits for a message would not notice the close, so a message wakes it up first."""
    server.put({"id": 4711, "result": {}})
    server.read_stream.close()


def warnings_in(caplog):
    return [
        record
        for record in caplog.records
        if record.name == "ownertask" and record.levelno >= logging.WARNING
    ]


async def call(session, outcomes):
    with pytest.raises(ERROR, match="Connection closed"):
        await session.call_tool("anything", {})
    outcomes.append("failed")


# Transports of others.


@kinds
@pytest.mark.within(20)
async def test_F21_if_the_server_of_the_sdks_stdio_client_is_killed_the_connection_is_lost(kind):
    manager = on(kind, lambda: stdio_client(TINY))
    session = await manager.start()
    ids = []
    for _ in range(2):
        result = await session.call_tool("process_id", {})
        ids.append(int(result.content[0].text))
        os.kill(ids[-1], signal.SIGKILL)
        error = await lost(manager)
        assert isinstance(error.__cause__, EOFError)
        assert str(error.__cause__) == "the transport's read stream ended"
        assert await manager.start() is not session
        session = manager.connection
    assert len(set(ids)) == 2
    await manager.stop()


@kinds
@pytest.mark.within(20)
async def test_F21_a_transport_manager_inside_a_factory_is_watched_too(kind):
    manager = on(kind, lambda: StdioConnectionManager(TINY).open_connection())
    session = await manager.start()
    with pytest.raises(ERROR, match="Connection closed"):
        await session.call_tool("exit", {"code": 3})
    error = await lost(manager)
    assert str(error.__cause__) == "the transport's read stream ended"


@kinds
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.within(20)
# The SDK leaves its generator of server-sent events to the garbage collector, and trio warns about it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:Use `streamable_http_client` instead:DeprecationWarning")
async def test_F21_the_sdks_http_transports_work_and_a_dead_sse_server_is_a_loss(kind, server_over_http):
    transport, process, url = server_over_http
    client = sse_client if transport == "sse" else streamable_http
    manager = on(kind, lambda: client(url))
    session = await manager.start()
    result = await session.call_tool("add", {"a": 1, "b": 2})
    assert result.content[0].text == "3"
    if transport == "sse":
        process.kill()
        assert (await lost(manager)).__cause__ is not None
    else:
        await manager.stop()
        assert manager.state is ConnectionState.CLOSED


@pytest.fixture(params=["sse", "streamable-http"])
def server_over_http(request):
    with http_process(request.param) as (process, url):
        yield request.param, process, url


@kinds
async def test_F21_if_the_read_stream_ends_the_connection_is_lost_once_and_calls_fail(
    kind, server, caplog
):
    manager = on(kind, server)
    outcomes = []
    session = await manager.start()
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(call, session, outcomes)
        task_group.start_soon(call, session, outcomes)
        await server.next_request()
        await server.next_request()
        server.end()
        error = await lost(manager)
    assert outcomes == ["failed", "failed"]
    assert isinstance(error.__cause__, EOFError)
    assert str(error.__cause__) == "the transport's read stream ended"
    assert len(warnings_in(caplog)) == 1
    assert await manager.start() is not session
    assert server.opened == 2
    await manager.stop()


@kinds
async def test_F21_a_crash_in_the_transport_that_ends_the_stream_is_the_cause(kind, server, caplog):
    manager = on(kind, server)
    await manager.start()
    crash = OSError("crash")
    server.crash(crash)
    error = await lost(manager)
    assert error.__cause__ is crash
    assert len(warnings_in(caplog)) == 1


@kinds
@pytest.mark.parametrize("is_recent", [True, False])
async def test_F21_an_exception_in_the_stream_just_before_its_end_is_the_cause(
    kind, server, is_recent, monkeypatch
):
    if not is_recent:
        monkeypatch.setattr(_session_watch, "RECENT", -1)
    manager = on(kind, server)
    await manager.start()
    broken = OSError("the event stream broke off")
    server.put(ValueError("a message that could not be parsed"))
    server.put(broken)
    server.put(ValueError("another one"))
    server.end()
    cause = (await lost(manager)).__cause__
    assert cause is broken if is_recent else isinstance(cause, EOFError)


@kinds
async def test_F21_a_transport_that_reports_a_loss_gives_the_reason(kind, server, caplog):
    class Transport(ConnectionManager):
        def open_connection(self):
            return server()

    transport = Transport()
    manager = kind(transport)
    await manager.start()
    reason = OSError("the cable is out")
    transport.connection_lost(reason)
    server.end()
    assert (await lost(manager)).__cause__ is reason
    assert len(warnings_in(caplog)) == 1


@kinds
@pytest.mark.parametrize("how", ["ends", "is closed", "crashes"])
async def test_F21_a_loss_during_the_handshake_is_raised_at_once_and_names_the_reason(
    kind, server, how, caplog
):
    crash = OSError("crash")
    server.on_handshake = {
        "ends": lambda _: server.end(),
        "is closed": lambda _: close_read_stream(server),
        "crashes": lambda _: server.crash(crash),
    }[how]
    manager = on(kind, server)
    with pytest.raises(OSError if how == "crashes" else ConnectionLostError) as caught:
        await manager.start()
    if how == "crashes":
        assert caught.value is crash
    else:
        reason = {
            "ends": "the transport's read stream ended",
            "is closed": "the session stopped reading messages because its read stream was closed",
        }[how]
        assert str(caught.value) == f"session: the connection was lost: {reason}"
        assert str(caught.value.__cause__) == reason
    assert manager.exception is not None
    server.on_handshake = None
    async with manager as session:
        await session.list_tools()


@kinds
@pytest.mark.parametrize("how", ["closed", "broken"])
async def test_F21_if_the_transport_no_longer_accepts_messages_the_connection_is_lost(
    kind, server, how, caplog
):
    manager = on(kind, server)
    session = await manager.start()
    server.refuse_messages(how)
    with pytest.raises((ERROR, anyio.BrokenResourceError, anyio.ClosedResourceError)):
        await session.list_tools()
    cause = (await lost(manager)).__cause__
    assert isinstance(cause, ConnectionError)
    assert str(cause) == "the transport no longer accepts messages"
    assert len(warnings_in(caplog)) == 1
    async with manager as session:
        await session.list_tools()


@kinds
@pytest.mark.parametrize("values", [2, 3])
async def test_F21_a_transport_may_yield_two_or_three_values(kind, values, caplog):
    server = MemoryServer(values)
    manager = on(kind, server)
    for _ in range(2):
        async with manager as session:
            await session.list_tools()
        assert manager.state is ConnectionState.CLOSED
        assert manager.exception is None
    assert not warnings_in(caplog)
    server.close()


@kinds
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "NoneType"),
        ((), "tuple[]"),
        (("reader",), "tuple[str]"),
        ([1, "writer"], "list[int, str]"),
        ((1, 2, 3, 4), "tuple[int, int, int, int]"),
        ("ab", "str"),
        ({"read": 1, "write": 2}, "dict"),
    ],
)
async def test_F21_a_transport_that_yields_something_else_is_reported(kind, value, found):
    @asynccontextmanager
    async def transport():
        yield value

    manager = on(kind, transport)
    with pytest.raises(TypeError) as caught:
        await manager.start()
    assert str(caught.value) == (
        "transport: a transport must yield a read stream and a write stream, as the SDK's transports "
        f"do, not {found}"
    )
    assert manager.state is ConnectionState.FAILED


@kinds
async def test_F21_a_session_in_another_manager_is_watched_too(kind, server):
    class Outer(ConnectionManager):
        def open_connection(self):
            return self.open_inner(on(kind, server))

    manager = Outer()
    await manager.start()
    server.end()
    assert str((await lost(manager)).__cause__) == "the transport's read stream ended"


# Sessions that stop reading.


@kinds
async def test_F22_a_call_cancelled_in_the_tick_of_its_response_does_not_end_the_session(kind, server):
    manager = on(kind, server)
    session = await manager.start()
    for _ in range(30):  # the order of trio's tasks is random
        await server.cancel_call_with_response(session)
        await session.list_tools()
    assert manager.state is ConnectionState.OPEN
    await manager.stop()
    assert manager.exception is None


@kinds
async def test_F22_a_call_whose_response_arrives_while_the_connection_is_closed_ends(kind, server):
    """The session may be cancelled at any step of the delivery, and the order on trio is random."""
    for steps in [*range(6)] * 3:
        manager = on(kind, server)
        session = await manager.start()
        ended = anyio.Event()

        async def call(session=session, ended=ended):
            with suppress(ERROR):
                await session.call_tool("anything", {})
            ended.set()

        async with anyio.create_task_group() as tg:
            tg.start_soon(call)
            request = await server.next_request()
            server.answer(request, content=[])
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            await manager.stop(timeout=0)
            with anyio.fail_after(3):
                await ended.wait()


@kinds
async def test_H6_if_its_read_stream_is_closed_the_session_is_lost(kind, server):
    manager = on(kind, server)
    session = await manager.start()
    await session.list_tools()
    close_read_stream(server)
    error = await lost(manager)
    assert isinstance(error.__cause__, RuntimeError)
    assert str(error.__cause__) == (
        "the session stopped reading messages because its read stream was closed"
    )


@kinds
async def test_H6_if_the_receive_loop_ends_with_a_bug_the_session_is_lost_with_a_cause(
    kind, server, caplog
):
    manager = on(kind, server)
    await manager.start()
    server.put(object())  # the SDK expects a message or an exception
    error = await lost(manager)
    if _sdk.HAS_CLIENT:
        assert isinstance(error.__cause__, AttributeError)
    else:
        assert str(error.__cause__) == "the session stopped reading messages"
    assert len(warnings_in(caplog)) == 1


def of_exceptions(error):
    async def handle(message):
        if isinstance(message, Exception):
            raise error

    return handle


@kinds
@pytest.mark.parametrize("item", ["an exception", "a response that nobody waits for"])
@only_1
async def test_H6_if_a_handler_ends_the_receive_loop_its_exception_is_the_cause(
    kind, server, item, caplog
):
    bug = LookupError("a bug in the handler")
    manager = on(kind, server, message_handler=of_exceptions(bug))
    session = await manager.start()
    outcomes = []
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(call, session, outcomes)
        await server.next_request()
        server.put(OSError("hiccup") if item == "an exception" else {"id": 4711, "result": {}})
        error = await lost(manager)
    assert error.__cause__ is bug
    assert outcomes == ["failed"]
    assert len(warnings_in(caplog)) == 1


@kinds
@only_2
async def test_H6_a_handler_that_raises_does_not_end_a_session_of_mcp_2(kind, server):
    manager = on(kind, server, message_handler=of_exceptions(LookupError("a bug in the handler")))
    session = await manager.start()
    server.put(OSError("hiccup"))
    await session.list_tools()
    await manager.stop()
    assert manager.exception is None


@kinds
@only_1
async def test_H6_a_handler_that_raises_for_a_notification_does_not_end_the_session(kind, server):
    async def handle(message):
        raise LookupError("a bug in the handler")

    manager = on(kind, server, message_handler=handle)
    session = await manager.start()
    server.put({"method": "notifications/tools/list_changed"})
    await session.list_tools()
    await manager.stop()
    assert manager.exception is None


@kinds
@only_1
async def test_H6_a_handler_that_raises_a_native_cancellation_ends_the_session_as_lost(
    kind, server, asyncio_only
):
    async def handle(message):
        raise asyncio.CancelledError

    manager = on(kind, server, message_handler=handle)
    await manager.start()
    server.put({"method": "notifications/tools/list_changed"})
    error = await lost(manager)
    assert str(error.__cause__) == (
        "the session stopped reading messages because one of its handlers was cancelled"
    )


@kinds
async def test_H6_if_the_task_of_the_receive_loop_is_cancelled_the_session_is_lost(
    kind, server, asyncio_only
):
    before = asyncio.all_tasks()
    manager = on(kind, server)
    await manager.start()
    names = ("_receive_loop", "JSONRPCDispatcher.run")
    [task] = [task for task in asyncio.all_tasks() - before if task.get_name().endswith(names)]
    task.cancel()
    await lost(manager)


@kinds
@pytest.mark.parametrize("timeout", [None, 30, 0])
async def test_H6_a_session_that_is_stopped_is_not_lost(kind, server, timeout, caplog):
    manager = on(kind, server)
    session = await manager.start()
    outcomes = []
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(call, session, outcomes)
        await server.next_request()
        await manager.stop(timeout)
    assert outcomes == ["failed"]
    assert manager.state is ConnectionState.CLOSED
    assert not warnings_in(caplog)


@kinds
async def test_H6_an_error_of_the_handshake_is_raised_although_the_session_stops_reading(kind, server):
    server.on_handshake = lambda request: server.put(
        {"id": request["id"], "error": {"code": -32000, "message": "not today"}}
    )
    manager = on(kind, server)
    with pytest.raises(ERROR, match="not today"):
        await manager.start()
    server.on_handshake = None
    async with manager as session:
        await session.list_tools()


def test_H6_a_stream_that_is_closed_without_an_event_loop_is_not_a_loss():
    """If its event loop was closed, the receive loop ends when it is garbage collected."""
    losses = []
    watch = _session_watch.SessionWatch(losses.append, lambda: False)
    sender, receiver = anyio.create_memory_object_stream(1)
    reader, _ = watch.watched((receiver, sender), for_writing=True)
    with sender, pytest.raises(GeneratorExit), reader:
        raise GeneratorExit
    watch.closed(GeneratorExit())
    assert losses == []


def test_F21_a_transport_that_is_collected_without_an_event_loop_gives_no_reason():
    losses = []
    watch = _session_watch.SessionWatch(losses.append, lambda: False)

    async def read_to_the_end():
        sender, receiver = anyio.create_memory_object_stream(1)
        reader, _ = watch.watched((receiver, sender), for_writing=True)
        sender.close()
        assert [item async for item in reader] == []
        reader.close()

    anyio.run(read_to_the_end)
    watch.closed(GeneratorExit())
    assert losses == [None]


async def test_H6_an_exception_that_ends_the_program_is_not_reported_as_a_loss():
    """It leaves the session's task group, and the owner task records it."""
    losses = []
    watch = _session_watch.SessionWatch(losses.append, lambda: False)
    sender, receiver = anyio.create_memory_object_stream(1)
    reader, _ = watch.watched((receiver, sender), for_writing=True)
    with sender, pytest.raises(SystemExit):
        async with reader:
            raise SystemExit
    assert losses == []
    with pytest.raises(anyio.ClosedResourceError):
        await reader.receive()
