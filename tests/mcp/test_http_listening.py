"""Tests for the event stream of a GET request: it is opened again for as long as the session lives."""

from itertools import pairwise

import anyio
import mcp.client.streamable_http
import pytest
from session_server import (
    Log,
    SessionServer,
    call,
    event,
    in_turn,
    lost,
    opened,
    reset,
    status,
    then,
    until_gone,
    works,
)

from ownertask import ConnectionState
from ownertask.mcp import _sdk

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

REOPENED = 5
"""How often the stream fails in a row. The SDK gives up after two failures."""


@pytest.fixture
def no_sdk_delay(monkeypatch):
    """Removes the SDK's own delay, for streams that end before the server could send `retry: 0`."""
    monkeypatch.setattr(mcp.client.streamable_http, "DEFAULT_RECONNECTION_DELAY_MS", 0)


@pytest.fixture
def no_extra_delay(monkeypatch, no_sdk_delay):
    monkeypatch.setattr("ownertask.mcp._http_listening.MAX_DELAY", 1.0)


async def begin(request):
    await request.begin_events()
    await request.stream.send(b"retry: 0\n\n")


async def quiet(request):
    """Sends nothing, and returns when the client closes the connection."""
    await begin(request)
    await request.stream.receive()


async def end(request):
    await request.stream.aclose()


def hold(*steps):
    """Returns a function that opens a stream, sends events, and keeps it open."""
    return then(begin, *steps, lambda request: request.stream.receive())


FAILURES = {
    "ends": then(begin, end),
    "is reset": then(begin, reset),
    "is reset before the response": reset,
    "gets 502": status("502 Bad Gateway"),
    "gets 503": status("503 Service Unavailable"),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("is_first", [True, False], ids=["at first", "later"])
async def test_W3_a_stream_that_fails_again_and_again_is_opened_again(failure, is_first, no_extra_delay):
    fails = FAILURES[failure]
    first = [] if is_first else [then(begin, event("first"), end)]
    streams = in_turn(*first, *[fails] * REOPENED, hold(event("last")))
    server, log = SessionServer(GET=streams), Log()
    async with opened(server, log=log) as (manager, session):
        await log.received("last")
        await call(session)
        await works(manager, session)
    assert log.texts == ([] if is_first else ["first"]) + ["last"]
    assert server.count("GET") == len(first) + REOPENED + 1
    assert all(request.headers["mcp-session-id"] == "1" for request in server.all("GET"))
    assert server.count("probe") == 0


async def test_W3_a_quiet_stream_is_opened_again_and_this_is_not_counted_as_a_failure(no_sdk_delay):
    """If the read timeouts were counted, the delays would add up to more than ten seconds."""

    async def hurry(request):
        if request.method == "GET":
            request.extensions["timeout"]["read"] = 0.1

    def make_client(**options):
        client = _sdk.create_mcp_http_client(**options)
        client.event_hooks = {"request": [hurry]}
        return client

    streams = in_turn(*[quiet] * REOPENED, hold(event("last")))
    server, log = SessionServer(GET=streams), Log()
    async with opened(server, log=log, httpx_client_factory=make_client) as (manager, session):
        await log.received("last")
        await works(manager, session)
    assert server.count("probe") == 0


async def test_W3_a_stream_that_is_quiet_for_longer_than_the_read_timeout_is_opened_again():
    streams = in_turn(quiet, quiet, quiet, hold(event("last")))
    server, log = SessionServer(GET=streams), Log()
    async with opened(server, log=log, read_timeout=0.3) as (manager, session):
        await log.received("last")
        await works(manager, session)


async def test_W3_each_stream_delivers_its_notifications_and_the_last_event_id_is_sent(no_extra_delay):
    streams = [then(begin, event(f"event {n}", event_id=n), end) for n in range(1, REOPENED + 1)]
    bad_gateway = status("502 Bad Gateway")
    last = hold(event("last"))
    server, log = SessionServer(GET=in_turn(*streams, *[bad_gateway] * REOPENED, reset, last)), Log()
    async with opened(server, log=log):
        await log.received("last")
    assert log.texts == [*(f"event {n}" for n in range(1, REOPENED + 1)), "last"]
    ids = [request.headers.get("last-event-id") for request in server.all("GET")]
    assert ids == [None, *map(str, range(1, REOPENED + 1)), *[str(REOPENED)] * (REOPENED + 1)]


@pytest.mark.parametrize("failure", ["gets 502", "ends"])
async def test_W3_the_delay_grows_to_a_maximum(failure, monkeypatch, no_sdk_delay):
    """It grows even if the server asks for no delay, unless the stream worked."""
    monkeypatch.setattr("ownertask.mcp._http_listening.MAX_DELAY", 1.2)
    times = []

    async def refuse(request):
        times.append(anyio.current_time())
        await FAILURES[failure](request)

    server, log = SessionServer(GET=in_turn(refuse, refuse, refuse, hold(event("last")))), Log()
    async with opened(server, log=log):
        await log.received("last")
        times.append(anyio.current_time())
    delays = [after - before for before, after in pairwise(times)]
    assert all(delay > 0.19 for delay in delays[1:])  # the clocks of some systems are coarse


async def test_W3_a_stream_that_was_open_for_a_while_is_opened_again_without_a_growing_delay(
    monkeypatch, no_sdk_delay
):
    """Otherwise the delays would add up to more than ten seconds."""
    monkeypatch.setattr("ownertask.mcp._http_listening.MAX_DELAY", 5)
    monkeypatch.setattr("ownertask.mcp._http_listening.current_time", iter(range(0, 1000, 10)).__next__)
    streams = in_turn(*[FAILURES["ends"]] * REOPENED, hold(event("last")))
    server, log = SessionServer(GET=streams), Log()
    async with opened(server, log=log):
        await log.received("last")


@pytest.mark.parametrize("line", ["405 Method Not Allowed", "404 Not Found"])
async def test_W3_a_server_that_does_not_offer_the_stream_is_not_asked_again(line, no_extra_delay):
    server = SessionServer(GET=status(line))
    async with opened(server) as (manager, session):
        await server.received("GET")
        await works(manager, session)
        await call(session)
    assert server.count("GET") == 1
    assert server.count("probe") == 0


async def test_W3_a_405_after_the_stream_was_open_ends_the_attempts(no_extra_delay):
    server = SessionServer(GET=in_turn(then(begin, end), status("405 Method Not Allowed")))
    async with opened(server) as (manager, session):
        await server.received("GET", 2)
        await works(manager, session)
    assert server.count("GET") == 2


async def test_W3_a_404_after_the_stream_was_open_is_a_loss(no_extra_delay):
    server = SessionServer(GET=in_turn(then(begin, end), status("404 Not Found")))
    async with opened(server) as (manager, _):
        loss = await lost(manager)
        assert "HTTP status 404 Not Found" in str(loss.__cause__)
        server.answers.clear()
        session = await manager.start()
        await works(manager, session)
    assert server.count("DELETE") == 1  # of the second session


@pytest.mark.parametrize("line", ["400 Bad Request", "409 Conflict", "410 Gone"])
async def test_W3_a_session_that_is_refused_after_the_stream_was_open_is_probed(line, no_extra_delay):
    """The stream of a server that was restarted, and a stream that the server refuses for a while."""
    server = SessionServer(GET=in_turn(then(begin, end), status(line)), probe=status(line))
    async with opened(server) as (manager, _):
        loss = await lost(manager)
        assert f"HTTP status {line}" in str(loss.__cause__)
    streams = in_turn(then(begin, end), status(line), hold(event("last")))
    server, log = SessionServer(GET=streams), Log()
    async with opened(server, log=log) as (manager, session):
        await server.received("probe")
        await log.received("last")
        await works(manager, session)


@pytest.mark.parametrize("line", ["401 Unauthorized", "403 Forbidden", "429 Too Many Requests"])
async def test_W3_a_refusal_that_says_nothing_about_the_session_is_not_probed(line, no_extra_delay):
    streams = in_turn(then(begin, end), status(line), status(line), hold(event("last")))
    server, log = SessionServer(GET=streams), Log()
    async with opened(server, log=log) as (manager, session):
        await log.received("last")
        await works(manager, session)
    assert server.count("probe") == 0


async def test_W3_a_server_that_is_gone_is_detected_without_a_call(no_extra_delay):
    server, log = SessionServer(GET=hold(event("open"))), Log()
    async with until_gone(server, log=log) as (manager, _, end_server):
        await log.received("open")
        await end_server()
        posts = len(server.requests) - server.count("GET")
        loss = await lost(manager)
    assert isinstance(loss.__cause__, _sdk.http.ConnectError)
    assert len(server.requests) - server.count("GET") == posts


async def test_W3_a_server_that_is_gone_while_the_stream_is_refused_is_detected(no_extra_delay):
    server = SessionServer(GET=status("502 Bad Gateway"))
    async with until_gone(server) as (manager, _, end_server):
        await server.received("GET", REOPENED)
        await end_server()
        loss = await lost(manager)
    assert isinstance(loss.__cause__, _sdk.http.ConnectError)


async def test_W3_stop_ends_the_attempts_at_once(no_sdk_delay):
    server = SessionServer(GET=status("502 Bad Gateway"))
    async with opened(server) as (manager, session):
        await server.received("GET", 2)  # the third attempt is seconds away
        await works(manager, session)
        with anyio.fail_after(1):
            await manager.stop()
    assert manager.state is ConnectionState.CLOSED
    assert manager.exception is None
