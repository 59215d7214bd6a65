"""Tests that each failure is recognized, and that `docs/how-to/check-errors.md` lists them all.

Each failure is caused by a real server. `check_errors_page.py` updates the page.
"""

import json
import logging
import os
import re
import signal
import socket
import ssl
import sys
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import anyio
import http_failures
import pytest
import websocket_peers
from doctor.check_errors_page import PAGE, heading, updated
from http_server import http_server, result_of_initialize, tcp_server

from ownertask.__main__ import main
from ownertask._doctor.report import Failure
from ownertask._doctor.troubles import ALL, FALLBACK, REMARKS, TROUBLES, trouble_of
from ownertask.mcp import StdioConnectionManager, WebSocketConnectionManager, _sdk
from ownertask.testing import Resources

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SHORT = 0.5
"""The timeout, in seconds, where a timeout is the expected failure."""

LONG = 20

QUIET = logging.Logger("quiet", logging.CRITICAL)  # noqa: LOG001 - its level stays


# Servers as processes. Shells start faster than Python.

INITIALIZED = """{
    "protocolVersion": message["params"]["protocolVersion"],
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "scripted", "version": "1"},
}"""


def shell(script):
    return ["stdio", "--", "sh", "-c", script]


def answering(initialize, other="None", at_end="None"):
    """Returns the arguments for a server that answers the handshake and other requests.

    The answers are expressions for the members of the JSON-RPC response. `None` means no answer.
    """
    code = f"""
import json, os, sys, time
{"import subprocess" if "subprocess" in initialize else ""}
for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        is_first = message["method"] in ("initialize", "server/discover")
        answer = ({initialize}) if is_first else ({other})
        if answer is not None:
            print(json.dumps({{"jsonrpc": "2.0", "id": message["id"], **answer}}), flush=True)
{at_end}
"""
    return ["stdio", "--", sys.executable, "-S", "-E", "-c", code]


def initialized(other):
    return answering(f'{{"result": {INITIALIZED}}}', other)


ERROR = '{"error": {"code": -32000, "message": "no"}}'


@contextmanager
def in_folder(make):
    with TemporaryDirectory() as folder:
        yield make(Path(folder))


def file(mode, content):
    def make(folder):
        path = folder / "server"
        path.write_text(content)
        path.chmod(mode)
        return ["stdio", "--", str(path)]

    return lambda: in_folder(make)


def config(**server):
    def make(folder):
        path = folder / "mcp.json"
        server.setdefault("command", sys.executable)
        path.write_text(json.dumps({"mcpServers": {"server": server}}))
        return ["--config", str(path)]

    return lambda: in_folder(make)


# Servers with a URL.


def at(kind, server, answer):
    @asynccontextmanager
    async def peer():
        async with server(answer) as origin:
            url = f"{origin}/mcp"
            yield [kind, url.replace("http", "ws", 1) if kind == "ws" else url]

    return peer


def at_http(kind, answer):
    return at(kind, http_server, answer)


def until_closed(answer):
    """Returns an answer that ends when the client closes the connection.

    `ownertask check` looks for open descriptors in this process, where the servers run, too.
    """

    async def serve(request):
        async def cancel_when_closed():
            try:
                await request.stream.receive()
            except anyio.EndOfStream:
                await request.stream.aclose()
            tg.cancel_scope.cancel()

        async with anyio.create_task_group() as tg:
            tg.start_soon(cancel_when_closed)
            await answer(request)
            tg.cancel_scope.cancel()

    return serve


def at_tcp(kind, serve, scheme):
    @asynccontextmanager
    async def peer():
        async with tcp_server(serve) as port:
            yield [kind, f"{scheme}://127.0.0.1:{port}/mcp"]

    return peer


def with_tls(kind, certificate, host="127.0.0.1", scheme="https"):
    """Returns a peer whose certificate the client trusts."""

    @asynccontextmanager
    async def peer():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            path = Path(folder) / "pem"
            path.write_bytes(certificate())
            context.load_cert_chain(path)
            patch.setenv("SSL_CERT_FILE", str(path))
            async with http_server(http_failures.silent, context) as origin:
                yield [kind, origin.replace("https", scheme).replace("127.0.0.1", host) + "/mcp"]

    return peer


def certificate(first_day, last_day, host):
    def create():
        from datetime import UTC, datetime, timedelta
        from ipaddress import ip_address

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        now = datetime.now(UTC)
        names = x509.DNSName(host) if host.islower() else x509.IPAddress(ip_address(host))
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        return key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ) + (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=first_day))
            .not_valid_after(now + timedelta(days=last_day))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([names]), critical=False)
            .add_extension(identifier, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
                critical=False,
            )
            .sign(key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    return create


@asynccontextmanager
async def without_tls(answer):
    """Yields the URL of a server with TLS, without TLS."""
    async with http_server(answer, http_failures.ssl_context()) as origin:
        yield origin.replace("https", "http")


EXPIRED = certificate(-9, -1, "127.0.0.1")
OF_ANOTHER_HOST = certificate(-1, 1, "example.org")


@asynccontextmanager
async def behind_proxy():
    async def refuse(stream):
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")

    async with tcp_server(refuse) as port:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
            yield ["http", "https://example.org/mcp"]


def with_variable(name, value, *words):
    @contextmanager
    def peer():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, value)
            yield list(words)

    return peer


SOCKS = "socks5://127.0.0.1:1"


async def hang_up(stream):
    async with stream:
        await stream.receive()


async def stay_silent(stream):
    async with stream:
        while await stream.receive():
            pass


def in_session(answer):
    """Returns an HTTP server that answers the handshake and passes later requests to `answer`."""

    async def serve(request):
        if request.method != "POST":
            await request.answer("405 Method Not Allowed")
        elif request.message.get("method") == "initialize":
            await request.answer(body=result_of_initialize(request), mcp_session_id="1")
        elif "id" in request.message:
            await answer(request)
        else:
            await request.answer("202 Accepted")

    return serve


async def cut_off(request):
    await request.answer(body=b"{", content_type="application/json", content_length=100)
    await request.stream.aclose()


async def not_http(request):
    await request.stream.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    await request.stream.aclose()


async def not_compressed(request):
    await request.answer(body=b"text", content_type="application/json", content_encoding="gzip")


def sse_peer(last):
    """Returns a peer that ends its event stream when it receives the request `last`.

    If it is `None`, the peer answers nothing.
    """
    events = None

    async def answer(request):
        nonlocal events
        if request.method == "GET":
            events = request
            await request.begin_events()
            await request.send_event("endpoint", "/messages")
            await anyio.sleep_forever()
        await request.answer("202 Accepted")
        method = request.message["method"]
        if method == last:
            await events.stream.aclose()
        elif method == "initialize" and last is not None:
            await events.send_event("message", result_of_initialize(request))

    return at_http("sse", until_closed(answer))


def upgrading(handler, scheme="ws", **options):
    """Returns a WebSocket server that accepts connections by the time its URL is known.

    Before that, it opens descriptors, and `ownertask check` would find them in this process.
    """

    @contextmanager
    def peer():
        with websocket_peers.websocket_server(handler, logger=QUIET, **options) as url:
            parts = urlsplit(url)
            with socket.create_connection((parts.hostname, parts.port)) as first, suppress(OSError):
                first.shutdown(socket.SHUT_WR)
                while first.recv(4096):
                    pass
            yield ["ws", parts._replace(scheme=scheme).geturl()]

    return peer


def answering_once(handler):
    @contextmanager
    def peer():
        with websocket_peers.tcp_server(handler) as url:
            yield ["ws", url]

    return peer


def refusing(status):
    return upgrading(websocket_peers.echo, process_request=lambda one, two: one.respond(status, "no"))


def raw(answer):
    def handler(connection):
        connection.recv(4096)
        connection.sendall(answer)

    return answering_once(handler)


def silent(connection):
    while connection.recv(4096):
        pass


@contextmanager
def without_trio():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "websockets.trio.client", None)
        yield ["ws", "ws://127.0.0.1:9/"]


@contextmanager
def silent_for_long():
    defaults = WebSocketConnectionManager.__init__.__kwdefaults__
    with pytest.MonkeyPatch.context() as patch, websocket_peers.tcp_server(silent) as url:
        patch.setitem(defaults, "open_timeout", SHORT)
        yield ["ws", url]


def closing(code):
    def handler(websocket):
        websocket.recv()
        websocket.close(code, "the reason")

    return handler


def huge(websocket):
    websocket.recv()
    websocket.send("x" * (17 * 2**20))
    websocket_peers.until_closed(websocket)


def ws_error(websocket):
    message = json.loads(websocket.recv())
    error = {"code": -32000, "message": "no"}
    websocket.send(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}))
    websocket_peers.until_closed(websocket)


# By name: the peer, or a function that opens it; the phase; the heading; a timeout, if it matters.

EXIT = "echo 'the working directory is not a directory' >&2; exit 3"
"""What a server writes to its stderr does not matter."""

STDIO_CASES = {
    "unknown command": (
        ["stdio", "--", "ownertask-has-no-such-command"],
        "spawn",
        "The command was not found",
    ),
    "a command line in one word": (
        ["stdio", "--", "python server.py"],
        "spawn",
        "The command was not found",
    ),
    "no interpreter": (file(0o755, "#!/nowhere/python\n"), "spawn", "The command was not found"),
    "not executable": (file(0o644, "#!/bin/sh\n"), "spawn", "The command can't be executed"),
    "a directory": (["stdio", "--", "/"], "spawn", "The command can't be executed"),
    "not a program": (file(0o755, "text"), "spawn", "The command is not a program for this machine"),
    "no folder": (config(cwd="/nowhere"), "spawn", "The working directory does not exist"),
    "a file as folder": (config(cwd=__file__), "spawn", "The working directory does not exist"),
    "too many arguments": (
        ["stdio", "--", "sh", "x" * 200_000],
        "spawn",
        "The operating system did not start the command",
    ),
    "exit": (shell(EXIT), "handshake", "The server exited during the handshake"),
    "exit in list": (initialized("sys.exit(1)"), "list", "The server exited later"),
    "killed": (shell("kill -KILL $$"), "handshake", "A signal killed the server"),
    "killed in list": (initialized("os.kill(os.getpid(), 9)"), "list", "A signal killed the server"),
    "no stdout": (
        shell("exec >/dev/null; cat"),
        "handshake",
        "The server closed its stdout or stdin but is still running",
    ),
    "prints": (
        shell("echo hello; cat >/dev/null; :"),
        "handshake",
        "The server prints text to stdout",
        SHORT,
    ),
    "mute": (shell("cat >/dev/null; :"), "handshake", "The server never answered the handshake", SHORT),
    "endless line": (
        shell("head -c 140000000 /dev/zero; cat >/dev/null; :"),
        "handshake",
        "The server sent a line that is too long",
    ),
    "old": (
        answering(f'{{"result": {{**{INITIALIZED}, "protocolVersion": "1999-01-01"}}}}'),
        "handshake",
        "Unsupported protocol version",
    ),
    "error": (answering(ERROR), "handshake", "The server answered the handshake with an error"),
    "invalid": (answering('{"result": {"capabilities": 1}}'), "handshake", "An invalid result"),
    "error in list": (initialized(ERROR), "list", "The server answered a request with an error"),
    "invalid list": (initialized('{"result": {}}'), "list", "An invalid result"),
    "silent list": (initialized("None"), "list", "A request received no response in time", SHORT),
    "error in ping": (
        initialized('{"result": {"tools": []}} if message["method"] == "tools/list" else ' + ERROR),
        "ping",
        "The server answered a request with an error",
    ),
}

KINDS = {"streamable HTTP": "http", "SSE": "sse"}

EXPECTED = {
    "nothing is listening on the port": ("connect", "Nothing is listening"),
    "the host name cannot be resolved": ("connect", "The host name is unknown"),
    "an `https` URL for a server without TLS": ("connect", "The server does not use TLS"),
    "an untrusted certificate": ("connect", "The certificate is not trusted"),
    "the server closes the connection without responding": (
        "handshake",
        "The server closed the connection without a response",
    ),
    "the server never responds": ("handshake", "The server accepts the connection but never answers"),
    "401": ("handshake", "401 Unauthorized"),
    "403": ("handshake", "403 Forbidden"),
    "404": ("handshake", "404 Not Found"),
    "500": ("handshake", "A server error (5xx)"),
    "503": ("handshake", "A server error (5xx)"),
    "a redirect to another origin": ("handshake", "A redirect (3xx)"),
    "an HTML page instead of an MCP response": ("handshake", "An HTML page or another content type"),
    "an empty event stream": ("handshake", "The event stream ended without a response"),
    "invalid JSON": ("handshake", "The response is not an MCP message"),
    "an event that is not a message": ("handshake", "The response is not an MCP message"),
    "202 Accepted in response to a request": ("handshake", "202 Accepted in response to a request"),
    "no `endpoint` event": ("handshake", "No `endpoint` event"),
    "an `endpoint` event with a different origin": (
        "handshake",
        "An `endpoint` event with a different origin",
    ),
    "403 in response to a message": ("handshake", "403 Forbidden"),
}
"""The phase and the heading of the cases in `http_failures.py`, except for those in the next table."""

ENDLESS = {
    http_failures.silent,
    http_failures.no_endpoint,
    http_failures.foreign_endpoint,
    http_failures.refuse_messages,
}

EXPECTED_OVER_SSE = {
    "the server never responds": ("handshake", "No `endpoint` event"),
    "an empty event stream": ("handshake", "No `endpoint` event"),
}


def known_cases():
    for transport, cases in http_failures.CASES.items():
        kind = KINDS[transport]
        for name, (server, answer) in cases.items():
            expected = EXPECTED[name]
            if kind == "sse":
                expected = EXPECTED_OVER_SSE.get(name, expected)
            answer_until_closed = until_closed(answer) if answer in ENDLESS else answer
            limit = [SHORT] if "never responds" in name or "no `endpoint`" in name else []
            yield f"{kind}: {name}", (at(kind, server, answer_until_closed), *expected, *limit)


def refused(line):
    return http_failures.status(line)


HTTP_CASES = dict(known_cases()) | {
    "expired": (with_tls("http", EXPIRED), "connect", "The certificate has expired"),
    "another host": (
        with_tls("http", OF_ANOTHER_HOST),
        "connect",
        "The certificate belongs to another host",
    ),
    "hang-up in TLS": (at_tcp("http", hang_up, "https"), "connect", "The TLS handshake failed"),
    "silence in TLS": (
        at_tcp("http", stay_silent, "https"),
        "connect",
        "No connection was established in time",
        SHORT,
    ),
    "http for https": (
        at("http", without_tls, http_failures.silent),
        "handshake",
        "The server closed the connection without a response",
    ),
    "proxy": (behind_proxy, "handshake", "A proxy refused the connection"),
    "odd proxy": (
        with_variable("HTTP_PROXY", "foo://proxy", "http", "http://example.org/mcp"),
        "connect",
        "The proxy in the environment can't be used",
    ),
    "SOCKS": (
        with_variable("ALL_PROXY", SOCKS, "sse", "http://example.org/sse"),
        "connect",
        "The proxy in the environment can't be used",
    ),
    "proxy is down": (
        with_variable("HTTP_PROXY", "http://127.0.0.1:1", "http", "http://example.org/mcp"),
        "connect",
        "Nothing is listening",
    ),
    "no certificate file": (
        with_variable("SSL_CERT_FILE", "/no/such/file", "http", "https://example.org/mcp"),
        "connect",
        "The file in SSL_CERT_FILE can't be used",
    ),
    "no certificates in the file": (
        with_variable("SSL_CERT_FILE", __file__, "sse", "https://example.org/sse"),
        "connect",
        "The file in SSL_CERT_FILE can't be used",
    ),
    "a folder with certificates": (
        with_variable("SSL_CERT_FILE", os.sep, "http", "https://example.org/mcp"),
        "connect",
        "The file in SSL_CERT_FILE can't be used",
    ),
    "terminated": (
        at_http("http", in_session(refused("404 Not Found"))),
        "list",
        "Session terminated",
    ),
    "401 in list": (
        at_http("http", in_session(refused("401 Unauthorized"))),
        "list",
        "401 Unauthorized",
    ),
    "silent list over HTTP": (
        at_http("http", in_session(until_closed(http_failures.silent))),
        "list",
        "A request received no response in time",
        SHORT,
    ),
    "cut off": (at_http("http", cut_off), "handshake", "The response was cut off"),
    "not HTTP": (at_http("sse", not_http), "handshake", "The port does not belong to an HTTP server"),
    "not compressed": (at_http("http", not_compressed), "handshake", "Another failure"),
    "silent SSE": (
        sse_peer(None),
        "handshake",
        "The server accepts the connection but never answers",
        SHORT,
    ),
    "SSE lost in the handshake": (
        sse_peer("initialize"),
        "handshake",
        "The connection was lost during the handshake",
    ),
    "SSE lost in list": (
        sse_peer("tools/list"),
        "list",
        "The connection was lost after the handshake",
    ),
    "400 over HTTP": (
        at_http("http", refused("400 Bad Request")),
        "handshake",
        "Another client error (4xx)",
    ),
    "405": (
        at_http("http", refused("405 Method Not Allowed")),
        "handshake",
        "405 Method Not Allowed or 406 Not Acceptable over streamable HTTP",
    ),
    "405 over SSE": (
        at_http("sse", refused("405 Method Not Allowed")),
        "handshake",
        "400, 405 or 406 over SSE",
    ),
    "407": (
        at_http("http", refused("407 Proxy Authentication Required")),
        "handshake",
        "407 Proxy Authentication Required",
    ),
    "421": (at_http("http", refused("421 Misdirected Request")), "handshake", "421 Misdirected Request"),
    "429": (at_http("http", refused("429 Too Many Requests")), "handshake", "429 Too Many Requests"),
}

WS_CASES = {
    "refused": (at("ws", http_failures.refused_port, None), "connect", "Nothing is listening"),
    "unknown host": (at("ws", http_failures.unknown_host, None), "connect", "The host name is unknown"),
    "untrusted": (
        upgrading(websocket_peers.echo, "wss", ssl=websocket_peers.server_tls()),
        "connect",
        "The certificate is not trusted",
    ),
    "wss for ws": (at("ws", http_failures.wrong_scheme, None), "connect", "The server does not use TLS"),
    "ws for wss": (
        upgrading(websocket_peers.echo, ssl=websocket_peers.server_tls()),
        "connect",
        "The server does not speak the WebSocket protocol",
    ),
    "401": (refusing(401), "connect", "401 Unauthorized"),
    "403": (refusing(403), "connect", "The server refused the upgrade with status 403"),
    "404": (refusing(404), "connect", "404 Not Found"),
    "503": (refusing(503), "connect", "A server error (5xx)"),
    "200": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        "connect",
        "The server refused the upgrade to a WebSocket",
    ),
    "426": (refusing(426), "connect", "The server refused the upgrade to a WebSocket"),
    "307": (refusing(307), "connect", "A redirect (3xx)"),
    "not HTTP": (raw(b"<html>"), "connect", "The server does not speak the WebSocket protocol"),
    "another subprotocol": (
        upgrading(websocket_peers.echo, subprotocols=["x"], select_subprotocol=lambda one, two: "x"),
        "connect",
        "The server selected another subprotocol",
    ),
    "silent": (
        answering_once(silent),
        "connect",
        "No connection was established in time",
        SHORT,
    ),
    "silent for 10 s": (silent_for_long, "connect", "The WebSocket server did not answer within 10 s"),
    "silent after the upgrade": (
        upgrading(websocket_peers.until_closed),
        "handshake",
        "The server accepts the connection but never answers",
        SHORT,
    ),
    "closed": (upgrading(closing(1000)), "handshake", "The server closed the WebSocket"),
    "closed with an error": (upgrading(closing(1011)), "handshake", "The server closed the WebSocket"),
    "too large": (upgrading(huge), "handshake", "A message is too large for the WebSocket"),
    "old library": (without_trio, "connect", "The websockets library is too old for trio"),
    "error": (upgrading(ws_error), "handshake", "The server answered the handshake with an error"),
}


@asynccontextmanager
async def entered(peer):
    """Enters a peer, which may also be a list of arguments or a blocking context manager."""
    if isinstance(peer, list):
        yield peer
        return
    await anyio.to_thread.run_sync(id, None)  # so that a peer does not wait for the end of the thread
    manager = peer()
    if hasattr(manager, "__aenter__"):
        async with manager as words:
            yield words
    else:
        with manager as words:
            yield words


def matches_shown(trouble, *parts):
    """Returns whether the page shows a text that occurs in an error."""
    texts = [part for part in parts if isinstance(part, str)]
    text = "\n".join([": ".join(texts), *parts[-1]])
    pattern = ".*".join(re.escape(part) for part in trouble.shown.split("…"))
    return re.search(pattern, text.replace("McpError", "MCPError")) is not None


# Errors of the network differ between asyncio and trio. Errors of stdio servers do not.
CASES = {
    f"{group}: {name}": case
    for group, cases in {"stdio": STDIO_CASES, "http": HTTP_CASES, "ws": WS_CASES}.items()
    for name, case in cases.items()
}
SHOWS_THESE_LIBRARIES = not _sdk.FOLLOWS_ALL_REDIRECTS
"""The page shows the texts of current libraries. The lowest versions of some have other texts."""


NEEDS_TRIO = {"ws: old library"}

CANCELLED_IN_TLS = "http: silence in TLS"
"""The lowest versions of the libraries leave the socket open if a TLS handshake is cancelled."""


def first_case_of(heading):
    return next(name for name, case in CASES.items() if case[2] == heading)


async def check(capsys, words, timeout, backend):
    """Runs `ownertask check`, and returns its exit code and its report on the server."""
    options = ["--json", "--timeout", str(timeout), "--backend", backend]
    code = await anyio.to_thread.run_sync(main, ["check", *options, *words])
    out, err = capsys.readouterr()
    assert not err
    return code, json.loads(out)


in_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])
"""For the peers. The command has another event loop, in a thread."""


@in_asyncio
@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "asyncio") for name in CASES if name not in NEEDS_TRIO]
    + [(name, "trio") for name in CASES if not name.startswith("stdio: ")],
)
@pytest.mark.within(40)
async def test_a_failure_is_recognized(name, backend, capsys):
    if name.startswith("ws: ") and backend == "trio" and name not in NEEDS_TRIO:
        pytest.importorskip("websockets.trio.client")
    peer, phase, heading, *limit = CASES[name]
    if "redirect" in name and _sdk.FOLLOWS_ALL_REDIRECTS:
        pytest.skip("this SDK follows redirects to any origin")
    async with entered(peer) as words:
        code, document = await check(capsys, words, limit[0] if limit else LONG, backend)
    (server,) = document["servers"]
    failure = server["failure"]
    trouble = next(trouble for trouble in TROUBLES if trouble.name == heading)
    assert (failure["phase"], failure["cause"], failure["try"]) == (
        phase,
        trouble.cause,
        list(trouble.steps),
    ), failure
    assert code == 1
    assert not document["left"] or (name == CANCELLED_IN_TLS and not SHOWS_THESE_LIBRARIES)
    is_shown = backend == "asyncio" or name in NEEDS_TRIO
    if SHOWS_THESE_LIBRARIES and is_shown and name == first_case_of(heading):
        assert matches_shown(trouble, failure["type"], failure["message"], failure["notes"]), failure


def test_each_kind_of_failure_is_tested():
    assert {case[2] for case in CASES.values()} == {trouble.name for trouble in TROUBLES}


@in_asyncio
async def test_a_server_that_does_not_exit_is_described(capsys, monkeypatch):
    monkeypatch.setitem(StdioConnectionManager.__init__.__kwdefaults__, "exit_timeout", 0.1)
    words = answering(f'{{"result": {INITIALIZED}}}', '{"result": {"tools": []}}', "time.sleep(60)")
    code, document = await check(capsys, words, LONG, "asyncio")
    assert code == 0
    (remark,) = document["servers"][0]["remarks"]
    assert matches_shown(REMARKS[0], [remark])


@in_asyncio
async def test_a_server_that_leaves_a_process_behind_is_described(capsys, monkeypatch):
    monkeypatch.setattr(Resources.left, "__defaults__", (0.1,))  # the limit in seconds
    start = "subprocess.Popen(['sleep', '60'], start_new_session=True, stdin=-3, stdout=-3, stderr=-3)"
    words = answering(f'({start}, {{"result": {INITIALIZED}}})[1]', '{"result": {"tools": []}}')
    code, document = await check(capsys, words, LONG, "asyncio")
    (left,) = document["left"]
    os.kill(int(re.search(r"process (\d+)", left)[1]), signal.SIGKILL)
    assert code == 1
    assert document["servers"][0]["ok"]


def test_headings_and_causes_differ():
    everything = (*TROUBLES, *REMARKS)
    assert len({trouble.name for trouble in everything}) == len(everything)
    assert len({trouble.cause for trouble in everything}) == len(everything)
    assert len({heading(trouble) for trouble in everything}) == len(everything)


def test_each_kind_has_one_to_four_steps():
    assert {len(trouble.steps) for trouble in (*TROUBLES, *REMARKS)} <= {1, 2, 3, 4}


@pytest.mark.parametrize("transport", ALL)
def test_an_unknown_failure_of_each_transport_has_a_general_description(transport):
    failure = Failure("list", "LookupError", "odd", [], transport, frozenset())
    assert trouble_of(failure) is FALLBACK


def test_the_page_contains_the_table():
    assert PAGE.read_text() == updated(PAGE.read_text())
