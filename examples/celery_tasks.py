"""A Celery task that calls an MCP server. Each worker process has one session.

Usage: celery -A celery_tasks worker
"""

import sys
from contextlib import ExitStack
from pathlib import Path

from anyio.from_thread import BlockingPortal, start_blocking_portal
from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown
from mcp import StdioServerParameters

from ownertask.mcp import SessionConnectionManager

app = Celery("celery_tasks", broker="redis://localhost", backend="redis://localhost")
server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
manager = SessionConnectionManager(server)
stack = ExitStack()
portal: BlockingPortal


@worker_process_init.connect
def open_portal(**_: object) -> None:
    global portal  # noqa: PLW0603 - one portal per process
    portal = stack.enter_context(start_blocking_portal())


@worker_process_shutdown.connect
def close_portal(**_: object) -> None:
    with stack:  # closes the portal at the end
        portal.call(manager.stop)


@app.task
def add(a: int, b: int) -> str:
    session = portal.call(manager.start, 30)  # the first task opens the connection
    result = portal.call(session.call_tool, "add", {"a": a, "b": b})
    return "".join(content.text for content in result.content if content.type == "text")
