"""Tests for how a run ends: errors while opening and closing, losses, and cancellation."""

import asyncio
import contextvars
import gc
import logging
import time
import traceback
import weakref
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from conftest import all_tasks
from probe import Probe, Stage, raises

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    ConnectionStoppedError,
    OwnerTaskError,
    StartTimeoutError,
    StopTimeoutError,
    _owner,
)
from ownertask._backend import current_event_loop
from ownertask._waiting import over_or_given_up

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


class Custom(BaseException):
    pass


# Errors while opening.


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int


async def test_O1_an_error_that_accepts_no_notes_is_raised_anyway():
    for error in (FrozenError(3), OSError("odd")):
        if isinstance(error, OSError):
            error.__notes__ = ("no list",)
        probe = Probe(raises(error))
        for call in (probe.start, probe.wait_closed):
            with pytest.raises(type(error)) as caught:
                await call()
            assert caught.value is error


@pytest.mark.parametrize("place", ["before", "between", "after"])
async def test_O1_an_error_while_opening_releases_resources_and_is_raised_by_every_start(place):
    released = []

    @asynccontextmanager
    async def acquire(name):
        await checkpoint()
        try:
            yield
        finally:
            await checkpoint()
            released.append(name)

    class Flaky(ConnectionManager[int]):
        @asynccontextmanager
        async def open_connection(self):
            if place == "before":
                raise FileNotFoundError("before")
            async with acquire("first"):
                if place == "between":
                    raise FileNotFoundError("between")
                async with acquire("second"):
                    raise FileNotFoundError("after")
            yield 1

    manager = Flaky()
    errors = []

    async def start():
        with pytest.raises(FileNotFoundError, match=place) as caught:
            await manager.start()
        errors.append(caught.value)

    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(start)
    assert errors == [manager.exception] * 3
    assert errors[0].__notes__ == ["ownertask: raised by Flaky while opening"]
    assert released == {"before": [], "between": ["first"], "after": ["second", "first"]}[place]
    assert manager.state is FAILED


async def test_a_manager_can_be_started_again_after_opening_failed():
    probe = Probe(raises(OSError("no")))
    with pytest.raises(OSError, match="no"):
        await probe.start()
    probe.opening = checkpoint
    await probe.start()
    assert probe.exception is None
    await probe.stop()


async def test_O2_a_group_of_one_is_raised_as_its_only_exception_with_the_original_cause():
    cause, leaf = LookupError("cause"), OSError("leaf")
    leaf.__cause__ = cause
    probe = Probe(raises(ExceptionGroup("outer", [BaseExceptionGroup("inner", [leaf])])))
    with pytest.raises(OSError, match="leaf") as caught:
        await probe.start()
    assert caught.value is leaf
    assert leaf.__cause__ is cause


async def test_O2_a_group_of_two_stays_a_group():
    probe = Probe(raises(ExceptionGroup("two", [OSError("a"), OSError("b")])))
    with pytest.raises(ExceptionGroup, match="two") as caught:
        await probe.start()
    assert caught.value.__notes__ == ["ownertask: raised by probe while opening"]


async def test_O2_cancellations_are_removed_from_a_group():
    async def fail():
        kept = []
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class() as cancelled:
                kept.append(cancelled)
                raise
        raise BaseExceptionGroup("mixed", [*kept, OSError("real")])

    with pytest.raises(OSError, match="real"):
        await Probe(fail).start()


async def test_start_raises_the_crash_that_cancelled_opening():
    class Crashing(ConnectionManager[int]):
        @asynccontextmanager
        async def open_connection(self):
            async with anyio.create_task_group() as tg:
                tg.start_soon(raises(OSError("crash")))
                await anyio.sleep_forever()
                yield 1

    with pytest.raises(OSError, match="crash"):
        await Crashing().start()


def frames(error):
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


async def test_an_error_raised_by_several_calls_has_a_clean_traceback_each_time():
    probe = Probe(raises(OSError("no")))
    shown = []

    async def first_caller():
        try:
            await probe.start()
        except OSError as error:
            shown.append(frames(error))

    async def second_caller():
        try:
            raise LookupError("unrelated")
        except LookupError:
            try:
                await probe.start()
            except OSError as error:
                shown.append(frames(error))
                assert error.__context__ is None

    async with anyio.create_task_group() as tg:
        for caller in (first_caller, second_caller, first_caller):
            tg.start_soon(caller)
    for _ in range(3):
        try:
            await probe.wait_closed()
        except OSError as error:
            shown.append(frames(error))
    assert all("raise_it" in names and names.count("raise_it") == 1 for names in shown)
    assert sum("first_caller" in names for names in shown) == 2
    assert sum("second_caller" in names for names in shown) == 1
    assert max(len(names) for names in shown) < 14
    assert len(probe.exception.__notes__) == 1


async def test_raising_an_error_again_releases_the_frames_of_the_previous_caller():
    class Big:
        pass

    probe = Probe(raises(OSError("no")))

    async def caller():
        big = Big()
        with pytest.raises(OSError, match="no"):
            await probe.start()
        return weakref.ref(big)

    big = await caller()
    with pytest.raises(OSError, match="no"):
        await probe.wait_closed()
    gc.collect()
    assert big() is None


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), Custom(), KeyboardInterrupt()])
async def test_O14_a_base_exception_while_opening_is_raised_by_every_start(error):
    class Exiting(ConnectionManager[int]):
        def open_connection(self):
            return self

        async def __aenter__(self):
            await checkpoint()
            raise error

        async def __aexit__(self, *_):
            pytest.fail("was never entered")

    manager = Exiting()
    errors = []

    async def start():
        try:
            await manager.start()
        except BaseException as raised:
            errors.append(raised)

    async with anyio.create_task_group() as tg:
        for _ in range(2):
            tg.start_soon(start)
    assert errors == [error, error]
    assert manager.state is FAILED


async def test_O14_a_base_exception_from_an_open_connection_is_the_cause_of_the_loss(anyio_backend_name):
    class Crashing(ConnectionManager[int]):
        @asynccontextmanager
        async def open_connection(self):
            yield 1
            raise Custom("odd")

    manager = Crashing()
    await manager.start()
    [owner] = {task for task in all_tasks() if "owner task of Crashing" in repr(task)}
    manager.connection_lost()
    with pytest.raises(ConnectionLostError) as caught:
        await manager.wait_closed()
    assert isinstance(caught.value.__cause__, Custom)
    if anyio_backend_name == "asyncio":  # the owner raises it if no start() is waiting
        await checkpoint()
        assert isinstance(owner.exception(), Custom)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_P9_a_keyboard_interrupt_in_a_child_of_the_owner_propagates_to_the_application(backend):
    manager = Crashable()
    manager.error = KeyboardInterrupt()

    async def main():
        (await manager.start()).set()
        await anyio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend)
    assert isinstance(manager.exception, ConnectionLostError)


@pytest.mark.parametrize("error", [SystemExit(3), Custom()])
async def test_O14_start_raises_a_base_exception_from_a_stopped_attempt(error):
    async def fail():
        try:
            await anyio.sleep_forever()
        finally:
            raise error

    probe = Probe(fail)
    outcomes = []

    async def start():
        try:
            await probe.start()
        except BaseException as raised:
            outcomes.append(raised)

    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        await wait_all_tasks_blocked()
        await probe.stop()
    assert outcomes == [error]


async def test_an_error_in_a_cancelled_attempt_is_noted_as_raised_while_opening(caplog):
    async def fail():
        try:
            await anyio.sleep_forever()
        finally:
            raise OSError("real")

    probe = Probe(fail)
    with pytest.raises(StartTimeoutError) as caught:
        await probe.start(timeout=0.01)
    assert str(caught.value.__cause__) == "real"
    assert caught.value.__cause__.__notes__ == ["ownertask: raised by probe while opening"]
    assert not caplog.records  # the caller has the error


async def test_cancelling_the_last_start_does_not_discard_a_loss():
    stage = Stage()
    probe = Probe(stage)
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.start)
        await stage.reached.wait()
        probe.connection_lost()
        tg.cancel_scope.cancel()
    assert type(probe.exception) is ConnectionLostError


# Lost connections.


async def test_O18_the_first_of_several_losses_while_opening_is_raised():
    probe = Probe()

    async def lose():
        probe.connection_lost(OSError("first"))
        probe.connection_lost(OSError("second"))
        await checkpoint()

    probe.opening = lose
    with pytest.raises(ConnectionLostError, match="probe: the connection was lost") as caught:
        await probe.start()
    assert str(caught.value.__cause__) == "first"
    assert caught.value is not probe.exception
    assert not probe.is_acquired


async def test_a_loss_closes_the_connection_and_is_logged_once_and_raised_by_wait_closed(caplog):
    closing = Stage()
    probe = Probe(closing=closing)
    await probe.start()
    async with anyio.create_task_group() as tg:

        async def wait():
            with pytest.raises(ConnectionLostError):
                await probe.wait_closed()

        tg.start_soon(wait)
        tg.start_soon(wait)
        await wait_all_tasks_blocked()
        for _ in range(3):
            probe.connection_lost(OSError("gone"))
        assert probe.state is CLOSING
        await closing.reached.wait()
        with pytest.raises(ConnectionLostError) as caught:
            probe.connection  # noqa: B018
        assert str(caught.value.__cause__) == "gone"
        closing.let_go.set()
    assert probe.state is FAILED
    [record] = caplog.records
    assert record.name == "ownertask"
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "probe: the connection was lost: gone"
    assert "OSError: gone" in caplog.text
    assert probe.exception.__cause__.__notes__ == ["ownertask: raised by probe while open"]
    await probe.stop()  # has no effect
    assert probe.state is FAILED


async def test_an_error_while_closing_after_a_loss_becomes_its_cause_or_is_logged(caplog):
    probe = Probe(closing=raises(OSError("closing")))
    await probe.start()
    probe.connection_lost()
    with pytest.raises(ConnectionLostError) as caught:
        await probe.wait_closed()
    assert str(caught.value.__cause__) == "closing"
    assert len(caplog.records) == 1
    caplog.clear()

    await probe.start()
    probe.connection_lost(OSError("loss"))
    with pytest.raises(ConnectionLostError) as caught:
        await probe.wait_closed()
    assert str(caught.value.__cause__) == "loss"
    assert [record.getMessage() for record in caplog.records] == [
        "probe: error while closing",
        "probe: the connection was lost: loss",
    ]


class Crashable(ConnectionManager[anyio.Event]):
    """A manager whose transport can be made to end.

    Setting the connection makes the transport raise `error`, or end without an error if that is `None`.
    """

    error = OSError("crash")

    @asynccontextmanager
    async def open_connection(self):
        crash = anyio.Event()

        async def work():
            await crash.wait()
            if self.error is not None:
                raise self.error
            tg.cancel_scope.cancel()

        async with anyio.create_task_group() as tg:
            tg.start_soon(work)
            yield crash
            tg.cancel_scope.cancel()


async def test_P6_a_crash_in_the_transport_is_a_loss_with_the_original_exception_as_cause(caplog):
    manager = Crashable()
    (await manager.start()).set()
    with pytest.raises(ConnectionLostError) as caught:
        await manager.wait_closed()
    assert caught.value.__cause__ is manager.error
    assert len(caplog.records) == 1


async def test_P6_a_transport_that_ends_on_its_own_is_a_loss_without_a_cause():
    manager = Crashable()
    manager.error = None
    (await manager.start()).set()
    with pytest.raises(ConnectionLostError) as caught:
        await manager.wait_closed()
    assert caught.value.__cause__ is None


async def test_a_late_report_from_an_earlier_run_does_not_end_a_later_one():
    probe = Probe()
    contexts = []
    probe.opening = lambda: checkpoint_and_note(contexts)
    await probe.start()
    await probe.stop()
    await probe.start()
    contexts[0].run(probe.connection_lost)
    assert probe.state is OPEN
    contexts[1].run(probe.connection_lost)
    assert probe.state is CLOSING
    await probe.stop()


async def checkpoint_and_note(contexts):
    contexts.append(contextvars.copy_context())
    await checkpoint()


# Closing.


async def test_C1_an_error_while_closing_is_kept_and_logged_once_but_not_raised_by_stop(caplog):
    probe = Probe(closing=raises(OSError("closing")))
    await probe.start()
    await probe.stop()
    assert probe.state is FAILED
    assert str(probe.exception) == "closing"
    assert probe.exception.__notes__ == ["ownertask: raised by probe while closing"]
    with pytest.raises(OSError, match="closing"):
        await probe.wait_closed()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "probe: error while closing"
    assert "raise_it" in caplog.text


async def test_C2_a_hanging_close_is_cancelled_after_the_timeout():
    probe = Probe(closing=anyio.sleep_forever)
    await probe.start()
    await probe.stop(timeout=0.01)
    assert probe.state is CLOSED
    assert not probe.is_acquired


async def test_C2_stop_with_a_timeout_of_0_cancels_at_once():
    stage = Stage()
    probe = Probe(closing=stage)
    await probe.start()
    await probe.stop(timeout=0)
    assert stage.reached.is_set()
    assert probe.state is CLOSED


async def test_a_deadline_set_after_the_run_has_ended_starts_no_timer():
    probe = Probe()
    await probe.start()
    run = probe._life.run
    await probe.stop()
    before = all_tasks()
    run.force_within(_owner.STOP_TIMEOUT)
    await checkpoint()
    assert run.timer._timer is None
    assert all_tasks() == before


async def test_C2_the_earliest_deadline_of_several_stops_applies():
    stage = Stage()
    probe = Probe(closing=stage)
    await probe.start()
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.stop, None)
        tg.start_soon(probe.stop, 60)
        await stage.reached.wait()
        await probe.stop(timeout=0.01)
    assert probe.state is CLOSED


async def test_invariant_4_a_close_within_the_timeout_is_not_cancelled():
    seen = []

    async def close_in_steps():
        for step in range(10):
            await checkpoint()
            seen.append(step)

    probe = Probe(closing=close_in_steps)
    await probe.start()
    await probe.stop(timeout=5)
    assert seen == list(range(10))


async def swallow(let_go):
    while not let_go.is_set():
        try:
            await let_go.wait()
        except anyio.get_cancelled_exc_class():
            pass


@pytest.mark.parametrize("how", ["swallows", "shields"])
async def test_C3_an_owner_that_cannot_be_stopped_is_named_uses_no_cpu_and_prevents_a_restart(
    how, grace, caplog
):
    let_go = anyio.Event()

    async def close():
        if how == "swallows":
            await swallow(let_go)
        else:
            with anyio.CancelScope(shield=True):
                await let_go.wait()

    probe = Probe(closing=close)
    await probe.start()
    for _ in range(2):
        with pytest.raises(StopTimeoutError, match="task 'owner task of probe' is waiting in") as caught:
            await probe.stop(timeout=0.01)
        assert "test_owner.py:" in str(caught.value)
    assert probe.state is CLOSING
    with pytest.raises(StopTimeoutError):
        await probe.start()
    assert len(probe.entered) == 1
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    before = time.process_time()
    await anyio.sleep(0.3)
    assert time.process_time() - before < 0.1
    let_go.set()
    await probe.stop()
    assert probe.state is CLOSED
    await probe.start()
    await probe.stop()


async def test_O3_start_gives_up_on_shielded_opening_and_reports_where_it_waits(grace, caplog):
    stage = Stage(shield=True)
    probe = Probe(stage)
    with pytest.raises(StartTimeoutError, match=r"0\.01 s; the task .* is waiting in Stage.__call__"):
        await probe.start(timeout=0.01)
    assert probe.state is CLOSING
    assert caplog.records[0].levelno == logging.ERROR
    stage.let_go.set()
    await probe.stop()


async def test_start_raises_connection_stopped_error_if_a_stopped_owner_does_not_end(grace):
    stage = Stage(shield=True)
    probe = Probe(stage)
    outcomes = []

    async def start():
        try:
            await probe.start()
        except ConnectionStoppedError:
            outcomes.append("stopped")

    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        await stage.reached.wait()
        with pytest.raises(StopTimeoutError):
            await probe.stop()
    assert outcomes == ["stopped"]
    stage.let_go.set()
    await probe.stop()


async def test_start_raises_connection_lost_error_if_a_lost_owner_does_not_end(grace, asyncio_only):
    stage = Stage(shield=True)
    probe = Probe(stage)
    outcomes = []

    async def start():
        try:
            await probe.start()
        except ConnectionLostError:
            outcomes.append("lost")

    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        await stage.reached.wait()
        owner_task(probe).cancel()
        await checkpoint()
        await checkpoint()
        with pytest.raises(StopTimeoutError):
            await probe.stop(timeout=0)
    assert outcomes == ["lost"]
    stage.let_go.set()
    await probe.stop()


async def test_O3_every_start_raises_the_timeout_if_the_owner_does_not_end(grace, caplog):
    stage = Stage(shield=True)
    probe = Probe(stage)
    probe.start_timeout = 0.01
    outcomes = []

    async def start():
        with pytest.raises(StartTimeoutError, match=r"0\.01 s; the task .* is waiting in Stage"):
            await probe.start()
        outcomes.append("timeout")

    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        tg.start_soon(start)
    assert outcomes == ["timeout"] * 2
    assert probe.state is CLOSING
    assert len(caplog.records) == 1
    with pytest.raises(StopTimeoutError):
        await probe.start()
    stage.let_go.set()
    await probe.stop()
    assert type(probe.exception) is StartTimeoutError


async def test_a_loss_while_opening_is_raised_if_an_unrequested_cancellation_follows(asyncio_only):
    probe = Probe()

    async def lose_and_wait_for_a_cancelled_task():
        probe.connection_lost(OSError("gone"))
        other = asyncio.create_task(anyio.sleep_forever())
        other.cancel()
        await other

    probe.opening = lose_and_wait_for_a_cancelled_task
    with pytest.raises(ConnectionLostError) as caught:
        await probe.start()
    assert str(caught.value.__cause__) == "gone"


def swallow_or_shield(how, let_go):
    async def wait():
        if how == "swallows":
            await swallow(let_go)
        else:
            with anyio.CancelScope(shield=True):
                await let_go.wait()

    return wait


@pytest.mark.parametrize("how", ["swallows", "shields"])
async def test_C3_a_lost_connection_that_cannot_be_closed_is_reported_with_no_caller_waiting(
    how, grace, caplog, monkeypatch
):
    monkeypatch.setattr(_owner, "STOP_TIMEOUT", 0.01)
    let_go = anyio.Event()
    probe = Probe(closing=swallow_or_shield(how, let_go))
    await probe.start()
    probe.connection_lost()
    await over_or_given_up(probe._life.run)
    assert "could not be stopped" in caplog.text
    before = time.process_time()
    await anyio.sleep(0.2)
    assert time.process_time() - before < 0.1
    with pytest.raises(StopTimeoutError):
        await probe.start()
    let_go.set()
    with pytest.raises(ConnectionLostError):
        await probe.wait_closed()


async def test_C3_a_stop_just_before_the_owner_ends_logs_no_error(grace, caplog):
    async with anyio.create_task_group() as tg:

        async def closing():
            tg.start_soon(probe.stop, 0)

        probe = Probe(closing=closing)
        await probe.start()
        probe.connection_lost()
        await probe.stop()
    await anyio.sleep(2 * grace)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_C3_start_raises_stop_timeout_error_if_the_previous_owner_cannot_be_stopped(grace):
    let_go = anyio.Event()
    probe = Probe(closing=swallow_or_shield("shields", let_go))
    await probe.start()
    outcomes = []

    async def start():
        with pytest.raises(StopTimeoutError):
            await probe.start()
        outcomes.append("told")

    async with anyio.create_task_group() as tg:
        probe.connection_lost()
        tg.start_soon(start)
        await wait_all_tasks_blocked()
        probe._life.run.force()
    assert outcomes == ["told"]
    let_go.set()
    with pytest.raises(ConnectionLostError):
        await probe.wait_closed()


# Cancelled callers of start(), stop() and run().


async def test_C6_a_cancelled_stop_forces_the_close_and_waits_for_it():
    probe = Probe(closing=anyio.sleep_forever)
    await probe.start()
    with anyio.move_on_after(0.01) as scope:
        await probe.stop(timeout=None)
    assert scope.cancelled_caught
    assert probe.state is CLOSED


async def test_C6_native_cancellation_of_stop_forces_the_close_and_waits_for_it(asyncio_only):
    stage = Stage()
    probe = Probe(closing=stage)
    await probe.start()
    stopping = asyncio.create_task(probe.stop(timeout=None))
    await stage.reached.wait()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert probe.state is CLOSED
    assert stopping.cancelling() == 1


async def test_C6_a_second_native_cancellation_ends_the_wait_but_not_the_owner(asyncio_only):
    stage = Stage(shield=True)
    probe = Probe(closing=stage)
    await probe.start()
    stopping = asyncio.create_task(probe.stop())
    await stage.reached.wait()
    stopping.cancel()
    await wait_all_tasks_blocked()
    assert not stopping.done()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert probe.state is CLOSING
    stage.let_go.set()
    await probe.wait_closed()
    assert probe.state is CLOSED


async def test_C6_a_cancelled_stop_gives_up_after_the_grace_period(grace, caplog):
    stage = Stage(shield=True)
    probe = Probe(closing=stage)
    await probe.start()
    with anyio.move_on_after(0.01) as scope:
        await probe.stop()
    assert scope.cancelled_caught
    assert caplog.records[0].levelno == logging.ERROR
    stage.let_go.set()
    await probe.stop()


@pytest.mark.parametrize("timeout", [None, 0.01])
async def test_O15_a_start_that_is_cancelled_repeatedly_waits_for_its_owner(timeout, asyncio_only):
    opening = Stage(shield=True)
    probe = Probe(opening)
    starting = asyncio.create_task(probe.start(timeout=timeout))
    await opening.reached.wait()
    while timeout is not None and probe.state is OPENING:
        await checkpoint()
    for _ in range(3):
        starting.cancel()
        await wait_all_tasks_blocked()
        assert not starting.done()
    opening.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not probe.is_acquired


async def test_native_cancellation_of_run_forces_the_close_and_propagates(asyncio_only, grace, caplog):
    closing = Stage()
    probe = Probe(closing=closing)
    running = asyncio.create_task(probe.run())
    await wait_all_tasks_blocked()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert probe.state is CLOSED

    probe.closing = stuck = Stage(shield=True)
    running = asyncio.create_task(probe.run())
    await wait_all_tasks_blocked()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert "could not be stopped" in caplog.text
    stuck.let_go.set()
    await probe.stop()


@pytest.mark.parametrize("how", ["task.cancel", "asyncio.timeout", "asyncio.wait_for"])
async def test_O15_native_cancellation_of_start_ends_the_attempt(how, asyncio_only):
    stage = Stage()
    probe = Probe(stage)
    current = asyncio.current_task()
    if how == "task.cancel":
        starting = asyncio.create_task(probe.start())
        await stage.reached.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert starting.cancelling() == 1
    elif how == "asyncio.timeout":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await probe.start()
    else:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(probe.start(), 0.01)
    assert current.cancelling() == 0
    assert probe.state is CLOSED
    assert not probe.is_acquired


# Cancelling the owner task from outside.


def owner_task(probe):
    [owner] = {task for task in asyncio.all_tasks() if task.get_name() == f"owner task of {probe.name}"}
    return owner


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("phase", ["first step", "opening", "open", "closing", "shielded closing"])
async def test_P7_cancelling_the_owner_from_outside_closes_the_connection_and_is_a_loss_unless_closing(
    phase, times, asyncio_only
):
    opening, closing = Stage(), Stage(shield=phase == "shielded closing")
    probe = Probe(opening, closing)
    outcomes = []

    async def start():
        try:
            await probe.start()
        except ConnectionLostError as error:
            outcomes.append(error)

    async with anyio.create_task_group() as tg:
        tg.start_soon(start)
        await checkpoint() if phase == "first step" else await opening.reached.wait()
        if phase not in {"first step", "opening"}:
            opening.let_go.set()
            await wait_all_tasks_blocked()
        if "closing" in phase:
            tg.start_soon(probe.stop)
            await closing.reached.wait()
        owner = owner_task(probe)
        for _ in range(times):
            owner.cancel()
            await checkpoint()
        closing.let_go.set()
    with anyio.CancelScope(shield=True):
        while not owner.done():
            await checkpoint()
    assert not owner.cancel()
    assert not owner.cancelled()
    assert not probe.is_acquired
    if "closing" in phase:
        assert probe.state is CLOSED
    else:
        assert isinstance(probe.exception, ConnectionLostError)
        assert "cancelled from outside" in str(probe.exception)
    # O16: start() raises the loss; its caller is not cancelled.
    assert len(outcomes) == (phase in {"first step", "opening"})


async def test_O16_an_unrequested_cancellation_while_opening_is_a_loss(asyncio_only):
    async def wait_for_a_cancelled_task():
        other = asyncio.create_task(anyio.sleep_forever())
        other.cancel()
        await other

    probe = Probe(wait_for_a_cancelled_task)
    with pytest.raises(ConnectionLostError, match=r"neither stop\(\) nor a timeout requested it"):
        await probe.start()


def test_P8_asyncio_run_closes_an_open_connection_silently(caplog):
    probe = Probe(closing=checkpoint)

    async def main():
        await probe.start()

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert probe.state is FAILED
    assert not probe.is_acquired
    assert not caplog.records


def test_P8_trio_run_closes_an_open_connection_silently(caplog):
    import trio

    probe = Probe()

    with caplog.at_level(logging.INFO):
        trio.run(probe.start)
    assert probe.state is FAILED
    assert not probe.is_acquired
    assert not caplog.records


@pytest.mark.parametrize("error", [LookupError, SystemExit])
def test_P8_an_exception_in_main_closes_the_connection(error, anyio_backend_name):
    probe = Probe(anyio.lowlevel.checkpoint)

    async def main():
        await probe.start()
        raise error

    if anyio_backend_name == "trio":
        import trio

        with pytest.raises(error):
            trio.run(main)
    else:
        with pytest.raises(error):
            asyncio.run(main())
    assert not probe.is_acquired


async def test_O19_native_timeouts_and_task_groups_work_inside_a_connection(asyncio_only, caplog):
    seen = []

    async def use_them():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.sleep(60)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(60), 0.001)
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as tg:
                tg.create_task(raises(OSError())())
                await asyncio.sleep(60)
        for attempt in range(3):  # as redis-py does for each retry
            try:
                async with asyncio.timeout(0.001 if attempt < 2 else None):
                    await asyncio.sleep(60 if attempt < 2 else 0)
            except TimeoutError:
                continue
        seen.append(asyncio.current_task().cancelling())

    probe = Probe(use_them, use_them)
    await probe.start()
    assert probe.state is OPEN
    await probe.stop()
    assert probe.state is CLOSED
    assert seen == [0, 0]
    assert not caplog.records


async def test_O19_the_aiohttp_timer_works_inside_a_connection(asyncio_only):
    """aiohttp cancels the task from its own `helpers` module and later calls `uncancel()`."""
    timer = {"__name__": "aiohttp.helpers"}
    exec("def expire(task): task.cancel()", timer)

    async def time_out_and_go_on():
        task = asyncio.current_task()
        asyncio.get_running_loop().call_later(0.001, timer["expire"], task)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(60)
        task.uncancel()

    probe = Probe(time_out_and_go_on)
    await probe.start()
    await probe.stop()
    assert probe.state is CLOSED


async def test_a_timeout_while_closing_that_races_with_stop_does_not_block_the_owner(asyncio_only):
    async def close():
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)

    probe = Probe(closing=close)
    await probe.start()
    await probe.stop(timeout=0.01)
    assert probe.state in {CLOSED, FAILED}
    assert not probe.is_acquired


# Calls from inside the connection.


async def test_O21_calls_in_the_owner_task_that_would_deadlock_raise():
    probe = Probe()
    errors = []

    async def call_everything():
        for call in (probe.start, probe.stop, probe.wait_closed):
            with pytest.raises(OwnerTaskError, match="probe: .* from inside the connection"):
                await call()
            errors.append(call)

    probe.opening = probe.closing = call_everything
    await probe.start()
    await probe.stop()
    assert len(errors) == 6


@pytest.mark.parametrize("call", ["start", "stop", "wait_closed"])
@pytest.mark.parametrize("phase", ["opening", "open", "closing"])
async def test_O21_a_child_of_the_owner_never_deadlocks(phase, call):
    class Parent(ConnectionManager[anyio.Event]):
        @asynccontextmanager
        async def open_connection(self):
            async with anyio.create_task_group() as tg:
                if phase == "opening":
                    tg.start_soon(child)
                    await wait_all_tasks_blocked()
                yield anyio.Event()
                if phase == "closing":
                    tg.start_soon(child)
                    await wait_all_tasks_blocked()
                tg.cancel_scope.cancel()

    outcomes = []

    async def child():
        try:
            await getattr(manager, call)()
        except (OwnerTaskError, anyio.get_cancelled_exc_class()) as error:
            outcomes.append(type(error).__name__)
            raise
        outcomes.append("returned")

    manager = Parent()
    try:
        await manager.start()
    except (OwnerTaskError, ConnectionStoppedError):
        assert phase == "opening"
    if phase == "open":
        context = owner_context(manager)
        async with anyio.create_task_group() as tg:
            await run_in_context(tg, context, child)
            await wait_all_tasks_blocked()
            await manager.stop()
    await manager.stop()
    assert len(outcomes) == 1
    assert not current_event_loop().owner_tasks


def owner_context(manager):
    context = contextvars.copy_context()
    context.run(_owner._runs_around.set, (manager._life.run,))
    return context


async def run_in_context(task_group, context, function):
    context.run(task_group.start_soon, function)


async def test_O21_stop_in_a_child_task_ends_even_if_closing_waits_for_the_child():
    class Waiting(ConnectionManager[int]):
        @asynccontextmanager
        async def open_connection(self):
            async with anyio.create_task_group() as tg:
                tg.start_soon(self.stop, 0.02)
                yield 1
                # leaving the task group waits for the child

    manager = Waiting()
    with suppress(ConnectionStoppedError):  # if the child runs before start() returns
        await manager.start()
    await manager.wait_closed()
    assert manager.state is CLOSED


@pytest.mark.parametrize("timeout", [0.02, None])
async def test_O21_the_deadline_of_a_stop_in_a_child_task_outlives_the_child(timeout):
    cancelled = anyio.Event()

    class Hanging(ConnectionManager[anyio.Event]):
        @asynccontextmanager
        async def open_connection(self):
            go = anyio.Event()

            async def child():
                await go.wait()
                try:
                    await self.stop(timeout)
                finally:
                    cancelled.set()

            async with anyio.create_task_group() as tg:
                tg.start_soon(child)
                yield go
                tg.cancel_scope.cancel()
            await anyio.sleep_forever()

    manager = Hanging()
    (await manager.start()).set()
    await cancelled.wait()
    if timeout is None:
        await manager.stop(0.02)
    await manager.wait_closed()
    assert manager.state is CLOSED


async def test_two_managers_that_start_each_other_raise_instead_of_deadlocking():
    outer = Probe(name="outer")
    inner = Probe(outer.start, name="inner")
    outer.opening = inner.start
    with pytest.raises(OwnerTaskError, match="outer"):
        await outer.start()
    await inner.stop()


async def test_a_task_that_outlives_its_run_can_start_and_stop_the_next_run():
    probe = Probe()
    contexts = []
    probe.opening = lambda: checkpoint_and_note(contexts)
    await probe.start()
    await probe.stop()
    async with anyio.create_task_group() as tg:
        contexts[0].run(tg.start_soon, probe.start)
    async with anyio.create_task_group() as tg:
        contexts[0].run(tg.start_soon, probe.stop)
    assert len(probe.exited) == 2


# Names, transitions and logs.


async def test_the_owner_task_is_named_after_its_manager():
    probe = Probe(name="redis")
    await probe.start()
    assert any("owner task of redis" in repr(task) for task in all_tasks())
    await probe.stop()


async def test_state_transitions_are_logged_at_debug_level(caplog):
    probe = Probe()
    with caplog.at_level(logging.DEBUG, logger="ownertask"):
        async with probe:
            pass
    assert [record.getMessage() for record in caplog.records] == [
        "probe: new -> opening",
        "probe: opening -> open",
        "probe: open -> closing",
        "probe: closing -> closed",
    ]


async def test_dropping_the_last_reference_to_a_manager_does_not_stop_it():
    closed = []

    async def note():
        closed.append(True)

    probe = Probe(closing=note)
    await probe.start()
    run = weakref.ref(probe._life.run)
    del probe
    gc.collect()
    assert not closed
    run().close()
    while not closed:
        await checkpoint()
    await checkpoint()


async def test_a_stopped_manager_is_freed_without_garbage_collection():
    gc.collect()
    gc.disable()
    try:
        probe = Probe()
        async with probe:
            pass
        reference = weakref.ref(probe)
        del probe
        assert reference() is None
    finally:
        gc.enable()


async def test_a_rejected_stop_does_not_end_waiting_starts():
    probe = Probe()
    stage = Stage()

    async def refused():
        with pytest.raises(OwnerTaskError):
            await probe.stop()
        await stage()

    probe.closing = refused
    await probe.start()
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.stop)
        await wait_all_tasks_blocked()
        tg.start_soon(probe.start)
        await wait_all_tasks_blocked()
        stage.let_go.set()
    assert probe.state is OPEN
    probe.closing = checkpoint
    await probe.stop()


async def test_C7_every_opened_connection_is_closed_when_start_and_stop_race():
    probe = Probe()

    async def start():
        for _ in range(100):
            try:
                await probe.start()
            except ConnectionStoppedError:
                pass

    async def stop():
        for _ in range(100):
            await probe.stop()

    async with anyio.create_task_group() as tg:
        for function in (start, stop, start, stop):
            tg.start_soon(function)
    await probe.stop()
    assert probe.entered == probe.exited
    assert probe.state is CLOSED


async def test_an_idle_connection_uses_no_cpu():
    probe = Probe()
    async with probe:
        before = time.process_time()
        await anyio.sleep(0.2)
        assert time.process_time() - before < 0.05
