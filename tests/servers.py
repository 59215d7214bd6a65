"""Servers that tests run as subprocesses, well-behaved and misbehaving."""

import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

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
    with subprocess.Popen(
        [sys.executable, HERE / "mcp" / "servers" / "over_http.py", transport],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            for line in process.stderr:
                if found := re.search(r"running on (http://\S+)", line):
                    break
            assert found, "the server did not print its URL"
            yield process, found[1] + ("/sse" if transport == "sse" else "/mcp")
        finally:
            process.kill()
            process.stderr.read()
