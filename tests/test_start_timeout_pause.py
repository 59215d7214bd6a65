"""Tests for `pause_start_timeout()`. Time is virtual, so a person who takes an hour costs nothing.

Tests of many cases print each one, so the last line that a failed test printed names its case.
"""

import asyncio
import contextvars
import threading
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint
from conftest import all_tasks
from probe import Probe, Stage, raises
from proof import clocks

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    ConnectionStoppedError,
    StartTimeoutError,
    StopTimeoutError,
    pause_start_timeout,
)

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState

HOUR = 3600
START_TIMEOUT = 2

virtual = pytest.mark.parametrize("clock", [clock for clock in clocks.CLOCKS if clock != "uvloop"])


def run_for_a_day(function, *, clock):
    """Runs `function` in virtual time, which ends if it waits forever."""

    async def bounded():
        with anyio.fail_after(24 * HOUR):
            await function()

    clocks.run(bounded, clock=clock)


def limited(opening, closing=checkpoint):
    probe = Probe(opening, closing)
    probe.start_timeout = START_TIMEOUT
    return probe


async def person():
    """Takes longer than `START_TIMEOUT` while its clock stands still."""
    with pause_start_timeout():
        await anyio.sleep(HOUR)


async def opens_after(seconds, opening):
    """Checks that an attempt succeeds after that time."""
    probe = limited(opening)
    began = anyio.current_time()
    await probe.start()
    assert anyio.current_time() - began == pytest.approx(seconds)
    await probe.stop()
    assert probe.state is CLOSED


async def expires_after(seconds, opening):
    """Checks that `start_timeout` ends an attempt after that time."""
    probe = limited(opening)
    began = anyio.current_time()
    with pytest.raises(StartTimeoutError) as caught:
        await probe.start()
    assert anyio.current_time() - began == pytest.approx(seconds)
    assert caught.value.timeout == START_TIMEOUT
    assert probe.state is FAILED
    assert not probe.is_acquired


# The clock.


@virtual
def test_a_pause_may_take_longer_than_the_start_timeout(clock):
    run_for_a_day(lambda: opens_after(HOUR, person), clock=clock)


@virtual
def test_after_a_pause_the_attempt_has_the_time_that_was_left(clock):
    async def opening(before, after):
        await anyio.sleep(before)
        await person()
        await anyio.sleep(after)

    async def main():
        for before, after in ((0, 1.5), (0.5, 1), (1.5, 0), (1, 0.9)):
            print("opens:", before, after)
            await opens_after(before + HOUR + after, lambda b=before, a=after: opening(b, a))
        for before in (0, 0.5, 1.9):
            print("expires:", before)
            await expires_after(HOUR + START_TIMEOUT, lambda b=before: opening(b, HOUR))

    run_for_a_day(main, clock=clock)


@virtual
def test_the_clock_runs_between_pauses(clock):
    async def opening():
        for _ in range(3):
            await anyio.sleep(0.5)
            await person()
        await anyio.sleep(HOUR)

    run_for_a_day(lambda: expires_after(3 * HOUR + START_TIMEOUT, opening), clock=clock)


@virtual
def test_the_clock_starts_when_the_last_of_several_pauses_ends(clock):
    async def nested():
        with pause_start_timeout():
            with pause_start_timeout():
                await anyio.sleep(HOUR)
            await anyio.sleep(HOUR)
        await anyio.sleep(HOUR)

    async def pause(begin, end):
        await anyio.sleep(begin)
        with pause_start_timeout():
            await anyio.sleep(end - begin)

    async def concurrent():
        async with anyio.create_task_group() as tg:
            tg.start_soon(pause, 1, 10)
            tg.start_soon(pause, 5, 20)
            tg.start_soon(pause, 6, 7)
        await anyio.sleep(HOUR)

    async def main():
        await expires_after(2 * HOUR + START_TIMEOUT, nested)
        await expires_after(20 + 1, concurrent)

    run_for_a_day(main, clock=clock)


@virtual
def test_the_clock_goes_on_after_an_error_in_the_block(clock):
    async def opening():
        with pytest.raises(LookupError), pause_start_timeout():
            await raises(LookupError())()
        with anyio.move_on_after(HOUR), pause_start_timeout():
            await anyio.sleep_forever()
        await anyio.sleep(HOUR)

    run_for_a_day(lambda: expires_after(HOUR + START_TIMEOUT, opening), clock=clock)


@virtual
def test_a_pause_may_begin_at_the_moment_when_the_time_is_up(clock):
    """On trio, the task of the timer may run before or after the pause begins."""

    async def opening():
        await anyio.sleep(START_TIMEOUT)
        with pause_start_timeout():
            if probe.state is OPENING:
                begun.append(anyio.current_time())
                await anyio.sleep(HOUR)
                finished.append(anyio.current_time())
        await anyio.sleep(HOUR)  # no time is left

    async def main():
        nonlocal probe
        for _ in range(20):
            probe = limited(opening)
            with pytest.raises(StartTimeoutError):
                await probe.start()
            assert len(begun) == len(finished)
            orders.add(bool(finished))
            if finished:
                assert anyio.current_time() == pytest.approx(finished.pop())
                begun.clear()

    probe, begun, finished, orders = None, [], [], set()
    run_for_a_day(main, clock=clock)
    if clock == "trio":
        assert orders == {True, False}


@virtual
def test_a_pause_may_end_at_the_moment_when_the_time_would_have_been_up(clock):
    async def opening():
        await anyio.sleep(1)
        with pause_start_timeout():
            await anyio.sleep(START_TIMEOUT - 1)
        await anyio.sleep(HOUR)

    async def main():
        for _ in range(20):
            await expires_after(START_TIMEOUT - 1 + START_TIMEOUT, opening)

    run_for_a_day(main, clock=clock)


@virtual
def test_a_pause_may_begin_after_the_time_is_up_if_the_event_loop_was_blocked(clock):
    def block(seconds):
        if clock == "trio":
            import trio

            trio.lowlevel.current_clock().jump(seconds)
        else:
            asyncio.get_running_loop().jumping.now += seconds

    async def opening():
        block(START_TIMEOUT + 1)
        await person()
        await anyio.sleep(HOUR)  # no time is left

    run_for_a_day(lambda: expires_after(START_TIMEOUT + 1 + HOUR, opening), clock=clock)


# The caller.


@virtual
def test_child_tasks_and_callbacks_stop_the_clock(clock):
    async def child():
        async with anyio.create_task_group() as tg:
            tg.start_soon(person)

    async def grandchild():
        async with anyio.create_task_group() as tg:
            tg.start_soon(child)

    async def callback():
        """Runs the caller in a task outside of the connection, with the context of the connection."""
        done = anyio.Event()

        async def call():
            await person()
            done.set()

        contextvars.copy_context().run(outside.start_soon, call)
        await done.wait()

    async def main():
        nonlocal outside
        async with anyio.create_task_group() as outside:
            for opening in (child, grandchild, callback):
                print("caller:", opening.__name__)
                await opens_after(HOUR, opening)

    outside = None
    run_for_a_day(main, clock=clock)


@virtual
def test_a_caller_outside_of_the_connection_changes_nothing(clock):
    async def in_another_connection():
        await Probe(person).start()

    async def call_after_a_second(caller):
        await anyio.sleep(1)
        await caller()

    async def main():
        for caller in (person, in_another_connection):
            print("caller:", caller.__name__)
            async with anyio.create_task_group() as tg:
                tg.start_soon(call_after_a_second, caller)
                await expires_after(START_TIMEOUT, anyio.sleep_forever)
                tg.cancel_scope.cancel()

    with pause_start_timeout():  # there is no event loop
        run_for_a_day(main, clock=clock)


@virtual
def test_without_a_start_timeout_a_pause_changes_nothing(clock):
    async def opening():
        await person()
        await anyio.sleep(HOUR)

    async def main():
        for timeout in (None, float("inf")):
            probe = Probe(opening)
            probe.start_timeout = timeout
            await probe.start()
            await probe.stop()
            assert probe.exception is None

    run_for_a_day(main, clock=clock)


@virtual
def test_a_pause_inside_an_open_connection_changes_nothing(clock):
    class WithChild(ConnectionManager[object]):
        start_timeout = START_TIMEOUT

        @asynccontextmanager
        async def open_connection(self):
            async with anyio.create_task_group() as tg:
                tg.start_soon(person)
                yield object()
                await person()
                tg.cancel_scope.cancel()

    async def main():
        manager = WithChild()
        await manager.start()
        await anyio.sleep(2 * HOUR)  # the child's pause began while opening, or while open
        assert manager.state is OPEN
        await manager.stop(None)
        assert manager.state is CLOSED

    run_for_a_day(main, clock=clock)


@virtual
def test_a_pause_that_begins_while_opening_may_end_while_open(clock):
    async def opening():
        pause = pause_start_timeout()
        pause.__enter__()
        pauses.append(pause)

    async def main():
        probe = limited(opening)
        await probe.start()
        await anyio.sleep(HOUR)
        pauses.pop().__exit__(None, None, None)
        await anyio.sleep(HOUR)
        assert probe.state is OPEN
        await probe.stop()

    pauses = []
    run_for_a_day(main, clock=clock)


@virtual
def test_the_clocks_of_all_connections_around_the_caller_stop(clock):
    async def main():
        inner = limited(person)

        async def start_inner():
            await inner.start()
            await anyio.sleep(HOUR)  # the clock of the outer connection goes on

        outer = limited(start_inner)
        began = anyio.current_time()
        with pytest.raises(StartTimeoutError, match="probe"):
            await outer.start()
        assert anyio.current_time() - began == pytest.approx(HOUR + START_TIMEOUT)
        assert inner.state is OPEN
        await inner.stop()

    run_for_a_day(main, clock=clock)


@virtual
def test_an_inner_connection_stops_the_clock_of_the_manager_that_opens_it(clock):
    class Outer(ConnectionManager[object]):
        start_timeout = START_TIMEOUT

        @asynccontextmanager
        async def open_connection(self):
            async with self.open_inner(Probe(person)) as connection:
                yield connection

    async def main():
        outer = Outer()
        await outer.start()
        await outer.stop()

    run_for_a_day(main, clock=clock)


# How an attempt ends while the clock stands still.


@virtual
def test_stop_and_a_loss_end_a_paused_attempt_at_once(clock):
    async def main():
        for end, error in (("stop", ConnectionStoppedError), ("lose", ConnectionLostError)):
            print("end:", end)
            probe = limited(person)

            async def start(probe=probe, error=error):
                with pytest.raises(error):
                    await probe.start()

            began = anyio.current_time()
            async with anyio.create_task_group() as tg:
                tg.start_soon(start)
                await anyio.sleep(60)
                assert probe.state is OPENING
                if end == "stop":
                    await probe.stop()
                else:
                    probe.connection_lost(OSError("gone"))
            assert anyio.current_time() - began == pytest.approx(60)
            assert not probe.is_acquired

    run_for_a_day(main, clock=clock)


@virtual
def test_a_cancelled_start_ends_a_paused_attempt(clock):
    async def main():
        probe = limited(person)
        with anyio.move_on_after(60) as scope:
            await probe.start()
        assert scope.cancelled_caught
        assert probe.state is CLOSED
        assert not probe.is_acquired

    run_for_a_day(main, clock=clock)


@virtual
def test_the_timeout_of_start_is_not_paused(clock):
    async def main():
        probe = limited(person)
        began = anyio.current_time()
        with pytest.raises(StartTimeoutError) as caught:
            await probe.start(timeout=60)
        assert caught.value.timeout == 60
        assert anyio.current_time() - began == pytest.approx(60)
        assert probe.state is FAILED
        await opens_after(HOUR, person)  # nothing is left of the pause

    run_for_a_day(main, clock=clock)


@virtual
def test_a_pause_during_a_forced_stop_does_not_touch_the_limit_of_the_stop(clock, caplog):
    """A block that exits, and one that begins, in a cleanup that can't be cancelled."""
    stuck = None

    async def exits_late():
        with pause_start_timeout():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(60 + 3)
        await stuck()

    async def begins_late():
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)
                with pause_start_timeout():
                    await stuck()

    async def begins_and_ends_late():
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)
                with pause_start_timeout():
                    await anyio.sleep(3)
                await stuck()

    async def main():
        nonlocal stuck
        for opening in (exits_late, begins_late, begins_and_ends_late):
            print("opening:", opening.__name__)
            stuck = Stage(shield=True)
            probe = Probe(opening)
            probe.start_timeout = 70

            async def start(probe=probe):
                with pytest.raises(ConnectionStoppedError):
                    await probe.start()

            async with anyio.create_task_group() as tg:
                tg.start_soon(start)
                await anyio.sleep(60)
                began = anyio.current_time()
                with pytest.raises(StopTimeoutError):
                    await probe.stop()
                assert anyio.current_time() - began == pytest.approx(10)
                await anyio.sleep(HOUR)
                assert probe.state is CLOSING
                stuck.let_go.set()
            await probe.stop()
            assert probe.state is CLOSED
            assert probe.exception is None

    run_for_a_day(main, clock=clock)
    assert len(caplog.records) == 3


@virtual
@pytest.mark.parametrize("how", ["stop", "lost"])
def test_a_pause_while_closing_does_not_touch_the_limit_of_closing(clock, how, caplog):
    async def closing():
        await anyio.sleep(1)
        await person()

    async def main():
        probe = limited(checkpoint, closing)
        await probe.start()
        began = anyio.current_time()
        if how == "stop":
            await probe.stop(5)
        else:
            probe.connection_lost()
            with pytest.raises(ConnectionLostError):
                await probe.wait_closed()
        assert anyio.current_time() - began == pytest.approx(5 if how == "stop" else 30)
        assert not probe.is_acquired

    run_for_a_day(main, clock=clock)


# Exits.


async def enter(pauses):
    pauses.append(pause_start_timeout())
    pauses[-1].__enter__()


@virtual
def test_any_task_may_exit_the_block(clock):
    async def main():
        async def leave_later():
            await anyio.sleep(HOUR)
            pauses.pop().__exit__(None, None, None)

        async def opening():
            await enter(pauses)
            tg.start_soon(leave_later)
            await anyio.sleep(2 * HOUR)

        pauses = []
        async with anyio.create_task_group() as tg:
            await expires_after(HOUR + START_TIMEOUT, opening)

    run_for_a_day(main, clock=clock)


@virtual
@pytest.mark.parametrize("end", ["stopped", "failed", "lost", "expired"])
def test_an_exit_after_the_run_has_ended_changes_nothing(clock, end):
    async def main():
        async def opening():
            await enter(pauses)
            if end == "failed":
                raise OSError
            await anyio.sleep_forever()

        async def start():
            with pytest.raises(Exception) as caught:
                await probe.start(60 if end == "expired" else None)
            errors.append(type(caught.value))

        pauses, errors = [], []
        probe = limited(opening)
        async with anyio.create_task_group() as tg:
            tg.start_soon(start)
            await anyio.sleep(30)
            if end == "stopped":
                await probe.stop()
            elif end == "lost":
                probe.connection_lost(OSError())
        assert errors == [
            {
                "stopped": ConnectionStoppedError,
                "failed": OSError,
                "lost": ConnectionLostError,
                "expired": StartTimeoutError,
            }[end]
        ]
        state = probe.state
        assert state in {CLOSED, FAILED}
        # A later run has its own clock.
        probe.opening = anyio.sleep_forever
        began = anyio.current_time()
        async with anyio.create_task_group() as tg:
            tg.start_soon(start)
            await anyio.sleep(1)
            pauses.pop().__exit__(None, None, None)
        assert errors[1] is StartTimeoutError
        assert anyio.current_time() - began == pytest.approx(START_TIMEOUT)

    run_for_a_day(main, clock=clock)


@virtual
def test_a_block_after_the_clock_has_run_out_does_not_touch_the_limit_of_the_cleanup(clock, caplog):
    async def opening():
        try:
            await anyio.sleep(HOUR)
        finally:
            with pause_start_timeout():
                await stuck()

    async def main():
        nonlocal stuck
        stuck = Stage(shield=True)
        probe = limited(opening)
        began = anyio.current_time()
        with pytest.raises(StartTimeoutError, match="waiting in Stage"):
            await probe.start()
        assert anyio.current_time() - began == pytest.approx(START_TIMEOUT + 10)
        assert probe.state is CLOSING
        stuck.let_go.set()
        with pytest.raises(StartTimeoutError):
            await probe.wait_closed()

    stuck = None
    run_for_a_day(main, clock=clock)


@virtual
def test_an_exit_in_the_last_steps_of_a_failing_attempt_starts_no_clock(clock):
    """On trio, the owner task waits for its timer to end. A new timer would outlive the run."""

    async def main(steps):
        async def opening():
            await enter(pauses)
            tg.start_soon(leave)
            raise OSError

        async def leave():
            for _ in range(steps):
                await checkpoint()
            pauses.pop().__exit__(None, None, None)

        pauses = []
        probe = limited(opening)
        async with anyio.create_task_group() as tg:
            with pytest.raises(OSError):
                await probe.start()
            if clock == "trio":
                assert "ownertask timer" not in {task.name for task in all_tasks()}
            await anyio.sleep(HOUR)
        assert isinstance(probe.exception, OSError)

    for steps in range(12):
        print("steps:", steps)
        run_for_a_day(lambda steps=steps: main(steps), clock=clock)


@virtual
def test_an_exit_after_the_event_loop_has_ended_does_nothing(clock):
    async def opening():
        await enter(pauses)
        inside.append(contextvars.copy_context())

    async def main(abandon):
        await limited(opening).start()
        probe = limited(opening)
        probe.opening = lambda: open_and_abandon(abandon)
        await probe.start()

    async def open_and_abandon(abandon):
        await opening()
        await abandon()

    pauses, inside = [], []
    clocks.run_and_abandon(main, clock=clock)
    assert len(pauses) == 2
    for pause, context in zip(pauses, inside, strict=True):
        pause.__exit__(None, None, None)

        def pause_again():
            with pause_start_timeout():
                pass

        context.run(pause_again)


@virtual
def test_in_a_forked_process_a_pause_changes_nothing(clock, monkeypatch):
    async def opening():
        with monkeypatch.context() as patch:
            patch.setattr("os.getpid", lambda: 0)
            await enter(pauses)
        await anyio.sleep(HOUR)

    pauses = []
    run_for_a_day(lambda: expires_after(START_TIMEOUT, opening), clock=clock)


# Other threads and event loops.


def in_thread(function, *, loop=False):
    """Calls `function` in another thread, with the caller's context, while the event loop waits."""
    errors = []

    async def call():
        function()

    def run():
        try:
            if loop:
                asyncio.run(call())
            else:
                function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=[run])
    thread.start()
    thread.join()
    assert not errors


@virtual
@pytest.mark.parametrize("loop", [False, True], ids=["thread", "event loop"])
@pytest.mark.parametrize("where", ["enters", "exits", "both"])
def test_another_thread_may_enter_and_exit_the_block(clock, where, loop):
    async def opening():
        pause = pause_start_timeout()
        calls = {"enters": pause.__enter__, "exits": lambda: pause.__exit__(None, None, None)}
        for step, call in calls.items():
            if where in (step, "both"):
                in_thread(call, loop=loop)
            else:
                call()
            await anyio.sleep(HOUR)

    run_for_a_day(lambda: expires_after(HOUR + START_TIMEOUT, opening), clock=clock)


@virtual
def test_an_exit_that_overtakes_an_entry_of_another_thread_leaves_the_clock_running(clock):
    async def opening():
        await anyio.sleep(1)
        pause = pause_start_timeout()
        in_thread(pause.__enter__)
        pause.__exit__(None, None, None)
        await anyio.sleep(HOUR)

    run_for_a_day(lambda: expires_after(START_TIMEOUT, opening), clock=clock)


async def test_a_worker_thread_can_pause():
    """In real time, so this only shows that anyio passes the context on, and that nothing hangs."""

    def work():
        with pause_start_timeout():
            anyio.from_thread.run_sync(paused.append, probe._life.run.start_clock)
            paused.append(probe._life.run.start_clock._pauses)

    async def opening():
        await anyio.to_thread.run_sync(work)

    paused = []
    probe = Probe(opening)
    probe.start_timeout = 60
    await probe.start()
    assert paused[1] == 1
    await probe.stop()
    assert paused[0]._pauses == 0
