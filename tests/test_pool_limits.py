"""Tests for `max_open` of `ConnectionPool`: slots, the order of waiting users, and eviction."""

import random

import anyio
import pytest
from anyio.lowlevel import checkpoint
from pooling import Servers, User, lasting, leave, running, slots, use, users
from probe import Stage, raises
from proof import clocks
from reopening import AT_ONCE, Call, in_turn, settle

from ownertask import ConnectionPool, ConnectionState, StartTimeoutError, StopTimeoutError

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


# The order.


async def test_users_that_wait_for_a_slot_are_served_in_the_order_in_which_their_keys_were_asked_for():
    servers = Servers()
    async with running(servers, max_open=2) as (pool, tg):
        inside = await users(tg, pool, "a", "b")
        waiting = await users(tg, pool, *"cdefgh")
        assert pool.stats().waiting == 6
        for number, user in enumerate(inside + waiting[:4]):
            await leave(user)
            assert servers.asked == list("abcdefgh"[: number + 3])
            assert waiting[number].is_inside
        assert pool.stats() == (2, 0, 0, 8, 0)


async def test_users_join_the_place_of_their_key_in_the_queue():
    servers = Servers()
    async with running(servers, max_open=1) as (pool, tg):
        [first] = await users(tg, pool, "a")
        b1, c, b2 = await users(tg, pool, "b", "c", "b")
        assert pool.stats().waiting == 3
        await leave(first)
        assert b1.connection is b2.connection is servers.last("b").connection
        b3, a = await users(tg, pool, "b", "a")
        assert b3.is_inside  # users of an open key overtake the queue
        await leave(b1, b2)
        assert c.waits
        await leave(b3)
        assert c.is_inside
        await leave(c)
        assert a.is_inside
        assert servers.asked == ["a", "b", "c", "a"]


@in_turn("leaving", [(0,), (1,), (0, 1), (2,), (0, 1, 2)])
async def test_a_cancelled_user_gives_up_the_place_of_its_key_only_if_it_was_alone(leaving):
    servers = Servers()
    async with running(servers, max_open=1) as (pool, tg):
        [first] = await users(tg, pool, "a")
        queued = await users(tg, pool, "b", "b", "c")
        for number in leaving:
            queued[number].scope.cancel()
        await settle()
        [late] = await users(tg, pool, "b")
        await settle()
        assert all(queued[number].is_over for number in leaving)
        rest = [user for number, user in enumerate(queued) if number not in leaving] + [late]
        assert pool.stats().waiting == len(rest)
        await leave(first)
        if leaving == (0, 1):  # the place of "b" was lost, and the late user is behind "c"
            assert [user.is_inside for user in rest] == [True, False]
            await leave(rest[0])
            assert late.is_inside
            assert servers.asked == ["a", "c", "b"]
        else:
            b_users = [user for user in rest if user is not queued[2]]
            assert all(user.is_inside for user in b_users)
            await leave(*b_users)
            assert servers.asked == ["a", "b", "c"] or 2 in leaving
        await leave(*rest)
        await slots(pool, tg, 1)


async def test_a_user_that_gives_up_after_its_timeout_loses_no_slot():
    servers = Servers()
    async with running(servers, max_open=1) as (pool, tg):
        [first] = await users(tg, pool, "a")
        with pytest.raises(StartTimeoutError) as raised:
            await use(pool, "b", 0.01)
        assert raised.value.timeout == 0.01
        assert pool.stats().waiting == 0
        await leave(first)
        assert servers.last("a").state is OPEN  # nobody needs the slot
        await slots(pool, tg, 1)


# Eviction.


async def test_the_least_recently_used_idle_connection_makes_room():
    servers = Servers()
    async with running(servers, max_open=3) as (pool, tg):
        for key in "abc":
            await use(pool, key)
        await use(pool, "a")
        [b] = await users(tg, pool, "b")
        await use(pool, "d")
        assert [servers.last(key).state for key in "abc"] == [OPEN, OPEN, CLOSED]
        await use(pool, "e")
        assert [servers.last(key).state for key in "bad"] == [OPEN, CLOSED, OPEN]
        await leave(b)
        await use(pool, "f")
        assert [servers.last(key).state for key in "bde"] == [OPEN, CLOSED, OPEN]


async def test_a_connection_counts_as_used_until_its_last_user_leaves():
    servers = Servers()
    async with running(servers, max_open=2) as (pool, tg):
        a, _, b = await users(tg, pool, "a", "a", "b")
        await leave(_)
        await leave(b)
        await leave(a)
        await use(pool, "c")
        assert [servers.last(key).state for key in "ab"] == [OPEN, CLOSED]


async def test_nothing_is_closed_while_there_is_room():
    servers = Servers()
    async with running(servers, max_open=5) as (pool, _):
        for key in "abcde":
            await use(pool, key)
        assert pool.stats() == (5, 5, 0, 5, 0)
        assert not any(probe.exited for [probe] in servers.probes.values())


async def test_each_waiting_key_closes_one_idle_connection():
    closing = Stage()
    servers = Servers()
    async with running(servers, max_open=4) as (pool, tg):
        for key in "abcd":
            await use(pool, key)
        servers.closing = closing
        waiting = await users(tg, pool, "e", "f", "e")
        assert [servers.last(key).state for key in "abcd"] == [CLOSING, CLOSING, OPEN, OPEN]
        assert all(user.waits for user in waiting)
        closing.let_go.set()
        await settle()
        assert all(user.is_inside for user in waiting)


async def test_a_user_of_a_key_that_is_being_closed_waits_for_another_connection():
    closing = Stage()
    servers = Servers()
    servers.closings["a"] = closing
    async with running(servers, max_open=1) as (pool, tg):
        old = await use(pool, "a")
        b, again = await users(tg, pool, "b", "a")
        assert servers.last("a").state is CLOSING
        closing.let_go.set()
        await settle()
        assert b.is_inside
        assert again.waits
        await leave(b)
        assert again.connection is not old
        assert servers.asked == ["a", "b", "a"]


@in_turn("then", ["nobody", "another", "the same"])
async def test_a_user_that_is_cancelled_while_room_is_made_loses_no_slot(then):
    closing = Stage()
    servers = Servers()
    servers.closings["a"] = closing
    async with running(servers, max_open=2) as (pool, tg):
        await users(tg, pool, "x")
        await use(pool, "a")
        waiting = await users(tg, pool, "b", {"another": "c", "the same": "b"}.get(then, "b"))
        waiting[0].scope.cancel()
        if then == "nobody":
            waiting[1].scope.cancel()
        await settle()
        assert waiting[0].is_over
        assert not closing.let_go.is_set()
        closing.let_go.set()
        await settle()
        if then == "nobody":
            assert servers.asked == ["x", "a"]
        else:
            assert waiting[1].is_inside
            await leave(waiting[1])
        await slots(pool, tg, 1)


async def test_an_idle_connection_that_opens_again_makes_room():
    servers = Servers(reconnect=AT_ONCE)
    async with running(servers, max_open=1) as (pool, tg):
        await use(pool, "a")
        opening = servers.openings["a"] = Stage()
        servers.last("a").connection_lost(OSError("gone"))
        await opening.reached.wait()
        [user] = await users(tg, pool, "b")
        assert user.is_inside
        assert servers.last("a").state in (CLOSED, FAILED)


# A user that is cancelled in the same tick in which it gets a slot.


async def enter(pool, key):
    acquired = pool.acquire(key)
    await acquired.__aenter__()
    return acquired


async def cancelled_around_the_grant(steps, end):
    """Cancels a waiting user some steps after the end of the connection that had the slot."""
    servers = Servers()
    async with running(servers, max_open=1) as (pool, tg):
        held = await enter(pool, "a")
        waiting, behind = await users(tg, pool, "b", "c")
        if end == "discarded":
            await pool.discard("a")
        if steps < 0:
            waiting.scope.cancel()
        if end == "lost":
            servers.last("a").connection_lost(OSError("gone"))
        else:
            await held.__aexit__(None, None, None)
        for _ in range(steps):
            await checkpoint()
        waiting.scope.cancel()
        await settle()
        assert waiting.is_over
        assert behind.is_inside
        assert servers.asked in (["a", "c"], ["a", "b", "c"])
        if end == "lost":
            await held.__aexit__(None, None, None)
        await leave(behind)
        await slots(pool, tg, 1)


@pytest.mark.within(20)
async def test_no_slot_is_lost_if_a_user_is_cancelled_at_any_time_around_its_grant():
    for end in ("idle", "discarded", "lost"):
        for steps in range(-1, 22):
            print("end:", end, steps)
            await cancelled_around_the_grant(steps, end)


@pytest.mark.within(20)
async def test_no_slot_is_lost_if_one_of_two_users_of_a_key_is_cancelled_around_its_grant():
    for number in (0, 1):
        for steps in range(22):
            servers = Servers()
            async with running(servers, max_open=1) as (pool, tg):
                [first] = await users(tg, pool, "a")
                waiting = await users(tg, pool, "b", "b")
                first.leave()
                for _ in range(steps):
                    await checkpoint()
                waiting[number].scope.cancel()
                await settle()
                assert waiting[number].is_over
                assert waiting[1 - number].is_inside
                assert pool.stats().idle == 0
                await leave(waiting[1 - number])
                await slots(pool, tg, 1)


async def test_a_slot_goes_on_to_the_next_if_all_users_are_cancelled_one_after_another():
    servers = Servers()
    async with running(servers, max_open=1) as (pool, tg):
        [first] = await users(tg, pool, "a")
        waiting = await users(tg, pool, *"bcdefg")
        first.leave()
        for user in waiting[:-1]:
            user.scope.cancel()
            await checkpoint()
        await settle()
        assert waiting[-1].is_inside
        await leave(waiting[-1])
        await slots(pool, tg, 1)


# Failures at the bound.


@in_turn("where", ["open", "opening"])
async def test_failed_attempts_pass_their_slot_on(where):
    servers = Servers()
    for key in "bcd":
        if where == "open":
            servers.refused[key] = OSError("refused")
        else:
            servers.openings[key] = raises(OSError("refused"))
    async with running(servers, max_open=1) as (pool, tg):
        [first] = await users(tg, pool, "a")
        *failing, good = await users(tg, pool, *"bcbde")
        await leave(first)
        assert first.error is None
        assert [type(user.error) for user in failing] == [OSError] * 4
        assert good.is_inside
        assert servers.asked == list("abcde")
        assert pool.stats().failed == 3
        await leave(good)
        await slots(pool, tg, 1)


@in_turn("used", [True, False])
async def test_a_lost_connection_keeps_its_slot_until_its_owner_ended(used):
    closing = Stage()
    servers = Servers()
    servers.closings["a"] = closing
    async with running(servers, max_open=1) as (pool, tg):
        [old] = await users(tg, pool, "a")
        if not used:
            await leave(old)
        servers.last("a").connection_lost(OSError("gone"))
        same, other = await users(tg, pool, "a", "b")
        assert same.waits
        assert other.waits
        closing.let_go.set()
        servers.closings.clear()
        await settle()
        assert same.is_inside
        assert same.connection is not old.connection
        assert old.is_over is not used
        await leave(old)  # it releases nothing of the new connection
        assert other.waits
        await leave(same)
        assert other.is_inside
        await leave(other)
        await slots(pool, tg, 1)


async def test_a_stubborn_connection_keeps_its_slot_until_it_ends(grace):
    stubborn = Stage(shield=True)
    servers = Servers()
    async with running(servers, max_open=2) as (pool, tg):
        await use(pool, "a")
        await use(pool, "b")
        servers.closings["a"] = stubborn
        [first] = await users(tg, pool, "c")  # closes "a", which takes forever
        assert first.waits
        servers.last("a").connection_lost()
        stopping = Call(tg, servers.last("a").stop, 0)
        [second] = await users(tg, pool, "d")  # closes "b", and the first user gets its slot
        while not stopping.is_over:
            await anyio.sleep(grace)
        assert type(stopping.error) is StopTimeoutError
        await settle()
        assert first.is_inside
        assert second.waits
        assert servers.last("a") in servers.alive
        [third] = await users(tg, pool, "a")
        stubborn.let_go.set()
        await settle()
        assert second.is_inside
        assert third.waits
        await leave(first)
        assert third.is_inside
        await leave(second, third)
        await slots(pool, tg, 2)


async def test_a_cancelled_attempt_that_refuses_to_end_keeps_its_slot(grace):
    stubborn = Stage(shield=True)
    servers = Servers()
    servers.openings["a"] = stubborn
    async with running(servers, max_open=1) as (pool, tg):
        with pytest.raises(StartTimeoutError):
            await use(pool, "a", 0.01)
        [waiting] = await users(tg, pool, "b")
        assert waiting.waits
        assert servers.last("a") in servers.alive
        stubborn.let_go.set()
        await settle()
        assert waiting.is_inside
        await leave(waiting)
        await slots(pool, tg, 1)


# discard() at the bound.


async def test_a_discarded_connection_keeps_its_slot_until_it_is_closed():
    closing = Stage()
    servers = Servers()
    servers.closings["a"] = closing
    async with running(servers, max_open=2) as (pool, tg):
        [old] = await users(tg, pool, "a")
        await pool.discard("a")
        [fresh] = await users(tg, pool, "a")
        assert fresh.is_inside
        assert fresh.connection is not old.connection
        [waiting] = await users(tg, pool, "b")  # both connections of "a" have a slot
        assert waiting.waits
        await leave(old)
        assert waiting.waits
        closing.let_go.set()
        await settle()
        assert waiting.is_inside
        assert fresh.is_inside
        assert servers.of(fresh.connection)
        await leave(fresh, waiting)
        await slots(pool, tg, 2)


async def test_a_discarded_key_waits_for_its_slot_if_there_is_only_one():
    servers = Servers()
    async with running(servers, max_open=1) as (pool, tg):
        [old] = await users(tg, pool, "a")
        await pool.discard("a")
        b, fresh = await users(tg, pool, "b", "a")
        assert b.waits
        assert fresh.waits
        await leave(old)
        assert b.is_inside
        await leave(b)
        assert fresh.connection is servers.last("a").connection is not old.connection
        await leave(fresh)
        await slots(pool, tg, 1)


# G5: many keys.


@pytest.mark.parametrize("clock", clocks.CLOCKS)
def test_G5_a_thousand_keys_of_which_a_hundred_are_used_at_once_share_ten_slots(clock):
    unit = 1 if clock != "uvloop" else 0.0001  # its clock cannot jump
    dice = random.Random(5)
    keys = list(range(1000))
    dead, cancelled, impatient = {13, 500, 501}, {55, 700}, {300}
    durations = {key: (dice.randrange(5) * unit, dice.randrange(5) * unit) for key in keys}
    pending, asked_for, served, errors = iter(keys), [], [], {}
    servers = Servers()
    servers.openings = {key: lasting(durations[key][0]) for key in keys}
    servers.openings |= {key: raises(OSError("dead")) for key in dead}

    async def use_one(pool, key, scope):
        try:
            with scope:
                asked_for.append(key)
                async with pool.acquire(key, 0 if key in impatient else None) as connection:
                    assert servers.of(connection) is servers.last(key)
                    await anyio.sleep(durations[key][1])
                    assert servers.of(connection) is servers.last(key)
                    served.append(key)
        except (OSError, StartTimeoutError) as error:
            errors[key] = error

    async def work(pool):
        for key in pending:
            scope = anyio.CancelScope()
            if key in cancelled:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(use_one, pool, key, scope)
                    await checkpoint()
                    assert pool.stats().waiting > 10
                    scope.cancel()
                assert scope.cancelled_caught
            else:
                await use_one(pool, key, scope)

    async def main():
        async with running(servers, max_open=10) as (pool, tg):
            async with anyio.create_task_group() as workers:
                for _ in range(100):
                    workers.start_soon(work, pool)
                    await checkpoint()
            stats = pool.stats()
            assert stats == (10, 10, 0, 1000 - len(dead) - len(cancelled) - len(impatient), len(dead))
            await slots(pool, tg, 10)

    clocks.run(main, clock=clock)
    given_up = cancelled | impatient
    expected = [key for key in asked_for if key not in given_up]
    assert sorted(servers.asked[: len(expected)]) == sorted(expected)
    # Keys that get their slots in the same tick may open in any order.
    assert all(abs(servers.asked.index(key) - place) < 10 for place, key in enumerate(expected))
    assert set(errors) == dead | impatient
    assert sorted(served) == sorted(set(keys) - dead - given_up)
    assert servers.most_alive == 10


async def random_life(seed):
    """Lets users with random plans share a small pool, and checks the guarantees that every user has."""
    dice = random.Random(seed)
    unhurt, outcomes = set(), []

    async def opening():
        await anyio.sleep(dice.choice([0, 0, 1, 2]))
        if dice.random() < 0.1:
            raise OSError("refused")

    async def closing():
        await anyio.sleep(dice.choice([0, 0, 1, 3]))

    servers = Servers(opening=opening, closing=closing)
    limit = dice.choice([1, 2, 3])
    options = {"max_open": limit, "idle_timeout": dice.choice([None, 0, 1, 2])}

    async def user(pool, key):
        await anyio.sleep(dice.randrange(40))
        scope = anyio.CancelScope()
        if dice.random() < 0.3:
            scope.deadline = anyio.current_time() + dice.randrange(6)
        try:
            with scope:
                async with pool.acquire(key, dice.choice([None, None, 3, 100])) as connection:
                    probe = servers.of(connection)
                    assert probe is not None
                    unhurt.add(probe)
                    await anyio.sleep(dice.randrange(4))
                    if dice.random() < 0.1:
                        unhurt.discard(probe)
                        probe.connection_lost(OSError("gone"))
                    assert servers.of(connection) is probe or probe not in unhurt
                    outcomes.append("served")
        except (OSError, StartTimeoutError) as error:
            outcomes.append(type(error).__name__)

    async def discard(pool):
        for _ in range(5):
            await anyio.sleep(dice.randrange(10))
            await pool.discard(dice.randrange(5))

    async with running(servers, **options) as (pool, tg):
        async with anyio.create_task_group() as all_users:
            all_users.start_soon(discard, pool)
            for _ in range(40):
                all_users.start_soon(user, pool, dice.randrange(5))
        stats = pool.stats()
        assert stats.waiting == 0
        assert stats.open <= limit
        servers.opening = checkpoint
        servers.closing = checkpoint
        await anyio.sleep(10)
        await slots(pool, tg, limit)
    assert outcomes.count("served") > 5


@pytest.mark.parametrize("clock", [clock for clock in clocks.CLOCKS if clock != "uvloop"])
def test_G5_users_with_random_plans_get_live_connections_and_leave_all_slots_free(clock):
    async def main():
        for seed in range(25):
            print("seed:", seed)
            with anyio.fail_after(10_000):
                await random_life(seed)

    clocks.run(main, clock=clock)


async def test_a_pool_without_a_bound_opens_all_keys_at_once():
    opening = Stage()
    servers = Servers(opening=opening)
    async with ConnectionPool(servers) as pool, anyio.create_task_group() as tg:
        waiting = [User(tg, pool, number) for number in range(100)]
        await settle()
        assert pool.stats().waiting == len(servers.alive) == 100
        opening.let_go.set()
        await settle()
        assert all(user.is_inside for user in waiting)
        for user in waiting:
            user.leave()
