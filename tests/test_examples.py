"""Every example runs, and the README shows what is in them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*args):
    return subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    ).stdout


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_quickstart_tells_what_each_task_did(backend):
    lines = run("examples/quickstart.py", backend).splitlines()
    assert [line.rpartition("state: ")[2] for line in lines] == [
        "new",
        "new",
        "open",
        "open",
        "open",
        "open",
        "open",
        "closed",
        "closed",
    ]
    assert {"1 + 1 = 2", "2 + 2 = 4", "3 + 3 = 6"} <= {line[11:37].strip() for line in lines}


def test_three_tasks():
    assert run("examples/three_tasks.py").count("text='3'") == 2


def test_own_transport():
    assert run("examples/own_transport.py") == "b'hello'\n"


def test_noticing_a_loss():
    assert run("examples/noticing_a_loss.py").splitlines() == [
        "counter: the connection was lost, because: the cable was cut",
        "counter: the connection was lost, because: the cable was cut again",
    ]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("path", ["examples/sse.py", "examples/streamable_http.py"])
def test_over_http(path, backend):
    assert run(path, backend).count("text='3'") == 1


def test_the_web_app_does_without_the_server_that_is_down():
    assert run("examples/web_app.py").splitlines() == [
        "search is down: ConnectError",
        "/health: 200 {'calculator': 'open', 'search': 'failed'}",
        "/add/calculator: 200 ['3']",
        "/add/search: 503 {'down': 'ConnectError'}",
    ]


def test_websocket():
    assert "text='3'" in run("examples/websocket.py")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise on Windows")
def test_ctrl_c_on_trio():
    command = [sys.executable, "examples/ctrl_c_on_trio.py"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"press Ctrl-C\n"
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.communicate(timeout=30)[1]


def test_every_example_is_tested():
    tested = set(re.findall(r"examples/(\w+)\.py", Path(__file__).read_text()))
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} - {"server", "http_server"} == tested


def test_the_readme_shows_the_example():
    source = (ROOT / "examples" / "three_tasks.py").read_text()
    shown = source.partition("[start:readme]\n")[2].partition("\n\n# --8<-- [end:readme]")[0].strip()
    assert shown in (ROOT / "README.md").read_text()
    assert len([line for line in shown.splitlines() if line]) <= 12


def test_the_pages_include_snippets_in_the_form_that_is_understood():
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    assert pages.count('\n--8<-- "examples/') == len(re.findall(r"--8\b|--8\s*<", pages)) > 0
