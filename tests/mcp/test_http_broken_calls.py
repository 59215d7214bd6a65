"""Tests for calls that get no response, or only the beginning of one: each one fails alone."""

import zlib

import anyio
import pytest
from http_server import http_server
from session_server import (
    ERROR,
    SessionServer,
    begin_events,
    begin_json,
    call,
    in_turn,
    opened,
    refused,
    reset,
    result_of,
    silent,
    then,
    works,
)

from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager, _sdk

http = _sdk.http

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]


async def begin_event(request):
    await begin_events(request)
    await request.stream.send(b"6\r\nevent:\r\n")


BEGINNINGS = {
    "nothing": (),
    "a part of the JSON": (begin_json,),
    "the headers of an event stream": (begin_events,),
    "a part of an event": (begin_event,),
}
beginnings = pytest.mark.parametrize("beginning", BEGINNINGS)


async def test_each_of_many_simultaneous_calls_is_sent_once():
    """On trio, the transport of mcp 1.x sends some calls twice and others never."""
    server = SessionServer()
    async with opened(server) as (_, session):
        async with anyio.create_task_group() as tg:
            for _ in range(20):
                tg.start_soon(call, session)
        assert server.count("tools/call") == 20


async def test_W4_a_call_that_gets_no_connection_fails_alone():
    calls, connections = 6, 2
    results = []
    enough_failed = anyio.Event()

    async def hold(request):
        await enough_failed.wait()
        await server.answer(request)

    async def make_call(session):
        try:
            await call(session)
        except ERROR as error:
            results.append(error.error.message)
            if len(results) == calls - connections:
                enough_failed.set()
        else:
            results.append("answered")

    server = SessionServer(**{"tools/call": hold})
    limits = http.Limits(max_connections=connections)
    async with http_server(server) as url, http.AsyncClient(
        limits=limits, timeout=http.Timeout(4, pool=0.2)
    ) as client:  # fmt: skip
        manager = SessionConnectionManager(StreamableHttpConnectionManager(url, http_client=client))
        session = await manager.start()
        await server.received("GET")
        await works(manager, session)
        async with anyio.create_task_group() as tg:
            for _ in range(calls):
                tg.start_soon(make_call, session)
        assert server.count("tools/call") == connections
        for message in results[: calls - connections]:
            assert "no free connection within 0.2 s" in message
        assert results[calls - connections :] == ["answered"] * connections
        await works(manager, session)
        await call(session)
        await manager.stop()


@beginnings
async def test_W5_a_call_whose_response_exceeds_the_read_timeout_fails_alone(beginning):
    broken = then(*BEGINNINGS[beginning], silent)
    server = SessionServer(**{"tools/call": in_turn(broken, SessionServer().answer)})
    async with opened(server, read_timeout=0.3) as (manager, session):
        error = await refused(session)
        assert "no response within 0.3 s" in error.message
        await works(manager, session)
        await call(session)


@beginnings
async def test_W5_a_call_whose_response_is_reset_fails_alone(beginning):
    broken = then(*BEGINNINGS[beginning], reset)
    server = SessionServer(**{"tools/call": in_turn(broken, SessionServer().answer)})
    async with opened(server) as (manager, session):
        error = await refused(session)
        assert error.message.strip()
        await server.received("probe")
        await works(manager, session)
        await call(session)
    assert server.count("probe") == 1


@beginnings
async def test_W5_a_reset_after_the_caller_gave_up_harms_nothing(beginning):
    begun, given_up, is_reset = anyio.Event(), anyio.Event(), anyio.Event()

    async def broken(request):
        for step in BEGINNINGS[beginning]:
            await step(request)
        begun.set()
        await given_up.wait()
        await reset(request)
        is_reset.set()

    server = SessionServer(**{"tools/call": in_turn(broken, SessionServer().answer)})
    async with opened(server) as (manager, session):
        async with anyio.create_task_group() as tg:
            tg.start_soon(call, session)
            await begun.wait()
            await anyio.wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        given_up.set()
        await is_reset.wait()
        await works(manager, session)
        await call(session)


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_W7_a_response_that_breaks_off_after_an_event_id_is_resumed(encoding):
    call_request = None

    async def break_off(request):
        nonlocal call_request
        call_request = request
        event = b"id: 7\nretry: 0\nevent: message\ndata:\n\n"
        if encoding == "gzip":
            packer = zlib.compressobj(wbits=31)
            event = packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)
            assert b"id:" not in event
        await request.begin_events(transfer_encoding="chunked", content_encoding=encoding)
        await request.stream.send(b"%x\r\n%b\r\n" % (len(event), event))
        await request.stream.aclose()

    async def listen(request):
        if "last-event-id" not in request.headers:
            await server.answer(request)
            return
        await request.begin_events()
        await request.send_event("message", result_of(call_request))
        await request.stream.aclose()

    server = SessionServer(**{"tools/call": in_turn(break_off, SessionServer().answer), "GET": listen})
    async with opened(server) as (manager, session):
        with anyio.fail_after(4):
            await call(session)
        await works(manager, session)
        await call(session)
    resumed = [request for request in server.all("GET") if "last-event-id" in request.headers]
    assert [request.headers["last-event-id"] for request in resumed] == ["7"]
