"""One session for each worker process, as Celery and gunicorn fork them.

Usage: python examples/forked_worker.py
"""

import multiprocessing
import sys
from contextlib import ExitStack
from pathlib import Path

from anyio.from_thread import start_blocking_portal
from mcp import StdioServerParameters

from mooring.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])

# --8<-- [start:worker]
stack = ExitStack()
manager = SessionConnectionManager(server)  # may be made before the fork


def start_worker() -> None:  # Celery: the signal worker_process_init
    portal = stack.enter_context(start_blocking_portal())
    portal.call(manager.start)
    stack.callback(lambda: portal.call(manager.stop))


def end_worker() -> None:  # Celery: the signal worker_process_shutdown
    stack.close()


# --8<-- [end:worker]


def work() -> None:
    start_worker()
    print("worker:", manager.state.value, flush=True)
    end_worker()
    print("worker:", manager.state.value, flush=True)


if __name__ == "__main__":
    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    worker.join()
    print("parent:", manager.state.value)
