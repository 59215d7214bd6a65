"""Tests for the idle timeout and `discard()` of `ConnectionPool`, and for pools that start again."""

import asyncio
import math

import anyio
import pytest
from anyio.lowlevel import checkpoint
from pooling import DAY, Servers, User, lasting, leave, running, slots, use, users
from probe import Stage, raises
from proof import clocks
from proof.clocks import in_virtual_time
from reopening import AT_ONCE, Call, in_turn, settle

from ownertask import (
    ConnectionGroup,
    ConnectionLostError,
    ConnectionManager,
    ConnectionPool,
    ConnectionState,
    NotConnectedError,
    ReconnectPolicy,
)

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


# The idle timeout.


@in_virtual_time
async def test_a_connection_is_closed_when_it_was_unused_for_the_idle_timeout():
    servers = Servers()
    async with running(servers, idle_timeout=10) as (pool, tg):
        [user] = await users(tg, pool, "a")
        await anyio.sleep(1000)
        assert servers.of(user.connection)
        user.leave()
        await anyio.sleep(9.9)
        assert servers.of(user.connection)
        await anyio.sleep(0.2)
        assert servers.last("a").state is CLOSED
        assert pool.stats() == (0, 0, 0, 1, 0)
        assert await use(pool, "a") is not user.connection


@in_virtual_time
async def test_the_default_idle_timeout_is_five_minutes():
    servers = Servers()
    async with running(servers) as (pool, _):
        await use(pool, "a")
        await anyio.sleep(299)
        assert servers.last("a").state is OPEN
        await anyio.sleep(2)
        assert servers.last("a").state is CLOSED


@in_virtual_time
async def test_each_use_starts_the_idle_timeout_again():
    servers = Servers()
    async with running(servers, idle_timeout=10) as (pool, tg):
        connection = await use(pool, "a")
        for _ in range(5):
            await anyio.sleep(9)
            assert await use(pool, "a") is connection
        await anyio.sleep(9)
        [first, second] = await users(tg, pool, "a", "a")
        first.leave()
        await anyio.sleep(100)
        assert servers.of(connection)
        second.leave()
        await anyio.sleep(9.9)
        assert servers.of(connection)
        await anyio.sleep(0.2)
        assert not servers.alive


@in_virtual_time
async def test_each_key_has_its_own_idle_time():
    servers = Servers()
    async with running(servers, idle_timeout=10) as (pool, _):
        for key in range(10):
            await use(pool, key)
            await anyio.sleep(1)
        await use(pool, 4)
        await anyio.sleep(0.5)
        for key in (1, 2, 3, 5, 6, 7, 8, 9, 4):
            assert {probe.name for probe in servers.alive} >= {f"server {key}"}
            await anyio.sleep(0.7)
            if key == 1:
                assert len(servers.alive) == 8
            await anyio.sleep(0.3)
        await anyio.sleep(1)
        assert not servers.alive


@in_virtual_time
async def test_an_idle_timeout_of_none_keeps_connections_open():
    for idle_timeout in (None, math.inf):
        servers = Servers()
        async with running(servers, idle_timeout=idle_timeout) as (pool, _):
            connection = await use(pool, "a")
            await anyio.sleep(DAY)
            assert await use(pool, "a") is connection


async def test_an_idle_timeout_of_zero_closes_a_connection_after_its_last_user():
    servers = Servers()
    async with running(servers, idle_timeout=0) as (pool, tg):
        first, second = await users(tg, pool, "a", "a")
        await leave(first)
        assert servers.of(second.connection)
        await leave(second)
        assert servers.last("a").state is CLOSED
        assert pool.stats().open == 0


async def test_an_idle_timeout_of_zero_gives_each_of_many_quick_users_a_live_connection():
    for steps in range(12):
        servers = Servers()
        async with running(servers, idle_timeout=0, max_open=1) as (pool, tg):
            [first] = await users(tg, pool, "a")
            first.leave()
            for _ in range(steps):
                await checkpoint()
            async with pool.acquire("a") as connection:
                assert servers.of(connection)
                await settle()
                assert servers.of(connection)
            await settle()
            await slots(pool, tg, 1)


@in_virtual_time
async def test_G6_a_user_that_arrives_when_the_idle_time_runs_out_gets_a_live_connection():
    for first in ("user", "pool"):
        for max_open in (None, 1):
            for closing in (0, 1):
                for steps in range(12):
                    await use_at_the_last_moment(first, max_open, closing, steps)


async def use_at_the_last_moment(first, max_open, closing, steps):
    servers = Servers(closing=lasting(closing))
    async with running(servers, idle_timeout=10, max_open=max_open) as (pool, tg):
        live = []

        async def use_later(due):
            await anyio.sleep_until(due)
            for _ in range(steps):
                await checkpoint()
            async with pool.acquire("a") as connection:
                live.append(servers.of(connection))
                await anyio.sleep(5)
                live.append(servers.of(connection))

        async with pool.acquire("a"):
            due = anyio.current_time() + 10
            if first == "user":
                tg.start_soon(use_later, due)
                await settle()
        if first == "pool":
            await settle()
            tg.start_soon(use_later, due)
        await anyio.sleep(8)
        assert servers.last("a").state is OPEN
        await anyio.sleep(9)
        assert live == [servers.last("a")] * 2
        await anyio.sleep(12)
        assert not servers.alive


@in_virtual_time
async def test_G6_users_of_many_keys_that_arrive_when_the_idle_time_runs_out_get_live_connections():
    servers = Servers()
    async with running(servers, idle_timeout=10, max_open=5) as (pool, tg):
        for key in range(5):
            await use(pool, key)
        await anyio.sleep(10)
        late = [User(tg, pool, key) for key in (0, 1, 2, 3, 4)]
        await anyio.sleep(1)
        assert all(servers.of(user.connection) for user in late)
        assert pool.stats().open == 5


@in_virtual_time
async def test_a_connection_in_use_is_not_closed_by_the_timer_of_its_earlier_idle_time():
    servers = Servers()
    async with running(servers, idle_timeout=10) as (pool, tg):
        await use(pool, "a")
        await anyio.sleep(5)
        [user] = await users(tg, pool, "a")
        await anyio.sleep(100)
        assert servers.of(user.connection)


# One timer.


def count_jumps():
    """Returns a list that grows each time the virtual clock of the running event loop jumps."""
    jumps = []
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio

        clock = trio.lowlevel.current_clock()
        jump = clock.jump

        def counted(seconds):
            jumps.append(seconds)
            jump(seconds)

        clock.jump = counted
    else:
        select = loop.jumping.select

        def counted(timeout=None):
            before = loop.time()
            ready = select(timeout)
            if loop.time() > before:
                jumps.append(loop.time() - before)
            return ready

        loop.jumping.select = counted
    return jumps


@in_virtual_time
async def test_a_pool_without_idle_connections_does_not_wake_up():
    servers = Servers()
    async with running(servers, idle_timeout=1) as (pool, tg):
        jumps = count_jumps()
        await anyio.sleep(DAY)
        assert len(jumps) <= 2
        await users(tg, pool, *range(20))
        jumps.clear()
        await anyio.sleep(DAY)
        assert len(jumps) <= 2


@in_virtual_time
async def test_a_pool_with_idle_connections_wakes_up_only_to_close_one():
    servers = Servers()
    async with running(servers, idle_timeout=100) as (pool, _):
        await use(pool, "other")
        jumps = count_jumps()
        for _ in range(1000):
            await use(pool, "a")
            await anyio.sleep(1)
        assert len(jumps) <= 1000 + 20  # about one in each idle time
        await anyio.sleep(200)
        assert not servers.alive
        for key in range(50):
            await use(pool, key)
            await anyio.sleep(1)
        jumps.clear()
        await anyio.sleep(DAY)
        assert not servers.alive
        assert len(jumps) <= 50 + 3
        for key in range(50):
            await use(pool, key)
        jumps.clear()
        await anyio.sleep(DAY)
        assert not servers.alive
        assert len(jumps) <= 5 + 50  # the times at which they became idle may differ a little


@in_virtual_time
async def test_a_pool_has_one_timer_for_all_its_keys():
    timers = set()
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        from conftest import all_tasks

        def pending():
            return len(all_tasks())
    else:
        call_at = loop.call_at

        def noted(*args, **options):
            handle = call_at(*args, **options)
            timers.add(handle)
            return handle

        loop.call_at = noted

        def pending():
            return sum(not handle.cancelled() and handle.when() > loop.time() for handle in timers)

    servers = Servers()
    async with running(servers, idle_timeout=100) as (pool, tg):
        inside = await users(tg, pool, *range(50))
        for user in inside[25:]:
            await leave(user)
            await use(pool, user.connection and 30)
        before = pending()
        for user in inside[:25]:
            await leave(user)
        await use(pool, 30)
        await settle()
        assert pool.stats().idle == 50
        # On trio, a timer is a task. The 25 users were tasks, too.
        assert pending() <= before + 1


# Eviction and the idle timeout.


@in_virtual_time
async def test_a_connection_whose_idle_time_runs_out_while_it_makes_room_is_closed_once():
    servers = Servers()
    servers.closings["a"] = lasting(20)
    async with running(servers, idle_timeout=10, max_open=1) as (pool, tg):
        await use(pool, "a")
        await anyio.sleep(9)
        user = User(tg, pool, "b")
        await anyio.sleep(19)
        assert user.waits
        await anyio.sleep(2)
        assert servers.of(user.connection)
        assert len(servers.last("a").exited) == 1
        await leave(user)
        await slots(pool, tg, 1)


@in_virtual_time
async def test_users_at_the_bound_wait_until_an_idle_connection_is_closed():
    servers = Servers(closing=lasting(5))
    async with running(servers, idle_timeout=10, max_open=2) as (pool, tg):
        await users(tg, pool, "x")
        await use(pool, "a")
        await anyio.sleep(12)
        assert servers.last("a").state is CLOSING
        b, a = await users(tg, pool, "b", "a")
        assert b.waits
        await anyio.sleep(4)
        assert b.is_inside
        assert a.waits
        b.leave()
        await anyio.sleep(6)
        assert a.is_inside
        assert servers.asked == ["x", "a", "b", "a"]


@in_virtual_time
async def test_a_user_that_arrives_while_an_idle_connection_closes_gets_another():
    servers = Servers()
    servers.closings["a"] = lasting(100)
    async with running(servers, idle_timeout=10) as (pool, _):
        old = await use(pool, "a")
        await anyio.sleep(11)
        assert servers.last("a").state is CLOSING
        with anyio.fail_after(1):
            async with pool.acquire("a") as fresh:
                assert fresh is not old
                assert servers.of(fresh)
        servers.closings.clear()


# discard().


async def test_discard_closes_an_unused_connection_before_it_returns():
    closing = Stage()
    servers = Servers(closing=closing)
    async with running(servers) as (pool, tg):
        old = await use(pool, "a")
        discarding = Call(tg, pool.discard, "a")
        await closing.reached.wait()
        await settle()
        assert not discarding.is_over
        assert pool.stats().idle == 0
        [user] = await users(tg, pool, "a")  # does not wait for the old one
        assert user.is_inside
        assert user.connection is not old
        closing.let_go.set()
        await settle()
        assert discarding.is_over
        assert discarding.error is None
        assert len(servers.alive) == 1
        assert servers.of(user.connection)


async def test_discard_lets_the_users_of_a_connection_finish():
    servers = Servers()
    async with running(servers, idle_timeout=None) as (pool, tg):
        first, second = await users(tg, pool, "a", "a")
        for _ in range(2):
            await pool.discard("a")
            [fresh] = await users(tg, pool, "a")
            assert servers.of(first.connection) is not servers.of(fresh.connection)
            await leave(fresh)
        await leave(first)
        assert servers.of(second.connection)
        await leave(second)
        assert servers.probes["a"][0].state is CLOSED
        assert servers.asked == ["a", "a", "a"]
        assert [probe.state for probe in servers.probes["a"]] == [CLOSED, CLOSED, OPEN]
        assert pool.stats() == (1, 1, 0, 3, 0)


async def test_discard_while_a_connection_opens_gives_later_users_another():
    opening = Stage()
    servers = Servers()
    servers.openings["a"] = opening
    async with running(servers, idle_timeout=None) as (pool, tg):
        [early] = await users(tg, pool, "a")
        await pool.discard("a")
        del servers.openings["a"]
        [late] = await users(tg, pool, "a")
        assert late.is_inside
        assert servers.asked == ["a", "a"]
        opening.let_go.set()
        await settle()
        assert servers.of(early.connection)
        assert early.connection is not late.connection
        await leave(early, late)
        assert [probe.state for probe in servers.probes["a"]] == [CLOSED, OPEN]


@in_turn("end", ["cancelled", "refused"])
async def test_a_discarded_attempt_that_does_not_succeed_does_not_affect_later_users(end):
    opening = Stage()
    servers = Servers()

    async def refuse():
        await opening()
        raise OSError("refused")

    servers.openings["a"] = refuse
    async with running(servers, max_open=2) as (pool, tg):
        [early] = await users(tg, pool, "a")
        await pool.discard("a")
        servers.openings.clear()
        [late] = await users(tg, pool, "a")
        if end == "cancelled":
            early.scope.cancel()
        else:
            opening.let_go.set()
        await settle()
        assert early.is_over
        assert (early.error is None) is (end == "cancelled")
        assert late.is_inside
        assert await use(pool, "a") is late.connection
        await leave(late)
        await slots(pool, tg, 2)


async def test_discard_of_a_queued_or_unknown_key_changes_nothing():
    servers = Servers()
    async with running(servers, max_open=1) as (pool, tg):
        [first] = await users(tg, pool, "a")
        queued, behind = await users(tg, pool, "b", "c")
        await pool.discard("b")
        await pool.discard("unknown")
        assert pool.stats() == (1, 0, 2, 1, 0)
        await leave(first)
        assert queued.is_inside
        await leave(queued)
        assert behind.is_inside
        assert servers.asked == ["a", "b", "c"]


async def test_discard_of_a_lost_connection_changes_nothing():
    servers = Servers()
    async with running(servers) as (pool, tg):
        [old] = await users(tg, pool, "a")
        servers.last("a").connection_lost(OSError("gone"))
        await pool.discard("a")
        await settle()
        await pool.discard("a")
        fresh = await use(pool, "a")
        await leave(old)
        assert await use(pool, "a") is fresh
        assert servers.asked == ["a", "a"]


async def test_a_user_may_discard_the_key_that_it_uses():
    servers = Servers()
    async with running(servers) as (pool, _):
        async with pool.acquire("a") as connection:
            await pool.discard("a")
            await settle()
            assert servers.of(connection)
        await settle()
        assert not servers.alive


@in_turn("shield", [False, True])
async def test_a_cancelled_discard_loses_no_slot(shield):
    closing = Stage(shield=shield)
    servers = Servers()
    servers.closings["a"] = closing
    async with running(servers, max_open=1) as (pool, tg):
        old = await use(pool, "a")
        discarding = Call(tg, pool.discard, "a")
        await closing.reached.wait()
        discarding.scope.cancel()
        [user] = await users(tg, pool, "a")
        assert user.waits is shield
        closing.let_go.set()
        await settle()
        assert discarding.is_over
        assert discarding.error is None
        assert servers.of(user.connection)
        assert user.connection is not old
        await leave(user)
        await slots(pool, tg, 1)


async def test_a_discard_that_is_cancelled_at_once_still_discards():
    for key in ("a", "b"):
        servers = Servers()
        async with running(servers, max_open=1) as (pool, tg):
            old = await use(pool, "a")
            with anyio.CancelScope() as scope:
                scope.cancel()
                await pool.discard("a")
            assert servers.of(await use(pool, key))
            assert servers.of(old) is None
            await slots(pool, tg, 1)


@in_virtual_time
async def test_discard_while_an_idle_connection_closes_waits_for_nothing_else():
    servers = Servers()
    servers.closings["a"] = lasting(5)
    async with running(servers, idle_timeout=10, max_open=1) as (pool, tg):
        await use(pool, "a")
        await anyio.sleep(12)
        await pool.discard("a")
        await anyio.sleep(5)
        assert len(servers.last("a").exited) == 1
        await slots(pool, tg, 1)


# Members of all kinds.


@in_virtual_time
async def test_the_idle_timeout_ends_a_manager_that_tries_again_and_again():
    servers = Servers(reconnect=ReconnectPolicy(initial_delay=1, multiplier=1, jitter=0))
    async with running(servers, idle_timeout=10, max_open=1) as (pool, tg):
        await use(pool, "a")
        servers.openings["a"] = raises(OSError("refused"))
        servers.last("a").connection_lost(OSError("gone"))
        await anyio.sleep(100)
        assert not servers.alive
        assert pool.stats().open == 0
        attempts = len(servers.last("a").entered)
        assert 5 < attempts < 15
        await slots(pool, tg, 1)


@in_virtual_time
async def test_a_manager_that_opened_its_connection_again_is_closed_after_the_idle_timeout():
    servers = Servers(reconnect=AT_ONCE)
    async with running(servers, idle_timeout=10) as (pool, tg):
        [user] = await users(tg, pool, "a")
        for _ in range(3):
            servers.last("a").connection_lost(OSError("gone"))
            await anyio.sleep(1)
        assert servers.last("a").state is OPEN
        await leave(user)
        await anyio.sleep(9)
        assert servers.last("a").state is OPEN
        await anyio.sleep(2)
        assert servers.last("a").state is CLOSED
        assert servers.asked == ["a"]


async def test_discard_ends_a_manager_with_a_policy_for_good():
    servers = Servers(reconnect=AT_ONCE)
    async with running(servers) as (pool, tg):
        [user] = await users(tg, pool, "a")
        await pool.discard("a")
        servers.last("a").connection_lost(OSError("gone"))
        await settle()
        fresh = await use(pool, "a")
        await leave(user)
        assert servers.probes["a"][0].state in (CLOSED, FAILED)
        assert servers.of(fresh) is servers.probes["a"][1]


async def test_a_pool_of_groups():
    servers = Servers()

    def group(tenant):
        return ConnectionGroup({name: servers(f"{tenant} {name}") for name in ("files", "mail")})

    async with ConnectionPool(group, max_open=1) as pool:
        async with pool.acquire("alice") as alice:
            assert set(alice) == {"files", "mail"}
            assert alice["mail"] is servers.last("alice mail").connection
            servers.last("alice mail").connection_lost(OSError("gone"))
            await settle()
            assert set(alice) == {"files"}
        async with pool.acquire("alice") as same:
            assert same is alice  # a group that lost a member is still open
        async with pool.acquire("bob") as bob:
            assert set(bob) == {"files", "mail"}
            assert len(servers.alive) == 2
            assert servers.last("alice files").state is CLOSED
        await pool.discard("bob")
        assert not servers.alive
        await use(pool, "carol")
    assert not servers.alive


async def test_a_pool_in_a_group():
    servers = Servers()
    pool = ConnectionPool(servers)
    async with ConnectionGroup({"tenants": pool}) as group:
        assert group["tenants"] is pool
        assert servers.of(await use(pool, "a"))
    assert not servers.alive
    with pytest.raises(NotConnectedError):
        await use(pool, "a")


async def test_a_pool_of_pools():
    servers = Servers()
    async with ConnectionPool(lambda _: ConnectionPool(servers, max_open=1), max_open=1) as outer:
        for key in ("a", "b"):
            async with outer.acquire(key) as inner, inner.acquire(key) as connection:
                assert servers.of(connection) is servers.last(key)
        assert len(servers.alive) == 1
    assert not servers.alive


# Pools that are started again.


async def test_a_pool_that_is_started_again_opens_its_connections_again():
    servers = Servers()
    async with running(servers, max_open=1, idle_timeout=0) as (pool, tg):
        connections = set()
        for _ in range(3):
            [user] = await users(tg, pool, "a")
            connections.add(user.connection)
            await pool.stop()
            assert not servers.alive
            assert pool.stats().open == 0
            await pool.start()
        assert len(connections) == 3
        await use(pool, "b")
        assert pool.stats().opened == 4


async def test_a_user_of_an_earlier_run_releases_nothing_of_a_later_one():
    servers = Servers()
    async with running(servers, max_open=1, idle_timeout=0) as (pool, tg):
        [old] = await users(tg, pool, "a")
        await pool.stop()
        await pool.start()
        fresh, waiting = await users(tg, pool, "a", "b")
        await leave(old)
        assert old.error is None
        assert servers.of(fresh.connection)
        assert waiting.waits
        await leave(fresh)
        assert waiting.is_inside
        await leave(waiting)
        await slots(pool, tg, 1)


def test_a_pool_works_in_one_event_loop_after_another(anyio_backend):
    servers = Servers()
    pool = ConnectionPool(servers, max_open=1, idle_timeout=60)
    name, options = anyio_backend

    async def cycle():
        async with pool:
            assert servers.of(await use(pool, "a"))
            async with pool.acquire("b") as connection:
                assert servers.of(connection)
        with pytest.raises(NotConnectedError):
            await use(pool, "a")

    for number in (1, 2, 3):
        anyio.run(cycle, backend=name, backend_options=options)
        assert not servers.alive
        assert pool.stats() == (0, 0, 0, 2 * number, 0)


@pytest.mark.parametrize("clock", clocks.CLOCKS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:.*the event loop:ResourceWarning")
def test_K8_a_pool_whose_event_loop_was_closed_works_in_another(clock):
    managers = []

    class Plain(ConnectionManager[object]):
        def open_connection(self):
            return servers(self.name).open_connection()

    servers = Servers()

    def opens(key):
        managers.append(Plain(name=str(key)))
        return managers[-1]

    pool = ConnectionPool(opens, max_open=1)
    old = []

    async def end_early(abandon):
        await pool.start()
        acquired = pool.acquire("a")
        await acquired.__aenter__()
        old.append(acquired)
        await abandon()

    clocks.run_and_abandon(end_early, clock=clock)
    assert pool.state is not OPEN
    assert pool.stats().open == 0

    async def go_on():
        with pytest.raises((NotConnectedError, ConnectionLostError)):  # trio reports a loss
            await use(pool, "a")
        await pool.discard("a")
        async with pool:
            for key in ("a", "b"):
                await use(pool, key)
            assert pool.stats().open == 1
            await old[0].__aexit__(None, None, None)  # does nothing
            assert pool.stats().idle == 1
            async with anyio.create_task_group() as tg:
                await slots(pool, tg, 1)
        assert all(manager.state is CLOSED for manager in managers[-2:])

    clocks.run(go_on, clock=clock)
