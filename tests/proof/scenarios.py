"""The scenarios of the sweep: opening and closing that is slow, fails, or races with other calls."""

from contextlib import suppress
from types import SimpleNamespace

import anyio
from anyio.lowlevel import checkpoint
from proof.session import RecordingSessionManager
from proof.sweep import Boom, Scenario

from ownertask import (
    ConnectionLostError,
    ConnectionStoppedError,
    NotConnectedError,
    ReconnectPolicy,
    StartTimeoutError,
)


async def fail():
    await checkpoint()
    raise Boom("the stage fails")


def seconds(duration, *, shield=False):
    """Returns a stage that takes `duration` units of time."""

    def stage(unit):
        async def sleep():
            with anyio.CancelScope(shield=shield):
                await anyio.sleep(duration * unit)

        return sleep

    return stage


def in_two_steps(unit):
    async def stage():
        with anyio.CancelScope(shield=True):
            await anyio.sleep(unit)
            await anyio.sleep(2 * unit)

    return stage


def fail_if_cancelled(unit):
    async def stage():
        try:
            await anyio.sleep(3 * unit)
        except anyio.get_cancelled_exc_class():
            raise Boom("a consequence") from None

    return stage


def fail_once(_unit):
    stages = iter([fail])

    async def stage():
        await next(stages, checkpoint)()

    return stage


async def start(world):
    await world.checked_start()


async def stop(world):
    await world.checked_stop()


async def stop_while_opening(world):
    await anyio.sleep(world.unit)
    await world.checked_stop()


def stop_within(timeout):
    async def stop(world):
        await world.checked_stop(timeout * world.unit)

    return stop


def start_within(timeout):
    async def start(world):
        await world.checked_start(timeout * world.unit)

    return start


async def start_beforehand(world):
    await world.checked_start()


async def start_concurrently(world):
    """Starts the manager in another task. Interrupting the caller must not cancel this call."""
    try:
        await world.checked_start(by_other=True)
    except anyio.get_cancelled_exc_class():
        world.problems.append("6: another start() was cancelled")
        raise
    except Exception:
        return
    await world.check_stays_open(1)


async def start_and_stay(world):
    await world.checked_start()
    await world.check_stays_open(5)


async def start_a_second_later(world):
    await anyio.sleep(world.unit)
    await world.checked_start()


async def lose_and_wait(world):
    world.lost.append(world.manager._life.run)
    world.manager.connection_lost()
    with world.bounded("wait_closed()", 30), suppress(ConnectionLostError):
        await world.manager.wait_closed()


async def lose_beforehand(world):
    """Lets the connection be lost. The scenario begins while it is closing."""
    await world.checked_start()
    world.lost.append(world.manager._life.run)
    world.manager.connection_lost()
    await checkpoint()


async def wait_for_delay(world):
    await lose_beforehand(world)
    while world.manager.reconnecting is None:
        await checkpoint()
    for _ in range(9):  # the owner task begins to wait
        await checkpoint()


async def wait_for_attempt(world):
    await wait_for_delay(world)
    while world.manager._life.run.is_delayed:
        await anyio.sleep(world.unit)


async def wait_open(world):
    await world.checked_wait_open()


async def enter_and_lose(world):
    async with world.manager as first:
        world.lost.append(world.manager._life.run)
        world.manager.connection_lost()
        second = await world.manager.wait_open()
        world.check("the lost connection was not opened again", second is not first)
    world.check("3: the block was exited, but the owner task is alive", world.is_over())


async def stop_two_seconds_later(world):
    await anyio.sleep(2 * world.unit)
    await world.checked_stop()


async def stop_concurrently(world):
    await world.checked_stop()


async def enter(world):
    async with world.manager as connection:
        world.check("the block was entered without a connection", connection is not None)
        await checkpoint()
    run = world.manager._life.run
    world.check("3: the block was exited, but the owner task is alive", run is None or run.is_over)


async def enter_concurrently(world, stay=1):
    """Uses a block in another task. Interrupting the caller must neither cancel nor close it."""
    try:
        async with world.manager:
            if stay:
                await world.check_stays_open(stay)
    except anyio.get_cancelled_exc_class():
        world.problems.append("6: another block was cancelled")
        raise
    except Exception as error:
        world.check(f"another block raised {error!r}", world.may_raise(error, starting=True))


async def enter_briefly(world):
    await enter_concurrently(world, stay=0)


async def enter_and_leave_at_once(world):
    async with world.manager as connection:
        world.check("the block was entered without a connection", connection is not None)


async def start_and_run_out_of_time(world):
    try:
        await world.checked_start(2 * world.unit)
    except StartTimeoutError:
        failed = isinstance(world.manager.exception, StartTimeoutError)
        world.check("the attempt ran out of time, but has not failed", failed or world.interruptions)
        raise


async def run_directly(world):
    def started(_connection):
        world.is_started = True

    with suppress(ConnectionStoppedError, ConnectionLostError):
        await world.manager.run(task_status=SimpleNamespace(started=started))


async def restart(world):
    await world.checked_stop()
    await world.checked_start()


async def start_then_stop(world):
    await world.checked_start()
    await world.checked_stop()


async def run_in_a_group(world):
    async with anyio.create_task_group() as tg:
        await tg.start(world.manager.run)
        tg.cancel_scope.cancel()
    world.check("3: run() ended, but the owner task is alive", world.is_over())


async def wait_closed(world):
    await world.checked_wait_closed()


def scenario(caller, *, opening=None, closing=None, **options):
    stages = {"opening": opening or seconds(0), "closing": closing or seconds(0)}
    return Scenario(caller, **stages, **options)


def policy(unit):
    return ReconnectPolicy(initial_delay=1.5 * unit, jitter=0)


NO_CONNECTION = (NotConnectedError, ConnectionLostError)


def reopening(caller, prepare, **options):
    return scenario(
        caller,
        prepare=prepare,
        reconnect=policy,
        is_reopening=True,
        bound=20,
        allowed=NO_CONNECTION if caller is wait_open else (),
        **options,
    )


def session_scenario(caller, **options):
    # If the server ends during the handshake, the SDK decides which exception is raised.
    return Scenario(caller, create_manager=RecordingSessionManager, allowed=Exception, **options)


def failing(_unit):
    return fail


SCENARIOS = {
    "start": scenario(start),
    "start with a failing opening": scenario(start, opening=failing, outcome=Boom, allowed=Boom),
    "start joined by two": scenario(start, others=[start_concurrently, start_concurrently]),
    "failing start joined by one": scenario(
        start, opening=failing, others=[start_concurrently], outcome=Boom, allowed=Boom
    ),
    "start with a timeout": scenario(
        start_and_run_out_of_time,
        opening=seconds(9),
        bound=2,
        outcome=StartTimeoutError,
        allowed=StartTimeoutError,
    ),
    "start with a start_timeout": scenario(
        start,
        opening=seconds(9),
        bound=2,
        start_timeout=lambda unit: 2 * unit,
        outcome=StartTimeoutError,
        allowed=StartTimeoutError,
    ),
    "start within its start_timeout": scenario(
        start_and_stay, start_timeout=lambda unit: 2 * unit, bound=1
    ),
    "start at the last moment": scenario(
        start_and_stay,
        opening=seconds(2),
        bound=2,
        is_forced=True,  # if the timeout expires before the owner wakes up
        start_timeout=lambda unit: 2 * unit,
        allowed=StartTimeoutError,
    ),
    "start with a shielded opening": scenario(
        start,
        opening=seconds(3, shield=True),
        bound=3,
        is_forced=True,
        start_timeout=lambda unit: 2 * unit,
        outcome=StartTimeoutError,
        allowed=StartTimeoutError,
    ),
    "start with an opening that fails if it is cancelled": scenario(
        start,
        opening=fail_if_cancelled,
        bound=3,
        fails_if_cancelled=True,
        allowed=Boom,
    ),
    "queued start that is stopped": scenario(
        start_a_second_later,
        prepare=start_beforehand,
        closing=seconds(3),
        others=[stop_concurrently, stop_two_seconds_later],
        bound=5,
        outcome=ConnectionStoppedError,
        allowed=ConnectionStoppedError,
    ),
    "stop": scenario(stop, prepare=start_beforehand),
    "stop with a slow close": scenario(stop, prepare=start_beforehand, closing=seconds(3), bound=3),
    "stop with a hanging close": scenario(
        stop_within(2), prepare=start_beforehand, closing=seconds(9), bound=2, is_forced=True
    ),
    "stop with a shielded close": scenario(
        stop_within(1),
        second_cancellation_ends_wait=True,
        prepare=start_beforehand,
        closing=in_two_steps,
        bound=3,
        is_forced=True,
    ),
    "stop with a failing close": scenario(stop, prepare=start_beforehand, closing=failing),
    "stop while opening": scenario(
        stop_while_opening,
        opening=seconds(9),
        others=[start_concurrently],
        bound=9,
        stop_bound=0,
        allowed=ConnectionStoppedError,
    ),
    "async with": scenario(enter, only_blocks=True),
    "async with in two tasks": scenario(
        enter_and_leave_at_once, others=[enter_concurrently], bound=1, only_blocks=True
    ),
    "async with after a block that leaves at once": scenario(
        enter_and_leave_at_once, others=[enter_briefly], only_blocks=True
    ),
    "async with in three tasks, and a slow close": scenario(
        enter_and_leave_at_once,
        others=[enter_concurrently, enter_concurrently],
        closing=seconds(3),
        bound=4,
        only_blocks=True,
    ),
    "restart": scenario(restart, prepare=start_beforehand),
    "restart with a slow close": scenario(
        restart, prepare=start_beforehand, closing=seconds(3), bound=3
    ),
    "start during a slow close": scenario(
        start,
        prepare=start_beforehand,
        closing=seconds(3),
        others=[stop_concurrently],
        bound=6,
        allowed=ConnectionStoppedError,
    ),
    "start and stop": scenario(start_then_stop),
    "run": scenario(run_in_a_group, closing=seconds(1), bound=1, is_forced=True, has_task_group=True),
    "run with a shielded close": scenario(
        run_directly,
        others=[stop_two_seconds_later],
        closing=in_two_steps,
        bound=5,
        is_forced=True,
        second_cancellation_ends_wait=True,
    ),
    "wait_closed": scenario(
        wait_closed, prepare=start_beforehand, others=[stop_two_seconds_later], bound=2
    ),
    "wait_closed with a slow close": scenario(
        wait_closed,
        prepare=start_beforehand,
        others=[stop_two_seconds_later],
        closing=seconds(1),
        bound=3,
    ),
    "loss with a hanging close": scenario(
        lose_and_wait, prepare=start_beforehand, closing=seconds(99), bound=30, is_forced=True
    ),
    "start while a lost connection closes": reopening(start, lose_beforehand, closing=seconds(3)),
    "start during the delay": reopening(start, wait_for_delay),
    "start while reopening": reopening(start, wait_for_attempt, opening=seconds(3)),
    "wait_open while a lost connection closes": reopening(
        wait_open, lose_beforehand, closing=seconds(3)
    ),
    "wait_open during the delay": reopening(wait_open, wait_for_delay),
    "wait_open while reopening": reopening(wait_open, wait_for_attempt, opening=seconds(3)),
    "stop while a lost connection closes": reopening(
        stop, lose_beforehand, closing=seconds(3), stop_bound=3
    ),
    "stop during the delay": reopening(stop, wait_for_delay, stop_bound=0),
    "stop while reopening": reopening(stop, wait_for_attempt, opening=seconds(3), stop_bound=0),
    "start through a failure": scenario(start, opening=fail_once, reconnect=policy, bound=20),
    "async with through a loss": scenario(
        enter_and_lose, reconnect=policy, allowed=NO_CONNECTION, only_blocks=True, bound=20
    ),
    "start of a session": session_scenario(start),
    "stop of a session": session_scenario(stop, prepare=start_beforehand),
    "session": session_scenario(enter),
}
