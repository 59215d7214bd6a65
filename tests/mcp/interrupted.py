"""Holds a server in one phase, for a test that interrupts this process.

Usage: interrupted.py BACKEND PHASE

Prints the server's process id once the server is in that phase, and `interrupted` for each interrupt.
In the phase `lingering`, closing waits for two lines on stdin, and `at rest` is printed before each.

The program starts no tasks itself. asyncio raises a second Ctrl-C wherever Python is at that moment,
and neither asyncio nor anyio survives that at every point. trio already does so with the first Ctrl-C,
unless BACKEND is `trio-at-checkpoints`. On `trio`, the process id is therefore printed only when the
event loop is idle.
"""

import logging
import os
import signal
import sys
import threading
import time
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
from servers import MUTE, STUBBORN, TINY

from ownertask import ConnectionGroup
from ownertask.mcp import SessionConnectionManager, StdioConnectionManager

backend, phase = sys.argv[1:]


def tell(process_id):
    if backend == "trio" and phase != "lingering":
        threading.Thread(target=tell_when_at_rest, args=[process_id]).start()
    else:
        print(process_id, flush=True)


def tell_when_at_rest(process_id):
    wait_until_the_event_loop_rests()
    print(process_id, flush=True)


class Announced(StdioConnectionManager):
    @asynccontextmanager
    async def open_connection(self):
        async with super().open_connection() as streams:
            tell(self.pid)
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
    """Polls until the main thread was found waiting for events ten times in a row."""
    seen = 0
    while seen < 10:
        frame = sys._current_frames()[threading.main_thread().ident]
        at_rest = frame.f_code.co_name in {"select", "get_events"}  # asyncio's and trio's
        seen = seen + 1 if at_rest else 0
        time.sleep(0.01)


class TellWhenClosing(logging.Handler):
    def __init__(self, transport):
        super().__init__()
        self.transport = transport

    def emit(self, record):
        if record.getMessage().endswith("open -> closing"):
            tell(self.transport.pid)


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
    elif phase == "group":
        await ConnectionGroup(
            {"opening": SessionConnectionManager(MUTE), "open": Announced(TINY)}
        ).start()
        await anyio.sleep_forever()
    else:
        transport = {"closing": StdioConnectionManager, "lingering": Lingering}[phase]
        manager = SessionConnectionManager(transport(STUBBORN))
        await manager.start()
        logger = logging.getLogger("ownertask")
        logger.addHandler(TellWhenClosing(manager.transport))
        logger.setLevel(logging.DEBUG)
        await manager.stop()


logging.basicConfig(level=logging.INFO)
options = {"restrict_keyboard_interrupt_to_checkpoints": True} if "at-checkpoints" in backend else {}
anyio.run(main, backend=backend.partition("-")[0], backend_options=options)
