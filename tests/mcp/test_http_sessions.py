"""Tests for refused calls in a session: a probe finds out whether the server still knows the session.

The probe is a `ping` that the transport sends on its own.
"""

import anyio
import pytest
from session_server import (
    JUNK,
    METHOD_NOT_FOUND,
    REFUSALS,
    STATUSES,
    SessionServer,
    call,
    error_of,
    in_turn,
    json_error,
    lost,
    opened,
    refused,
    reset,
    result_of,
    silent,
    status,
    until_gone,
    works,
)

from ownertask.mcp import _sdk

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]


async def error_with_result_status(request):
    await request.answer(body=error_of(request, -32603))


async def result_as_event(request):
    await request.begin_events()
    await request.send_event("message", result_of(request))
    await request.stream.aclose()


def event_stream_with(text):
    """Returns a function that sends the result as an event, and then something else."""

    async def answer(request):
        await request.begin_events()
        await request.send_event("message", result_of(request))
        await request.stream.send(text)
        await request.stream.aclose()

    return answer


async def error_of_another_request(request):
    body = {**error_of(request, METHOD_NOT_FOUND), "id": "another"}
    await request.answer("400 Bad Request", body)


LIFE = {
    "a result": SessionServer().answer,
    "an error with status 200": error_with_result_status,
    "a result in an event stream": result_as_event,
    "a result before a comment": event_stream_with(b": bye\n\n"),
    "a result before an id": event_stream_with(b"id: 7\n\n"),
    **{
        f"method not found with status {line[:3]}": json_error(line, METHOD_NOT_FOUND)
        for line in ("400 Bad Request", "404 Not Found", "500 Internal Server Error")
    },
}
LOOP = status("307 Temporary Redirect", location="/")
DEATH = {
    **({} if _sdk.FOLLOWS_ALL_REDIRECTS else {"a loop of redirects": (LOOP, "HTTP status 307")}),
    "a plain 404": (status("404 Not Found"), "HTTP status 404 Not Found"),
    "a plain 400": (status("400 Bad Request"), "HTTP status 400 Bad Request"),
    "an error with status 404": (json_error("404 Not Found", -32001), "HTTP status 404 Not Found"),
    "an error with status 400": (json_error("400 Bad Request", -32600), "HTTP status 400 Bad Request"),
    "method not found for another request": (error_of_another_request, "HTTP status 400 Bad Request"),
    **{f"{what} with status 200": (answer, "HTTP status 200 OK") for what, answer in JUNK.items()},
}


@pytest.fixture
def short_probe(monkeypatch):
    """Shortens the time in which a probe must be answered, and the time between two probes."""
    monkeypatch.setattr("ownertask.mcp._http_session.PROBE_TIMEOUT", 0.5)
    monkeypatch.setattr("ownertask.mcp._http_session.PROBE_INTERVAL", 0.02)


@pytest.fixture
def time_for_probe(request):
    """Shortens the time only for a probe that is repeated until it has passed."""
    if request.getfixturevalue("refusal").startswith("5"):
        request.getfixturevalue("short_probe")


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_W1_a_session_is_lost_if_the_server_refuses_a_call_and_the_probe(refusal, time_for_probe):
    server = SessionServer(**{"tools/call": REFUSALS[refusal], "probe": REFUSALS[refusal]})
    async with opened(server) as (manager, session):
        error = await refused(session)
        assert error.message
        loss = await lost(manager)
        shown = refusal if refusal in STATUSES else "200 OK"
        assert f"HTTP status {shown}" in str(loss.__cause__)
        if refusal in STATUSES:
            assert f"HTTP status {refusal}" in error.message
        if refusal.startswith("5"):
            assert server.count("probe") >= 2
        else:
            assert server.count("probe") == 1
        server.answers.clear()
        new_session = await manager.start()
        await call(new_session)
        await works(manager, new_session)


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_W1_a_session_stays_open_if_the_server_refuses_a_call_and_answers_the_probe(refusal):
    server = SessionServer(**{"tools/call": in_turn(REFUSALS[refusal], SessionServer().answer)})
    async with opened(server) as (manager, session):
        error = await refused(session)
        assert error.message
        if refusal in STATUSES:
            assert f"HTTP status {refusal}" in error.message
        await server.received("probe")
        await call(session)
        await works(manager, session)
    assert server.count("probe") == 1


@pytest.mark.parametrize("life", LIFE)
async def test_W1_an_answer_to_the_probe_shows_that_the_session_lives(life):
    server = SessionServer(**{"tools/call": status("400 Bad Request"), "probe": LIFE[life]})
    async with opened(server) as (manager, session):
        await refused(session)
        await server.received("probe")
        await works(manager, session)
    assert server.count("probe") == 1


@pytest.mark.parametrize("death", DEATH)
async def test_W1_any_other_answer_to_the_probe_shows_that_the_session_is_gone(death):
    answer, shown = DEATH[death]
    server = SessionServer(**{"tools/call": status("500 Internal Server Error"), "probe": answer})
    async with opened(server) as (manager, session):
        error = await refused(session)
        assert "HTTP status 500 Internal Server Error" in error.message
        loss = await lost(manager)
    assert shown in str(loss.__cause__)
    redirects = 20 if death == "a loop of redirects" else 0
    assert server.count("probe") == 1 + redirects


@pytest.mark.parametrize(
    "line", ["401 Unauthorized", "403 Forbidden", "429 Too Many Requests"], ids=lambda line: line[:3]
)
async def test_W1_a_probe_that_is_refused_for_another_reason_gives_no_verdict(line):
    server = SessionServer(**{"tools/call": status("400 Bad Request"), "probe": status(line)})
    async with opened(server) as (manager, session):
        await refused(session)
        await server.received("probe")
        await works(manager, session)
        server.answers.clear()
        await call(session)


async def test_W1_a_probe_that_is_not_answered_in_time_gives_no_verdict(short_probe):
    given_up = anyio.Event()

    async def never(request):
        try:
            await silent(request)
        finally:
            given_up.set()

    server = SessionServer(**{"tools/call": status("400 Bad Request"), "probe": never})
    async with opened(server) as (manager, session):
        await refused(session)
        with anyio.fail_after(3):
            await given_up.wait()
        await works(manager, session)
        server.answers.clear()
        await call(session)


async def test_W1_a_probe_answered_with_5xx_is_repeated_until_one_succeeds(monkeypatch):
    monkeypatch.setattr("ownertask.mcp._http_session.PROBE_INTERVAL", 0.02)
    down = status("503 Service Unavailable")
    probe = in_turn(down, status("502 Bad Gateway"), down, SessionServer().answer)
    server = SessionServer(**{"tools/call": status("502 Bad Gateway"), "probe": probe})
    async with opened(server) as (manager, session):
        await refused(session)
        await server.received("probe", 4)
        await works(manager, session)
    assert server.count("probe") == 4


@pytest.mark.parametrize("probe", [SessionServer().answer, reset], ids=["answered", "reset"])
async def test_W1_a_reset_connection_is_probed(probe, short_probe):
    server = SessionServer(**{"tools/call": reset, "probe": probe})
    async with opened(server) as (manager, session):
        error = await refused(session)
        assert error.message
        await server.received("probe")
        if probe is not reset:
            await works(manager, session)
            assert server.count("probe") == 1
        else:
            loss = await lost(manager)
            assert isinstance(loss.__cause__, _sdk.http.TransportError)


async def test_W1_a_refused_tcp_connection_is_a_loss_without_a_probe():
    server = SessionServer()
    async with until_gone(server) as (manager, session, end_server):
        await call(session)
        await end_server()
        await refused(session)
        loss = await lost(manager)
    assert isinstance(loss.__cause__, _sdk.http.ConnectError)
    assert server.count("probe") == 0


async def test_W1_many_refused_calls_lead_to_one_probe_at_a_time():
    calls = 10
    running = peak = 0
    all_are_refused = anyio.Event()

    async def refuse(request):
        await request.answer("400 Bad Request")
        if server.count("tools/call") == calls:
            all_are_refused.set()

    async def probe(request):
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await all_are_refused.wait()
        running -= 1
        await server.answer(request)

    server = SessionServer(**{"tools/call": refuse, "probe": probe})
    async with opened(server) as (manager, session):
        async with anyio.create_task_group() as tg:
            for _ in range(calls):
                tg.start_soon(refused, session)
                # mcp 1.x can lose the first of two messages that are sent in the same iteration.
                await anyio.wait_all_tasks_blocked()
        await server.received("probe")
        await works(manager, session)
        server.answers.clear()
        await call(session)
    assert peak == 1
    assert server.count("probe") <= 2  # a call that was refused after a probe began may need another


@pytest.mark.parametrize("line", ["401 Unauthorized", "403 Forbidden", "429 Too Many Requests"])
async def test_W1_a_refusal_that_says_nothing_about_the_session_is_not_probed(line):
    server = SessionServer(**{"tools/call": status(line)})
    async with opened(server) as (manager, session):
        await refused(session)
        await works(manager, session)
    assert server.count("probe") == 0


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_W1_a_refused_get_or_delete_is_not_probed(method):
    server = SessionServer(**{method: status("400 Bad Request")})
    async with opened(server) as (manager, session):
        if method == "GET":
            await server.received("GET")
        await works(manager, session)
    assert server.count(method) >= 1
    assert server.count("probe") == 0


async def test_W1_the_probe_has_the_headers_of_the_session():
    server = SessionServer(**{"tools/call": status("400 Bad Request")})
    async with opened(server, headers={"X-Key": "key"}) as (_, session):
        await refused(session)
        await server.received("probe")
    probe, other = server.all("probe")[0], server.all("tools/call")[0]
    assert probe.headers["mcp-session-id"] == "1"
    for name in ("accept", "content-type", "mcp-protocol-version", "mcp-session-id", "x-key"):
        assert probe.headers[name] == other.headers[name]
