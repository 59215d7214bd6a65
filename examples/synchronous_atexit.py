"""Closes a connection when the interpreter exits.

Usage: python synchronous_atexit.py [return|raise|exit]
The argument selects how the program ends.
"""

import atexit
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import anyio
from anyio.from_thread import start_blocking_portal
from mcp import StdioServerParameters

from ownertask.mcp import SessionConnectionManager

server = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])
manager = SessionConnectionManager(server)
atexit.register(lambda: print("at exit:", manager.state.value))
stack = ExitStack()
portal = stack.enter_context(start_blocking_portal())


@atexit.register
def close() -> None:
    with stack:  # closes the portal at the end, even after an error
        portal.call(manager.stop)
        portal.call(partial(portal.stop, cancel_remaining=True))


def add(a: int, b: int) -> str:
    session = portal.call(manager.start, 5)  # opens the connection if necessary
    return str(portal.call(session.call_tool, "add", {"a": a, "b": b}).content)


def main(end: str) -> None:
    print(add(1, 2))
    portal.start_task_soon(anyio.sleep_forever)
    if end == "raise":
        raise RuntimeError("the program failed")
    if end == "exit":
        sys.exit(3)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "return")
