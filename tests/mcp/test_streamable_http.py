"""Tests for the streamable HTTP manager: which arguments it accepts, and that they take effect."""

from contextvars import ContextVar

import anyio
import mcp
import pytest
from http_server import http_server, result_of_initialize
from pydantic import ValidationError

from ownertask import ConnectionState
from ownertask.mcp import (
    ClientConnectionManager,
    SessionConnectionManager,
    SseConnectionManager,
    StreamableHttpConnectionManager,
    _sdk,
)

http = _sdk.http
ERROR = mcp.MCPError if _sdk.HAS_CLIENT else mcp.McpError
only_2 = pytest.mark.skipif(not _sdk.HAS_CLIENT, reason="mcp 1.x cannot do this")
URL = "http://example.org/mcp"

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

tenant = ContextVar("tenant", default="nobody")


class TenantAuth(http.Auth):
    def auth_flow(self, request):
        request.headers["x-tenant"] = tenant.get()
        yield request


class Recorder:
    """A server with a legacy session that records every request."""

    def __init__(self):
        self.requests = []
        self.answers = {}

    async def __call__(self, request):
        self.requests.append(request)
        if request.method == "DELETE":
            await request.answer()
        elif request.method == "GET":
            await request.answer("405 Method Not Allowed")
        elif request.message["method"] == "initialize":
            await request.answer(body=result_of_initialize(request), mcp_session_id="1")
        elif "id" not in request.message:
            await request.answer("202 Accepted")
        elif answer := self.answers.get(request.message["method"]):
            await answer(request)
        else:
            result = {"content": [], "tools": []}
            await request.answer(body={"jsonrpc": "2.0", "id": request.message["id"], "result": result})

    def methods(self):
        return [request.method for request in self.requests]


@pytest.fixture
def recorder():
    return Recorder()


async def test_the_connection_is_the_pair_of_streams():
    manager = StreamableHttpConnectionManager(URL)
    assert manager.get_streams() is None
    async with manager as streams:
        assert manager.get_streams() is streams
        read_stream, write_stream = streams
        assert hasattr(read_stream, "receive")
        assert hasattr(write_stream, "send")
    assert manager.get_streams() is None


async def test_the_write_stream_has_the_methods_of_a_memory_stream():
    async with StreamableHttpConnectionManager(URL) as (_, write_stream):
        if not _sdk.HAS_CLIENT:
            assert write_stream.statistics().open_send_streams == 1
            with pytest.raises(AttributeError):
                _ = write_stream.unknown
            with pytest.raises(AttributeError):
                _ = object.__new__(type(write_stream)).unknown  # as when it is copied
        await write_stream.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await write_stream.send(None)


async def test_a_session_works_with_all_defaults(recorder):
    async with (
        http_server(recorder) as url,
        SessionConnectionManager(StreamableHttpConnectionManager(url)) as session,
    ):
        await session.send_ping()
    assert recorder.methods().count("DELETE") == 1


async def test_C1_a_session_closes_cleanly_even_if_the_server_is_gone(recorder):
    manager = SessionConnectionManager(StreamableHttpConnectionManager(URL))
    async with http_server(recorder) as url:
        manager.transport.url = url
        await manager.start()
        await manager.connection.send_ping()
    await manager.stop()
    assert manager.state is ConnectionState.CLOSED
    assert manager.exception is None


async def test_positional_arguments_take_effect(recorder):
    made = []

    def make_client(headers=None, timeout=None, auth=None):
        made.append((headers, timeout, auth))
        return _sdk.create_mcp_http_client(headers=headers, timeout=timeout, auth=auth)

    auth = TenantAuth()
    transport = StreamableHttpConnectionManager(
        "http://placeholder", {"X-Key": "key"}, 1, 2.5, auth, make_client, terminate_on_close=False
    )
    async with http_server(recorder) as url:
        transport.url = url
        async with SessionConnectionManager(transport) as session:
            await session.send_ping()
    assert made == [({"X-Key": "key"}, http.Timeout(1, read=2.5), auth)]
    assert {request.headers["x-key"] for request in recorder.requests} == {"key"}
    assert {request.headers["x-tenant"] for request in recorder.requests} == {"nobody"}
    assert "DELETE" not in recorder.methods()


async def test_a_custom_http_client_is_used_unchanged_and_not_closed(recorder):
    async with http.AsyncClient(headers={"X-Key": "own"}, timeout=3) as client:
        before = dict(vars(client))
        async with http_server(recorder) as url:
            transport = StreamableHttpConnectionManager(url, http_client=client)
            for _ in range(2):
                async with SessionConnectionManager(transport) as session:
                    await session.send_ping()
            assert not client.is_closed
            assert vars(client).keys() == before.keys()
            assert (await client.get(url)).status_code == 405
    assert {request.headers["x-key"] for request in recorder.requests} == {"own"}


@only_2
async def test_P13_max_sse_event_size_limits_the_size_of_an_event(recorder):
    async def answer(request):
        await request.begin_events()
        result = {"jsonrpc": "2.0", "id": request.message["id"], "result": {"x": "x" * 2000}}
        await request.send_event("message", result)

    recorder.answers["ping"] = answer
    async with http_server(recorder) as url:
        transport = StreamableHttpConnectionManager(url, max_sse_event_size=1000)
        async with SessionConnectionManager(transport) as session:
            with pytest.raises(ERROR, match="SSE stream failed"):
                await session.send_ping()
        transport = StreamableHttpConnectionManager(url, max_sse_event_size=None)
        async with SessionConnectionManager(transport) as session:
            await session.send_ping()


@only_2
@pytest.mark.parametrize("kind", [SessionConnectionManager, ClientConnectionManager])
async def test_a_request_is_sent_with_the_context_variables_of_its_caller(kind, recorder):
    async def call(name):
        tenant.set(name)
        await manager.connection.list_tools()

    async with http_server(recorder) as url:
        manager = kind(StreamableHttpConnectionManager(url, auth=TenantAuth()))
        tenant.set("starter")
        async with manager:
            tenant.set("nobody")
            async with anyio.create_task_group() as tg:
                for name in ("red", "blue"):
                    tg.start_soon(call, name)
    tenants = {"initialize": set(), "tools/list": set()}
    for request in recorder.requests:
        if request.method == "POST" and request.message["method"] in tenants:
            tenants[request.message["method"]].add(request.headers["x-tenant"])
    assert tenants["tools/list"] == {"red", "blue"}
    assert tenants["initialize"] <= {"starter"}


@pytest.mark.parametrize(
    ("events", "can_be_resumed"),
    [
        (b"id: 1\nretry: 0\nevent: message\ndata:\n\n", True),
        (b"retry: 0\r\nid:1\r\ndata:\r\n\r\n", True),
        (b": comment\n\nid: 1\nretry: 0\ndata:\n\nid: 2\ndata: {", True),
        (b"", False),
        (b"id: \ndata:\n\n", False),  # an empty id does not allow the client to resume
        (b'data: {"jsonrpc": "2.0", "method": "notifications/id: 1"}\n\n', False),
        (b"id: 1\ndata: {", False),  # the event is not complete
        (b"id: 1\ndata: {\n", False),
        (b"id: 1\r\ndata: {\r\n", False),
        (b"retry: 0\nid: 1\r\ndata:\n\r\n", True),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
async def test_P4_a_call_whose_event_stream_breaks_off_fails_alone_unless_it_can_be_resumed(
    recorder, events, can_be_resumed, size
):
    async def break_off(request):
        asked.append(request)
        await request.begin_events(transfer_encoding="chunked")
        for start in range(0, len(events), size):
            chunk = events[start : start + size]
            await request.stream.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        await request.stream.aclose()

    async def answer(request):
        if "last-event-id" in request.headers:
            result = {"jsonrpc": "2.0", "id": asked[-1].message["id"], "result": {}}
            await request.begin_events()
            await request.send_event("message", result)
        else:
            await recorder(request)

    asked = []
    async with http_server(answer) as url:
        async with SessionConnectionManager(StreamableHttpConnectionManager(url)) as session:
            recorder.answers["tools/list"] = break_off
            if can_be_resumed:
                with pytest.raises(ValidationError):  # the result is empty
                    await session.list_tools()
            else:
                with pytest.raises(ERROR, match="RemoteProtocolError: peer closed connection"):
                    await session.list_tools()
            await session.send_ping()


async def test_a_cancelled_call_whose_response_stream_ends_cleanly_keeps_the_connection(recorder):
    """A server may end the stream without a response if the request was cancelled."""
    asked, answered = anyio.Event(), anyio.Event()

    async def end(request):
        await request.begin_events(transfer_encoding="chunked")
        asked.set()
        await answered.wait()
        await request.stream.send(b"0\r\n\r\n")
        await request.stream.aclose()

    async with http_server(recorder) as url:
        manager = SessionConnectionManager(StreamableHttpConnectionManager(url))
        session = await manager.start()
        recorder.answers["ping"] = end
        async with anyio.create_task_group() as tg:
            tg.start_soon(session.send_ping)
            await asked.wait()
            tg.cancel_scope.cancel()
        answered.set()
        await anyio.wait_all_tasks_blocked()
        await session.list_tools()
        assert manager.state is ConnectionState.OPEN
        await manager.stop()


MANAGERS = [SseConnectionManager, StreamableHttpConnectionManager]
managers = pytest.mark.parametrize("manager_type", MANAGERS)


@managers
@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"url": 1}, TypeError, "url must be a URL, not int"),
        ({"url": "example.org"}, ValueError, "url must be a URL that starts with http"),
        ({"url": "http://s3cret:s3cret"}, ValueError, "url must be a URL that starts with http"),
        ({"url": "http://s3cret@h:99999"}, ValueError, "url must not have a port above 65535"),
        ({"url": "http://"}, ValueError, "url must be a URL that starts with http"),
        ({"url": "http://h/\ud800s3cret"}, ValueError, "url must be a URL that starts with http"),
        ({"headers": ["X-Key"]}, TypeError, "headers must be a mapping or None, not list"),
        ({"headers": {"X-Key": 1}}, TypeError, "headers must map strings to strings"),
        (
            {"headers": {"s3cret key": "1"}},
            ValueError,
            "headers must have ASCII names without spaces",
        ),
        ({"headers": {"X-Key": "s3cret\n"}}, ValueError, r"headers\['X-Key'\] must be printable ASCII"),
        ({"headers": {"X-Key": " s3cret"}}, ValueError, "without leading or trailing spaces"),
        ({"headers": {"X-Key": "s3crét"}}, ValueError, "must be printable ASCII"),
        ({"timeout": -1}, ValueError, "timeout must be"),
        ({"timeout": "1"}, TypeError, "timeout must be"),
        ({"auth": ("user", "s3cret")}, TypeError, r"auth must be an httpx2?\.Auth, not builtins\.tuple"),
        (
            {"httpx_client_factory": 1},
            TypeError,
            "httpx_client_factory must be callable or None, not int",
        ),
    ],
)
def test_invalid_arguments_are_refused_without_showing_secrets(manager_type, arguments, error, match):
    with pytest.raises(error, match=match) as caught:
        manager_type(**{"url": URL, **arguments})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"read_timeout": float("nan")}, ValueError, "read_timeout must be"),
        ({"terminate_on_close": None}, TypeError, "terminate_on_close must be a boolean, not NoneType"),
        (
            {"http_client": 1},
            TypeError,
            r"http_client must be an httpx2?\.AsyncClient, not builtins\.int",
        ),
        ({"color": 1}, TypeError, "unexpected argument 'color'"),
        ({"url": None}, TypeError, "url must be a URL, not NoneType"),
    ],
)
def test_invalid_arguments_for_streamable_http_are_refused(arguments, error, match):
    with pytest.raises(error, match=match):
        StreamableHttpConnectionManager(**{"url": URL, **arguments})


@only_2
@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (True, TypeError), ("1", TypeError)])
def test_P13_an_invalid_max_sse_event_size_is_refused(size, error):
    with pytest.raises(error, match="max_sse_event_size must be"):
        StreamableHttpConnectionManager(URL, max_sse_event_size=size)


@pytest.mark.skipif(_sdk.HAS_CLIENT, reason="mcp 2.x accepts it")
def test_an_option_that_the_installed_sdk_lacks_is_refused():
    with pytest.raises(TypeError, match="unexpected argument 'max_sse_event_size'.* of mcp 1"):
        StreamableHttpConnectionManager(URL, max_sse_event_size=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"headers": {}},
        {"timeout": None},
        {"read_timeout": 1},
        {"auth": TenantAuth()},
        {"httpx_client_factory": http.AsyncClient},
    ],
)
async def test_a_custom_http_client_cannot_be_combined_with_the_options_that_it_replaces(arguments):
    async with http.AsyncClient() as client:
        with pytest.raises(ValueError, match="http_client cannot be combined with headers, timeout"):
            StreamableHttpConnectionManager(URL, http_client=client, **arguments)


@managers
async def test_a_client_factory_must_return_an_http_client(manager_type):
    manager = manager_type(URL, httpx_client_factory=lambda **_: "client")
    with pytest.raises(
        TypeError, match=r"the return value of httpx_client_factory must be an httpx2?\.AsyncC"
    ):
        await manager.start()


@managers
def test_the_default_name_omits_user_info_query_and_fragment(manager_type):
    manager = manager_type("https://user:s3cret@example.org:8000/mcp?token=s3cret#s3cret")
    assert manager.name == f"{manager_type.__name__}(https://example.org:8000/mcp)"
    assert manager_type(URL, name="files").name == "files"
    assert "s3cret" not in repr(manager)
