"""Tests for the reconnect policy: what can be seen of a series of runs, and what belongs to all of them.

The delays are either zero or an hour that does not pass. `test_reconnect_delays.py` tests their length.
"""

import contextvars
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint
from probe import Probe, Stage, raises
from reopening import (
    AT_ONCE,
    NOT_YET,
    REOPENING,
    Call,
    Series,
    assert_over,
    levels,
    refuse,
    reopening,
    retries,
    settle,
)

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    ConnectionStoppedError,
    NotConnectedError,
    Reconnecting,
    ReconnectPolicy,
)

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


# What can be seen while the manager reopens.


async def test_reconnecting_describes_the_last_failure_during_the_delay_and_the_attempt():
    series = Series(policy=NOT_YET)
    assert series.reconnecting is None
    await series.start()
    assert series.reconnecting is None
    cause = OSError("cut")
    series.connection_lost(cause)
    lost_at = anyio.current_time()
    await settle()
    reconnecting = series.reconnecting
    assert isinstance(reconnecting, Reconnecting)
    assert reconnecting.failures == 1
    assert lost_at + 3600 <= reconnecting.due <= anyio.current_time() + 3600
    assert type(reconnecting.exception) is ConnectionLostError
    assert reconnecting.exception.__cause__ is cause
    with pytest.raises(AttributeError):
        reconnecting.failures = 2
    assert series.state is OPENING
    assert series.exception is None
    assert repr(series) == "<Series 'probe' opening>"
    await series.stop()
    assert series.reconnecting is None


async def test_reconnecting_is_kept_during_the_attempt_and_changes_with_each_failure():
    stages = [Stage(), Stage()]

    async def fail():
        await stages[0]()
        raise error

    error = OSError("refused")
    series = Series(checkpoint, fail, stages[1])
    await series.start()
    series.connection_lost()
    await stages[0].reached.wait()
    assert series.reconnecting.failures == 1
    assert type(series.reconnecting.exception) is ConnectionLostError
    assert series.reconnecting.due <= anyio.current_time()
    stages[0].let_go.set()
    await stages[1].reached.wait()
    assert series.reconnecting.failures == 2
    assert series.reconnecting.exception is error
    assert series.state is OPENING
    assert series.exception is None
    stages[1].let_go.set()
    await series.start()
    assert series.reconnecting is None
    await series.stop()


async def test_reconnecting_is_none_during_a_first_attempt():
    stage = Stage()
    series = Series(stage)
    async with anyio.create_task_group() as tg:
        tg.start_soon(series.start)
        await stage.reached.wait()
        assert series.reconnecting is None
        stage.let_go.set()
    await series.stop()


@pytest.mark.parametrize("phase", REOPENING)
async def test_connection_raises_the_loss_while_reopening(phase):
    cause = OSError("cut")
    series, _ = await reopening(phase, cause)
    errors = []
    for _ in range(2):
        with pytest.raises(ConnectionLostError, match="cut") as raised:
            series.connection  # noqa: B018
        assert raised.value.__cause__ is cause
        errors.append(raised.value)
    assert errors[0] is not errors[1]
    await series.stop(0)


async def test_connection_raises_not_connected_with_the_failure_as_cause_while_reopening():
    stage, error = Stage(), OSError("refused")
    series = Series(checkpoint, raises(error), stage)
    await series.start()
    series.connection_lost()
    await stage.reached.wait()
    with pytest.raises(NotConnectedError) as raised:
        series.connection  # noqa: B018
    assert raised.value.__cause__ is error
    assert raised.value.state is OPENING
    await series.stop()


@pytest.mark.parametrize("cause", [None, OSError("again")], ids=["without a cause", "with a cause"])
async def test_a_loss_that_is_reported_during_the_delay_changes_nothing(cause, caplog):
    series, _ = await reopening("delay")
    before = series.reconnecting
    caplog.clear()
    for _ in range(3):
        series.connection_lost(cause)
        await anyio.to_thread.run_sync(series.connection_lost, cause)
        await settle()
    assert series.reconnecting == before
    assert series.state is OPENING
    assert series.attempts == 1
    assert not levels(caplog)
    await series.stop()
    await assert_over(series, CLOSED, 1)


@pytest.mark.parametrize("phase", [*REOPENING[1:], "open"])
async def test_a_late_report_by_an_old_run_changes_nothing_in_the_next(phase):
    series, stage = await reopening("attempt" if phase == "open" else phase)
    if phase == "open":
        stage.let_go.set()
        await series.start()
    state, before = series.state, series.reconnecting
    for cause in (None, OSError("late")):
        series.contexts[0].run(series.connection_lost, cause)
        await settle()
    assert series.state is state
    assert series.reconnecting == before
    stage.let_go.set()
    if phase != "delay":
        await series.start()
        assert series.attempts == 2
    await series.stop()


@pytest.mark.parametrize("phase", REOPENING)
async def test_start_in_a_callback_of_the_lost_run_waits_for_the_next_connection(phase):
    series, stage = await reopening(phase)
    async with anyio.create_task_group() as tg:
        call = series.contexts[0].run(Call, tg, series.start)
        await settle()
        assert call.ended is None
        if phase == "delay":
            await series.stop()
        stage.let_go.set()
    if phase == "delay":
        assert type(call.error) is ConnectionStoppedError
    else:
        assert call.result is series.connection
        await series.stop()


# Context variables.

variable = contextvars.ContextVar("variable", default="default")


async def test_each_run_of_a_series_has_the_context_variables_of_the_first_start():
    async def set_it():
        await checkpoint()
        seen.append(variable.get())
        variable.set("set by open_connection()")

    async def fail():
        await set_it()
        raise OSError("refused")

    async def start():
        variable.set("first start")
        await series.start()

    async def lose():
        variable.set("loss")
        series.connection_lost()
        await series.start()

    seen = []
    series = Series(fail, set_it, set_it, fail, set_it)
    for function in (start, lose, lose):
        async with anyio.create_task_group() as tg:
            tg.start_soon(function)
    assert seen == ["first start"] * 5
    await series.stop()


# run(), wait_closed() and blocks belong to the whole series.


async def test_run_returns_when_the_series_is_stopped():
    series = Series(refuse)
    async with anyio.create_task_group() as tg:
        call = Call(tg, series.run)
        await settle()
        for _ in range(3):
            series.connection_lost()
            await series.start()
            assert call.ended is None
        await series.stop()
    assert call.ended == "returned"
    await assert_over(series, CLOSED, 5)


async def test_run_passes_the_first_connection_only():
    series = Series()
    async with anyio.create_task_group() as tg:
        first = await tg.start(series.run)
        assert series.connection is first
        series.connection_lost()
        assert await series.start() is not first
        await series.stop()


async def test_run_raises_the_last_failure_when_the_policy_gives_up():
    series = Series(checkpoint, raises(OSError("one")), raises(OSError("two")), policy=retries(2))
    async with anyio.create_task_group() as tg:
        call = Call(tg, series.run)
        await settle()
        series.connection_lost()
    assert call.error is series.exception
    assert call.error.args == ("two",)
    await assert_over(series, FAILED, 3)


@pytest.mark.parametrize("kind", ["scope", "native"])
@pytest.mark.parametrize("phase", [*REOPENING, "open"])
async def test_a_cancelled_run_ends_the_series(phase, kind):
    stage = Stage()
    series = Series(
        *([checkpoint, stage] if phase == "attempt" else []),
        closings=[stage] if phase == "closing" else [],
        policy=NOT_YET if phase == "delay" else AT_ONCE,
    )
    async with anyio.create_task_group() as tg:
        call = Call(tg, series.run)
        await settle()
        series.connection_lost()
        await settle()
        attempts = series.attempts
        call.cancel(kind)
    assert call.ended == "cancelled"
    await assert_over(series, FAILED if phase == "closing" else CLOSED, attempts)


@pytest.mark.parametrize("phase", [*REOPENING, "open"])
async def test_wait_closed_waits_for_the_end_of_the_series(phase):
    series, stage = await reopening("attempt" if phase == "open" else phase)
    if phase == "open":
        stage.let_go.set()
        await series.start()
    async with anyio.create_task_group() as tg:
        call = Call(tg, series.wait_closed)
        await settle()
        assert call.ended is None
        if phase != "delay":
            stage.let_go.set()
            for _ in range(2):
                await series.start()
                series.connection_lost()
                await series.start()
                await settle()
                assert call.ended is None
        await series.stop()
    assert call.ended == "returned"


async def test_a_block_that_was_entered_before_a_loss_stops_the_series_when_it_exits():
    series = Series(refuse)
    async with series as first:
        series.connection_lost()
        assert await series.start() is not first
    await assert_over(series, CLOSED, 3)


@pytest.mark.parametrize("phase", REOPENING)
async def test_the_last_block_that_exits_while_reopening_ends_the_series(phase):
    stage = Stage()
    series = Series(
        *([checkpoint, stage] if phase == "attempt" else []),
        closings=[stage] if phase == "closing" else [],
        policy=NOT_YET if phase == "delay" else AT_ONCE,
    )
    async with anyio.create_task_group() as tg:
        async with series:
            async with series:
                series.connection_lost()
                await (settle() if phase == "delay" else stage.reached.wait())
            assert series.state is (CLOSING if phase == "closing" else OPENING)  # one block is left
            if phase == "closing":
                tg.start_soon(let_go_soon, stage)
    await assert_over(series, FAILED if phase == "closing" else CLOSED, 2 if phase == "attempt" else 1)


async def test_a_block_that_is_cancelled_behind_the_close_of_a_lost_connection_ends_the_series():
    """The block before it has exited, so nobody uses the connection that would be opened."""
    closing = Stage()
    series = Series(closings=[closing])
    async with anyio.create_task_group() as tg:
        async with series:
            series.connection_lost()
            await closing.reached.wait()
            waiting = Call(tg, series.__aenter__)
            await settle()
        waiting.cancel()
        await settle()
        assert waiting.ended == "cancelled"
        assert series.state is CLOSING
        closing.let_go.set()
        await settle()
    await assert_over(series, FAILED, 1)


async def let_go_soon(stage):
    await settle()
    stage.let_go.set()


async def test_a_block_that_joins_while_reopening_keeps_the_connection_for_itself():
    stage = Stage()
    series = Series(checkpoint, stage)
    leave = anyio.Event()

    async def join():
        async with series as connection:
            assert connection is series.connection
            await leave.wait()

    async with anyio.create_task_group() as tg:
        async with series:
            series.connection_lost()
            await stage.reached.wait()
            call = Call(tg, join)
            await settle()
        await settle()
        assert series.state is OPENING  # the other block waits to enter
        stage.let_go.set()
        await settle()
        assert series.state is OPEN
        leave.set()
        await settle()
        assert call.ended == "returned"
        assert series.state is CLOSED
    await assert_over(series, CLOSED, 2)


@pytest.mark.parametrize("phase", ["attempt", "open"])
async def test_a_block_can_exit_in_another_task_after_a_loss(phase):
    stage = Stage()
    series = Series(checkpoint, stage)
    await series.__aenter__()
    series.connection_lost()
    await stage.reached.wait()
    if phase == "open":
        stage.let_go.set()
        await settle()
        assert series.state is OPEN
    async with anyio.create_task_group() as tg:
        tg.start_soon(series.__aexit__, None, None, None)
    await assert_over(series, CLOSED, 2)


@pytest.mark.parametrize("begin", ["start", "run"])
async def test_the_exit_of_a_block_does_not_end_a_series_that_start_or_run_began(begin):
    series = Series()
    async with anyio.create_task_group() as tg:
        if begin == "start":
            await series.start()
        else:
            await tg.start(series.run)
        async with series:
            series.connection_lost()
            await series.start()
        assert series.state is OPEN
        series.connection_lost()
        await series.start()
        async with series:
            pass
        assert series.state is OPEN
        await series.stop()


async def test_a_start_that_joins_while_reopening_does_not_keep_the_series_of_a_block_open():
    series = Series()
    async with series:
        series.connection_lost()
        await series.start()
    await assert_over(series, CLOSED, 2)


async def test_a_block_of_a_series_that_gave_up_does_not_end_the_next_series():
    series = Series(policy=retries(0))
    async with series:
        series.connection_lost()
        with pytest.raises(ConnectionLostError):
            await series.wait_closed()
        connection = await series.start()
    assert series.connection is connection
    await series.stop()


# Logging.


async def test_each_loss_is_logged_as_a_warning(caplog):
    series = Series()
    await series.start()
    for number in range(3):
        series.connection_lost(OSError(f"loss {number}"))
        await series.start()
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == 3 == len(levels(caplog))
    assert all(f"loss {number}" in message for number, message in enumerate(messages))
    await series.stop()


@pytest.mark.parametrize("begin", ["start", "loss"])
async def test_only_the_first_failure_of_a_series_is_logged_as_a_warning(begin, caplog):
    caplog.set_level("DEBUG", "ownertask")
    failures = [raises(OSError(f"failure {number}")) for number in range(4)]
    series = Series(*([checkpoint] if begin == "loss" else []), *failures)
    await series.start()
    if begin == "loss":
        series.connection_lost(OSError("cut"))
        await series.start()
    assert levels(caplog) == ["WARNING"]
    [message] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "probe" in message
    assert ("cut" if begin == "loss" else "failure 0") in message
    debug = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
    assert any("failure 3" in message for message in debug)
    await series.stop()
    assert levels(caplog) == ["WARNING"]


async def test_giving_up_is_logged_as_a_warning_if_nobody_waits(caplog):
    series = Series(checkpoint, raises(OSError("one")), raises(OSError("two")), policy=retries(2))
    await series.start()
    series.connection_lost(OSError("cut"))
    await settle()
    assert series.state is FAILED
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2 == len(levels(caplog))
    assert "cut" in warnings[0]
    assert "two" in warnings[1]


# Arguments.


class Lender(ConnectionManager[object]):
    def __init__(self, inner):
        super().__init__(name="outer")
        self.inner = inner

    @asynccontextmanager
    async def open_connection(self):
        async with self.open_inner(self.inner) as connection:
            yield connection


@pytest.mark.parametrize("policy", [None, AT_ONCE])
async def test_a_manager_with_a_policy_cannot_be_lent(policy):
    inner = Series()
    outer = Lender(inner)
    outer.reconnect = policy
    with pytest.raises(TypeError, match=r"probe.*reconnect.*outer|reconnect.*probe.*outer"):
        await outer.start()
    assert outer.state is FAILED
    assert outer.reconnecting is None
    assert not inner.entered
    inner.reconnect = None
    outer.reconnect = AT_ONCE  # the outer one counts
    await outer.start()
    inner.connection_lost()
    await outer.start()
    assert len(inner.entered) == 2
    await outer.stop()
    inner.reconnect = AT_ONCE
    await inner.start()  # the inner one can be used by itself
    await inner.stop()


@pytest.mark.parametrize("wrong", [5, True, "yes", ReconnectPolicy, {"initial_delay": 1}], ids=repr)
async def test_a_wrong_type_of_reconnect_is_rejected_before_anything_is_opened(wrong):
    series = Series(policy=wrong)
    for call in (series.start, series.run, series.__aenter__):
        with pytest.raises(TypeError, match="reconnect"):
            await call()
    with pytest.raises(TypeError, match="reconnect"):
        await ConnectionManager.from_factory(series.open_connection, reconnect=wrong).start()
    assert series.state is NEW
    assert not series.entered


async def test_from_factory_takes_a_policy():
    probe = Probe()
    manager = ConnectionManager.from_factory(probe.open_connection, reconnect=AT_ONCE)
    assert manager.reconnect is AT_ONCE
    first = await manager.start()
    manager.connection_lost()
    assert await manager.start() is not first
    await manager.stop()
    assert len(probe.entered) == len(probe.exited) == 2


async def test_without_a_policy_a_lost_connection_stays_lost():
    series = Series(policy=None)
    assert Probe().reconnect is None
    await series.start()
    series.connection_lost()
    with pytest.raises(ConnectionLostError):
        await series.wait_closed()
    await assert_over(series, FAILED, 1)
