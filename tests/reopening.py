"""Policies, and helpers for tests of managers that open a lost connection again."""

import functools
import inspect

import anyio
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from probe import Stage

from ownertask import ConnectionState, ReconnectPolicy

AT_ONCE = ReconnectPolicy(initial_delay=0, jitter=0)
"""A policy that opens the next connection without a delay."""

NOT_YET = ReconnectPolicy(initial_delay=3600, max_delay=3600, jitter=0)
"""A policy whose delay outlives each test."""

REOPENING = ["closing", "delay", "attempt"]
"""The phases between two connections."""


def in_turn(argument, cases):
    """Runs an async test for each case, one after another, in the same event loop.

    This takes much less time than `parametrize`. The last line that a failed test printed names its
    case.
    """

    def decorate(test):
        @functools.wraps(test)
        async def run_all(**arguments):
            for case in cases:
                print(f"{argument}:", getattr(case, "__name__", case))
                await test(**arguments, **{argument: case})

        signature = inspect.signature(test)
        others = [item for name, item in signature.parameters.items() if name != argument]
        run_all.__signature__ = signature.replace(parameters=others)
        return run_all

    return decorate


async def settle():
    """Waits until all other tasks wait. If one does not yet, anyio waits for 0.1 s on asyncio."""
    for _ in range(20):
        await checkpoint()
    await wait_all_tasks_blocked()


async def reopen(probe, phase):
    """Starts the manager, loses the connection, and waits until the manager is in a phase of reopening.

    Returns the stage at which the owner waits. In the delay, it waits at no stage.
    """
    probe.reconnect = NOT_YET if phase == "delay" else AT_ONCE
    await probe.start()
    stage = Stage()
    if phase == "attempt":
        probe.opening = stage
    elif phase == "closing":
        probe.closing = stage
    probe.connection_lost(OSError("gone"))
    if phase == "delay":
        await settle()
    else:
        await stage.reached.wait()
    probe.opening = probe.closing = checkpoint
    expected = ConnectionState.CLOSING if phase == "closing" else ConnectionState.OPENING
    assert probe.state is expected
    assert len(probe.entered) == (2 if phase == "attempt" else 1)
    return stage


class Call:
    """A call in its own task.

    Attributes:
        scope: Cancel it to cancel the call.
        is_over: Whether the call has returned, raised or been cancelled.
        result: What it returned.
        error: The exception that it raised.
    """

    def __init__(self, task_group, function, *args):
        self.scope = anyio.CancelScope()
        self.is_over = False
        self.result = None
        self.error = None
        self._function = function
        self._args = args
        task_group.start_soon(self._call)

    async def _call(self):
        try:
            with self.scope:
                self.result = await self._function(*self._args)
        except Exception as error:
            self.error = error
        finally:
            self.is_over = True


def what_connection_raises(manager):
    """Returns the exception that reading `connection` raises."""
    try:
        manager.connection  # noqa: B018
    except Exception as error:
        return error
    raise AssertionError("the connection is open")


def is_same(error, other):
    """Returns whether two errors look the same to the code that catches them.

    Each raise creates another object for an error that ownertask defines.
    """
    return (
        (error is None) is (other is None)
        and type(error) is type(other)
        and str(error) == str(other)
        and (error is None or is_same(error.__cause__, other.__cause__))
    )
