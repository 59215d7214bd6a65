"""What is swept: the ways to open and to close, slow, failing and racing."""

from contextlib import suppress

import anyio
from anyio.lowlevel import checkpoint
from proof.session import SessionHarbour
from proof.sweep import Boom, Scenario

from ownertask import ConnectionLostError, ConnectionStoppedError, StartTimeoutError


async def fail():
    await checkpoint()
    raise Boom("told to fail")


def seconds(duration, *, shield=False):
    """A stage that takes so many seconds."""

    def stage(unit):
        async def sleep():
            with anyio.CancelScope(shield=shield):
                await anyio.sleep(duration * unit)

        return sleep

    return stage


async def start(world):
    await world.started()


async def stop(world):
    await world.stopped()


async def stop_while_it_opens(world):
    await anyio.sleep(world.unit)
    await world.stopped()


def stop_within(timeout):
    async def stop(world):
        await world.stopped(timeout * world.unit)

    return stop


def start_within(timeout):
    async def start(world):
        await world.started(timeout * world.unit)

    return start


async def be_started(world):
    await world.started()


async def start_beside(world):
    """Another start, which no blow at the caller may disturb."""
    try:
        await world.started(by_other=True)
    except anyio.get_cancelled_exc_class():
        world.problems.append("6: another start was cancelled")
        raise
    except Exception:
        return
    await world.check_that_it_stays_open(1)


async def start_and_stay(world):
    await world.started()
    await world.check_that_it_stays_open(5)


async def start_a_second_later(world):
    await anyio.sleep(world.unit)
    await world.started()


async def lose_and_wait(world):
    world.lost.append(world.manager._life.run)
    world.manager.connection_lost()
    with world.bounded("wait_closed()", 30), suppress(ConnectionLostError):
        await world.manager.wait_closed()


async def stop_two_seconds_later(world):
    await anyio.sleep(2 * world.unit)
    await world.stopped()


async def stop_beside(world):
    await world.stopped()


async def enter(world):
    async with world.manager as connection:
        world.check("entered what is not open", connection is not None)
        await checkpoint()
    run = world.manager._life.run
    world.check("3: the block was left, and the owner lives", run is None or run.is_over)


async def restart(world):
    await world.stopped()
    await world.started()


async def start_then_stop(world):
    await world.started()
    await world.stopped()


async def run_in_a_group(world):
    async with anyio.create_task_group() as tg:
        await tg.start(world.manager.run)
        tg.cancel_scope.cancel()
    world.check("3: run() has ended, and the owner lives", world.is_over())


async def hold(world):
    await world.waited()


def scenario(caller, *, opening=None, closing=None, **options):
    stages = {"opening": opening or seconds(0), "closing": closing or seconds(0)}
    return Scenario(caller, **stages, **options)


def session_scenario(caller, **options):
    # What a session raises whose server goes while they shake hands is the SDK's affair.
    return Scenario(caller, create_manager=SessionHarbour, allowed=Exception, **options)


def failing(_unit):
    return fail


SCENARIOS = {
    "start": scenario(start),
    "start with a partial failure": scenario(start, opening=failing, outcome=Boom, allowed=Boom),
    "start joined by two": scenario(start, others=[start_beside, start_beside]),
    "start that fails joined by one": scenario(
        start, opening=failing, others=[start_beside], outcome=Boom, allowed=Boom
    ),
    "start without patience": scenario(
        start_within(2),
        opening=seconds(9),
        bound=2,
        outcome=StartTimeoutError,
        allowed=StartTimeoutError,
    ),
    "start of a manager without patience": scenario(
        start,
        opening=seconds(9),
        bound=2,
        start_timeout=lambda unit: 2 * unit,
        outcome=StartTimeoutError,
        allowed=StartTimeoutError,
    ),
    "start in time": scenario(start_and_stay, start_timeout=lambda unit: 2 * unit, bound=1),
    "start in the last moment": scenario(
        start_and_stay,
        opening=seconds(2),
        bound=2,
        is_forced=True,  # where the time is over before the owner has woken up
        start_timeout=lambda unit: 2 * unit,
        allowed=StartTimeoutError,
    ),
    "start behind a shield": scenario(
        start,
        opening=seconds(3, shield=True),
        bound=3,
        is_forced=True,
        start_timeout=lambda unit: 2 * unit,
        outcome=StartTimeoutError,
        allowed=StartTimeoutError,
    ),
    "start that is stopped behind a slow close": scenario(
        start_a_second_later,
        prepare=be_started,
        closing=seconds(3),
        others=[stop_beside, stop_two_seconds_later],
        bound=5,
        outcome=ConnectionStoppedError,
        allowed=ConnectionStoppedError,
    ),
    "stop": scenario(stop, prepare=be_started),
    "stop of a slow close": scenario(stop, prepare=be_started, closing=seconds(3), bound=3),
    "stop of a hanging close": scenario(
        stop_within(2), prepare=be_started, closing=seconds(9), bound=2, is_forced=True
    ),
    "stop of a shielded close": scenario(
        stop_within(1), prepare=be_started, closing=seconds(3, shield=True), bound=3, is_forced=True
    ),
    "stop of a failing close": scenario(stop, prepare=be_started, closing=failing),
    "stop while it opens": scenario(
        stop_while_it_opens,
        opening=seconds(9),
        others=[start_beside],
        bound=9,
        stop_bound=0,
        allowed=ConnectionStoppedError,
    ),
    "async with": scenario(enter),
    "restart": scenario(restart, prepare=be_started),
    "restart of a slow close": scenario(restart, prepare=be_started, closing=seconds(3), bound=3),
    "start behind a slow close": scenario(
        start,
        prepare=be_started,
        closing=seconds(3),
        others=[stop_beside],
        bound=6,
        allowed=ConnectionStoppedError,
    ),
    "start and stop": scenario(start_then_stop),
    "run": scenario(run_in_a_group, closing=seconds(1), bound=1, is_forced=True, has_task_group=True),
    "hold": scenario(hold, prepare=be_started, others=[stop_two_seconds_later], bound=2),
    "hold with a slow close": scenario(
        hold, prepare=be_started, others=[stop_two_seconds_later], closing=seconds(1), bound=3
    ),
    "loss with a hanging close": scenario(
        lose_and_wait, prepare=be_started, closing=seconds(99), bound=30, is_forced=True
    ),
    "start of a session": session_scenario(start),
    "stop of a session": session_scenario(stop, prepare=be_started),
    "session": session_scenario(enter),
}
