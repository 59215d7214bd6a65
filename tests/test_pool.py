"""Tests for `ConnectionPool`: connections by key that all users of a key share.

`test_pool_limits.py` tests the bound on their number, and `test_pool_idle.py` tests when they close.
"""

import contextvars
import copy
import math
from contextlib import AbstractAsyncContextManager

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint
from pooling import Servers, User, lasting, leave, running, use, users
from probe import Probe, Stage, raises
from proof.clocks import in_virtual_time
from reopening import AT_ONCE, Call, in_turn, settle

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionManagerError,
    ConnectionPool,
    ConnectionState,
    ConnectionStoppedError,
    ManagerInUseError,
    NotConnectedError,
    PoolStats,
    ReconnectPolicy,
    StartTimeoutError,
    StopTimeoutError,
    WrongEventLoopError,
)

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


# Arguments.


def test_wrong_arguments_are_refused_at_once():
    for options, kind, argument in [
        ({"max_open": 0}, ValueError, "max_open"),
        ({"max_open": -1}, ValueError, "max_open"),
        ({"max_open": 1.5}, TypeError, "max_open"),
        ({"max_open": True}, TypeError, "max_open"),
        ({"max_open": "1"}, TypeError, "max_open"),
        ({"idle_timeout": -1}, ValueError, "idle_timeout"),
        ({"idle_timeout": math.nan}, ValueError, "idle_timeout"),
        ({"idle_timeout": "1"}, TypeError, "idle_timeout"),
        ({"idle_timeout": True}, TypeError, "idle_timeout"),
    ]:
        with pytest.raises(kind, match=argument):
            ConnectionPool(Servers(), **options)
    for not_callable in (None, {}, Probe()):
        with pytest.raises(TypeError, match="open"):
            ConnectionPool(not_callable)


async def test_wrong_arguments_of_acquire_are_refused_at_once():
    async with ConnectionPool(Servers()) as pool:
        for timeout, kind in [
            (-1, ValueError),
            (math.nan, ValueError),
            ("1", TypeError),
            (True, TypeError),
        ]:
            with pytest.raises(kind, match="timeout"):
                pool.acquire("a", timeout)
        with pytest.raises(TypeError, match="unhashable"):
            await use(pool, [])
        assert pool.stats() == PoolStats(open=0, idle=0, waiting=0, opened=0, failed=0)


def test_a_pool_needs_no_event_loop():
    servers = Servers()
    pool = ConnectionPool(servers, max_open=3, idle_timeout=None, name="tenants")
    assert isinstance(pool, ConnectionManager)
    assert pool.name == "tenants"
    assert "pool" in ConnectionPool(servers).name.lower()
    assert pool.state is NEW
    assert pool.stats() == PoolStats(open=0, idle=0, waiting=0, opened=0, failed=0)
    with pytest.raises(AttributeError):
        pool.stats().open = 1
    assert servers.asked == []


async def test_the_connection_of_a_pool_is_the_pool():
    pool = ConnectionPool(Servers())
    assert await pool.start() is pool
    assert pool.connection is pool
    async with pool as entered:
        assert entered is pool
    assert await pool.wait_open() is pool
    await pool.stop()
    assert pool.state is CLOSED


async def test_a_copy_of_a_pool_is_another_pool_with_the_same_options():
    async with ConnectionPool(Servers(), max_open=1) as pool, anyio.create_task_group() as tg:
        [held] = await users(tg, pool, "a")
        other = copy.copy(pool)
        assert other.state is NEW
        assert other.stats() == PoolStats(open=0, idle=0, waiting=0, opened=0, failed=0)
        async with other:
            inside, waiting = await users(tg, other, "b", "c")
            assert inside.is_inside
            assert waiting.waits
            tg.cancel_scope.cancel()
            await settle()
        assert held.is_over


# Users of a key share its connection.


async def test_all_users_of_a_key_share_one_connection():
    servers = Servers()
    async with running(servers) as (pool, tg):
        first, second, other = await users(tg, pool, "a", "a", "b")
        assert first.connection is second.connection is servers.last("a").connection
        assert other.connection is servers.last("b").connection is not first.connection
        await leave(first)
        [third] = await users(tg, pool, "a")
        await leave(second, third)
        assert await use(pool, "a") is first.connection
        assert servers.asked == ["a", "b"]


async def test_any_hashable_object_is_a_key():
    servers = Servers()
    async with running(servers) as (pool, _):
        for key in (None, 0, "", (), frozenset({1}), object()):
            assert servers.of(await use(pool, key)) is servers.last(key)
        assert await use(pool, 0.0) is servers.last(0).connection


async def test_users_that_arrive_while_a_connection_opens_join_that_attempt():
    opening = Stage()
    servers = Servers(opening=opening)
    async with running(servers) as (pool, tg):
        joined = [User(tg, pool, "a") for _ in range(5)]
        await opening.reached.wait()
        joined += await users(tg, pool, "a", "a")
        assert all(user.waits for user in joined)
        assert pool.stats().waiting == 7
        opening.let_go.set()
        await settle()
        assert {user.connection for user in joined} == {servers.last("a").connection}
        assert servers.asked == ["a"]


async def test_a_slow_key_does_not_hold_up_another():
    servers = Servers()
    servers.openings["slow"] = Stage()
    async with running(servers) as (pool, tg):
        slow, fast = await users(tg, pool, "slow", "fast")
        assert slow.waits
        assert fast.is_inside


async def test_a_user_of_an_open_key_never_waits():
    servers = Servers()
    async with running(servers, max_open=1) as (pool, tg):
        [first, queued] = await users(tg, pool, "a", "b")
        for timeout in (None, 0):
            acquired = pool.acquire("a", timeout)
            with pytest.raises(StopIteration) as returned:
                acquired.__aenter__().__await__().send(None)
            assert returned.value.value is first.connection
            await acquired.__aexit__(None, None, None)
        assert queued.waits


async def test_a_block_may_be_exited_in_another_task():
    servers = Servers()
    async with running(servers, idle_timeout=0) as (pool, tg):
        acquired = pool.acquire("a")
        assert isinstance(acquired, AbstractAsyncContextManager)
        entering = Call(tg, acquired.__aenter__)
        await settle()
        assert servers.of(entering.result)
        exiting = Call(tg, acquired.__aexit__, None, None, None)
        await settle()
        assert exiting.is_over
        assert not exiting.result
        assert servers.last("a").state is CLOSED


async def test_an_object_that_acquire_returned_works_once():
    servers = Servers()
    async with running(servers, idle_timeout=0) as (pool, tg):
        [other] = await users(tg, pool, "a")
        acquired = pool.acquire("a")
        async with acquired:
            with pytest.raises(RuntimeError):
                await acquired.__aenter__()
        with pytest.raises(RuntimeError):
            await acquired.__aenter__()
        servers.openings["b"] = Stage()
        acquired = pool.acquire("b")
        Call(tg, acquired.__aenter__)
        await settle()
        again = Call(tg, acquired.__aenter__)
        await settle()
        assert isinstance(again.error, RuntimeError)
        assert servers.of(other.connection)  # the misuse released nothing
        await leave(other)
        assert servers.last("a").state is CLOSED


async def test_a_block_that_was_not_entered_cannot_be_exited():
    async with running(Servers()) as (pool, _):
        with pytest.raises(RuntimeError, match="not entered"):
            await pool.acquire("a").__aexit__(None, None, None)


class Fatal(BaseException):
    pass


async def test_open_may_raise_a_base_exception_and_must_not_be_a_coroutine_function():
    async def create(_key):
        raise AssertionError("never awaited")

    def fail(_key):
        raise Fatal

    for function, expected in [(create, TypeError), (fail, Fatal)]:
        async with ConnectionPool(function, max_open=1) as pool:
            for failed in (1, 2):
                with pytest.raises(expected):
                    await pool.acquire("a").__aenter__()
                assert pool.stats() == (0, 0, 0, 0, failed)


async def test_an_exception_in_a_block_passes_and_leaves_the_connection_open():
    servers = Servers()
    async with running(servers) as (pool, _):
        error = ValueError("mine")
        with pytest.raises(ValueError) as raised:
            async with pool.acquire("a") as connection:
                raise error
        assert raised.value is error
        assert await use(pool, "a") is connection
        assert pool.stats().idle == 1


async def test_a_cancelled_user_releases_its_connection():
    servers = Servers()
    async with running(servers, idle_timeout=0) as (pool, tg):
        first, second = await users(tg, pool, "a", "a")
        first.scope.cancel()
        await settle()
        assert first.is_over
        assert second.is_inside
        assert servers.of(second.connection)
        second.scope.cancel()
        await settle()
        assert servers.last("a").state is CLOSED


async def test_a_block_inside_a_block_uses_the_same_connection():
    async with running(Servers()) as (pool, _):
        async with pool.acquire("a") as outer, pool.acquire("a") as inner, pool.acquire("b") as other:
            assert outer is inner is not other


# The function that makes managers.

tenant = contextvars.ContextVar("tenant", default="nobody")


async def test_connections_open_in_the_context_of_the_pool_and_not_of_their_first_user():
    seen = []

    async def look():
        seen.append(tenant.get())
        await checkpoint()

    servers = Servers(opening=look, closing=look)

    def opens(key):
        seen.append(tenant.get())
        return servers(key)

    token = tenant.set("pool")
    pool = ConnectionPool(opens, max_open=1)
    await pool.start()
    tenant.set("user")
    await use(pool, "a")
    await use(pool, "b")
    assert tenant.get() == "user"
    await pool.stop()
    assert seen == ["pool"] * 6
    tenant.reset(token)


async def test_a_connection_outlives_the_cancel_scope_of_its_first_user():
    servers = Servers()
    async with running(servers) as (pool, tg):
        with anyio.CancelScope() as scope:
            async with pool.acquire("a") as connection:
                [other] = await users(tg, pool, "a")
                scope.cancel()
                await checkpoint()
        await settle()
        assert other.is_inside
        assert servers.of(connection)


class RefusedError(Exception):
    pass


async def test_a_manager_that_cannot_be_used_is_refused():
    alive, lent, shared = Probe(name="alive"), Probe(name="lent"), Probe(name="shared")

    class Outer(ConnectionManager[object]):
        def open_connection(self):
            return self.open_inner(lent)

    results = {
        "none": (None, TypeError, "open"),
        "class": (Probe, TypeError, "open"),
        "connection": (object(), TypeError, "open"),
        "alive": (alive, ManagerInUseError, "alive"),
        "lent": (lent, ManagerInUseError, "lent"),
        "shared": (shared, None, None),
        "again": (shared, ManagerInUseError, "shared"),
    }
    async with alive, Outer():
        async with ConnectionPool(lambda key: results[key][0], max_open=1) as pool:
            for key in ("none", "class", "connection", "alive", "lent", "none"):
                _, kind, message = results[key]
                with pytest.raises(kind, match=message):
                    await use(pool, key)
            assert pool.stats().open == 0
            assert len(alive.entered) == len(lent.entered) == 1
        async with ConnectionPool(lambda key: results[key][0]) as pool:
            connection = await use(pool, "shared")
            with pytest.raises(ManagerInUseError, match="shared"):
                await use(pool, "again")
            async with ConnectionPool(lambda _: shared) as other:
                with pytest.raises(ManagerInUseError, match="shared"):
                    await use(other, "shared")
            assert await use(pool, "shared") is connection
        assert alive.state is OPEN
    async with ConnectionPool(lambda _: shared) as other:  # it is free again
        assert await use(other, "a") is not connection
    await shared.start()
    await shared.stop()
    assert len(shared.entered) == 3


async def test_a_manager_that_was_closed_may_be_returned_again():
    probe = Probe()
    async with ConnectionPool(lambda _: probe, max_open=1, idle_timeout=0) as pool:
        for _ in range(3):
            await use(pool, "a")
            await settle()
        await use(pool, "b")
    assert len(probe.entered) == len(probe.exited) == 4


# Failures.


@in_turn("where", ["open", "opening"])
async def test_an_error_while_opening_reaches_all_waiting_users_and_is_not_remembered(where):
    servers = Servers()
    refusal = RefusedError("refused")
    async with running(servers, max_open=1) as (pool, tg):
        [first] = await users(tg, pool, "a")  # the users of the other key queue behind this one
        servers.openings["b"] = raises(refusal)
        if where == "open":
            servers.refused["b"] = refusal
        waiting = await users(tg, pool, "b", "b", "b")
        assert pool.stats() == PoolStats(open=1, idle=0, waiting=3, opened=1, failed=0)
        await leave(first)
        assert first.error is None
        assert [user.error for user in waiting] == [refusal] * 3
        assert servers.asked == ["a", "b"]
        assert pool.stats() == PoolStats(open=0, idle=0, waiting=0, opened=1, failed=1)

        with pytest.raises(RefusedError):
            await use(pool, "b")
        servers.openings.clear()
        servers.refused.clear()
        assert servers.of(await use(pool, "b"))
        assert servers.asked == ["a", "b", "b", "b"]
        assert pool.stats() == PoolStats(open=1, idle=1, waiting=0, opened=2, failed=2)


class Unusable(Servers):
    """Returns nothing."""

    def __call__(self, key):
        self.asked.append(key)


@in_turn("kind", [Servers, Unusable])
async def test_a_caller_that_tries_again_and_again_lets_other_tasks_run(kind):
    servers = kind()
    servers.refused["a"] = OSError("refused")
    turns = 0

    async def work():
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    async with running(servers) as (pool, tg):
        tg.start_soon(work)
        for _ in range(50):
            with pytest.raises((OSError, TypeError)):
                await use(pool, "a")
        assert turns > 20
    assert servers.asked == ["a"] * 50


async def test_a_failed_key_does_not_disturb_other_keys():
    servers = Servers()
    servers.openings["bad"] = raises(RefusedError("refused"))
    async with running(servers) as (pool, tg):
        good, bad = await users(tg, pool, "good", "bad")
        assert type(bad.error) is RefusedError
        assert servers.of(good.connection)
        assert pool.state is OPEN


async def test_a_lost_connection_is_opened_again_by_the_next_user_without_disturbing_the_old_ones():
    closing = Stage()
    servers = Servers()
    async with running(servers) as (pool, tg):
        [old] = await users(tg, pool, "a")
        servers.closings["a"] = closing
        servers.last("a").connection_lost(OSError("gone"))
        fresh = await use(pool, "a")  # although the lost one is still closing
        assert closing.reached.is_set()
        assert fresh is not old.connection
        assert old.is_inside
        closing.let_go.set()
        await settle()
        assert pool.stats() == PoolStats(open=1, idle=1, waiting=0, opened=2, failed=0)
        [other] = await users(tg, pool, "a")
        await leave(old)  # its exit belongs to the lost connection
        assert old.error is None
        assert other.connection is fresh
        assert servers.of(fresh)
        assert pool.stats().idle == 0
        await leave(other)
        assert pool.stats().idle == 1
        assert servers.asked == ["a", "a"]


@in_turn("how", ["lost", "stopped"])
async def test_an_idle_connection_that_ended_is_forgotten(how):
    servers = Servers()
    async with running(servers) as (pool, _):
        old = await use(pool, "a")
        if how == "lost":
            servers.last("a").connection_lost(OSError("gone"))
        else:
            await servers.last("a").stop()
        await settle()
        assert pool.stats() == PoolStats(open=0, idle=0, waiting=0, opened=1, failed=0)
        assert servers.asked == ["a"]  # nobody needs another one
        fresh = await use(pool, "a")
        assert servers.of(fresh)
        assert fresh is not old


async def test_a_connection_that_is_lost_while_it_opens_fails_for_its_waiting_users():
    servers = Servers()
    servers.openings["a"] = Stage()
    async with running(servers, max_open=1) as (pool, tg):
        waiting = await users(tg, pool, "a", "a")
        servers.last("a").connection_lost(OSError("gone"))
        await settle()
        assert [type(user.error) for user in waiting] == [ConnectionLostError] * 2
        assert [str(user.error.__cause__) for user in waiting] == ["gone"] * 2
        servers.openings.clear()
        assert servers.of(await use(pool, "a"))


async def test_a_connection_that_is_lost_at_any_time_around_success_is_never_handed_out_later():
    for steps in range(16):
        servers = Servers()
        async with running(servers, max_open=1) as (pool, tg):
            opening = servers.openings["a"] = Stage()
            waiting = await users(tg, pool, "a", "a")
            opening.let_go.set()
            for _ in range(steps):
                await checkpoint()
            servers.last("a").connection_lost(OSError("gone"))
            servers.openings.clear()
            assert servers.of(await use(pool, "a"))
            await settle()
            for user in waiting:
                assert user.is_inside or type(user.error) is ConnectionLostError
            await leave(*waiting)
            assert pool.stats().idle == 1


# A manager with a reconnect policy.


async def test_users_wait_while_a_manager_with_a_policy_opens_its_connection_again():
    servers = Servers(reconnect=AT_ONCE)
    async with running(servers, max_open=1) as (pool, tg):
        [old] = await users(tg, pool, "a")
        opening = servers.openings["a"] = Stage()
        servers.last("a").connection_lost(OSError("gone"))
        await opening.reached.wait()
        waiting = await users(tg, pool, "a", "a")
        cancelled, queued = await users(tg, pool, "a", "b")
        with pytest.raises(StartTimeoutError):
            await use(pool, "a", 0.01)
        assert all(user.waits for user in waiting)
        assert pool.stats().waiting == 4
        cancelled.scope.cancel()
        await settle()
        assert cancelled.is_over
        opening.let_go.set()
        await settle()
        assert {user.connection for user in waiting} == {servers.last("a").connection}
        assert old.connection is not servers.last("a").connection
        assert servers.asked == ["a"]
        await leave(old, *waiting)
        assert queued.is_inside


async def test_the_only_user_that_waits_for_a_reopening_does_not_end_it_by_leaving():
    servers = Servers(reconnect=AT_ONCE)
    async with running(servers) as (pool, tg):
        await use(pool, "a")
        opening = servers.openings["a"] = Stage()
        servers.last("a").connection_lost(OSError("gone"))
        await opening.reached.wait()
        [waiting] = await users(tg, pool, "a")
        waiting.scope.cancel()
        await settle()
        assert waiting.is_over
        assert servers.last("a").state is OPENING
        opening.let_go.set()
        await settle()
        assert servers.of(await use(pool, "a"))
        assert servers.asked == ["a"]


async def test_a_policy_that_gives_up_fails_for_waiting_users_and_is_forgotten():
    servers = Servers(reconnect=ReconnectPolicy(initial_delay=0, jitter=0, max_retries=1))
    async with running(servers, max_open=1) as (pool, tg):
        [old] = await users(tg, pool, "a")
        opening = Stage()

        async def refuse():
            await opening()
            raise RefusedError("refused")

        servers.openings["a"] = refuse
        servers.last("a").connection_lost(OSError("gone"))
        await opening.reached.wait()
        waiting = await users(tg, pool, "a", "a")
        opening.let_go.set()
        await settle()
        assert not any(user.waits for user in waiting)
        for user in waiting:
            assert RefusedError in (type(user.error), type(user.error.__cause__))
        assert old.is_inside
        servers.openings.clear()
        assert servers.of(await use(pool, "a"))
        assert servers.asked == ["a", "a"]


@in_virtual_time
async def test_the_first_opening_of_a_manager_with_a_policy_goes_on_until_its_users_are_gone():
    refusal = RefusedError("refused")
    servers = Servers(
        opening=raises(refusal), reconnect=ReconnectPolicy(initial_delay=3, multiplier=1, jitter=0)
    )
    async with running(servers, max_open=1) as (pool, tg):
        patient = User(tg, pool, "a")
        with pytest.raises(StartTimeoutError) as raised:
            await use(pool, "a", 10)
        assert raised.value.__cause__ is refusal
        assert "refused" in str(raised.value)
        assert len(servers.last("a").entered) == 4
        assert patient.waits
        patient.scope.cancel()
        await settle()
        assert patient.is_over
        assert servers.last("a").state in (CLOSED, FAILED)
        servers.opening = checkpoint
        assert servers.of(await use(pool, "b", 1))


# Time.


@in_virtual_time
async def test_the_timeout_covers_the_wait_for_a_slot_and_the_opening():
    servers = Servers()
    async with running(servers, max_open=1) as (pool, tg):
        for closing in (0, 4):
            [first] = await users(tg, pool, "a")
            servers.openings["b"] = lasting(6)
            servers.closings["a"] = lasting(closing)
            began = anyio.current_time()
            waiting = User(tg, pool, "b", 10)
            await anyio.sleep(6 - closing)
            first.leave()
            await anyio.sleep(3.9 + closing)
            assert waiting.waits
            assert servers.last("b").state is OPENING
            while waiting.waits:
                await anyio.sleep(0.01)
            assert type(waiting.error) is StartTimeoutError
            assert "10 s" in str(waiting.error)
            assert anyio.current_time() - began == pytest.approx(10, abs=0.1)
            assert servers.last("b").state in (CLOSED, FAILED)
            servers.openings.clear()
            assert await use(pool, "b", 1)  # the failure is not remembered, and the slot is free
            servers.closings.clear()


@in_virtual_time
async def test_a_timeout_ends_an_attempt_only_if_no_other_user_waits_for_it():
    servers = Servers(opening=lasting(10))
    async with running(servers) as (pool, tg):
        began = anyio.current_time()
        short, patient = User(tg, pool, "a", 3), User(tg, pool, "a", math.inf)
        await anyio.sleep(5)
        assert isinstance(short.error, TimeoutError)
        assert type(short.error) is StartTimeoutError
        while patient.waits:
            await anyio.sleep(0.01)
        assert anyio.current_time() - began == pytest.approx(10, abs=0.1)
        assert servers.of(patient.connection)

        last = User(tg, pool, "b", 3)
        await anyio.sleep(4)
        assert type(last.error) is StartTimeoutError
        assert servers.last("b").state in (CLOSED, FAILED)
        assert servers.asked == ["a", "b"]


@in_virtual_time
async def test_the_start_timeout_of_a_manager_ends_its_attempt_for_all_users():
    servers = Servers(opening=lasting(100), start_timeout=3)
    async with running(servers) as (pool, tg):
        waiting = [User(tg, pool, "a"), User(tg, pool, "a", 50)]
        await anyio.sleep(3.1)
        assert [type(user.error) for user in waiting] == [StartTimeoutError] * 2
        assert [user.error.name for user in waiting] == ["server a"] * 2


@in_turn("state", ["closed", "full"])
async def test_a_timeout_of_zero_raises_unless_the_key_is_open(state):
    servers = Servers(opening=Stage())
    servers.openings["open"] = checkpoint
    async with running(servers, max_open=1 if state == "full" else None) as (pool, tg):
        [first] = await users(tg, pool, "open")
        with pytest.raises(StartTimeoutError):
            await use(pool, "a", 0)
        assert await use(pool, "open", 0) is first.connection
        assert pool.stats().waiting == 0


# Users that are cancelled while they wait.


@in_turn("leaving", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
async def test_an_attempt_goes_on_while_any_user_waits_for_it(leaving):
    servers = Servers()
    opening = servers.openings["a"] = Stage()
    async with running(servers, max_open=1) as (pool, tg):
        waiting = await users(tg, pool, "a", "a", "a")
        for number in leaving:
            waiting[number].scope.cancel()
            await settle()
            assert waiting[number].is_over
        assert pool.stats().waiting == 3 - len(leaving)
        [probe] = servers.probes["a"]
        if len(leaving) == 3:
            assert not probe.is_acquired
            assert probe.state in (CLOSED, FAILED)
            assert servers.of(await use(pool, "b"))
            servers.openings.clear()
            assert servers.of(await use(pool, "a"))
            assert servers.asked == ["a", "b", "a"]
        else:
            opening.let_go.set()
            await settle()
            rest = [user for number, user in enumerate(waiting) if number not in leaving]
            assert {user.connection for user in rest} == {probe.connection}
            assert servers.asked == ["a"]


async def test_a_cancelled_user_waits_until_its_attempt_is_over_and_a_new_user_gets_another():
    release = Stage(shield=True)

    async def opening():
        try:
            await anyio.sleep_forever()
        finally:
            await release()

    servers = Servers(opening=opening)
    async with running(servers) as (pool, tg):
        [cancelled] = await users(tg, pool, "a")
        cancelled.scope.cancel()
        await release.reached.wait()
        await settle()
        assert not cancelled.is_over  # as with start()
        servers.opening = checkpoint
        [fresh] = await users(tg, pool, "a")
        release.let_go.set()
        await settle()
        assert cancelled.is_over
        assert servers.of(fresh.connection)
        assert servers.asked == ["a", "a"]


async def test_a_user_that_is_cancelled_at_any_time_around_success_leaves_nothing_in_use():
    for steps in range(16):
        servers = Servers()
        async with running(servers, max_open=1) as (pool, tg):
            opening = servers.openings["a"] = Stage()
            [user] = await users(tg, pool, "a")
            opening.let_go.set()
            for _ in range(steps):
                await checkpoint()
            user.scope.cancel()
            await settle()
            assert user.is_over
            stats = pool.stats()
            assert stats.open == stats.idle
            assert stats.waiting == 0
            assert servers.of(await use(pool, "b"))


async def test_a_user_whose_scope_is_cancelled_before_it_enters_opens_nothing():
    servers = Servers()
    async with running(servers, max_open=1) as (pool, _):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await use(pool, "a")
        assert scope.cancelled_caught
        await settle()
        assert not servers.alive
        assert servers.of(await use(pool, "b"))


# The pool is not open, or stops.


async def test_acquire_raises_if_the_pool_is_not_open():
    closing = Stage()
    servers = Servers(closing=closing)
    pool = ConnectionPool(servers)

    async def is_refused():
        with pytest.raises(NotConnectedError, match="Pool"):
            await use(pool, "a")
        await pool.discard("a")

    await is_refused()
    await pool.start()
    await use(pool, "b")
    async with anyio.create_task_group() as tg:
        tg.start_soon(pool.stop)
        await closing.reached.wait()
        await is_refused()
        with pytest.raises(NotConnectedError):
            await use(pool, "b")  # an open key, too
        closing.let_go.set()
    await is_refused()
    assert servers.asked == ["b"]


@in_turn("timeout", [30, 0, None])
async def test_stop_raises_in_waiting_users_and_closes_connections_in_use(timeout):
    servers = Servers()
    async with running(servers, max_open=2) as (pool, tg):
        [inside, other] = await users(tg, pool, "a", "a")
        servers.openings["b"] = Stage()
        waiting = await users(tg, pool, "b", "b", "c", "c", "d")
        await pool.stop(timeout)
        assert not servers.alive
        await settle()
        assert [type(user.error) for user in waiting] == [ConnectionStoppedError] * 5
        assert inside.is_inside
        assert other.is_inside
        await leave(inside, other)
        assert inside.error is other.error is None
        assert "c" not in servers.asked


async def test_stop_closes_all_connections_at_the_same_time():
    stages = {key: Stage() for key in "abcdefgh"}
    servers = Servers()
    servers.closings = stages
    async with running(servers) as (pool, tg):
        await users(tg, pool, *"abcd")
        for key in "efgh":
            await use(pool, key)
        stopping = Call(tg, pool.stop)
        for stage in stages.values():
            await stage.reached.wait()
        await settle()
        assert not stopping.is_over
        for stage in stages.values():
            stage.let_go.set()
        await settle()
        assert stopping.is_over


async def test_a_user_may_stop_the_pool():
    servers = Servers()
    async with running(servers) as (pool, _):
        async with pool.acquire("a"):
            await pool.stop()
            assert not servers.alive
            assert pool.state is CLOSED


async def test_stop_at_any_time_around_success_leaves_no_user_waiting():
    for steps in range(16):
        servers = Servers()
        async with running(servers, max_open=1) as (pool, tg):
            opening = servers.openings["a"] = Stage()
            waiting = await users(tg, pool, "a", "a", "b")
            opening.let_go.set()
            for _ in range(steps):
                await checkpoint()
            await pool.stop()
            assert not servers.alive
            await settle()
            for user in waiting:
                assert user.is_inside or type(user.error) is ConnectionStoppedError


async def test_a_lost_pool_closes_its_connections_and_ends_the_waiting():
    servers = Servers()
    async with running(servers, max_open=1) as (pool, tg):
        inside, waiting = await users(tg, pool, "a", "b")
        pool.connection_lost(OSError("gone"))
        await settle()
        assert pool.state is FAILED
        assert not servers.alive
        assert isinstance(waiting.error, ConnectionManagerError)
        await leave(inside)
        assert inside.error is None


@in_virtual_time  # the pool waits only a little longer than its members
async def test_C3_a_connection_that_cannot_be_closed_fails_the_stop_after_the_others_are_closed():
    stubborn = Stage(shield=True)
    servers = Servers()
    servers.closings["stubborn"] = stubborn
    pool = ConnectionPool(servers, name="pool")
    await pool.start()
    for key in ("a", "stubborn", "b"):
        await use(pool, key)
    try:
        with pytest.raises(StopTimeoutError) as raised:
            await pool.stop(0)
        left = set(servers.alive)
    finally:
        stubborn.let_go.set()
    assert raised.value.name == "server stubborn"
    assert left == {servers.last("stubborn")}
    await settle()
    assert not servers.alive
    await pool.stop()
    async with pool:
        servers.closings.clear()
        assert servers.of(await use(pool, "stubborn"))


# Other event loops.


async def test_C8_a_pool_refuses_other_event_loops():
    servers = Servers()
    async with running(servers, max_open=1) as (pool, tg):
        await use(pool, "a")

        async def misuse():
            for key in ("a", "b"):
                with pytest.raises(WrongEventLoopError, match="Pool"):
                    await use(pool, key)
            with pytest.raises(WrongEventLoopError, match="Pool"):
                await pool.discard("a")

        for backend in ("asyncio", "trio"):
            await anyio.to_thread.run_sync(lambda backend=backend: anyio.run(misuse, backend=backend))
        stats = pool.stats()
        assert (stats.open, stats.idle, stats.waiting) == (1, 1, 0)
        [user] = await users(tg, pool, "b")
        assert servers.of(user.connection)


async def test_C8_an_object_that_acquire_returned_is_refused_in_another_event_loop():
    servers = Servers()
    async with running(servers) as (pool, _):
        await use(pool, "a")
        acquired = [pool.acquire(key) for key in ("a", "b", "a", "b")]

        async def misuse():
            for _ in range(2):
                with pytest.raises(WrongEventLoopError, match="Pool"), anyio.fail_after(0.1):
                    await acquired.pop().__aenter__()

        for backend in ("asyncio", "trio"):
            await anyio.to_thread.run_sync(lambda backend=backend: anyio.run(misuse, backend=backend))
        assert servers.asked == ["a"]
        assert pool.stats() == PoolStats(open=1, idle=1, waiting=0, opened=1, failed=0)


async def test_an_object_that_acquire_returned_before_a_stop_opens_nothing_later():
    servers = Servers()
    async with running(servers) as (pool, _):
        acquired, later = pool.acquire("a"), pool.acquire("a")
        await pool.stop()
        with pytest.raises(ConnectionManagerError):
            await acquired.__aenter__()
        await pool.start()
        with pytest.raises(ConnectionManagerError):
            await later.__aenter__()
        assert not servers.asked


# Pools among other managers.


async def test_a_pool_is_opened_inside_another_manager():
    servers = Servers()
    pool = ConnectionPool(servers)

    class Application(ConnectionManager[ConnectionPool]):
        def open_connection(self):
            return self.open_inner(pool)

    async with Application() as connection:
        assert connection is pool
        assert servers.of(await use(connection, "a"))
    assert not servers.alive


async def test_a_connection_may_use_another_key_of_its_pool_while_it_opens():
    async def open_parent():
        async with pool.acquire("child"):
            await checkpoint()

    servers = Servers()
    servers.openings["parent"] = open_parent
    async with running(servers) as (pool, _):
        assert servers.of(await use(pool, "parent"))
        assert servers.asked == ["parent", "child"]


async def test_stats_count_openings_and_failures_of_the_whole_life_of_a_pool():
    servers = Servers()
    servers.openings["bad"] = raises(RefusedError("refused"))
    pool = ConnectionPool(servers)
    for number in (1, 2):
        async with pool, anyio.create_task_group() as tg:
            await use(pool, "a")
            inside, _ = await users(tg, pool, "b", "bad")
            servers.openings["slow"] = Stage()
            [waiting] = await users(tg, pool, "slow")
            stats = pool.stats()
            assert (stats.idle, stats.waiting) == (1, 1)
            assert (stats.opened, stats.failed) == (2 * number, number)
            waiting.scope.cancel()
            await leave(inside)
            stats = pool.stats()
            assert (stats.open, stats.idle, stats.waiting) == (2, 2, 0)
        stats = pool.stats()
        assert (stats.open, stats.idle, stats.waiting, stats.opened) == (0, 0, 0, 2 * number)
