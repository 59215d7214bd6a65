"""Runs a server over HTTP in a subprocess, for the examples that connect to one."""

import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path


def running_server(transport: str) -> AbstractContextManager[str]:
    """Runs `server.py` over "streamable-http" or "sse" on a free port, and yields its URL."""
    return running_uvicorn(app=f"server:server.{transport.replace('-', '_')}_app")


@contextmanager
def running_uvicorn(*options: str, app: str = "server:server.streamable_http_app") -> Generator[str]:
    """Runs the application on uvicorn with these options, on a free port, and yields its URL."""
    brief = ("--no-access-log", "--timeout-graceful-shutdown=1")
    with running("uvicorn", "--factory", app, "--port=0", *brief, *options) as url:
        yield url + ("/sse" if app.endswith(".sse_app") else "/mcp")


@contextmanager
def running(*command: str) -> Generator[str]:
    """Runs `python -m` with this command, and yields the URL that the program logs."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=Path(__file__).parent,
        stdout=subprocess.DEVNULL,  # on a terminal, uvicorn would write the line in several colors
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            printed = ""
            for line in process.stderr or ():
                printed += line
                if found := re.search(r"running on (https?://\S+|unix socket)", printed, re.IGNORECASE):
                    yield found[1]
                    return
            raise RuntimeError(f"the server does not run:\n{printed}")
        finally:
            process.terminate()
