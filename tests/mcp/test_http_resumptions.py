"""Tests for calls whose event stream breaks off and is resumed, or cannot be resumed."""

import gzip

import anyio
import mcp
import pytest
from http_server import http_server
from mcp.shared.message import ClientMessageMetadata
from session_server import (
    ERROR,
    SessionServer,
    call,
    in_turn,
    opened,
    refused,
    reset,
    result_of,
    silent,
    status,
    then,
    works,
)

from ownertask.mcp import SessionConnectionManager, _sdk
from ownertask.mcp._http_events import CallEvents

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

ID = b"id: 1\nretry: 0\ndata:\n\n"


async def begin(request):
    """Sends an event with an id, and no result."""
    await request.begin_events(transfer_encoding="chunked")
    await request.stream.send(b"%x\r\n%b\r\n" % (len(ID), ID))


async def end(request):
    await request.stream.send(b"0\r\n\r\n")
    await request.stream.aclose()


class Server(SessionServer):
    """Breaks off the event stream of each call after an event with an id.

    Attributes:
        resumptions: Answers the requests that resume a call.
    """

    def __init__(self, resumptions):
        super().__init__(**{"tools/call": then(begin, reset), "GET": self.get})
        self.resumptions = resumptions
        self.resumed = 0

    async def get(self, request):
        if "last-event-id" not in request.headers:
            await request.answer("405 Method Not Allowed")
        else:
            self.resumed += 1
            await self.resumptions(request)

    async def send_result(self, request):
        await request.begin_events()
        await request.send_event("message", result_of(self.all("tools/call")[-1]))
        await request.stream.aclose()


FAILURES = {
    "500": (status("500 Internal Server Error"), "HTTP status 500 Internal Server Error"),
    "401": (status("401 Unauthorized"), "HTTP status 401 Unauthorized"),
    "HTML": (status("200 OK", b"<html>", content_type="text/html"), "Content-Type: text/html"),
    "a reset": (reset, "Error"),
    "a reset in the stream": (then(begin, reset), "Error"),
}
failures = pytest.mark.parametrize("failure", FAILURES)


@failures
async def test_a_call_that_cannot_be_resumed_fails_alone(failure):
    """The SDK gives up after two failures. On mcp 1.x, the call would then wait forever."""
    answer, text = FAILURES[failure]
    server = Server(answer)
    async with opened(server) as (manager, session):
        assert text in (await refused(session)).message
        assert server.resumed == 2
        await works(manager, session)
    assert server.count("probe") == (0 if failure == "401" else server.count("probe"))


@failures
async def test_a_call_is_resumed_after_one_failure(failure):
    server = Server(None)
    server.resumptions = in_turn(FAILURES[failure][0], server.send_result)
    async with opened(server) as (manager, session):
        await call(session)
        await works(manager, session)


async def test_a_stream_that_the_server_ends_is_resumed_as_often_as_necessary():
    """A server may end the stream at any time, and expect the client to come back."""
    server = Server(None)
    server.answers["tools/call"] = then(begin, end)
    server.resumptions = in_turn(*[then(begin, end)] * 5, server.send_result)
    async with opened(server) as (manager, session):
        await call(session)
        await works(manager, session)
    assert server.resumed == 6


@failures
async def test_a_resumption_that_the_caller_asked_for_fails_alone(failure):
    """It would crash the transport of the SDK, and end all other calls."""
    answer, text = FAILURES[failure]
    server = Server(answer)
    server.answers["tools/list"] = silent
    params = mcp.types.CallToolRequestParams(name="add", arguments={})
    request = mcp.types.CallToolRequest(method="tools/call", params=params)
    if not _sdk.HAS_CLIENT:
        request = mcp.types.ClientRequest(request)
    metadata = ClientMessageMetadata(resumption_token="5")
    async with opened(server) as (manager, session):
        async with anyio.create_task_group() as tg:
            tg.start_soon(session.list_tools)
            await server.received("tools/list")
            with anyio.fail_after(3), pytest.raises(ERROR, match=text):
                await session.send_request(request, mcp.types.CallToolResult, metadata=metadata)
            tg.cancel_scope.cancel()
        del server.answers["tools/list"]
        await works(manager, session)


@pytest.mark.skipif(_sdk.FOLLOWS_ALL_REDIRECTS, reason="the HTTP client follows redirects")
async def test_a_call_is_resumed_through_a_redirect():
    async def redirect(request):
        if request.method == "GET" and request.target == "/":
            await request.answer("307 Temporary Redirect", location="/mcp")
        else:
            await server(request)

    server = Server(None)
    server.resumptions = server.send_result
    async with http_server(redirect) as url, SessionConnectionManager(url) as session:
        await call(session)
    assert server.resumed == 1


async def test_the_body_of_an_event_stream_ends_after_the_last_event():
    async def body():
        yield b"event: mess"

    request = _sdk.http.Request("POST", "http://example.org")
    response = _sdk.http.Response(200, content=body(), request=request)
    events = CallEvents(response, lambda error: b"{}")
    assert b"".join([chunk async for chunk in events]) == (
        b"event: mess\nevent: incomplete\n\nevent: message\ndata: {}\n\n"
    )
    with pytest.raises(StopAsyncIteration):
        await anext(events)


@pytest.mark.parametrize("is_resumed", [True, False])
async def test_a_resumed_stream_may_be_compressed(is_resumed):
    async def compressed(request):
        body = gzip.compress(b": hello\n\n")
        await request.begin_events(transfer_encoding="chunked", content_encoding="gzip")
        await request.stream.send(b"%x\r\n%b\r\n" % (len(body), body))
        await reset(request)

    server = Server(None)
    server.resumptions = in_turn(compressed, server.send_result if is_resumed else compressed)
    async with opened(server) as (manager, session):
        if is_resumed:
            await call(session)
        else:
            assert "Error" in (await refused(session)).message
        await works(manager, session)


@pytest.mark.skipif(_sdk.FOLLOWS_ALL_REDIRECTS, reason="the HTTP client follows redirects")
async def test_a_loop_of_redirects_of_a_resumption_fails_only_the_call():
    server = Server(status("307 Temporary Redirect", location="/mcp"))
    async with opened(server) as (manager, session):
        assert "HTTP status 307" in (await refused(session)).message
        await works(manager, session)
