"""Policies, managers with a policy, and calls that a test can cancel."""

import asyncio
import contextvars
import functools
import inspect

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from probe import Probe, Stage

from ownertask import ConnectionLostError, ConnectionState, ReconnectPolicy

HOUR = 3600

AT_ONCE = ReconnectPolicy(initial_delay=0, jitter=0)
"""A policy that opens the next connection without a delay."""

NOT_YET = ReconnectPolicy(initial_delay=HOUR, max_delay=HOUR, jitter=0)
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
    for _ in range(30):
        await checkpoint()
    await wait_all_tasks_blocked()


async def lost(manager):
    """Waits until the connection is lost, and returns the error."""
    with pytest.raises(ConnectionLostError) as caught:
        await manager.wait_closed()
    assert manager.state is ConnectionState.FAILED
    return caught.value


def opened_again(manager):
    """Returns an event that is set when the manager opens the next time."""
    opened = anyio.Event()

    def listener(manager, old, new):
        if new is ConnectionState.OPEN:
            opened.set()

    manager.add_listener(listener)
    return opened


async def refuse():
    await checkpoint()
    raise OSError("refused")


def retries(number, **options):
    return ReconnectPolicy(initial_delay=0, jitter=0, max_retries=number, **options)


def levels(caplog):
    return [record.levelname for record in caplog.records if record.levelno > 10]


class Plan:
    """Awaits its steps one after another, one per call. After the last one it passes a checkpoint."""

    def __init__(self, *steps):
        self.steps = list(steps)

    async def __call__(self):
        await (self.steps.pop(0) if self.steps else checkpoint)()


class Series(Probe):
    """A probe with a reconnect policy.

    Args:
        openings: Awaited while opening, one per attempt. Later attempts succeed.
        closings: Awaited while closing, one per run.

    Attributes:
        times: When each attempt began to open.
        contexts: The context of each attempt.
        most_alive: The highest number of connections that existed at the same time.
    """

    def __init__(self, *openings, policy=AT_ONCE, closings=(), start_timeout=None):
        super().__init__(self._open, Plan(*closings))
        self.reconnect = policy
        self.start_timeout = start_timeout
        self.plan = Plan(*openings)
        self.times = []
        self.contexts = []
        self.most_alive = 0

    @property
    def attempts(self):
        return len(self.entered)

    async def _open(self):
        self.times.append(anyio.current_time())
        self.contexts.append(contextvars.copy_context())
        self.most_alive = max(self.most_alive, len(self.entered) - len(self.exited))
        await self.plan()


async def reopening(phase, cause=None):
    """Returns a series whose first connection was lost and that is in `phase`, and the phase's stage.

    The stage ends the phase, except the delay, which lasts an hour.
    """
    stage = Stage()
    openings = [checkpoint, stage] if phase == "attempt" else []
    closings = [stage] if phase == "closing" else []
    policy = NOT_YET if phase == "delay" else AT_ONCE
    series = Series(*openings, policy=policy, closings=closings)
    await series.start()
    series.connection_lost(OSError("cut") if cause is None else cause)
    await (settle() if phase == "delay" else stage.reached.wait())
    return series, stage


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
    """A call in its own task, which the test can cancel.

    Attributes:
        scope: Cancel it to cancel the call.
        ended: `None` while the call is waiting, then "returned", "raised" or "cancelled".
        result: What the call returned.
        error: The exception that it raised.
        over: Set when the call ends.
    """

    def __init__(self, task_group, function, *args):
        self.scope = anyio.CancelScope()
        self.ended = self.result = self.error = None
        self.over = anyio.Event()
        self._function = function
        self._args = args
        self._task = None
        self._is_native = False
        task_group.start_soon(self._run)

    @property
    def is_over(self):
        return self.over.is_set()

    async def _run(self):
        cancelled = anyio.get_cancelled_exc_class()
        self._task = asyncio.current_task() if cancelled is asyncio.CancelledError else None
        with self.scope:
            try:
                self.result = await self._function(*self._args)
                self.ended = "returned"
            except Exception as error:
                self.ended, self.error = "raised", error
            except cancelled:
                self.ended = "cancelled"
                if not self._is_native:
                    raise
            finally:
                self.over.set()

    def cancel(self, kind="scope"):
        """Cancels the call through its cancel scope or, on asyncio, natively."""
        self._is_native = kind == "native" and self._task is not None
        if self._is_native:
            self._task.cancel()
        else:
            self.scope.cancel()


async def assert_over(series, state, attempts):
    """Checks that the series ended for good, and that nothing of it is left."""
    for _ in range(2):
        assert series.state is state
        assert series.attempts == attempts
        assert not series.is_acquired
        assert series.reconnecting is None
        await settle()


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
