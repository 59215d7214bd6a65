"""Regression tests for faults that the search found."""

import logging

import anyio
import pytest
from anyio.lowlevel import checkpoint
from conftest import all_tasks
from probe import Probe
from proof import clocks

from ownertask import ConnectionState, ConnectionStoppedError

virtual = pytest.mark.parametrize("clock", [clock for clock in clocks.CLOCKS if clock != "uvloop"])


@virtual
def test_C3_a_stop_in_the_last_step_of_the_owner_task_logs_no_error_later(clock, caplog):
    """stop() used to set a timer that was never cancelled. It later logged that the owner could not be
    stopped."""
    caplog.set_level(logging.ERROR)

    async def main():
        async with anyio.create_task_group() as tg:

            async def closing():
                tg.start_soon(probe.stop, 0)

            probe = Probe(closing=closing)
            await probe.start()
            probe.connection_lost()
            await probe.stop()
        await anyio.sleep(100)

    clocks.run(main, clock=clock)
    assert not caplog.records


def test_a_stop_leaves_no_timer_behind_on_trio():
    """A timer that was set one step before the end used to outlive the owner by one step."""
    probe = Probe(opening=anyio.sleep_forever)
    probe.start_timeout = 9
    left = []

    async def start():
        with pytest.raises(ConnectionStoppedError):
            await probe.start()

    async def stop():
        await probe.stop()
        left.extend(task for task in all_tasks() if task.name == "ownertask timer")

    async def main():
        for _ in range(50):
            async with anyio.create_task_group() as tg:
                tg.start_soon(start)
                while probe.state is not ConnectionState.OPENING:
                    await checkpoint()
                for _ in range(6):
                    tg.start_soon(stop)
                    await checkpoint()

    clocks.run(main, clock="trio")
    assert not left
