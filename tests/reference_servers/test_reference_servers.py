"""Starts, calls, kills and stops servers that others wrote."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from mcp import types
from reference_servers.catalog import DIRECT, NPM, STARTED_BY, command, parameters, use

from ownertask import ConnectionGroup, ConnectionState, ReconnectPolicy
from ownertask.mcp import (
    ClientConnectionManager,
    ServerExitedError,
    SessionConnectionManager,
    SseConnectionManager,
    StdioConnectionManager,
    StreamableHttpConnectionManager,
    _sdk,
)

if "OWNERTASK_REFERENCE_SERVERS" not in os.environ:
    pytest.skip("`nox -s servers` installs the servers", allow_module_level=True)

ONCE = ReconnectPolicy(initial_delay=0, jitter=0, max_retries=1)
SOON = ReconnectPolicy(initial_delay=0.01, max_delay=0.1, jitter=0)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the tests read /proc"),
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
    pytest.mark.within(120),
    # The SDK leaves its SSE generator to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

KINDS = [SessionConnectionManager, *([ClientConnectionManager] if _sdk.HAS_CLIENT else [])]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_server = pytest.mark.parametrize(("name", "way"), STARTED_BY)

KILLED = [(*server, "server") for server in STARTED_BY]
KILLED += [(name, way, "launcher") for name, way in STARTED_BY if way not in DIRECT]


@pytest.fixture
def record(record_property, anyio_backend_name):
    """Counts the test in the results."""

    def record(name, transport, way):
        record_property("case", f"{name}, {transport}, {way}, {anyio_backend_name}")

    return record


def processes(group_id):
    """Returns the ids of the processes of a group, each after its parent."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, fields = file.read_text().rpartition(") ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        _, parent, group, *_ = fields.split()
        if int(group) == group_id:
            found[int(file.parent.name)] = int(parent)
    ordered = [group_id] if group_id in found else []
    for process in ordered:
        ordered += [child for child, parent in found.items() if parent == process]
    return ordered + sorted(found.keys() - set(ordered))


class Openings:
    """Records what a manager announces.

    Attributes:
        causes: The cause of each loss.
    """

    def __init__(self, manager):
        self.manager = manager
        self.causes = []
        self._opened, self._lost = anyio.Event(), anyio.Event()
        manager.add_listener(self._listen)

    def _listen(self, manager, old, new):
        if new is ConnectionState.FAILED and old is ConnectionState.CLOSING:
            self.causes.append(manager.reconnecting.exception.__cause__)
            self._lost.set()
        if new is ConnectionState.OPEN:
            self._opened.set()

    def expect(self):
        """Forgets earlier openings, before a kill."""
        self._opened, self._lost = anyio.Event(), anyio.Event()

    async def lost(self):
        await self._lost.wait()

    async def again(self):
        await self._opened.wait()


async def in_another_task(function):
    async with anyio.create_task_group() as tg:
        tg.start_soon(function)


async def check(session, call):
    """Calls a tool, and checks the answer."""
    assert call.tool in {tool.name for tool in (await session.list_tools()).tools}
    assert call.answer in (await session.call_tool(call.tool, call.arguments)).content[0].text


# Over stdio


@each_kind
@pytest.mark.parametrize(("name", "way", "victim"), KILLED)
async def test_a_killed_server_is_replaced_and_nothing_is_left(
    kind, name, way, victim, tmp_path, page, record
):
    server = use(name, tmp_path, page)
    transport = StdioConnectionManager(parameters(name, way, tmp_path, *server.arguments))
    manager = kind(transport, reconnect=ONCE)
    openings = Openings(manager)
    await in_another_task(manager.start)
    await check(manager.connection, server.call)

    first = transport.pid
    before = processes(first)
    assert before[0] == first
    assert (len(before) == 1) == (way in DIRECT)
    openings.expect()
    os.kill(before[0] if victim == "launcher" else before[-1], signal.SIGKILL)
    await openings.again()
    assert not processes(first)
    (cause,) = openings.causes
    assert isinstance(cause, ServerExitedError)
    # As a shell does, both launchers exit with 128 plus the number of the signal.
    is_direct = way in DIRECT or victim == "launcher"
    assert cause.returncode == (-signal.SIGKILL if is_direct else 128 + signal.SIGKILL)
    if name in NPM:
        assert "erver" in cause.stderr_tail  # each of them writes a line when it starts
        assert cause.stderr_tail in cause.__notes__[0]

    await check(manager.current, server.later)
    second = transport.pid
    await in_another_task(manager.stop)
    assert not processes(second)
    assert len(openings.causes) == 1
    record(name, "stdio", way)


@each_server
async def test_each_server_and_launcher_exits_on_its_own_when_stdin_is_closed(
    name, way, tmp_path, page, record
):
    """Nothing but the end of stdin ends a process here."""
    server = use(name, tmp_path, page)
    transport = StdioConnectionManager(
        parameters(name, way, tmp_path, *server.arguments), exit_timeout=None, keep_children=True
    )
    manager = SessionConnectionManager(transport)
    async with manager as session:
        await check(session, server.call)
        group_id = transport.pid
        assert processes(group_id)
    assert transport.returncode == 0
    assert not processes(group_id)
    record(name, "stdio", way)


@each_kind
async def test_a_group_of_all_servers_survives_the_end_of_each(kind, tmp_path, page, record):
    uses, members = {}, {}
    for name, way in STARTED_BY:
        if way in DIRECT and name not in uses:
            folder = tmp_path / name
            folder.mkdir()
            uses[name] = use(name, folder, page)
            server = parameters(name, way, folder, *uses[name].arguments)
            members[name] = kind(server, reconnect=ONCE, name=name)
    openings = {name: Openings(manager) for name, manager in members.items()}
    group = ConnectionGroup(members, strict=True, member_timeout=60)
    await in_another_task(group.start)
    assert group.connection.keys() == uses.keys()
    for name, session in group.connection.items():
        await check(session, uses[name].call)

    pids = [manager.transport.pid for manager in members.values()]
    for opening in openings.values():
        opening.expect()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for name, opening in openings.items():
        await opening.again()
        (cause,) = opening.causes
        assert cause.returncode == -signal.SIGKILL
        await check(members[name].current, uses[name].later)
    pids += [manager.transport.pid for manager in members.values()]
    await in_another_task(group.stop)
    assert not any(map(processes, pids))
    record("all at once", "stdio", "directly")


# Over each transport


class WebServer:
    """The server `everything` on a port of this machine."""

    def __init__(self, transport, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.output = folder / "output"
        self._command = [*command("everything", "node"), transport]
        self._process = None

    def start(self):
        with self.output.open("a") as output:
            self._process = subprocess.Popen(
                self._command,
                env=os.environ | {"PORT": str(self.port)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert any(re.search(r"on port \d+", line) for line in self._process.stderr)

    def kill(self):
        self._process.kill()
        self._process.communicate()


class Everything:
    """The server `everything`, and a transport to it."""

    def __init__(self, way, folder):
        self._web = None
        if way == "streamable HTTP":
            self._web = WebServer("streamableHttp", folder)
            self.transport = StreamableHttpConnectionManager(f"http://127.0.0.1:{self._web.port}/mcp")
        elif way == "SSE":
            self._web = WebServer("sse", folder)
            self.transport = SseConnectionManager(f"http://127.0.0.1:{self._web.port}/sse")
        else:
            self.transport = StdioConnectionManager(parameters("everything", way, folder))
        self.case = ("everything", way, "node") if self._web else ("everything", "stdio", way)

    def __enter__(self):
        self.restart()
        return self

    def __exit__(self, *args):
        if self._web:
            self._web.kill()

    def kill(self):
        if self._web:
            self._web.kill()
        else:
            os.kill(processes(self.transport.pid)[-1], signal.SIGKILL)

    def restart(self):
        """Starts the server, except over stdio, where the manager starts it."""
        if self._web:
            self._web.start()

    def check_that_the_session_ended(self):
        if isinstance(self.transport, StreamableHttpConnectionManager):
            assert "Received session termination request" in self._web.output.read_text()


each_way = pytest.mark.parametrize("way", ["node", "npx", "streamable HTTP", "SSE"])


@each_kind
@pytest.mark.parametrize("way", ["streamable HTTP", "SSE"])
async def test_a_server_that_is_restarted_on_its_port_is_connected_to_again(
    kind, way, tmp_path, page, record
):
    call = use("everything", tmp_path, page).call
    with Everything(way, tmp_path) as server:
        manager = kind(server.transport, reconnect=SOON)
        openings = Openings(manager)
        await in_another_task(manager.start)
        await check(manager.connection, call)
        openings.expect()
        await anyio.to_thread.run_sync(server.kill)
        await openings.lost()  # although nothing calls it
        await anyio.to_thread.run_sync(server.restart)
        await openings.again()
        assert re.search("Read|Connect|Protocol|Connection", repr(openings.causes[0]))
        await check(manager.current, call)
        await in_another_task(manager.stop)
        server.check_that_the_session_ended()
    record(*server.case)


@each_kind
@each_way
async def test_a_call_fails_at_once_when_the_server_is_killed(kind, way, tmp_path, page, record):
    """The call would take an hour. The server reports its progress until then."""
    call = use("everything", tmp_path, page).call
    errors = []
    with Everything(way, tmp_path) as server:
        manager = kind(server.transport, reconnect=SOON)
        openings = Openings(manager)
        await manager.start()
        openings.expect()
        progressed = anyio.Event()

        async def note(progress, total, message):
            progressed.set()

        async def call_for_an_hour():
            arguments = {"duration": 3600, "steps": 36000}
            with pytest.raises(Exception) as caught:
                await manager.current.call_tool(
                    "trigger-long-running-operation", arguments, progress_callback=note
                )
            errors.append(caught.value)

        async with anyio.create_task_group() as tg:
            tg.start_soon(call_for_an_hour)
            await progressed.wait()
            await anyio.to_thread.run_sync(server.kill)
        await anyio.to_thread.run_sync(server.restart)
        await openings.again()
        await check(manager.current, call)
        await manager.stop()
    (error,) = errors
    assert "lost its connection during this call: " in error.__notes__[-1]
    record(*server.case)


@each_kind
@each_way
@pytest.mark.filterwarnings("ignore:The sampling capability is deprecated")
async def test_requests_of_the_server_are_answered_before_and_after_it_is_killed(
    kind, way, tmp_path, record
):
    asked = []

    async def answer(context, parameters):
        asked.append(parameters.messages[0].content.text)
        content = types.TextContent(type="text", text="the answer of a model")
        return types.CreateMessageResult(role="assistant", content=content, model="none")

    async def ask(session, prompt):
        result = await session.call_tool("trigger-sampling-request", {"prompt": prompt})
        assert "the answer of a model" in result.content[0].text

    with Everything(way, tmp_path) as server:
        manager = kind(server.transport, reconnect=SOON, sampling_callback=answer)
        openings = Openings(manager)
        await ask(await manager.start(), "first")
        openings.expect()
        await anyio.to_thread.run_sync(server.kill)
        await anyio.to_thread.run_sync(server.restart)
        await openings.again()
        await ask(manager.current, "second")
        await manager.stop()
    assert [re.search("first|second", text)[0] for text in asked] == ["first", "second"]
    record(*server.case)
