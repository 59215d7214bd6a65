"""Runs the example in each docstring of the public names, with real servers.

An example may use the public names, and names that stand for the reader's own code. The tests define
them. The addresses in the examples stand for servers that the tests run on other ports.
"""

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from unittest.mock import AsyncMock, create_autospec

import anyio
import pytest
from anyio.abc import SocketStream
from in_process import high_level
from mcp import ClientSession, StdioServerParameters
from servers import http_process

import ownertask
import ownertask.mcp
import ownertask.testing
from ownertask import (
    ConnectionGroup,
    ConnectionManager,
    ConnectionPool,
    ConnectionState,
    ReconnectPolicy,
)
from ownertask.mcp import ServerExitedError, SessionConnectionManager, _sdk
from ownertask.testing import ScriptedConnectionManager, ScriptedRun

pytestmark = [
    # pydantic-settings warns about the `FastMCP` of mcp 1.24.
    pytest.mark.filterwarnings("ignore:Field 'lifespan' has an incomplete definition"),
    # The lowest versions of anyio and httpcore leave sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("forked_python"),
]

ROOT = Path(__file__).parents[1]
PACKAGES = (ownertask, ownertask.mcp, ownertask.testing)
EXAMPLE = re.compile(r"^Example:\n {4}```python\n(?P<code>.*?)^ {4}```$", re.DOTALL | re.MULTILINE)

# The docstrings that need no example, because the example of another one shows their use.
WITHOUT_EXAMPLE = {
    "ClientOptions",
    "ConnectionManager.__aexit__",
    "ConnectionManager.connection",
    "ConnectionManager.exception",
    "ConnectionManager.name",
    "ConnectionManager.remove_listener",
    "ConnectionManager.state",
    "ConnectionGroup.failures",
    "ConnectionGroup.managers",
    "PoolStats",
    "ReconnectPolicy.delay_after",
    "Reconnecting",
    "Resources.left",
    "Resources.look",
    "ScriptedConnectionManager.openings",
    "ScriptedRun",
    "SessionManagerOptions",
    "SessionOptions",
    "StdioConnectionManager.pid",
    "StdioConnectionManager.returncode",
    "StdioConnectionManager.stderr_tail",
    "StreamableHttpOptions",
    # Of all errors, ConnectionLostError is the one that applications handle.
    "ConnectionManagerError",
    "ConnectionStoppedError",
    "ManagerInUseError",
    "NotConnectedError",
    "OwnerTaskError",
    "StartTimeoutError",
    "StopTimeoutError",
    "WrongEventLoopError",
}


def documented():
    """Yields the name and the docstring of each public class, method, property and function."""
    for package in PACKAGES:
        for name in package.__all__:
            found = getattr(package, name)
            if isinstance(found, type):
                yield name, found.__doc__
                for key, value in vars(found).items():
                    is_method = callable(value) or isinstance(value, property | staticmethod)
                    if is_method and (key[0] != "_" or key in {"__aenter__", "__aexit__"}):
                        yield f"{name}.{key}", value.__doc__
            elif inspect.isfunction(found):
                yield name, found.__doc__


def example_in(docstring):
    found = EXAMPLE.search(inspect.cleandoc(docstring or ""))
    return textwrap.dedent(found["code"]) if found else None


EXAMPLES = {name: code for name, doc in documented() if (code := example_in(doc)) is not None}


def test_each_docstring_has_an_example_if_a_reader_would_want_one():
    overriding = {"connection_type", "get_streams", "is_permanent", "open_connection"}
    expected = {name for name, _ in documented() if name.partition(".")[2] not in overriding}
    assert expected - WITHOUT_EXAMPLE == EXAMPLES.keys() - {"ConnectionManager.is_permanent"}


def test_each_block_of_code_in_a_docstring_is_an_example():
    for name, doc in documented():
        assert (doc or "").count("```python") == (name in EXAMPLES), name


# Servers.


@contextmanager
def port_of(*command):
    """Runs a server, and yields the port that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-u", *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with process:
        try:
            yield re.search(r"port (\d+)|^(\d+)$", process.stdout.readline()).expand(r"\1\2")
        finally:
            process.kill()


@pytest.fixture(scope="module")
def addresses():
    """The addresses in the examples, and the addresses of running servers."""
    websocket = ROOT / "tests" / "mcp" / "servers" / "websocket.py"
    with (
        http_process("streamable-http") as (_, http_url),
        http_process("sse") as (_, sse_url),
        port_of(websocket, "websockets") as websocket_port,
        port_of("-m", "http.server", "0", "--bind", "127.0.0.1") as web_port,
    ):
        yield {
            "http://localhost:8000/mcp": http_url,
            "http://localhost:8000/sse": sse_url,
            "ws://localhost:8000": f"ws://127.0.0.1:{websocket_port}",
            '"example.org", 80': f'"127.0.0.1", {web_port}',
            "https://weather.invalid": "http://127.0.0.1:9",  # nothing listens there
            'command="python"': f"command={sys.executable!r}",
        }


@pytest.fixture
def with_real_addresses(addresses, tmp_path, monkeypatch):
    """Returns a function that changes an example, so that it uses running servers and existing files."""
    shutil.copy(ROOT / "examples" / "server.py", tmp_path)
    calculator = {"command": sys.executable, "args": ["server.py"]}
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {"calculator": calculator}}))
    monkeypatch.chdir(tmp_path)

    def changed(code):
        for shown, real in addresses.items():
            code = code.replace(shown, real)
        return code

    return changed


# The names that stand for the reader's own code.


def new_manager():
    return SessionConnectionManager(high_level(), name="calculator")


async def not_started():
    return new_manager()


async def is_open():
    manager = new_manager()
    await manager.start()
    return manager


async def times_out():
    session = create_autospec(ClientSession, instance=True)
    session.list_tools.side_effect = TimeoutError
    manager = ScriptedConnectionManager(session)
    await manager.start()
    return manager


async def is_lost(reconnect=None):
    loss, failure = anyio.Event(), anyio.Event()
    run = ScriptedRun(lost_after=loss.wait, lost_with=ServerExitedError(1, "no license found"))
    manager = ScriptedConnectionManager(object(), run, name="calculator", reconnect=reconnect)
    manager.add_listener(lambda _, __, new: failure.set() if new is ConnectionState.FAILED else None)
    await manager.start()
    loss.set()
    await failure.wait()
    return manager


async def tries_again():
    return await is_lost(ReconnectPolicy(initial_delay=30, jitter=0))


MANAGERS = {
    "ConnectionLostError": is_lost,
    "ConnectionManager.connection_lost": times_out,
    "ConnectionManager.reconnecting": tries_again,
    "ConnectionManager.run": not_started,
    "ConnectionManager.wait_closed": is_lost,
    "Resources": not_started,
    "ServerExitedError": is_lost,
}
"""The manager that the name `manager` stands for. In other examples, it is open."""

PRINTED = {
    "ConnectionGroup": "calculator .*name='add'.*\nweather is not available: ",
    "ConnectionLostError": "the server exited with status 1.*\nServerExitedError\\(1",
    "ConnectionManager": "HTTP/1.0 200 OK",
    "ConnectionManager.connection_lost": "^$",
    "ConnectionManager.add_listener": "calculator: open -> closing\ncalculator: closing -> closed",
    "ConnectionManager.reconnecting": "next attempt in (30|2\\d) s, because of: .* status 1",
    "ConnectionManager.wait_closed": "calculator: the connection was lost: the server exited",
    "ConnectionPool.stats": "0 open, 0 of them idle, 0 calls waiting",
    "ClientConnectionManager": "text='3'",
    "ServerExitedError": "exit status: 1\nno license found",
    "SessionConnectionManager": "text='3'",
}
"""A regular expression that matches the output of an example. The other outputs contain a tool."""


async def names_for(name, code, tcp_manager):
    """Returns the names that an example uses."""
    names = {
        "AsyncGenerator": AsyncGenerator,
        "ClientSession": ClientSession,
        "SocketStream": SocketStream,
        "StdioServerParameters": StdioServerParameters,
        "anyio": anyio,
        "asynccontextmanager": asynccontextmanager,
        "create_autospec": create_autospec,
        "Api": list,
        "Database": object,
        "WrongPasswordError": PermissionError,
        "ask_user": AsyncMock(return_value="password"),
        "tokens": {"tenant 1": "token"},
    }
    for package in PACKAGES:
        names |= {public: getattr(package, public) for public in package.__all__}

    def uses(variable):
        return re.search(rf"\b{variable}\b", code) and not re.search(rf"\b{variable} =", code)

    if uses("manager"):
        names["manager"] = await MANAGERS.get(name, is_open)()
    if uses("group"):
        names["group"] = ConnectionGroup({"calculator": new_manager()})
        await names["group"].start()
    if uses("pool"):
        names["pool"] = ConnectionPool(lambda _: new_manager())
        await names["pool"].start()
    if uses("TcpManager"):
        exec(code_object(tcp_manager), names)
    return names


def code_object(code):
    return compile(code, "<example>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


async def run(name, code, tcp_manager):
    names = await names_for(name, code, tcp_manager)
    try:
        coroutine = eval(code_object(code), names)
        if coroutine is not None:
            await coroutine
    finally:
        for value in list(names.values()):
            if isinstance(value, ConnectionManager):
                await value.stop()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, with_real_addresses, capsys):
    if name == "ClientConnectionManager" and not _sdk.HAS_CLIENT:
        pytest.skip("mcp 1.x has no Client")
    code = with_real_addresses(EXAMPLES[name])
    if "anyio.run(" in code:
        exec(code_object(code), {})
    else:
        tcp_manager = EXAMPLES["ConnectionManager"].partition("async def main")[0]
        anyio.run(run, name, code, with_real_addresses(tcp_manager))
    default = "name='add'" if "print(" in code else "^$"
    assert re.search(PRINTED.get(name, default), capsys.readouterr().out, re.DOTALL)
