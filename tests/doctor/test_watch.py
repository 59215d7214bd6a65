"""`ownertask watch`: in this process with scripted connections, and as a command with real servers."""

import errno
import io
import json
import logging
import os
import re
import signal
import sys
import threading

import anyio
import pytest
from anyio.lowlevel import checkpoint
from doctor import shell
from doctor.calls import serving
from doctor.shell import rendered
from proof.clocks import in_virtual_time
from session_server import SessionServer

from ownertask import ConnectionState, ReconnectPolicy
from ownertask._doctor.arguments import Arguments
from ownertask._doctor.interrupts import Interrupts
from ownertask._doctor.masking import Mask
from ownertask._doctor.output import OutputError, Screen
from ownertask._doctor.targets import mask_for, targets_from_config
from ownertask._doctor.watch import keep_open, watch
from ownertask.testing import ScriptedConnectionManager, ScriptedRun

POLICY = ReconnectPolicy(jitter=0, give_up_on=lambda error: isinstance(error, FileNotFoundError))

ENDED = {ConnectionState.NEW, ConnectionState.CLOSED, ConnectionState.FAILED}

MISSING = ScriptedRun(fails_with=FileNotFoundError("no such command"))
OPEN = ScriptedRun()
REFUSED = ScriptedRun(fails_with=OSError("refused"))


def lost(seconds, text="cut"):
    return ScriptedRun(lost_after=seconds, lost_with=OSError(text))


def servers(**scripts):
    """Returns managers with a policy by name. The value of a name is a run or a list of runs."""
    return {
        name: ScriptedConnectionManager(
            object(), *(runs if isinstance(runs, list) else [runs]), name=name, reconnect=POLICY
        )
        for name, runs in scripts.items()
    }


class Terminal(io.StringIO):
    def isatty(self):
        return True


class BrokenTerminal(Terminal):
    """A terminal that disappears after some writes."""

    def __init__(self, writes):
        super().__init__()
        self.writes = writes

    def write(self, text):
        if self.writes == 0:
            raise OSError(errno.EIO, "Input/output error")
        self.writes -= 1
        return super().write(text)


class Watching:
    """A call of `keep_open()` whose output goes to a text.

    Args:
        managers: The managers.
        stream: The output.
    """

    def __init__(self, managers, stream=None, secrets=()):
        self.managers = managers
        self.stream = io.StringIO() if stream is None else stream
        self.interrupts = Interrupts()
        self.scope = anyio.CancelScope()
        self.screen = Screen(self.stream, Mask(secrets))
        self.is_ok = self.error = None

    async def __call__(self, *, task_status=anyio.TASK_STATUS_IGNORED):
        task_status.started()
        with self.scope:
            try:
                self.is_ok = await keep_open(self.managers, self.screen, self.interrupts)
            except OutputError as error:
                self.error = error

    async def __aenter__(self):
        self.tasks = anyio.create_task_group()
        await self.tasks.__aenter__()
        await self.tasks.start(self)
        return self

    async def __aexit__(self, *exc):
        return await self.tasks.__aexit__(*exc)

    def force(self):
        """Does the same as the second signal."""
        for scope in tuple(self.interrupts._cleanups):
            scope.cancel()

    @property
    def text(self):
        return self.stream.getvalue()

    @property
    def lines(self):
        """The lines without the time."""
        return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in self.text.splitlines()]


async def watched(managers, seconds):
    """Watches servers for a time, and returns the lines."""
    async with Watching(managers) as watching:
        await anyio.sleep(seconds)
        watching.scope.cancel()
    assert watching.is_ok is None
    return watching.lines


@in_virtual_time
async def test_each_change_is_one_line():
    managers = servers(weather=[lost(10, "the server exited with status 3"), REFUSED, OPEN])
    assert await watched(managers, 60) == [
        "weather: opening",
        "weather: open",
        "weather: lost; next attempt in 0.5 s (attempt 2): the server exited with status 3",
        "weather: lost; next attempt in 1 s (attempt 3): refused",
        "weather: open",
        "closing 1 connection",
        "weather: closed",
        "closed",
    ]


@in_virtual_time
async def test_each_line_begins_with_the_time():
    async with Watching(servers(weather=OPEN)) as watching:
        await anyio.sleep(1)
        watching.scope.cancel()
    times = [line for line in watching.text.splitlines() if re.match(r"\d\d:\d\d:\d\d weather: ", line)]
    assert len(times) == 3


@in_virtual_time
async def test_a_server_that_was_never_open_is_not_lost():
    managers = servers(weather=REFUSED)
    assert (await watched(managers, 4))[:4] == [
        "weather: opening",
        "weather: not open; next attempt in 0.5 s (attempt 2): refused",
        "weather: not open; next attempt in 1 s (attempt 3): refused",
        "weather: not open; next attempt in 2 s (attempt 4): refused",
    ]


@in_virtual_time
async def test_an_attempt_that_hangs_is_reported_when_it_ends():
    managers = servers(weather=ScriptedRun(opens_after=anyio.sleep_forever))
    managers["weather"].start_timeout = 60
    assert (await watched(managers, 65))[:2] == [
        "weather: opening",
        "weather: not open; next attempt in 0.5 s (attempt 2): not connected after 60 s",
    ]


@in_virtual_time
async def test_a_long_delay_is_shown_in_whole_seconds():
    managers = servers(weather=REFUSED)
    managers["weather"].reconnect = ReconnectPolicy(initial_delay=12.3, jitter=0)
    assert "next attempt in 12 s (attempt 2)" in (await watched(managers, 5))[1]


@in_virtual_time
async def test_an_error_is_shown_in_one_line_without_secrets_and_control_characters():
    managers = servers(weather=lost(1, "the key\n  K3Y-IN-USE is \x1b[31mred"))
    async with Watching(managers, secrets=[("K3Y-IN-USE", "env KEY")]) as watching:
        await anyio.sleep(1.1)
        watching.scope.cancel()
    assert watching.lines[2].endswith("(attempt 2): the key <env KEY> is \\x1b[31mred")


@in_virtual_time
async def test_an_error_without_a_text_is_shown_as_its_type():
    managers = servers(weather=ScriptedRun(fails_with=TimeoutError()))
    assert (await watched(managers, 0.1))[1].endswith(": TimeoutError")


@in_virtual_time
async def test_a_server_that_failed_permanently_does_not_end_the_others():
    managers = servers(bad=MISSING, good=OPEN)
    assert sorted((await watched(managers, 3600))[:4]) == [
        "bad: failed: no such command",
        "bad: opening",
        "good: open",
        "good: opening",
    ]


@in_virtual_time
async def test_watch_ends_when_all_servers_failed_permanently():
    managers = servers(a=MISSING, b=[lost(5), MISSING])
    async with Watching(managers) as watching:
        pass
    assert watching.is_ok is False
    assert watching.lines[-2:] == [
        "b: failed: no such command",
        "all servers failed permanently",
    ]
    assert "closing" not in watching.text


@in_virtual_time
async def test_watch_ends_when_the_only_server_failed_permanently():
    async with Watching(servers(a=MISSING)) as watching:
        pass
    assert watching.is_ok is False
    assert watching.lines == [
        "a: opening",
        "a: failed: no such command",
        "the server failed permanently",
    ]


@in_virtual_time
async def test_each_connection_is_closed_and_counted():
    """A connection that is opening is cancelled. The others are closed without being cancelled."""
    closed = []

    async def close():
        await anyio.sleep(5)
        closed.append("gracefully")

    slow = ScriptedRun(opens_after=anyio.sleep_forever)
    managers = servers(a=ScriptedRun(closes_after=close), b=slow, c=REFUSED, d=MISSING)
    lines = await watched(managers, 1)
    assert lines[-5:] == ["closing 3 connections", *lines[-4:-1], "closed"]
    assert sorted(lines[-4:-1]) == ["a: closed", "b: closed", "c: closed"]
    assert closed == ["gracefully"]


@in_virtual_time
async def test_closing_is_reported_before_it_is_over():
    managers = servers(a=ScriptedRun(closes_after=5))
    async with Watching(managers) as watching:
        await anyio.sleep(1)
        watching.scope.cancel()
        await anyio.sleep(1)
        assert watching.lines[-1] == "closing 1 connection"
        assert managers["a"].state is ConnectionState.CLOSING


@in_virtual_time
async def test_the_second_signal_forces_a_stubborn_server_to_close():
    managers = servers(a=ScriptedRun(closes_after=anyio.sleep_forever))
    async with Watching(managers) as watching:
        await anyio.sleep(1)
        start = anyio.current_time()
        watching.scope.cancel()
        await anyio.sleep(1)
        watching.force()
    assert anyio.current_time() - start < 2
    assert watching.lines[-3:] == ["closing 1 connection", "a: closed", "closed"]


@in_virtual_time
async def test_without_a_second_signal_a_stubborn_server_is_forced_after_30_seconds():
    managers = servers(a=ScriptedRun(closes_after=anyio.sleep_forever))
    start = anyio.current_time()
    lines = await watched(managers, 1)
    assert 30 <= anyio.current_time() - start < 42
    assert lines[-1] == "closed"


@pytest.mark.parametrize("signals", [1, 2])
@in_virtual_time
async def test_a_connection_that_cannot_be_stopped_is_named(signals):
    released = anyio.Event()
    stuck = ScriptedRun(closes_after=released.wait, refuses_to_close=True)
    managers = servers(a=stuck, b=OPEN)
    async with Watching(managers) as watching:
        await anyio.sleep(1)
        watching.scope.cancel()
        await anyio.sleep(1)
        if signals == 2:
            watching.force()
    assert watching.lines[-1] == "could not be stopped: a"
    assert "b: closed" in watching.lines
    released.set()
    with anyio.fail_after(1):
        await managers["a"].stop()


@in_virtual_time
async def test_an_error_while_closing_is_shown():
    async def fail():
        await checkpoint()
        raise OSError("no farewell")

    assert (await watched(servers(a=ScriptedRun(closes_after=fail)), 1))[-2:] == [
        "a: failed: no farewell",
        "closed",
    ]


@in_virtual_time
async def test_watch_can_be_cancelled_at_each_step_of_opening():
    for steps in range(30):
        managers = servers(a=OPEN, b=REFUSED)
        async with Watching(managers) as watching:
            for _ in range(steps):
                await checkpoint()
            watching.scope.cancel()
        assert {manager.state for manager in managers.values()} <= ENDED
        assert watching.lines[-1] == "closed"


class Pipe(io.StringIO):
    """A pipe whose reader exits after some lines."""

    def __init__(self, lines):
        super().__init__()
        self.room = lines

    def write(self, text):
        if self.room <= 0:
            raise BrokenPipeError
        self.room -= text.count("\n")
        return super().write(text)


@pytest.mark.parametrize("lines", range(7))
@in_virtual_time
async def test_the_connections_are_closed_if_the_reader_of_stdout_is_gone(lines):
    """There are seven lines. Closing gracefully takes five seconds, even after the error."""
    closed = []

    async def close():
        await anyio.sleep(5)
        closed.append("gracefully")

    managers = servers(a=[lost(10), ScriptedRun(closes_after=close)])
    watching = Watching(managers, Pipe(lines))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_after, 60, watching.scope)
        await watching()
        tasks.cancel_scope.cancel()
    assert isinstance(watching.error, OutputError)
    assert managers["a"].state is ConnectionState.CLOSED
    assert len(watching.lines) == lines
    assert closed == (["gracefully"] if lines > 2 else [])


async def cancel_after(seconds, scope):
    await anyio.sleep(seconds)
    scope.cancel()


# ------------------------------------------------------------------------------ the table


@pytest.fixture
def columns(monkeypatch):
    """Sets the width of terminals."""
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("LINES", "24")

    def set_columns(number):
        monkeypatch.setenv("COLUMNS", str(number))
        return number

    set_columns(100)
    return set_columns


def shown(watching, width=100):
    return rendered(watching.text.replace("\n", "\r\n"), width)


def cells(line):
    return re.split(r"  +", line)


@in_virtual_time
async def test_a_table_shows_each_server(columns):
    managers = servers(
        weather=[lost(60, "the server exited with status 3"), REFUSED, REFUSED, OPEN],
        missing=MISSING,
        files=OPEN,
    )
    async with Watching(managers, Terminal()) as watching:
        await anyio.sleep(62.6)
        header, *rows = map(cells, shown(watching))
        assert header == ["server", "state", "since", "attempts", "next attempt", "last error"]
        assert rows == [
            ["weather", "lost", "1 s ago", "3", "in 1 s", "refused"],
            ["missing", "failed", "62 s ago", "1", "no such command"],
            ["files", "open", "62 s ago", "1"],
        ]
        watching.scope.cancel()
    lines = shown(watching)
    assert lines[0] == "closing 2 connections"
    assert [cells(line)[:4] for line in lines[2:5]] == [
        ["weather", "closed", "0 s ago", "3"],
        ["missing", "failed", "62 s ago", "1"],
        ["files", "closed", "0 s ago", "1"],
    ]
    assert lines[5:] == ["closed", ""]


@in_virtual_time
async def test_a_table_shows_the_time_that_passes(columns):
    policy = ReconnectPolicy(initial_delay=3, jitter=0)
    managers = servers(a=[REFUSED, ScriptedRun(opens_after=2)])
    managers["a"].reconnect = policy
    rows = []
    async with Watching(managers, Terminal()) as watching:
        for _ in range(8):
            await anyio.sleep(0.99)
            rows.append(cells(shown(watching)[1])[1:5])
            await anyio.sleep(0.01)
        watching.scope.cancel()
    assert rows == [
        ["not open", "0 s ago", "1", "in 3 s"],
        ["not open", "1 s ago", "1", "in 2 s"],
        ["not open", "2 s ago", "1", "in 1 s"],
        ["opening", "0 s ago", "2", "refused"],
        ["opening", "1 s ago", "2", "refused"],
        ["open", "0 s ago", "2", "refused"],
        ["open", "1 s ago", "2", "refused"],
        ["open", "2 s ago", "2", "refused"],
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-0.001, "0 s"),
        (0.9, "0 s"),
        (119.9, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (172799, "47 h"),
        (172800, "2 d"),
        (3e6, "34 d"),
    ],
)
def test_long_times_are_shown_in_larger_units(columns, seconds, text):
    from ownertask._doctor.watch_table import ago

    assert ago(seconds) == f"{text} ago"


COLUMNS_SHOWN = {
    100: ["server", "state", "since", "attempts", "next attempt", "last error"],
    80: ["server", "state", "since", "attempts", "next attempt", "last error"],
    75: ["server", "state", "since", "next attempt", "last error"],
    60: ["server", "state", "next attempt", "last error"],
    45: ["server", "state", "last error"],
    30: ["server", "state"],
    16: ["ser…", "state"],  # codespell:ignore ser
}


@pytest.mark.parametrize(("width", "names"), COLUMNS_SHOWN.items())
@in_virtual_time
async def test_a_narrow_terminal_shows_fewer_columns(columns, width, names):
    columns(width)
    managers = servers(weather=[lost(60, "the server exited with status 3 " * 5), REFUSED], b=REFUSED)
    async with Watching(managers, Terminal()) as watching:
        await anyio.sleep(60.1)
        header, weather, _ = lines = shown(watching, width)
        assert cells(header) == names
        assert cells(weather)[:2] == ["weather" if width > 20 else "wea…", "lost"]
        assert weather.endswith("…") is ("last error" in names)
        assert all(len(line) <= width - 2 for line in lines)  # there is room for "^C"
        watching.scope.cancel()


@pytest.mark.parametrize("width", [1, 2, 3, 5, 9, 10, 11, 12])
@in_virtual_time
async def test_a_terminal_without_room_for_a_table_is_not_an_error(columns, width):
    columns(width)
    async with Watching(servers(weather=[lost(1), REFUSED], b=MISSING), Terminal()) as watching:
        await anyio.sleep(10)
        watching.scope.cancel()
    assert watching.managers["weather"].state is ConnectionState.CLOSED


@in_virtual_time
async def test_a_table_that_is_taller_than_the_terminal_is_cut_until_the_end(columns, monkeypatch):
    monkeypatch.setenv("LINES", "10")
    managers = servers(**{f"server{number:02}": OPEN for number in range(30)})
    async with Watching(managers, Terminal()) as watching:
        await anyio.sleep(10)
        assert len(shown(watching)) == 10
        watching.scope.cancel()
    assert shown(watching)[-3].startswith("server29  closed")


@in_virtual_time
async def test_a_table_shows_no_secrets_and_no_markup_and_cannot_be_broken(columns):
    name = "[red]a[/red]\x1b[31m"
    managers = servers(**{name: [lost(1, "[b]K3Y-IN-USE\x1b[2J\n[/b]"), REFUSED]})
    managers[name].reconnect = ReconnectPolicy(initial_delay=5)
    async with Watching(managers, Terminal(), [("K3Y-IN-USE", "env KEY")]) as watching:
        await anyio.sleep(2)
        row = cells(shown(watching)[1])
        watching.scope.cancel()
    assert row[0] == "[red]a[/red]\\x1b[31m"
    assert row[-1] == "[b]<env KEY>\\x1b[2J [/b]"


@in_virtual_time
async def test_the_cells_of_wide_characters_are_counted(columns):
    async with Watching(servers(**{"天気" * 3: OPEN, "b": OPEN}), Terminal()) as watching:
        await anyio.sleep(1)
        _, wide, narrow = shown(watching)
        watching.scope.cancel()
    assert wide.startswith("天気天気天気  open")
    assert narrow.startswith("b             open")


@in_virtual_time
async def test_a_table_ends_with_the_cause_if_all_servers_failed(columns):
    async with Watching(servers(a=MISSING, b=MISSING), Terminal()) as watching:
        pass
    lines = shown(watching)
    assert [cells(line)[:2] for line in lines[1:3]] == [["a", "failed"], ["b", "failed"]]
    assert lines[3] == "all servers failed permanently"


@in_virtual_time
async def test_the_cursor_is_shown_again(columns):
    async with Watching(servers(a=OPEN), Terminal()) as watching:
        await anyio.sleep(1)
        assert "\x1b[?25l" in watching.text
        watching.scope.cancel()
    assert watching.text.rindex("\x1b[?25h") > watching.text.rindex("\x1b[?25l")


@in_virtual_time
async def test_the_connections_are_closed_if_the_terminal_is_gone(columns):
    for writes in range(200):
        managers = servers(a=[lost(1), OPEN])
        watching = Watching(managers, BrokenTerminal(writes))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_after, 1.7, watching.scope)
            await watching()
        assert managers["a"].state in ENDED
        if watching.error is None:
            break
    assert 5 < writes < 100


@in_virtual_time
async def test_the_table_is_drawn_once_a_second_and_at_each_change(columns):
    async with Watching(servers(a=OPEN, b=OPEN), Terminal()) as watching:
        await anyio.sleep(0.5)
        before = watching.text.count("last error")
        await anyio.sleep(10)
        assert watching.text.count("last error") - before == 10
        watching.scope.cancel()


# ------------------------------------------------------------------------------ the command

SERVER = """
import json, os, signal, sys
from pathlib import Path

folder = Path(sys.argv[1])
if (folder / "broken").exists():
    sys.exit("no license found for " + os.environ["KEY"])
if (folder / "stubborn").exists():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", file=sys.stderr)
(folder / "pid.new").write_text(str(os.getpid()))
(folder / "pid.new").rename(folder / "pid")
for line in sys.stdin:
    request = json.loads(line)
    if request.get("method") == "initialize" and not (folder / "mute").exists():
        result = {
            "protocolVersion": request["params"]["protocolVersion"],
            "capabilities": {},
            "serverInfo": {"name": "server", "version": "1"},
        }
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
while (folder / "stubborn").exists():
    signal.pause()
"""

needs_terminals = pytest.mark.skipif(not shell.AVAILABLE, reason="there are no pseudo-terminals")
needs_rich = pytest.mark.skipif(not shell.HAS_RICH, reason="needs rich")
both_backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])

SECRET = "K3Y-IN-USE"


class Program:
    """The program of a server, and a configuration file with the server `weather`."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "server.py").write_text(SERVER)
        self.servers = {
            "weather": {
                "command": sys.executable,
                "args": ["-S", "-E", str(folder / "server.py"), str(folder)],
                "env": {"KEY": SECRET},
            }
        }

    @property
    def arguments(self):
        config = self.folder / "mcp.json"
        config.write_text(json.dumps({"mcpServers": self.servers}))
        return ["watch", "--config", config]

    def add_missing(self):
        self.servers["missing"] = {"command": str(self.folder / "no-such-command")}

    def become(self, kind):
        (self.folder / kind).touch()

    def recover(self):
        (self.folder / "broken").unlink()

    def kill(self):
        os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)


@pytest.fixture
def program(tmp_path):
    return Program(tmp_path)


def without_times(text):
    return re.sub(r"^\d\d:\d\d:\d\d ", "", re.sub(r"in [\d.]+ s", "in N s", text), flags=re.MULTILINE)


class Notifying(io.StringIO):
    """Sets an event when a text was written."""

    def __init__(self, text):
        super().__init__()
        self.text = text
        self.written = anyio.Event()

    def write(self, text):
        super().write(text)
        if self.text in text:
            self.written.set()


@pytest.mark.within(20)
async def test_watch_opens_the_servers_of_its_arguments(program):
    program.servers["remote"] = {"url": "http://127.0.0.1:1/mcp"}
    [_, _, config] = program.arguments
    targets = targets_from_config(str(config))
    stream = Notifying("weather: open\n")
    screen = Screen(stream, mask_for(targets))
    handlers = logging.getLogger().handlers.copy()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            watch,
            Arguments("watch", targets, 20, "asyncio", 1, as_json=False, is_quiet=False),
            screen,
            Interrupts(),
        )
        await stream.written.wait()
        tasks.cancel_scope.cancel()
    lines = without_times(stream.getvalue()).splitlines()
    assert lines[-1] == "closed"
    assert {"weather: closed", "closing 2 connections"} <= set(lines)
    assert logging.getLogger().handlers == handlers


@needs_terminals
def test_a_killed_server_comes_back(program):
    with shell.piped(*program.arguments) as process:
        process.wait_for("weather: open\n")
        program.become("broken")
        program.kill()
        process.wait_for("(attempt 3)")
        program.recover()
        process.wait_for(re.compile("open\n.*open\n", re.DOTALL))
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert process.err == ""
    opening, opened, lost, still_lost, *rest = without_times(process.out).splitlines()
    assert [opening, opened] == ["weather: opening", "weather: open"]
    assert lost.startswith("weather: lost; next attempt in N s (attempt 2): the server")
    assert still_lost.startswith("weather: lost; next attempt in N s (attempt 3): the server exited")
    assert "'no license found for <env KEY>'" in still_lost
    assert SECRET not in process.text
    assert rest[-4:] == ["weather: open", "closing 1 connection", "weather: closed", "closed"]


@needs_terminals
@needs_rich
def test_the_table_shows_that_a_killed_server_comes_back(program):
    program.add_missing()
    with shell.terminal(*program.arguments, "--backend", "trio", columns=100) as terminal:
        terminal.wait_for(re.compile("weather +.*open "))
        terminal.wait_for("failed")
        program.become("broken")
        program.kill()
        terminal.wait_for("the server exited with status 1")
        program.recover()
        terminal.wait_for(re.compile("lost.*open ", re.DOTALL))
        terminal.interrupt()
        assert terminal.wait() == 130
        lines = terminal.screen()
    assert SECRET not in terminal.out
    weather, missing = (cells(line) for line in lines if line.startswith(("weather", "missing")))
    assert weather[:2] == ["weather", "closed"]
    assert int(weather[3]) > 2
    assert missing[:2] == ["missing", "failed"]
    shown = [line for line in lines if line]
    assert shown[0] == "closing 1 connection"
    assert shown[-1] == "closed"
    assert len(shown) == 5


@needs_terminals
@both_backends
def test_a_server_that_never_answers_is_tried_again(program, backend):
    program.become("mute")
    with shell.piped(*program.arguments, "--backend", backend, "--timeout", "0.3") as process:
        process.wait_for("(attempt 2): not connected after 0.3 s")
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
    assert process.out.endswith("closed\n")


@needs_terminals
def test_a_second_ctrl_c_does_not_wait_for_an_http_server(program):
    """The server does not answer the request that ends the session. The first Ctrl-C waits for 30 s."""
    ending = threading.Event()

    async def stay_silent(request):
        ending.set()
        await anyio.sleep_forever()

    with serving(SessionServer(DELETE=stay_silent)) as url:
        program.servers = {"weather": {"url": url}}
        with shell.piped(*program.arguments) as process:
            process.wait_for("weather: open\n")
            process.send_signal(signal.SIGINT)
            process.wait_for("closing 1 connection\n")
            assert ending.wait(60)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 130
        assert without_times(process.out).endswith("\nweather: closed\nclosed\n")


@needs_terminals
def test_a_second_ctrl_c_does_not_break_the_end_of_a_stubborn_server(program):
    program.become("stubborn")
    with shell.piped(*program.arguments) as process:
        process.wait_for("weather: open\n")
        process.send_signal(signal.SIGINT)
        process.wait_for("closing 1 connection\n")
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130  # after four seconds
    assert without_times(process.out).endswith("closing 1 connection\nweather: closed\nclosed\n")


@needs_terminals
@both_backends
def test_the_command_fails_if_no_server_is_left(program, backend):
    program.servers = {}
    program.add_missing()
    program.servers["other"] = {"command": str(program.folder)}
    finished = shell.run(*program.arguments, "--backend", backend)
    assert finished.code == 1
    assert finished.err == ""
    assert finished.out.endswith("\nall servers failed permanently\n")


@needs_terminals
@needs_rich
@pytest.mark.parametrize("columns", [12, 40])
def test_a_narrow_terminal_shows_the_state(program, columns):
    with shell.terminal(*program.arguments, columns=columns) as terminal:
        terminal.wait_for(re.compile("open "))
        terminal.interrupt()
        assert terminal.wait() == 130
        assert all(len(line) <= columns for line in terminal.screen())


@needs_terminals
@both_backends
def test_the_server_is_closed_if_the_reader_of_a_pipe_is_gone(program, backend):
    with shell.piped(*program.arguments, "--backend", backend) as process:
        process.wait_for("weather: open\n")
        process.close_output()
        program.kill()
        assert process.wait() == 141
    assert process.err == ""
