"""Runs an example server over HTTP, for the examples that need an HTTP server."""

import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parent


@contextmanager
def running_server(transport: str, token: str = "", server: str = "server.py") -> Generator[str]:
    """Runs the server in a subprocess on a free port, and yields its URL."""
    with running([str(FOLDER / server), transport, token]) as url:
        yield url + ("/sse" if transport == "sse" else "/mcp")


@contextmanager
def running_uvicorn(*options: str, app: str = "server:server.streamable_http_app") -> Generator[str]:
    """Runs the server on uvicorn with these command-line options, and yields its URL."""
    command = ["-m", "uvicorn", "--factory", app, "--port", "0", *options]
    with running([*command, "--no-access-log", "--timeout-graceful-shutdown", "1"]) as url:
        yield f"{url}/mcp"


@contextmanager
def running_hypercorn(*options: str) -> Generator[str]:
    """Runs the server on hypercorn with these command-line options, and yields its URL."""
    command = ["-m", "hypercorn", "--bind=127.0.0.1:0", "--workers=0", "--graceful-timeout=1", *options]
    with running([*command, "server:server.streamable_http_app()"]) as url:
        yield f"{url}/mcp"


@contextmanager
def running(command: list[str]) -> Generator[str]:
    """Runs a Python program in a subprocess, and yields the URL from the line "running on URL"."""
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=FOLDER,
        stdout=subprocess.DEVNULL,  # on a terminal, uvicorn would write the line in several colors
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            lines: list[str] = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"running on (https?://\S+|unix socket)", line, re.IGNORECASE):
                    yield found[1]
                    break
            else:
                raise RuntimeError(f"the server does not run:\n{''.join(lines)}")
        finally:
            process.terminate()
            process.stderr.read()
