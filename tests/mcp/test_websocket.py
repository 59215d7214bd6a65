"""A server spoken to over a WebSocket: the wire, the options, and all that goes wrong."""

import base64
import logging
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from conftest import all_tasks
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
    InvalidMessage,
    InvalidStatus,
    NegotiationError,
)
from websockets.frames import Frame, Opcode
from websockets.version import version

from mooring import ConnectionLostError, ConnectionState, StartTimeoutError
from mooring.mcp import SessionConnectionManager, WebSocketConnectionManager, _sdk
from mooring.mcp import _websocket_client as client

LIBRARY = int(version.partition(".")[0])
PING = '{"jsonrpc":"2.0","id":1,"method":"ping"}'


@pytest.fixture(autouse=True)
def _trio_needs_17(request):
    if "anyio_backend_name" in request.fixturenames and LIBRARY < 17:
        if request.getfixturevalue("anyio_backend_name") == "trio":
            pytest.skip("websockets has a client for trio from 17 on")


slow = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


def manager_of(url, *args, **options):
    return WebSocketConnectionManager(url, *args, **{"proxy": None} | options)


def message(text):
    parsed = _sdk.message_from_json(text)
    assert not isinstance(parsed, Exception)
    return parsed


def text_of(session_message):
    return _sdk.message_to_json(session_message)


async def lost(manager):
    with pytest.raises(ConnectionLostError) as caught:
        await manager.wait_closed()
    return caught.value


# The wire


@pytest.mark.parametrize(("chosen", "seen"), [("mcp", "mcp"), (None, None)])
async def test_a_server_may_choose_mcp_or_nothing(chosen, seen):
    offered = []

    def choose(connection, subprotocols):
        offered.extend(subprotocols)
        return chosen

    with websocket_server(echo, select_subprotocol=choose) as url:
        async with manager_of(url) as (read_stream, write_stream):
            await write_stream.send(message(PING))
            assert text_of(await read_stream.receive()) == PING
    assert offered == ["mcp"]


async def test_a_server_that_chooses_what_was_not_offered_is_refused():
    with websocket_server(echo, select_subprotocol=lambda *_: "other") as url:
        with pytest.raises(NegotiationError, match="unsupported subprotocol: other"):
            await manager_of(url).start()


async def test_other_subprotocols_can_be_offered_or_none_at_all():
    offered = []

    def choose(connection, subprotocols):
        offered.append(list(subprotocols))

    with websocket_server(echo, select_subprotocol=choose) as url:
        for subprotocols in (["a", "b"], ()):
            async with manager_of(url, subprotocols=subprotocols):
                pass
    assert offered == [["a", "b"], []]


async def test_a_message_on_the_wire_is_what_the_sdk_writes():
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
        _sdk.message_to_json(message('{"jsonrpc": "2.0", "id": 1, "method": "é"}')),
        _sdk.message_to_json(
            message('{"jsonrpc": "2.0", "method": "x", "params": {"a": [1], "b": {"c": "d"}}}')
        ),
    ]
    assert "null" not in received[0]


async def test_O8_what_is_no_json_rpc_is_read_as_an_exception_and_the_connection_lives_on():
    def handler(websocket):
        for text in ("hello", "{}", "", PING):
            websocket.send(text)
        until_closed(websocket)

    with websocket_server(handler) as url:
        async with manager_of(url) as (read_stream, _):
            for _ in range(3):
                assert isinstance(await read_stream.receive(), ValueError)
            assert text_of(await read_stream.receive()) == PING


async def test_a_binary_message_closes_with_1003():
    seen = []

    def handler(websocket):
        websocket.recv()
        websocket.send(b"\x00")
        until_closed(websocket)
        seen.append(websocket.close_code)

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
async def test_P2_a_close_with_another_code_than_1000_and_1001_is_the_cause_of_the_loss(
    code, is_plain, is_read
):
    """With a reader, and without any: an end is noticed either way."""

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
    assert re.fullmatch(rf"the end of the WebSocket: received {code} .* the reason; .*", note)
    assert manager.state is ConnectionState.FAILED


async def test_all_that_came_before_the_end_is_read():
    def handler(websocket):
        for _ in range(10):
            websocket.send(PING)

    with websocket_server(handler) as url:
        manager = manager_of(url)
        read_stream, _ = await manager.start()
        await read_stream.receive()
        await read_stream._websocket.wait_closed()
        await anyio.wait_all_tasks_blocked()
        assert [text_of(received) async for received in read_stream] == [PING] * 9
        assert (await lost(manager)).__cause__ is None


async def test_streams_whose_connection_has_ended_say_so():
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


# The options


@pytest.mark.parametrize("kind", ["mapping", "function", "coroutine function"])
async def test_headers_are_sent_and_asked_for_at_each_connect(kind):
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
    assert [token for token, _ in seen] == tokens
    assert len(asked) == (0 if kind == "mapping" else 2)


async def test_user_name_and_password_of_the_url_become_a_header():
    seen = []

    def handler(websocket):
        seen.append((websocket.request.path, websocket.request.headers["Authorization"]))
        until_closed(websocket)

    with websocket_server(handler) as url:
        async with manager_of(url.replace("//", "//u:p%40@") + "?q=1"):
            pass
    assert seen == [("/mcp?q=1", "Basic " + base64.b64encode(b"u:p@").decode())]


@slow
async def test_a_tls_context_can_be_given():
    with websocket_server(echo, ssl=server_tls()) as url:
        async with manager_of(url, ssl_context=client_tls()) as (read_stream, write_stream):
            await write_stream.send(message(PING))
            assert text_of(await read_stream.receive()) == PING


@contextmanager
def http_proxy(requests):
    """Answers one CONNECT, and passes on what comes after it."""

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


only_with_proxies = pytest.mark.skipif(not client.HAS_PROXY, reason="websockets knows no proxies")


@slow
@only_with_proxies
@pytest.mark.parametrize("is_named_by", ["argument", "environment"])
async def test_a_proxy_is_used(is_named_by, monkeypatch):
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
async def test_a_proxy_of_the_environment_that_has_no_valid_url_is_said_without_showing_it(monkeypatch):
    monkeypatch.setenv("ws_proxy", "nonsense://user:s3cret@example.org")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(ValueError, match="the proxy that the environment names") as caught:
        await manager_of("ws://example.org", proxy=True).start()
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("compression", "offered"), [(None, False), ("deflate", True)])
async def test_compression_is_offered_only_if_it_is_asked_for(compression, offered):
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
        ({"url": "ws://h/#s3cret"}, ValueError, "no fragment"),
        ({"url": "ws://u:p/s3cret@h"}, ValueError, "a port up to 65535"),
        ({"url": "ws://s3cret@h"}, ValueError, "a user name together with a password"),
        ({"url": "ws://[s3cret"}, ValueError, "and have a host"),
        ({"headers": "a: s3cret"}, TypeError, "headers must be a mapping, a callable .*, not str"),
        ({"headers": {"a": 1}}, TypeError, "headers must have strings"),
        ({"headers": {"a": "b\r\nc: s3cret"}}, ValueError, "headers must have words as names"),
        ({"headers": {"a b": "s3cret"}}, ValueError, "headers must have words as names"),
        ({"ssl_context": True}, TypeError, "ssl_context must be an ssl.SSLContext or None, not bool"),
        ({"url": "ws://h", "ssl_context": ssl.create_default_context()}, ValueError, "wss://"),
        ({"proxy": False}, TypeError, "proxy must be a URL, True or None, not bool"),
        ({"proxy": "nonsense://s3cret"}, ValueError, "proxy "),
        ({"open_timeout": -1}, ValueError, "open_timeout must be"),
        ({"close_timeout": "1"}, TypeError, "close_timeout must be"),
        ({"ping_interval": 0}, ValueError, "ping_interval must be more than 0"),
        ({"ping_timeout": float("nan")}, ValueError, "ping_timeout must be"),
        ({"max_message_bytes": 1.5}, TypeError, "max_message_bytes must be an integer or None"),
        ({"max_message_bytes": True}, TypeError, "max_message_bytes must be an integer or None"),
        ({"max_message_bytes": 0}, ValueError, "max_message_bytes must be positive"),
        ({"compression": "gzip"}, ValueError, "compression must be 'deflate' or None"),
        ({"subprotocols": "mcp"}, TypeError, "subprotocols must be a sequence of strings, not str"),
        ({"subprotocols": None}, TypeError, "subprotocols must be a sequence of strings"),
        ({"subprotocols": ["s3cret token"]}, ValueError, "subprotocols must be words"),
        ({"subprotocols": [1]}, ValueError, "subprotocols must be words"),
        ({"name": 1}, TypeError, "name must be a string"),
    ],
)
def test_O4_bad_input_is_refused_before_anything_is_opened(arguments, error, match):
    with pytest.raises(error, match=match) as caught:
        WebSocketConnectionManager(**{"url": "wss://example.org/mcp"} | arguments)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("headers", "error"), [({"a": "b\n"}, ValueError), ([("a", "b")], TypeError), ({1: "b"}, TypeError)]
)
async def test_headers_that_a_callable_returns_are_checked_too(headers, error):
    with pytest.raises(error, match="headers must"):
        await manager_of("ws://127.0.0.1:9/", lambda: headers).start()


async def test_an_error_of_the_headers_callable_is_what_start_raises():
    def refuse():
        raise LookupError("no token")

    with pytest.raises(LookupError, match="no token"):
        await manager_of("ws://127.0.0.1:9/", refuse).start()


@pytest.mark.skipif(client.HAS_PROXY, reason="websockets knows proxies")
def test_a_proxy_needs_a_library_that_knows_them():
    with pytest.raises(ValueError, match="proxy needs websockets 15 or newer, and 1.* is installed"):
        WebSocketConnectionManager("ws://example.org", proxy="http://example.org")


def test_what_cannot_be_imported_is_told_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mooring.mcp._websocket_client", None)
    monkeypatch.delattr("mooring.mcp._websocket_client")
    with pytest.raises(ImportError, match=r"websockets 13 or newer: install mooring\[websocket\]"):
        WebSocketConnectionManager("ws://example.org")


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_without_a_client_for_it_is_told_the_version_that_has_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets.trio.client", None)
    with pytest.raises(ImportError, match=f"websockets 17 or newer.* websockets {version} is installed"):
        await manager_of("ws://127.0.0.1:9/").start()


def test_importing_the_managers_does_not_import_the_library():
    code = "import sys, mooring.mcp; print('websockets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("ws://example.org", "ws://example.org"),
        ("wss://u:p@example.org:1/mcp?token=s3cret", "wss://example.org:1/mcp"),
    ],
)
def test_the_default_name_is_scheme_host_and_path(url, name):
    assert WebSocketConnectionManager(url).name == f"WebSocketConnectionManager({name})"
    assert WebSocketConnectionManager(url, name="tools").name == "tools"


async def test_get_streams_has_the_pair_while_the_connection_is_open():
    with websocket_server(until_closed) as url:
        manager = manager_of(url)
        assert manager.get_streams() is None
        async with manager as streams:
            assert manager.get_streams() is streams
        assert manager.get_streams() is None
