"""Holds a server in one of its phases, for a test that interrupts this process.

Usage: interrupted.py BACKEND PHASE. Prints the server's process id once it is in that phase, and
`interrupted` for each interrupt that has arrived. In the phase `lingering` it closes until it has been
sent two lines, and prints `at rest` when it waits for one.

It has no task but the main one. A second Ctrl-C is raised by asyncio wherever Python is at that
moment, and nothing of asyncio's or anyio's survives that everywhere. trio does so with the first one
already, unless it is the BACKEND `trio-at-checkpoints`; so on `trio` it prints when nothing runs.
"""

import logging
import os
import signal
import sys
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
from servers import MUTE, STUBBORN, TINY

from ownertask.mcp import SessionConnectionManager, StdioConnectionManager

backend, phase = sys.argv[1:]


def tell_of_the_server():
    if backend == "trio" and phase != "lingering":
        threading.Thread(target=tell_when_at_rest).start()
    else:
        print(server(), flush=True)


def tell_when_at_rest():
    process_id = server()
    wait_until_the_event_loop_rests()
    print(process_id, flush=True)


def server():
    # trio starts a process in a thread, whose child it stays.
    files = Path("/proc/self/task").glob("*/children")
    (process_id,) = (child for file in files for child in file.read_text().split())
    return process_id


class Announced(StdioConnectionManager):
    @asynccontextmanager
    async def open_connection(self):
        async with super().open_connection() as streams:
            tell_of_the_server()
            yield streams


class Lingering(StdioConnectionManager):
    @asynccontextmanager
    async def open_connection(self):
        async with super().open_connection() as streams:
            try:
                yield streams
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(linger)


def linger():
    for _ in range(2):
        wait_until_the_event_loop_rests()
        print("at rest", flush=True)
        sys.stdin.readline()


def wait_until_the_event_loop_rests():
    """Its thread does not tell, so look, until it has been at the same place for some time."""
    seen = 0
    while seen < 10:
        frame = sys._current_frames()[threading.main_thread().ident]
        at_rest = frame.f_code.co_name in {"select", "get_events"}  # of asyncio and of trio
        seen = seen + 1 if at_rest else 0
        time.sleep(0.01)


class TellWhenClosing(logging.Handler):
    def emit(self, record):
        if record.getMessage().endswith("open -> closing"):
            tell_of_the_server()


def tell_of_interrupts():
    handler = signal.getsignal(signal.SIGINT)

    def tell_and_handle(number, frame):
        os.write(1, b"interrupted\n")
        handler(number, frame)

    signal.signal(signal.SIGINT, tell_and_handle)


async def main():
    tell_of_interrupts()
    if phase == "opening":
        await SessionConnectionManager(Announced(MUTE)).start()
    elif phase == "open":
        await Announced(TINY).start()
        await anyio.sleep_forever()
    else:
        transport = {"closing": StdioConnectionManager, "lingering": Lingering}[phase]
        manager = SessionConnectionManager(transport(STUBBORN))
        await manager.start()
        logger = logging.getLogger("ownertask")
        logger.addHandler(TellWhenClosing())
        logger.setLevel(logging.DEBUG)
        await manager.stop()


logging.basicConfig(level=logging.INFO)
options = {"restrict_keyboard_interrupt_to_checkpoints": True} if "at-checkpoints" in backend else {}
anyio.run(main, backend=backend.partition("-")[0], backend_options=options)
