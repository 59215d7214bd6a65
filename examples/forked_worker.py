"""One session per forked worker process, as in Celery and gunicorn.

Usage: python examples/forked_worker.py
"""

import multiprocessing
import sys
from contextlib import ExitStack
from pathlib import Path

from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import StdioServerParameters

from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])

# --8<-- [start:worker]
stack = ExitStack()
manager = SessionConnectionManager(server)  # can be created before the fork
portal: BlockingPortal | None = None


def start_worker() -> None:  # Celery: on the worker_process_init signal
    global portal  # noqa: PLW0603 - one portal per process
    portal = stack.enter_context(start_blocking_portal())


def run_task() -> str:
    assert portal is not None
    session = portal.call(manager.start)  # the first task opens the connection
    result = portal.call(session.call_tool, "add", {"a": 1, "b": 2})
    return str(result.content)


def stop_worker() -> None:  # Celery: on the worker_process_shutdown signal
    with stack:
        if portal is not None:
            portal.call(manager.stop)


# --8<-- [end:worker]


def run_worker() -> None:
    start_worker()
    print("worker:", run_task(), manager.state.value, flush=True)
    stop_worker()
    print("worker:", manager.state.value, flush=True)


if __name__ == "__main__":
    worker = multiprocessing.get_context("fork").Process(target=run_worker)
    worker.start()
    worker.join()
    print("parent:", manager.state.value)
