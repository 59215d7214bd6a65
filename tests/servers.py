"""Servers that tests run as subprocesses, well-behaved and misbehaving."""

import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from forked_python import forking
from mcp import StdioServerParameters

HERE = Path(__file__).parent


def stdio_server(file, *args):
    return StdioServerParameters(command=sys.executable, args=[str(file), *args])


def python_server(code):
    return StdioServerParameters(command=sys.executable, args=["-c", code])


SDK = stdio_server(HERE.parent / "examples" / "server.py")
TINY = stdio_server(HERE / "mcp" / "servers" / "tiny.py")
MUTE = stdio_server(HERE / "mcp" / "servers" / "mute.py")
STUBBORN = stdio_server(HERE / "mcp" / "servers" / "stubborn.py")

SHORT_BOUNDS = {"exit_timeout": 0.1, "terminate_timeout": 0.1}
"""Options of a stdio manager, for tests that end a server which does not exit on its own."""


@contextmanager
def http_process(transport):
    """Runs the server of the examples over HTTP in a subprocess; yields the process and the URL."""
    with forking():
        process = subprocess.Popen(
            [sys.executable, HERE / "mcp" / "servers" / "over_http.py", transport],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    with process:
        try:
            for line in process.stderr:
                if found := re.search(r"running on (http://\S+)", line):
                    break
            assert found, "the server did not print its URL"
            yield process, found[1] + ("/sse" if transport == "sse" else "/mcp")
        finally:
            process.kill()
            process.stderr.read()


@contextmanager
def websocket_process(kind):
    """Runs the server of the examples over WebSockets in a subprocess; yields the process and the URL.

    Args:
        kind: The argument of `websocket.py`, or "echo" for a server that echoes every message.
    """
    command = ["websocket_echo.py"] if kind == "echo" else ["websocket.py", kind]
    command[0] = str(HERE / "mcp" / "servers" / command[0])
    with forking():
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE)
    with process:
        try:
            yield process, f"ws://127.0.0.1:{int(process.stdout.readline())}/mcp"
        finally:
            process.kill()
