"""Captures a server's stderr, and turns on ownertask's debug log.

Usage: python stderr_and_logging.py
"""

import io
import logging
import sys

import anyio
from mcp import StdioServerParameters

from ownertask import ConnectionLostError
from ownertask.mcp import SessionConnectionManager, StdioConnectionManager

PROGRAM = "import sys; print('no license found', file=sys.stderr)"
server = StdioServerParameters(command=sys.executable, args=["-c", PROGRAM])


async def main() -> None:
    errlog = io.StringIO()
    transport = StdioConnectionManager(server, errlog)
    try:
        await SessionConnectionManager(transport).start()
    except ConnectionLostError as error:
        print(error, *error.__notes__, sep="\n- ")
    print(f"errlog: {errlog.getvalue()!r}")
    print(f"stderr_tail: {transport.stderr_tail!r}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("ownertask").setLevel(logging.DEBUG)
    anyio.run(main)
