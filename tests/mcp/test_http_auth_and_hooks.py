"""Tests for calls that fail because of the application's `auth` or the hooks of its HTTP client."""

import anyio
import pytest
from http_failures import refused_port
from http_server import http_server
from session_server import SessionServer, call, in_turn, lost, opened, refused, silent, status, works

from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager, _sdk

http = _sdk.http

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]


class Auth(http.Auth):
    """Works until `error` or `url` is set. Then it raises the exception or asks the URL for a token."""

    error = None
    url = None

    async def async_auth_flow(self, request):
        if self.error is not None:
            raise self.error
        if self.url is not None:
            yield http.Request("GET", self.url)
        yield request


def hooked_client(**options):
    """Returns a client that raises an exception for each refused request, as many applications do."""

    async def check(response):
        if response.request.method == "POST":
            response.raise_for_status()

    client = _sdk.create_mcp_http_client(**options)
    client.event_hooks = {"response": [check]}
    return client


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            LookupError("no token for s3cret://u:s3cret@h/?s3cret"),
            "LookupError: no token for s3cret://h/",
        ),
        (LookupError(), "LookupError"),
        (http.ReadTimeout(""), "the request timed out"),
    ],
)
async def test_an_exception_of_auth_fails_only_the_call(error, text):
    auth, server = Auth(), SessionServer()
    async with opened(server, auth=auth) as (manager, session):
        auth.error = error
        assert (await refused(session)).message == text
        auth.error = None
        await call(session)
        await works(manager, session)
    assert server.count("probe") == 0


async def test_an_authorization_server_that_is_gone_does_not_end_the_connection():
    auth, server = Auth(), SessionServer()
    async with refused_port(None) as url, opened(server, auth=auth) as (manager, session):
        await server.received("GET")
        auth.url = url
        assert (await refused(session)).message.startswith("ConnectError: ")
        auth.url = None
        await call(session)
        await works(manager, session)
    assert server.count("probe") == 0


async def test_a_probe_that_auth_prevents_does_not_end_the_connection():
    auth = Auth()

    async def refuse(request):
        auth.error = LookupError("no token")
        await request.answer("400 Bad Request")

    server = SessionServer(**{"tools/call": refuse})
    async with opened(server, auth=auth) as (manager, session):
        await refused(session)
        await anyio.wait_all_tasks_blocked()
        auth.error = None
        await works(manager, session)
    assert server.count("probe") == 0


@pytest.mark.parametrize("is_raised", [True, False])
async def test_a_refusal_of_the_authorization_server_does_not_end_the_connection(is_raised):
    """`auth` may return it as the response, or raise it."""

    class TokenAuth(http.Auth):
        is_expired = False

        async def async_auth_flow(self, request):
            if not self.is_expired:
                yield request
                return
            response = yield http.Request("GET", str(request.url.join("/token")))
            if is_raised:
                response.raise_for_status()

    auth = TokenAuth()
    server = SessionServer()
    server.answers["GET"] = status("404 Not Found")
    async with opened(server, auth=auth) as (manager, session):
        await server.received("GET")
        auth.is_expired = True
        error = await refused(session)
        assert error.message.startswith("HTTP status 404 Not Found from http://127.0.0.1:")
        assert error.message.endswith("/token")
        auth.is_expired = False
        await works(manager, session)
    assert server.count("DELETE") == 1


@pytest.mark.parametrize("line", ["401 Unauthorized", "500 Internal Server Error"])
async def test_a_hook_that_raises_for_a_refused_call_does_not_hide_the_status(line):
    server = SessionServer(**{"tools/call": status(line)})
    async with opened(server, httpx_client_factory=hooked_client) as (manager, session):
        assert f"HTTP status {line}" in (await refused(session)).message
        await works(manager, session)


async def test_a_hook_that_raises_does_not_hide_that_the_session_is_gone():
    refuse = status("400 Bad Request")
    server = SessionServer(**{"tools/call": refuse, "probe": refuse})
    async with opened(server, httpx_client_factory=hooked_client) as (manager, session):
        await refused(session)
        loss = await lost(manager)
    assert "HTTP status 400 Bad Request" in str(loss.__cause__)


async def test_a_hook_that_raises_for_a_successful_call_fails_only_the_call():
    async def check(response):
        if b"tools/call" in response.request.read():
            raise http.HTTPStatusError("odd", request=response.request, response=response)

    def make_client(**options):
        client = _sdk.create_mcp_http_client(**options)
        client.event_hooks = {"response": [check]}
        return client

    async with opened(SessionServer(), httpx_client_factory=make_client) as (manager, session):
        assert (await refused(session)).message == "HTTPStatusError: odd"
        await works(manager, session)


@pytest.mark.parametrize("line", ["404 Not Found", "405 Method Not Allowed"])
async def test_a_hook_that_raises_does_not_hide_that_there_is_no_event_stream(line, monkeypatch):
    monkeypatch.setattr("mcp.client.streamable_http.DEFAULT_RECONNECTION_DELAY_MS", 0)

    async def check(response):
        response.raise_for_status()

    def make_client(**options):
        client = _sdk.create_mcp_http_client(**options)
        client.event_hooks = {"response": [check]}
        return client

    server = SessionServer(GET=status(line))
    async with opened(server, httpx_client_factory=make_client) as (manager, session):
        await server.received("GET")
        await works(manager, session)
    assert server.count("GET") == 1


@pytest.mark.parametrize("token", [status("404 Not Found"), status("200 OK", {"error": "s3cret"})])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_response_to_a_request_of_auth_is_not_taken_for_the_servers(token, method, monkeypatch):
    monkeypatch.setattr("mcp.client.streamable_http.DEFAULT_RECONNECTION_DELAY_MS", 0)
    monkeypatch.setattr("ownertask.mcp._http_listening.MAX_DELAY", 1)

    class TokenAuth(http.Auth):
        is_expired = False

        async def async_auth_flow(self, request):
            if self.is_expired and request.method == method:
                yield http.Request("GET", str(request.url.join("/token")))
            else:
                yield request

    async def answer(request):
        if request.target == "/token":
            auth.is_expired = False
            await token(request)
        else:
            await server(request)

    async def end_events(request):
        auth.is_expired = True
        await request.begin_events()
        await request.stream.send(b"retry: 0\n\n")
        await request.stream.aclose()

    auth, server = TokenAuth(), SessionServer()
    if method == "GET":
        server.answers["GET"] = in_turn(end_events, silent)
    async with http_server(answer) as url:
        manager = SessionConnectionManager(StreamableHttpConnectionManager(url, auth=auth))
        async with manager as session:
            if method == "POST":
                await server.received("GET")
                auth.is_expired = True
                assert "from http://127.0.0.1" in (await refused(session)).message
            else:
                await server.received("GET", 2)
            await works(manager, session)
    assert server.count("probe") == 0
