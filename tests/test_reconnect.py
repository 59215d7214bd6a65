"""Tests for the reconnect policy: what opens again, and what ends a series of runs for good.

The delays are either zero or an hour that does not pass. `test_reconnect_delays.py` tests their length,
and `test_reconnect_series.py` tests what can be seen of a series.
"""

import asyncio
from contextlib import asynccontextmanager, suppress

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
    ConnectionState,
    ConnectionStoppedError,
    NotConnectedError,
    StartTimeoutError,
    WrongEventLoopError,
)

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


# K1: a lost connection is opened again.


async def test_K1_a_connection_lost_fifty_times_opens_again_each_time_with_one_owner_at_a_time():
    series = Series()
    connections = [await series.start()]
    for number in range(1, 51):
        series.connection_lost()
        connections.append(await series.start())
        assert series.connection is connections[-1]
        assert series.exited == series.entered[:number]
        assert series.reconnecting is None
    assert len(set(map(id, connections))) == 51
    assert series.most_alive == 1
    await series.stop()
    await assert_over(series, CLOSED, 51)


async def test_K1_a_lost_connection_opens_again_although_nobody_waits():
    series = Series()
    first = await series.start()
    second_opens = Stage()
    series.plan.steps.append(second_opens)
    series.connection_lost()
    await second_opens.reached.wait()
    assert len(series.exited) == 1  # the first owner ended before the second began
    second_opens.let_go.set()
    await settle()
    assert series.state is OPEN
    assert series.connection is not first
    await series.stop()


async def test_K1_a_crash_inside_an_open_connection_is_followed_by_another_run():
    class Crashing(Series):
        @asynccontextmanager
        async def open_connection(self):
            async with anyio.create_task_group() as self.inner, super().open_connection() as connection:
                yield connection
                self.inner.cancel_scope.cancel()

    series = Crashing()
    first = await series.start()
    series.inner.start_soon(raises(OSError("crash")))
    await settle()
    assert series.connection is not first
    await series.stop()
    await assert_over(series, CLOSED, 2)


async def test_the_policy_and_start_timeout_of_a_series_are_those_of_its_first_start():
    series = Series()
    await series.start()
    series.reconnect, series.start_timeout = None, -1
    series.connection_lost()
    await series.start()
    await series.stop()
    series.start_timeout = None
    await series.start()
    series.reconnect = AT_ONCE
    series.connection_lost()
    with pytest.raises(ConnectionLostError):
        await series.wait_closed()
    await assert_over(series, FAILED, 3)


# K2: stop() ends the series for good.


@pytest.mark.parametrize("timeout", [30, 0, None])
@pytest.mark.parametrize("phase", REOPENING)
async def test_K2_stop_while_reopening_ends_the_series(phase, timeout):
    series, stage = await reopening(phase)
    async with anyio.create_task_group() as tg:
        waiting = [Call(tg, function) for function in (series.start, series.start)]
        closed = Call(tg, series.wait_closed)
        await settle()
        stop = Call(tg, lambda: series.stop(timeout))
        await settle()
        stage.let_go.set()
        await settle()
        assert stop.ended == "returned"
        assert [type(call.error) for call in waiting] == [ConnectionStoppedError] * 2
        assert type(closed.error) is (ConnectionLostError if phase == "closing" else type(None))
        assert closed.ended is not None
    if phase == "closing":
        assert type(series.exception) is ConnectionLostError
        assert "cut" in str(series.exception)
        await assert_over(series, FAILED, 1)
    else:
        assert series.exception is None
        with pytest.raises(NotConnectedError) as raised:
            series.connection  # noqa: B018
        assert raised.value.__cause__ is None
        await assert_over(series, CLOSED, 2 if phase == "attempt" else 1)


async def test_K2_an_error_of_the_cancelled_attempt_is_kept_as_an_error_of_closing(caplog):
    stage = Stage()

    async def fail_to_release():
        try:
            await stage()
        finally:
            raise OSError("release")

    series = Series(checkpoint, fail_to_release)
    await series.start()
    series.connection_lost()
    await stage.reached.wait()
    caplog.clear()
    await series.stop()
    assert series.exception.args == ("release",)
    assert levels(caplog) == ["WARNING"]
    await assert_over(series, FAILED, 2)


@pytest.mark.parametrize("steps", range(6))
async def test_K2_stop_about_when_the_next_connection_opens_ends_the_series(steps):
    async def stop():
        for _ in range(steps):
            await checkpoint()
        await series.stop()

    async def stop_soon():
        await checkpoint()
        tg.start_soon(stop)

    series = Series(checkpoint, stop_soon)
    async with anyio.create_task_group() as tg:
        await series.start()
        series.connection_lost()
        await settle()
    await assert_over(series, CLOSED, 2)


@pytest.mark.parametrize("steps", range(16))
async def test_K2_stop_at_any_time_after_a_loss_ends_the_series(steps):
    series = Series()
    await series.start()
    series.connection_lost()
    for _ in range(steps):
        await checkpoint()
    is_closing = series.state is CLOSING
    assert is_closing or steps
    await series.stop()
    await assert_over(series, FAILED if is_closing and series.attempts == 1 else CLOSED, series.attempts)


@pytest.mark.parametrize("phase", REOPENING)
async def test_K2_a_cancelled_stop_ends_the_series_too(phase):
    series, _ = await reopening(phase)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await series.stop()
    assert scope.cancelled_caught
    await assert_over(series, FAILED if phase == "closing" else CLOSED, 2 if phase == "attempt" else 1)


@pytest.mark.parametrize("phase", REOPENING)
async def test_K2_start_after_stop_begins_another_series(phase):
    series, stage = await reopening(phase)
    async with anyio.create_task_group() as tg:
        stop = Call(tg, series.stop)
        await settle()
        start = Call(tg, series.start)
        await settle()
        stage.let_go.set()
        await settle()
        assert stop.ended == start.ended == "returned"
        assert series.connection is start.result
    series.connection_lost()
    await settle()
    assert series.state is (OPENING if phase == "delay" else OPEN)
    await series.stop()


# K4: a connection that cannot be opened is tried again.


async def test_K4_failed_attempts_are_repeated_until_one_succeeds():
    series = Series(*[refuse] * 9)
    async with anyio.create_task_group() as tg:
        calls = [Call(tg, series.start) for _ in range(3)]
    assert {call.result for call in calls} == {series.connection}
    assert series.attempts == 10
    assert series.most_alive == 1
    await series.stop()
    await assert_over(series, CLOSED, 10)


async def test_K4_a_loss_that_is_reported_while_opening_is_a_failure_that_is_tried_again():
    opening = Stage()
    series = Series(opening)
    async with anyio.create_task_group() as tg:
        call = Call(tg, series.start)
        await opening.reached.wait()
        series.connection_lost(OSError("cut"))
    assert call.result is series.connection
    await series.stop()
    await assert_over(series, CLOSED, 2)


async def test_K4_failures_after_a_loss_are_tried_again():
    series = Series(checkpoint, *[refuse] * 3)
    first = await series.start()
    series.connection_lost()
    assert await series.start() is not first
    assert series.attempts == 5
    await series.stop()


# K5: an error that cannot get better by itself ends the series.


@pytest.mark.parametrize(
    "error", [TypeError, AttributeError, NameError, ImportError, NotImplementedError, UnboundLocalError]
)
@pytest.mark.parametrize("when", ["first", "reopening"])
async def test_K5_an_error_of_programming_is_not_tried_again(error, when):
    error = error("a bug")
    if when == "first":
        series = Series(raises(error))
    else:
        series = Series(checkpoint, raises(error))
        await series.start()
        series.connection_lost()
    with pytest.raises(type(error)) as raised:
        await series.start()
    assert raised.value is error is series.exception
    with pytest.raises(type(error)):
        await series.wait_closed()
    await assert_over(series, FAILED, 1 if when == "first" else 2)


async def test_K5_the_base_class_considers_only_errors_of_programming_permanent():
    assert Probe().is_permanent(TypeError())
    assert Probe().is_permanent(ModuleNotFoundError())
    assert not any(map(Probe().is_permanent, (OSError(), ValueError(), LookupError(), RuntimeError())))


class Strict(Series):
    """Considers a refused permission permanent."""

    def is_permanent(self, exc):
        return isinstance(exc, PermissionError) or super().is_permanent(exc)


class Outer(Series):
    """Opens another manager inside its own run."""

    def __init__(self, inner, **options):
        super().__init__(**options)
        self.inner = inner

    @asynccontextmanager
    async def open_connection(self):
        async with super().open_connection(), self.open_inner(self.inner) as connection:
            yield connection


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("error", [PermissionError, TypeError])
async def test_K5_a_manager_also_asks_is_permanent_of_the_managers_inside_it(depth, error):
    error = error("no")
    series = Strict(refuse, raises(error))
    for _ in range(depth):
        series.reconnect = None
        series = Outer(series)
    with pytest.raises(type(error)) as raised:
        await series.start()
    assert raised.value is error
    await assert_over(series, FAILED, 2)


@pytest.mark.parametrize("depth", [0, 1, 2])
async def test_K5_a_loss_is_judged_by_its_cause(depth):
    inner = series = Strict()
    for _ in range(depth):
        series.reconnect = None
        series = Outer(series)
    await series.start()
    inner.connection_lost(OSError("cut"))
    await series.start()
    inner.connection_lost(PermissionError("no"))
    with pytest.raises(ConnectionLostError, match="no") as raised:
        await series.wait_closed()
    assert type(raised.value.__cause__) is PermissionError
    await assert_over(series, FAILED, 2)


async def test_K5_give_up_on_replaces_is_permanent_and_receives_what_went_wrong():
    asked = []

    def give_up(exc):
        asked.append(exc)
        return isinstance(exc, LookupError)

    bug, loss, last = TypeError("a bug"), OSError("cut"), LookupError("last")
    series = Strict(raises(bug), raises(PermissionError("no")), policy=retries(None, give_up_on=give_up))
    await series.start()
    assert asked[0] is bug
    assert type(asked[1]) is PermissionError
    series.connection_lost(loss)
    await series.start()
    series.connection_lost()  # without a cause, the loss itself is judged
    await series.start()
    series.connection_lost(last)
    with pytest.raises(ConnectionLostError, match="last"):
        await series.wait_closed()
    assert asked[2] is loss
    assert type(asked[3]) is ConnectionLostError
    assert asked[4] is last
    await assert_over(series, FAILED, 5)


@pytest.mark.parametrize("place", ["give_up_on", "is_permanent"])
async def test_K5_a_predicate_that_raises_is_logged_as_an_error_and_does_not_end_the_series(
    place, caplog
):
    def fail(_):
        raise ZeroDivisionError("odd predicate")

    series = Series(refuse)
    if place == "give_up_on":
        series.reconnect = retries(None, give_up_on=fail)
    else:
        series.is_permanent = fail
    await series.start()
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info[0] is ZeroDivisionError
    assert "probe" in record.getMessage()
    await series.stop()
    await assert_over(series, CLOSED, 2)


# K6: the policy gives up after max_retries.


@pytest.mark.parametrize("number", [0, 1, 5])
async def test_K6_a_series_of_failures_ends_after_max_retries(number):
    series = Series(*[raises(OSError(f"failure {n}")) for n in range(10)], policy=retries(number))
    with pytest.raises(OSError, match=f"failure {number}") as raised:
        await series.start()
    assert series.exception is raised.value
    with pytest.raises(NotConnectedError) as not_connected:
        series.connection  # noqa: B018
    assert not_connected.value.__cause__ is raised.value
    await assert_over(series, FAILED, number + 1)


class CrashLoop(Series):
    """Each of its connections is lost as soon as it is open."""

    @asynccontextmanager
    async def open_connection(self):
        async with super().open_connection() as connection, anyio.create_task_group() as tg:
            tg.start_soon(raises(OSError(f"crash {self.attempts - 1}")))
            yield connection


@pytest.mark.parametrize("number", [0, 1, 5])
async def test_K6_a_crash_loop_ends_after_max_retries(number, caplog):
    series = CrashLoop(policy=retries(number))
    with suppress(ConnectionLostError):
        await series.start()
    with pytest.raises(ConnectionLostError, match=f"crash {number}"):
        await series.wait_closed()
    assert levels(caplog) == ["WARNING"] * (number + 2)  # each loss, once, and giving up
    assert series.most_alive == 1
    await assert_over(series, FAILED, number + 1)


@pytest.mark.parametrize("number", [0, 1, 5])
async def test_K6_wait_closed_waits_until_the_policy_gives_up(number):
    series = Series(policy=retries(number))
    async with anyio.create_task_group() as tg:
        for loss in range(number + 1):
            await series.start()
            if not loss:
                closed = Call(tg, series.wait_closed)
                await settle()
            assert closed.ended is None
            series.connection_lost(OSError(f"loss {loss}"))
    assert type(closed.error) is ConnectionLostError
    assert f"loss {number}" in str(closed.error)
    await assert_over(series, FAILED, number + 1)


async def test_K6_start_after_the_policy_gave_up_begins_another_series_with_all_its_retries():
    series = Series(*[refuse] * 6, policy=retries(2))
    for attempts in (3, 6):
        with pytest.raises(OSError, match="refused"):
            await series.start()
        await assert_over(series, FAILED, attempts)
    await series.start()
    assert series.exception is None
    await series.stop()
    await assert_over(series, CLOSED, 7)


# K7: callers of start() that are cancelled.

KINDS = ["scope", "native", "timeout"]


def waiting_start(tg, series, kind, timeout=0.02):
    return Call(tg, lambda: series.start(timeout if kind == "timeout" else None))


async def end(call, kind, errors=StartTimeoutError):
    """Ends the wait of a call, and waits for its end."""
    if kind != "timeout":
        call.cancel(kind)
    await call.over.wait()
    assert call.ended == ("raised" if kind == "timeout" else "cancelled")
    assert kind != "timeout" or isinstance(call.error, errors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", REOPENING)
async def test_K7_a_start_that_goes_away_while_reopening_leaves_the_policy_at_work(phase, kind):
    series, stage = await reopening(phase)
    before = series.reconnecting
    async with anyio.create_task_group() as tg:
        call = waiting_start(tg, series, kind)
        await settle()
        await end(call, kind)
        if kind == "timeout":
            cause = call.error.__cause__
            assert type(cause) is ConnectionLostError or (phase == "closing" and cause is None)
    assert series.state is (CLOSING if phase == "closing" else OPENING)
    await settle()
    if phase == "delay":
        assert series.reconnecting == before
    else:
        stage.let_go.set()
        await settle()
        assert series.state is OPEN
        assert series.attempts == 2
    await series.stop()


FIRST_PHASES = ["delay", "attempt", "closing"]


async def first_opening(tg, phase, kind):
    """Returns a series in a phase before its first connection, the call that waits, and a stage."""
    stage = Stage()

    async def hang_and_clean_up():
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await stage()

    openings = {"delay": [], "attempt": [stage], "closing": [hang_and_clean_up]}[phase]
    series = Series(refuse, *openings, policy=NOT_YET if phase == "delay" else AT_ONCE)
    # A busy machine and `settle()` may take 0.1 s or longer, and the timeout must not expire by then.
    call = waiting_start(tg, series, kind, timeout=0.6)
    await settle()
    if phase == "closing":
        series.connection_lost(OSError("cut"))
        await stage.reached.wait()
    return series, call, stage


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", FIRST_PHASES)
async def test_K7_if_the_only_start_goes_away_before_the_first_connection_the_attempts_end(phase, kind):
    async with anyio.create_task_group() as tg:
        series, call, stage = await first_opening(tg, phase, kind)
        attempts = series.attempts
        if phase == "closing":  # the call ends when the owner task ends
            if kind == "timeout":
                await anyio.sleep(0.7)
            else:
                call.cancel(kind)
            await settle()
            assert call.ended is None
            stage.let_go.set()
            # The attempt was lost before the timeout expired, so both errors are true.
            await end(call, kind, (StartTimeoutError, ConnectionLostError))
        else:
            await end(call, kind)
    if phase != "closing":
        assert kind != "timeout" or "refused" in str(call.error)
        assert type(series.exception) is (StartTimeoutError if kind == "timeout" else type(None))
    await assert_over(series, series.state, attempts)
    assert series.state in {CLOSED, FAILED}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", FIRST_PHASES)
async def test_K7_if_one_of_two_starts_goes_away_the_other_one_gets_the_connection(phase, kind):
    async with anyio.create_task_group() as tg:
        series, call, stage = await first_opening(tg, phase, kind)
        other = Call(tg, series.start)
        await settle()
        await end(call, kind)
        assert other.ended is None
        assert series.state is (CLOSING if phase == "closing" else OPENING)
        if phase == "delay":
            await series.stop()
            await settle()
            assert type(other.error) is ConnectionStoppedError
        else:
            stage.let_go.set()
            await settle()
            assert other.result is series.connection
            await series.stop()


async def test_K7_a_cancelled_wait_closed_changes_nothing():
    series, stage = await reopening("attempt")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await series.wait_closed()
    assert series.state is OPENING
    stage.let_go.set()
    await series.start()
    await series.stop()


@pytest.mark.usefixtures("asyncio_only")
@pytest.mark.parametrize("phase", [*REOPENING, "open"])
async def test_K8_cancelling_the_owner_task_from_outside_ends_the_series(phase):
    """A `start()` that was called while the lost connection closes begins another series."""
    if phase == "open":
        series = Series()
        await series.start()
    else:
        series, _ = await reopening(phase)
    attempts = series.attempts
    async with anyio.create_task_group() as tg:
        waiting = [] if phase == "open" else [Call(tg, series.start)]
        await settle()
        [owner] = [task for task in asyncio.all_tasks() if task.get_name() == "owner task of probe"]
        owner.cancel()
        await settle()
    if phase == "closing":
        assert waiting[0].result is series.connection
        await series.stop()
        return
    assert [type(call.error) for call in waiting] == [ConnectionLostError] * len(waiting)
    assert type(series.exception) is ConnectionLostError
    await assert_over(series, FAILED, attempts)


# K8: the event loop ends, or the process forks.


def run_natively(main, anyio_backend, anyio_backend_name):
    if anyio_backend_name == "trio":
        import trio

        trio.run(main)
    else:
        with asyncio.Runner(loop_factory=anyio_backend[1].get("loop_factory")) as runner:
            runner.run(main())


@pytest.mark.parametrize("how", ["returns", LookupError, SystemExit])
@pytest.mark.parametrize("phase", [*REOPENING, "open"])
def test_K8_the_end_of_the_event_loop_ends_the_series_silently(
    phase, how, anyio_backend, anyio_backend_name, caplog
):
    series = stage = None

    async def main():
        nonlocal series, stage
        with anyio.fail_after(5):
            series, stage = await reopening("attempt" if phase == "open" else phase)
            if phase == "open":
                stage.let_go.set()
                await series.start()
        caplog.clear()
        if how != "returns":
            raise how

    try:
        run_natively(main, anyio_backend, anyio_backend_name)
    except (LookupError, SystemExit) as error:
        assert type(error) is how
    assert series.state in {CLOSED, FAILED}
    assert series.attempts == (2 if phase in {"attempt", "open"} else 1)
    assert not series.is_acquired
    assert series.reconnecting is None
    # The loss was logged before the loop ended, or is logged when the lost connection is closed.
    assert levels(caplog) in ([], ["WARNING"] if phase == "closing" else [])
    use_in_another_loop(series, anyio_backend)


@pytest.mark.parametrize("phase", ["delay", "attempt"])
def test_K8_the_end_of_the_event_loop_ends_the_attempts_for_a_first_connection(
    phase, anyio_backend, anyio_backend_name, caplog
):
    if anyio_backend_name == "trio":
        pytest.skip("a trio run ends only after the calls in it")
    series = call = None

    async def main():
        nonlocal series, call
        stage = Stage()
        series = Series(refuse, stage, policy=NOT_YET if phase == "delay" else AT_ONCE)
        call = asyncio.ensure_future(series.start())
        await settle()
        assert series.attempts == (2 if phase == "attempt" else 1)
        caplog.clear()

    run_natively(main, anyio_backend, anyio_backend_name)
    assert call.cancelled() or isinstance(call.exception(), ConnectionLostError | ConnectionStoppedError)
    assert series.state in {CLOSED, FAILED}
    assert series.attempts == (2 if phase == "attempt" else 1)
    assert not series.is_acquired
    assert levels(caplog) == []
    use_in_another_loop(series, anyio_backend)


def use_in_another_loop(series, anyio_backend):
    async def use():
        with anyio.fail_after(5):
            first = await series.start()
            series.connection_lost()
            if series.reconnect is AT_ONCE:
                assert await series.start() is not first
            await series.stop()

    series.plan.steps.clear()
    name, options = anyio_backend
    anyio.run(use, backend=name, backend_options=options)


def test_K8_the_end_of_a_trio_run_is_not_followed_by_another_attempt():
    series = Series()
    states = []
    series.add_listener(lambda _manager, _old, new: states.append(new))
    anyio.run(series.start, backend="trio")
    assert states == [OPENING, OPEN, CLOSING, FAILED]
    assert series.attempts == 1


@pytest.mark.parametrize("phase", REOPENING)
async def test_K8_in_a_forked_child_the_series_of_the_parent_is_over(phase, monkeypatch):
    import os

    series, stage = await reopening(phase)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        assert series.state is CLOSED
        assert series.exception is None
        assert series.reconnecting is None
        with pytest.raises(NotConnectedError):
            series.connection  # noqa: B018
        await series.stop()
    assert series.state is (CLOSING if phase == "closing" else OPENING)
    if phase != "delay":
        stage.let_go.set()
        await series.start()
    await series.stop()


@pytest.mark.parametrize("phase", REOPENING)
async def test_C8_every_method_raises_in_another_event_loop_while_reopening(phase):
    series, _ = await reopening(phase)

    async def misuse():
        for call in (series.start, series.stop, series.wait_closed, series.run, series.__aenter__):
            with pytest.raises(WrongEventLoopError, match="probe"):
                await call()

    for backend in ("asyncio", "trio"):
        await anyio.to_thread.run_sync(lambda backend=backend: anyio.run(misuse, backend=backend))
    assert series.state is (CLOSING if phase == "closing" else OPENING)
    await series.stop(0)


async def test_O14_system_exit_while_reopening_ends_the_series():
    stage = Stage()

    async def leave():
        await stage()
        raise SystemExit(3)

    series = Series(checkpoint, leave)
    await series.start()
    series.connection_lost()
    raised = []

    async def start():
        try:
            await series.start()
        except SystemExit as error:
            raised.append(error.code)

    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        tg.start_soon(start)
        await stage.reached.wait()
        await settle()
        stage.let_go.set()
    assert raised == [3, 3]
    assert type(series.exception) is SystemExit
    await assert_over(series, FAILED, 2)


async def test_O14_system_exit_during_the_first_attempt_ends_the_series():
    series = Series(raises(SystemExit(3)))
    with pytest.raises(SystemExit):
        await series.start()
    await assert_over(series, FAILED, 1)


async def test_a_loss_that_is_permanent_reports_leaves_no_timer_behind(grace, caplog):
    class Manager(Probe):
        reconnect = retries(1)

        def is_permanent(self, exc):
            self.connection_lost(exc)
            return super().is_permanent(exc)

    manager = Manager(refuse)
    with pytest.raises(OSError, match="refused"):
        await manager.start()
    await anyio.sleep(2 * grace)
    assert "ERROR" not in levels(caplog)
