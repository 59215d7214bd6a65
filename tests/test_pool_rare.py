"""Tests for `ConnectionPool`: coincidences, garbage, and other things that rarely happen."""

import asyncio
import contextvars
import gc
import weakref

import anyio
import pytest
from anyio.lowlevel import checkpoint
from garbage import collect_silently
from pooling import DAY, Servers, User, lasting, running, slots, use, users
from probe import Stage, raises
from proof.clocks import in_virtual_time
from reopening import AT_ONCE, in_turn, settle

from ownertask import (
    ConnectionPool,
    ConnectionState,
    ManagerInUseError,
    StartTimeoutError,
    StopTimeoutError,
)

OPEN = ConnectionState.OPEN


@in_turn("options", [{}, {"reconnect": AT_ONCE}])
async def test_a_user_keeps_a_connection_whose_other_user_was_cancelled_in_the_tick_of_opening(options):
    for _ in range(10):  # on trio, the order of the tasks is random
        opening = Stage()
        servers = Servers(opening=opening, **options)
        async with running(servers) as (pool, tg):
            [opener] = await users(tg, pool, "a")
            kept = []
            tg.start_soon(use_when_open, opening, servers, pool, kept)
            await settle()
            opening.let_go.set()
            opener.scope.cancel()
            await settle()
            assert kept == [True]


async def use_when_open(opening, servers, pool, kept):
    await opening.let_go.wait()
    async with pool.acquire("a") as connection:
        for _ in range(20):
            await checkpoint()
        kept.append(servers.of(connection) is not None)


@in_turn("is_lost", [False, True])
async def test_a_listener_of_a_manager_may_use_the_connection_that_has_just_opened(
    is_lost, anyio_backend
):
    """With eager tasks, the new task runs before the pool knows that the connection is open or lost."""
    used = []
    tasks = []

    async def use_again():
        used.append(await use(pool, "a"))

    def begin_use(probe, _, new):
        if new is not OPEN or tasks:
            return
        if anyio_backend[0] == "trio":
            tasks.append(tg.start_soon(use_again))
        else:  # anyio starts tasks that are not eager
            tasks.append(asyncio.get_running_loop().create_task(use_again()))
        if is_lost:
            probe.connection_lost(OSError("gone"))

    class Listened(Servers):
        def __call__(self, key):
            probe = super().__call__(key)
            probe.add_listener(begin_use)
            return probe

    async with running(Listened(reconnect=AT_ONCE if is_lost else None)) as (pool, tg):
        connection = await use(pool, "a")
        await settle()
        assert used == [connection]
        assert pool.stats().idle == 1


class Request:
    """An object that a context variable refers to."""


async def test_a_connection_does_not_keep_the_context_of_the_user_who_opened_it():
    variable = contextvars.ContextVar("request")
    requests = []

    async def handle(pool):
        request = Request()
        requests.append(weakref.ref(request))
        variable.set(request)
        await use(pool, "a")

    async with running(Servers()) as (pool, _):
        async with anyio.create_task_group() as tg:
            tg.start_soon(handle, pool)
        await settle()
        gc.collect()
        assert pool.stats().idle == 1
        assert requests[0]() is None


async def test_a_connection_does_not_keep_the_context_of_a_user_while_it_closes_to_make_room():
    variable = contextvars.ContextVar("request")
    requests = []

    async def handle(pool, scope):
        request = Request()
        requests.append(weakref.ref(request))
        variable.set(request)
        with scope:
            await use(pool, "b")

    closing = Stage()
    servers = Servers()
    servers.closings["a"] = closing
    async with running(servers, max_open=1) as (pool, tg):
        await use(pool, "a")
        scope = anyio.CancelScope()
        tg.start_soon(handle, pool, scope)
        await closing.reached.wait()
        scope.cancel()
        await settle()
        gc.collect()
        assert pool.stats().waiting == 0
        assert requests[0]() is None
        closing.let_go.set()


class OddTimeoutError(StartTimeoutError):
    """An error of a transport, which does not call the constructor of its base class."""

    def __init__(self):
        Exception.__init__(self, "odd")


async def test_an_odd_timeout_error_of_a_transport_reaches_the_user():
    odd = OddTimeoutError()
    async with running(Servers(opening=raises(odd))) as (pool, _):
        for timeout in (None, 9):
            with pytest.raises(OddTimeoutError):
                await use(pool, "a", timeout)


async def test_a_refusal_of_the_open_function_leaves_no_reference_cycle():
    class RefusedError(Exception):
        def __init__(self):
            errors.append(weakref.ref(self))

    class Refusing(Servers):
        def __call__(self, key):
            raise RefusedError

    errors = []
    async with running(Refusing()) as (pool, _):
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                with pytest.raises(RefusedError):
                    await use(pool, "a")
            assert [error() for error in errors] == [None] * 3
        finally:
            gc.enable()


def test_a_pool_stays_open_while_the_garbage_of_an_earlier_event_loop_is_collected():
    servers = Servers()
    pool = ConnectionPool(servers, idle_timeout=None)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending"
    loop.run_until_complete(pool.start())
    loop.close()
    del loop

    async def start_again():
        async with pool:
            collect_silently()
            assert servers.of(await use(pool, "a"))
            with pytest.raises(ManagerInUseError):
                await pool.open_connection().__aenter__()

    asyncio.run(start_again())
    collect_silently()


async def test_a_policy_that_is_removed_while_a_connection_is_open_costs_no_slot():
    servers = Servers(reconnect=AT_ONCE)
    async with running(servers, max_open=1, idle_timeout=None) as (pool, tg):
        async with pool.acquire("a"):
            servers.last("a").reconnect = None
            servers.last("a").connection_lost()
            await settle()
        await settle()
        await slots(pool, tg, 1)


@in_virtual_time
async def test_a_user_gets_another_connection_while_a_lost_one_closes_that_will_not_open_again():
    servers = Servers(closing=Stage(), reconnect=AT_ONCE)
    async with running(servers) as (pool, tg):
        await use(pool, "a")
        servers.last("a").connection_lost(OSError("gone"))
        await servers.closing.reached.wait()
        tg.start_soon(servers.last("a").stop)
        for _ in range(20):
            await checkpoint()
        user = User(tg, pool, "a")
        for _ in range(50):  # not settle(), because the user must not try again and again
            await checkpoint()
        assert user.is_inside
        assert servers.asked == ["a", "a"]
        servers.closing.let_go.set()


@in_virtual_time
async def test_a_user_leaves_a_discarded_connection_that_outlived_its_pool():
    servers = Servers(closing=Stage(shield=True), reconnect=AT_ONCE)
    pool = ConnectionPool(servers)
    await pool.start()
    async with pool.acquire("a"):
        await pool.discard("a")
        with pytest.raises(StopTimeoutError):
            await pool.stop()
    servers.closing.let_go.set()
    await lasting(DAY)()
    assert not servers.alive
