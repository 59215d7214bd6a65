"""Tests `ScriptedConnectionManager` in the way that tests of applications use it."""

import copy
import inspect
import logging
import pickle
import re
import types
from functools import partial
from math import inf, nan

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from members import Outer
from probe import raises
from proof.clocks import in_virtual_time, run_and_abandon
from reopening import Call, in_turn, is_same, retries, settle, what_connection_raises

from ownertask import (
    ConnectionGroup,
    ConnectionLostError,
    ConnectionPool,
    ConnectionState,
    ConnectionStoppedError,
    NotConnectedError,
    ReconnectPolicy,
    StartTimeoutError,
    StopTimeoutError,
)
from ownertask.testing import ScriptedConnectionManager, ScriptedRun

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState

STEADY = ReconnectPolicy(initial_delay=1, multiplier=1, jitter=0, stable_after=0)
"""A policy that tries again one second after each failure."""


class Fake:
    """A connection whose calls return the number of calls so far."""

    def __init__(self):
        self.calls = 0

    async def call(self):
        await checkpoint()
        self.calls += 1
        return self.calls


def scripted(*runs, name="fake", **options):
    return ScriptedConnectionManager(Fake(), *runs, name=name, **options)


async def seconds(function, *args):
    """Returns how long a call takes, in virtual time."""
    began = anyio.current_time()
    await function(*args)
    return anyio.current_time() - began


# Opening.


async def test_without_a_script_each_run_opens_and_closes_at_once():
    fake = Fake()
    manager = ScriptedConnectionManager(fake)
    assert (manager.name, manager.state, manager.openings) == ("ScriptedConnectionManager", NEW, 0)
    for number in (1, 2, 3):
        async with manager as connection:
            assert connection is manager.connection is fake
            assert manager.openings == number
        assert manager.state is CLOSED
        assert manager.exception is None


async def test_a_connection_can_be_opened_in_the_callers_task():
    manager = scripted(ScriptedRun(lost_after=checkpoint))
    async with manager.open_connection() as connection:
        await settle()
        assert await connection.call() == 1
    assert (manager.state, manager.openings) == (NEW, 1)


@in_virtual_time
async def test_opening_takes_the_time_in_the_script():
    manager = scripted(ScriptedRun(opens_after=60), ScriptedRun(opens_after=5))
    assert await seconds(manager.start) == 60
    await manager.stop()
    for _ in range(3):  # the last run repeats
        assert await seconds(manager.start) == 5
        await manager.stop()


async def test_opening_ends_when_a_function_returns():
    event = anyio.Event()
    manager = scripted(ScriptedRun(opens_after=event.wait))
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(manager.start)
        await wait_all_tasks_blocked()
        assert (manager.state, manager.openings) == (OPENING, 1)
        event.set()
    assert manager.state is OPEN
    await manager.stop()


@in_virtual_time
async def test_a_start_timeout_ends_an_opening_that_takes_too_long():
    for wait in (inf, 61, anyio.sleep_forever):
        manager = scripted(ScriptedRun(opens_after=wait), start_timeout=60)
        began = anyio.current_time()
        with pytest.raises(StartTimeoutError, match="fake: not connected after 60 s"):
            await manager.start()
        assert anyio.current_time() - began == 60
        assert manager.state is FAILED


async def test_stop_ends_an_opening_and_the_next_start_follows_the_next_run():
    manager = scripted(ScriptedRun(opens_after=inf, closes_after=anyio.sleep_forever), ScriptedRun())
    async with anyio.create_task_group() as task_group:
        start = Call(task_group, manager.start)
        await wait_all_tasks_blocked()
        await manager.stop()  # nothing is open, so closes_after does not apply
    assert isinstance(start.error, ConnectionStoppedError)
    assert manager.state is CLOSED
    await manager.start()
    assert manager.openings == 2
    await manager.stop()


@in_virtual_time
async def test_an_opening_fails_with_the_exception_in_the_script():
    error = OSError("refused")
    manager = scripted(ScriptedRun(opens_after=3, fails_with=error))
    began = anyio.current_time()
    with pytest.raises(OSError) as caught:
        await manager.start()
    assert caught.value is error
    assert anyio.current_time() - began == 3
    assert error.__notes__ == ["ownertask: raised by fake while opening"]
    assert (manager.state, manager.exception) == (FAILED, error)
    missing = what_connection_raises(manager)
    assert isinstance(missing, NotConnectedError)
    assert missing.__cause__ is error


def depth(error):
    traceback, number = error.__traceback__, 0
    while traceback is not None:
        traceback, number = traceback.tb_next, number + 1
    return number


async def test_the_traceback_of_an_exception_that_is_raised_many_times_does_not_grow():
    error = OSError("refused")
    manager = scripted(ScriptedRun(fails_with=error))
    depths = set()
    for _ in range(5):
        with pytest.raises(OSError):
            await manager.start()
        depths.add(depth(error))
    assert len(depths) == 1
    assert len(error.__notes__) == 1


async def test_a_function_can_raise_instead_of_opening():
    manager = scripted(ScriptedRun(opens_after=raises(OSError("no route"))))
    with pytest.raises(OSError, match="no route"):
        await manager.start()


async def test_a_base_exception_reaches_the_caller_of_start():
    class Exit(BaseException):
        pass

    manager = scripted(ScriptedRun(fails_with=Exit()))
    with pytest.raises(Exit):
        await manager.start()
    assert manager.state is FAILED


# Losses.


@in_virtual_time
async def test_a_connection_is_lost_some_time_after_it_opened():
    error = OSError("reset")
    manager = scripted(ScriptedRun(opens_after=10, lost_after=30, lost_with=error), ScriptedRun())
    assert await seconds(manager.start) == 10
    began = anyio.current_time()
    with pytest.raises(ConnectionLostError, match="fake: the connection was lost: reset") as caught:
        await manager.wait_closed()
    assert caught.value.__cause__ is error
    assert anyio.current_time() - began == 30
    assert manager.state is FAILED
    assert is_same(what_connection_raises(manager), caught.value)
    await manager.start()
    await manager.stop()
    assert manager.exception is None


async def test_a_connection_is_lost_when_a_function_returns():
    event = anyio.Event()
    manager = scripted(ScriptedRun(lost_after=event.wait))
    await manager.start()
    await settle()
    assert manager.state is OPEN
    event.set()
    with pytest.raises(ConnectionLostError, match="fake: the connection was lost$") as caught:
        await manager.wait_closed()
    assert caught.value.__cause__ is None


async def test_a_function_can_raise_the_cause_of_a_loss():
    manager = scripted(ScriptedRun(lost_after=raises(OSError("reset")), lost_with=OSError("unused")))
    await manager.start()
    with pytest.raises(ConnectionLostError, match="the connection was lost: reset"):
        await manager.wait_closed()


async def returns_at_once():
    pass


@in_turn("wait", [0, 0.0, returns_at_once])
async def test_start_returns_a_connection_that_is_lost_at_once(wait):
    manager = scripted(ScriptedRun(lost_after=wait))
    connection = await manager.start()
    assert await connection.call() == 1
    with pytest.raises(ConnectionLostError):
        await manager.wait_closed()


@in_virtual_time
async def test_a_stop_before_the_loss_prevents_it():
    for wait in (inf, 60, anyio.sleep_forever):
        manager = scripted(ScriptedRun(lost_after=wait, closes_after=5))
        await manager.start()
        await anyio.sleep(57)
        assert await seconds(manager.stop) == 5
        await manager.wait_closed()
        assert (manager.state, manager.exception) == (CLOSED, None)


@in_virtual_time
async def test_a_lost_connection_closes_as_slowly_as_the_script_says():
    manager = scripted(ScriptedRun(lost_after=1, closes_after=20))
    await manager.start()
    began = anyio.current_time()
    await anyio.sleep(2)
    assert manager.state is CLOSING
    with pytest.raises(ConnectionLostError):
        await manager.wait_closed()
    assert anyio.current_time() - began == 21


@in_virtual_time
async def test_watch_and_lost_after_work_together():
    watched = []

    async def watch(connection, wait):
        watched.append(connection)
        await anyio.sleep(wait)

    for wait, message in ((5, "lost because watch"), (15, "reset")):
        run = ScriptedRun(lost_after=10, lost_with=OSError("reset"))
        manager = scripted(run, watch=partial(watch, wait=wait))
        connection = await manager.start()
        began = anyio.current_time()
        with pytest.raises(ConnectionLostError, match=message):
            await manager.wait_closed()
        assert anyio.current_time() - began == min(wait, 10)
        assert watched.pop() is connection


# Closing.


@in_virtual_time
async def test_closing_takes_the_time_in_the_script():
    manager = scripted(ScriptedRun(closes_after=20))
    await manager.start()
    assert await seconds(manager.stop) == 20
    assert manager.state is CLOSED


async def test_closing_ends_when_a_function_returns():
    event = anyio.Event()
    manager = scripted(ScriptedRun(closes_after=event.wait))
    await manager.start()
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(manager.stop)
        await wait_all_tasks_blocked()
        assert manager.state is CLOSING
        event.set()
    assert manager.state is CLOSED


async def test_a_function_can_raise_an_error_while_closing(caplog):
    caplog.set_level(logging.WARNING)
    manager = scripted(ScriptedRun(closes_after=raises(OSError("half closed"))))
    await manager.start()
    await manager.stop()
    assert str(manager.exception) == "half closed"
    assert [record.getMessage() for record in caplog.records] == ["fake: error while closing"]


@in_virtual_time
async def test_a_forced_stop_ends_a_closing_that_takes_too_long():
    for wait in (inf, 3600, anyio.sleep_forever):
        for timeout in (0, 7):
            manager = scripted(ScriptedRun(closes_after=wait))
            await manager.start()
            assert await seconds(manager.stop, timeout) == timeout
            assert (manager.state, manager.exception) == (CLOSED, None)


@in_virtual_time
async def test_a_connection_that_refuses_to_close_times_out_and_recovers():
    for timeout in (0, 30):
        manager = scripted(ScriptedRun(closes_after=100, refuses_to_close=True), ScriptedRun())
        await manager.start()
        began = anyio.current_time()
        with pytest.raises(
            StopTimeoutError, match="fake: could not be stopped; the task 'owner task of"
        ):
            await manager.stop(timeout)
        assert anyio.current_time() - began == timeout + 10
        assert manager.state is CLOSING
        with pytest.raises(StopTimeoutError):
            await manager.start(timeout=50)
        await manager.wait_closed()
        assert anyio.current_time() - began == 100
        assert manager.state is CLOSED
        await manager.start()
        assert await seconds(manager.stop) == 0


@in_virtual_time
async def test_a_connection_that_briefly_refuses_to_close_closes_normally():
    manager = scripted(ScriptedRun(lost_after=inf, closes_after=5, refuses_to_close=True))
    await manager.start()
    assert await seconds(manager.stop, 0) == 5
    assert manager.state is CLOSED


async def test_a_connection_refuses_to_close_until_a_function_returns(grace):
    event = anyio.Event()
    manager = scripted(ScriptedRun(closes_after=event.wait, refuses_to_close=True))
    await manager.start()
    with pytest.raises(StopTimeoutError):
        await manager.stop(0)
    event.set()
    await manager.wait_closed()
    assert manager.state is CLOSED


@in_virtual_time
async def test_an_exception_in_the_callers_task_is_raised_after_closing():
    manager = scripted(ScriptedRun(closes_after=8))
    began = anyio.current_time()
    with pytest.raises(KeyError):
        async with manager.open_connection():
            raise KeyError
    assert anyio.current_time() - began == 8


@pytest.mark.parametrize("clock", ["asyncio", "trio"])
@pytest.mark.parametrize("lost_after", [None, inf])
def test_the_end_of_an_event_loop_ends_a_run(clock, lost_after, caplog):
    """On asyncio, the loop is closed, so nothing can be awaited."""
    manager = scripted(ScriptedRun(lost_after=lost_after, closes_after=1))

    async def main(abandon):
        await manager.start()
        await abandon()

    run_and_abandon(main, clock=clock)
    assert manager.state in {CLOSED, FAILED}
    anyio.run(manager.start)
    assert manager.openings == 2


@types.coroutine
def suspended():
    yield


def test_a_connection_that_the_garbage_collector_closes_awaits_nothing():
    manager = scripted(ScriptedRun(opens_after=returns_at_once, closes_after=suspended))

    async def hold():
        async with manager.open_connection():
            await suspended()

    coroutine = hold()
    coroutine.send(None)
    coroutine.close()  # raises RuntimeError if the coroutine awaits


# Policies.


@in_virtual_time
async def test_a_service_recovers_after_two_failures():
    refused = OSError("refused")
    run = ScriptedRun(fails_with=refused)
    manager = scripted(run, run, ScriptedRun(), reconnect=STEADY)
    states = []
    manager.add_listener(lambda manager, old, new: states.append(new))
    assert await seconds(manager.start) == 2
    assert manager.openings == 3
    assert states == [OPENING, FAILED, OPENING, FAILED, OPENING, OPEN]
    await manager.stop()


@in_virtual_time
async def test_a_lost_connection_is_opened_again_and_current_follows_it():
    manager = scripted(ScriptedRun(opens_after=2, lost_after=10), reconnect=STEADY)
    assert isinstance(manager.current, Fake)
    await manager.start()
    for number in (1, 2, 3):
        assert await manager.current.call() == number
        assert manager.openings == number
        await anyio.sleep(11)  # the delay of the policy has just ended
        assert manager.state is OPENING
        assert str(manager.reconnecting.exception) == "fake: the connection was lost"
    await manager.stop()
    assert manager.state is CLOSED


async def test_a_policy_gives_up():
    manager = scripted(ScriptedRun(fails_with=OSError("refused")), reconnect=retries(2))
    with pytest.raises(OSError, match="refused"):
        await manager.start()
    assert (manager.state, manager.openings) == (FAILED, 3)


@in_turn("argument", ["opens_after", "lost_after", "closes_after"])
async def test_a_function_that_is_not_async_is_an_error(argument):
    message = rf"{argument}\(\) must return an awaitable, not NoneType"
    manager = scripted(ScriptedRun(**{argument: lambda: None}), reconnect=retries(9))
    try:
        await manager.start()
        await (settle if argument == "lost_after" else manager.stop)()
    except TypeError as error:
        assert argument == "opens_after"
        assert re.fullmatch(message, str(error))
    assert re.search(message, str(manager.exception))
    assert (manager.state, manager.openings) == (FAILED, 1)


# As a part of other managers.


@in_virtual_time
async def test_members_of_a_group_follow_their_scripts():
    down = OSError("down")
    group = ConnectionGroup(
        {
            "works": scripted(),
            "down": scripted(ScriptedRun(fails_with=down)),
            "mute": scripted(ScriptedRun(opens_after=inf)),
            "dies": scripted(ScriptedRun(lost_after=60)),
            "slow": scripted(ScriptedRun(closes_after=20)),
        },
        member_timeout=5,
    )
    assert await seconds(group.start) == 5
    assert set(group.connection) == {"works", "dies", "slow"}
    assert group.failures["down"] is down
    assert isinstance(group.failures["mute"], StartTimeoutError)
    await anyio.sleep(60)
    assert set(group.connection) == {"works", "slow"}
    assert await seconds(group.stop) == 20


async def test_a_pool_opens_a_fake_for_each_key():
    managers = {}

    def open_key(key):
        managers[key] = scripted(
            ScriptedRun(fails_with=OSError("down")) if key == "c" else ScriptedRun()
        )
        return managers[key]

    async with ConnectionPool(open_key) as pool:
        async with pool.acquire("a") as first, pool.acquire("b") as second:
            assert (await first.call(), await second.call()) == (1, 1)
        with pytest.raises(OSError, match="down"):
            async with pool.acquire("c"):
                pass
    assert {key: manager.openings for key, manager in managers.items()} == {"a": 1, "b": 1, "c": 1}


async def test_the_loss_of_the_inner_connection_ends_the_outer_connection():
    inner = scripted(ScriptedRun(lost_after=checkpoint, lost_with=OSError("reset")))
    outer = Outer(inner)
    await outer.start()
    with pytest.raises(ConnectionLostError, match="outer: the connection was lost: reset"):
        await outer.wait_closed()
    assert inner.openings == 1


# Copies.


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
async def test_a_copy_begins_with_the_first_run_of_the_script(copied):
    runs = (
        ScriptedRun(fails_with=OSError("refused")),
        ScriptedRun(lost_after=0, lost_with=OSError("cut")),
    )
    manager = scripted(*runs, start_timeout=5, reconnect=STEADY)
    await manager.start()
    await manager.stop()
    twin = copied(manager)
    assert (twin.state, twin.openings, manager.openings) == (NEW, 0, 2)
    assert (twin.name, twin.start_timeout, twin.reconnect) == ("fake", 5, STEADY)
    twin.reconnect = None
    with pytest.raises(OSError, match="refused"):
        await twin.start()


# Arguments.


def test_each_argument_of_a_run_is_checked():
    awaited = checkpoint()
    wrong = [
        (TypeError, {"opens_after": None}, "a number of seconds or an async function, not NoneType"),
        (TypeError, {"opens_after": True}, "a number of seconds or an async function, not bool"),
        (TypeError, {"opens_after": anyio.Event()}, r"not \w*Event\w*; pass its method `wait`"),
        (
            TypeError,
            {"closes_after": awaited},
            "not coroutine; pass the function itself, without calling",
        ),
        (TypeError, {"lost_after": "5"}, "a number of seconds or an async function or None, not str"),
        (ValueError, {"opens_after": -1}, "a non-negative number of seconds, not -1"),
        (ValueError, {"lost_after": nan}, "a non-negative number of seconds, not nan"),
        (ValueError, {"closes_after": -inf}, "a non-negative number of seconds, not -inf"),
        (TypeError, {"fails_with": "refused"}, "an exception or None, not str"),
        (
            TypeError,
            {"fails_with": OSError},
            "an exception or None, not <class 'OSError'>; pass an instance",
        ),
        (TypeError, {"lost_with": 5, "lost_after": 1}, "an exception or None, not int"),
        (TypeError, {"refuses_to_close": 1}, "a boolean, not int"),
    ]
    for kind, arguments, message in wrong:
        print(arguments)
        argument = next(iter(arguments))
        with pytest.raises(kind, match=f"^{argument} must be .*{message}"):
            ScriptedRun(**arguments)
    assert inspect.getcoroutinestate(awaited) == inspect.CORO_CLOSED
    with pytest.raises(TypeError, match="positional"):
        ScriptedRun(5)


def test_a_run_in_which_an_argument_has_no_effect_is_rejected():
    failing = {"fails_with": OSError()}
    requires = "refuses_to_close requires closes_after: a positive and finite"
    wrong = [
        ({**failing, "lost_after": 0}, "lost_after has no effect with fails_with"),
        ({**failing, "closes_after": 1}, "closes_after has no effect with fails_with"),
        ({**failing, "closes_after": checkpoint}, "closes_after has no effect with fails_with"),
        ({"lost_with": OSError()}, "lost_with has no effect without lost_after"),
        ({"refuses_to_close": True}, requires),
        ({"refuses_to_close": True, "closes_after": inf}, requires),
        ({**failing, "refuses_to_close": True}, requires),
    ]
    for arguments, message in wrong:
        print(arguments)
        with pytest.raises(ValueError, match=message):
            ScriptedRun(**arguments)


def test_runs_cannot_be_changed_and_are_compared_by_value():
    run = ScriptedRun(lost_after=5)
    assert run == ScriptedRun(lost_after=5.0) != ScriptedRun()
    assert hash(run) == hash(ScriptedRun(lost_after=5))
    with pytest.raises(AttributeError):
        run.lost_after = 6


def test_each_argument_of_the_manager_is_checked():
    wrong = [
        (TypeError, ([ScriptedRun()],), {}, "runs must be ScriptedRun objects, not list"),
        (TypeError, (ScriptedRun(), None), {}, "runs must be ScriptedRun objects, not NoneType"),
        (TypeError, (), {"name": 5}, "name must be a string or None, not int"),
        (ValueError, (), {"start_timeout": -1}, "start_timeout must be a non-negative"),
        (TypeError, (), {"reconnect": 5}, "reconnect must be a ReconnectPolicy or None, not int"),
        (TypeError, (), {"watch": 5}, "watch must be callable or None, not int"),
    ]
    for kind, runs, options, message in wrong:
        with pytest.raises(kind, match=message):
            ScriptedConnectionManager(Fake(), *runs, **options)


def test_openings_cannot_be_set():
    with pytest.raises(AttributeError):
        scripted().openings = 5
