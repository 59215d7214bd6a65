"""The command line on a terminal and with pipes, as a person uses it.

The harness also checks after each command that it printed no traceback and left no process behind.
"""

import json
import os
import re
import select
import signal
import socket
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from doctor import shell

pytestmark = pytest.mark.skipif(not shell.AVAILABLE, reason="requires pseudo-terminals")

SERVER = Path(__file__).with_name("scripted_server.py")
PYTHON = (sys.executable, "-S", "-E")  # starts faster
needs_rich = pytest.mark.skipif(not shell.HAS_RICH, reason="rich is not installed")
with_and_without_rich = pytest.mark.parametrize(
    "rich", [pytest.param(True, marks=needs_rich, id="rich"), pytest.param(False, id="plain")]
)
COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9\d|10\d)(?:;\d+)*m")


class Scripted:
    """A server that the command line starts; `command` are its arguments."""

    def __init__(self, folder, script):
        self._path = folder / "announcements"
        os.mkfifo(self._path)
        self._descriptor = os.open(self._path, os.O_RDWR)  # so it never ends
        self._announced = b""
        file = folder / "script.json"
        file.write_text(json.dumps({"announce": str(self._path), **script}))
        self.command = ["stdio", "--", *PYTHON, SERVER, file]

    def wait_for(self, method):
        """Waits until the server has received a method, and stopped answering if it is silent."""
        deadline = time.monotonic() + 60
        while method not in self._announced.decode().splitlines():
            remaining = max(0, deadline - time.monotonic())
            readable, _, _ = select.select([self._descriptor], [], [], remaining)
            assert readable, f"the server received {self._announced.decode().split()}, not {method}"
            self._announced += os.read(self._descriptor, 65536)

    def close(self):
        os.close(self._descriptor)


@pytest.fixture
def scripted(tmp_path):
    servers = []

    def create(**script):
        folder = tmp_path / str(len(servers))
        folder.mkdir()
        servers.append(Scripted(folder, script))
        return servers[-1]

    yield create
    for server in servers:
        server.close()


def without_numbers(text):
    return re.sub(r"\d+", "N", re.sub(r" *[\d.]+ m?s\b", " N s", text))


def words(lines):
    """Returns the text without numbers, and without what differs after a line is wrapped."""
    return "".join(without_numbers("\n".join(lines)).split())


# ------------------------------------------------------------------------------ colors


@needs_rich
def test_a_terminal_shows_colors(scripted):
    with shell.terminal("check", *scripted().command) as terminal:
        assert terminal.wait() == 0
        assert COLOR.search(terminal.out)


@needs_rich
def test_the_final_screen_is_what_a_pipe_receives(scripted):
    server = scripted(tools=["add", "divide"], stderr="ready\n")
    finished = shell.run("check", *server.command)
    with shell.terminal("check", *server.command) as terminal:
        assert terminal.wait() == finished.code == 0
    assert finished.err == ""
    shown = without_numbers("\n".join(terminal.screen())).rstrip()
    assert shown == without_numbers(finished.out).rstrip()
    assert "\x1b[?25l" not in terminal.out or terminal.out.rindex("\x1b[?25h") > terminal.out.rindex(
        "\x1b[?25l"
    )


@with_and_without_rich
def test_a_pipe_receives_no_escape_sequences(scripted, rich):
    finished = shell.run("check", *scripted().command, rich=rich)
    assert finished.code == 0
    assert "\x1b" not in finished.out
    assert "\r" not in finished.out


@with_and_without_rich
def test_stdout_decides_even_if_stderr_is_a_terminal(scripted, rich):
    reader, writer = os.pipe()
    with os.fdopen(reader) as output:
        with shell.terminal("check", *scripted().command, rich=rich, stdout=writer) as terminal:
            os.close(writer)
            assert terminal.wait() == 0
            assert "\x1b" not in terminal.out
        text = output.read()
    assert "handshake" in text
    assert "\x1b" not in text


@needs_rich
def test_no_color_removes_the_colors(scripted):
    with shell.terminal("check", *scripted().command, env={"NO_COLOR": "1"}) as terminal:
        assert terminal.wait() == 0
        assert not COLOR.search(terminal.out)


@with_and_without_rich
def test_a_dumb_terminal_receives_plain_lines(scripted, rich):
    with shell.terminal("check", *scripted().command, rich=rich, env={"TERM": "dumb"}) as terminal:
        assert terminal.wait() == 0
        assert "\x1b" not in terminal.out
        assert "\r" not in terminal.out.replace("\r\n", "")


def test_without_rich_a_terminal_receives_plain_lines(scripted):
    with shell.terminal("check", *scripted().command, rich=False) as terminal:
        assert terminal.wait() == 0
        assert "\x1b" not in terminal.out
        assert "handshake" in terminal.out


# ------------------------------------------------------------------------------ Ctrl-C


def assert_interrupted(terminal, phase, code=130):
    assert terminal.wait() == code, terminal.text
    shown = " ".join(" ".join(terminal.screen()).split())
    assert re.search(rf"\b{phase} +[\d.]+ m?s interrupted\b", shown), shown


@pytest.mark.parametrize(
    ("rich", "backend"), [pytest.param(True, "asyncio", marks=needs_rich), (False, "trio")]
)
@pytest.mark.parametrize(
    ("method", "phase"), [("initialize", "handshake"), ("tools/list", "list"), ("ping", "ping")]
)
def test_ctrl_c_while_a_server_does_not_answer(scripted, method, phase, backend, rich):
    server = scripted(silent=[method])
    with shell.terminal("check", "--backend", backend, *server.command, rich=rich) as terminal:
        server.wait_for(method)
        terminal.interrupt()
        assert_interrupted(terminal, phase)


def test_ctrl_c_while_a_server_that_does_not_exit_is_closed(scripted):
    server = scripted(lingers=True)
    with shell.terminal("check", *server.command) as terminal:
        server.wait_for("end of input")
        terminal.interrupt()
        assert terminal.wait() == 130
        assert "interrupted" in terminal.out


def test_repeated_ctrl_c_does_not_disturb_the_shutdown_of_a_stubborn_server(scripted):
    server = scripted(stubborn=True, silent=["tools/list"])
    with shell.terminal("check", *server.command) as terminal:
        server.wait_for("tools/list")
        terminal.interrupt()
        server.wait_for("end of input")
        for _ in range(3):
            terminal.interrupt()
        assert terminal.wait() == 130


def test_after_ctrl_c_while_closing_no_further_connection_is_opened(scripted):
    server = scripted(stubborn=True)
    with shell.piped("check", "--repeat", "2", *server.command) as process:
        server.wait_for("end of input")
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert "spawn" not in process.out.partition("interrupted while")[2].partition("\n\n")[0]


@contextmanager
def silent_port():
    """Yields a listening socket and its port. The test accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        yield listener, listener.getsockname()[1]


@pytest.mark.parametrize(
    ("transport", "scheme", "phase"),
    [
        ("http", "http", "handshake"),
        ("http", "https", "connect"),
        ("sse", "https", "connect"),
        ("sse", "http", "handshake"),
        ("ws", "ws", "connect"),
        ("ws", "wss", "connect"),
    ],
)
def test_ctrl_c_while_a_remote_server_does_not_answer(transport, scheme, phase):
    if transport == "ws":
        pytest.importorskip("websockets")
    with silent_port() as (listener, port):
        with shell.terminal("check", transport, f"{scheme}://127.0.0.1:{port}/mcp") as terminal:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(60)
                assert connection.recv(1)
                terminal.interrupt()
                assert_interrupted(terminal, phase)


@contextmanager
def full_port():
    """Yields the address of a listening socket for which the kernel accepts no more connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        try:
            yield "127.0.0.1:{1}".format(*listener.getsockname())
        finally:
            for filler in fillers:
                filler.close()


@needs_rich  # only the status line shows when the phase begins
@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse the connection")
@pytest.mark.parametrize("transport", ["http", "sse", "ws"])
def test_ctrl_c_while_tcp_connects(transport):
    if transport == "ws":
        pytest.importorskip("websockets")
    scheme = "ws" if transport == "ws" else "http"
    with full_port() as address:
        with shell.terminal("check", transport, f"{scheme}://{address}/mcp") as terminal:
            terminal.wait_for("connect")
            terminal.interrupt()
            assert_interrupted(terminal, "connect")


def test_ctrl_c_with_a_pipe_prints_the_same_lines(scripted):
    server = scripted(silent=["tools/list"])
    with shell.piped("check", *server.command) as process:
        server.wait_for("tools/list")
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert re.search(r"\blist +[\d.]+ m?s  interrupted\n", process.out)


@pytest.mark.parametrize("command", ["check", "watch"])
def test_sigterm_closes_the_server_and_exits_with_143(scripted, command):
    server = scripted(silent=["tools/list"])
    with shell.terminal(command, *server.command) as terminal:
        server.wait_for("tools/list" if command == "check" else "notifications/initialized")
        terminal.send_signal(signal.SIGTERM)
        assert terminal.wait() == 143
        server.wait_for("end of input")


@pytest.mark.parametrize("command", ["check", "watch"])
def test_no_server_is_left_after_the_terminal_was_closed(scripted, command):
    server = scripted(silent=["tools/list"])
    with shell.terminal(command, *server.command) as terminal:
        server.wait_for("tools/list" if command == "check" else "notifications/initialized")
        terminal.hang_up()
        terminal.wait()  # nobody can see the exit status
        server.wait_for("end of input")


def test_a_closed_terminal_ends_watch_even_if_sighup_is_ignored(scripted):
    """rich draws nothing on a terminal that is gone, so no error of the output would end it."""
    server = scripted()
    program = ["/bin/sh", "-c", """trap '' HUP; exec "$0" -m ownertask "$@" """, sys.executable]
    with shell.terminal("watch", *server.command, program=program) as terminal:
        server.wait_for("notifications/initialized")
        terminal.hang_up()
        assert terminal.wait() == 141
        server.wait_for("end of input")


def test_ctrl_c_while_the_sdk_is_imported(tmp_path):
    """The real program needs a second for that."""
    package = tmp_path / "mcp"
    package.mkdir()
    (package / "__init__.py").write_text(
        "print('importing', flush=True)\nimport time\ntime.sleep(600)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with shell.terminal("check", program=shell.MODULE, env={"PYTHONPATH": path}) as terminal:
        terminal.wait_for("importing")
        terminal.interrupt()
        assert terminal.wait() == 130


# ------------------------------------------------------------------------------ watch


@with_and_without_rich
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_stops_watching(scripted, backend, rich):
    server = scripted()
    with shell.terminal("watch", "--backend", backend, *server.command, rich=rich) as terminal:
        terminal.wait_for("open")
        server.wait_for("notifications/initialized")
        terminal.interrupt()
        assert terminal.wait() == 130
        shown = "\n".join(terminal.screen())
        assert re.search(r"(?s)closing.*closed", shown), shown
        server.wait_for("end of input")


@needs_rich
def test_a_watched_table_follows_the_size_of_the_terminal(scripted):
    server = scripted()
    with shell.terminal("watch", *server.command) as terminal:
        terminal.wait_for("open")
        for columns in (20, 5, 1, 200):
            terminal.resize(columns)
        terminal.interrupt()
        assert terminal.wait() == 130


@with_and_without_rich
def test_watching_ends_when_the_reader_of_a_pipe_has_gone(scripted, rich):
    server = scripted(exits=["ping", "notifications/initialized"])
    with shell.piped("watch", *server.command, rich=rich) as process:
        process.wait_for("\n")
        process.close_output()
        assert process.wait() == 141
        assert process.err == ""


# ------------------------------------------------------------------------------ narrow terminals


@pytest.mark.parametrize(("columns", "rich"), [pytest.param(20, True, marks=needs_rich), (40, False)])
def test_a_narrow_terminal_loses_no_words(scripted, columns, rich):
    server = scripted(
        name="A server with a rather long name",
        tools=["add", "divide", "a_tool_whose_name_is_longer_than_the_terminal"],
        stderr="A line of its stderr that is longer than the terminal.\n",
    )
    finished = shell.run("check", *server.command)
    with shell.terminal("check", *server.command, columns=columns, rich=rich) as terminal:
        assert terminal.wait() == finished.code == 0
        assert words(terminal.screen()) == words(finished.out.splitlines())


@needs_rich
@pytest.mark.parametrize("columns", [0, 1])
@pytest.mark.parametrize("exits", [[], ["initialize"]])
def test_a_terminal_without_room_breaks_nothing(scripted, columns, exits):
    with shell.terminal("check", *scripted(exits=exits).command, columns=columns) as terminal:
        assert terminal.wait() == (1 if exits else 0)


# ------------------------------------------------------------------------------ stdout


@contextmanager
def broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@pytest.mark.parametrize("option", ["--timeout=20", "--json", "--repeat=3"])
def test_a_pipe_without_a_reader_ends_the_command_silently(scripted, option):
    with broken_pipe() as stdout:
        finished = shell.run("check", option, *scripted().command, stdout=stdout)
    assert (finished.code, finished.err) == (141, "")


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"], ["--version"]])
def test_help_without_a_reader_ends_silently(arguments):
    with broken_pipe() as stdout:
        finished = shell.run(*arguments, stdout=stdout)
    assert (finished.code, finished.err) == (141, "")


def test_a_reader_that_exits_early_ends_the_command_silently(scripted):
    """The document is larger than the buffer of a pipe."""
    server = scripted(tools=[f"tool_{number}_" + "x" * 4000 for number in range(40)])
    with shell.piped("check", "--json", *server.command) as process:
        process.wait_for("{")
        process.close_output()
        assert process.wait() == 141
        assert process.err == ""


def test_head_shows_the_first_line(scripted):
    pipeline = 'set -o pipefail; "$0" -m ownertask "$@" | head -1'
    program = ["/bin/bash", "-c", pipeline, sys.executable]
    if not Path(program[0]).exists():
        pytest.skip("bash is not installed")
    finished = shell.run("check", *scripted().command, program=program)
    assert finished.code in {0, 141}  # all output may fit into the pipe before head ends
    assert finished.err == ""
    assert len(finished.out.splitlines()) == 1


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_device_is_reported_in_one_line(scripted, options):
    if not Path("/dev/full").exists():
        pytest.skip("requires /dev/full")
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        finished = shell.run("check", *options, *scripted().command, stdout=descriptor)
    finally:
        os.close(descriptor)
    assert finished.code == 1
    assert len(finished.err.splitlines()) == 1
    assert "No space left on device" in finished.err


@pytest.mark.parametrize(
    ("command", "closed"),
    [
        *(("check", closed) for closed in ([1], [2], [0, 1, 2])),
        ("check --json", [1]),
        ("watch", [0, 1, 2]),
        *(("--help", closed) for closed in ([1], [0, 1, 2])),
        *(("wrong", closed) for closed in ([2], [0, 1, 2])),
    ],
)
def test_closed_standard_streams_break_nothing(scripted, closed, command):
    words = command.split()
    if command == "watch":
        server = scripted()
        with shell.piped(*words, *server.command, closed=closed) as process:
            server.wait_for("notifications/initialized")
            process.send_signal(signal.SIGINT)
            assert process.wait() == 130
        return
    arguments = scripted().command if words[0] == "check" else []
    finished = shell.run(*words, *arguments, closed=closed)
    assert finished.code == (2 if command == "wrong" else 0)
    assert not finished.out or (1 not in closed and command != "wrong")
    assert not finished.err or command in {"--help", "wrong"}


def test_a_real_program_may_have_no_standard_streams(scripted):
    program = ["/bin/sh", "-c", 'exec "$0" -m ownertask "$@" <&- >&- 2>&-', sys.executable]
    assert shell.run("check", *scripted().command, program=program).code == 0


# ------------------------------------------------------------------------------ encodings

FOREIGN = {"name": "Wörter 字 🎉", "tools": ["löschen"], "stderr": "gr\xfc\xdfe \xff\n"}


@pytest.mark.parametrize(
    ("encoding", "rich"),
    [
        pytest.param("ascii", True, marks=needs_rich),
        pytest.param("cp1252", True, marks=needs_rich),
        ("utf-8", False),
    ],
)
def test_any_encoding_of_the_output_can_show_any_name(scripted, encoding, rich):
    server = scripted(**FOREIGN)
    env = {"PYTHONIOENCODING": encoding}
    finished = shell.run("check", *server.command, env=env)
    assert (finished.code, finished.err) == (0, "")
    with shell.terminal("check", *server.command, env=env, rich=rich) as terminal:
        assert terminal.wait() == 0
    if encoding != "cp1252":  # the test reads UTF-8
        name = FOREIGN["name"].encode(encoding, "backslashreplace").decode()
        assert name in finished.out
        assert name in "\n".join(terminal.screen())


def test_json_has_the_same_names_in_any_encoding(scripted):
    server = scripted(**FOREIGN)
    finished = shell.run("check", "--json", *server.command, env={"PYTHONIOENCODING": "ascii"})
    document = json.loads(finished.out)
    assert document["servers"][0]["server"]["name"] == FOREIGN["name"]
    assert document["servers"][0]["tools"] == FOREIGN["tools"]


@with_and_without_rich
def test_a_server_cannot_control_the_terminal(scripted, rich):
    name = "evil\x1b[2J\x9b2J\x1b]0;title\x07\rx\b\x7f\u202e"
    server = scripted(name=name, tools=[name], stderr=name.replace("\u202e", "") + "\n")
    with shell.terminal("check", *server.command, rich=rich) as terminal:
        assert terminal.wait() == 0
    text = terminal.out.replace("\r\n", "\n")
    assert "evil" in text
    for sequence in ("\x1b[2J", "\x9b", "\x1b]0;", "\x07", "\rx", "\x7f", "\b", "\u202e"):
        assert sequence not in text


@with_and_without_rich
def test_the_markup_of_rich_in_names_is_shown_as_it_is(scripted, rich):
    name = "[red]x[/red] [/nope] :smile: [link=http://x]y[/link] \\[b]"
    server = scripted(name=name, tools=[name], stderr=f"{name}\n", exits=["ping"])
    with shell.terminal("check", *server.command, columns=200, rich=rich) as terminal:
        assert terminal.wait() == 1
    assert (
        "\n".join(terminal.screen()).count("[red]x[/red] [/nope] :smile: [link=http://x]y[/link]") >= 1
    )


# ------------------------------------------------------------------------------ the real programs


def test_the_module_checks_a_server_in_the_c_locale(scripted):
    server = scripted(**FOREIGN)
    env = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with shell.terminal("check", *server.command, program=shell.MODULE, env=env) as terminal:
        assert terminal.wait() == 0
        assert "l\\xf6schen" in terminal.out


def test_the_script_reports_wrong_usage():
    if not Path(shell.CONSOLE_SCRIPT[0]).exists():
        pytest.skip("the package was installed before it had the program")
    finished = shell.run("check", program=shell.CONSOLE_SCRIPT)
    assert (finished.code, finished.out) == (2, "")
    assert re.fullmatch(r"ownertask check: error: .*\n", finished.err)


SLOW_LOOKUP = """
import socket, sys, threading

def getaddrinfo(*args, **options):
    if any(isinstance(arg, int) and arg & socket.AI_NUMERICHOST for arg in args):
        # trio first asks whether it is an address, without a thread
        raise socket.gaierror(socket.EAI_NONAME, "not an address")
    print("looking up", flush=True)
    threading.Event().wait()

socket.getaddrinfo = getaddrinfo
from ownertask.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("options", [["--timeout=2"], ["--backend=trio"]], ids=["timeout", "ctrl-c"])
def test_a_name_lookup_that_hangs_does_not_delay_the_end(options):
    """A lookup runs in a thread and cannot be cancelled."""
    program = [sys.executable, "-c", SLOW_LOOKUP]
    arguments = ["check", *options, "http", "http://ownertask.invalid/"]
    is_interrupted = options == ["--backend=trio"]
    with shell.terminal(*arguments, program=program) as terminal:
        terminal.wait_for("looking up")
        if is_interrupted:
            terminal.interrupt()
        assert terminal.wait() == (130 if is_interrupted else 1)
        assert "left behind   the thread" in terminal.out
