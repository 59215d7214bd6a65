"""Tests for the ends of groups: strict groups, stop(), cancellation, losses, event loops and nesting.

Tests of many cases print each one, so the last line that a failed test printed names its case.
"""

import logging
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import product

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint
from members import (
    HOUR,
    Member,
    Outer,
    assert_consistent,
    assert_ended,
    assert_over,
    at_each_step,
    members,
    stuck,
)
from probe import Stage, raises
from proof import clocks
from proof.clocks import in_virtual_time
from reopening import AT_ONCE, NOT_YET, Call, in_turn, settle

from ownertask import (
    ConnectionGroup,
    ConnectionLostError,
    ConnectionManager,
    ConnectionManagerError,
    ConnectionState,
    ConnectionStoppedError,
    ManagerInUseError,
    NotConnectedError,
    OwnerTaskError,
    ReconnectPolicy,
    StartTimeoutError,
    StopTimeoutError,
    WrongEventLoopError,
)

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState

TWICE = ReconnectPolicy(initial_delay=0, jitter=0, max_retries=1)


class Custom(BaseException):
    pass


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# strict=True.


@in_turn("others", ["open", "opening", "waiting for their turn"])
async def test_a_strict_group_raises_the_error_of_the_first_member_that_fails(others):
    error, stage, failing = ValueError("wrong"), Stage(), Stage()

    async def fail():
        await failing()
        raise error

    first = Member("first", stage if others == "opening" else checkpoint)
    second, third = Member("second", fail), Member("third", stage if others == "opening" else checkpoint)
    limit = 2 if others == "waiting for their turn" else None
    group = ConnectionGroup({1: first, 2: second, 3: third}, strict=True, max_concurrent_starts=limit)
    async with anyio.create_task_group() as tg:
        start = Call(tg, group.start)
        if others == "opening":
            await stage.reached.wait()
        await failing.reached.wait()
        await settle()
        failing.let_go.set()
    assert start.error is error
    assert group.state is FAILED
    assert group.exception is error
    assert second.state is FAILED
    assert first.graceful == (others != "opening")
    assert group.failures == {2: error}
    await assert_over(group)


@in_virtual_time
async def test_a_strict_group_raises_the_timeout_of_a_member():
    for policy in (None, NOT_YET):
        print(policy)
        late = Member("late", anyio.sleep_forever, policy=policy)
        group = ConnectionGroup({"a": Member("a"), "b": late}, strict=True, member_timeout=7)
        began = anyio.current_time()
        with pytest.raises(StartTimeoutError) as caught:
            await group.start()
        assert (caught.value.name, caught.value.timeout) == ("late", 7)
        assert anyio.current_time() - began == pytest.approx(7, abs=0.3)
        assert group.state is FAILED
        assert group.managers["a"].graceful == 1
        await assert_over(group)


@in_virtual_time
async def test_a_strict_group_raises_the_last_failure_of_a_member_that_still_tries_after_its_timeout():
    failing = Member("failing", raises(OSError("refused")), policy=NOT_YET)
    group = ConnectionGroup({"a": Member("a"), "b": failing}, strict=True, member_timeout=7)
    began = anyio.current_time()
    with pytest.raises((OSError, StartTimeoutError), match="refused"):
        await group.start()
    assert anyio.current_time() - began == pytest.approx(7, abs=0.3)
    assert len(failing.entered) == 1
    await assert_over(group)


async def test_a_strict_group_raises_the_last_failure_of_a_policy_that_gives_up():
    group = ConnectionGroup({"a": Member("a", raises(OSError("refused")), policy=TWICE)}, strict=True)
    with pytest.raises(OSError, match="refused"):
        await group.start()
    assert len(group.managers["a"].entered) == 2
    await assert_over(group)


class LostWhileOpening(ConnectionManager[object]):
    """Reports a loss without a reason from its second attempt on, and raises the reason afterwards."""

    is_broken = False

    @asynccontextmanager
    async def open_connection(self):
        if self.is_broken:
            self.connection_lost()
            try:
                await anyio.sleep_forever()
            finally:
                raise OSError("the reason")
        yield object()


async def test_a_strict_group_ends_if_a_member_loses_its_connection_while_it_opens():
    member = LostWhileOpening(name="the member")
    group = ConnectionGroup({"a": Member("a"), "b": member}, strict=True)
    await group.start()
    await member.stop()
    member.is_broken = True
    with pytest.raises(OSError, match="the reason"):
        await member.start()
    await settle()
    assert type(group.exception) is ConnectionLostError
    assert group.exception.__cause__ is member.exception
    with pytest.raises(OSError, match="the reason"):
        await group.start()
    await assert_over(group)


def lose(member):
    member.connection_lost(OSError("the server exited"))


@in_turn("how", ["lost", "lost after a restart", "lost after add", "gave up", "failed to start again"])
async def test_a_strict_group_is_lost_when_a_member_ends_for_good(how, caplog):
    caplog.clear()
    closing = Stage()
    other, member = Member("other", closing=closing), Member("the member")
    managers = {"other": other} if how == "lost after add" else {"other": other, "x": member}
    group = ConnectionGroup(managers, strict=True, name="the group")
    member.reconnect = TWICE if how == "gave up" else None
    await group.start()
    if how == "lost after add":
        await group.add("x", member)
    elif "again" in how or "restart" in how:
        await member.stop()
        assert group.state is OPEN
        member.opening = raises(OSError("the server exited")) if "again" in how else checkpoint
        with suppress(OSError):
            await member.start()
    if how == "gave up":
        member.opening = raises(OSError("the server exited"))
    if "again" not in how:
        lose(member)
    await closing.reached.wait()
    await settle()
    assert group.state is CLOSING
    closing.let_go.set()
    with pytest.raises(ConnectionLostError) as caught:
        await group.wait_closed()
    assert caught.value.name == "the group"
    assert group.state is FAILED
    assert type(caught.value.__cause__) is (ConnectionLostError if "lost" in how else OSError)
    assert str(caught.value.__cause__) == str(member.exception)
    assert "the server exited" in str(caught.value)
    with pytest.raises(ConnectionLostError):
        group.connection  # noqa: B018
    assert other.graceful == 1
    assert other.state is CLOSED
    assert "x" in group.failures
    await assert_over(group)


async def test_a_strict_group_survives_reconnecting_and_stopped_members():
    member = Member("member", policy=AT_ONCE)
    group = ConnectionGroup({"a": Member("a"), "b": member, "c": Member("c")}, strict=True)
    view = await group.start()
    for _ in range(5):
        lose(member)
        await member.wait_open()
    await group.managers["a"].stop()
    await group.remove("c")
    await settle()
    assert group.state is OPEN
    assert list(view) == ["b"]
    await group.stop()
    assert group.state is CLOSED
    await assert_over(group)


async def test_a_group_that_is_not_strict_survives_the_loss_of_all_members():
    group = ConnectionGroup(members("a", "b", "c"))
    view = await group.start()
    for member in group.managers.values():
        lose(member)
    await settle()
    assert group.state is OPEN
    assert dict(view) == {}
    assert set(group.failures) == {"a", "b", "c"}
    await group.managers["a"].start()
    assert list(view) == ["a"]
    await group.stop()
    await assert_over(group)


async def test_a_strict_group_with_a_policy_opens_again_when_a_member_is_lost():
    group = ConnectionGroup(members("a", "b"), strict=True)
    group.reconnect = AT_ONCE
    view = await group.start()
    before = dict(view)
    for number in range(2, 5):
        lose(group.managers["a"])
        await settle()
        assert await group.wait_open() is group.connection
        view = group.connection
        assert [len(member.entered) for member in group.managers.values()] == [number] * 2
        assert not set(view.values()) & set(before.values())
        before = dict(view)
    await group.stop()
    await assert_over(group)


class Refused(Member):
    """A member for which a `PermissionError` is permanent."""

    def is_permanent(self, exc):
        return isinstance(exc, PermissionError)


async def test_a_strict_group_with_a_policy_gives_up_if_a_part_of_the_cause_is_permanent():
    timeout = TimeoutError("slow")
    for cause, is_permanent in (
        (ExceptionGroup("both", [timeout, PermissionError("wrong token")]), True),
        (ExceptionGroup("both", [timeout, OSError("cut")]), False),
    ):
        print(cause)
        member = Refused("member")
        group = ConnectionGroup({"a": Member("a"), "b": member}, strict=True)
        group.reconnect = AT_ONCE
        await group.start()
        member.connection_lost(cause)
        await settle()
        assert group.state is (FAILED if is_permanent else OPEN)
        assert len(member.entered) == 2 - is_permanent
        if is_permanent:
            assert group.exception.__cause__.__cause__ is cause
        await group.stop()
        await assert_over(group)


# stop().


@in_virtual_time
async def test_stop_closes_all_members_at_the_same_time():
    group = ConnectionGroup(
        {n: Member(f"member {n}", closing=partial(anyio.sleep, 9)) for n in range(10)}
    )
    await group.start()
    began = anyio.current_time()
    await group.stop()
    assert anyio.current_time() - began == pytest.approx(9, abs=0.3)
    assert [member.graceful for member in group.managers.values()] == [1] * 10
    assert group.state is CLOSED
    await assert_over(group)


STOPS = [
    ((), 30),
    ((30,), 30),
    ((4.5,), 4.5),
    ((0,), 0),
    ((None,), 50),  # the member ends on its own
]


@in_virtual_time
async def test_the_timeout_of_stop_is_the_grace_of_each_member():
    for arguments, seconds in STOPS:
        print(arguments)
        slow = [Member(f"slow {n}", closing=partial(anyio.sleep, 50)) for n in range(3)]
        quick = Member("quick")
        group = ConnectionGroup(dict(enumerate([*slow, quick])))
        await group.start()
        began = anyio.current_time()
        await group.stop(*arguments)
        assert anyio.current_time() - began == pytest.approx(seconds, abs=0.3)
        assert [member.graceful for member in slow] == [seconds == 50] * 3
        assert quick.graceful == (seconds > 0)
        assert group.state is CLOSED
        await assert_over(group)


@in_virtual_time
async def test_the_earliest_deadline_of_several_stops_applies_to_the_members():
    group = ConnectionGroup(
        {n: Member(f"member {n}", closing=partial(anyio.sleep, HOUR)) for n in range(3)}
    )
    await group.start()
    began = anyio.current_time()
    async with anyio.create_task_group() as tg:
        tg.start_soon(group.stop, None)
        await anyio.sleep(5)
        tg.start_soon(group.stop, 4)
        await anyio.sleep(1)
        tg.start_soon(group.stop, 100)
    assert anyio.current_time() - began == pytest.approx(9, abs=0.3)
    await assert_over(group)


@in_virtual_time
async def test_G2_ten_stubborn_members_stop_in_the_time_of_one():
    async def ignore_cancellation_for_a_while():
        with anyio.CancelScope(shield=True):
            await anyio.sleep(8)

    group = ConnectionGroup(
        {n: Member(f"member {n}", closing=ignore_cancellation_for_a_while) for n in range(10)}
    )
    for timeout in (0, 3, 30):
        await group.start()
        began = anyio.current_time()
        await group.stop(timeout)
        assert anyio.current_time() - began == pytest.approx(8, abs=0.3)
        assert_ended(group, *group.managers.values())
    await assert_over(group)


@in_virtual_time
async def test_G2_stop_raises_the_error_of_a_member_when_the_others_are_closed():
    for names in (["stubborn"], [f"stubborn {number}" for number in range(10)]):
        async with stuck() as stage:
            slow = Member("slow", closing=partial(anyio.sleep, 5))
            stubborn = [Member(name, closing=stage) for name in names]
            group = ConnectionGroup(
                {"slow": slow, "quick": Member("quick"), **dict(enumerate(stubborn))}
            )
            await group.start()
            began = anyio.current_time()
            with pytest.raises(StopTimeoutError) as caught:
                await group.stop(7)
            assert anyio.current_time() - began == pytest.approx(17, abs=2)
            assert caught.value.name in names
            assert f"owner task of {caught.value.name}" in str(caught.value)
            assert slow.graceful == group.managers["quick"].graceful == 1
            assert_ended(slow, group.managers["quick"])
            entered = len(slow.entered)
            with pytest.raises((StopTimeoutError, ManagerInUseError)):  # a second owner is never started
                await group.start()
            assert len(slow.entered) == entered
            with pytest.raises((StopTimeoutError, ManagerInUseError)):
                await stubborn[0].start()
            assert [len(member.entered) for member in stubborn] == [1] * len(stubborn)
            stage.let_go.set()
            await settle()
            await group.stop()
            await assert_over(group)
            assert len(await group.start()) == len(group.managers)
            await group.stop()


async def test_an_error_of_a_closing_member_is_logged_once_and_not_raised(caplog):
    group = ConnectionGroup(
        {"a": Member("a"), "b": Member("b", closing=raises(OSError("broken"))), "c": Member("c")}
    )
    await group.start()
    await group.stop()
    assert group.state is CLOSED
    assert len(warnings_in(caplog)) == 1
    assert [member.graceful for member in group.managers.values()] == [1, 0, 1]
    assert group.managers["b"].state is FAILED
    await assert_over(group)


@in_turn("kind", ["scope", "native"])
async def test_a_stop_that_is_cancelled_forces_the_members(kind):
    stages = [Stage() for _ in range(3)]
    group = ConnectionGroup({n: Member(f"member {n}", closing=stage) for n, stage in enumerate(stages)})
    await group.start()
    async with anyio.create_task_group() as tg:
        stop = Call(tg, group.stop)
        for stage in stages:
            await stage.reached.wait()
        stop.cancel(kind)
    assert stop.ended == "cancelled"
    assert_ended(group, *group.managers.values())
    assert [member.graceful for member in group.managers.values()] == [0] * 3
    await assert_over(group)


# G3: cancelled or stopped while it opens.


def group_of_all_kinds(**options):
    """Returns a group whose members open at once, slowly, never, or only after failures."""

    async def slowly():
        for _ in range(8):
            await checkpoint()

    return ConnectionGroup(
        {
            "at once": Member("at once"),
            "slow": Member("slow", slowly, slowly),
            "refused": Member("refused", raises(OSError("refused"))),
            "in delay": Member("in delay", raises(OSError("refused")), policy=NOT_YET),
            "crashing": Member("crashing", raises(OSError("refused")), policy=AT_ONCE),
            "mute": Member("mute", anyio.sleep_forever),
            "group": ConnectionGroup(
                {"inner": Member("inner", slowly), "mute": Member("b", anyio.sleep_forever)}
            ),
        },
        name="the group",
        **options,
    )


def all_managers(group):
    for manager in group.managers.values():
        yield manager
        if isinstance(manager, ConnectionGroup):
            yield from all_managers(manager)


ENDS = ["cancel", "native", "stop", "lose", "two stops", "cancel and stop"]


@in_virtual_time
@in_turn("case", [*product(ENDS, [True]), ("native", False), ("stop", False)])
async def test_G3_nothing_is_left_of_a_group_that_ends_at_any_step_while_it_opens(case):
    end, only_good = case
    limit = 2 if end in {"cancel", "two stops"} else None

    async def scenario(steps):
        group = group_of_all_kinds(max_concurrent_starts=limit)
        if only_good:
            for key in [*group.managers][2:]:
                await group.remove(key)
        before = dict(group.managers)
        async with anyio.create_task_group() as tg:
            start = Call(tg, group.start)
            await steps()
            was_waiting = start.ended is None
            if "cancel" in end or end == "native" or group.state is NEW:  # start() has not run yet
                start.cancel("native" if end == "native" else "scope")
            elif end == "lose":
                group.connection_lost(OSError("gone"))
            if "stop" in end:
                await group.stop()
                assert_ended(group, *all_managers(group))
            if end == "two stops":
                await group.stop(0)
        if start.ended == "returned":
            if end == "lose":
                with pytest.raises(ConnectionLostError):
                    await group.wait_closed()
            else:
                await group.stop()
        elif start.ended == "raised":
            expected = ConnectionLostError if end == "lose" else ConnectionStoppedError
            assert type(start.error) is expected
            assert start.error.name == "the group"
        assert group.managers == before
        assert_ended(group, *all_managers(group))
        await assert_over(group)
        return was_waiting

    await at_each_step(scenario, at_most=500 if only_good else 16)


@in_virtual_time
async def test_G3_a_group_that_is_cancelled_or_stopped_while_it_waits_leaves_nothing():
    for end in ("cancel", "stop", "timeout"):
        group = group_of_all_kinds(member_timeout=HOUR)
        await group.remove("crashing")
        async with anyio.create_task_group() as tg:
            start = Call(tg, group.start, 2 * 60 if end == "timeout" else None)
            await anyio.sleep(60)
            assert group.state is OPENING
            assert group.managers["slow"].state is OPEN
            if end == "cancel":
                start.scope.cancel()
            elif end == "stop":
                await group.stop()
        assert isinstance(
            start.error,
            {"stop": ConnectionStoppedError, "timeout": StartTimeoutError}.get(end, type(None)),
        )
        assert_ended(*all_managers(group))
        await assert_over(group)


@in_virtual_time
async def test_a_stubborn_member_of_a_group_that_is_cancelled_while_it_opens_does_not_hold_the_caller():
    async with stuck() as stage:
        group = ConnectionGroup({"stuck": Member("stuck", stage), "a": Member("a")})
        began = anyio.current_time()
        async with anyio.create_task_group() as tg:
            start = Call(tg, group.start)
            await stage.reached.wait()
            await settle()
            start.scope.cancel()
        assert anyio.current_time() - began < 25
        assert_ended(group.managers["a"])
        with pytest.raises((StopTimeoutError, ManagerInUseError)):
            await group.start()
        stage.let_go.set()
        await settle()
        await group.stop()
        await assert_over(group)


@in_turn("error", [Custom("custom"), SystemExit(3), GeneratorExit(), KeyboardInterrupt()])
async def test_start_raises_the_base_exception_of_a_member(error, caplog):
    caplog.clear()
    group = ConnectionGroup({"a": Member("a"), "b": Member("b", raises(error))})
    with pytest.raises(type(error)) as caught:
        await group.start()
    assert caught.value is error
    assert not warnings_in(caplog)
    await group.stop()
    assert_ended(group, *group.managers.values())
    await assert_over(group)


# Losses of the group itself.


@in_turn("cause", [None, OSError("gone")])
async def test_the_loss_of_a_group_closes_its_members(cause, caplog):
    caplog.clear()
    group = ConnectionGroup({"a": Member("a"), "policy": Member("p", policy=AT_ONCE)}, name="the group")
    view = await group.start()
    group.connection_lost(cause, connection=view)
    with pytest.raises(ConnectionLostError) as caught:
        await group.wait_closed()
    assert caught.value.__cause__ is cause
    assert_ended(group, *group.managers.values())
    assert [member.state for member in group.managers.values()] == [CLOSED] * 2
    assert [member.graceful for member in group.managers.values()] == [1] * 2
    assert len(warnings_in(caplog)) == 1
    await assert_over(group)


# async with, run(), and calls from inside.


async def test_async_with_opens_and_closes_the_members():
    group = ConnectionGroup(members("a", "b"))
    async with group as view:
        assert len(view) == 2
        async with group as again:
            assert again is view
        assert len(view) == 2
    assert [member.graceful for member in group.managers.values()] == [1, 1]
    assert group.state is CLOSED
    with pytest.raises(LookupError):
        async with group:
            raise LookupError
    await assert_over(group)


async def test_run_keeps_the_members_open_until_it_is_cancelled_or_stopped():
    group = ConnectionGroup(members("a"))
    for end in ("cancel", "stop"):
        async with anyio.create_task_group() as tg:
            view = await tg.start(group.run)
            assert view["a"] is group.managers["a"].connection
            if end == "cancel":
                tg.cancel_scope.cancel()
            else:
                await group.stop()
        assert_ended(group, *group.managers.values())
    strict = ConnectionGroup(members("a"), strict=True)
    with pytest.raises(ExceptionGroup) as caught:
        async with anyio.create_task_group() as tg:
            await tg.start(strict.run)
            lose(strict.managers["a"])
    assert isinstance(caught.value.exceptions[0], ConnectionLostError)
    await assert_over(group)
    await assert_over(strict)


async def test_open_connection_of_a_group_can_be_used_directly():
    group = ConnectionGroup({"a": Member("a"), "b": Member("b", raises(OSError("refused")))})
    async with group.open_connection() as view:
        assert list(view) == ["a"]
        assert view["a"] is group.managers["a"].connection
    await assert_over(group)
    with pytest.raises((LookupError, ExceptionGroup)):
        async with group.open_connection():
            raise LookupError
    await assert_over(group)


@in_virtual_time
async def test_O21_calls_from_inside_a_member_do_not_deadlock():
    calls = {
        "start": lambda group: group.start(),
        "stop": lambda group: group.stop(),
        "stop and wait": lambda group: group.stop(None),
        "wait_closed": lambda group: group.wait_closed(),
        "remove": lambda group: group.remove("a"),
        "add": lambda group: group.add("b", Member("b")),
    }
    for (name, call), where in product(calls.items(), ["opening", "closing"]):
        print(name, where)
        errors = []

        async def inside(call=call, errors=errors, groups=(groups := [])):
            try:
                await call(*groups)
            except (ConnectionManagerError, ValueError, KeyError) as error:
                errors.append(error)

        member = Member("member")
        group = ConnectionGroup({"a": member, "other": Member("other")}, member_timeout=HOUR)
        groups.append(group)
        setattr(member, "opening" if where == "opening" else "close", inside)
        with anyio.move_on_after(5 * HOUR) as scope:
            with suppress(ConnectionManagerError):
                await group.start()
            with suppress(StopTimeoutError):
                await group.stop()
        assert not scope.cancelled_caught, f"{name} deadlocks"
        if (name, where) == ("start", "opening"):
            assert isinstance(errors[0], OwnerTaskError)
        await settle()
        await group.stop()
        await assert_over(group)


# Event loops.


def test_a_group_opens_in_one_event_loop_after_another(anyio_backend):
    group = ConnectionGroup({"a": Member("a"), "policy": Member("p", policy=AT_ONCE)})

    async def use(number):
        with anyio.fail_after(5):
            view = await group.start()
            await group.add(number, Member(f"added {number}"))
            assert len(view) == len(group.managers) == number + 3
            await group.remove("a") if number == 1 else None
            await group.add("a", Member("a")) if number == 1 else None
            await group.stop()
            assert_ended(group, *group.managers.values())

    name, options = anyio_backend
    for number in range(3):
        anyio.run(use, number, backend=name, backend_options=options)


@pytest.mark.parametrize("phase", ["open", "opening", "closing"])
@pytest.mark.parametrize("clock", clocks.CLOCKS)
def test_a_group_whose_event_loop_was_closed_can_be_used_again(clock, phase):
    stages = []
    a, b = Member("a"), Member("b")
    group = ConnectionGroup({"a": a, "b": b})

    async def main(abandon):
        stages.append(Stage())
        if phase == "opening":
            b.opening = stages[0]
        elif phase == "closing":
            b.close = stages[0]
        async with anyio.create_task_group() as tg:
            start = Call(tg, group.start)
            if phase != "opening":
                await group_is_open(group)
            if phase == "closing":
                Call(tg, group.stop)
            if phase != "open":
                await stages[0].reached.wait()
            del start
            await abandon()

    clocks.run_and_abandon(main, clock=clock)
    assert group.state in {CLOSED, FAILED}
    with pytest.raises((NotConnectedError, ConnectionLostError)):
        group.connection  # noqa: B018

    async def use_again():
        for member in (a, b):
            member.opening = member.close = checkpoint
            member.entered.clear(), member.exited.clear()
        with anyio.fail_after(5):
            async with ConnectionGroup({"x": a}) as view:  # no claim outlives the loop
                assert len(view) == 1
            view = await group.start()
            assert len(view) == 2
            await group.stop()
            await assert_over(group)

    clocks.run(use_again, clock=clock)


async def group_is_open(group):
    while group.state is not OPEN:
        await checkpoint()


def test_the_end_of_an_event_loop_closes_the_members_of_an_open_group(anyio_backend, caplog):
    group = ConnectionGroup(
        {"a": Member("a"), "b": Member("b", policy=AT_ONCE), "inner": ConnectionGroup(members("c"))}
    )

    async def main():
        await group.start()

    name, options = anyio_backend
    anyio.run(main, backend=name, backend_options=options)
    assert_ended(group, *all_managers(group))
    assert warnings_in(caplog) == []

    async def again():
        async with group as view:
            assert len(view) == 3

    anyio.run(again, backend=name, backend_options=options)
    assert_ended(group, *all_managers(group))


async def test_a_group_that_is_open_raises_in_another_event_loop():
    group = ConnectionGroup(members("a"))
    await group.start()
    backend = "trio" if type(anyio.get_current_task()).__module__ == "trio" else "asyncio"
    for method in (group.start, group.stop):
        with pytest.raises(WrongEventLoopError):
            await anyio.to_thread.run_sync(partial(anyio.run, method, backend=backend))
    assert_consistent(group)
    await group.stop()


async def test_a_member_cannot_be_started_in_another_event_loop_while_the_group_is_running():
    async def start(member):
        with pytest.raises(WrongEventLoopError, match="the member"):
            await member.start()

    member, other = Member("the member"), Member("other")
    group = ConnectionGroup({"a": member, "b": other})
    await group.start()
    await member.stop()
    await anyio.to_thread.run_sync(partial(anyio.run, start, member))
    assert len(member.entered) == 1
    await group.stop()
    assert other.graceful == 1
    await assert_over(group)


# Groups in groups, and in other managers.


async def test_groups_nest():
    inner = ConnectionGroup(
        {**members("a"), "refused": Member("refused", raises(OSError("x")))}, name="inner"
    )
    outer = ConnectionGroup({"inner": inner, **members("b")}, name="outer")
    view = await outer.start()
    assert view["inner"] is inner.connection
    assert view["inner"]["a"] is inner.managers["a"].connection
    assert outer.failures == {}
    assert list(inner.failures) == ["refused"]
    with pytest.raises(ManagerInUseError):
        await ConnectionGroup({"x": inner.managers["a"]}).start()
    with pytest.raises(ManagerInUseError):
        await ConnectionGroup({"x": inner}).start()
    with pytest.raises(ManagerInUseError):
        await outer.add("x", inner.managers["a"])
    await inner.add("c", Member("c"))
    assert len(view["inner"]) == 2
    await inner.stop()
    assert list(view) == ["b"]
    assert_ended(*all_managers(inner))
    with pytest.raises(ManagerInUseError):  # it still belongs to the outer group
        await ConnectionGroup({"x": inner}).start()
    await inner.start()
    assert len(view["inner"]) == 2
    await outer.stop()
    assert_ended(*all_managers(outer))
    await assert_over(inner)
    await assert_over(outer)


async def test_a_strict_group_in_a_group_fails_with_the_error_of_its_member():
    inner = ConnectionGroup(members("a", "b"), strict=True, name="inner")
    other = Member("other")
    outer = ConnectionGroup({"inner": inner, "other": other}, name="outer")
    view = await outer.start()
    lose(inner.managers["a"])
    with pytest.raises(ConnectionLostError):
        await inner.wait_closed()
    assert outer.state is OPEN
    assert list(view) == ["other"]
    assert outer.failures == {"inner": inner.exception}
    await inner.start()
    assert len(view) == 2
    await outer.stop()
    strict = ConnectionGroup({"inner": inner, "other": other}, strict=True, name="strict")
    await strict.start()
    lose(inner.managers["b"])
    with pytest.raises(ConnectionLostError) as caught:
        await strict.wait_closed()
    names = []
    error = caught.value
    while error is not None:
        names.append(getattr(error, "name", type(error).__name__))
        error = error.__cause__
    assert names == ["strict", "inner", "member b", "OSError"]
    await assert_over(inner)
    await assert_over(strict)


@in_virtual_time
async def test_a_forced_stop_reaches_the_members_of_inner_groups_in_time():
    leaf = Member("leaf", closing=partial(anyio.sleep, HOUR))
    group = leaf
    for depth in range(4):
        group = ConnectionGroup({"x": group}, name=f"group {depth}")
    for timeout in (0, 5):
        await group.start()
        began = anyio.current_time()
        await group.stop(timeout)
        assert anyio.current_time() - began == pytest.approx(timeout, abs=0.5)
        assert_ended(group, leaf, *all_managers(group))
    async with stuck() as stage:
        leaf.close = stage
        await group.start()
        began = anyio.current_time()
        with pytest.raises(StopTimeoutError) as caught:
            await group.stop(5)
        assert "leaf" in str(caught.value)
        assert anyio.current_time() - began < 30
        stage.let_go.set()
        await settle()
        await group.stop()
        await assert_over(group)


def grouped(manager, name="inner"):
    """Returns a group of the manager and another member."""
    return ConnectionGroup({"x": manager, "other": Member("other")}, name=name)


NESTINGS = {
    "a group": grouped,
    "a group in a group": lambda member: grouped(grouped(member), "outer"),
    "a group in a manager": lambda member: Outer(grouped(member)),
    "a group in a manager in a manager": lambda member: Outer(Outer(grouped(member), "middle")),
    "groups in a manager": lambda member: Outer(grouped(grouped(member), "middle")),
    "a group in a manager in a group": lambda member: grouped(Outer(grouped(member), "middle"), "outer"),
    "a manager in a group": lambda member: grouped(Outer(member, "the member's user")),
}


@in_virtual_time
async def test_the_error_of_a_member_that_refuses_to_stop_passes_each_level_and_is_logged_once(caplog):
    for nesting, create in NESTINGS.items():
        print(nesting)
        caplog.clear()
        async with stuck() as stage:
            member = Member("the member", closing=stage)
            outer = create(member)
            await outer.start()
            refusing = "the member's user" if nesting == "a manager in a group" else "the member"
            with pytest.raises(StopTimeoutError) as caught:
                await outer.stop(0)
            assert caught.value.name == refusing
            assert f"owner task of {refusing}" in str(caught.value)
            stage.let_go.set()
            await settle()
            assert_ended(outer, member)
            logged = [record for record in caplog.records if record.levelno >= logging.WARNING]
            assert [record.levelno for record in logged] == [logging.ERROR]
            assert logged[0].getMessage().startswith(f"{refusing}: could not be stopped")
            member.close = checkpoint
            async with outer:
                pass


async def test_a_group_cannot_be_added_to_itself_or_to_a_group_inside_it():
    inner = ConnectionGroup(members("a"))
    outer = ConnectionGroup({"inner": inner})
    await outer.start()
    for group, added in ((outer, outer), (inner, inner), (inner, outer)):
        with pytest.raises(ManagerInUseError):
            await group.add("x", added)
    await outer.stop()
    await assert_over(outer)


async def test_a_group_can_be_a_part_of_another_manager():
    group = ConnectionGroup({**members("a"), "policy": Member("p", policy=AT_ONCE)}, name="the group")
    outer = Outer(group)
    view = await outer.start()
    assert set(view) == {"a", "policy"}
    assert view["a"] is group.managers["a"].connection
    lose(group.managers["a"])
    await settle()
    assert outer.state is OPEN
    assert list(view) == ["policy"]
    with pytest.raises(ManagerInUseError):
        await ConnectionGroup({"x": group.managers["policy"]}).start()
    with pytest.raises(ManagerInUseError):
        await ConnectionGroup({"x": group}).start()
    await outer.stop()
    assert_ended(group, *group.managers.values())
    await outer.start()
    group.connection_lost(OSError("gone"))
    with pytest.raises(ConnectionLostError):
        await outer.wait_closed()
    await assert_over(group)
    await assert_over(ConnectionGroup({}), outer)


@in_turn("when", ["opening", "open"])
async def test_a_strict_group_that_is_a_part_of_another_manager_ends_it(when):
    member = Member("member", raises(OSError("refused")) if when == "opening" else checkpoint)
    group = ConnectionGroup({"a": Member("a"), "b": member}, strict=True, name="the group")
    outer = Outer(group)
    if when == "opening":
        with pytest.raises(OSError, match="refused"):
            await outer.start()
    else:
        await outer.start()
        lose(member)
        with pytest.raises(ConnectionLostError) as caught:
            await outer.wait_closed()
        assert "the server exited" in str(caught.value)
    assert outer.state is FAILED
    assert_ended(group, *group.managers.values())
    assert group.managers["a"].graceful == 1
    await assert_over(group)
