"""Tests for the WebSocket manager: messages, options, backpressure, failures and sessions."""

import base64
import logging
import re
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import traceback
from contextlib import contextmanager, suppress

import anyio
import pytest
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from conftest import all_tasks
from reopening import lost
from servers import websocket_process
from websocket_peers import (
    client_tls,
    echo,
    server_tls,
    tcp_server,
    until_closed,
    websocket_server,
)
from websockets.exceptions import (
    ConnectionClosed,
    InvalidStatus,
    NegotiationError,
    WebSocketException,
)
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol
from websockets.version import version

from ownertask import ConnectionLostError, ConnectionState, ConnectionStoppedError, StartTimeoutError
from ownertask.mcp import (
    ClientConnectionManager,
    SessionConnectionManager,
    WebSocketConnectionManager,
    _sdk,
)
from ownertask.mcp import _websocket_client as client

LIBRARY = tuple(int(number) for number in version.split(".")[:2])
quiet = logging.getLogger("tests.quiet")  # for servers that are meant to fail
quiet.disabled = True
# Serialized by the installed SDK, because mcp 1.x and 2.x order the keys differently.
PING = _sdk.message_to_utf8(_sdk.message_from_json('{"jsonrpc":"2.0","id":1,"method":"ping"}')).decode()


@pytest.fixture(autouse=True)
def _trio_needs_17(request):
    backend = getattr(request.node, "callspec", None)
    if LIBRARY < (17, 0) and backend is not None and "trio" in str(backend.params.get("anyio_backend")):
        pytest.skip("websockets has a trio client since 17")


slow = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


def manager_of(url, *args, **options):
    return WebSocketConnectionManager(url, *args, **{"proxy": None} | options)


def message(text):
    parsed = _sdk.message_from_json(text)
    assert not isinstance(parsed, Exception)
    return parsed


def text_of(session_message):
    return _sdk.message_to_utf8(session_message).decode()


# Messages


@pytest.mark.parametrize(("chosen", "seen"), [("mcp", "mcp"), (None, None)])
async def test_a_server_may_select_the_mcp_subprotocol_or_none(chosen, seen):
    offered = []

    def choose(connection, subprotocols):
        offered.extend(subprotocols)
        return chosen

    with websocket_server(echo, select_subprotocol=choose) as url:
        async with manager_of(url) as (read_stream, write_stream):
            await write_stream.send(message(PING))
            assert text_of(await read_stream.receive()) == PING
    assert offered == ["mcp"]


async def test_a_subprotocol_that_was_not_offered_is_refused():
    with websocket_server(echo, select_subprotocol=lambda *_: "other") as url:
        with pytest.raises(NegotiationError, match="unsupported subprotocol: other"):
            await manager_of(url).start()


async def test_the_offered_subprotocols_can_be_replaced_or_omitted():
    offered = []

    def choose(connection, subprotocols):
        offered.append(list(subprotocols))

    with websocket_server(echo, select_subprotocol=choose) as url:
        for subprotocols in (["a", "b"], ()):
            async with manager_of(url, subprotocols=subprotocols):
                pass
    assert offered == [["a", "b"], []]


async def test_a_message_is_sent_as_the_sdk_serializes_it():
    received = []

    def handler(websocket):
        received.extend(websocket)

    with websocket_server(handler) as url:
        async with manager_of(url) as (_, write_stream):
            await write_stream.send(message('{"jsonrpc": "2.0", "id": 1, "method": "é"}'))
            await write_stream.send(
                message('{"jsonrpc": "2.0", "method": "x", "params": {"a": [1], "b": {"c": "d"}}}')
            )
    assert received == [
        text_of(message('{"jsonrpc": "2.0", "id": 1, "method": "é"}')),
        text_of(message('{"jsonrpc": "2.0", "method": "x", "params": {"a": [1], "b": {"c": "d"}}}')),
    ]
    assert "null" not in received[0]


async def test_O8_invalid_json_rpc_is_received_as_an_exception_and_the_connection_stays_open():
    def handler(websocket):
        for text in ("hello", "{}", "", PING):
            websocket.send(text)
        until_closed(websocket)

    with websocket_server(handler) as url:
        async with manager_of(url) as (read_stream, _):
            for _ in range(3):
                assert isinstance(await read_stream.receive(), ValueError)
            assert text_of(await read_stream.receive()) == PING


async def test_a_binary_message_closes_the_connection_with_code_1003():
    seen = []

    def handler(websocket):
        websocket.recv()
        websocket.send(b"\x00")
        until_closed(websocket)
        seen.append(websocket.protocol.close_code)

    with websocket_server(handler) as url:
        manager = manager_of(url)
        read_stream, write_stream = await manager.start()
        await write_stream.send(message(PING))
        with pytest.raises(EndOfStream):
            await read_stream.receive()
        error = await lost(manager)
    assert seen == [1003]
    assert error.__cause__.sent.code == 1003
    assert error.__cause__.sent.reason == "MCP messages are text"


@pytest.mark.parametrize("is_read", [True, False])
@pytest.mark.parametrize(
    ("code", "is_plain"), [(1000, True), (1001, True), (1008, False), (1011, False), (4000, False)]
)
async def test_P2_a_close_code_that_reports_an_error_is_the_cause_of_the_lost_connection(
    code, is_plain, is_read
):
    """The close is detected with and without a reader."""

    def handler(websocket):
        websocket.recv()
        websocket.close(code, "the reason")

    with websocket_server(handler) as url:
        manager = manager_of(url)
        read_stream, write_stream = await manager.start()
        await write_stream.send(message(PING))
        if is_read:
            with pytest.raises(EndOfStream):
                await read_stream.receive()
        error = await lost(manager)
    if is_plain:
        assert error.__cause__ is None
    else:
        assert isinstance(error.__cause__, ConnectionClosed)
        assert error.__cause__.rcvd.code == code
        assert error.__cause__.rcvd.reason == "the reason"
    [note] = error.__notes__
    assert re.fullmatch(rf"the WebSocket closed: received {code} .* the reason; .*", note)
    assert manager.state is ConnectionState.FAILED


async def test_P2_a_close_frame_without_a_code_is_a_normal_end():
    def handler(websocket):
        websocket.recv()
        with websocket.protocol_mutex:
            websocket.protocol.send_close()
            websocket.send_data()

    with websocket_server(handler) as url:
        manager = manager_of(url)
        read_stream, write_stream = await manager.start()
        await write_stream.send(message(PING))
        with pytest.raises(EndOfStream):
            await read_stream.receive()
        error = await lost(manager)
    assert error.__cause__ is None
    assert error.__notes__[0].startswith("the WebSocket closed: received 1005 (no status ")


@pytest.mark.skipif(LIBRARY < (14, 2), reason="below 14.2, websockets drops unread messages at the end")
async def test_messages_that_arrived_before_the_close_can_still_be_read():
    def handler(websocket):
        websocket.recv()
        for _ in range(10):
            websocket.send(PING)

    with websocket_server(handler) as url:
        manager = manager_of(url)
        read_stream, write_stream = await manager.start()
        await write_stream.send(message(PING))
        await read_stream.receive()
        await read_stream._websocket.wait_closed()
        await anyio.wait_all_tasks_blocked()
        assert [text_of(received) async for received in read_stream] == [PING] * 9
        assert (await lost(manager)).__cause__ is None


async def test_the_streams_of_an_ended_connection_raise():
    with websocket_server(lambda websocket: websocket.recv()) as url:
        manager = manager_of(url)
        read_stream, write_stream = await manager.start()
        await write_stream.send(message(PING))
        with pytest.raises(EndOfStream):
            await read_stream.receive()
        with pytest.raises((BrokenResourceError, ClosedResourceError)):
            await write_stream.send(message(PING))
        await lost(manager)
    for use in (read_stream.receive, read_stream.__anext__, lambda: write_stream.send(message(PING))):
        with pytest.raises(ClosedResourceError):
            await use()


async def test_stop_ends_the_stream_of_a_waiting_reader_and_reports_no_lost_connection():
    """A reader of the previous run does not affect the next run either."""

    async def read(read_stream):
        with pytest.raises(EndOfStream):
            await read_stream.receive()
        await manager.start()

    with websocket_server(until_closed) as url:
        manager = manager_of(url, close_timeout=None)
        read_stream, _ = await manager.start()
        async with anyio.create_task_group() as tg:
            tg.start_soon(read, read_stream)
            await anyio.wait_all_tasks_blocked()
            await manager.stop(timeout=None)
            assert manager.exception is None
        assert manager.state is ConnectionState.OPEN
        await manager.stop()
        assert manager.exception is None


# Options


@pytest.mark.parametrize("kind", ["mapping", "function", "coroutine function"])
async def test_headers_are_sent_and_a_callable_is_called_for_each_connection(kind):
    seen = []
    asked = []

    def current():
        asked.append(len(asked))
        return {"Authorization": f"Bearer {len(asked)}", "X-Other": "é"}

    async def current_later():
        return current()

    def handler(websocket):
        seen.append((websocket.request.headers["Authorization"], websocket.request.headers["X-Other"]))
        until_closed(websocket)

    headers = {"mapping": current(), "function": current, "coroutine function": current_later}[kind]
    asked.clear()
    with websocket_server(handler) as url:
        manager = manager_of(url, headers)
        for _ in range(2):
            async with manager:
                pass
    tokens = ["Bearer 1", "Bearer 1"] if kind == "mapping" else ["Bearer 1", "Bearer 2"]
    assert sorted(token for token, _ in seen) == tokens
    assert len(asked) == (0 if kind == "mapping" else 2)


async def test_user_name_and_password_in_the_url_become_an_authorization_header():
    seen = []

    def handler(websocket):
        seen.append((websocket.request.path, websocket.request.headers["Authorization"]))
        until_closed(websocket)

    with websocket_server(handler) as url:
        async with manager_of(url.replace("//", "//u:p@") + "?q=1"):
            pass
    assert seen == [("/mcp?q=1", "Basic " + base64.b64encode(b"u:p").decode())]


@slow
async def test_a_custom_tls_context_is_used():
    with websocket_server(echo, ssl=server_tls()) as url:
        async with manager_of(url, ssl_context=client_tls()) as (read_stream, write_stream):
            await write_stream.send(message(PING))
            assert text_of(await read_stream.receive()) == PING


@contextmanager
def http_proxy(requests):
    """Yields the URL of a proxy that accepts one CONNECT request and forwards the data after it."""

    def handler(connection):
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(4096)
        requests.append(request.decode())
        host, _, port = request.split()[1].decode().partition(":")
        with socket.create_connection((host, int(port))) as upstream:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                for readable in select.select([connection, upstream], [], [])[0]:
                    data = readable.recv(65536)
                    if not data:
                        return
                    (upstream if readable is connection else connection).sendall(data)

    with tcp_server(handler) as url:
        yield url.replace("ws://", "http://user:s3cret@").removesuffix("/mcp")


only_with_proxies = pytest.mark.skipif(
    not client.HAS_PROXY, reason="this version of websockets does not support proxies"
)


@slow
@only_with_proxies
@pytest.mark.parametrize("is_named_by", ["argument", "environment"])
async def test_a_proxy_from_the_argument_or_the_environment_is_used(is_named_by, monkeypatch):
    requests = []
    with websocket_server(echo) as url, http_proxy(requests) as proxy:
        if is_named_by == "environment":
            monkeypatch.setenv("ws_proxy", proxy)
            monkeypatch.setenv("no_proxy", "")
        async with manager_of(url, proxy=proxy if is_named_by == "argument" else True) as streams:
            await streams[1].send(message(PING))
            assert text_of(await streams[0].receive()) == PING
    [request] = requests
    assert request.startswith("CONNECT 127.0.0.1:")


@slow
@only_with_proxies
async def test_an_invalid_proxy_url_in_the_environment_is_reported_without_showing_it(monkeypatch):
    monkeypatch.setenv("ws_proxy", "nonsense://user:s3cret@example.org")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(ValueError, match="the proxy URL in the environment is invalid") as caught:
        await manager_of("ws://example.org", proxy=True).start()
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("compression", "offered"), [(None, False), ("deflate", True)])
async def test_compression_is_offered_only_if_requested(compression, offered):
    seen = []

    def handler(websocket):
        seen.append("Sec-WebSocket-Extensions" in websocket.request.headers)
        until_closed(websocket)

    with websocket_server(handler) as url:
        async with manager_of(url, compression=compression):
            pass
    assert seen == [offered]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"url": 1}, TypeError, "url must be a string, not int"),
        ({"url": "http://s3cret.org"}, ValueError, "url must start with ws:// or wss://"),
        ({"url": "s3cret.org/mcp"}, ValueError, "url must start with ws:// or wss://"),
        ({"url": "ws:///s3cret"}, ValueError, "and have a host"),
        ({"url": "ws://h/#s3cret"}, ValueError, "a fragment is not allowed"),
        ({"url": "ws://u:p/s3cret@h"}, ValueError, "a port up to 65535"),
        ({"url": "ws://s3cret@h"}, ValueError, "a user name with a password"),
        ({"url": "ws://[s3cret"}, ValueError, "and have a host"),
        ({"headers": "a: s3cret"}, TypeError, "headers must be a mapping, a callable .*, not str"),
        ({"headers": {"a": 1}}, TypeError, "headers must map strings to strings"),
        (
            {"headers": {"a": "b\r\nc: s3cret"}},
            ValueError,
            "headers must have ASCII names without spaces",
        ),
        ({"headers": {"a b": "s3cret"}}, ValueError, "headers must have ASCII names without spaces"),
        ({"ssl_context": True}, TypeError, "ssl_context must be an ssl.SSLContext or None, not bool"),
        ({"url": "ws://h", "ssl_context": ssl.create_default_context()}, ValueError, "wss://"),
        ({"proxy": False}, TypeError, "proxy must be a URL, True or None, not bool"),
        ({"proxy": "nonsense://s3cret"}, ValueError, "proxy "),
        ({"proxy": "http://[s3cret"}, ValueError, "proxy "),
        ({"proxy": "http://s3cret@example.org"}, ValueError, "proxy "),
        ({"proxy": "http://example.org/s3cret"}, ValueError, "proxy "),
        ({"open_timeout": -1}, ValueError, "open_timeout must be"),
        ({"close_timeout": "1"}, TypeError, "close_timeout must be"),
        ({"ping_interval": 0}, ValueError, "ping_interval must be a positive number"),
        ({"ping_timeout": float("nan")}, ValueError, "ping_timeout must be"),
        ({"max_message_bytes": 1.5}, TypeError, "max_message_bytes must be an integer or None"),
        ({"max_message_bytes": True}, TypeError, "max_message_bytes must be an integer or None"),
        ({"max_message_bytes": 0}, ValueError, "max_message_bytes must be positive"),
        ({"compression": "gzip"}, ValueError, "compression must be 'deflate' or None"),
        ({"subprotocols": "mcp"}, TypeError, "subprotocols must be a sequence of strings, not str"),
        ({"subprotocols": None}, TypeError, "subprotocols must be a sequence of strings"),
        ({"subprotocols": ["s3cret token"]}, ValueError, "subprotocols must be HTTP tokens"),
        ({"subprotocols": [1]}, ValueError, "subprotocols must be HTTP tokens"),
        ({"name": 1}, TypeError, "name must be a string"),
    ],
)
def test_O4_invalid_arguments_are_refused_before_anything_is_opened(arguments, error, match):
    with pytest.raises(error, match=match) as caught:
        WebSocketConnectionManager(**{"url": "wss://example.org/mcp"} | arguments)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("headers", "error"), [({"a": "b\n"}, ValueError), ([("a", "b")], TypeError), ({1: "b"}, TypeError)]
)
async def test_headers_returned_by_a_callable_are_validated(headers, error):
    with pytest.raises(error, match="headers must"):
        await manager_of("ws://127.0.0.1:9/", lambda: headers).start()


async def test_start_raises_the_error_of_the_headers_callable():
    def refuse():
        raise LookupError("no token")

    with pytest.raises(LookupError, match="no token"):
        await manager_of("ws://127.0.0.1:9/", refuse).start()


@pytest.mark.skipif(client.HAS_PROXY, reason="this version of websockets supports proxies")
def test_a_proxy_requires_a_websockets_version_that_supports_proxies():
    with pytest.raises(ValueError, match="proxy requires websockets 15 or newer; 1.* is installed"):
        WebSocketConnectionManager("ws://example.org", proxy="http://example.org")


def test_the_import_error_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ownertask.mcp._websocket_client", None)
    monkeypatch.delattr("ownertask.mcp._websocket_client")
    with pytest.raises(ImportError, match=r"websockets 13\.1 or newer; install ownertask\[websocket\]"):
        WebSocketConnectionManager("ws://example.org")


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_the_import_error_on_trio_names_the_required_websockets_version(monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets.trio.client", None)
    with pytest.raises(ImportError, match=f"websockets 17 or newer.* websockets {version} is installed"):
        await manager_of("ws://127.0.0.1:9/").start()


def test_importing_the_managers_does_not_import_websockets():
    code = "import sys, ownertask.mcp; print('websockets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("ws://example.org", "ws://example.org"),
        ("wss://u:p@example.org:1/mcp?token=s3cret", "wss://example.org:1/mcp"),
    ],
)
def test_the_default_name_shows_only_scheme_host_port_and_path(url, name):
    assert WebSocketConnectionManager(url).name == f"WebSocketConnectionManager({name})"
    assert WebSocketConnectionManager(url, name="tools").name == "tools"


async def test_get_streams_returns_the_pair_only_while_the_connection_is_open():
    with websocket_server(until_closed) as url:
        manager = manager_of(url)
        assert manager.get_streams() is None
        async with manager as streams:
            assert manager.get_streams() is streams
        assert manager.get_streams() is None


# Backpressure


@slow
@pytest.mark.within(20)
async def test_a_reader_that_stops_reading_blocks_the_server_instead_of_filling_memory():
    text = PING.replace("ping", "x" * 2**20)
    sent = []
    is_blocked, is_read = threading.Event(), threading.Event()

    def handler(websocket):
        with suppress(ConnectionClosed):
            while True:
                if not is_read.is_set() and not select.select([], [websocket.socket], [], 0.5)[1]:
                    is_blocked.set()
                    is_read.wait()
                websocket.send(text)
                sent.append(text)

    with websocket_server(handler) as url:
        async with manager_of(url) as (read_stream, _):
            try:
                while not is_blocked.is_set():  # set in the server's thread, so this task has to poll
                    await anyio.sleep(0.01)
                before = len(sent)
                assert before < 100  # the library buffers 17 messages, the system some tens of megabytes
            finally:
                is_read.set()
            for _ in range(before + 5):
                assert text_of(await read_stream.receive()) == text


async def test_pings_are_answered_while_no_task_is_reading():
    answered = []

    def handler(websocket):
        for _ in range(10):
            websocket.send(PING)
        answered.append(websocket.ping().wait(3))
        websocket.send(PING)
        until_closed(websocket)

    with websocket_server(handler) as url:
        async with manager_of(url, ping_interval=None) as (read_stream, _):
            while not answered:  # filled in the server's thread, so this task has to poll
                await anyio.sleep(0.01)
            for _ in range(11):
                await read_stream.receive()
    assert answered == [True]


# Failures


async def test_O4_a_refused_connection_raises_an_error_with_host_and_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        manager = manager_of(f"ws://127.0.0.1:{port}/mcp")
        with pytest.raises(OSError, match=f"127.0.0.1'?[:,] ?{port}") as caught:
            await manager.start()
    assert caught.value.__notes__ == [f"ownertask: raised by {manager.name} while opening"]


@slow
@pytest.mark.within(20)
async def test_O4_an_unknown_host_raises_gaierror():
    with pytest.raises(socket.gaierror):
        await manager_of("ws://ownertask-has-no-such-host.invalid/").start()


async def test_O4_an_untrusted_certificate_is_reported():
    with websocket_server(echo, ssl=server_tls(), logger=quiet) as url:
        with pytest.raises(ssl.SSLCertVerificationError, match="self-signed certificate"):
            await manager_of(url).start()


async def test_O4_connecting_with_tls_to_a_server_without_tls_raises():
    with websocket_server(echo, logger=quiet) as url:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await manager_of(url.replace("ws://", "wss://"), ssl_context=client_tls()).start()


async def test_O4_connecting_without_tls_to_a_server_with_tls_raises():
    with websocket_server(echo, ssl=server_tls(), logger=quiet) as url:
        with pytest.raises((WebSocketException, EOFError, ConnectionError)):
            await manager_of(url.replace("wss://", "ws://")).start()


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
async def test_O7_the_status_of_a_refused_upgrade_is_in_the_error(status):
    def refuse(connection, request):
        response = connection.respond(status, "s3cret")
        if status == 401:
            response.headers["WWW-Authenticate"] = 'Bearer realm="s3cret"'
        return response

    with websocket_server(echo, process_request=refuse) as url:
        manager = manager_of(url)
        with pytest.raises(InvalidStatus, match=f"HTTP {status}") as caught:
            await manager.start()
    asked = ", WWW-Authenticate: Bearer" if status == 401 else ""
    assert caught.value.__notes__ == [
        f"the server refused the ws:// upgrade with HTTP {status}{asked}",
        f"ownertask: raised by {manager.name} while opening",
    ]


@pytest.mark.parametrize("target", ["/elsewhere", "ws://localhost:{port}/", "wss://127.0.0.1:{port}/"])
async def test_O7_a_redirect_is_refused_and_no_header_is_sent_elsewhere(target):
    seen = []

    def redirect(connection, request):
        seen.append(request.path)
        response = connection.respond(307, "")
        port = connection.socket.getsockname()[1]
        response.headers["Location"] = target.format(port=port)
        return response

    with websocket_server(echo, process_request=redirect) as url:
        with pytest.raises(InvalidStatus, match="HTTP 307"):
            await manager_of(url, {"X-Api-Key": "s3cret"}).start()
    assert seen == ["/mcp"]


@pytest.mark.parametrize("answer", [b"", b"<html>", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])
async def test_O6_a_response_that_is_not_an_upgrade_raises(answer):
    def handler(connection):
        connection.recv(4096)
        connection.sendall(answer)

    with tcp_server(handler) as url:
        with pytest.raises((WebSocketException, InvalidStatus, EOFError)):
            await manager_of(url).start()


async def test_O5_start_times_out_if_the_server_accepts_and_never_responds():
    def silent(connection):
        while connection.recv(4096):
            pass

    with tcp_server(silent) as url:
        with pytest.raises(TimeoutError, match="timed out"):
            await manager_of(url, open_timeout=0.1).start()
    with tcp_server(silent) as url:
        with pytest.raises(StartTimeoutError, match=r"not connected after 0\.1 s"):
            await manager_of(url, open_timeout=None).start(timeout=0.1)


@pytest.mark.parametrize("is_read", [True, False])
async def test_P13_a_message_that_is_too_large_loses_the_connection_with_code_1009(is_read):
    seen = []

    def handler(websocket):
        websocket.recv()
        websocket.send("x" * 1001)
        until_closed(websocket)
        seen.append(websocket.protocol.close_code)

    with websocket_server(handler) as url:
        manager = manager_of(url, max_message_bytes=1000)
        read_stream, write_stream = await manager.start()
        await write_stream.send(message(PING))
        if is_read:
            with pytest.raises(EndOfStream):
                await read_stream.receive()
        error = await lost(manager)
    assert error.__cause__.sent.code == 1009
    assert seen == [1009]


@pytest.mark.parametrize("is_reset", [True, False])
async def test_P2_a_connection_cut_in_the_middle_of_a_message_is_lost(is_reset):
    def handler(connection):
        protocol = ServerProtocol(subprotocols=["mcp"])
        protocol.receive_data(connection.recv(4096))
        protocol.send_response(protocol.accept(protocol.events_received()[0]))
        connection.sendall(b"".join(protocol.data_to_send()))
        connection.recv(4096)
        connection.sendall(Frame(Opcode.TEXT, b"x" * 1000).serialize(mask=False)[:500])
        if is_reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with tcp_server(handler) as url:
        manager = manager_of(url)
        read_stream, write_stream = await manager.start()
        await write_stream.send(message(PING))
        with pytest.raises(EndOfStream):
            await read_stream.receive()
        error = await lost(manager)
    assert isinstance(error.__cause__, ConnectionClosed)
    assert error.__cause__.rcvd is None
    assert any("the WebSocket closed: " in note for note in error.__notes__)


@slow
@pytest.mark.within(20)
async def test_P1_the_death_of_the_server_is_detected_even_if_no_task_is_reading():
    with websocket_process("echo") as (process, url):
        manager = manager_of(url)
        await manager.start()
        process.kill()
        error = await lost(manager)
    assert isinstance(error.__cause__, ConnectionClosed)


@slow
@pytest.mark.within(20)
async def test_P3_a_frozen_server_is_detected_by_its_missing_pongs():
    with websocket_process("echo") as (process, url):
        manager = manager_of(url, ping_interval=0.1, ping_timeout=0.1, close_timeout=0.1)
        await manager.start()
        process.send_signal(signal.SIGSTOP)
        error = await lost(manager)
        process.send_signal(signal.SIGCONT)
    assert error.__cause__.sent.reason == "keepalive ping timeout"


@slow
@pytest.mark.within(20)
@pytest.mark.parametrize("size", [0, 2**25])
async def test_C4_a_frozen_server_does_not_delay_stop_beyond_close_timeout(size):
    """The server does not complete the closing handshake, or does not read a pending message."""
    text = PING.replace("ping", "x" * size)

    async def send(write_stream):
        with suppress(BrokenResourceError):
            await write_stream.send(message(text))

    with websocket_process("echo") as (process, url):
        manager = manager_of(url, close_timeout=0.2)
        _, write_stream = await manager.start()
        process.send_signal(signal.SIGSTOP)
        async with anyio.create_task_group() as tg:
            if size:
                tg.start_soon(send, write_stream)
                await anyio.wait_all_tasks_blocked()
            await manager.stop(timeout=None)
        assert manager.state is ConnectionState.CLOSED
        assert manager.exception is None
        process.send_signal(signal.SIGCONT)


@slow
@pytest.mark.within(20)
async def test_an_error_in_the_body_is_raised_even_if_closing_times_out():
    with websocket_process("echo") as (process, url):
        with pytest.RaisesGroup(LookupError, allow_unwrapped=True, flatten_subgroups=True):
            async with manager_of(url, close_timeout=0.1).open_connection():
                process.send_signal(signal.SIGSTOP)
                raise LookupError("of the body")
        process.send_signal(signal.SIGCONT)


@slow
@pytest.mark.within(20)
async def test_C2_a_forced_stop_leaves_nothing_behind():
    with websocket_process("echo") as (process, url):
        manager = manager_of(url, close_timeout=None)
        await manager.start()
        before = all_tasks()
        process.send_signal(signal.SIGSTOP)
        await manager.stop(timeout=0)
        assert len(all_tasks()) < len(before)
        process.send_signal(signal.SIGCONT)


@slow
@pytest.mark.within(20)
async def test_P11_cancelling_a_caller_while_it_sends_does_not_truncate_the_message():
    text = PING.replace("ping", "x" * 2**25)
    with websocket_process("echo") as (process, url):
        async with manager_of(url, max_message_bytes=None) as (read_stream, write_stream):
            process.send_signal(signal.SIGSTOP)
            async with anyio.create_task_group() as tg:
                tg.start_soon(write_stream.send, message(text))
                await anyio.wait_all_tasks_blocked()
                tg.cancel_scope.cancel()
            process.send_signal(signal.SIGCONT)
            assert text_of(await read_stream.receive()) == text
            await write_stream.send(message(PING))
            assert text_of(await read_stream.receive()) == PING


async def test_O17_stop_before_the_server_responds_leaves_nothing_behind():
    def silent(connection):
        while connection.recv(4096):
            pass

    with tcp_server(silent) as url:
        manager = manager_of(url)

        async def start():
            with pytest.raises(ConnectionStoppedError):
                await manager.start()

        async with anyio.create_task_group() as tg:
            tg.start_soon(start)
            await anyio.wait_all_tasks_blocked()
            await manager.stop()


# Secrets


@pytest.mark.parametrize("outcome", ["opened", "refused"])
async def test_headers_user_info_and_query_are_never_shown(outcome, caplog):
    def refuse(connection, request):
        return connection.respond(403, "no") if outcome == "refused" else None

    def handler(websocket):
        websocket.recv()
        websocket.close(1008, "bye")

    shown = []
    with (
        caplog.at_level(logging.DEBUG),
        websocket_server(handler, process_request=refuse, logger=quiet) as url,
    ):
        secret_url = url.replace("//", "//s3cret:s3cret@") + "?token=s3cret"
        manager = manager_of(
            secret_url, {"Authorization": "Bearer s3cret"}, subprotocols=["mcp", "s3cret"]
        )
        shown.append(repr(manager))
        try:
            _, write_stream = await manager.start()
            shown.extend(repr(task) for task in all_tasks())
            await write_stream.send(message(PING))
            await manager.wait_closed()
        except Exception as error:
            shown.extend("".join(traceback.format_exception(error)).splitlines())
        shown.append(repr(manager))
    logged = [record for record in caplog.records if record.name != "asyncio"]
    assert logged
    assert not any(record.name.startswith("websockets") for record in logged)
    assert "s3cret" not in caplog.text
    assert "s3cret" not in "\n".join(shown)
    assert base64.b64encode(b"s3cret:s3cret").decode() not in caplog.text + "\n".join(shown)


async def test_a_group_of_several_errors_from_the_body_stays_a_group():
    async def fail(text):
        raise OSError(text)

    with websocket_server(until_closed) as url:
        with pytest.raises(ExceptionGroup) as caught:
            async with manager_of(url).open_connection(), anyio.create_task_group() as tg:
                tg.start_soon(fail, "one")
                tg.start_soon(fail, "two")
    assert caught.group_contains(OSError, match="one")
    assert caught.group_contains(OSError, match="two")


# Sessions


SERVERS = ["websockets", "uvicorn"]
if _sdk.HAS_CLIENT:
    SESSIONS = [
        pytest.param(SessionConnectionManager, {}, id="session"),
        pytest.param(ClientConnectionManager, {"mode": "auto"}, id="auto"),
        pytest.param(ClientConnectionManager, {"mode": "legacy"}, id="legacy"),
    ]
else:
    SERVERS.append("sdk")
    SESSIONS = [pytest.param(SessionConnectionManager, {}, id="session")]

sessions = pytest.mark.parametrize(("kind", "options"), SESSIONS)


@slow
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.within(30)
async def test_sessions_with_a_real_server_work_from_any_task(server):
    sums = {}

    async def add(manager, number):
        result = await manager.connection.call_tool("add", {"a": number, "b": number})
        sums[number] = result.content[0].text

    with websocket_process(server) as (_, url):
        for session in SESSIONS:
            kind, options = session.values
            manager = kind(manager_of(url), **options)
            async with anyio.create_task_group() as tg:
                tg.start_soon(manager.start)
            async with anyio.create_task_group() as tg:
                for number in range(10):
                    tg.start_soon(add, manager, number)
            async with anyio.create_task_group() as tg:
                tg.start_soon(manager.stop)
            assert sums == {number: str(2 * number) for number in range(10)}
            sums.clear()
            assert manager.state is ConnectionState.CLOSED
            assert manager.exception is None


@slow
@pytest.mark.within(30)
async def test_P1_sessions_whose_server_is_killed_are_lost_with_a_cause():
    managers = []
    with websocket_process("websockets") as (process, url):
        for session in SESSIONS:
            kind, options = session.values
            managers.append(kind(manager_of(url), **options))
            await managers[-1].start()
        process.kill()
        for manager in managers:
            assert isinstance((await lost(manager)).__cause__, ConnectionClosed)


@sessions
async def test_O11_the_close_reason_is_in_the_error_if_the_server_closes_during_the_handshake(
    kind, options
):
    def handler(websocket):
        websocket.recv()
        websocket.close(1008, "no such token")

    with websocket_server(handler) as url:
        with pytest.raises(ConnectionLostError) as caught:
            await kind(manager_of(url), **options).start()
    assert "the connection was lost: received 1008 (policy violation) no such token" in str(caught.value)
    assert isinstance(caught.value.__cause__, ConnectionClosed)
    assert caught.value.__cause__.rcvd.code == 1008
