"""Runs the example server over HTTP, for the examples that need an HTTP server."""

import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running_server(transport: str, token: str = "") -> Generator[str]:
    """Runs the server in a subprocess on a free port, and yields its URL."""
    command = [sys.executable, str(Path(__file__).with_name("server.py")), transport, token]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"running on (http://\S+)", line):
                    yield found[1] + ("/sse" if transport == "sse" else "/mcp")
                    break
        finally:
            process.terminate()
            process.stderr.read()
