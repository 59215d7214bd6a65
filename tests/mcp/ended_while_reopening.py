"""Ends while a manager reopens its connection, which the test checks.

Usage: ended_while_reopening.py BACKEND END PHASE

Prints the process id of each server. PHASE is `delay` or `attempt`. When it is reached, the program
prints it. Then the main function returns if END is `return`. Otherwise, it waits for an interrupt.
"""

import logging
import os
import signal
import sys
from contextlib import asynccontextmanager

import anyio
from servers import MUTE, TINY

from ownertask import ConnectionState, ReconnectPolicy
from ownertask.mcp import SessionConnectionManager, StdioConnectionManager

backend, end, phase = sys.argv[1:]


class Announced(StdioConnectionManager):
    @asynccontextmanager
    async def open_connection(self):
        async with super().open_connection() as streams:
            print(self.pid, flush=True)
            if self.server_params is MUTE:
                attempt_began.set()
            yield streams


async def main():
    manager = SessionConnectionManager(
        Announced(TINY, exit_timeout=0.1),
        reconnect=ReconnectPolicy(initial_delay=3600 if phase == "delay" else 0),
    )
    manager.add_listener(lambda _manager, old, _new: old is ConnectionState.FAILED and delay_began.set())
    await manager.start()
    pid = manager.transport.pid
    manager.transport.server_params = MUTE
    os.kill(pid, signal.SIGKILL)
    if phase == "attempt":
        await attempt_began.wait()
    else:
        await delay_began.wait()
    print(phase, flush=True)
    if end == "interrupt":
        await anyio.sleep_forever()


delay_began, attempt_began = anyio.Event(), anyio.Event()
logging.basicConfig(level=logging.INFO)
options = {"restrict_keyboard_interrupt_to_checkpoints": True} if backend == "trio" else {}
anyio.run(main, backend=backend, backend_options=options)
