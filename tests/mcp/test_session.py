"""Tests for sessions on real servers, and for the errors if a session cannot be opened."""

import copy
import os
import pickle
import signal
import socket
import sys
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import anyio
import mcp
import pytest
from conftest import resources
from mcp import StdioServerParameters
from memory_server import memory_transport
from servers import MUTE, SDK, SHORT_BOUNDS, TINY, http_process, python_server

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    ReconnectPolicy,
    StartTimeoutError,
)
from ownertask.mcp import (
    ClientConnectionManager,
    ServerExitedError,
    SessionConnectionManager,
    StdioConnectionManager,
    _sdk,
)

if _sdk.HAS_CLIENT:
    from mcp.client import CacheConfig, InMemoryResponseCacheStore

    KINDS = [SessionConnectionManager, ClientConnectionManager]
else:
    KINDS = [SessionConnectionManager]

kinds = pytest.mark.parametrize("kind", KINDS)
only_posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot suspend a process")
SERVERS = Path(__file__).parent / "servers"
only_2 = pytest.mark.skipif(not _sdk.HAS_CLIENT, reason="mcp 1.x has no Client")
ERROR = mcp.MCPError if _sdk.HAS_CLIENT else mcp.McpError


def processes():
    return {resource for resource in resources() if resource.startswith("process")}


def text(result):
    return result.content[0].text


@kinds
@pytest.mark.within(20)
async def test_a_session_can_be_started_used_and_stopped_in_different_tasks(kind, forked):
    manager = kind(SDK)
    before = processes()
    sums = {}

    async def add(number):
        sums[number] = text(await manager.connection.call_tool("add", {"a": number, "b": number}))

    async with anyio.create_task_group() as tg:
        tg.start_soon(manager.start)
    async with anyio.create_task_group() as tg:
        for number in range(10):
            tg.start_soon(add, number)
    assert len(processes() - before) == 1
    async with anyio.create_task_group() as tg:
        tg.start_soon(manager.stop)
    assert sums == {number: str(2 * number) for number in range(10)}
    assert processes() == before
    assert manager.state is ConnectionState.CLOSED
    assert manager.exception is None


@kinds
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("order", ["fifo", "lifo", "at once"])
@pytest.mark.within(30)
async def test_five_sessions_can_be_closed_in_any_order(kind, order):
    managers = [kind(TINY) for _ in range(5)]
    before = processes()
    async with anyio.create_task_group() as tg:
        for manager in managers:
            tg.start_soon(manager.start)
    ids = [text(await manager.connection.call_tool("process_id", {})) for manager in managers]
    assert len(set(ids)) == 5
    if order == "at once":
        async with anyio.create_task_group() as tg:
            for manager in managers:
                tg.start_soon(manager.stop)
    else:
        for manager in managers if order == "fifo" else reversed(managers):
            await manager.stop()
    assert processes() == before


@kinds
@pytest.mark.within(20)
async def test_a_session_can_be_restarted(kind):
    manager = kind(StdioConnectionManager(TINY))
    ids = set()
    for _ in range(2):
        async with manager as session:
            ids.add(text(await session.call_tool("process_id", {})))
    assert len(ids) == 2


@kinds
async def test_a_missing_command_raises_file_not_found_with_a_note_that_names_the_manager(kind):
    manager = kind(StdioServerParameters(command="ownertask-has-no-such-command"))
    with pytest.raises(FileNotFoundError) as caught:
        await manager.start()
    assert caught.value.__notes__ == [f"ownertask: raised by {manager.name} while opening"]


@kinds
@pytest.mark.parametrize("how", ["exits", "closes its stdout", "prints a traceback"])
@pytest.mark.within(20)
async def test_O11_an_error_during_the_handshake_names_the_server_and_the_reason(kind, how):
    code, reason = {
        "exits": ("pass", "exited with status 0"),
        "closes its stdout": ("import os, sys; os.close(1); sys.stdin.read()", "closed its stdout"),
        "prints a traceback": (
            "raise LookupError('no config')",
            "exited with status 1; its stderr ended with 'LookupError: no config'",
        ),
    }[how]
    server = python_server(code)
    server.args.append("s3cret")
    manager = kind(server)
    before = processes()
    with pytest.raises(ConnectionLostError) as caught:
        await manager.start()
    assert processes() == before
    assert str(caught.value) == f"{manager.name}: the connection was lost: the server {reason}"
    cause = caught.value.__cause__
    assert isinstance(cause, EOFError if how == "closes its stdout" else ServerExitedError)
    assert "StdioConnectionManager(python" in manager.name
    notes = caught.value.__notes__
    what = "closed its stdout" if how == "closes its stdout" else "exited"
    assert notes[0] == f"the server {what} during the handshake"
    assert len(notes) == (2 if how == "prints a traceback" else 1)
    if how == "prints a traceback":
        assert notes[1].startswith("the server's stderr ended with:\nTraceback")
        assert notes[1].endswith("LookupError: no config\n")
        assert notes[1] in cause.__notes__
    assert "s3cret" not in "".join(notes)


@kinds
@pytest.mark.parametrize("timeout", [30, 0])
async def test_calls_in_flight_fail_when_the_session_is_stopped(kind, timeout):
    manager = kind(TINY)
    outcomes = []

    async def call():
        with pytest.raises(ERROR, match="Connection closed"):
            await session.call_tool("hang", {})
        outcomes.append("failed")

    session = await manager.start()
    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        await manager.stop(timeout)
    assert outcomes == ["failed"] * 3
    assert manager.state is ConnectionState.CLOSED


@kinds
@pytest.mark.parametrize("how", ["is killed", "exits with 0", "exits with 3"])
@pytest.mark.within(20)
async def test_P1_when_the_server_exits_the_connection_is_lost_and_calls_in_flight_fail(kind, how):
    manager = kind(TINY)
    outcomes = []

    async def call(tool, arguments):
        with pytest.raises(ERROR, match="Connection closed"):
            await session.call_tool(tool, arguments)
        outcomes.append(tool)

    async def wait():
        with pytest.raises(ConnectionLostError):
            await manager.wait_closed()
        outcomes.append("closed")

    session = await manager.start()
    process_id = int(text(await session.call_tool("process_id", {})))
    async with anyio.create_task_group() as tg:
        tg.start_soon(call, "hang", {})
        tg.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        if how == "is killed":
            os.kill(process_id, signal.SIGKILL)
        else:
            tg.start_soon(call, "exit", {"code": int(how[-1])})
    assert sorted(outcomes) == sorted(["hang", "closed"] + ["exit"] * (how != "is killed"))
    assert manager.state is ConnectionState.FAILED
    with pytest.raises(ConnectionLostError) as caught:
        manager.connection  # noqa: B018
    assert isinstance(caught.value.__cause__, ServerExitedError)
    ended = "was killed by SIGKILL" if how == "is killed" else how.replace("with", "with status")
    assert str(caught.value.__cause__) == f"the server {ended.replace('exits', 'exited')}"
    async with manager as session:  # the manager can be restarted
        assert text(await session.call_tool("process_id", {})) != str(process_id)


@kinds
async def test_P1_a_connection_lost_error_has_the_stderr_tail_in_a_note(kind, caplog):
    code = (
        f"import sys; sys.path.insert(0, {str(SERVERS)!r})\n"
        "print('ready', file=sys.stderr, flush=True)\n"
        "import tiny\n"
    )
    manager = kind(python_server(code), start_timeout=None)
    session = await manager.start()
    with pytest.raises(ERROR):
        await session.call_tool("exit", {"code": 3})
    with pytest.raises(ConnectionLostError) as caught:
        await manager.wait_closed()
    assert caught.value.__notes__ == ["the server's stderr ended with:\nready\n"]
    assert caught.value.name == manager.name
    [record] = [record for record in caplog.records if record.name == "ownertask"]
    assert record.getMessage() == (
        f"{manager.name}: the connection was lost: the server exited with status 3; "
        "its stderr ended with 'ready'"
    )


@kinds
async def test_O13_banners_blank_lines_and_invalid_utf8_on_stdout_are_tolerated(kind):
    code = (
        f"import os, sys; sys.path.insert(0, {str(SERVERS)!r})\n"
        "os.write(1, b'Welcome!\\n\\n  \\n\\xff\\xfe caf\\xe9\\n{}\\n')\n"
        "import tiny\n"
    )
    async with kind(python_server(code)) as session:
        assert text(await session.call_tool("process_id", {}))


@only_posix
@kinds
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.within(20)
async def test_P3_calls_to_a_suspended_server_time_out_and_stop_still_works(kind):
    manager = kind(StdioConnectionManager(TINY, **SHORT_BOUNDS), read_timeout_seconds=2)
    before = processes()
    session = await manager.start()
    os.kill(int(text(await session.call_tool("process_id", {}))), signal.SIGSTOP)
    with pytest.raises(ERROR, match="Timed out|timed out"):
        await session.call_tool("process_id", {})
    assert manager.state is ConnectionState.OPEN

    async def call_with_more_than_a_pipe_holds():
        # mcp 1.x does not convert errors of the write stream.
        with pytest.raises(ERROR if _sdk.HAS_CLIENT else anyio.ClosedResourceError):
            await session.call_tool("process_id", {"data": "x" * 1_000_000})

    async with anyio.create_task_group() as tg:
        tg.start_soon(call_with_more_than_a_pipe_holds)
        await anyio.wait_all_tasks_blocked()
        await manager.stop()
    assert processes() == before
    assert manager.exception is None


@kinds
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.within(20)
async def test_O12_a_server_that_never_responds_causes_a_start_timeout_and_leaves_no_process(kind):
    manager = kind(StdioConnectionManager(MUTE, **SHORT_BOUNDS), start_timeout=0.2)
    before = processes()
    with pytest.raises(StartTimeoutError, match=r"not connected after 0\.2 s"):
        await manager.start()
    assert processes() == before


@kinds
async def test_O4_a_refused_port_raises_a_connect_error(kind):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        manager = kind(f"http://user:s3cret@127.0.0.1:{unused.getsockname()[1]}/mcp?token=s3cret")
        with pytest.raises(Exception, match="connect") as caught:
            await manager.start()
    assert type(caught.value).__name__ == "ConnectError"
    assert "s3cret" not in f"{manager!r} {caught.value} {caught.value.__notes__}"


@kinds
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.within(20)
# The SDK leaves its generator of server-sent events to the garbage collector, and trio warns about it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_url_is_opened_as_a_streamable_http_server(kind):
    with http_process("streamable-http") as (_, url):
        async with kind(url) as session:
            assert text(await session.call_tool("add", {"a": 1, "b": 2})) == "3"


@kinds
async def test_if_the_transport_crashes_the_connection_is_lost(kind):
    crash = anyio.Event()

    async def work():
        await crash.wait()
        raise OSError("crash")

    @asynccontextmanager
    async def crashing():
        async with (
            StdioConnectionManager(TINY).open_connection() as streams,
            anyio.create_task_group() as tg,
        ):
            tg.start_soon(work)
            yield streams
            tg.cancel_scope.cancel()

    manager = kind(ConnectionManager.from_factory(crashing))
    await manager.start()
    crash.set()
    with pytest.raises(ConnectionLostError) as caught:
        await manager.wait_closed()
    assert str(caught.value.__cause__) == "crash"


@kinds
async def test_the_default_name_shows_the_transport(kind):
    assert kind(TINY).name.startswith(f"{kind.__name__} on StdioConnectionManager(python")
    assert (
        kind("https://u:p@example.org/mcp?token=t#f").name
        == f"{kind.__name__} on https://example.org/mcp"
    )
    assert kind(TINY, name="files").name == "files"


@kinds
async def test_sdk_options_are_accepted(kind):
    messages = []

    async def on_message(message):
        messages.append(message)

    info = mcp.types.Implementation(name="ownertask's tests", version="1")
    manager = kind(TINY, client_info=info, message_handler=on_message, read_timeout_seconds=5)
    async with manager as session:
        assert text(await session.call_tool("process_id", {}))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("seconds", [0.2, timedelta(seconds=0.2)])
async def test_the_read_timeout_can_be_seconds_or_a_timedelta(seconds):
    transport = StdioConnectionManager(MUTE, **SHORT_BOUNDS)
    manager = SessionConnectionManager(transport, read_timeout_seconds=seconds)
    with pytest.raises(ERROR, match="Timed out|timed out"):
        await manager.start()


@kinds
async def test_options_that_the_installed_sdk_does_not_accept_are_rejected(kind):
    for option in ("color", "read_stream", "server"):
        with pytest.raises(TypeError, match=f"unexpected argument '{option}'.* accepts .*client_info"):
            kind(TINY, **{option: 1})
    if not _sdk.HAS_CLIENT:
        with pytest.raises(TypeError, match="unexpected argument 'log_level'"):
            kind(TINY, log_level="info")


@kinds
@pytest.mark.parametrize(
    ("transport", "error", "match"),
    [
        (
            1,
            TypeError,
            "must be a ConnectionManager, a function .*, a URL or an SDK server, not int",
        ),
        ("ftp://example.org", ValueError, "transport must be a URL that starts with http"),
        (
            "python server.py",
            ValueError,
            "starts with http.*; for a command, pass StdioServerParameters",
        ),
        ("http://", ValueError, "transport must be a URL that starts with http"),
    ],
)
def test_an_invalid_transport_is_rejected(kind, transport, error, match):
    with pytest.raises(error, match=match):
        kind(transport)


@kinds
def test_a_reconnect_policy_and_a_watch_function_can_be_passed(kind):
    async def watch(connection):
        pass

    assert (kind(TINY).reconnect, kind(TINY).watch) == (None, None)
    policy = ReconnectPolicy(max_retries=3)
    manager = kind(TINY, reconnect=policy, watch=watch)
    for twin in (manager, copy.copy(manager)):
        assert (twin.reconnect, twin.watch) == (policy, watch)
        assert (twin.transport.reconnect, twin.transport.watch) == (None, None)


@kinds
def test_a_subclass_can_define_a_policy_and_a_method_watch(kind):
    class Restless(kind):
        reconnect = ReconnectPolicy(max_retries=3)

        async def watch(self, connection):
            pass

    manager = Restless(TINY)
    assert manager.reconnect is Restless.reconnect
    assert manager.watch.__self__ is manager
    assert Restless(TINY, watch=len).watch is len


@kinds
@pytest.mark.parametrize(("argument", "value"), [("reconnect", 3), ("watch", "watch")])
def test_an_invalid_policy_is_rejected(kind, argument, value):
    with pytest.raises(TypeError, match=rf"^{argument} must be .*, not "):
        kind(TINY, **{argument: value})


@kinds
def test_an_invalid_start_timeout_is_rejected(kind):
    with pytest.raises(ValueError, match="start_timeout must be"):
        kind(TINY, start_timeout=-1)
    assert kind(TINY, start_timeout=None).start_timeout is None
    assert kind(TINY).start_timeout == 60


@only_2
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_mode_of_a_client_can_be_set(mode, forked):
    async with ClientConnectionManager(SDK, mode=mode) as client:
        assert text(await client.call_tool("add", {"a": 1, "b": 2})) == "3"
        assert (client.protocol_version >= "2026") == (mode == "auto")


@only_2
def test_the_constructor_rejects_option_values_that_the_client_rejects():
    with pytest.raises(ValueError, match="mode must be"):
        ClientConnectionManager(TINY, mode="nonsense")


@only_2
def test_the_target_of_a_cache_is_the_url_without_credentials():
    cache = CacheConfig(store=InMemoryResponseCacheStore(), partition="tests")
    manager = ClientConnectionManager("http://u:p@example.org/mcp?q=1", cache=cache)
    assert manager.options["cache"].target_id == "http://example.org/mcp?q=1"
    assert ClientConnectionManager(TINY, cache=None).options["cache"] is None
    with pytest.raises(ValueError, match="target_id"):
        ClientConnectionManager(TINY, cache=cache)


@pytest.mark.skipif(_sdk.HAS_CLIENT, reason="mcp 2.x has a Client")
def test_client_connection_manager_raises_on_mcp_1():
    with pytest.raises(
        RuntimeError, match="requires mcp 2 or newer, but mcp 1.* SessionConnectionManager"
    ):
        ClientConnectionManager(TINY)


async def test_the_transport_cannot_be_started_while_its_session_is_open():
    transport = StdioConnectionManager(TINY)
    async with SessionConnectionManager(transport):
        assert transport.state is ConnectionState.NEW
        with pytest.raises(RuntimeError, match="part of SessionConnectionManager"):
            await transport.start()


class SlottedSessionManager(SessionConnectionManager):
    __slots__ = ("label",)


class SlottedClientManager(ClientConnectionManager):
    __slots__ = ("label",)


SLOTTED = {
    SessionConnectionManager: SlottedSessionManager,
    ClientConnectionManager: SlottedClientManager,
}


def pickled(manager):
    return pickle.loads(pickle.dumps(manager))


@kinds
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize("transport", ["parameters", "a factory", "slots"])
@pytest.mark.within(20)
async def test_F25_a_copy_of_an_open_manager_works_without_the_original(kind, duplicate, transport):
    if transport == "slots":
        kind = SLOTTED[kind]
    manager = kind(
        ConnectionManager.from_factory(memory_transport) if transport == "a factory" else TINY,
        name="tiny",
    )
    if transport == "slots":
        manager.label = "a"
    async with manager:
        copied = duplicate(manager)
        assert getattr(copied, "label", None) == getattr(manager, "label", None)
        assert copied.state is ConnectionState.NEW
        async with copied as session:
            await session.list_tools()
            again = duplicate(copied)
            async with again as third:
                await third.list_tools()
        assert copied.state is ConnectionState.CLOSED
        await manager.connection.list_tools()
    async with copied as session:  # while the original is not open
        await session.list_tools()
    assert copied.transport is not manager.transport
    assert copied.name == manager.name
    assert copied.options == manager.options
