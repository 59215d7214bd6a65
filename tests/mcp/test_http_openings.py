"""Tests for requests that are refused while a session is opened, over both HTTP transports."""

import traceback

import anyio
import pytest
from http_server import http_server
from session_server import (
    FAILURES,
    KINDS,
    SessionServer,
    SseServer,
    json_error,
    lost,
    reset,
    said,
    status,
)

from ownertask import ConnectionState
from ownertask.mcp import (
    ClientConnectionManager,
    SessionConnectionManager,
    SseConnectionManager,
    StreamableHttpConnectionManager,
    _sdk,
)
from ownertask.mcp.sse import _SseTraffic

http = _sdk.http

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

kinds = pytest.mark.parametrize("kind", KINDS)
only_2 = pytest.mark.skipif(not _sdk.HAS_CLIENT, reason="mcp 1.x has no Client")
REFUSED = {
    401: status("401 Unauthorized", www_authenticate='Bearer realm="s3cret"'),
    403: status("403 Forbidden"),
    404: status("404 Not Found"),
    500: status("500 Internal Server Error"),
    503: status("503 Service Unavailable"),
}


@kinds
@pytest.mark.parametrize("code", REFUSED)
async def test_W10_a_refusal_while_opening_raises_an_http_status_error(kind, code):
    # A Client first sends `server/discover`, and this server refuses everything.
    server = SessionServer(**{"initialize": REFUSED[code], "server/discover": REFUSED[code]})
    async with http_server(server) as url:
        secret_url = url.replace("://", "://s3cret:s3cret@") + "/mcp?key=s3cret"
        manager = kind(StreamableHttpConnectionManager(secret_url))
        with anyio.fail_after(4), pytest.raises(Exception) as caught:
            await manager.start()
    error = caught.value
    assert manager.state is ConnectionState.FAILED
    assert f"HTTP status {code}" in said(error)
    if code == 404 and not _sdk.HAS_CLIENT and not isinstance(error, http.HTTPStatusError):
        assert "Session terminated" in str(error)  # the SDK's own error
    else:
        assert isinstance(error, http.HTTPStatusError)
        assert error.response.status_code == code
        assert error.request.method == "POST"
    assert "s3cret" not in "".join(traceback.format_exception(error))
    assert server.count("probe") == 0
    assert server.count("DELETE") == 0


@only_2
@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(status("400 Bad Request"), id="400"),
        pytest.param(status("404 Not Found"), id="404"),
        pytest.param(status("405 Method Not Allowed"), id="405"),
        pytest.param(status("406 Not Acceptable"), id="406"),
        pytest.param(json_error("400 Bad Request", -32601), id="400 with an error"),
        pytest.param(status("200 OK", b"<html>", content_type="text/html"), id="HTML"),
    ],
)
async def test_W10_a_client_opens_although_the_server_refuses_its_first_request(refusal):
    server = SessionServer(**{"server/discover": refusal})
    async with http_server(server) as url:
        manager = ClientConnectionManager(StreamableHttpConnectionManager(url))
        async with manager as client:
            await client.list_tools()
            assert manager.state is ConnectionState.OPEN
    assert [server.count(kind) for kind in ("server/discover", "initialize", "probe")] == [1, 1, 0]


@only_2
@pytest.mark.parametrize("code", [401, 500])
async def test_W10_a_client_reports_the_refusal_of_the_handshake(code):
    server = SessionServer(initialize=REFUSED[code])
    async with http_server(server) as url:
        manager = ClientConnectionManager(StreamableHttpConnectionManager(url))
        with anyio.fail_after(4), pytest.raises(http.HTTPStatusError) as caught:
            await manager.start()
    assert caught.value.response.status_code == code
    assert [server.count(kind) for kind in ("server/discover", "initialize")] == [1, 1]


def with_secrets(url):
    return url.replace("://", "://s3cret:s3cret@") + "/sse?key=s3cret"


@pytest.mark.parametrize("method", ["initialize", "tools/call"])
async def test_W12_the_error_of_a_refused_message_names_the_url_without_secrets(method):
    server = SseServer("/messages?session_id=s3cret", method)
    async with http_server(server) as url:
        manager = SessionConnectionManager(SseConnectionManager(with_secrets(url)))
        if method == "initialize":
            with anyio.fail_after(4), pytest.raises(http.HTTPStatusError) as caught:
                await manager.start()
            error = shown = caught.value
        else:
            session = await manager.start()
            with pytest.raises(FAILURES):
                await session.call_tool("add", {})
            error = await lost(manager)
            shown = error.__cause__
    assert isinstance(shown, http.HTTPStatusError)
    assert "HTTP status 403 Forbidden" in str(shown)
    assert f"{url}/messages" in str(shown)
    assert "s3cret" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("endpoint", "origin"),
    [
        ("http://example.org/messages", "http://example.org"),
        ("http://s3cret:s3cret@example.org:81/messages?key=s3cret#s3cret", "http://example.org:81"),
        ("//example.org/messages?key=s3cret", "http://example.org"),
        ("https://{host}/messages?key=s3cret", "https://{host}"),
        ("http://127.0.0.1:1/messages", "http://127.0.0.1:1"),
    ],
)
@pytest.mark.parametrize("has_session", [True, False], ids=["session", "transport"])
async def test_W13_an_endpoint_on_another_origin_is_reported_at_once(endpoint, origin, has_session):
    server = SseServer(None)
    async with http_server(server) as url:
        host = url.partition("://")[2]
        server.endpoint = endpoint.format(host=host)
        manager = SseConnectionManager(with_secrets(url))
        if has_session:
            manager = SessionConnectionManager(manager)
        # By default, a session has 60 seconds to open. The transport has no limit.
        with anyio.fail_after(3), pytest.raises(ValueError) as caught:
            await manager.start()
    assert manager.state is ConnectionState.FAILED
    assert origin.format(host=host) in str(caught.value)
    assert url in str(caught.value)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


async def test_W13_an_endpoint_without_the_user_info_of_the_url_is_reported_at_once():
    """The SDK compares the user info, too."""
    server = SseServer(None)
    async with http_server(server) as url:
        server.endpoint = f"{url}/messages"
        manager = SseConnectionManager(with_secrets(url))
        with anyio.fail_after(3), pytest.raises(ValueError, match="does not repeat the user info"):
            await manager.start()


async def test_the_first_failure_of_the_traffic_counts():
    traffic = _SseTraffic(print, "http://example.org")
    first = ValueError()
    traffic.fail(first)
    traffic.fail(ValueError())
    assert traffic.failure is first


async def test_an_error_without_a_text_and_a_cause_has_no_note():
    class Auth(http.Auth):
        async def async_auth_flow(self, request):
            raise http.ReadError("")
            yield request

    manager = StreamableHttpConnectionManager("http://example.org", auth=Auth())
    with pytest.raises(http.ReadError) as caught:
        await SessionConnectionManager(manager, name="session").start()
    assert caught.value.__notes__ == ["ownertask: raised by session while opening"]


async def test_an_event_stream_that_breaks_off_while_opening_is_the_error_of_start():
    async def answer(request):
        await request.begin_events(transfer_encoding="chunked")
        await reset(request)

    async with http_server(answer) as url:
        manager = SessionConnectionManager(url)
        with anyio.fail_after(3), pytest.raises((http.ReadError, http.RemoteProtocolError)):
            await manager.start()


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_W13_an_endpoint_on_another_origin_is_recognized_in_any_event_stream(line_end, size):
    lines = [": hello", "", "event: message", "data:", "", "id: 1", "event:endpoint", ": comment"]
    text = line_end.join([*lines, "data:http://example.org/messages", "", ""]).encode()

    async def answer(request):
        await request.begin_events()
        for start in range(0, len(text), size):
            await request.stream.send(text[start : start + size])
        await request.stream.receive()

    async with http_server(answer) as url:
        manager = SseConnectionManager(url)
        with anyio.fail_after(3), pytest.raises(ValueError, match=r"origin http://example\.org"):
            await manager.start()


@pytest.mark.parametrize("endpoint", ["/messages", "messages", "?id=1", "{url}/messages", "//{host}/m"])
async def test_W13_an_endpoint_on_the_same_origin_is_accepted(endpoint):
    server = SseServer(None)
    async with http_server(server) as url:
        server.endpoint = endpoint.format(url=url, host=url.partition("://")[2])
        manager = SessionConnectionManager(SseConnectionManager(f"{url}/sse"))
        async with manager:
            assert manager.state is ConnectionState.OPEN
