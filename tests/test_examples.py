"""Tests for the examples, and for the pages that quote them."""

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress
from importlib.metadata import version
from pathlib import Path

import pytest

import ownertask.mcp
import ownertask.testing

ROOT = Path(__file__).parents[1]
HELPERS = {
    "certificates",
    "http_server",
    "oauth_server",
    "own_transport_server",
    "server",
    "tenants_server",
}
PYTEST = ("-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={ROOT}", "-p", "no:cacheprovider")


def run(*args, stdin=None):
    return subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        input=stdin,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    ).stdout


backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@backends
def test_the_quickstart_prints_what_the_tutorial_shows(backend):
    """The three callers run concurrently, so their lines come in any order."""
    lines = run("examples/quickstart.py", backend).splitlines()
    shown = (ROOT / "examples/quickstart.txt").read_text().splitlines()
    assert [*lines[:3], *sorted(lines[3:6]), *lines[6:]] == shown


def test_a_session_is_started_used_and_stopped_in_different_tasks():
    assert run("examples/three_tasks.py").count("text='3'") == 2


@backends
def test_a_custom_transport_reports_a_lost_connection(backend):
    assert run("examples/own_transport.py", backend).splitlines() == [
        "HELLO FROM A FACTORY",
        "HELLO FROM A CLASS",
        "the request failed",
        "connection lost: IncompleteRead",
    ]
    page = (ROOT / "docs/tutorial/own-transport.md").read_text()
    assert run("examples/own_transport.py", backend) in page


def test_a_custom_transport_keeps_the_rules():
    printed = run(*PYTEST, "examples/own_transport_test.py")
    assert re.search(r"^\d{2} passed", printed, re.MULTILINE)


@backends
def test_two_hooks_leave_a_stream_open_and_one_method_does_not(backend):
    printed = run("examples/two_hooks.py", backend)
    left = dict(re.findall(r"^(\w+: \w+) left (\d) open$", printed, re.MULTILINE))
    assert {name for name in left if left[name] == "1"} == {
        "cancel_start: TwoHooks",
        "fail_in_stop: TwoHooks",
        "fail_in_stop: HooksInside",
    }
    assert len(left) == 8
    assert printed in (ROOT / "docs/how-to/two-hooks.md").read_text()


@backends
def test_jobs_share_a_connection_that_the_last_one_closes(backend):
    lines = run("examples/sharing.py", backend).splitlines()
    ends = [line for line in lines if line.startswith("job")]
    assert sorted(set(lines) - set(ends)) == ["1 + 1 = 2", "2 + 2 = 4", "3 + 3 = 6"]
    assert [line.rpartition(" ")[2] for line in ends] == ["open", "open", "closed"]


@backends
def test_a_server_of_a_configuration_file_is_used(backend):
    assert "text='3'" in run("examples/config_file.py", backend)


@backends
def test_a_call_after_a_loss_waits_for_the_next_server(backend):
    assert run("examples/restarting.py", backend) == "1 + 1 = 2\n2 + 2 = 4\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows describes the errors differently")
@backends
def test_lost_connections_are_opened_again_and_status_lines_show_why(backend):
    *lines, green, red = run("examples/reconnecting.py", backend).splitlines()
    printed = [re.sub(r"retry in \d\.\d s", "retry", line) for line in lines]
    why = "retry  the server was killed by SIGTERM"
    loss = ["closing", f"opening  failures: 1  {why}", "open"]
    loss_of_red = ["closing", f"opening  failures: 2  {why}", "open"]
    expected = {
        "green": ["opening", "open", *loss, "closing", "closed"],
        "red": ["opening", "open", *loss, *loss_of_red, "closing", "closed"],
        "gray": ["opening", "failed  [Errno 2] No such file or directory: 'no-such-command'"],
    }
    for name, states in expected.items():
        assert [line[9:] for line in printed if line.startswith(name)] == states
    assert green.startswith("green {'answered': ")
    assert red.startswith("red {'answered': ")
    shown = (ROOT / "examples/reconnecting.txt").read_text()
    assert set(re.sub(r"retry in \d\.\d s", "retry", shown).splitlines()) <= set(printed)


def states_of(lines):
    """Returns the states in the order in which each manager had them, without the delays."""
    found = {}
    for line in lines:
        name, state = line[:9].strip(), line[9:]
        found.setdefault(name, []).append(re.sub(r"retry in \d\.\d s", "retry", state))
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="Windows describes the errors differently")
@backends
def test_a_group_works_while_servers_of_it_are_mute_missing_or_killed(backend):
    lines = run("examples/several_servers.py", backend).splitlines()
    missing = "[Errno 2] No such file or directory: 'no-such-command'"
    usual = ["opening", "open", "closing", "closed"]
    loss = ["closing", "opening  failures: 1  retry  the server was killed by SIGTERM", "open"]
    assert states_of(lines[:-5]) == {
        "group": usual,
        "green": usual,
        "flaky": [*usual[:2], *loss, *usual[2:]],
        "mute": ["opening", "closing", "closed"],
        "missing": ["opening", f"failed  {missing}"],
        "web": usual,
    }
    assert lines[-5:] == [
        "flaky: 1 + 2 = 3",
        "green: 1 + 2 = 3",
        f"missing: FileNotFoundError: {missing}",
        "mute: StartTimeoutError: mute: not connected after 1 s",
        "web: 1 + 2 = 3",
    ]
    shown = (ROOT / "examples/several_servers.txt").read_text().splitlines()
    assert states_of(shown[:-5]) == states_of(lines[:-5])
    assert shown[-5:] == lines[-5:]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudoterminals")
@backends
def test_on_a_terminal_ctrl_c_closes_the_servers_of_a_group(backend):
    import pty  # Windows does not have it

    screen, terminal = pty.openpty()
    command = [sys.executable, "examples/several_servers.py", backend]
    with subprocess.Popen(command, cwd=ROOT, stdout=terminal, stderr=subprocess.PIPE) as process:
        os.close(terminal)
        printed = b""
        while b"\x1b[32mgroup    open\x1b[0m" not in printed:  # in green
            printed += os.read(screen, 4096)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # Linux raises it at the end of the output
            while read := os.read(screen, 4096):
                printed += read
        os.close(screen)
        assert process.stderr.read() == b""
    assert process.returncode == 0
    page = printed.decode().split("\x1b[6A")[-1]  # the six lines are updated in place
    *lines, interrupted = re.sub(r"\x1b\[\d*[mK]", "", page).splitlines()
    assert interrupted == "interrupted; all connections are closed"
    assert states_of(lines) == {
        "missing": ["failed  [Errno 2] No such file or directory: 'no-such-command'"],
        **{name: ["closed"] for name in ("group", "green", "flaky", "mute", "web")},
    }


@backends
def test_a_listener_counts_losses_and_reconnects(backend):
    printed = run("examples/metrics.py", backend).splitlines()
    assert [line for line in printed if not line.startswith("#")] == [
        'connection_open{manager="calculator"} 0.0',
        'connection_losses_total{manager="calculator"} 2.0',
        'connection_reconnects_total{manager="calculator"} 2.0',
    ]


@backends
def test_starting_a_silent_server_times_out(backend):
    assert run("examples/timeouts.py", backend).endswith(": not connected after 0.5 s\n")


@backends
def test_an_expired_token_is_renewed(backend):
    refused, result = run("examples/auth.py", backend).splitlines()
    assert refused == "HTTP status 401 Unauthorized, WWW-Authenticate: Bearer"
    assert "text='3'" in result
    assert refused in (ROOT / "docs/how-to/http.md").read_text()


@backends
def test_a_login_may_take_longer_than_the_start_timeout(backend):
    assert "text='3'" in run("examples/oauth.py", backend)


def test_closing_in_another_task_fails_only_without_ownertask():
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run("examples/before.py")
    assert "RuntimeError: Attempted to exit cancel scope in a different task" in caught.value.stderr
    for backend in ("asyncio", "trio"):
        tools, states = run("examples/after.py", backend).splitlines()
        assert "'add': " in tools
        assert states == "closed closed closed"


@backends
def test_a_session_group_uses_sessions_from_managers(backend):
    tools, result, states = run("examples/session_group.py", backend).splitlines()
    assert tools == "green.add green.process_id red.add red.process_id"
    assert "text='3'" in result
    assert states == "failed closed"  # the first connection was reported as lost


def test_threads_share_a_session():
    assert run("examples/synchronous.py") == "0 2 4 6 8\n"


def test_a_script_calls_a_session_through_a_portal():
    assert "text='3'" in run("examples/synchronous_script.py")


@pytest.mark.parametrize(("end", "status"), [("return", 0), ("raise", 1), ("exit", 3)])
def test_a_connection_is_closed_when_the_interpreter_exits(end, status):
    """A task that the application never cancels is still running in the portal."""
    command = [sys.executable, "-W", "error", "examples/synchronous_atexit.py", end]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == status
    result, state = ended.stdout.splitlines()
    assert "text='3'" in result
    assert state == "at exit: closed"
    assert ("RuntimeError: the program failed" in ended.stderr) == (end == "raise")
    assert "Warning" not in ended.stderr
    assert "rror while" not in ended.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_forked_worker_opens_its_own_session():
    opened, closed, parent = run("examples/forked_worker.py").splitlines()
    assert "text='3'" in opened
    assert opened.endswith("open")
    assert closed == "worker: closed"
    assert parent == "parent: new"


def test_the_cells_of_a_notebook_share_a_session():
    """asyncio's console stands in for a notebook: it runs each statement in a separate task."""
    printed = run("-m", "asyncio", stdin=(ROOT / "examples/notebook.ipy").read_text())
    assert "text='3'" in printed
    assert "ConnectionState.CLOSED" in printed


@pytest.mark.parametrize("plugin", ["anyio", "asyncio"])
def test_a_pytest_fixture_provides_a_session(plugin):
    path = {"anyio": "pytest_fixtures", "asyncio": "pytest_asyncio_fixtures"}[plugin]
    printed = run(*PYTEST, f"examples/{path}.py")
    assert f"{ {'anyio': 4, 'asyncio': 1}[plugin] } passed" in printed


def test_an_application_is_tested_with_a_fake_and_with_a_server_in_the_same_process():
    assert "13 passed" in run(*PYTEST, "examples/test_an_application.py")


def test_the_error_quotes_the_stderr_of_the_server():
    printed = run("examples/stderr_and_logging.py").replace(f"({Path(sys.executable).name})", "(python)")
    assert printed == (ROOT / "examples/stderr_and_logging.txt").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to handle")
@backends
def test_server_processes_are_described_and_ended(backend):
    printed = run("examples/server_processes.py", backend)
    shown = (ROOT / "examples/server_processes.txt").read_text()
    assert printed.removeprefix(shown).splitlines() == [
        "the server has a pid: True",
        "returncode: 0",
        "SIGTERM received, server stopped",
    ]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("path", ["examples/sse.py", "examples/streamable_http.py"])
def test_a_session_runs_over_http(path, backend):
    assert run(path, backend).count("text='3'") == 1


@backends
def test_the_server_gets_a_client_certificate_and_the_client_trusts_its_ca(backend):
    refused, result = run("examples/http_tls.py", backend).splitlines()
    assert refused == "the server refuses a client without a certificate"
    assert "text='3'" in result


@pytest.mark.skipif(sys.platform == "win32", reason="uvicorn has no Unix sockets on Windows")
@backends
def test_a_session_runs_over_a_unix_socket(backend):
    assert "text='3'" in run("examples/http_unix_socket.py", backend)


@backends
def test_requests_pass_through_the_proxy_that_is_set(backend):
    result, *passed = run("examples/http_proxy.py", backend).splitlines()
    assert "text='3'" in result
    assert passed == ["proxy=: True", "HTTP_PROXY: True", "NO_PROXY: False"]


@backends
def test_two_sessions_share_an_http_2_connection(backend):
    first, second, connections = run("examples/http_2.py", backend).splitlines()
    assert "text='3'" in first
    assert "text='4'" in second
    assert connections == "1 connection, HTTP/2"


@backends
def test_a_header_depends_on_the_call(backend):
    printed = run("examples/http_call_headers.py", backend)
    received = re.findall(r"^(\w+): .*text='(\w+)'", printed, re.MULTILINE)
    once = [("green", "green"), ("red", "red")]
    assert received == (once if version("mcp").startswith("1.") else [*once, *once])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGSTOP")
@backends
def test_pings_detect_a_frozen_server(backend):
    lost = "calculator: the connection was lost: the server did not respond to a ping within 1 s\n"
    assert run("examples/keep_alive.py", backend) == lost


def test_the_web_app_runs_while_one_server_is_down():
    assert run("examples/web_app.py").splitlines() == [
        "search is down: ConnectError",
        "/health: 200 {'calculator': 'open', 'search': 'failed'}",
        "/add/calculator: 200 ['3']",
        "/add/search: 503 {'error': 'ConnectError'}",
    ]


def test_an_application_opens_sessions_of_a_few_tenants_at_a_time():
    assert run("examples/tenants.py").splitlines() == [
        "requests: {200: 240}",
        "sessions open at once: 4",
        "a tenant whose server is down: 503",
        "after the change of a key: ['new key']",
        "stats: {'open': 4, 'idle': 4, 'waiting': 0}",
    ]


def test_a_session_runs_over_a_websocket():
    assert "text='3'" in run("examples/websocket.py")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends signals differently")
def test_ctrl_c_ends_a_trio_program():
    command = [sys.executable, "examples/ctrl_c_on_trio.py"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"press Ctrl-C\n"
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.communicate(timeout=30)[1]


PAGE_URL = "http://127.0.0.1:8000/mcp"


def in_a_shell(line, **variables):
    """Returns the arguments with which `subprocess` runs a command of a page."""
    words = shlex.split(line)
    while "=" in words[0]:
        name, _, variables[name] = words.pop(0).partition("=")
    assert words[0] == "ownertask"
    words = [sys.executable if word == "python" else word for word in words]
    env = {**os.environ, "PYTHON": sys.executable, **variables}
    return {"args": [sys.executable, "-m", *words], "cwd": ROOT, "env": env, "text": True}


def without_numbers(printed):
    """Replaces durations and times, and removes the version of the server, which depends on the SDK."""
    printed = re.sub(r" +[\d.]+ m?s\b", " 0 s", printed)
    printed = re.sub(r"^\d\d:\d\d:\d\d ", "", printed, flags=re.MULTILINE)
    printed = re.sub(r"^(server +examples) .*", r"\1", printed, flags=re.MULTILINE)
    return printed.replace(Path(sys.executable).name, "python").splitlines()


def commands_of_the_page():
    page = (ROOT / "docs/how-to/command-line.md").read_text()
    return re.findall(r"^```sh\n(ownertask .*|\w+=\w+ ownertask .*)\n```$", page, re.MULTILINE)


def shown(path):
    return without_numbers((ROOT / "examples" / path).read_text())


OUTPUTS = {
    "check.txt": "ownertask check stdio -- python examples/server.py",
    "check_failed.txt": "ownertask check stdio -- python -c 'import sys; sys.exit(\"no license\")'",
}


@pytest.mark.parametrize("line", [line for line in commands_of_the_page() if " check " in line])
def test_each_check_on_the_page_about_the_shell_works(line):
    token = "secret token" if "TOKEN" in line else ""
    running_server = runpy.run_path(str(ROOT / "examples/http_server.py"))["running_server"]
    with running_server("streamable-http", token) if " http " in line else nullcontext(PAGE_URL) as url:
        process = in_a_shell(line.replace(PAGE_URL, url), TOKEN=token)
        ended = subprocess.run(**process, capture_output=True, timeout=60, check=False)
    assert ended.stderr == ""
    assert ended.returncode == ("sys.exit" in line)
    assert bool(ended.stdout) == ("--quiet" not in line)
    output = ended.stdout.replace(" experimental,", "")  # servers of mcp 1.x announce it
    for path in [path for path in OUTPUTS if OUTPUTS[path] == line]:
        assert without_numbers(output) == shown(path)


def test_the_page_about_the_shell_shows_the_output_of_two_commands():
    assert set(OUTPUTS.values()) < set(commands_of_the_page())


def test_the_page_about_the_shell_describes_each_key_of_the_json():
    line = "ownertask check --json stdio -- no-such-command"
    ended = subprocess.run(**in_a_shell(line), capture_output=True, timeout=60, check=False)
    document = json.loads(ended.stdout)
    page = (
        (ROOT / "docs/how-to/command-line.md").read_text().partition("## JSON")[2].partition("\n## ")[0]
    )
    of_document, of_server = page.split("For each server:")

    def keys(table):
        cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        return [key for cell in cells for key in re.findall(r"`(\w+)`", cell)]

    assert keys(of_document) == list(document)
    server = document["servers"][0]
    assert keys(of_server) == list(server)
    for key in server["failure"]:
        assert f"`{key}`" in of_server.partition("`failure`")[2]


@pytest.mark.skipif(sys.platform != "linux", reason="the test finds the server in /proc")
def test_watch_prints_what_the_page_about_the_shell_shows():
    (line,) = [line for line in commands_of_the_page() if " watch " in line]
    with subprocess.Popen(**in_a_shell(line), stdout=subprocess.PIPE) as process:
        printed = ""

        def read_until_open():
            nonlocal printed
            while not (line := process.stdout.readline()).endswith(": open\n"):
                assert line
                printed += line
            printed += line

        read_until_open()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        os.kill(int(children), signal.SIGKILL)
        read_until_open()
        process.send_signal(signal.SIGINT)
        printed += process.stdout.read()
    assert process.returncode == 130
    assert without_numbers(printed) == shown("watch.txt")


def test_every_example_is_tested():
    named = set(re.findall(r"examples/(\w+)\.py|\"(pytest_\w+)\"", Path(__file__).read_text()))
    tested = {path or plugin for path, plugin in named}
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} - HELPERS == tested - HELPERS


def test_the_readme_quotes_three_tasks():
    source = (ROOT / "examples" / "three_tasks.py").read_text()
    shown = source.partition("[start:readme]\n")[2].partition("\n\n# --8<-- [end:readme]")[0].strip()
    assert shown in (ROOT / "README.md").read_text()
    assert len([line for line in shown.splitlines() if line]) <= 12


def test_code_on_the_pages_comes_from_the_examples():
    for page in (ROOT / "docs").rglob("*.md"):
        for kind, code in re.findall(
            r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE
        ):
            if kind == "python":
                assert re.fullmatch(r'--8<-- "examples/[\w/]+\.i?py:\w+"\n', code), (page, code)
            elif kind == "json":
                assert re.fullmatch(r'--8<-- "examples/\w+\.json"\n', code), (page, code)
            elif kind == "sh":
                assert all(
                    re.match(r"python3 -m venv|\.venv/bin/python ", line) for line in code.splitlines()
                ) or (page.name == "command-line.md" and code.strip() in commands_of_the_page())
            else:
                assert kind in {"", "mermaid"}  # a program's output, or a diagram


def test_every_framework_has_a_nox_session_and_its_code_on_a_page():
    pages = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    table = (ROOT / "noxfile.py").read_text().partition("\nFRAMEWORKS = {")[2].partition("\n}")[0]
    names = {path.stem for path in (ROOT / "examples/frameworks").glob("*.py")}
    names -= {"patched_mcp_use_server", "scenario"}
    assert names == set(re.findall(r'^    "(\w+)": \(', table, re.MULTILINE))
    assert all(f'--8<-- "examples/frameworks/{name}.py:' in pages for name in names)


def test_the_reference_documents_every_public_name():
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    documented = set(re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE))
    public = {f"ownertask.{name}" for name in ownertask.__all__ if name not in ownertask.errors.__all__}
    public |= {f"ownertask.mcp.{name}" for name in ownertask.mcp.__all__}
    public |= {f"ownertask.testing.{name}" for name in ownertask.testing.__all__}
    assert documented == public | {"ownertask.errors"}
