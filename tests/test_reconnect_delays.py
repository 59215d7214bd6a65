"""Tests for the delays of the reconnect policy, in virtual time. `test_reconnect.py` tests the rest.

Closing and opening take no time, unless a test says so.
"""

from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint
from probe import raises
from proof import clocks
from proof.clocks import in_virtual_time
from reopening import HOUR, NOT_YET, Call, Series, refuse, reopening, settle

from ownertask import (
    ConnectionLostError,
    ConnectionState,
    ReconnectPolicy,
    StartTimeoutError,
)

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState

DAY = 24 * HOUR


def policy(**options):
    """Returns a policy whose delays are 1, 2, 4, 8, 10, 10... seconds."""
    return ReconnectPolicy(**{"initial_delay": 1, "max_delay": 10, "jitter": 0, **options})


def delays(series):
    """Returns the times between the attempts of a series whose runs take no time."""
    return [after - before for before, after in zip(series.times, series.times[1:], strict=False)]


def about(values):
    return pytest.approx(list(values), abs=1e-3)


async def slow_to_close():
    await anyio.sleep(3)


async def slow_to_open():
    await anyio.sleep(3)


# K1, K4, K6: the delays.


@in_virtual_time
async def test_K1_the_delays_after_losses_grow_up_to_the_maximum():
    series = Series(policy=policy())
    await series.start()
    for _ in range(50):
        series.connection_lost()
        await series.start()
    assert delays(series) == about([1, 2, 4, 8, *[10] * 46])
    assert series.most_alive == 1
    await series.stop()


@in_virtual_time
async def test_K4_the_delays_after_failed_attempts_grow_up_to_the_maximum():
    series = Series(*[refuse] * 8, policy=policy(multiplier=3))
    await series.start()
    assert delays(series) == about([1, 3, 9, 10, 10, 10, 10, 10])
    await series.stop()


@in_virtual_time
async def test_K4_a_connection_that_is_down_for_long_opens_at_the_first_attempt_after_that():
    """More attempts than powers of two fit into a float."""
    up_at = 20_000

    async def open_if_up():
        await (checkpoint if anyio.current_time() > began + up_at else refuse)()

    began = anyio.current_time()
    series = Series(*[open_if_up] * 3000, policy=policy())
    await series.start()
    assert 0 <= anyio.current_time() - began - up_at <= 10 + 1e-3
    assert series.attempts == pytest.approx(up_at / 10, abs=10)
    await series.stop()


@in_virtual_time
async def test_jitter_spreads_the_delays_both_ways_up_to_the_maximum():
    series = Series(*[refuse] * 100, policy=policy(multiplier=1, jitter=0.5, max_delay=1.25))
    await series.start()
    assert all(0.5 - 1e-3 <= delay <= 1.25 + 1e-3 for delay in delays(series))
    assert min(delays(series)) < 0.9
    assert max(delays(series)) > 1.1
    assert len({round(delay, 6) for delay in delays(series)}) > 40
    await series.stop()


@in_virtual_time
async def test_the_delay_begins_when_the_lost_connection_is_closed():
    async def close_slowly():
        await anyio.sleep(3)

    series = Series(policy=policy(), closings=[close_slowly])
    await series.start()
    series.connection_lost()
    await anyio.sleep(2.9)
    assert series.state is CLOSING
    await anyio.sleep(0.2)
    assert series.state is OPENING
    assert series.reconnecting.due == pytest.approx(series.times[0] + 4, abs=1e-3)
    await series.start()
    assert delays(series) == about([4])
    await series.stop()


class CrashLoop(Series):
    """Each of its connections is lost as soon as it is open, or after `lifetimes`, in seconds."""

    lifetimes = ()

    @asynccontextmanager
    async def open_connection(self):
        async with super().open_connection() as connection, anyio.create_task_group() as tg:
            tg.start_soon(self.crash)
            yield connection

    async def crash(self):
        number = self.attempts - 1
        await anyio.sleep(self.lifetimes[number] if number < len(self.lifetimes) else 0)
        await raises(OSError(f"crash {number}"))()


@in_virtual_time
async def test_K6_the_delays_of_a_crash_loop_grow_and_failures_are_counted():
    series = CrashLoop(policy=policy(max_retries=6))
    with suppress(ConnectionLostError):
        await series.start()
    for failures, delay in enumerate([1, 2, 4, 8, 10, 10], start=1):
        await settle()
        reconnecting = series.reconnecting
        assert reconnecting.failures == failures
        assert reconnecting.due == pytest.approx(anyio.current_time() + delay, abs=1e-3)
        assert f"crash {failures - 1}" in str(reconnecting.exception)
        await anyio.sleep(delay + 1e-4)
    with pytest.raises(ConnectionLostError, match="crash 6"):
        await series.wait_closed()
    assert series.reconnecting is None
    assert delays(series) == about([1, 2, 4, 8, 10, 10])
    await anyio.sleep(DAY)
    assert series.attempts == 7


@in_virtual_time
async def test_K6_a_run_that_was_open_for_stable_after_starts_the_count_again():
    series = CrashLoop(policy=policy(max_retries=3, stable_after=60))
    series.lifetimes = [0, 0, 59, 61, 0, 59, 61, 61, 0]
    await series.start()
    with pytest.raises(ConnectionLostError, match="crash 10"):
        await series.wait_closed()
    lifetimes = [*series.lifetimes, 0]
    pauses = [delay - lived for delay, lived in zip(delays(series), lifetimes, strict=True)]
    assert pauses == about([1, 2, 4, 1, 2, 4, 1, 1, 2, 4])


@in_virtual_time
async def test_K6_time_spent_opening_does_not_make_a_run_stable():
    series = Series(*[slow_to_open] * 4, policy=policy(stable_after=2))
    await series.start()
    for _ in range(3):
        await anyio.sleep(1)
        series.connection_lost()
        await series.start()
    assert delays(series) == about([3 + 1 + delay for delay in (1, 2, 4)])
    await series.stop()


@in_virtual_time
async def test_K6_time_spent_closing_does_not_make_a_run_stable():
    series = Series(closings=[slow_to_close] * 3, policy=policy(stable_after=2))
    await series.start()
    for _ in range(3):
        await anyio.sleep(1)
        series.connection_lost()
        await series.start()
    assert delays(series) == about([1 + 3 + delay for delay in (1, 2, 4)])
    await series.stop()


@in_virtual_time
async def test_K6_with_stable_after_zero_each_loss_starts_the_count_again():
    series = Series(policy=policy(stable_after=0, max_retries=1))
    await series.start()
    for _ in range(5):
        series.connection_lost()
        await series.start()
    assert delays(series) == about([1] * 5)
    await series.stop()


@in_virtual_time
async def test_K6_max_retries_zero_never_tries_again_even_after_a_stable_run():
    series = Series(policy=policy(max_retries=0, stable_after=60))
    await series.start()
    await anyio.sleep(HOUR)
    series.connection_lost()
    with pytest.raises(ConnectionLostError):
        await series.wait_closed()
    await anyio.sleep(DAY)
    assert series.attempts == 1


@in_virtual_time
async def test_K6_a_failure_after_a_loss_counts_on():
    series = Series(checkpoint, refuse, refuse, refuse, policy=policy(max_retries=3))
    await series.start()
    series.connection_lost()
    with pytest.raises(OSError, match="refused"):
        await series.start()
    assert delays(series) == about([1, 2, 4])
    assert series.state is FAILED


@in_virtual_time
async def test_K6_start_after_giving_up_begins_at_once_and_counts_from_the_beginning():
    series = Series(*[refuse] * 6, policy=policy(max_retries=2))
    for _ in range(2):
        began = anyio.current_time()
        with pytest.raises(OSError, match="refused"):
            await series.start()
        assert anyio.current_time() - began == pytest.approx(3, abs=1e-3)
    assert delays(series) == about([1, 2, 0, 1, 2])


# K2: nothing is attempted after stop().


@pytest.mark.parametrize("phase", ["delay", "attempt", "closing"])
@in_virtual_time
async def test_K2_nothing_is_attempted_in_the_day_after_stop(phase):
    async def take_a_second():
        await anyio.sleep(1)

    series = Series(
        checkpoint,
        take_a_second,
        policy=policy(initial_delay=1),
        closings=[take_a_second] if phase == "closing" else [],
    )
    await series.start()
    series.connection_lost()
    await anyio.sleep(1.5 if phase == "attempt" else 0.5)
    assert series.attempts == (2 if phase == "attempt" else 1)
    began = anyio.current_time()
    await series.stop()
    assert anyio.current_time() - began == pytest.approx(0.5 if phase == "closing" else 0, abs=1e-3)
    state = series.state
    assert state is (FAILED if phase == "closing" else CLOSED)
    await anyio.sleep(DAY)
    assert series.attempts == (2 if phase == "attempt" else 1)
    assert series.state is state


@in_virtual_time
async def test_K2_stop_when_the_delay_ends_leaves_nothing_open():
    for steps in range(-3, 4):
        series = Series(policy=policy())
        await series.start()
        series.connection_lost()
        await anyio.sleep(1 + min(steps, 0) * 1e-6)
        for _ in range(steps):
            await checkpoint()
        await series.stop()
        assert series.state is CLOSED, steps
        assert not series.is_acquired, steps
        attempts = series.attempts
        await anyio.sleep(DAY)
        assert series.attempts == attempts, steps


# K4, K7: a start() with a timeout.


@in_virtual_time
async def test_K4_a_start_that_times_out_raises_with_the_last_failure():
    failures = [raises(OSError(f"failure {number}")) for number in range(9)]
    series = Series(*failures, policy=policy())
    began = anyio.current_time()
    with pytest.raises(StartTimeoutError, match="failure 2") as raised:
        await series.start(5)
    assert anyio.current_time() - began == pytest.approx(5, abs=1e-3)
    assert raised.value.__cause__.args == ("failure 2",)
    assert raised.value.timeout == 5
    assert type(series.exception) is StartTimeoutError
    assert series.state is FAILED  # nobody else waited for the first connection
    await anyio.sleep(DAY)
    assert series.attempts == 3


@in_virtual_time
async def test_K4_a_start_that_times_out_leaves_the_attempts_to_another_start():
    failures = [raises(OSError(f"failure {number}")) for number in range(4)]
    series = Series(*failures, policy=policy())
    async with anyio.create_task_group() as tg:
        other = Call(tg, series.start)
        await checkpoint()
        with pytest.raises(StartTimeoutError, match="failure 1") as raised:
            await series.start(2)
        assert raised.value.__cause__.args == ("failure 1",)
        assert series.state is OPENING
    assert other.result is series.connection
    assert delays(series) == about([1, 2, 4, 8])
    await series.stop()


@pytest.mark.parametrize("kind", ["scope", "native", "timeout"])
@in_virtual_time
async def test_K7_a_start_that_goes_away_while_reopening_does_not_change_the_delay(kind):
    series = Series(policy=policy(initial_delay=10))
    await series.start()
    series.connection_lost(OSError("cut"))
    async with anyio.create_task_group() as tg:
        call = Call(tg, lambda: series.start(5 if kind == "timeout" else None))
        await anyio.sleep(5.5)
        call.cancel(kind)
    if kind == "timeout":
        assert "cut" in str(call.error)
        assert type(call.error.__cause__) is ConnectionLostError
    else:
        assert call.ended == "cancelled"
    assert series.state is OPENING
    await anyio.sleep(5)
    assert series.state is OPEN
    assert delays(series) == about([10])
    await series.stop()


@in_virtual_time
async def test_a_start_during_the_delay_does_not_shorten_it():
    series = Series(policy=policy(initial_delay=10))
    await series.start()
    series.connection_lost()
    await anyio.sleep(4)
    await series.start()
    assert delays(series) == about([10])
    await series.stop()


@in_virtual_time
async def test_a_loss_that_is_reported_during_the_delay_does_not_change_it():
    series = Series(policy=policy(initial_delay=10))
    await series.start()
    series.connection_lost()
    for _ in range(9):
        await anyio.sleep(1)
        series.connection_lost(OSError("again"))
        assert series.reconnecting.failures == 1
    await series.start()
    assert delays(series) == about([10])
    await series.stop()


# start_timeout.


@in_virtual_time
async def test_start_timeout_counts_from_the_end_of_the_delay():
    series = Series(checkpoint, slow_to_open, policy=policy(initial_delay=10), start_timeout=5)
    await series.start()
    series.connection_lost()
    await anyio.sleep(9)
    assert series.state is OPENING
    await series.start()
    assert series.attempts == 2
    assert anyio.current_time() - series.times[0] == pytest.approx(13, abs=1e-3)
    await series.stop()


@in_virtual_time
async def test_an_attempt_that_exceeds_start_timeout_is_a_failure_that_is_tried_again():
    series = Series(*[anyio.sleep_forever] * 3, policy=policy(), start_timeout=5)
    async with anyio.create_task_group() as tg:
        call = Call(tg, series.start)
        await anyio.sleep(5.5)
        assert type(series.reconnecting.exception) is StartTimeoutError
        assert series.reconnecting.failures == 1
        assert series.state is OPENING
    assert call.result is series.connection
    assert delays(series) == about([5 + 1, 5 + 2, 5 + 4])
    await series.stop()


@in_virtual_time
async def test_attempts_that_exceed_start_timeout_end_after_max_retries():
    series = Series(*[anyio.sleep_forever] * 3, policy=policy(max_retries=2), start_timeout=5)
    with pytest.raises(StartTimeoutError):
        await series.start()
    assert type(series.exception) is StartTimeoutError
    assert delays(series) == about([5 + 1, 5 + 2])
    assert series.state is FAILED


# Blocks and run() over a delay.


@in_virtual_time
async def test_a_block_and_a_run_last_through_delays():
    series = Series(policy=policy())
    async with series as first:
        series.connection_lost()
        await anyio.sleep(0.5)
        assert series.state is OPENING
        await anyio.sleep(1)
        assert series.connection is not first
    assert series.state is CLOSED
    async with anyio.create_task_group() as tg:
        await tg.start(series.run)
        series.connection_lost()
        await anyio.sleep(1.5)
        assert series.state is OPEN
        await series.stop()
    assert series.attempts == 4


@in_virtual_time
async def test_the_last_block_that_exits_during_the_delay_ends_the_series():
    series = Series(policy=policy())
    async with series:
        series.connection_lost()
        await anyio.sleep(0.5)
    assert series.state is CLOSED
    await anyio.sleep(DAY)
    assert series.attempts == 1


# K8: the loop is closed.


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("phase", ["closing", "delay", "attempt"])
@pytest.mark.parametrize("clock", clocks.CLOCKS)
def test_K8_a_series_is_over_when_its_loop_is_closed(phase, clock, caplog):
    series = None

    async def main(abandon):
        nonlocal series
        series, _ = await reopening(phase)
        assert (series.reconnecting is not None) or phase == "closing"
        caplog.clear()
        await abandon()

    clocks.run_and_abandon(main, clock=clock)
    assert series.state in {CLOSED, FAILED}
    assert series.reconnecting is None
    attempts = series.attempts
    assert attempts == (2 if phase == "attempt" else 1)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]

    async def use_again():
        await series.start()
        assert series.attempts == attempts + 1
        await series.stop()

    series.plan.steps.clear()
    clocks.run(use_again, clock=clock)


# K4: waiting costs no CPU time.


def count_wake_ups():
    """Returns a list that grows with each step of the event loop."""
    counted = []
    if anyio.get_cancelled_exc_class().__module__.startswith("trio"):
        import trio

        class Counter(trio.abc.Instrument):
            def before_task_step(self, task):
                counted.append(task)

        trio.lowlevel.add_instrument(Counter())
    else:
        import asyncio

        selector = asyncio.get_running_loop().jumping
        select = selector.select

        def counting_select(timeout=None):
            counted.append(timeout)
            return select(timeout)

        selector.select = counting_select
    return counted


@pytest.mark.parametrize("waiting", [0, 3])
@in_virtual_time
async def test_K4_nothing_wakes_up_while_the_manager_waits_to_reopen(waiting):
    series = Series(policy=NOT_YET)
    await series.start()
    series.connection_lost()
    async with anyio.create_task_group() as tg:
        calls = [Call(tg, series.start) for _ in range(waiting)]
        await anyio.sleep(60)
        counted = count_wake_ups()
        await anyio.sleep(HOUR - 120)
        assert len(counted) <= 3  # this task wakes up once
        await anyio.sleep(120)
        assert series.state is OPEN
    assert all(call.result is series.connection for call in calls)
    assert len(counted) > 3
    await series.stop()
