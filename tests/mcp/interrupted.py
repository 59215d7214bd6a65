"""Holds a server in one of its phases, for a test that interrupts this process.

Usage: interrupted.py BACKEND PHASE. Prints the server's process id once it is in that phase, and
`interrupted` when the interrupt has arrived.
"""

import logging
import sys
from pathlib import Path

import anyio
import anyio.lowlevel
from servers import MUTE, STUBBORN, TINY

from mooring import ConnectionState
from mooring.mcp import SessionConnectionManager, StdioConnectionManager

backend, phase = sys.argv[1:]


def children():
    return [
        child
        for file in Path("/proc/self/task").glob("*/children")
        for child in file.read_text().split()
    ]


async def tell():
    while not children():
        await anyio.sleep(0.01)
    print(*children(), flush=True)


async def main():
    try:
        if phase == "opening":
            async with anyio.create_task_group() as tg:
                tg.start_soon(tell)
                await SessionConnectionManager(MUTE).start()
        elif phase == "open":
            manager = StdioConnectionManager(TINY)
            await manager.start()
            await tell()
            await anyio.sleep_forever()
        else:
            manager = SessionConnectionManager(STUBBORN)
            await manager.start()
            async with anyio.create_task_group() as tg:
                tg.start_soon(manager.stop)
                while manager.state is not ConnectionState.CLOSING:
                    await anyio.lowlevel.checkpoint()
                await tell()
    finally:
        print("interrupted", flush=True)


logging.basicConfig(level=logging.INFO)
anyio.run(main, backend=backend)
