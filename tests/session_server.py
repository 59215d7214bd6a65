"""A scripted streamable HTTP server with one legacy session, and the tools to test a client of it."""

import socket
import struct
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import mcp
import pytest
from http_server import http_server, result_of_initialize

from ownertask import ConnectionLostError, ConnectionState
from ownertask.mcp import (
    ClientConnectionManager,
    SessionConnectionManager,
    StreamableHttpConnectionManager,
    _sdk,
)

ERROR = mcp.MCPError if _sdk.HAS_CLIENT else mcp.McpError
# On mcp 1.x, a call that was not sent raises one of the other two.
FAILURES = (ERROR, anyio.ClosedResourceError, anyio.BrokenResourceError)
KINDS = [SessionConnectionManager, *([ClientConnectionManager] if _sdk.HAS_CLIENT else [])]
METHOD_NOT_FOUND = -32601


def kind_of(request):
    """Returns "probe", the JSON-RPC method, "response" or the HTTP method.

    A ping whose id is a string is a probe. The ids of the SDK's own requests are numbers.
    """
    if request.method != "POST":
        return request.method
    message = request.message
    if message.get("method") == "ping" and isinstance(message["id"], str):
        return "probe"
    return message.get("method", "response")


class SessionServer:
    """Records every request, and answers each one well unless the test replaces the answer.

    Attributes:
        requests: All requests, in order.
        session_id: The id of the session; `None` sends none.
        answers: Functions that answer the requests of a kind; see `kind_of()`.
    """

    def __init__(self, **answers):
        self.requests = []
        self.session_id = "1"
        self.answers = answers
        self._received = anyio.Event()

    async def __call__(self, request):
        kind = kind_of(request)
        self.requests.append(request)
        self._received.set()
        self._received = anyio.Event()
        await self.answers.get(kind, self.answer)(request)

    async def answer(self, request):
        """Answers as a server does that has nothing to complain about."""
        kind = kind_of(request)
        if kind == "GET":
            await request.answer("405 Method Not Allowed")
        elif kind == "DELETE":
            await request.answer()
        elif kind == "initialize":
            headers = {} if self.session_id is None else {"mcp_session_id": self.session_id}
            await request.answer(body=result_of_initialize(request), **headers)
        elif kind == "server/discover":
            await request.answer("404 Not Found")
        elif "id" not in request.message or kind == "response":
            await request.answer("202 Accepted")
        else:
            await request.answer(body=result_of(request))

    def all(self, kind):
        return [request for request in self.requests if kind_of(request) == kind]

    def count(self, kind):
        return len(self.all(kind))

    async def received(self, kind, count=1):
        """Waits until the server received so many requests of a kind."""
        with anyio.fail_after(4):
            while self.count(kind) < count:
                await self._received.wait()


class SseServer:
    """Sends the given `endpoint` event, and refuses the messages of one method."""

    def __init__(self, endpoint, refused_method=None):
        self.endpoint = endpoint
        self.refused_method = refused_method
        self.events = None

    async def __call__(self, request):
        if request.method == "GET":
            await request.begin_events()
            await request.send_event("endpoint", self.endpoint)
            self.events = request
            await request.stream.receive()
        elif request.message["method"] == self.refused_method:
            await request.answer("403 Forbidden")
        else:
            await request.answer("202 Accepted")
            if request.message["method"] == "initialize":
                await self.events.send_event("message", result_of_initialize(request))


def result_of(request):
    tool = {"name": "add", "inputSchema": {"type": "object"}}
    result = {
        "ping": {},
        "tools/list": {"tools": [tool]},
        "tools/call": {"content": [{"type": "text", "text": "3"}]},
    }
    return {"jsonrpc": "2.0", "id": request.message["id"], "result": result[request.message["method"]]}


def error_of(request, code, message="no"):
    error = {"code": code, "message": message}
    return {"jsonrpc": "2.0", "id": request.message["id"], "error": error}


def status(line, body=b"", **headers):
    """Returns a function that answers with this status."""

    async def answer(request):
        await request.answer(line, body, **headers)

    return answer


def json_error(line, code, message="no"):
    """Returns a function that answers with this status and a JSON-RPC error with the request's id."""

    async def answer(request):
        await request.answer(line, error_of(request, code, message))

    return answer


def in_turn(*answers):
    """Returns a function that uses one answer after the other. The last one is used from then on."""
    left = list(answers)

    async def answer(request):
        await (left.pop(0) if len(left) > 1 else left[0])(request)

    return answer


def event(text, event_id=None):
    """Returns a function that sends a log message as an event."""
    params = {"level": "info", "data": text}
    message = {"jsonrpc": "2.0", "method": "notifications/message", "params": params}

    async def send(request):
        if event_id is not None:
            await request.stream.send(f"id: {event_id}\n".encode())
        await request.send_event("message", message)

    return send


class Log:
    """Receives the log messages of a server."""

    def __init__(self):
        self.texts = []
        self._received = anyio.Event()

    async def __call__(self, params):
        self.texts.append(params.data)
        self._received.set()
        self._received = anyio.Event()

    async def received(self, text):
        with anyio.fail_after(4):
            while text not in self.texts:
                await self._received.wait()


async def silent(request):
    """Never answers, but returns when the client closes the connection."""
    await request.stream.receive()


async def reset(request):
    raw = request.stream.extra(anyio.abc.SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await request.stream.aclose()


async def begin_json(request):
    """Sends only the beginning of a JSON response."""
    head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
    await request.stream.send(head.encode() + b'{"jsonrpc"')


async def begin_events(request):
    await request.begin_events(transfer_encoding="chunked")


def then(*steps):
    """Returns a function that answers with these steps, one after the other."""

    async def answer(request):
        for step in steps:
            await step(request)

    return answer


JUNK = {
    "an HTML page": status("200 OK", b"<html>", content_type="text/html"),
    "invalid JSON": status("200 OK", b'{"jsonrpc"', content_type="application/json"),
    "JSON that is not JSON-RPC": status("200 OK", {"ok": True}),
}
STATUSES = ["400 Bad Request", "502 Bad Gateway", "503 Service Unavailable"]
REFUSALS = {**{line: status(line) for line in STATUSES}, **JUNK}
"""Refusals that make the transport probe the session."""


@asynccontextmanager
async def opened(server, kind=SessionConnectionManager, log=None, **options):
    """Serves, opens a session, and yields its manager and the session. Stops the manager at the end."""
    async with until_gone(server, kind, log, **options) as (manager, session, _):
        yield manager, session


@asynccontextmanager
async def until_gone(server, kind=SessionConnectionManager, log=None, **options):
    """Does the same, and also yields a function that ends the server. Connections are refused then."""
    async with AsyncExitStack() as serving:
        url = await serving.enter_async_context(http_server(server))
        manager = kind(StreamableHttpConnectionManager(url, **options), logging_callback=log)
        session = await manager.start()
        try:
            yield manager, session, serving.aclose
        finally:
            await manager.stop(timeout=1)


async def call(session):
    with anyio.fail_after(4):
        result = await session.call_tool("add", {"a": 1, "b": 2})
    assert result.content[0].text == "3"


async def refused(session):
    """Makes a call that fails, and returns the error that the server or the transport sent."""
    with anyio.fail_after(3), pytest.raises(ERROR) as caught:
        await session.call_tool("add", {"a": 1, "b": 2})
    return caught.value.error


async def works(manager, session):
    """Checks that a session is open and stays so. Several calls give it the time to be lost."""
    for _ in range(3):
        await anyio.wait_all_tasks_blocked()
        assert manager.state is ConnectionState.OPEN
        with anyio.fail_after(4):
            await session.list_tools()
    assert manager.state is ConnectionState.OPEN


async def lost(manager):
    """Waits for the loss of a connection and returns it."""
    with anyio.fail_after(4), pytest.raises(ConnectionLostError) as caught:
        await manager.wait_closed()
    assert manager.state is ConnectionState.FAILED
    return caught.value


def said(error):
    """Returns all that a user reads of an error: its text, its notes and its cause."""
    parts = [str(error), *getattr(error, "__notes__", ())]
    return "\n".join(parts) + ("" if error.__cause__ is None else "\n" + said(error.__cause__))
