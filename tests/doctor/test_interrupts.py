"""Tests the signals: the first one cancels the work, and the second one ends the cleanup."""

import signal
import sys

import pytest
from anyio import CancelScope, fail_after, sleep_forever, wait_all_tasks_blocked

from ownertask._doctor.interrupts import Interrupts

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="anyio receives no signals on Windows"),
]


async def test_two_signals_at_the_same_time_force_a_cleanup_that_begins_later():
    interrupts = Interrupts()
    ended = []

    async def work():
        try:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            await sleep_forever()
        finally:
            with CancelScope(shield=True):
                await wait_all_tasks_blocked()  # by now, both have arrived
            with interrupts.cleanup(), fail_after(5):
                await sleep_forever()
            ended.append("the cleanup")

    await interrupts.run(work)
    assert ended == ["the cleanup"]


async def test_a_signal_that_the_program_was_told_to_ignore_is_ignored():
    """`nohup` starts a program like this."""
    interrupts = Interrupts()
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        async def work():
            signal.raise_signal(signal.SIGHUP)
            await wait_all_tasks_blocked()

        await interrupts.run(work)
        assert interrupts.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


async def test_a_cleanup_that_has_ended_is_forgotten():
    interrupts = Interrupts()
    with interrupts.cleanup():
        pass
    assert not interrupts._cleanups
