"""Holds a server in one of its phases, for a test that interrupts this process.

Usage: interrupted.py BACKEND PHASE. Prints the server's process id once it is in that phase, and
`interrupted` for each interrupt that has arrived.
"""

import logging
import os
import signal
import sys
from pathlib import Path

import anyio
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


async def tell_when_there_is_a_server():
    while not children():
        await anyio.sleep(0.01)
    print(*children(), flush=True)


async def tell_when(state, manager):
    while manager.state is not state:
        await anyio.sleep(0.01)
    print(*children(), flush=True)


def tell_of_interrupts():
    handler = signal.getsignal(signal.SIGINT)

    def tell_and_handle(number, frame):
        os.write(1, b"interrupted\n")
        handler(number, frame)

    signal.signal(signal.SIGINT, tell_and_handle)


async def main():
    tell_of_interrupts()
    async with anyio.create_task_group() as tg:
        if phase == "opening":
            tg.start_soon(tell_when_there_is_a_server)
            await SessionConnectionManager(MUTE).start()
        elif phase == "open":
            await StdioConnectionManager(TINY).start()
            tg.start_soon(tell_when_there_is_a_server)
            await anyio.sleep_forever()
        else:
            manager = SessionConnectionManager(STUBBORN)
            await manager.start()
            tg.start_soon(tell_when, ConnectionState.CLOSING, manager)
            await manager.stop()


logging.basicConfig(level=logging.INFO)
anyio.run(main, backend=backend)
