"""Tests for the reconnect policy with real servers, which are killed while many tasks call them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from conftest import BACKENDS
from forked_python import forking
from http_failures import ssl_context
from http_server import http_server
from mcp import StdioServerParameters
from reopening import Call
from servers import python_server, stdio_server
from session_server import FAILURES, SessionServer, in_turn, said, status

from ownertask import (
    ConnectionLostError,
    ConnectionState,
    ConnectionStoppedError,
    NotConnectedError,
    ReconnectPolicy,
    StartTimeoutError,
)
from ownertask.mcp import (
    ClientConnectionManager,
    SessionConnectionManager,
    SseConnectionManager,
    StdioConnectionManager,
    StreamableHttpConnectionManager,
    WebSocketConnectionManager,
    _sdk,
)

HERE = Path(__file__).parent
SERVERS = HERE / "servers"
SOON = ReconnectPolicy(initial_delay=0.01, max_delay=0.1, jitter=0)
CALLERS = 20

QUICK = ["asyncio", "trio"]
"""The debug mode of asyncio, which other tests use, is slow if there are many calls."""

needs_client = pytest.mark.skipif(not _sdk.HAS_CLIENT, reason="mcp 1.x has no Client")

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="the tests use signals of POSIX"),
    # The SDK leaves its SSE generator, and mcp 1.24 also some streams, to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.within(30),
]
backends = pytest.mark.parametrize("anyio_backend", QUICK)
every_backend = pytest.mark.parametrize("anyio_backend", [*QUICK, *BACKENDS[2:]])


class Ledger:
    """The file in which the servers record the calls that reached them."""

    def __init__(self, path):
        self.path = path

    def __str__(self):
        return str(self.path)

    @property
    def lines(self):
        """The process id and the id of the call, for each call that reached a server."""
        return [tuple(line.split()) for line in self.path.read_text().splitlines()]

    @property
    def call_ids(self):
        return [call_id for _, call_id in self.lines]

    @property
    def process_ids(self):
        return {process_id for process_id, _ in self.lines}


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


class Callers:
    """Tasks that call a server through `current`, one call after another, until `finish()`.

    Attributes:
        answers: The text of the answer to each call that was answered.
        errors: The exception of each call that failed.
        cancelled: The calls that were cancelled.
        tool: The tool that they call.
    """

    def __init__(self, manager, name="caller", count=CALLERS):
        self.call_tool = manager.current.call_tool  # looked up once, as a framework does
        self.name = name
        self.answers = {}
        self.errors = {}
        self.cancelled = []
        self.made = 0
        self.tool = "answer"
        self._holding = set()
        self._failed_before = 0
        self._answered = dict.fromkeys(range(count), 0)
        self._is_finished = False
        self._changed = anyio.Event()

    def begin(self, task_group):
        for number in self._answered:
            task_group.start_soon(self._call_in_turn, number)

    def finish(self):
        self._is_finished = True

    async def _call_in_turn(self, number):
        while not self._is_finished:
            self.made += 1
            if self.tool == "hold":
                self._holding.add(number)
                self._has_changed()
            await self._call(number, f"{self.name}-{number}-{self.made}")

    async def _call(self, number, call_id):
        try:
            result = await self.call_tool(self.tool, {"id": call_id})
        except Exception as error:
            self.errors[call_id] = error
            await checkpoint()  # a call that is refused at once does not wait for anything
        except anyio.get_cancelled_exc_class():
            self.cancelled.append(call_id)
            raise
        else:
            self.answers[call_id] = text(result)
            self._answered[number] += 1
        self._has_changed()

    def _has_changed(self):
        self._changed.set()
        self._changed = anyio.Event()

    async def each_answered(self):
        """Waits until each caller has received another answer."""
        before = self._answered.copy()
        while any(self._answered[number] == before[number] for number in before):
            await self._changed.wait()

    async def all_hold(self):
        """Waits until each caller waits for an answer that will not come."""
        self.tool = "hold"
        while len(self._holding) < len(self._answered):
            await self._changed.wait()
        await wait_all_tasks_blocked()
        self._holding.clear()
        self.tool = "answer"
        self._failed_before = len(self.errors)

    async def all_failed(self):
        """Waits until each of the calls after `all_hold()` has failed."""
        while len(self.errors) < self._failed_before + len(self._answered):
            await self._changed.wait()

    def check(self, ledger, is_expected):
        """Checks that each call was sent at most once, and was answered or failed on its own."""
        assert self.cancelled == []
        assert len(self.answers) + len(self.errors) == self.made
        for call_id, text in self.answers.items():
            assert text == f"answer to {call_id}"
        assert all(is_expected(error) for error in self.errors.values()), self.errors
        assert len({id(error) for error in self.errors.values()}) == len(self.errors)
        assert len(set(ledger.call_ids)) == len(ledger.call_ids)
        assert self.answers.keys() <= set(ledger.call_ids)


def text(result):
    return result.content[0].text


def names_the_loss(error):
    if isinstance(error, ConnectionLostError):
        return True
    notes = getattr(error, "__notes__", ())
    return any("lost its connection during this call" in note for note in notes)


def names_what_broke(error):
    """Returns `True` also for a request that failed alone, before the loss was known."""
    broken = r"(Read|Connect|Protocol)Error|Connection closed|(Closed|Broken)Resource"
    return names_the_loss(error) or re.search(broken, repr(error)) is not None


class Openings:
    """Counts the openings of a manager, through a listener."""

    def __init__(self, manager):
        self.count = 0
        self._changed = anyio.Event()
        manager.add_listener(self._listen)

    def _listen(self, manager, old, new):
        if new is ConnectionState.OPEN:
            self.count += 1
            self._changed.set()
            self._changed = anyio.Event()

    async def reached(self, count):
        while self.count < count:
            await self._changed.wait()


async def kill_under_callers(manager, count, kill):
    """Kills the server again and again while twenty callers use it, and returns the callers.

    At each second time, no answer is on its way: the server holds all calls.

    Args:
        manager: The manager.
        count: How often to kill the server.
        kill: Kills the server, awaits the function that it is given, and restarts the server.
    """
    openings = Openings(manager)
    await manager.start()
    callers = Callers(manager)

    async def nothing():
        pass

    async with anyio.create_task_group() as tg:
        callers.begin(tg)
        for number in range(count):
            await callers.each_answered()
            if number % 2:
                await callers.all_hold()
            await kill(callers.all_failed if number % 2 else nothing)
            await openings.reached(number + 2)
        await callers.each_answered()
        callers.finish()
    await manager.stop()
    return callers


async def kill_stdio_server(manager, count, ledger):
    async def kill(killed):
        os.kill(manager.transport.pid, signal.SIGKILL)
        await killed()

    callers = await kill_under_callers(manager, count, kill)
    callers.check(ledger, names_the_loss)
    assert len(ledger.process_ids) == count + 1
    # A caller whose call failed waits for the next server, so it loses no more than one call.
    assert CALLERS * count / 2 <= len(callers.errors) <= CALLERS * count


@every_backend
async def test_K1_a_server_that_is_killed_ten_times_under_twenty_callers(ledger):
    server = stdio_server(SERVERS / "ledger.py", str(ledger))
    await kill_stdio_server(SessionConnectionManager(server, reconnect=SOON), 10, ledger)


@needs_client
@backends
async def test_K1_the_same_with_a_client(ledger):
    server = stdio_server(SERVERS / "ledger.py", str(ledger))
    await kill_stdio_server(ClientConnectionManager(server, reconnect=SOON), 4, ledger)


@every_backend
async def test_K1_a_caller_keeps_the_session_and_a_method_across_three_restarts(ledger):
    manager = SessionConnectionManager(stdio_server(SERVERS / "ledger.py", str(ledger)), reconnect=SOON)
    session = manager.current
    call = session.call_tool
    await manager.start()
    for restart in range(3):
        for method in (call, session.call_tool):
            call_id = f"{restart}-{method is call}"
            assert text(await method("answer", {"id": call_id})) == f"answer to {call_id}"
        with pytest.raises(Exception) as caught:
            await call("exit", {"id": f"exit-{restart}"})
        assert names_the_loss(caught.value)
        assert "status 3" in said(caught.value)
    assert text(await call("answer", {"id": "last"})) == "answer to last"
    assert len(ledger.process_ids) == 4
    assert manager.current is session
    await manager.stop()
    with pytest.raises(NotConnectedError):
        await call("answer", {"id": "late"})


# Over the network


class NetworkServer:
    """A server in a process of its own. It can be killed, and restarted on its port."""

    def __init__(self, ledger):
        self.ledger = ledger
        # A bound socket that does not listen reserves the port, which refuses connections.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port = self._reserved.getsockname()[1]
        self._process = None

    def __enter__(self):
        return self

    def __exit__(self, *args):
        if self._process is not None:
            self.kill()
        self._reserved.close()

    def start(self):
        """Starts the process. The port stays closed."""
        self._process = subprocess.Popen(
            [sys.executable, SERVERS / "ledger_server.py", str(self.ledger), str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def open_port(self):
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == b"open\n"

    def kill(self):
        self._process.kill()
        self._process.communicate()

    def start_and_open(self):
        self.start()
        self.open_port()


WEBSOCKETS = int(version("websockets").partition(".")[0])

TRANSPORTS = {
    "streamable HTTP": lambda port: f"http://127.0.0.1:{port}/mcp",
    "SSE": lambda port: SseConnectionManager(f"http://127.0.0.1:{port}/sse"),
    "WebSocket": lambda port: WebSocketConnectionManager(f"ws://127.0.0.1:{port}/ws", proxy=None),
}


@backends
@pytest.mark.parametrize(
    ("transport", "kills"), [("streamable HTTP", 3), ("SSE", 2), ("WebSocket", 2)], ids=TRANSPORTS
)
async def test_K1_a_server_on_the_network_that_is_killed_under_twenty_callers(
    transport, kills, ledger, anyio_backend_name
):
    if transport == "WebSocket" and anyio_backend_name == "trio" and WEBSOCKETS < 17:
        pytest.skip("websockets has a client for trio since version 17")

    async def kill(killed):
        await anyio.to_thread.run_sync(server.kill)
        await killed()
        await anyio.to_thread.run_sync(server.start_and_open)

    with NetworkServer(ledger) as server:
        server.start_and_open()
        manager = SessionConnectionManager(TRANSPORTS[transport](server.port), reconnect=SOON)
        callers = await kill_under_callers(manager, kills, kill)
    callers.check(ledger, names_what_broke)
    assert len(ledger.process_ids) == kills + 1


@backends
async def test_P5_a_session_that_the_server_forgot_is_replaced(ledger):
    with NetworkServer(ledger) as server:
        server.start_and_open()
        manager = SessionConnectionManager(TRANSPORTS["streamable HTTP"](server.port), reconnect=SOON)
        openings = Openings(manager)
        call = manager.current.call_tool
        old = await manager.start()
        assert text(await call("answer", {"id": "1"})) == "answer to 1"
        async with _sdk.http.AsyncClient() as client:
            await client.post(f"http://127.0.0.1:{server.port}/forget")
        with pytest.raises(Exception, match=r"404|Session terminated|Connection closed"):
            await call("answer", {"id": "2"})
        await openings.reached(2)
        assert text(await call("answer", {"id": "3"})) == "answer to 3"
        assert manager.connection is not old
        await manager.stop()
    assert ledger.call_ids == ["1", "3"]


# A server that is away


class CountedHttp(StreamableHttpConnectionManager):
    """Records when each attempt began."""

    attempts = ()

    def open_connection(self):
        self.attempts = (*self.attempts, anyio.current_time())
        return super().open_connection()


class CountedStdio(StdioConnectionManager):
    attempts = ()

    def open_connection(self):
        self.attempts = (*self.attempts, anyio.current_time())
        return super().open_connection()


class Delays:
    """Records the delay before each attempt of a manager, through a listener.

    Attributes:
        failures: What `reconnecting` showed after each failure.
    """

    def __init__(self, manager, after_failure=None):
        self.failures = []
        self._ends = []
        self._after_failure = after_failure
        manager.add_listener(self._listen)

    # An exception that a listener raises is only logged.
    def _listen(self, manager, old, new):
        if old is ConnectionState.FAILED:
            self.failures.append(manager.reconnecting)
            self._ends.append(anyio.current_time())
            if self._after_failure is not None:
                self._after_failure(len(self.failures))

    def check(self, manager):
        """Checks that each failure was followed by one attempt, after the delay of the policy."""
        attempts = manager.transport.attempts
        assert len(attempts) == len(self.failures) + 1
        assert [failure.failures for failure in self.failures] == list(range(1, len(attempts)))
        for number, failure in enumerate(self.failures, 1):
            delay = manager.reconnect.delay_after(number)
            assert attempts[number - 1] + delay <= failure.due <= self._ends[number - 1] + delay
            assert attempts[number] >= failure.due


@backends
async def test_K4_a_port_that_opens_late_is_connected_by_the_next_attempt(ledger):
    def open_port(failures):
        if failures == 6:
            server.open_port()

    with NetworkServer(ledger) as server:
        server.start()
        manager = SessionConnectionManager(
            CountedHttp(TRANSPORTS["streamable HTTP"](server.port)),
            reconnect=ReconnectPolicy(initial_delay=0.01, max_delay=0.1, jitter=0),
        )
        delays = Delays(manager, open_port)
        session = await manager.start()
        assert len(delays.failures) == 6
        delays.check(manager)
        assert text(await session.call_tool("answer", {"id": "1"})) == "answer to 1"
        await manager.stop()


@backends
async def test_K4_waiting_for_the_next_attempt_costs_no_cpu():
    with NetworkServer(None) as server:
        manager = SessionConnectionManager(
            TRANSPORTS["streamable HTTP"](server.port), reconnect=ReconnectPolicy(initial_delay=20)
        )
        failed = anyio.Event()
        manager.add_listener(lambda _manager, old, _new: old is ConnectionState.FAILED and failed.set())
        async with anyio.create_task_group() as tg:
            call = Call(tg, manager.start)
            await failed.wait()
            await wait_all_tasks_blocked()
            before = time.process_time()
            await anyio.sleep(1)
            assert time.process_time() - before < 0.2
            await manager.stop()
        assert isinstance(call.error, ConnectionStoppedError)


@backends
async def test_K4_if_the_host_is_mistyped_the_timeout_of_start_says_so():
    manager = SessionConnectionManager(CountedHttp("http://ownertask.invalid/mcp"), reconnect=SOON)
    with pytest.raises(StartTimeoutError) as caught:
        await manager.start(1)
    assert "the last failure was: " in str(caught.value)
    assert str(caught.value.__cause__) in str(caught.value)
    assert isinstance(caught.value.__cause__, _sdk.http.ConnectError)
    assert len(manager.transport.attempts) > 1
    assert manager.state is ConnectionState.FAILED


# Failures that trying again cannot fix


class Untrusting:
    """Creates HTTP clients, of which only the first `trusted` trust any certificate."""

    def __init__(self, trusted):
        self.left = trusted

    def __call__(self, headers=None, timeout=None, auth=None):
        self.left -= 1
        return _sdk.http.AsyncClient(headers=headers, timeout=timeout, auth=auth, verify=self.left < 0)


@asynccontextmanager
async def missing_command(openings, tmp_path):
    command = tmp_path / "server"
    if openings:
        command.write_text(f"#!/bin/sh\nexec {sys.executable} {SERVERS / 'tiny.py'}\n")
        command.chmod(0o755)
    manager = SessionConnectionManager(CountedStdio(StdioServerParameters(command=str(command))))

    async def lose():
        command.unlink()
        os.kill(manager.transport.pid, signal.SIGKILL)

    yield manager, lose


def forgetful(openings, *refusals):
    """Returns a server that forgets its session at the first call, and refuses the later ones."""
    server = SessionServer(**{"tools/call": status("404 Not Found")})
    server.answers["initialize"] = in_turn(*[server.answer] * openings, *refusals or [server.answer])
    return server


@asynccontextmanager
async def over_http(server, tls=None, **options):
    async with http_server(server, tls) as url:
        manager = SessionConnectionManager(CountedHttp(url, **options))

        async def lose():
            with pytest.raises(FAILURES):
                await manager.current.call_tool("add", {})

        yield manager, lose


def unauthorized(openings, tmp_path):
    return over_http(forgetful(openings, status("401 Unauthorized")))


def untrusted_certificate(openings, tmp_path):
    return over_http(forgetful(1), ssl_context(), httpx_client_factory=Untrusting(openings))


PERMANENT = {
    missing_command: "No such file",
    unauthorized: "401",
    untrusted_certificate: "certificate verify failed",
}
permanent = pytest.mark.parametrize("setting", PERMANENT, ids=lambda setting: setting.__name__)


@backends
@permanent
async def test_K5_a_permanent_failure_is_raised_at_once(setting, tmp_path):
    async with setting(0, tmp_path) as (manager, _):
        manager.reconnect = SOON
        with pytest.raises(Exception) as caught:
            await manager.start()
    assert PERMANENT[setting] in said(caught.value)
    assert len(manager.transport.attempts) == 1
    assert manager.state is ConnectionState.FAILED


@backends
@permanent
async def test_K5_a_permanent_failure_ends_the_attempts_to_reopen(setting, tmp_path):
    async with setting(1, tmp_path) as (manager, lose):
        manager.reconnect = SOON
        await manager.start()
        await lose()
        with pytest.raises(Exception) as caught:
            await manager.wait_closed()
        assert PERMANENT[setting] in said(caught.value)
        assert len(manager.transport.attempts) == 2
        assert manager.state is ConnectionState.FAILED
        assert manager.reconnecting is None
        for use in (manager.wait_open, manager.current.list_tools):
            with pytest.raises((NotConnectedError, ConnectionLostError)) as caught:
                await use()
            assert PERMANENT[setting] in said(caught.value)


# A crash loop

CRASHING = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message["method"] != "initialize":
        sys.exit(3)  # right after the handshake
    result = {"protocolVersion": message["params"]["protocolVersion"], "capabilities": {},
              "serverInfo": {"name": "crashing", "version": "1"}}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


@backends
async def test_K6_a_crash_loop_beside_healthy_connections(ledger, caplog):
    server = stdio_server(SERVERS / "ledger.py", str(ledger))
    healthy = [SessionConnectionManager(server, name=name, reconnect=SOON) for name in ("a", "b")]
    crashing = SessionConnectionManager(
        CountedStdio(python_server(CRASHING)),
        name="crashing",
        reconnect=ReconnectPolicy(initial_delay=0.03, multiplier=4, jitter=0, max_retries=3),
    )
    delays = Delays(crashing)
    async with healthy[0], healthy[1], anyio.create_task_group() as tg:
        callers = [Callers(manager, manager.name, 3) for manager in healthy]
        for some in callers:
            some.begin(tg)
        with suppress(ConnectionLostError):  # it may be open for a moment
            await crashing.start()
        with pytest.raises(ConnectionLostError, match="status 3"):
            await crashing.wait_closed()
        for some in callers:
            await some.each_answered()
            some.finish()
    delays.check(crashing)
    assert len(delays.failures) == 3
    assert crashing.state is ConnectionState.FAILED
    assert [some.errors for some in callers] == [{}, {}]
    assert len(ledger.process_ids) == 2
    assert "crashing: the connection was lost" in caplog.text
    assert "a: the connection" not in caplog.text


@backends
@pytest.mark.parametrize("kind", [SessionConnectionManager, pytest.param("Client", marks=needs_client)])
async def test_K1_a_watch_function_that_raises_causes_a_reconnect(kind, ledger):
    watching = []
    kind = ClientConnectionManager if kind == "Client" else kind

    async def watch(session):
        watching.append(session)
        if len(watching) <= 3:
            await manager.current.call_tool("answer", {"id": len(watching)})
            raise LookupError(f"watch {len(watching)}")
        await anyio.sleep_forever()

    manager = kind(
        CountedStdio(stdio_server(SERVERS / "ledger.py", str(ledger))), reconnect=SOON, watch=watch
    )
    openings, delays = Openings(manager), Delays(manager)
    await manager.start()
    await openings.reached(4)
    await manager.current.call_tool("answer", {"id": 4})
    assert watching[-1] is manager.connection
    assert [repr(failure.exception.__cause__) for failure in delays.failures] == [
        f"LookupError('watch {number}')" for number in (1, 2, 3)
    ]
    assert ledger.call_ids == ["1", "2", "3", "4"]
    assert len(ledger.process_ids) == 4
    await manager.stop()


# The end of the program


@pytest.mark.parametrize(
    ("backend", "end", "phase"),
    [
        ("asyncio", "return", "delay"),
        ("asyncio", "return", "attempt"),
        ("asyncio", "interrupt", "attempt"),
        ("trio", "return", "attempt"),
        ("trio", "interrupt", "delay"),
    ],
)
def test_K8_a_program_that_ends_while_reopening_leaves_no_server(backend, end, phase):
    with forking():
        process = subprocess.Popen(
            [sys.executable, HERE / "ended_while_reopening.py", backend, end, phase],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    with process:
        try:
            servers = [int(process.stdout.readline()) for _ in range(1 if phase == "delay" else 2)]
            assert process.stdout.readline() == f"{phase}\n"
            if end == "interrupt":
                process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode == 0) is (end == "return"), errors
    assert ("KeyboardInterrupt" in errors) is (end == "interrupt"), errors
    assert "Attempted to exit" not in errors
    assert "never awaited" not in errors
    assert "could not be stopped" not in errors
    assert "ResourceWarning" not in errors
    for server in servers:
        with pytest.raises(ProcessLookupError):
            os.kill(server, 0)
