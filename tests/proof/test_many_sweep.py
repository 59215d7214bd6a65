"""Interrupts a group or a pool, its caller and its members at every point; see `many.py`.

`nox -s proof` uses every interruption. Without it, most scenarios are only cancelled and stopped.
"""

from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint
from proof import clocks
from proof.many import AT_ONCE, INTERRUPTIONS, Scenario, fail, lasting, shielded, sweep
from proof.search import IS_LONG, clock
from proof.sweep import Boom, RecordingManager

from ownertask import (
    ConnectionGroup,
    ConnectionPool,
    ConnectionState,
    ConnectionStoppedError,
    StartTimeoutError,
)

# Groups.


def group_of(*stages, **options):
    """Returns a function that creates a group. Each stage opens a member, a pair also closes it."""

    def create(world):
        members = [world.manager(*(stage if isinstance(stage, tuple) else (stage,))) for stage in stages]
        return ConnectionGroup(dict(enumerate(members)), name="group", **options)

    return create


def group_with_a_policy(*stages, **options):
    def create(world):
        opening = iter(stages)

        async def open_next():
            await next(opening, checkpoint)()

        members = {"tries again": world.manager(open_next, reconnect=AT_ONCE), "other": world.manager()}
        return ConnectionGroup(members, name="group", **options)

    return create


def group_of_groups(world):
    inner = group_of(checkpoint, lasting(1))(world)
    return ConnectionGroup({"inner": inner, "other": world.manager()}, name="outer")


async def start(world):
    await world.started()


async def stop(world):
    await world.stopped()


async def stop_within_a_second(world):
    await world.stopped(1)


async def stop_while_opening(world):
    await anyio.sleep(0.5)
    await world.stopped()


async def add(world, *stages):
    """Adds a member, and checks the guarantees at the moment when the call ends."""
    group = world.holder
    manager = world.manager(*stages)
    try:
        with world.bounded("add()"):
            connection = await group.add("new", manager)
    except BaseException as error:
        world.check(f"add() raised {error!r}", world.may_raise(error))
        world.check("a member that could not be added is kept", "new" not in group.managers)
        world.check("add() raised, but the member is open", not manager.is_acquired)
        raise
    world.check("add() returned, but the group does not have it", group.managers["new"] is manager)
    is_open = manager.state is ConnectionState.OPEN
    world.check("add() returned something else", not is_open or manager.connection is connection)


async def remove(world, key=0):
    """Removes a member, and checks the guarantees at the moment when the call ends."""
    group = world.holder
    manager = group.managers[key]
    try:
        with world.bounded("remove()"):
            await group.remove(key)
    finally:
        world.check("remove() ended, but the group has the member", key not in group.managers)
        world.check("remove() ended, but the member is open", not manager.is_acquired)
    world.removed.append(manager)
    if manager.state is not ConnectionState.OPENING:
        await manager.start()  # it belongs to the caller now
        world.check("a removed member was not started", manager.state is ConnectionState.OPEN)
        await manager.stop()


async def remove_a_slow_member(world):
    await anyio.sleep(0.5)
    await remove(world)


async def add_and_remove(world):
    await add(world)
    await remove(world, "new")


async def restart_a_member(world):
    manager = world.managers[0]
    others = [other for other in world.managers if other is not manager]
    before = [len(other.entered) for other in others]
    await manager.stop()
    await manager.start()
    if not world.interruption:
        world.check("G4: others noticed", [len(other.entered) for other in others] == before)


async def lose_a_member_and_start_it(world):
    world.managers[0].connection_lost(Boom("lost"))
    await world.managers[0].start()


async def start_soon(world):
    await world.holder.start()


slow = lasting(1)
GROUPS = {
    "start": Scenario(start, group_of(checkpoint, slow), is_started=False, bound=1),
    "start, and some fail": Scenario(
        start, group_of(fail, lasting(9), (slow, slow), member_timeout=2), is_started=False, bound=3
    ),
    "start in turn": Scenario(
        start,
        group_of((slow, fail), fail, slow, max_concurrent_starts=1),
        is_started=False,
        bound=2,
    ),
    "start with a policy": Scenario(start, group_with_a_policy(fail, slow), is_started=False, bound=1),
    "start late with a policy": Scenario(
        start, group_with_a_policy(fail, lasting(9), member_timeout=2), is_started=False, bound=2
    ),
    "strict start": Scenario(start, group_of(checkpoint, slow, strict=True), is_started=False, bound=1),
    "strict start fails": Scenario(
        start,
        group_of((checkpoint, slow), (slow, slow), fail, strict=True),
        is_started=False,
        bound=1,
        allowed=(Boom,),
    ),
    "strict start is late": Scenario(
        start,
        group_of((checkpoint, slow), lasting(9), strict=True, member_timeout=2),
        is_started=False,
        bound=3,
        allowed=(StartTimeoutError,),
    ),
    "start of nested groups": Scenario(start, group_of_groups, is_started=False, bound=1),
    "stop": Scenario(stop, group_of((checkpoint, slow), (checkpoint, fail), checkpoint), bound=1),
    "stop of stubborn members": Scenario(
        stop_within_a_second,
        group_of(*[(checkpoint, shielded(2))] * 2, (checkpoint, lasting(9))),
        bound=2,
    ),
    "stop of nested groups": Scenario(stop, group_of_groups),
    "stop while opening": Scenario(
        stop_while_opening,
        group_of(checkpoint, slow, (shielded(1), slow)),
        others=[start_soon],
        is_started=False,
        bound=1,
        allowed=(ConnectionStoppedError,),
    ),
    "add": Scenario(partial(add), group_of(checkpoint)),
    "add a slow member": Scenario(lambda world: add(world, slow, slow), group_of(checkpoint), bound=2),
    "add a member that fails": Scenario(
        lambda world: add(world, fail), group_of(checkpoint), allowed=(Boom,)
    ),
    "add a member that is late": Scenario(
        lambda world: add(world, lasting(9)),
        group_of(checkpoint, member_timeout=2),
        bound=2,
        allowed=(StartTimeoutError,),
    ),
    "add to a strict group": Scenario(
        lambda world: add(world, fail), group_of(checkpoint, strict=True), allowed=(Boom,)
    ),
    "two calls add in turn": Scenario(
        lambda world: add(world, slow),
        group_of(checkpoint, max_concurrent_starts=1),
        others=[lambda world: world.holder.add("first", world.manager(slow))],
        bound=2,
    ),
    "remove": Scenario(remove, group_of((checkpoint, slow), checkpoint), bound=1),
    "remove while opening": Scenario(
        remove, group_of(slow, checkpoint), others=[start_soon], is_started=False, bound=1
    ),
    "remove a slow member": Scenario(
        remove_a_slow_member, group_of((slow, slow)), others=[start_soon], is_started=False, bound=1
    ),
    "add and remove": Scenario(add_and_remove, group_of(checkpoint)),
    "restart a member": Scenario(restart_a_member, group_of((checkpoint, slow), checkpoint), bound=1),
    "lose a member": Scenario(
        lose_a_member_and_start_it, group_of((checkpoint, slow), checkpoint), bound=1
    ),
}


# Pools.


def pool_of(*stages, **options):
    """Returns a function that creates a pool. A stage opens a connection, a pair also closes it."""

    def create(world):
        prepared = iter(stages)

        def open_one(_key):
            stage = checkpoint if world.is_calm else next(prepared, checkpoint)
            return world.manager(*(stage if isinstance(stage, tuple) else (stage,)))

        return ConnectionPool(open_one, name="pool", **options)

    return create


async def use(world, key, seconds=0.0, *, is_kept=True, **options):
    """Uses a connection, and checks that a user gets one that is open and is not closed."""
    async with world.holder.acquire(key, **options) as connection:
        manager = next(
            (
                each
                for each in world.managers
                if each.state is ConnectionState.OPEN and each.connection is connection
            ),
            None,
        )
        world.check("G6: a user got a connection that is not open", manager is not None)
        await anyio.sleep(seconds)
        closed = manager is not None and manager.state is not ConnectionState.OPEN
        may_close = not is_kept or not only_cancelled(world)
        world.check("a connection was closed while it was used", may_close or not closed)


def only_cancelled(world):
    return world.interruption is None or world.was_cancelled


def using(key, seconds=0.0, *, after=0.0, **options):
    async def user(world):
        await anyio.sleep(after)
        await use(world, key, seconds, **options)

    return user


def in_turn(*functions):
    async def call(world):
        for function in functions:
            await function(world)

    return call


async def discard(world, key="a"):
    is_used = world.holder.stats().idle == 0
    before = world.acquired
    try:
        await world.holder.discard(key)
    finally:
        if not is_used:
            world.check(
                "discard() ended, but an unused connection is open",
                not before or not before[0].is_acquired,
            )


async def stop_in_half_a_second(world):
    await anyio.sleep(0.5)
    await world.stopped()


async def wait(world):
    await anyio.sleep(3)


POOLS = {
    "acquire": Scenario(using("a", 1), pool_of(slow, max_open=1)),
    "acquire, and it fails": Scenario(using("a"), pool_of(fail, max_open=1), allowed=(Boom,)),
    "acquire an open connection": Scenario(in_turn(using("a"), using("a", 1)), pool_of(max_open=1)),
    "acquire with others": Scenario(
        using("a", 1), pool_of(slow, max_open=1), others=[using("a", 2), using("a", after=0.5)]
    ),
    "acquire, and it fails for all": Scenario(
        using("a"),
        pool_of((slow, slow), fail, max_open=1),
        others=[using("a"), using("a", after=0.5), using("b")],
        allowed=(Boom,),
    ),
    "acquire at the bound": Scenario(
        using("b", 1, after=0.1), pool_of((slow, slow), max_open=1), others=[using("a", 1)]
    ),
    "acquire at the bound with others": Scenario(
        using("b", 1, after=0.1),
        pool_of((checkpoint, slow), max_open=1),
        others=[using("a", 1), using("b", after=0.2), using("c", after=0.2), using("a", after=0.3)],
    ),
    "acquire with a timeout": Scenario(
        using("b", after=0.1, timeout=1),
        pool_of((checkpoint, slow), max_open=1),
        others=[using("a", 2)],
        allowed=(StartTimeoutError,),
    ),
    "acquire with a timeout while opening": Scenario(
        using("b", after=0.1, timeout=2),
        pool_of((checkpoint, slow), lasting(9), max_open=1),
        others=[using("a")],
        allowed=(StartTimeoutError,),
    ),
    "make room": Scenario(
        in_turn(using("a"), using("b"), using("c", 1)), pool_of(*[(checkpoint, slow)] * 2, max_open=2)
    ),
    "make room for several": Scenario(
        in_turn(using("a"), using("c", 1)),
        pool_of(*[(checkpoint, slow)] * 2, max_open=2),
        others=[using("b"), using("d", after=0.1), using("e", after=0.1)],
    ),
    "make room, and closing fails": Scenario(
        in_turn(using("a"), using("b")), pool_of((checkpoint, fail), max_open=1)
    ),
    "discard": Scenario(
        in_turn(using("a"), discard, using("a")), pool_of((checkpoint, slow), max_open=1)
    ),
    "discard a used connection": Scenario(
        in_turn(lambda _: anyio.sleep(0.1), discard, using("a", 1)),
        pool_of((checkpoint, slow), max_open=2),
        others=[using("a", 1), using("a", 2)],
    ),
    "discard while opening": Scenario(
        in_turn(lambda _: anyio.sleep(0.1), discard, using("a", 1)),
        pool_of(slow, max_open=2),
        others=[using("a", 1)],
    ),
    "idle": Scenario(
        in_turn(using("a"), wait, using("a", 2)), pool_of((checkpoint, slow), max_open=1, idle_timeout=2)
    ),
    "used in the tick of the idle time": Scenario(
        in_turn(using("a"), lambda _: anyio.sleep(2), using("a", 2)),
        pool_of(max_open=1, idle_timeout=2),
        others=[using("a", 1, after=2)],
    ),
    "not kept": Scenario(
        in_turn(using("a"), using("a")), pool_of((checkpoint, slow), max_open=1, idle_timeout=0)
    ),
    "stop": Scenario(
        stop_in_half_a_second,
        pool_of((checkpoint, slow), (slow, slow), max_open=2),
        others=[using("a", 3, is_kept=False), using("b"), using("c", after=0.1)],
        allowed=(ConnectionStoppedError,),
    ),
    "stop with idle connections": Scenario(
        in_turn(using("a"), using("b"), stop), pool_of(*[(checkpoint, slow)] * 2)
    ),
    "a user of a stopped pool": Scenario(
        using("b", after=0.1),
        pool_of((checkpoint, slow), slow, max_open=1),
        others=[using("a", 0.2), stop_in_half_a_second],
        allowed=(ConnectionStoppedError,),
    ),
}

CANCELLATIONS = INTERRUPTIONS[:2]
QUICK = [*CANCELLATIONS, "stop_now"]


@pytest.mark.parametrize("name", list(GROUPS))
@clock
def test_G3_a_group_leaves_nothing_wherever_it_is_interrupted(name, clock, record_property):
    record_property("runs of groups", run_sweep(GROUPS[name], clock))


for scenario in POOLS.values():
    scenario.bound = 1.0  # for stop(), while a connection takes a second to close


@pytest.mark.parametrize("name", list(POOLS))
@clock
def test_G5_a_pool_loses_no_slot_wherever_it_is_interrupted(name, clock, record_property):
    record_property("runs of pools", run_sweep(POOLS[name], clock))


@pytest.mark.parametrize("limit", [None, 1])
@clock
def test_G3_a_member_that_is_removed_in_any_tick_of_start_stays_closed(clock, limit):
    async def main():
        for tick in range(20):
            manager = RecordingManager(checkpoint, checkpoint)
            group = ConnectionGroup({"removed": manager}, max_concurrent_starts=limit)
            async with anyio.create_task_group() as tg:
                tg.start_soon(group.start)
                for _ in range(tick):
                    await checkpoint()
                await group.remove("removed")
            assert not manager.is_acquired, tick
            await group.stop()
            assert not manager.is_acquired, tick
            await manager.start()
            await manager.stop()

    clocks.run(main, clock=clock)


def run_sweep(scenario, clock):
    async def main():
        if IS_LONG:
            return await sweep(scenario)
        points = [("caller", "before"), ("caller", "after"), ("holder", "before"), ("member", "before")]
        if clock == "eager":
            points = points[:2]
        return await sweep(scenario, interruptions=QUICK, points=points)

    runs, failures = clocks.run(main, clock=clock)
    assert runs > 4
    shown = [f"{plan}: {problems}" for plan, problems in failures.items()][:9]
    assert not failures, f"{len(failures)} of {runs} runs\n" + "\n".join(shown)
    return runs
