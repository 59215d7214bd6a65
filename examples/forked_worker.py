"""A forked worker process that opens its own session.

Usage: python forked_worker.py
"""

import multiprocessing
import sys
from pathlib import Path

from anyio.from_thread import start_blocking_portal
from mcp import StdioServerParameters

from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
manager = SessionConnectionManager(server)  # can be created before the fork


def work() -> None:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(manager) as session:
        result = portal.call(session.call_tool, "add", {"a": 1, "b": 2})
        print("worker:", result.content, manager.state.value, flush=True)
    print("worker:", manager.state.value, flush=True)


if __name__ == "__main__":
    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    worker.join()
    print("parent:", manager.state.value)
