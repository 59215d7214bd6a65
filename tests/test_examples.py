"""Tests for the examples, and for the pages that show what they print."""

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from pages import blocks, pages

import ownertask.mcp
import ownertask.testing

pytestmark = pytest.mark.usefixtures("forked_python")

ROOT = Path(__file__).parents[1]
HELPERS = {
    "certificates",
    "http_server",
    "oauth_server",
    "own_transport_server",
    "server",
    "token_server",
}
PYTEST = ("-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={ROOT}", "-p", "no:cacheprovider")


def run(*args, stdin=None, cwd=ROOT):
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
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


def test_a_context_manager_is_used_in_three_tasks():
    printed = run("examples/own_connection.py")
    assert printed == "b'HELLO\\n'\nConnectionState.CLOSED\n"
    assert printed in (ROOT / "docs/tutorial/own-transport.md").read_text()


@backends
def test_a_custom_transport_reports_a_lost_connection(backend):
    page = (ROOT / "docs/tutorial/own-transport.md").read_text()
    printed = run("examples/own_transport.py", backend)
    assert len(printed.splitlines()) == 3
    assert re.sub(r":\d+:", ":38721:", printed) in page


@backends
def test_a_custom_transport_carries_mcp_messages(backend):
    assert "text='3'" in run("examples/own_mcp_transport.py", backend)


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
    assert printed in (ROOT / "docs/how-to/moving.md").read_text()


@backends
def test_jobs_share_a_connection_that_the_last_one_closes(backend):
    lines = run("examples/sharing.py", backend).splitlines()
    ends = [line for line in lines if line.startswith("job")]
    assert sorted(set(lines) - set(ends)) == ["1 + 1 = 2", "2 + 2 = 4", "3 + 3 = 6"]
    assert [line.rpartition(" ")[2] for line in ends] == ["open", "open", "closed"]


def test_a_killed_server_is_started_again_for_the_next_call():
    lost, restarted = run("examples/restarting.py").splitlines()
    assert lost.startswith("a call fails if the server dies during it: ")
    assert restarted == "the next call reaches a new server: True"


def without_delays(lines):
    return [re.sub(r"retry in \d\.\d s", "retry", line) for line in lines]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows describes the errors differently")
@backends
def test_a_listener_shows_why_lost_connections_are_opened_again(backend):
    printed = run("examples/reconnecting.py", backend).splitlines()
    shown = (ROOT / "examples/reconnecting.txt").read_text().splitlines()
    assert without_delays(printed) == without_delays(shown)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows describes the error differently")
def test_a_group_lists_the_tools_of_each_server_of_a_configuration_file():
    printed = run("examples/several_servers.py")
    assert printed == (ROOT / "examples/several_servers.txt").read_text()


def test_a_group_takes_the_servers_of_another_configuration_file(tmp_path):
    file = tmp_path / "claude_desktop_config.json"
    entry = {"command": sys.executable, "args": ["examples/server.py"]}
    file.write_text(json.dumps({"mcpServers": {"calculator": entry}, "globalShortcut": ""}))
    assert run("examples/several_servers.py", str(file)) == "calculator: add, process_id\n"


def test_the_published_servers_of_a_configuration_file_are_accepted():
    managers = ownertask.mcp.managers_from_config(
        ROOT / "examples/published_servers.json",
        environment={"GITHUB_TOKEN": "github", "WEATHER_TOKEN": "weather"},
    )
    kinds = [type(manager.transport).__name__ for manager in managers.values()]
    assert kinds == ["StdioConnectionManager"] * 3 + ["StreamableHttpConnectionManager"]


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
    assert "text='3'" in caught.value.stdout
    assert "RuntimeError: Attempted to exit cancel scope in a different task" in caught.value.stderr
    assert "text='3'" in run("examples/after.py")


def test_the_tools_of_a_framework_still_work_after_a_restart():
    assert run("examples/session_manager.py") == "1 + 1 = 2\n2 + 2 = 4\n"


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
    printed = run(
        "-m", "asyncio", stdin=(ROOT / "examples/notebook.ipy").read_text(), cwd=ROOT / "examples"
    )
    assert "text='3'" in printed
    assert "ConnectionState.CLOSED" in printed


needs_celery = pytest.mark.skipif(
    not find_spec("celery") or not find_spec("sqlalchemy"), reason="celery[sqlalchemy] must be installed"
)


@needs_celery
def test_the_worker_processes_of_celery_open_and_close_their_own_sessions(tmp_path):
    """SQLite takes the place of Redis.

    The worker starts when the calls are sent: kombu fails if two processes create its tables at once.
    """
    environment = {
        **os.environ,
        "CELERY_BROKER_URL": f"sqla+sqlite:///{tmp_path}/broker",
        "CELERY_RESULT_BACKEND": f"db+sqlite:///{tmp_path}/results",
        "C_FORCE_ROOT": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")]),
    }
    log = tmp_path / "log"
    module = Path("examples/celery_tasks.py").stem
    command = [sys.executable, "-m", "celery", "-A", module, "worker", "-c", "2", "-l", "DEBUG"]
    calls = f"""
from {module} import add
calls = [add.delay(n, n) for n in range(6)]
print("sent", flush=True)
print(*[call.get(timeout=50) for call in calls])
"""
    caller = [sys.executable, "-c", calls]
    with (
        log.open("w") as file,
        subprocess.Popen(caller, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as sender,
    ):
        assert sender.stdout
        assert sender.stdout.readline() == "sent\n"
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file) as worker:
            try:
                printed = sender.communicate(timeout=60)[0]
            finally:
                sender.kill()
                worker.terminate()
    assert sender.returncode == 0
    assert printed == "0 2 4 6 8 10\n"
    assert worker.returncode == 0
    printed = log.read_text()
    assert "Traceback" not in printed
    assert printed.count(": opening -> open\n") == printed.count(": closing -> closed\n") > 0


@pytest.mark.skipif(not find_spec("streamlit"), reason="streamlit must be installed")
@pytest.mark.skipif(sys.platform != "linux", reason="the test counts processes in /proc")
def test_a_streamlit_app_keeps_its_session_when_it_runs_again():
    program = """
import sys
from pathlib import Path
from streamlit.testing.v1 import AppTest

def report():
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    print(app.markdown[0].value, len(sum(children, [])))

app = AppTest.from_file(sys.argv[1], default_timeout=60).run()
report()
app.number_input[0].set_value(5).run()
report()
"""
    assert run("-c", program, str(ROOT / "examples/streamlit_app.py")) == "3 1\n7 1\n"


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
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to handle")
@backends
def test_sigterm_stops_the_server(backend):
    result, stopped = run("examples/sigterm.py", backend).splitlines()
    assert "text='3'" in result
    assert stopped == "SIGTERM received, server stopped"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("path", ["examples/sse.py", "examples/streamable_http.py"])
def test_a_session_runs_over_http(path, backend):
    assert run(path, backend).count("text='3'") == 1


@backends
def test_the_server_gets_a_client_certificate_and_the_client_trusts_its_ca(backend):
    refused, result = run("examples/http_tls.py", backend).splitlines()
    assert re.fullmatch(r"without a client certificate: \w+Error\(.*\)", refused)
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
    first, second, connection = run("examples/http_2.py", backend).splitlines()
    assert "text='3'" in first
    assert "text='4'" in second
    assert re.fullmatch(r"HTTP/2 from \('127.0.0.1', \d+\)", connection)  # all responses


@backends
def test_a_header_depends_on_the_call(backend):
    printed = run("examples/http_call_headers.py", backend)
    received = re.findall(r"^(\w+): .*text='(\w+)'", printed, re.MULTILINE)
    assert received == [("green", "green"), ("red", "red")]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGSTOP")
@backends
def test_pings_detect_a_frozen_server(backend):
    lost = "calculator: the connection was lost: the server did not respond to a ping within 1 s\n"
    assert run("examples/keep_alive.py", backend) == lost


@contextmanager
def web_application(path):
    """Serves an application with uvicorn, and yields its address and, at the end, its log."""
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        f"{Path(path).stem}:app",
        "--port=0",
        "--app-dir=examples",
    ]
    log = []
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not (found := re.search(r"running on (http://[\d.:]+)", log[-1] if log else "")):
                line = process.stderr.readline()
                assert line, "".join(log)
                log.append(line)
            yield found[1], log
        finally:
            process.terminate()
            log.extend(process.stderr)


def fetch(url, data=None):
    try:
        with urlopen(url, data, timeout=30) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_fastapi_application_calls_its_server():
    with web_application("examples/fastapi_app.py") as (url, log):
        assert fetch(f"{url}/add?a=1&b=2") == (200, "3")
    assert "Application shutdown complete" in "".join(log)


def test_a_fastapi_application_is_tested_with_its_server_and_with_a_fake_session():
    assert "2 passed" in run(*PYTEST, "-p", "no:asyncio", "examples/fastapi_test.py")


def test_a_fastapi_application_runs_while_one_server_is_down():
    with web_application("examples/fastapi_servers.py") as (url, log):
        assert fetch(f"{url}/health") == (200, {"calculator": "open", "search": "failed"})
        assert fetch(f"{url}/servers/calculator/tools") == (200, ["add", "process_id"])
        assert fetch(f"{url}/servers/search/tools") == (503, {"detail": "search is down"})
        assert fetch(f"{url}/servers/other/tools")[0] == 404
        assert fetch(f"{url}/jobs", b"")[0] == 202
    printed = "".join(log)
    assert printed.count("search is down: All connection attempts failed") == 2
    assert re.search("background task got .*text='3'", printed)
    assert "Application shutdown complete" in printed


def test_an_application_opens_a_session_for_each_tenant():
    """It is examples/tenants.py."""
    running = runpy.run_path(str(ROOT / "examples/http_server.py"))["running"]

    def fetch(path, **options):
        with urlopen(Request(url + path, **options), timeout=60) as response:
            return json.load(response)

    with running("uvicorn", "tenants:app", "--port=0", "--no-access-log") as url:
        with ThreadPoolExecutor(18) as threads:
            paths = [f"/tenant-{number}/add" for number in range(1, 7)] * 3
            assert list(threads.map(fetch, paths)) == [["3"]] * 18
        assert fetch("/tenant-1/key", data=b"new key", method="PUT") is None
        assert fetch("/tenant-1/add") == ["3"]
        with pytest.raises(HTTPError, match="404"):
            fetch("/tenant-13/add")


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
    running_uvicorn = runpy.run_path(str(ROOT / "examples/http_server.py"))["running_uvicorn"]
    app = "token_server:app" if "TOKEN" in line else "server:server.streamable_http_app"
    with running_uvicorn(app=app) if " http " in line else nullcontext(PAGE_URL) as url:
        process = in_a_shell(line.replace(PAGE_URL, url), TOKEN="valid")
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
        *_, server = children.split()  # a forked program also has a fork server
        os.kill(int(server), signal.SIGKILL)
        read_until_open()
        process.send_signal(signal.SIGINT)
        printed += process.stdout.read()
    assert process.returncode == 130
    assert without_numbers(printed) == shown("watch.txt")


def test_every_example_is_tested():
    named = set(re.findall(r"examples/(\w+)\.py|\"(pytest_\w+)\"", Path(__file__).read_text()))
    tested = {path or plugin for path, plugin in named}
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} - HELPERS == tested - HELPERS


def test_every_framework_has_a_nox_session_and_its_code_on_a_page():
    shown = {block.path for page in pages() for block in blocks(page) if block.whole}
    table = (ROOT / "noxfile.py").read_text().partition("\nFRAMEWORKS = {")[2].partition("\n}")[0]
    names = {path.stem for path in (ROOT / "examples/frameworks").glob("*.py")}
    names -= {"patched_mcp_use_server", "scenario"}
    assert names == set(re.findall(r'^    "(\w+)": \(', table, re.MULTILINE))
    assert {f"examples/frameworks/{name}.py" for name in names} <= shown


def test_the_reference_documents_every_public_name():
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    documented = set(re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE))
    public = {f"ownertask.{name}" for name in ownertask.__all__ if name not in ownertask.errors.__all__}
    public |= {f"ownertask.mcp.{name}" for name in ownertask.mcp.__all__}
    public |= {f"ownertask.testing.{name}" for name in ownertask.testing.__all__}
    assert documented == public | {"ownertask.errors"}
