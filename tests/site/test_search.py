"""Asks the built site's search for the words and error texts that readers look for."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ENDING = "how-to/ending/"
FASTAPI = "how-to/fastapi/"
HTTP = "how-to/http/"
HTTP_SETTINGS = "how-to/http-settings/"
INSTALLATION = "tutorial/installation/"
MANY_USERS = "how-to/many-users/"
PROCESSES = "how-to/server-processes/"
PYTEST = "how-to/pytest/"
RECONNECTING = "how-to/reconnecting/"
SEVERAL = "how-to/several-servers/"
SYNCHRONOUS = "how-to/synchronous-code/"
TROUBLES = "how-to/troubleshooting/"

# The page that must be the first result. Where there are several, any of them may be.
WORDS = {
    "reconnect": RECONNECTING,
    "retry": RECONNECTING,
    "backoff": RECONNECTING,
    "automatic reconnect": RECONNECTING,
    "shutdown": ENDING,
    "graceful shutdown": ENDING,
    "signal": (ENDING, PROCESSES),
    "SIGTERM": (ENDING, PROCESSES),
    "SIGINT": ENDING,
    "Ctrl-C": (ENDING, "explanation/cancellation/"),
    "KeyboardInterrupt": (ENDING, "reference/errors/", "explanation/cancellation/"),
    "atexit": ENDING,
    "gunicorn": ENDING,
    "uvicorn": (FASTAPI, ENDING),
    "Celery": ENDING,
    "Streamlit": ENDING,
    "Jupyter": ENDING,
    "notebook": ENDING,
    "multiprocessing": ENDING,
    "fork": (ENDING, SYNCHRONOUS),
    "systemd": ENDING,
    "Kubernetes": ENDING,
    "BackgroundTasks": FASTAPI,
    "background tasks": FASTAPI,
    "FastAPI": FASTAPI,
    "lifespan": FASTAPI,
    "Depends": FASTAPI,
    "dependency": FASTAPI,
    "Starlette": FASTAPI,
    "TestClient": FASTAPI,
    "orphan": TROUBLES,
    "orphaned processes": TROUBLES,
    "zombie": TROUBLES,
    "hangs at exit": TROUBLES,
    "100 % CPU": TROUBLES,
    "100% CPU": TROUBLES,
    "troubleshooting": TROUBLES,
    "mcpServers": (SEVERAL, "reference/config-file/"),
    "claude_desktop_config.json": (SEVERAL, "reference/config-file/"),
    "several servers": SEVERAL,
    "multiple servers": SEVERAL,
    "npx": (PROCESSES, SEVERAL),
    "docker": (PROCESSES, SEVERAL, ENDING),
    "uvx": (PROCESSES, SEVERAL),
    "tenant": MANY_USERS,
    "pool": (MANY_USERS, "reference/many/"),
    "users": MANY_USERS,
    "install": INSTALLATION,
    "pip install": INSTALLATION,
    "poetry": INSTALLATION,
    "threads": SYNCHRONOUS,
    "portal": SYNCHRONOUS,
    "synchronous": SYNCHRONOUS,
    "timeout": "how-to/timeouts/",
    "fixture": PYTEST,
    "pytest": PYTEST,
    "pytest-asyncio": PYTEST,
    "fake": ("how-to/test-an-application/", "reference/testing/"),
    "stderr": "how-to/stderr-and-logging/",
    "headers": HTTP,
    "bearer token": HTTP,
    "authentication": HTTP,
    "OAuth": "how-to/oauth/",
    "login": "how-to/oauth/",
    "proxy": HTTP_SETTINGS,
    "TLS": HTTP_SETTINGS,
    "client certificate": HTTP_SETTINGS,
    "HTTP/2": HTTP_SETTINGS,
    "Unix socket": HTTP_SETTINGS,
    "ping": HTTP_SETTINGS,
    "keep-alive": HTTP_SETTINGS,
    "redis": "how-to/libraries/",
    "langchain": "how-to/frameworks/",
    "pydantic-ai": "how-to/frameworks/",
    "own transport": "tutorial/own-transport/",
    "custom transport": "tutorial/own-transport/",
    "AsyncExitStack": ("how-to/moving/", "explanation/other-ways/"),
    "ClientSessionGroup": ("how-to/moving/", "explanation/other-ways/"),
    "cancellation": "explanation/cancellation/",
    "guarantees": "explanation/guarantees/",
    "shell": "how-to/command-line/",
    "supported versions": "reference/supported/",
    "glossary": "reference/glossary/",
    "changelog": "changelog/",
    "contributing": "contributing/",
}

# Errors of ownertask, the SDK, anyio and asyncio, as a reader copies them from a traceback or a log.
ERRORS = [
    "RuntimeError: Attempted to exit cancel scope in a different task than it was entered in",
    "Attempted to exit cancel scope in a different task than it was entered in",
    "cancel scope",
    "asyncio.exceptions.CancelledError: Cancelled via cancel scope 7f1c2a6b3d10",
    "asyncio.exceptions.CancelledError",
    "ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)",
    "unhandled errors in a TaskGroup",
    "mcp.shared.exceptions.McpError: Connection closed",
    "Connection closed",
    "Session terminated",
    "RuntimeError: Event loop is closed",
    "Event loop is closed",
    "Task exception was never retrieved",
    "Task was destroyed but it is pending!",
    "ResourceWarning: calculator: the server process 4711 was still running and was killed",
    "ResourceWarning",
    "401 Unauthorized",
    "httpx.HTTPStatusError: Client error '401 Unauthorized' for url",
    "403 Forbidden",
    "ownertask.errors.StartTimeoutError: calculator: not connected after 30 s",
    "not connected after 30 s",
    "NotConnectedError: calculator: not connected (state: new); call start() first",
    "not connected (state: closed); call start() first",
    "not connected (state: opening); wait_open() waits for the connection",
    "ConnectionLostError: calculator: the connection was lost: the server was killed by SIGKILL",
    "the connection was lost",
    "ConnectionStoppedError: calculator: stop() was called while start() was waiting for the connection",
    "StopTimeoutError: calculator: could not be stopped",
    "ManagerInUseError: run() requires a manager that is not running (state: open); call stop() first",
    "already part of servers; a manager can be part of only one other manager at a time",
    "WrongEventLoopError: stop() was called from another event loop",
    "use the manager in the event loop in which it was started",
    "OwnerTaskError: stop() was called from inside the connection and would deadlock",
]

ANSWERS = WORDS | dict.fromkeys(ERRORS, TROUBLES)


@pytest.fixture(scope="session")
def results(site):
    """Returns the locations of the results of each query, the best one first."""
    if shutil.which("node") is None:
        pytest.fail("the search of the site requires Node.js")
    command = ["node", str(Path(__file__).with_name("search.cjs")), str(site)]
    asked = subprocess.run(
        command, input=json.dumps([*ANSWERS, "zyzzyva"]), capture_output=True, text=True, check=True
    )
    return dict(zip([*ANSWERS, "zyzzyva"], json.loads(asked.stdout), strict=True))


@pytest.mark.parametrize("query", ANSWERS)
def test_the_right_page_is_the_first_result(results, query):
    found = [location.partition("#")[0] for location in results[query]]
    pages = ANSWERS[query]
    assert [page for page in found[:1] if page in ([pages] if isinstance(pages, str) else pages)], found


def test_a_word_that_no_page_contains_finds_nothing(results):
    assert results["zyzzyva"] == []
