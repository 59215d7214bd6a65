"""Tests that transports tell failures that trying again cannot fix from others, with real servers."""

import errno
import os
import pickle
import ssl
import sys

import anyio
import pytest
from http_failures import PAGE, failing, rows
from http_server import http_server
from mcp import StdioServerParameters
from mcp.shared import _httpx_utils
from servers import MUTE, TINY, python_server
from session_server import FAILURES, SessionServer, SseServer, lost, opened, refused, status
from websocket_peers import echo, server_tls, tcp_server, websocket_server
from websockets.version import version

from ownertask import ConnectionLostError, ConnectionManager, StartTimeoutError
from ownertask._reason import leaves
from ownertask.mcp import (
    ClientConnectionManager,
    SessionConnectionManager,
    SseConnectionManager,
    StdioConnectionManager,
    StreamableHttpConnectionManager,
    WebSocketConnectionManager,
    _sdk,
    _spawning,
)

# The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
over_http = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
backends = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
only_posix = pytest.mark.skipif(sys.platform == "win32", reason="tests the transport for POSIX")

# Older SDKs follow a redirect to any origin.
SDK_IS_RECENT = hasattr(_httpx_utils, "stream_within_origin")
PERMANENT = {"an untrusted certificate", "401", "403", "403 in response to a message"}


async def failure_of(manager):
    with anyio.fail_after(15), pytest.raises(Exception) as caught:
        await manager.start()
    return caught.value


def is_permanent(manager, error):
    """Asks as the core does: about each exception in a group, and about the cause of a loss."""
    if isinstance(error, ConnectionLostError) and error.__cause__ is not None:
        error = error.__cause__
    return any(manager.is_permanent(leaf) for leaf in leaves(error))


# A timeout is tested below.
CASES = [
    case for case, texts in rows(PAGE.read_text()).items() if "StartTimeoutError" not in "".join(texts)
]


@over_http
@backends
@pytest.mark.parametrize(("transport", "case"), CASES)
@pytest.mark.within(20)
async def test_K5_over_http_only_a_refusal_and_an_untrusted_certificate_are_permanent(transport, case):
    if "redirect" in case and not SDK_IS_RECENT:
        pytest.skip("this SDK follows redirects to any origin")
    async with failing(transport, case, start_timeout=15) as manager:
        error = await failure_of(manager)
    assert is_permanent(manager.transport, error) is (case in PERMANENT), repr(error)


@pytest.mark.skipif(not _sdk.HAS_CLIENT, reason="mcp 1.x has no Client")
@over_http
@backends
@pytest.mark.parametrize("case", ["an untrusted certificate", "401", "403", "404", "503"])
@pytest.mark.within(20)
async def test_K5_the_failure_of_a_client_is_judged_alike(case):
    async with failing("streamable HTTP", case, ClientConnectionManager, 15) as manager:
        error = await failure_of(manager)
    assert is_permanent(manager.transport, error) is (case in PERMANENT), repr(error)


@over_http
@backends
@pytest.mark.parametrize("kind", [StreamableHttpConnectionManager, SseConnectionManager])
@pytest.mark.parametrize("line", ["429 Too Many Requests", "407 Proxy Authentication Required"])
async def test_K4_other_statuses_are_not_permanent(kind, line):
    async with http_server(status(line)) as url:
        manager = SessionConnectionManager(kind(url))
        error = await failure_of(manager)
    assert line in str(error)
    assert not is_permanent(manager.transport, error)


@over_http
@backends
async def test_K4_a_session_that_the_server_has_forgotten_is_not_a_permanent_loss():
    server = SessionServer(**{"tools/call": status("404 Not Found")})
    async with opened(server) as (manager, session):
        await refused(session)
        error = await lost(manager)
    assert "404" in str(error)
    assert not is_permanent(manager.transport, error)


@over_http
@backends
async def test_K5_a_loss_because_the_server_refused_a_message_is_permanent():
    server = SseServer("/messages", "tools/call")
    async with http_server(server) as url:
        manager = SessionConnectionManager(SseConnectionManager(url))
        session = await manager.start()
        with pytest.raises(FAILURES):
            await session.call_tool("add", {})
        error = await lost(manager)
    assert is_permanent(manager.transport, error), repr(error)
    assert not manager.transport.is_permanent(ConnectionLostError("session"))


WRONG = {
    "no such command": StdioServerParameters(command="ownertask-has-no-such-command"),
    "no such path": StdioServerParameters(command="/no/such/command"),
    "not executable": StdioServerParameters(command=__file__),
    "a directory": StdioServerParameters(command="/"),
    "no such folder": StdioServerParameters(command=sys.executable, cwd="/no/such/folder"),
    "a folder that is a file": StdioServerParameters(command=sys.executable, cwd=__file__),
    "a name that is too long": StdioServerParameters(command="/" + "a" * 5000),
    "a text that cannot be encoded": StdioServerParameters(command=sys.executable, args=["\ud800"]),
}


@backends
@pytest.mark.parametrize("server_params", WRONG.values(), ids=WRONG)
async def test_K5_a_command_that_cannot_be_started_is_permanent(server_params):
    manager = StdioConnectionManager(server_params)
    error = await failure_of(manager)
    assert isinstance(error, OSError | ValueError)
    assert manager.is_permanent(error), repr(error)


@backends
async def test_K5_a_file_that_is_not_a_program_is_permanent(tmp_path):
    path = tmp_path / "server"
    path.write_text("print('hello')")
    path.chmod(0o755)
    manager = StdioConnectionManager(StdioServerParameters(command=str(path)))
    error = await failure_of(manager)
    assert error.errno == errno.ENOEXEC
    assert manager.is_permanent(error)


@backends
async def test_K5_a_nul_character_that_is_set_later_is_permanent():
    manager = StdioConnectionManager(TINY.model_copy())
    manager.server_params.args = ["a\0b"]
    error = await failure_of(manager)
    assert isinstance(error, ValueError)
    assert manager.is_permanent(error)


@backends
@pytest.mark.within(20)
async def test_K5_the_failure_of_a_session_with_a_wrong_command_is_permanent():
    manager = SessionConnectionManager(WRONG["no such command"])
    error = await failure_of(manager)
    assert manager.transport.is_permanent(error)
    assert manager.transport.is_permanent(pickle.loads(pickle.dumps(error)))


@only_posix
@backends
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ETXTBSY])
async def test_K4_a_lack_of_resources_is_not_permanent(monkeypatch, number):
    """The real errors cannot be caused without harming the other tests."""

    def popen(*args, **options):
        raise OSError(number, os.strerror(number), "server")

    monkeypatch.setattr(_spawning, "Popen", popen)
    manager = StdioConnectionManager(TINY)
    error = await failure_of(manager)
    assert error.errno == number
    assert not manager.is_permanent(error)


@backends
@pytest.mark.parametrize("number", [0, 1, 126, 127])
@pytest.mark.within(20)
async def test_K6_the_exit_of_a_server_is_not_permanent(number):
    manager = SessionConnectionManager(python_server(f"raise SystemExit({number})"))
    error = await failure_of(manager)
    assert isinstance(error, ConnectionLostError)
    assert not is_permanent(manager.transport, error)


@backends
async def test_K4_a_start_timeout_is_not_permanent():
    manager = SessionConnectionManager(MUTE, start_timeout=0.1)
    error = await failure_of(manager)
    assert isinstance(error, StartTimeoutError)
    assert not is_permanent(manager.transport, error)


def test_an_equal_exception_from_elsewhere_is_not_permanent():
    manager = StdioConnectionManager(WRONG["no such command"])
    for error in (
        FileNotFoundError(errno.ENOENT, "no such file", "a"),
        ValueError("embedded null byte"),
    ):
        assert not manager.is_permanent(error)


needs_trio_client = pytest.mark.skipif(
    int(version.partition(".")[0]) < 17, reason="websockets has a trio client since 17"
)
websocket_backends = pytest.mark.parametrize(
    "anyio_backend", ["asyncio", pytest.param("trio", marks=needs_trio_client)]
)


@websocket_backends
@pytest.mark.parametrize(
    ("code", "permanent"),
    [(401, True), (403, True), (404, False), (407, False), (429, False), (500, False), (503, False)],
)
async def test_K5_a_websocket_upgrade_that_is_refused_with_401_or_403_is_permanent(code, permanent):
    def refuse(connection, request):
        return connection.respond(code, "no")

    with websocket_server(echo, process_request=refuse) as url:
        manager = WebSocketConnectionManager(url, proxy=None)
        error = await failure_of(manager)
    assert str(code) in str(error)
    assert manager.is_permanent(error) is permanent


@websocket_backends
async def test_K5_an_untrusted_certificate_of_a_websocket_server_is_permanent():
    with websocket_server(echo, ssl=server_tls()) as url:
        manager = WebSocketConnectionManager(url, proxy=None)
        error = await failure_of(manager)
    assert manager.is_permanent(error), repr(error)


@websocket_backends
async def test_K4_a_websocket_that_cannot_be_opened_for_another_reason_is_not_permanent():
    def hang_up(connection):
        connection.recv(4096)

    with tcp_server(hang_up) as url:
        manager = WebSocketConnectionManager(url, proxy=None)
        assert not manager.is_permanent(await failure_of(manager))
    assert not manager.is_permanent(await failure_of(manager))  # now the connection is refused


TRANSPORTS = {
    "stdio": lambda: StdioConnectionManager(TINY),
    "SSE": lambda: SseConnectionManager("http://example.org"),
    "streamable HTTP": lambda: StreamableHttpConnectionManager("http://example.org"),
    "WebSocket": lambda: WebSocketConnectionManager("ws://example.org"),
    "session": lambda: SessionConnectionManager(TINY),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_K5_an_error_of_programming_is_permanent_for_every_transport(transport):
    manager = TRANSPORTS[transport]()
    assert isinstance(manager, ConnectionManager)
    assert manager.is_permanent(TypeError())
    assert manager.is_permanent(ImportError())
    assert not manager.is_permanent(OSError())
    assert not manager.is_permanent(ssl.SSLError())


@pytest.mark.parametrize("transport", ["SSE", "streamable HTTP", "WebSocket"])
def test_K5_an_untrusted_certificate_is_found_behind_causes_contexts_and_groups(transport):
    manager = TRANSPORTS[transport]()
    untrusted = ssl.SSLCertVerificationError("self-signed certificate")
    cause, context, deep = OSError("cause"), OSError("context"), OSError("deep")
    cause.__cause__ = untrusted
    context.__context__ = untrusted
    deep.__cause__ = ExceptionGroup("attempts", [OSError(), context])
    for error in (untrusted, cause, context, deep):
        assert manager.is_permanent(error)
    untrusted.__context__ = other = OSError("other")
    other.__context__ = untrusted  # a cycle
    assert manager.is_permanent(other)
    other.__context__ = other
    assert not manager.is_permanent(other)
