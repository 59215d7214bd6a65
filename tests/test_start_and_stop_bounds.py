"""Tests for how long `start()`, `stop()` and `run()` wait, and what ends the wait.

Tests of many cases print each one, so the last line that a failed test printed names its case.
"""

import asyncio
import contextvars
from contextlib import asynccontextmanager
from functools import partial
from itertools import product

import anyio
import pytest
from anyio.lowlevel import checkpoint
from conftest import BACKENDS
from probe import Probe, Stage, raises
from proof import clocks
from reopening import settle

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    ConnectionStoppedError,
    NotConnectedError,
    StartTimeoutError,
    StopTimeoutError,
)

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState

on_asyncio = pytest.mark.parametrize(
    "anyio_backend",
    [backend for backend in BACKENDS if backend.values[0][0] == "asyncio"],
    indirect=True,
)
virtual = pytest.mark.parametrize("clock", [clock for clock in clocks.CLOCKS if clock != "uvloop"])


def run_for_a_day(function, *, clock):
    """Runs `function` in virtual time, which ends if it waits forever."""

    async def bounded():
        with anyio.fail_after(24 * 60 * 60):
            await function()

    clocks.run(bounded, clock=clock)


@pytest.fixture
async def stuck():
    """Creates stages that cannot be cancelled. They end with the test, even if it fails."""
    stages = []

    def create():
        stages.append(Stage(shield=True))
        return stages[-1]

    yield create
    for stage in stages:
        stage.let_go.set()
    await settle()


# F6: cancelling run() is like cancelling stop().


async def let_go_and_wait(probe, *stages):
    for stage in stages:
        stage.let_go.set()
    await probe.stop()
    assert not probe.is_acquired


@on_asyncio
async def test_F6_a_second_native_cancellation_of_run_ends_its_wait_at_once(stuck):
    for apart in range(1, 6):
        print("apart:", apart)
        await cancel_twice(apart, stuck())


async def cancel_twice(apart, closing):
    probe = Probe(closing=closing)
    running = asyncio.create_task(probe.run())
    await settle()
    running.cancel()
    for _ in range(apart):
        await checkpoint()
    running.cancel()
    await settle()
    assert running.done()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert probe.state is CLOSING  # the owner task goes on to its end
    await let_go_and_wait(probe, closing)
    assert probe.state is CLOSED


@on_asyncio
async def test_F6_the_first_native_cancellation_of_run_forces_the_close_and_waits(stuck):
    cancelled, cleaned_up = Stage(), stuck()

    async def close():
        try:
            await cancelled()
        finally:
            await cleaned_up()

    probe = Probe(closing=close)
    running = asyncio.create_task(probe.run())
    await settle()
    running.cancel()
    await cleaned_up.reached.wait()  # nothing set cancelled.let_go
    await settle()
    assert not running.done()
    running.cancel()
    await settle()
    assert running.done()
    with pytest.raises(asyncio.CancelledError):
        await running
    await let_go_and_wait(probe, cleaned_up)


@pytest.mark.parametrize("clock", [clock for clock in ("asyncio", "eager") if clock in clocks.CLOCKS])
def test_F6_two_native_cancellations_of_run_propagate_although_the_owner_is_stuck(clock, caplog):
    async def main():
        closing = Stage(shield=True)
        probe = Probe(closing=closing)
        running = asyncio.create_task(probe.run())
        await settle()
        began = anyio.current_time()
        running.cancel()
        await closing.reached.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert anyio.current_time() - began < 1
        with pytest.raises(StopTimeoutError):
            await probe.stop()
        assert 10 <= anyio.current_time() - began < 41
        closing.let_go.set()
        await probe.stop()
        assert probe.state is CLOSED

    run_for_a_day(main, clock=clock)
    [record] = caplog.records
    assert "could not be stopped" in record.getMessage()


@on_asyncio
@pytest.mark.parametrize("phase", ["stopping", "lost", "forced"])
async def test_F6_run_can_be_cancelled_twice_while_the_connection_is_closing(phase, stuck):
    closing = stuck()
    probe = Probe(closing=closing)
    running = asyncio.create_task(probe.run())
    await settle()
    stopping = []
    if phase == "lost":
        probe.connection_lost(OSError("gone"))
    else:
        stopping.append(asyncio.create_task(probe.stop(0 if phase == "forced" else None)))
    await closing.reached.wait()
    running.cancel()
    await settle()
    assert not running.done()
    running.cancel()
    await settle()
    assert running.done()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not any(task.done() for task in stopping)
    await let_go_and_wait(probe, closing)
    for task in stopping:
        await task
    assert probe.state is (FAILED if phase == "lost" else CLOSED)


@on_asyncio
@pytest.mark.parametrize("first", ["scope", "native"])
async def test_F6_run_can_be_cancelled_by_a_scope_and_natively(first, stuck):
    closing = stuck()
    probe = Probe(closing=closing)
    scope = anyio.CancelScope()

    async def run_in_scope():
        with scope:
            await probe.run()

    running = asyncio.create_task(run_in_scope())
    await settle()
    (scope if first == "scope" else running).cancel()
    await settle()
    assert not running.done()
    (running if first == "scope" else scope).cancel()
    await settle()
    # The wait is shielded from scopes, and a native cancellation ends it.
    assert running.done() == (first == "scope")
    running.cancel()
    await asyncio.wait([running], timeout=1)
    assert running.done()
    assert running.cancelled() or scope.cancelled_caught
    await let_go_and_wait(probe, closing)


@on_asyncio
async def test_F6_an_error_while_closing_does_not_replace_the_cancellation_of_run(stuck):
    closing = stuck()

    async def fail_to_close():
        await closing()
        raise OSError("closing")

    probe = Probe(closing=fail_to_close)
    for times in (1, 2):
        closing = stuck()
        running = asyncio.create_task(probe.run())
        await settle()
        for _ in range(times):
            running.cancel()
            await settle()
        assert running.done() == (times == 2)
        closing.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        await probe.stop()
        assert isinstance(probe.exception, OSError)


# F20: a call from inside the connection waits for at most 30 seconds.


class WaitsForItsTask(ConnectionManager[anyio.Event]):
    """Its exit waits for a task, which calls `stop()` when the connection is set.

    Attributes:
        where: Where the task runs: "child", "grandchild", or "callback" for a task outside of the
            connection with its context.
        stop: The function that the task calls.
        outcome: What became of the call.
    """

    def __init__(self, where, stop=None):
        super().__init__(name="waiting")
        self.where = where
        self.stop_it = stop
        self.outcome = None
        self.context = None
        self.call = None

    @asynccontextmanager
    async def open_connection(self):
        go, done = anyio.Event(), anyio.Event()

        async def call():
            await go.wait()
            try:
                await self.stop_it()
                self.outcome = "returned"
            except BaseException as error:
                self.outcome = type(error).__name__
                raise
            finally:
                done.set()

        async def parent():
            async with anyio.create_task_group() as children:
                children.start_soon(call)

        self.context, self.call = contextvars.copy_context(), call
        async with anyio.create_task_group() as tg:
            if self.where != "callback":
                tg.start_soon(call if self.where == "child" else parent)
            yield go
            await done.wait()


class Outer(ConnectionManager[object]):
    def __init__(self, inner):
        super().__init__(name="outer")
        self.inner = inner

    @asynccontextmanager
    async def open_connection(self):
        async with self.open_inner(self.inner) as connection:
            yield connection


async def seconds_to_close(manager, waiting):
    async with anyio.create_task_group() as tg:
        go = await manager.start()
        if waiting.where == "callback":
            waiting.context.run(tg.start_soon, waiting.call)
        began = anyio.current_time()
        go.set()
        await manager.wait_closed()
        assert manager.state is CLOSED
        return anyio.current_time() - began


EXPECTED = {None: 30, 300: 30, 30.5: 30, float("inf"): 30, 30: 30, 5: 5, 0: 0}


@virtual
@pytest.mark.parametrize("where", ["child", "grandchild", "callback"])
def test_F20_stop_inside_a_connection_whose_exit_waits_for_the_caller_is_bounded(clock, where):
    async def main(depth, timeout, expected):
        waiting = manager = WaitsForItsTask(where)
        for _ in range(depth):
            manager = Outer(manager)
        waiting.stop_it = lambda: manager.stop(timeout)
        seconds = await seconds_to_close(manager, waiting)
        assert expected <= seconds < expected + 1
        assert waiting.outcome in (
            {"returned"} if where == "callback" else {"CancelledError", "Cancelled"}
        )

    for depth, (timeout, expected) in product([0, 1, 2], EXPECTED.items()):
        print("depth:", depth, "timeout:", timeout)
        run_for_a_day(partial(main, depth, timeout, expected), clock=clock)


@virtual
@pytest.mark.parametrize("where", ["child", "grandchild", "callback"])
def test_F20_the_bound_of_a_call_from_inside_applies_if_another_call_waits_longer(clock, where):
    async def main():
        waiting = WaitsForItsTask(where)
        waiting.stop_it = lambda: waiting.stop(None)
        async with anyio.create_task_group() as tg:

            async def stop_from_outside():
                await waiting.stop(None)

            began = anyio.current_time()
            tg.start_soon(seconds_to_close, waiting, waiting)
            await settle()
            tg.start_soon(stop_from_outside)
        assert 30 <= anyio.current_time() - began < 31
        assert waiting.state is CLOSED

    run_for_a_day(main, clock=clock)


@virtual
@pytest.mark.parametrize("method", ["start", "wait_closed"])
def test_O21_a_task_inside_that_waits_for_the_end_is_waited_for_at_most_30_seconds(clock, method):
    async def main(where):
        waiting = WaitsForItsTask(where)

        async def wait():
            if method == "start":  # while the connection is open, it would return at once
                await anyio.sleep(1)
            await getattr(waiting, method)()

        waiting.stop_it = wait
        async with anyio.create_task_group() as tg:
            go = await waiting.start()
            if where == "callback":
                waiting.context.run(tg.start_soon, waiting.call)
            go.set()
            await settle()
            began = anyio.current_time()
            await waiting.stop(None)
            assert 30 <= anyio.current_time() - began < 32
            tg.cancel_scope.cancel()
        await waiting.stop()

    for where in ("child", "grandchild", "callback"):
        print("where:", where)
        run_for_a_day(partial(main, where), clock=clock)


@virtual
@pytest.mark.parametrize("timeout", [None, 300])
def test_F20_stop_from_outside_waits_as_long_as_it_was_asked_to(clock, timeout):
    async def main():
        async def close():
            await anyio.sleep(100)

        probe = Probe(closing=close)
        await probe.start()
        began = anyio.current_time()
        await probe.stop(timeout)
        assert 100 <= anyio.current_time() - began < 101
        assert probe.state is CLOSED

    run_for_a_day(main, clock=clock)


@virtual
def test_F20_a_block_that_exits_inside_the_connection_is_bounded(clock):
    async def main():
        waiting = WaitsForItsTask("callback")

        waiting.stop_it = lambda: waiting.__aexit__(None, None, None)
        go = await waiting.__aenter__()
        async with anyio.create_task_group() as tg:
            waiting.context.run(tg.start_soon, waiting.call)
            began = anyio.current_time()
            go.set()
        assert 30 <= anyio.current_time() - began < 31
        assert waiting.state is CLOSED

    run_for_a_day(main, clock=clock)


# The timeout of start().


async def test_the_timeout_of_start_may_be_passed_by_position():
    probe = Probe()
    assert await probe.start(9) is await probe.start(None) is await probe.start(timeout=9)
    await probe.stop()
    probe.opening = anyio.sleep_forever
    with pytest.raises(StartTimeoutError) as caught:
        await probe.start(0.01)
    assert caught.value.timeout == 0.01
    for value, kind in (
        (-1, ValueError),
        (float("nan"), ValueError),
        ("9", TypeError),
        (True, TypeError),
    ):
        with pytest.raises(kind, match="^timeout must be"):
            await probe.start(value)


@pytest.mark.parametrize("timeout", [0, 0.01])
async def test_a_timeout_that_ends_the_attempt_is_the_exception_of_the_run(timeout, caplog):
    probe = Probe(anyio.sleep_forever)
    with pytest.raises(StartTimeoutError) as raised:
        await probe.start(timeout=timeout)
    assert probe.state is FAILED
    assert isinstance(probe.exception, StartTimeoutError)
    assert probe.exception.timeout == timeout == raised.value.timeout
    assert not probe.is_acquired
    for _ in range(2):
        with pytest.raises(StartTimeoutError) as caught:
            await probe.wait_closed()
        assert str(caught.value) == str(probe.exception) == str(raised.value)
        assert caught.value is not probe.exception
    with pytest.raises(NotConnectedError, match=r"^probe: not connected \(state: failed\)") as caught:
        probe.connection  # noqa: B018
    assert caught.value.__cause__ is probe.exception
    await probe.stop()
    assert probe.state is FAILED
    probe.opening = checkpoint
    await probe.start()
    assert probe.exception is None
    await probe.stop()
    assert not caplog.records


@virtual
def test_the_start_timeout_does_not_close_a_connection_that_opened_in_time(clock):
    async def main():
        probe = Probe()
        probe.start_timeout = 2
        await probe.start()
        await anyio.sleep(60)
        assert probe.state is OPEN
        await probe.stop()

    run_for_a_day(main, clock=clock)


@pytest.mark.parametrize(("start_timeout", "timeout"), [(0.01, 60), (60, 0.01), (None, 0.01)])
async def test_the_earlier_timeout_is_the_exception_of_the_run(start_timeout, timeout):
    probe = Probe(anyio.sleep_forever)
    probe.start_timeout = start_timeout
    with pytest.raises(StartTimeoutError, match=r"0\.01 s$"):
        await probe.start(timeout=timeout)
    assert probe.state is FAILED
    assert probe.exception.timeout == 0.01


async def test_an_error_raised_after_the_timeout_of_start_is_the_cause_of_the_exception():
    async def fail_when_cancelled():
        try:
            await anyio.sleep_forever()
        finally:
            raise OSError("half open")

    probe = Probe(fail_when_cancelled)
    with pytest.raises(StartTimeoutError) as caught:
        await probe.start(timeout=0.01)
    assert str(caught.value.__cause__) == "half open"
    assert isinstance(probe.exception, StartTimeoutError)
    assert probe.exception.__cause__ is caught.value.__cause__


FAILURES = {
    (3,): 3,
    (3, 4): 4,
    (4, 3): 4,
    (3, 3): 3,
    (3, 0): 3,
    (3, None): None,
    (None, 3): None,
    (3, 9): None,
    (3, 4, 9): None,
    (None, 0, 0): None,
}


@virtual
def test_the_last_start_that_waits_decides_whether_its_timeout_ends_the_attempt(clock):
    async def open_in_five_seconds():
        await anyio.sleep(5)

    async def main(timeouts, failure):
        probe = Probe(open_in_five_seconds)
        connections = []

        async def start(timeout):
            began = anyio.current_time()
            if timeout is None or timeout > 5:
                connections.append(await probe.start(timeout=timeout))
                return
            with pytest.raises(StartTimeoutError) as caught:
                await probe.start(timeout=timeout)
            assert caught.value.timeout == timeout
            assert anyio.current_time() - began < timeout + 1

        async with anyio.create_task_group() as tg:
            for timeout in timeouts:
                tg.start_soon(start, timeout)
                await checkpoint()
        if failure is None:
            assert set(connections) == {probe.connection}
            await probe.stop()
            assert probe.state is CLOSED
        else:
            assert probe.state is FAILED
            assert probe.exception.timeout == failure
        assert len(probe.entered) == 1

    for timeouts, failure in FAILURES.items():
        print("timeouts:", timeouts)
        run_for_a_day(partial(main, timeouts, failure), clock=clock)


@virtual
@pytest.mark.parametrize("other", ["run", "async with"])
def test_a_timeout_does_not_end_an_attempt_that_run_or_a_block_waits_for(clock, other):
    async def main():
        probe = Probe(lambda: anyio.sleep(5))
        async with anyio.create_task_group() as tg:
            tg.start_soon(probe.run if other == "run" else probe.__aenter__)
            await settle()
            with pytest.raises(StartTimeoutError):
                await probe.start(3)
            assert probe.state is OPENING
            await anyio.sleep(3)
            assert probe.state is OPEN
            await probe.stop()
        assert len(probe.entered) == 1

    run_for_a_day(main, clock=clock)


@virtual
def test_a_timeout_does_not_close_a_connection_that_another_start_received(clock):
    """Both happen at the same time: the connection opens, and the timeout expires."""

    async def main():
        probe = Probe(lambda: anyio.sleep(5))
        connections = []
        outcomes = []

        async def start():
            connections.append(await probe.start())

        async with anyio.create_task_group() as tg:
            tg.start_soon(start)
            await checkpoint()
            try:
                outcomes.append(await probe.start(5))
            except StartTimeoutError as error:
                outcomes.append(error.timeout)
        assert connections == [probe.connection]
        assert outcomes in ([5], connections)
        await probe.stop()

    run_for_a_day(main, clock=clock)


async def test_a_timeout_of_0_returns_a_connection_that_is_open():
    probe = Probe()
    connection = await probe.start()
    assert await probe.start(0) is connection
    await probe.stop()


async def test_a_timeout_while_waiting_behind_a_close_changes_nothing():
    closing = Stage()
    probe = Probe(closing=closing)
    await probe.start()
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.stop)
        await closing.reached.wait()
        for timeout in (0, 0.01):
            with pytest.raises(StartTimeoutError) as caught:
                await probe.start(timeout)
            assert caught.value.timeout == timeout
            assert probe.state is CLOSING
            assert probe.exception is None
        closing.let_go.set()
    assert probe.state is CLOSED
    assert probe.exception is None
    assert len(probe.entered) == 1


async def test_a_start_during_the_cleanup_of_an_attempt_that_timed_out_opens_again(stuck):
    cleaning_up = stuck()

    async def hang_and_clean_up():
        try:
            await anyio.sleep_forever()
        finally:
            probe.opening = checkpoint
            await cleaning_up()

    probe = Probe(hang_and_clean_up)
    connections = []

    async def start():
        connections.append(await probe.start(9))

    async def time_out():
        with pytest.raises(StartTimeoutError):
            await probe.start(0.01)
        assert not connections

    async with anyio.create_task_group() as tg:
        tg.start_soon(time_out)
        await cleaning_up.reached.wait()
        tg.start_soon(start)
        await settle()
        assert len(probe.entered) == 1
        cleaning_up.let_go.set()
    assert connections == [probe.connection]
    await probe.stop()


async def test_an_attempt_that_timed_out_and_is_stuck_fails_when_it_ends(grace, caplog, stuck):
    opening = stuck()
    probe = Probe(opening)
    with pytest.raises(StartTimeoutError, match=r"0\.01 s; the task .* is waiting in Stage.__call__"):
        await probe.start(0.01)
    assert probe.state is CLOSING
    opening.let_go.set()
    with pytest.raises(StartTimeoutError, match=r"^probe: not connected after 0\.01 s"):
        await probe.wait_closed()
    assert probe.state is FAILED
    assert probe.exception.timeout == 0.01


async def test_stop_after_a_timeout_has_ended_the_attempt_still_returns(stuck):
    cleaning_up = stuck()

    async def hang_and_clean_up():
        try:
            await anyio.sleep_forever()
        finally:
            await cleaning_up()

    probe = Probe(hang_and_clean_up)

    async def start():
        with pytest.raises((StartTimeoutError, ConnectionStoppedError)):
            await probe.start(0.01)

    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        await cleaning_up.reached.wait()
        tg.start_soon(probe.stop)
        await settle()
        cleaning_up.let_go.set()
    assert probe.state in {CLOSED, FAILED}
    assert (probe.exception is None) == (probe.state is CLOSED)
    probe.opening = raises(OSError("no"))
    with pytest.raises(OSError, match="no"):
        await probe.start(9)


@virtual
def test_a_timeout_during_the_cleanup_of_a_loss_does_not_hide_the_loss(clock):
    async def main():
        cleaning_up = Stage(shield=True)

        async def open_slowly():
            try:
                await anyio.sleep_forever()
            finally:
                await cleaning_up()

        probe = Probe(open_slowly)
        errors = []

        async def start():
            try:
                await probe.start(4)
            except ConnectionLostError as error:
                errors.append(error)

        async with anyio.create_task_group() as tg:
            tg.start_soon(start)
            await settle()
            probe.connection_lost(OSError("gone"))
            await cleaning_up.reached.wait()
            await anyio.sleep(5)  # the timeout expires, and the call waits for the cleanup
            assert not errors
            cleaning_up.let_go.set()
        assert [str(error.__cause__) for error in errors] == ["gone"]

    run_for_a_day(main, clock=clock)


async def test_C3_a_queued_start_that_was_stopped_says_so_if_the_owner_does_not_end(grace, caplog):
    closing = Stage(shield=True)
    probe = Probe(closing=closing)
    await probe.start()
    errors = []

    async def call(function):
        try:
            await function()
        except (StopTimeoutError, ConnectionStoppedError) as error:
            errors.append(type(error))

    async with anyio.create_task_group() as tg:
        tg.start_soon(call, partial(probe.stop, 0))
        await closing.reached.wait()
        tg.start_soon(call, probe.start)
        await settle()
        tg.start_soon(call, partial(probe.stop, 0))
    assert sorted(errors, key=str) == [ConnectionStoppedError, StopTimeoutError, StopTimeoutError]
    closing.let_go.set()
    await probe.stop()
