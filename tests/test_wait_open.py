"""Tests for `wait_open()`, which waits for the connection but starts nothing and keeps nothing open."""

import asyncio
import contextvars
import math
import os
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint
from probe import Probe, Stage, raises
from reopening import (
    AT_ONCE,
    NOT_YET,
    REOPENING,
    Call,
    in_turn,
    is_same,
    reopen,
    settle,
    what_connection_raises,
)

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    ConnectionStoppedError,
    NotConnectedError,
    OwnerTaskError,
    ReconnectPolicy,
    StartTimeoutError,
    StopTimeoutError,
    WrongEventLoopError,
    _owner,
)
from ownertask._owner import Run

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


def test_wait_open_is_final():
    assert ConnectionManager.wait_open.__final__


# The connection is open, or will be.


async def test_wait_open_returns_an_open_connection_at_once():
    probe = Probe()
    connection = await probe.start()
    assert await probe.wait_open() is connection
    assert await probe.wait_open(timeout=0) is connection
    assert await probe.wait_open(0) is connection
    await probe.stop()


async def test_wait_open_waits_while_the_connection_opens():
    opening = Stage()
    probe = Probe(opening)
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.start)
        await opening.reached.wait()
        waiting = [Call(tg, probe.wait_open, timeout) for timeout in (None, 60, math.inf)]
        await settle()
        assert not any(call.is_over for call in waiting)
        opening.let_go.set()
    assert {call.result for call in waiting} == {probe.connection}
    assert len(probe.entered) == 1
    await probe.stop()


@in_turn("phase", ["closing", "attempt"])
async def test_wait_open_waits_while_a_lost_connection_is_reopened(phase):
    probe = Probe()
    stage = await reopen(probe, phase)
    async with anyio.create_task_group() as tg:
        waiting = [Call(tg, probe.wait_open) for _ in range(3)]
        await settle()
        assert not any(call.is_over for call in waiting)
        stage.let_go.set()
    assert {call.result for call in waiting} == {probe.connection}
    assert len(probe.entered) == 2
    await probe.stop()


async def test_wait_open_waits_during_the_delay_of_a_policy():
    probe = Probe()
    await reopen(probe, "delay")
    async with anyio.create_task_group() as tg:
        waiting = Call(tg, probe.wait_open)
        await settle()
        assert not waiting.is_over
        tg.cancel_scope.cancel()
    await probe.stop()

    probe.reconnect = ReconnectPolicy(initial_delay=0.01, jitter=0)
    first = await probe.start()
    probe.connection_lost()
    second = await probe.wait_open()
    assert second is probe.connection is not first
    await probe.stop()


async def test_wait_open_waits_through_failed_attempts():
    probe = Probe()
    probe.reconnect = AT_ONCE
    first = await probe.start()

    async def fail_three_times():
        await checkpoint()
        if len(probe.entered) < 5:
            raise OSError("refused")

    probe.opening = fail_three_times
    probe.connection_lost()
    second = await probe.wait_open()
    assert second is probe.connection is not first
    assert len(probe.entered) == 5
    await probe.stop()


async def test_wait_open_waits_for_the_first_connection_through_failed_attempts():
    attempt = Stage()
    probe = Probe(raises(OSError("refused")))
    probe.reconnect = AT_ONCE

    async def fail_and_wait():
        await checkpoint()
        if len(probe.entered) < 3:
            raise OSError("refused")
        await attempt()

    probe.opening = fail_and_wait
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.start)
        await checkpoint()
        waiting = Call(tg, probe.wait_open)
        await attempt.reached.wait()
        await settle()
        assert not waiting.is_over
        attempt.let_go.set()
    assert waiting.result is probe.connection
    await probe.stop()


@in_turn("how", ["start", "block"])
async def test_wait_open_waits_for_the_run_of_a_start_that_is_queued_behind_a_close(how):
    closing = Stage()
    probe = Probe(closing=closing)
    first = await probe.start()
    leave = anyio.Event()

    async def enter():
        async with probe:
            await leave.wait()

    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.stop)
        await closing.reached.wait()
        opening = probe.opening = Stage()
        tg.start_soon(probe.start if how == "start" else enter)
        await settle()
        waiting = [Call(tg, probe.wait_open) for _ in range(5)]
        await settle()
        assert not any(call.is_over for call in waiting)
        closing.let_go.set()
        await opening.reached.wait()
        await settle()
        assert not any(call.is_over for call in waiting)
        opening.let_go.set()
        await settle()
        assert [call.error for call in waiting] == [None] * 5
        assert {call.result for call in waiting} == {probe.connection}
        assert probe.connection is not first
        leave.set()
        await probe.stop()


async def test_wait_open_waits_for_a_start_that_outlives_the_series_of_a_block():
    closing = Stage()
    probe = Probe(closing=closing)
    probe.reconnect = ReconnectPolicy(initial_delay=0)
    leave = anyio.Event()

    async def enter():
        async with probe:
            probe.connection_lost()
            await leave.wait()

    async with anyio.create_task_group() as tg:
        tg.start_soon(enter)
        await closing.reached.wait()
        starting = Call(tg, probe.start)
        await settle()
        leave.set()  # the last block ends the series, but that start() begins another
        await settle()
        waiting = Call(tg, probe.wait_open)
        await settle()
        assert not waiting.is_over
        closing.let_go.set()
        await settle()
        assert waiting.result is starting.result is probe.connection
        await probe.stop()
    assert len(probe.entered) == 2


@in_turn("end", ["cancelled", "timed out", "stopped"])
async def test_wait_open_raises_if_the_start_that_is_queued_behind_a_close_goes_away(end):
    closing = Stage()
    probe = Probe(closing=closing)
    await probe.start()
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.stop)
        await closing.reached.wait()
        queued = Call(tg, probe.start, 0.01 if end == "timed out" else None)
        waiting = Call(tg, probe.wait_open)
        if end == "cancelled":
            await settle()
            queued.scope.cancel()
        elif end == "stopped":
            await settle()
            tg.start_soon(probe.stop)
        else:
            while not queued.is_over:
                await checkpoint()
        await settle()
        assert type(waiting.error) is NotConnectedError  # although the connection is still closing
        closing.let_go.set()
    kinds = {"timed out": StartTimeoutError, "stopped": ConnectionStoppedError}
    assert type(queued.error) is kinds.get(end, type(None))
    assert type(waiting.error) is NotConnectedError
    assert probe.state is CLOSED
    assert len(probe.entered) == 1


async def test_K2_wait_open_raises_as_soon_as_stop_ends_the_policy_although_the_lost_one_is_closing():
    closing = Stage()
    probe = Probe(closing=closing)
    probe.reconnect = AT_ONCE
    await probe.start()
    probe.connection_lost()
    await closing.reached.wait()
    async with anyio.create_task_group() as tg:
        waiting = Call(tg, probe.wait_open)
        await settle()
        tg.start_soon(probe.stop)
        await settle()
        assert type(waiting.error) is ConnectionLostError
        assert probe.state is CLOSING
        closing.let_go.set()


# It is not.


async def raises_what_connection_raises(probe):
    with pytest.raises(Exception) as caught:
        await probe.wait_open()
    assert is_same(caught.value, what_connection_raises(probe))
    with pytest.raises(type(caught.value)):
        await probe.wait_open(timeout=0)
    return caught.value


@in_turn("policy", [None, AT_ONCE])
async def test_wait_open_starts_nothing(policy):
    probe = Probe()
    probe.reconnect = policy
    error = await raises_what_connection_raises(probe)
    assert isinstance(error, NotConnectedError)
    assert probe.state is error.state is NEW
    await probe.start()
    await probe.stop()
    error = await raises_what_connection_raises(probe)
    assert isinstance(error, NotConnectedError)
    assert probe.state is error.state is CLOSED
    assert len(probe.entered) == 1


@in_turn("policy", [None, ReconnectPolicy(max_retries=0)])
async def test_wait_open_raises_after_a_failure(policy):
    refused = OSError("refused")
    probe = Probe(raises(refused))
    probe.reconnect = policy
    with pytest.raises(OSError, match="refused"):
        await probe.start()
    error = await raises_what_connection_raises(probe)
    assert isinstance(error, NotConnectedError)
    assert error.__cause__ is refused

    probe.opening = checkpoint
    await probe.start()
    probe.connection_lost(OSError("gone"))
    await settle()
    assert probe.state is FAILED
    error = await raises_what_connection_raises(probe)
    assert isinstance(error, ConnectionLostError)
    assert str(error.__cause__) == "gone"
    assert error is not probe.exception
    assert len(probe.entered) == 2


@in_turn("end", ["stopped", "lost", "stopped with a policy"])
async def test_wait_open_raises_at_once_while_closing_if_no_run_will_follow(end):
    closing = Stage()
    probe = Probe(closing=closing)
    if end == "stopped with a policy":
        probe.reconnect = AT_ONCE
    await probe.start()
    async with anyio.create_task_group() as tg:
        if end == "lost":
            probe.connection_lost(OSError("gone"))
        else:
            tg.start_soon(probe.stop)
        await closing.reached.wait()
        error = await raises_what_connection_raises(probe)
        assert probe.state is CLOSING
        closing.let_go.set()
    assert type(error) is (ConnectionLostError if end == "lost" else NotConnectedError)
    await probe.stop()


async def test_wait_open_raises_if_opening_fails():
    opening, refused = Stage(), OSError("refused")

    async def fail():
        await opening()
        raise refused

    probe = Probe(fail)
    async with anyio.create_task_group() as tg:
        starting = Call(tg, probe.start)
        await opening.reached.wait()
        waiting = Call(tg, probe.wait_open)
        await settle()
        opening.let_go.set()
    assert starting.error is refused
    assert type(waiting.error) is NotConnectedError
    assert waiting.error.__cause__ is refused


@in_turn("failure", ["refused", "lost"])
async def test_wait_open_raises_when_the_policy_gives_up(failure):
    probe = Probe()
    probe.reconnect = ReconnectPolicy(initial_delay=0, jitter=0, max_retries=2)
    await probe.start()
    refused = OSError("refused")
    probe.opening = raises(refused)
    if failure == "lost":

        async def lose():
            probe.connection_lost(refused)
            await anyio.sleep_forever()

        probe.opening = lose
    probe.connection_lost(OSError("gone"))
    with pytest.raises(NotConnectedError if failure == "refused" else ConnectionLostError) as caught:
        await probe.wait_open()
    assert caught.value.__cause__ is refused
    await settle()  # the last attempt may still have been closing
    assert is_same(caught.value, what_connection_raises(probe))
    assert probe.state is FAILED
    assert len(probe.entered) == 3


@in_turn("phase", ["opening", *REOPENING])
async def test_K2_wait_open_raises_if_the_manager_is_stopped_meanwhile(phase):
    probe = Probe()
    async with anyio.create_task_group() as tg:
        if phase == "opening":
            stage = probe.opening = Stage()
            starting = Call(tg, probe.start)
            await stage.reached.wait()
        else:
            stage = await reopen(probe, phase)
        entered = len(probe.entered)
        waiting = Call(tg, probe.wait_open)
        await settle()
        assert not waiting.is_over
        tg.start_soon(probe.stop)
        await settle()
        stage.let_go.set()
    if phase == "opening":
        assert type(waiting.error) is NotConnectedError
        assert type(starting.error) is ConnectionStoppedError
    elif phase == "closing":  # the loss is the outcome
        assert type(waiting.error) is ConnectionLostError
    else:  # during the attempt, the last failure is a loss
        assert type(waiting.error) in (NotConnectedError, ConnectionLostError)
    assert probe.state is (FAILED if phase == "closing" else CLOSED)
    assert len(probe.entered) == entered


# The tick in which the connection opens.


@in_turn("policy", [None, AT_ONCE])
@in_turn("end", ["lost", "stopped"])
async def test_O18_wait_open_never_returns_a_connection_that_ended_in_the_tick_of_success(policy, end):
    opening = Stage()
    probe = Probe(opening)
    probe.reconnect = policy
    returned, errors = [], []

    async def wait():
        try:
            connection = await probe.wait_open()
        except (NotConnectedError, ConnectionLostError) as error:
            errors.append(error)
        else:
            assert probe.state is OPEN
            assert probe.connection is connection
            returned.append(connection)

    async def start_and_end():
        await probe.start()
        probe.opening = checkpoint
        if end == "lost":
            probe.connection_lost(OSError("gone"))
        else:
            await probe.stop()

    async with anyio.create_task_group() as tg:
        tg.start_soon(start_and_end)
        await opening.reached.wait()
        for _ in range(20):
            tg.start_soon(wait)
        await settle()
        opening.let_go.set()
    assert len(returned) + len(errors) == 20
    if end == "lost" and policy is not None:
        assert not errors
    await probe.stop()


@in_turn("policy", [None, AT_ONCE])
async def test_O18_wait_open_does_not_return_a_connection_that_a_listener_reports_dead(policy):
    opening = Stage()
    probe = Probe(opening)
    probe.reconnect = policy
    dead = []

    def lose(manager, _, new):
        if new is OPEN and not dead:
            dead.append(manager.connection)
            probe.opening = checkpoint
            manager.connection_lost(OSError("dead"))

    probe.add_listener(lose)
    async with anyio.create_task_group() as tg:
        starting = Call(tg, probe.start)
        await opening.reached.wait()
        waiting = [Call(tg, probe.wait_open) for _ in range(5)]
        await settle()
        opening.let_go.set()
    if policy is None:
        assert {type(call.error) for call in (starting, *waiting)} == {ConnectionLostError}
    else:
        assert {call.result for call in (starting, *waiting)} == {probe.connection} != set(dead)
    await probe.stop()


# Timeouts.


@in_turn("timeout", [0, 0.01])
async def test_wait_open_times_out_without_an_effect_on_the_attempt(timeout):
    opening = Stage()
    probe = Probe(opening, name="redis")
    async with anyio.create_task_group() as tg:
        starting = Call(tg, probe.start)
        await opening.reached.wait()
        with pytest.raises(StartTimeoutError, match="^redis: ") as caught:
            await probe.wait_open(timeout)
        assert caught.value.timeout == timeout
        assert caught.value.__cause__ is None
        assert probe.state is OPENING
        await settle()
        assert not starting.is_over
        opening.let_go.set()
    assert starting.result is probe.connection
    await probe.stop()


@in_turn("timeout", [0, 0.01])
@in_turn("phase", REOPENING)
async def test_K4_wait_open_times_out_without_an_effect_on_the_policy(phase, timeout):
    probe = Probe()
    stage = await reopen(probe, phase)
    state, entered = probe.state, len(probe.entered)
    with pytest.raises(StartTimeoutError) as caught:
        await probe.wait_open(timeout)
    assert caught.value.timeout == timeout
    if phase != "closing":
        assert isinstance(caught.value.__cause__, ConnectionLostError)
        assert str(caught.value.__cause__.__cause__) == "gone"
        assert "gone" in str(caught.value)
    assert probe.state is state
    assert len(probe.entered) == entered
    if phase != "delay":
        stage.let_go.set()
        assert await probe.wait_open() is probe.connection
    await probe.stop()


async def test_K4_the_timeout_error_names_the_last_failure():
    probe = Probe()
    probe.reconnect = AT_ONCE
    await probe.start()
    refused, attempt = OSError("refused"), Stage()

    async def fail_once():
        await checkpoint()
        if len(probe.entered) == 2:
            raise refused
        await attempt()

    probe.opening = fail_once
    probe.connection_lost(OSError("gone"))
    await attempt.reached.wait()
    with pytest.raises(StartTimeoutError, match="refused") as caught:
        await probe.wait_open(0.01)
    assert caught.value.__cause__ is refused
    await probe.stop()


@in_turn("value", [-1, -0.5, math.nan, True, "1"])
async def test_wait_open_rejects_an_invalid_timeout_in_every_state(value):
    kind = TypeError if isinstance(value, (bool, str)) else ValueError
    opening = Stage()
    probe = Probe(opening)

    async def check(state):
        assert probe.state is state
        with pytest.raises(kind, match="^timeout must be"):
            await probe.wait_open(value)

    await check(NEW)
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.start)
        await opening.reached.wait()
        await check(OPENING)
        opening.let_go.set()
    await check(OPEN)
    await probe.stop()
    await check(CLOSED)


# Cancellation. Only calls of `start()` count as waiting for an attempt.


@in_turn("phase", REOPENING)
async def test_K7_cancelling_the_only_wait_open_changes_nothing(phase):
    probe = Probe()
    stage = await reopen(probe, phase)
    state, entered = probe.state, len(probe.entered)
    async with anyio.create_task_group() as tg:
        waiting = Call(tg, probe.wait_open)
        await settle()
        waiting.scope.cancel()
    assert waiting.scope.cancelled_caught
    await settle()
    assert probe.state is state
    assert len(probe.entered) == entered
    if phase != "delay":
        stage.let_go.set()
        assert await probe.wait_open() is probe.connection
        assert len(probe.entered) == 2
    await probe.stop()
    assert probe.state is CLOSED


@in_turn("phase", REOPENING)
async def test_K7_native_cancellation_of_wait_open_changes_nothing(phase, asyncio_only):
    probe = Probe()
    stage = await reopen(probe, phase)
    state, entered = probe.state, len(probe.entered)
    task = asyncio.ensure_future(probe.wait_open())
    await settle()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await settle()
    assert probe.state is state
    assert len(probe.entered) == entered
    if phase != "delay":
        stage.let_go.set()
        assert await probe.wait_open() is probe.connection
    await probe.stop()


async def test_K7_cancelling_wait_open_has_no_effect_on_other_calls():
    opening = Stage()
    probe = Probe(opening)
    async with anyio.create_task_group() as tg:
        starting = Call(tg, probe.start)
        await opening.reached.wait()
        cancelled, waiting = Call(tg, probe.wait_open), Call(tg, probe.wait_open)
        await settle()
        cancelled.scope.cancel()
        await settle()
        assert probe.state is OPENING
        assert not waiting.is_over
        opening.let_go.set()
    assert cancelled.scope.cancelled_caught
    assert starting.result is waiting.result is probe.connection
    await probe.stop()


async def test_K7_a_wait_open_that_is_cancelled_in_the_tick_of_success_leaves_the_connection_open():
    opening = Stage()
    probe = Probe(opening)
    async with anyio.create_task_group() as tg:
        starting = Call(tg, probe.start)
        await opening.reached.wait()
        waiting = [Call(tg, probe.wait_open) for _ in range(3)]
        await settle()
        opening.let_go.set()
        waiting[1].scope.cancel()
    assert starting.result is waiting[0].result is waiting[2].result is probe.connection
    await probe.stop()


@in_turn("end", ["cancelled", "timed out"])
async def test_wait_open_does_not_keep_an_attempt_alive_after_its_start_goes_away(end):
    opening = Stage()
    probe = Probe(opening)
    async with anyio.create_task_group() as tg:
        starting = Call(tg, probe.start, 0.02 if end == "timed out" else None)
        await opening.reached.wait()
        waiting = Call(tg, probe.wait_open)
        if end == "cancelled":
            await settle()
            starting.scope.cancel()
    assert type(waiting.error) is NotConnectedError
    if end == "cancelled":
        assert waiting.error.__cause__ is None
        assert probe.state is CLOSED
    else:
        assert type(starting.error) is StartTimeoutError
        assert type(waiting.error.__cause__) in (StartTimeoutError, type(None))  # None while closing
        assert probe.state is FAILED
    assert not probe.is_acquired


async def test_K7_wait_open_does_not_keep_a_policy_at_work_after_the_only_first_start_goes_away():
    probe = Probe(raises(OSError("refused")))
    probe.reconnect = NOT_YET
    async with anyio.create_task_group() as tg:
        starting = Call(tg, probe.start)
        await settle()
        assert probe.state is OPENING
        assert len(probe.exited) == 1
        waiting = Call(tg, probe.wait_open)
        await settle()
        assert not waiting.is_over
        starting.scope.cancel()
    assert type(waiting.error) is NotConnectedError
    assert probe.state in (CLOSED, FAILED)
    assert len(probe.entered) == 1


# Misuse.


@in_turn("run", ["first", "next"])
async def test_O21_wait_open_raises_in_the_owner_task_of_a_run_that_is_not_open_yet(run):
    probe = Probe()
    errors = []

    async def call():
        with pytest.raises(
            OwnerTaskError, match=r"^probe: wait_open\(\) was called from inside"
        ) as caught:
            await probe.wait_open()
        errors.append(caught.value)

    if run == "next":
        probe.reconnect = AT_ONCE
        await probe.start()
        probe.opening = call
        probe.connection_lost()
        await probe.wait_open()
    else:
        probe.opening = call
        await probe.start()
    assert len(errors) == 1
    assert probe.state is OPEN
    await probe.stop()


class Parent(ConnectionManager[object]):
    """A connection with a child task that calls `wait_open()` while the connection opens.

    If `is_late`, another child task calls it while the connection closes.
    """

    def __init__(self, *, is_late):
        super().__init__(name="parent")
        self.calls = []
        self.is_late = is_late

    async def call(self, task_group):
        call = Call(task_group, self.wait_open)
        while not call.is_over:
            await checkpoint()
        self.calls.append(call)

    @asynccontextmanager
    async def open_connection(self):
        async with anyio.create_task_group() as tg:
            await self.call(tg)
            yield object()
            if self.is_late:
                await self.call(tg)
            tg.cancel_scope.cancel()


@in_turn("run", ["first", "next"])
async def test_O21_wait_open_raises_in_a_child_of_the_owner_until_the_connection_is_open(run):
    parent = Parent(is_late=False)
    parent.reconnect = AT_ONCE
    await parent.start()
    if run == "next":
        parent.connection_lost()
        await parent.wait_open()
    assert [type(call.error) for call in parent.calls] == [OwnerTaskError] * (2 if run == "next" else 1)
    await parent.stop()


async def test_O21_wait_open_raises_in_a_child_of_the_owner_while_closing_if_no_run_will_follow():
    parent = Parent(is_late=True)
    await parent.start()
    await parent.stop()
    assert [type(call.error) for call in parent.calls] == [OwnerTaskError, NotConnectedError]


async def test_O21_wait_open_returns_in_a_child_of_an_open_connection():
    probe = Probe()
    seen = []

    async def watch(connection):
        seen.append((await probe.wait_open(), connection))
        await anyio.sleep_forever()

    probe.watch = watch
    connection = await probe.start()
    await settle()
    assert seen == [(connection, connection)]
    await probe.stop()


async def test_O21_wait_open_in_the_owner_task_of_a_lost_connection_does_not_wait_for_the_next_run():
    probe = Probe()
    errors = []

    async def close():
        try:
            await probe.wait_open()
        except Exception as error:
            errors.append(error)

    probe.reconnect = AT_ONCE
    await probe.start()
    probe.closing = close
    probe.connection_lost(OSError("gone"))
    await settle()
    probe.closing = checkpoint
    await probe.wait_open()
    assert [type(error) for error in errors] == [OwnerTaskError]
    await probe.stop()


async def test_wait_open_in_a_task_of_an_earlier_run_waits_for_a_later_one():
    contexts = []

    async def note_context():
        contexts.append(contextvars.copy_context())

    probe = Probe(note_context)
    probe.reconnect = AT_ONCE
    await probe.start()
    attempt = probe.opening = Stage()
    probe.connection_lost()
    await attempt.reached.wait()
    waiting = []
    async with anyio.create_task_group() as tg:
        contexts[0].run(lambda: waiting.append(Call(tg, probe.wait_open)))
        await settle()
        assert not waiting[0].is_over
        attempt.let_go.set()
    assert waiting[0].result is probe.connection
    await probe.stop()


async def test_wait_open_in_the_owner_of_another_manager_waits():
    opening = Stage()
    inner = Probe(opening, name="inner")
    outer = Probe(inner.wait_open, name="outer")
    async with anyio.create_task_group() as tg:
        tg.start_soon(inner.start)
        await opening.reached.wait()
        tg.start_soon(outer.start)
        await settle()
        assert outer.state is OPENING
        opening.let_go.set()
    assert outer.state is inner.state is OPEN
    await outer.stop()
    await inner.stop()


async def test_wait_open_of_a_lent_manager_raises_because_it_has_no_run():
    class Outer(ConnectionManager[object]):
        @asynccontextmanager
        async def open_connection(self):
            async with self.open_inner(probe) as connection:
                yield connection

    probe = Probe()
    async with Outer():
        error = await raises_what_connection_raises(probe)
        assert error.state is NEW


@in_turn("phase", ["opening", "open", *REOPENING])
async def test_C8_wait_open_raises_at_once_in_another_event_loop(phase):
    probe = Probe()

    async def misuse():
        with pytest.raises(WrongEventLoopError, match="probe"):
            await probe.wait_open()

    async def misuse_in_other_loops():
        state = probe.state
        for backend in ("asyncio", "trio"):
            await anyio.to_thread.run_sync(lambda backend=backend: anyio.run(misuse, backend=backend))
        assert probe.state is state

    async with anyio.create_task_group() as tg:
        if phase == "opening":
            stage = probe.opening = Stage()
            starting = Call(tg, probe.start)
            await stage.reached.wait()
        elif phase == "open":
            await probe.start()
        else:
            stage = await reopen(probe, phase)
        await misuse_in_other_loops()
        if phase != "open":
            stage.let_go.set()
        if phase == "opening":
            await settle()
            assert starting.result is probe.connection
        await probe.stop()


def test_wait_open_works_in_one_event_loop_after_another(anyio_backend):
    probe = Probe()
    name, options = anyio_backend

    async def cycle():
        with pytest.raises(NotConnectedError):
            await probe.wait_open()
        connection = await probe.start()
        assert await probe.wait_open() is connection
        await probe.stop()

    for _ in range(2):
        anyio.run(cycle, backend=name, backend_options=options)


def test_in_a_forked_child_wait_open_raises(monkeypatch):
    probe = Probe()

    async def main():
        await probe.start()
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(NotConnectedError):
            await probe.wait_open()
        monkeypatch.undo()
        await probe.stop()

    anyio.run(main)


async def test_no_spin_of_start_calls_that_were_stopped_behind_a_close(monkeypatch):
    closing = Stage()
    probe = Probe(closing=closing)
    await probe.start()
    waits = 0
    changed = Run.changed

    def counted(run, deadline=None):
        nonlocal waits
        waits += 1
        return changed(run, deadline)

    monkeypatch.setattr(Run, "changed", counted)
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.stop)
        await closing.reached.wait()
        starting = [Call(tg, probe.start) for _ in range(3)]
        await settle()
        tg.start_soon(probe.stop)
        await settle()
        before = waits
        for _ in range(100):
            await checkpoint()
        assert waits == before
        closing.let_go.set()
    assert [type(call.error) for call in starting] == [ConnectionStoppedError] * 3


async def test_C3_wait_open_raises_if_the_lost_connection_cannot_be_closed(grace, monkeypatch):
    monkeypatch.setattr(_owner, "STOP_TIMEOUT", 0.01)
    closing = Stage(shield=True)
    probe = Probe(closing=closing)
    probe.reconnect = AT_ONCE
    await probe.start()
    probe.connection_lost()
    with pytest.raises(StopTimeoutError):
        await probe.wait_open()
    closing.let_go.set()
    await settle()
    assert await probe.wait_open() is probe.connection
    await probe.stop()


async def test_a_timeout_has_the_notes_of_the_attempt():
    class Noting(Probe):
        async def open_slowly(self):
            self._add_fact("the server is slow")
            await anyio.sleep_forever()

    probe = Noting()
    probe.opening = probe.open_slowly
    async with anyio.create_task_group() as tg:
        starting = Call(tg, probe.start)
        await settle()
        with pytest.raises(StartTimeoutError) as caught:
            await probe.wait_open(0.01)
        await probe.stop()
    assert caught.value.__notes__ == ["the server is slow"]
    assert type(starting.error) is ConnectionStoppedError
