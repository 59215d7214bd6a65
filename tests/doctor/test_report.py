"""Tests the report of `check`: the JSON document, the text, and what is found to be left behind."""

import errno
import io
import json
import logging
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
from importlib.metadata import version
from math import isfinite
from pathlib import Path

import pytest
from anyio import sleep_forever
from doctor.calls import (
    BACKENDS,
    OLD_SDK_GARBAGE,
    PYTHON,
    call,
    config_file,
    ending_process_in,
    scripted,
    serving,
    stdio,
)
from session_server import SessionServer, SseServer, error_of, status
from websocket_peers import websocket_server

import ownertask
from ownertask import StopTimeoutError
from ownertask.mcp import SessionConnectionManager, StdioConnectionManager
from ownertask.testing import Resources

pytestmark = OLD_SDK_GARBAGE

EVERYTHING = {"tools": {}, "resources": {}, "prompts": {}}
STDIO_PHASES = ["spawn", "handshake", "list", "ping", "close"]
URL_PHASES = ["connect", "handshake", "list", "ping", "close"]
LONGEST = 60
"""Far longer than any phase of these tests, in seconds. A number of milliseconds would exceed it."""

# The exact form of the document. A tuple lists alternatives, and a list has one item for all.
PHASE = {"name": str, "seconds": float, "min": float, "max": float}
SERVER_INFO = {"name": str, "version": str, "protocol": str, "capabilities": [str]}
FAILURE = {"phase": str, "type": str, "message": str, "notes": [str], "cause": str, "try": [str]}
SERVER = {
    "name": str,
    "transport": str,
    "ok": bool,
    "connections": int,
    "phases": [PHASE],
    "server": (SERVER_INFO, None),
    "tools": ([str], None),
    "resources": ([str], None),
    "prompts": ([str], None),
    "stderr": str,
    "remarks": [str],
    "failure": (FAILURE, None),
}
DOCUMENT = {
    "ok": bool,
    "interrupted": bool,
    "backend": str,
    "versions": {"ownertask": str, "mcp": str, "python": str},
    "servers": [SERVER],
    "left": [str],
    "log": [str],
}


def difference(value, shape, place="document"):
    """Returns the first place at which a value does not have the shape, or `None`."""
    if isinstance(shape, tuple):
        found = [difference(value, each, place) for each in shape]
        return None if None in found else found[0]
    if shape is None or isinstance(shape, type):
        expected = type(None) if shape is None else shape
        is_number = expected is float and type(value) is int
        return None if type(value) is expected or is_number else f"{place}: {value!r}"
    if type(value) is not type(shape):
        return f"{place}: {value!r}"
    if isinstance(shape, list):
        items = [(item, shape[0], f"{place}[{index}]") for index, item in enumerate(value)]
    elif list(value) != list(shape):
        return f"{place}: the keys are {list(value)}"
    else:
        items = [(value[key], shape[key], f"{place}.{key}") for key in shape]
    return next((found for item in items if (found := difference(*item))), None)


def checked(called):
    """Returns the document after checking its shape and that its parts agree with each other."""
    assert called.err == ""
    document = called.document
    assert difference(document, DOCUMENT) is None
    for server in document["servers"]:
        assert server["ok"] == (server["failure"] is None and server["connections"] > 0)
        names = [phase["name"] for phase in server["phases"]]
        order = STDIO_PHASES if server["transport"] == "stdio" else URL_PHASES
        assert names == [name for name in order if name in names]
        for phase in server["phases"]:
            assert 0 <= phase["min"] <= phase["seconds"] <= phase["max"] < LONGEST
            assert isfinite(phase["max"])
        if server["failure"] is not None:
            assert server["failure"]["phase"] in order
            assert server["failure"]["try"]
            assert server["failure"]["cause"].endswith(".")
    is_good = all(server["ok"] for server in document["servers"]) and not document["left"]
    assert document["ok"] == (is_good and not document["interrupted"])
    if not document["interrupted"]:
        assert called.code == (0 if document["ok"] else 1)
    return document


def only_server(called):
    (server,) = checked(called)["servers"]
    return server


def phases_in(server):
    return [phase["name"] for phase in server["phases"]]


def blocks_of(called):
    return called.out.rstrip("\n").split("\n\n")


DURATION = r"[\d.,]+ (ms|s)"


def phase_lines(text):
    """Returns the names of the phases in the text, and what follows the duration."""
    found = {}
    for line in text.splitlines():
        if match := re.fullmatch(rf"(?:\w+: )?(\w+) +{DURATION}(?:  +(.+))?", line):
            found[match[1]] = match[3] or ""
    return found


def calculator(folder, **script):
    """Returns the arguments for a server that works."""
    script |= {"name": "Calculator", "version": "1.2.0", "tools": ["divide", "add"]}
    return stdio(folder, capabilities=EVERYTHING, **script)


def fields(text):
    """Returns the values of the lines that begin with a name in a column."""
    return dict(re.findall(r"(?m)^([a-z]+(?: behind)?) {2,}(.*)$", text))


# ---- the document ----


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_document_describes_a_server_that_works(backend, tmp_path, capfd):
    target = calculator(
        tmp_path,
        resources=["memo://b", "memo://a"],
        prompts=["explain"],
        stderr="ready\n",
    )
    called = call(capfd, "check", "--json", "--backend", backend, *target)
    document = checked(called)
    assert called.code == 0
    assert document["ok"] is True
    assert document["interrupted"] is False
    assert document["backend"] == backend
    assert document["versions"] == {
        "ownertask": ownertask.__version__,
        "mcp": version("mcp"),
        "python": platform.python_version(),
    }
    assert document["left"] == []
    assert document["log"] == []
    (server,) = document["servers"]
    assert server["name"]
    assert (server["transport"], server["connections"]) == ("stdio", 1)
    assert phases_in(server) == STDIO_PHASES
    info = server["server"]
    assert (info["name"], info["version"]) == ("Calculator", "1.2.0")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", info["protocol"])
    assert info["capabilities"] == ["prompts", "resources", "tools"]
    assert server["tools"] == ["divide", "add"]  # in the server's order
    assert server["resources"] == ["memo://b", "memo://a"]
    assert server["prompts"] == ["explain"]
    assert server["stderr"].rstrip("\n") == "ready"
    assert server["failure"] is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_document_describes_an_http_server(backend, capfd):
    server = SessionServer()
    with serving(server) as url:
        document = checked(call(capfd, "check", "--json", "--backend", backend, "http", url))
    (found,) = document["servers"]
    assert found["transport"] == "http"
    assert phases_in(found) == URL_PHASES
    assert found["server"]["name"] == "scripted"
    assert (found["tools"], found["resources"], found["prompts"]) == (["add"], [], [])
    assert document["left"] == []
    assert server.count("DELETE") == 1  # the session was ended


def test_the_document_describes_a_websocket_server(capfd):
    def answer(websocket):
        for line in websocket:
            message = json.loads(line)
            params = message.get("params", {})
            results = {
                "initialize": {
                    "protocolVersion": params.get("protocolVersion"),
                    "capabilities": {},
                    "serverInfo": {"name": "socket", "version": "2"},
                },
                "ping": {},
            }
            if "id" in message:
                result = results[message["method"]]
                websocket.send(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}))

    with websocket_server(answer) as url:
        found = only_server(call(capfd, "check", "--json", "ws", url))
    assert found["transport"] == "ws"
    # Nothing is listed if the server has no capability.
    assert set(phases_in(found)) - {"list"} == set(URL_PHASES) - {"list"}
    assert (found["tools"], found["resources"], found["prompts"]) == ([], [], [])


# For each failure: the script of the server, the phase, and a part of the message.
FAILURES = {
    "exits at once": ({"exits": {"initialize": 3}}, "handshake", "exited with status 3"),
    "refuses": ({"errors": {"initialize": "not today"}}, "handshake", "not today"),
    "is silent": ({"silent": ["initialize"]}, "handshake", ""),
    "fails to list tools": ({"errors": {"tools/list": "no tools today"}}, "list", "no tools today"),
    "fails to list prompts": ({"errors": {"prompts/list": "no prompts"}}, "list", "no prompts"),
    "exits while listing": ({"exits": {"resources/list": 4}}, "list", "exited with status 4"),
    "never lists": ({"silent": ["prompts/list"]}, "list", ""),
    "exits at the ping": ({"exits": {"ping": 5}}, "ping", "exited with status 5"),
    "refuses the ping": ({"errors": {"ping": "no ping"}}, "ping", "no ping"),
    "never answers the ping": ({"silent": ["ping"]}, "ping", ""),
}
TRIO_TOO = {"exits at once", "fails to list tools", "never answers the ping"}
FAILURE_CASES = [
    (case, backend)
    for case in FAILURES
    for backend in BACKENDS
    if backend == "asyncio" or case in TRIO_TOO
]


def failing(folder, case):
    script, phase, text = FAILURES[case]
    options = ("--timeout", "0.3") if "silent" in script else ("--timeout", "20")
    return [*options, *stdio(folder, capabilities=EVERYTHING, tools=["add"], **script)], phase, text


@pytest.mark.parametrize(("case", "backend"), FAILURE_CASES)
def test_the_document_describes_a_failure(case, backend, tmp_path, capfd):
    arguments, phase, text = failing(tmp_path, case)
    called = call(capfd, "check", "--json", "--backend", backend, *arguments)
    document = checked(called)
    (server,) = document["servers"]
    assert called.code == 1
    assert (server["ok"], server["connections"], document["left"]) == (False, 0, [])
    failure = server["failure"]
    assert failure["phase"] == phase
    assert text in failure["message"]
    assert failure["type"].isidentifier()
    assert failure["cause"]
    if phase == "handshake":
        assert server["server"] is None
        assert (server["tools"], server["resources"], server["prompts"]) == (None, None, None)
    else:
        assert server["server"]["name"] == "scripted"
        assert phases_in(server)[-1] == "close"
    assert (
        phases_in(server)[: phases_in(server).index(phase) + 1]
        == STDIO_PHASES[: STDIO_PHASES.index(phase) + 1]
    )
    if case == "fails to list tools":
        assert server["tools"] is None
    if case == "fails to list prompts":
        assert (server["tools"], server["prompts"]) == (["add"], None)


def test_a_command_that_does_not_exist_fails_to_spawn(tmp_path, capfd):
    server = only_server(call(capfd, "check", "--json", "stdio", "--", tmp_path / "missing"))
    assert server["failure"]["phase"] == "spawn"
    assert server["failure"]["type"] == "FileNotFoundError"
    assert set(phases_in(server)) <= {"spawn"}
    assert server["server"] is None


@pytest.mark.parametrize("transport", ["http", "sse", "ws"])
def test_a_port_on_which_nothing_listens_fails_to_connect(transport, capfd):
    scheme = "ws" if transport == "ws" else "http"
    server = only_server(call(capfd, "check", "--json", transport, f"{scheme}://127.0.0.1:9/mcp"))
    assert server["failure"]["phase"] == "connect"
    assert phases_in(server)[0] == "connect"
    assert set(phases_in(server)) <= {"connect", "close"}


def test_a_status_fails_the_handshake_of_http_and_the_upgrade_of_ws(capfd):
    with serving(status("403 Forbidden")) as url:
        for transport in ("http", "sse"):
            server = only_server(call(capfd, "check", "--json", transport, url))
            assert server["failure"]["phase"] == "handshake"
            assert phases_in(server)[:2] == ["connect", "handshake"]
            said = json.dumps(server["failure"])
            assert "403" in said
        server = only_server(call(capfd, "check", "--json", "ws", url.replace("http", "ws")))
        assert server["failure"]["phase"] == "connect"


def test_a_session_over_sse_may_be_refused_later(capfd):
    with serving(SseServer("/messages", "initialize")) as url:
        server = only_server(call(capfd, "check", "--json", "--timeout", "5", "sse", url))
    assert server["failure"]["phase"] == "handshake"


def test_an_http_server_may_fail_to_list(capfd):
    async def refuse(request):
        await request.answer(body=error_of(request, -32000, "no tools today"))

    with serving(SessionServer(**{"tools/list": refuse})) as url:
        server = only_server(call(capfd, "check", "--json", "http", url))
    assert server["failure"]["phase"] == "list"
    assert "no tools today" in server["failure"]["message"]


def test_an_environment_that_breaks_one_transport_does_not_hide_the_other_servers(
    tmp_path, capfd, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
    config = config_file(tmp_path, weather=scripted(tmp_path), remote={"url": "https://example.org/mcp"})
    document = checked(call(capfd, "check", "--json", "--config", config))
    weather, remote = document["servers"]
    assert weather["ok"]
    assert remote["failure"]["type"] == "FileNotFoundError"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_duration_of_a_failed_phase_does_not_count_beside_others(backend, tmp_path, capfd):
    """The last connection fails after its timeout, which is longer than the other durations."""
    script = {"silent": ["ping"], "runs": str(tmp_path / "runs"), "from": 3}
    options = ["--json", "--backend", backend, "--repeat", "9", "--timeout", "2"]
    called = call(capfd, "check", *options, *stdio(tmp_path, **script))
    (server,) = checked(called)["servers"]
    assert (server["connections"], server["failure"]["phase"]) == (2, "ping")
    (ping,) = [phase for phase in server["phases"] if phase["name"] == "ping"]
    assert ping["max"] < 2


def test_the_message_does_not_repeat_the_name_of_the_server(tmp_path, capfd):
    config = config_file(tmp_path, weather=scripted(tmp_path, exits={"initialize": 3}))
    server = only_server(call(capfd, "check", "--json", "--config", config))
    assert server["name"] == "weather"
    assert not server["failure"]["message"].startswith("weather: ")
    assert not any("raised by" in note for note in server["failure"]["notes"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_document_describes_all_servers_of_a_file_in_its_order(backend, tmp_path, capfd):
    with serving(SessionServer()) as url:
        config = config_file(
            tmp_path,
            zebra=scripted(tmp_path, tools=["z"]),
            broken=scripted(tmp_path, exits={"initialize": 3}),
            remote={"url": url},
            off={"command": "missing", "disabled": True},
            gone={"command": str(tmp_path / "missing")},
            alpha=scripted(tmp_path, tools=["a"]),
        )
        called = call(capfd, "check", "--json", "--backend", backend, "--config", config)
    document = checked(called)
    assert called.code == 1
    servers = {server["name"]: server for server in document["servers"]}
    assert list(servers) == ["zebra", "broken", "remote", "gone", "alpha"]
    works = {name: server["ok"] for name, server in servers.items()}
    assert works == {"zebra": True, "broken": False, "remote": True, "gone": False, "alpha": True}
    assert [servers[name]["tools"] for name in ("zebra", "remote", "alpha")] == [["z"], ["add"], ["a"]]
    assert servers["gone"]["failure"]["phase"] == "spawn"


def test_the_servers_of_a_file_are_checked_at_once(tmp_path, capfd):
    """Each server answers only after all servers were started."""
    path = tmp_path / "meeting.py"
    path.write_text(
        "import os, socket, sys\n"
        "socket.create_connection(('127.0.0.1', int(sys.argv[1]))).recv(1)\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[2:]])\n"
    )
    command = scripted(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def release():
            connections = [listener.accept()[0] for _ in range(3)]
            for connection in connections:
                connection.close()

        thread = threading.Thread(target=release)
        thread.start()
        port = str(listener.getsockname()[1])
        servers = {name: [*PYTHON, str(path), port, *command[1:]] for name in ("a1", "b1", "c1")}
        config = config_file(tmp_path, **servers)
        called = call(capfd, "check", "--json", "--timeout=20", "--config", config)
        assert called.code == 0, called
        thread.join()


@pytest.mark.parametrize("backend", BACKENDS)
def test_repetitions_are_counted_and_summarized(backend, tmp_path, capfd):
    runs = tmp_path / "runs"
    target = stdio(tmp_path, runs=str(runs), **{"from": 99})
    called = call(capfd, "check", "--json", "--repeat", "3", "--backend", backend, *target)
    server = only_server(called)
    assert server["connections"] == 3
    assert runs.read_text() == "xxx"
    assert phases_in(server) == STDIO_PHASES
    assert any(phase["min"] < phase["max"] for phase in server["phases"])


def test_without_repetition_all_durations_of_a_phase_are_the_same(tmp_path, capfd):
    server = only_server(call(capfd, "check", "--json", *stdio(tmp_path)))
    for phase in server["phases"]:
        assert phase["min"] == phase["seconds"] == phase["max"]


@pytest.mark.parametrize(
    ("script", "phase"),
    [
        ({"exits": {"initialize": 3}}, "handshake"),
        ({"errors": {"tools/list": "no more"}}, "list"),
        ({"exits": {"ping": 3}}, "ping"),
    ],
)
def test_a_server_that_works_only_once_fails(script, phase, tmp_path, capfd):
    runs = tmp_path / "runs"
    target = stdio(tmp_path, runs=str(runs), tools=["add"], **script, **{"from": 2})
    server = only_server(call(capfd, "check", "--json", "--repeat", "4", *target))
    assert server["connections"] == 1
    assert server["failure"]["phase"] == phase
    assert runs.read_text() == "xx"  # it stops after the first failure
    assert server["server"]["name"] == "scripted"
    runs.unlink()
    called = call(capfd, "check", "--repeat", "4", *target)
    assert called.code == 1
    assert f"{phase}" in called.out
    assert "failed" in called.out


def test_one_failure_does_not_end_the_repetitions_of_another_server(tmp_path, capfd):
    runs = tmp_path / "runs"
    config = config_file(
        tmp_path,
        good=scripted(tmp_path, runs=str(runs), **{"from": 99}),
        bad=scripted(tmp_path, exits={"initialize": 1}),
    )
    document = checked(call(capfd, "check", "--json", "--repeat", "3", "--config", config))
    assert [server["connections"] for server in document["servers"]] == [3, 0]
    assert runs.read_text() == "xxx"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("method", "phase"), [("initialize", "handshake"), ("tools/list", "list"), ("ping", "ping")]
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_document_of_an_interrupted_check_is_complete(
    backend, method, phase, number, code, tmp_path, capfd
):
    """The server sends the signal when it is called, and never answers."""
    script = {"signals": {method: [os.getpid(), int(number)]}, "silent": [method]}
    called = call(capfd, "check", "--json", "--backend", backend, *stdio(tmp_path, **script))
    assert called.code == code
    document = checked(called)
    assert document["interrupted"] is True
    assert document["ok"] is False
    assert document["left"] == []
    (server,) = document["servers"]
    assert server["connections"] == 0
    assert (
        phases_in(server)[: phases_in(server).index(phase)] == STDIO_PHASES[: STDIO_PHASES.index(phase)]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_text_of_an_interrupted_check_names_the_phase(backend, tmp_path, capfd):
    script = {"signals": {"ping": [os.getpid(), int(signal.SIGINT)]}, "silent": ["ping"]}
    config = config_file(tmp_path, weather=scripted(tmp_path, **script))
    called = call(capfd, "check", "--backend", backend, "--config", config)
    assert (called.code, called.err) == (130, "")
    assert "interrupted while weather was in ping" in called.out
    assert "closed" in called.lines


# ---- the text ----


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_text_of_a_server_that_works(backend, tmp_path, capfd):
    called = call(capfd, "check", "--backend", backend, *calculator(tmp_path))
    assert (called.code, called.err) == (0, "")
    phases, facts = blocks_of(called)
    assert phase_lines(phases) == dict.fromkeys(STDIO_PHASES, "")
    assert len(phases.splitlines()) == 5
    found = fields(facts)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found.pop("protocol"))
    assert found == {
        "server": "Calculator 1.2.0",
        "capabilities": "prompts, resources, tools",
        "tools": "divide, add",
        "resources": "none",
        "prompts": "none",
        "left behind": "nothing",
    }
    assert "\x1b" not in called.out
    assert not any(line.endswith(" ") for line in called.lines)


def test_the_numbers_of_the_text_are_aligned(tmp_path, capfd):
    phases = blocks_of(call(capfd, "check", *stdio(tmp_path)))[0]
    assert len({len(line) for line in phases.splitlines()}) == 1


def test_stderr_of_a_server_is_a_block(tmp_path, capfd):
    called = call(capfd, "check", *stdio(tmp_path, stderr="loading\n\n  ready: 100 %\n"))
    assert called.code == 0
    begin = called.lines.index("stderr:")
    assert called.lines[begin + 1] == "    loading"
    assert "      ready: 100 %" in called.lines[begin:]


@pytest.mark.parametrize(("case", "backend"), FAILURE_CASES)
def test_the_text_of_a_failure_names_the_phase_the_error_and_a_cause(case, backend, tmp_path, capfd):
    arguments, phase, text = failing(tmp_path, case)
    called = call(capfd, "check", "--backend", backend, *arguments)
    assert (called.code, called.err) == (1, "")
    phases = phase_lines(blocks_of(called)[0])
    assert phases[phase] == "failed"
    assert [name for name in phases if phases[name]] == [phase]
    assert text in called.out
    found = fields(called.out)
    assert found["cause"].endswith(".")
    assert found["try"]
    assert found["left behind"] == "nothing"
    assert re.search(r"(?m)^\w+(Error|Exception|Exit)?: ", called.out) or "Timeout" in called.out


def test_a_failure_shows_stderr(tmp_path, capfd):
    called = call(capfd, "check", *stdio(tmp_path, stderr="no license found\n", exits={"initialize": 3}))
    assert called.code == 1
    begin = called.lines.index("stderr:")
    assert called.lines[begin + 1] == "    no license found"
    assert "exited with status 3" in called.out


def test_the_text_of_several_servers_names_each(tmp_path, capfd):
    config = config_file(
        tmp_path,
        weather=scripted(tmp_path, tools=["forecast"]),
        broken=scripted(tmp_path, exits={"initialize": 3}),
    )
    called = call(capfd, "check", "--config", config)
    assert called.code == 1
    lines = [line for line in called.lines if re.search(rf"{DURATION}(  +failed)?$", line)]
    assert lines
    for line in lines:
        assert line.startswith(("weather: ", "broken: ")), line
    assert sum(line.startswith("weather: ") for line in lines) == 5
    assert re.search(r"(?m)^weather\b", called.out.split("\n\n", 1)[1])
    assert re.search(r"(?m)^broken\b", called.out.split("\n\n", 1)[1])
    assert "forecast" in called.out
    assert "status 3" in called.out


def test_repetitions_are_summarized_in_a_table(tmp_path, capfd):
    called = call(capfd, "check", "--repeat", "3", *stdio(tmp_path))
    assert called.code == 0
    header = next(line for line in called.lines if {"min", "median", "max"} <= set(line.split()))
    assert [word for word in header.split() if word in {"min", "median", "max"}] == [
        "min",
        "median",
        "max",
    ]
    rows = called.lines[called.lines.index(header) + 1 :][:5]
    assert [row.split()[0] for row in rows] == STDIO_PHASES
    for row in rows:
        assert len(re.findall(r"[\d.]+", row)) == 3


def test_without_repetition_there_is_no_table(tmp_path, capfd):
    assert "median" not in call(capfd, "check", "--repeat", "1", *stdio(tmp_path)).out


# ---- quiet ----


@pytest.mark.parametrize("backend", BACKENDS)
def test_quiet_prints_nothing_if_all_is_well(backend, tmp_path, capfd):
    options = ["--quiet", "--repeat", "2", "--backend", backend]
    assert call(capfd, "check", *options, *stdio(tmp_path, stderr="ready\n")) == (0, "", "")


def test_quiet_prints_only_the_servers_that_failed(tmp_path, capfd):
    config = config_file(
        tmp_path,
        weather=scripted(tmp_path, tools=["forecast"]),
        broken=scripted(tmp_path, exits={"initialize": 3}),
    )
    called = call(capfd, "check", "--quiet", "--config", config)
    assert (called.code, called.err) == (1, "")
    assert "broken" in called.out
    assert "status 3" in called.out
    assert "weather" not in called.out
    assert "forecast" not in called.out


def test_quiet_reports_an_interruption(tmp_path, capfd):
    script = {"signals": {"ping": [os.getpid(), int(signal.SIGINT)]}, "silent": ["ping"]}
    assert call(capfd, "check", "--quiet", *stdio(tmp_path, **script)).code == 130


# ---- lists ----


@pytest.mark.parametrize("page", [1, 2, 3])
def test_all_pages_of_a_list_are_read(page, tmp_path, capfd):
    names = ["a", "b", "c", "d", "e"]
    uris = [f"memo://{name}" for name in names]
    script = {"tools": names, "resources": uris, "prompts": names, "page": page}
    target = stdio(tmp_path, capabilities=EVERYTHING, **script)
    server = only_server(call(capfd, "check", "--json", *target))
    assert (server["tools"], server["resources"], server["prompts"]) == (names, uris, names)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_list_without_end_is_a_failure(backend, tmp_path, capfd):
    """A server that sends the same cursor again and again must not fill the memory."""
    path = tmp_path / "endless.py"
    path.write_text(ENDLESS)
    options = ["--json", "--backend", backend, "--timeout", "1"]
    server = only_server(call(capfd, "check", *options, "stdio", "--", *PYTHON, path))
    assert server["failure"]["phase"] == "list"


ENDLESS = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message["method"] == "initialize":
        result = {
            "protocolVersion": message["params"]["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "endless", "version": "1"},
        }
    else:
        tool = {"name": "again", "inputSchema": {"type": "object"}}
        result = {"tools": [tool], "nextCursor": "again"}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


def test_a_server_without_capabilities_is_asked_for_no_list(tmp_path, capfd):
    script = dict.fromkeys(("tools/list", "resources/list", "prompts/list"), "must not be called")
    target = stdio(tmp_path, capabilities={}, tools=["hidden"], errors=script)
    server = only_server(call(capfd, "check", "--json", *target))
    assert server["server"]["capabilities"] == []
    assert (server["tools"], server["resources"], server["prompts"]) == ([], [], [])
    called = call(capfd, "check", *target)
    assert called.code == 0
    found = fields(called.out)
    assert {found[name] for name in ("capabilities", "tools", "resources", "prompts")} == {"none"}


def test_the_text_of_an_enormous_list_is_bounded(tmp_path, capfd):
    names = [f"tool_number_{number}" for number in range(10_000)]
    target = stdio(tmp_path, tools=names, page=2500)
    called = call(capfd, "check", *target)
    assert called.code == 0
    assert len(called.out) < 5000
    assert "tool_number_0" in called.out
    assert "9" in called.out
    assert "more" in called.out
    server = only_server(call(capfd, "check", "--json", *target))
    assert len(server["tools"]) == 10_000


@pytest.mark.parametrize("key", ["tools", "name", "version"])
def test_the_text_of_an_enormous_name_is_bounded(key, tmp_path, capfd):
    name = "n" * 200_000
    called = call(capfd, "check", *stdio(tmp_path, **{key: [name] if key == "tools" else name}))
    assert called.code == 0
    assert len(called.out) < 10_000


def test_the_text_of_an_enormous_error_is_bounded(tmp_path, capfd):
    called = call(capfd, "check", *stdio(tmp_path, errors={"tools/list": "x" * 200_000}))
    assert called.code == 1
    assert len(called.out) < 20_000


def test_many_servers_and_phases_are_reported(tmp_path, capfd):
    servers = {f"s{number}": scripted(tmp_path) for number in range(8)}
    document = checked(call(capfd, "check", "--json", "--config", config_file(tmp_path, **servers)))
    assert [server["ok"] for server in document["servers"]] == [True] * 8


# ---- texts that could drive the terminal ----

HOSTILE = {
    "an escape sequence": "\x1b[2J\x1b[31mred",
    "a title": "\x1b]0;title\x07",
    "an 8-bit sequence": "\x9b31m",
    "a line break": "one\ntwo",
    "a carriage return": "one\rtwo",
    "a backspace": "one\b\b\btwo",
    "a tab": "one\ttwo",
    "a delete": "one\x7ftwo",
    "a line separator": "one\u2028two\u2029three\x85four\x0bfive\x0csix",
    "a right-to-left override": "one\u202etxt.exe\u2066\u200f",
    "a NUL character": "one\0two",
    "markup": "[bold red]one[/bold red] [link=http://example.org]two[/link] :smile:",
    "closing markup": "[/]",
    "a lone surrogate": "one\ud800two",
    "a zero-width character": "one\u200btwo\ufefftwo",
}
CONTROLS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


@pytest.mark.parametrize("case", HOSTILE)
def test_texts_of_a_server_cannot_control_the_terminal(case, tmp_path, capfd):
    text = HOSTILE[case]
    script = {"capabilities": {"tools": {}, "prompts": {}}, "name": text, "version": text}
    lists = {"tools": [text, "plain"], "prompts": [text]}
    # The SDK drops a message with a lone surrogate, so the request is never answered.
    options = ("--timeout", "0.5" if case == "a lone surrogate" else "20")
    good = call(capfd, "check", *options, *stdio(tmp_path, **script, **lists))
    bad = call(capfd, "check", *options, *stdio(tmp_path, **script, errors={"tools/list": text}))
    if case != "a lone surrogate":
        assert (good.code, bad.code) == (0, 1)
        assert "plain" in good.out
    for called in (good, bad):
        assert not CONTROLS.findall(called.out)
        # Neither a new line nor a column is forged.
        assert not any(line.startswith(("two", "three", "four", "five", "six")) for line in called.lines)
    if "markup" in case:
        assert text in good.out
        assert text in bad.out


@pytest.mark.parametrize("case", HOSTILE)
def test_texts_of_a_server_are_complete_in_the_document(case, tmp_path, capfd):
    text = HOSTILE[case]
    options = ("--json", "--timeout", "0.5" if case == "a lone surrogate" else "20")
    called = call(capfd, "check", *options, *stdio(tmp_path, name=text, tools=[text]))
    server = only_server(called)
    if case != "a lone surrogate":
        assert called.code == 0
        assert [server["server"]["name"], *server["tools"]] == [text, text]
    assert not CONTROLS.findall(called.out)


def test_stderr_cannot_control_the_terminal(tmp_path, capfd):
    text = "\n".join(text for case, text in HOSTILE.items() if case != "a lone surrogate")
    target = stdio(tmp_path, stderr=f"{text}\nleft behind   a lie\n\nok\n")
    called = call(capfd, "check", *target)
    assert called.code == 0
    assert not CONTROLS.findall(called.out)
    begin = called.lines.index("stderr:")
    end = max(index for index, line in enumerate(called.lines) if line.startswith("    "))
    assert all(not line or line.startswith("    ") for line in called.lines[begin + 1 : end])
    assert fields(called.out)["left behind"] == "nothing"


def test_stderr_may_contain_bytes_that_are_not_text(tmp_path, capfd):
    path = tmp_path / "bytes.py"
    path.write_text("import os\nos.write(2, b'\\xff\\xfe\\x00 done\\n')\n")
    for mode in ([], ["--json"]):
        called = call(capfd, "check", *mode, "stdio", "--", *PYTHON, path)
        assert called.code == 1
        assert "done" in called.out
        assert not CONTROLS.findall(called.out)


@pytest.mark.parametrize(
    "name", ["\x1b[31mred", "two\nlines", "[bold]", " ", "x" * 300, "é☃", "\u202eabc"]
)
def test_the_name_of_a_server_in_a_file_cannot_control_the_terminal(name, tmp_path, capfd):
    config = config_file(
        tmp_path, **{name: scripted(tmp_path), "bad": scripted(tmp_path, exits={"initialize": 1})}
    )
    called = call(capfd, "check", "--config", config)
    assert called.code == 1
    assert not CONTROLS.findall(called.out)
    document = checked(call(capfd, "check", "--json", "--config", config))
    assert [server["name"] for server in document["servers"]] == [name, "bad"]


# ---- floods and garbage ----


def test_a_flood_on_stderr_is_bounded(tmp_path, capfd):
    lines = "".join(f"{number:079}\n" for number in range(50_000))
    for script in ({}, {"exits": {"tools/list": 1}}):
        target = stdio(tmp_path, stderr=lines, **script)
        called = call(capfd, "check", *target)
        assert called.code == (1 if script else 0)
        assert len(called.out) < 40_000
        assert f"{49_999:079}" in called.out  # the end is what matters
        server = only_server(call(capfd, "check", "--json", *target))
        assert len(server["stderr"]) < 40_000


@pytest.mark.parametrize("backend", BACKENDS)
def test_output_that_is_not_a_message_is_reported_without_a_failure(backend, tmp_path, capfd):
    target = stdio(tmp_path, stdout="Listening on port 80\nnot JSON\n")
    called = call(capfd, "check", "--json", "--backend", backend, *target)
    document = checked(called)
    assert document["ok"] is True
    (server,) = document["servers"]
    assert server["remarks"] == ["the server sent text on its stdout that is not a message (2 times)"]
    called = call(capfd, "check", *target)
    assert (called.code, called.err) == (0, "")
    assert "text on its stdout that is not a message (2 times)" in fields(called.out)["note"]


def test_output_that_is_not_a_message_is_a_note_of_a_failure(tmp_path, capfd):
    target = stdio(tmp_path, stdout="Listening on port 80\n", silent=["initialize"])
    server = only_server(call(capfd, "check", "--json", "--timeout", "0.5", *target))
    assert "that is not a message" in " ".join(server["failure"]["notes"] + [server["failure"]["cause"]])


def test_a_list_that_refers_to_an_earlier_page_is_a_failure(tmp_path, capfd):
    target = stdio(tmp_path, tools=["a", "b", "c"], page=1, endless=True)
    server = only_server(call(capfd, "check", "--json", *target))
    assert server["failure"]["phase"] == "list"
    assert (
        server["failure"]["message"] == "the list of tools never ends: a page refers to an earlier one"
    )
    assert server["tools"] is None


@pytest.mark.parametrize(("pages", "code"), [(3, 0), (4, 1)])
def test_a_list_with_too_many_pages_is_a_failure(pages, code, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("ownertask._doctor.server_check.MAX_PAGES", 3)
    target = stdio(tmp_path, tools=[f"t{number}" for number in range(pages)], page=1)
    called = call(capfd, "check", *target)
    assert called.code == code
    assert ("ValueError: the list of tools has more than 3 pages" in called.lines) is (pages == 4)


def test_the_log_does_not_repeat_a_failure(tmp_path, capfd, monkeypatch):
    class Logging(Resources):
        async def left(self, within=2.0):
            logging.getLogger("library").error("request failed: Method not found")
            logging.getLogger("library").error("something else")
            return await super().left(within)

    monkeypatch.setattr("ownertask._doctor.check.Resources", Logging)
    target = stdio(tmp_path, errors={"tools/list": "Method not found"})
    document = call(capfd, "check", "--json", *target).document
    assert document["servers"][0]["failure"]["message"] == "Method not found"
    assert document["log"] == ["something else"]


def test_only_the_first_different_log_messages_are_kept(tmp_path, capfd, monkeypatch):
    class Logging(Resources):
        async def left(self, within=2.0):
            for number in range(100):
                logging.getLogger("library").warning("message %d", number // 2)
            return await super().left(within)

    monkeypatch.setattr("ownertask._doctor.check.Resources", Logging)
    called = call(capfd, "check", "--json", *stdio(tmp_path))
    assert called.document["log"] == [f"message {number}" for number in range(20)]


# ---- what is left ----


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="processes are found in /proc")
def test_a_process_that_is_left_is_reported(tmp_path, capfd):
    path = tmp_path / "left"
    target = stdio(tmp_path, leaves=str(path))
    with ending_process_in(path):
        called = call(capfd, "check", "--json", *target)
        process_id = path.read_text()
        document = checked(called)
        assert called.code == 1
        (server,) = document["servers"]
        assert document["ok"] is False
        assert len(document["left"]) == 1
        assert process_id in document["left"][0]
        assert server["connections"] == 1


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="processes are found in /proc")
def test_a_process_that_is_left_is_shown_even_if_nothing_else_is(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(Resources.left, "__defaults__", (0.1,))  # the limit in seconds
    path = tmp_path / "left"
    with ending_process_in(path):
        called = call(capfd, "check", "--quiet", *stdio(tmp_path, leaves=str(path)))
        process_id = path.read_text()
    assert (called.code, called.err) == (1, "")
    assert process_id in called.out
    assert "sleep" in called.out


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="processes are found in /proc")
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_second_signal_ends_the_wait_for_leftovers(backend, tmp_path, capfd, monkeypatch):
    class Waiting(Resources):
        async def left(self, within=2.0):
            if within > 0:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGTERM)
                await sleep_forever()
            return await super().left(within)

    monkeypatch.setattr("ownertask._doctor.check.Resources", Waiting)
    path = tmp_path / "left"
    with ending_process_in(path):
        called = call(capfd, "check", "--backend", backend, *stdio(tmp_path, leaves=str(path)))
        process_id = path.read_text()
    assert called.code in {130, 143}
    assert re.search(rf"^left behind +the process {process_id} ", called.out, re.MULTILINE)
    assert called.lines[-1] == "closed"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_manager_that_does_not_stop_after_ctrl_c_is_reported(backend, tmp_path, capfd, monkeypatch):
    """A transport that does not end cannot be made on cue, so the manager only claims it."""
    stop = SessionConnectionManager.stop

    async def stop_and_fail(manager):
        await stop(manager)
        raise StopTimeoutError(manager.name, "the reason")

    monkeypatch.setattr(SessionConnectionManager, "stop", stop_and_fail)
    signals = {"tools/list": [os.getpid(), signal.SIGINT]}
    target = stdio(tmp_path, signals=signals, silent=["tools/list"])
    called = call(capfd, "check", "--backend", backend, *target)
    assert called.code == 130
    assert "could not be stopped; the reason" in called.out
    assert called.lines[-1] == f"could not be stopped: {Path(sys.executable).name}"


def test_a_server_that_had_to_be_killed_is_reported(tmp_path, capfd, monkeypatch):
    for name in ("exit_timeout", "terminate_timeout"):
        monkeypatch.setitem(StdioConnectionManager.__init__.__kwdefaults__, name, 0.2)
    called = call(capfd, "check", "--json", *stdio(tmp_path, stubborn=True))
    document = checked(called)
    assert document["left"] == []
    (server,) = document["servers"]
    close = next(phase for phase in server["phases"] if phase["name"] == "close")
    assert close["seconds"] > 0.3
    (remark,) = server["remarks"]
    assert "SIGKILL" in remark


# ---- the process that runs it ----


def test_a_thread_that_cannot_be_cancelled_does_not_delay_the_end(tmp_path):
    """The lookup of a host name leaves such a thread."""
    program = (
        "import sys, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "from ownertask.__main__ import main\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", program, "check", *stdio(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=40)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "left behind   nothing" in finished.stdout


def test_a_terminal_that_is_gone_ends_the_check_silently(tmp_path, capfd, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text, /):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stdout", Gone())
    called = call(capfd, "check", *stdio(tmp_path))
    assert (called.code, called.out, called.err) == (141, "", "")


def test_checks_can_be_run_one_after_the_other(tmp_path, capfd):
    """Nothing of a check remains in the process: no handler, no filter, no log record."""
    first = call(capfd, "check", "--json", *stdio(tmp_path, exits={"initialize": 3}))
    second = call(capfd, "check", "--json", *stdio(tmp_path))
    third = call(capfd, "check", *stdio(tmp_path))
    assert (first.code, second.code, third.code) == (1, 0, 0)
    assert second.document["log"] == []


def test_the_working_directory_and_streams_are_kept(tmp_path, capfd):
    before = Path.cwd(), sys.stdout, sys.stderr
    call(capfd, "check", *stdio(tmp_path))
    assert before == (Path.cwd(), sys.stdout, sys.stderr)
