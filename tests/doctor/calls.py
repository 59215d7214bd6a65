"""Calls the command in this process, with servers that follow a script."""

import json
import os
import signal
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from anyio.from_thread import start_blocking_portal
from http_server import http_server

from ownertask.__main__ import main
from ownertask.mcp import _sdk

SCRIPTED = Path(__file__).parent / "servers" / "scripted.py"
PYTHON = (sys.executable, "-I", "-S")
OLD_SDK_GARBAGE = (
    []
    if _sdk.HAS_CLIENT
    else [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
)
"""mcp 1.x leaves streams that are not closed to the garbage collector if opening a connection fails."""

BACKENDS = ["asyncio", "trio"]


class Called(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self):
        """Returns the only JSON document on stdout."""
        assert self.out.endswith("}\n"), self
        return json.loads(self.out)

    @property
    def lines(self):
        return self.out.splitlines()


def call(capfd, *arguments):
    """Calls `main()`. It must return, and must leave the signal handlers as they were."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    capfd.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except BaseException as error:
        raise AssertionError(f"main() raised {error!r}; output: {capfd.readouterr()}") from error
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return Called(code, captured.out, captured.err)


def scripted(folder, *arguments, **script):
    """Returns the command of a server with this script, as a list."""
    path = folder / f"script{len(list(folder.glob('script*')))}.json"
    path.write_text(json.dumps(script))
    return [*PYTHON, str(SCRIPTED), str(path), *arguments]


def stdio(folder, *arguments, **script):
    """Returns the arguments that select such a server on the command line."""
    return ["stdio", "--", *scripted(folder, *arguments, **script)]


def config_file(folder, **servers):
    """Writes a configuration, and returns its path. A list is the command of a server."""
    entries = {
        name: {"command": server[0], "args": server[1:]} if isinstance(server, list) else server
        for name, server in servers.items()
    }
    path = folder / "servers.json"
    path.write_text(json.dumps({"mcpServers": entries}))
    return path


@contextmanager
def serving(answer, serve=http_server):
    """Yields the URL of an HTTP server that runs in another thread."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serve(answer)) as url:
        yield url


@contextmanager
def ending_process_in(path):
    """Kills the process whose ID is in the file."""
    try:
        yield
    finally:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)
