"""Tests for the SSE manager: which arguments it accepts, and that they take effect."""

import traceback

import anyio
import pytest
from http_server import http_server, result_of_initialize
from mcp.shared import _httpx_utils

from ownertask import ConnectionLostError
from ownertask.mcp import SessionConnectionManager, SseConnectionManager, _sdk

SDK_IS_RECENT = hasattr(_httpx_utils, "stream_within_origin")

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Server:
    """Responds on its event stream and records every request."""

    def __init__(self):
        self.requests = []
        self.events = None
        self.ended = anyio.Event()

    async def __call__(self, request):
        self.requests.append(request)
        if request.method == "GET":
            await request.begin_events()
            await request.send_event("endpoint", "/messages?session_id=7")
            self.events = request
            await self.ended.wait()
            await request.stream.aclose()
        else:
            await request.answer("202 Accepted")
            if request.message["method"] == "initialize":
                await self.events.send_event("message", result_of_initialize(request))
            elif "id" in request.message:
                result = {"jsonrpc": "2.0", "id": request.message["id"], "result": {}}
                await self.events.send_event("message", result)


async def test_the_connection_is_the_pair_of_streams():
    async with http_server(Server()) as url:
        manager = SseConnectionManager(url)
        assert manager.get_streams() is None
        async with manager as streams:
            assert manager.get_streams() is streams
        assert manager.get_streams() is None


async def test_a_session_works_with_all_defaults():
    server = Server()
    async with (
        http_server(server) as url,
        SessionConnectionManager(SseConnectionManager(url)) as session,
    ):
        await session.send_ping()
    assert [request.method for request in server.requests] == ["GET", "POST", "POST", "POST"]


async def test_positional_arguments_take_effect():
    made = []
    session_ids = []

    def make_client(headers=None, timeout=None, auth=None):
        made.append((headers, timeout, auth))
        return _sdk.create_mcp_http_client(headers=headers, timeout=timeout, auth=auth)

    auth = _sdk.http.BasicAuth("user", "password")
    server = Server()
    async with http_server(server) as url:
        transport = SseConnectionManager(
            url, {"X-Key": "key"}, 1, 2.5, auth, make_client, on_session_created=session_ids.append
        )
        async with SessionConnectionManager(transport) as session:
            await session.send_ping()
    assert made == [({"X-Key": "key"}, _sdk.http.Timeout(1, read=2.5), auth)]
    assert {request.headers["x-key"] for request in server.requests} == {"key"}
    assert all(request.headers["authorization"].startswith("Basic ") for request in server.requests)
    assert session_ids == ["7"]


async def test_the_connection_is_lost_when_the_event_stream_ends():
    server = Server()
    async with http_server(server) as url:
        manager = SessionConnectionManager(SseConnectionManager(url))
        await manager.start()
        server.ended.set()
        with pytest.raises(ConnectionLostError):
            await manager.wait_closed()


async def test_the_connection_is_lost_if_no_event_arrives_within_the_read_timeout():
    async with http_server(Server()) as url:
        manager = SessionConnectionManager(SseConnectionManager(url, sse_read_timeout=1))
        await manager.start()
        with pytest.raises(ConnectionLostError) as caught:
            await manager.wait_closed()
    assert isinstance(caught.value.__cause__, _sdk.http.ReadTimeout)


class FailingAuth(_sdk.http.Auth):
    def auth_flow(self, request):
        raise LookupError
        yield request


def fail(**_options):
    raise LookupError


@pytest.mark.parametrize("option", [{"httpx_client_factory": fail}, {"auth": FailingAuth()}])
async def test_an_error_before_the_first_request_has_no_other_notes(option):
    manager = SseConnectionManager("http://example.org/sse", **option)
    with pytest.raises(LookupError) as caught:
        await manager.start()
    assert caught.value.__notes__ == [f"ownertask: raised by {manager.name} while opening"]


@pytest.mark.skipif(not SDK_IS_RECENT, reason="this SDK follows redirects to any origin")
@pytest.mark.parametrize(
    "location", [":?s3cret", "/sse's?key=s3cret", "//u:s3cret@example.org/it's?key=s3cret", "http://["]
)
async def test_O7_secrets_in_the_url_or_in_a_redirect_are_not_shown(location):
    async def redirect(request):
        await request.answer("307 Temporary Redirect", location=location)

    async with http_server(redirect) as url:
        manager = SseConnectionManager(f"{url}/it's?key=s3cret's")
        with pytest.raises(Exception) as caught:
            await manager.start()
    said = "".join(traceback.format_exception(caught.value)) + repr(manager)
    assert "HTTP status 307" in said or "Redirect" in said
    assert "s3cret" not in said


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"sse_read_timeout": -1}, ValueError, "sse_read_timeout must be"),
        ({"on_session_created": 1}, TypeError, "on_session_created must be callable or None, not int"),
    ],
)
def test_invalid_arguments_are_refused(arguments, error, match):
    with pytest.raises(error, match=match):
        SseConnectionManager("http://example.org/sse", **arguments)
