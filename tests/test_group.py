"""Tests for groups: opening, the members' own methods, failures, the view, claims, policies and limits.

`test_group_members.py` tests `add()` and `remove()`, and `test_group_endings.py` tests how groups end.
Tests of many cases print each one, so the last line that a failed test printed names its case.
"""

import copy
import logging
import pickle
import sys
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from functools import partial
from math import nan
from threading import Event

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint
from members import HOUR, Member, Outer, assert_consistent, assert_over, members
from probe import Stage, raises
from proof.clocks import in_virtual_time
from reopening import NOT_YET, Call, in_turn, is_same, settle, what_connection_raises

from ownertask import (
    ConnectionGroup,
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    ManagerInUseError,
    NotConnectedError,
    ReconnectPolicy,
    StartTimeoutError,
)

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState

SECRET = "s3cret-key"


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def why_missing(view, key):
    """Returns the cause of the `KeyError` that the view of a group raises."""
    assert key not in view
    assert view.get(key) is None
    with pytest.raises(KeyError) as caught:
        view[key]
    return caught.value.__cause__


# Opening.


async def test_start_opens_all_members_at_the_same_time():
    stages = {key: Stage() for key in "abc"}
    group = ConnectionGroup({key: Member(key, stage) for key, stage in stages.items()})
    async with anyio.create_task_group() as tg:
        start = Call(tg, group.start)
        for stage in stages.values():
            await stage.reached.wait()
        for key in "cab":
            assert group.state is OPENING
            with pytest.raises(NotConnectedError):
                group.connection  # noqa: B018
            stages[key].let_go.set()
            connection = await group.managers[key].wait_open()  # each is usable as soon as it is open
            assert group.managers[key].connection is connection
    assert group.state is OPEN
    assert group.failures == {}
    assert start.result is group.connection is await group.start()
    assert start.result == {key: group.managers[key].connection for key in "abc"}
    await group.stop()
    await assert_over(group)


async def test_an_empty_group_opens_and_closes():
    async with ConnectionGroup({}) as view:
        assert len(view) == 0
        assert dict(view) == {}


async def test_start_returns_although_members_have_failed():
    error = OSError("refused")
    group = ConnectionGroup({"a": Member("a"), "b": Member("b", raises(error))})
    view = await group.start()
    assert list(view) == ["a"]
    assert group.failures == {"b": error}
    assert group.managers["b"].state is FAILED
    await group.stop()
    assert group.state is CLOSED
    assert group.exception is None
    await assert_over(group)


async def test_start_returns_an_empty_mapping_if_all_members_fail():
    group = ConnectionGroup({key: Member(key, raises(OSError(key))) for key in "abc"})
    view = await group.start()
    assert group.state is OPEN
    assert dict(view) == {}
    assert {key: str(error) for key, error in group.failures.items()} == {key: key for key in "abc"}
    await group.stop()
    await assert_over(group)


@in_virtual_time
async def test_G1_three_of_ten_members_fail_and_seven_are_usable_after_a_second():
    managers = {
        f"good {number}": Member(f"good {number}", partial(anyio.sleep, 1)) for number in range(7)
    }
    exits = Member("exits")

    async def exit_while_opening():
        exits.connection_lost(RuntimeError("exited with status 3"))
        await anyio.sleep_forever()

    exits.opening = exit_while_opening
    managers |= {
        "refused": Member("refused", raises(ConnectionRefusedError("refused"))),
        "mute": Member("mute", anyio.sleep_forever),
        "exits": exits,
    }
    group = ConnectionGroup(managers, member_timeout=8)
    began = anyio.current_time()
    usable_after = {}

    async def use(key):
        await managers[key].wait_open()
        usable_after[key] = anyio.current_time() - began

    async with anyio.create_task_group() as tg:
        start = Call(tg, group.start)
        await settle()
        for key in managers:
            if key.startswith("good"):
                tg.start_soon(use, key)
    assert anyio.current_time() - began == pytest.approx(8, abs=0.3)
    assert len(usable_after) == 7
    assert max(usable_after.values()) < 1.5
    assert sorted(start.result) == sorted(usable_after)
    kinds = {key: type(error) for key, error in group.failures.items()}
    assert kinds == {
        "refused": ConnectionRefusedError,
        "mute": StartTimeoutError,
        "exits": ConnectionLostError,
    }
    await settle()
    assert managers["mute"].state is FAILED
    assert managers["mute"].exception.timeout == 8
    assert group.failures["mute"].name == "mute"
    assert not managers["mute"].is_acquired
    await group.stop()
    await assert_over(group)


@in_virtual_time
async def test_the_earlier_of_member_timeout_and_the_start_timeout_of_a_member_applies():
    early, late, unlimited = (
        Member(name, anyio.sleep_forever) for name in ("early", "late", "unlimited")
    )
    early.start_timeout, late.start_timeout = 2, HOUR
    group = ConnectionGroup({"early": early, "late": late, "unlimited": unlimited}, member_timeout=5)
    began = anyio.current_time()
    await group.start()
    assert anyio.current_time() - began == pytest.approx(5, abs=0.3)
    assert {key: error.timeout for key, error in group.failures.items()} == {
        "early": 2,
        "late": 5,
        "unlimited": 5,
    }
    await group.stop()


@in_virtual_time
async def test_without_member_timeout_start_waits_for_each_member():
    group = ConnectionGroup({"a": Member("a", partial(anyio.sleep, 5 * HOUR))}, member_timeout=None)
    assert list(await group.start()) == ["a"]
    await group.stop()


@in_virtual_time
async def test_member_timeout_is_thirty_seconds_by_default():
    group = ConnectionGroup({"a": Member("a", anyio.sleep_forever)})
    began = anyio.current_time()
    await group.start()
    assert anyio.current_time() - began == pytest.approx(30, abs=0.3)
    await group.stop()


@in_virtual_time
async def test_the_start_timeout_of_the_group_ends_the_attempts_of_its_members():
    for by_attribute in (True, False):
        group = ConnectionGroup(
            {**members("a"), "mute": Member("mute", anyio.sleep_forever)}, name="group"
        )
        group.start_timeout = 3 if by_attribute else None
        with pytest.raises(StartTimeoutError) as caught:
            await group.start(None if by_attribute else 3)
        assert (caught.value.name, caught.value.timeout) == ("group", 3)
        assert group.state is FAILED
        await assert_over(group)


async def test_a_closed_group_opens_again():
    group = ConnectionGroup(members("a", "b"))
    for number in range(1, 4):
        view = await group.start()
        assert len(view) == 2
        assert [len(member.entered) for member in group.managers.values()] == [number] * 2
        await group.stop()
        assert group.state is CLOSED
        await assert_over(group)
        for member in group.managers.values():
            member.entered.pop(), member.exited.pop()


async def test_calls_of_start_join_one_attempt():
    stage = Stage()
    group = ConnectionGroup({"a": Member("a", stage)})
    async with anyio.create_task_group() as tg:
        calls = [Call(tg, group.start) for _ in range(3)]
        await stage.reached.wait()
        calls[0].scope.cancel()
        stage.let_go.set()
    assert calls[1].result is calls[2].result is group.connection
    assert len(group.managers["a"].entered) == 1
    await group.stop()


async def test_members_run_in_the_context_of_start():
    variable = ContextVar("variable", default="unset")
    seen = {}

    def record(key):
        async def look():
            seen[key] = variable.get()
            await checkpoint()

        return look

    group = ConnectionGroup({key: Member(key, record(key)) for key in "ab"})
    variable.set("of start()")
    await group.start()
    variable.set("of add()")
    await group.add("c", Member("c", record("c")))
    assert seen == dict.fromkeys("abc", "of start()")
    await group.stop()


WRONG = [("start_timeout", -1), ("start_timeout", "soon"), ("reconnect", "always"), ("watch", 1)]


@in_turn("wrong", WRONG)
async def test_start_raises_the_error_of_a_wrongly_configured_member(wrong):
    attribute, value = wrong
    group = ConnectionGroup(members("a", "b", "c"))
    setattr(group.managers["b"], attribute, value)
    with pytest.raises((ValueError, TypeError), match=attribute):
        await group.start()
    for member in group.managers.values():
        assert not member.is_acquired
    setattr(group.managers["b"], attribute, None)
    assert len(await group.start()) == 3
    await group.stop()
    await assert_over(group)


# The methods of the members, and the view.


async def test_a_member_can_be_stopped_and_started_on_its_own():
    group = ConnectionGroup(members("a", "b"))
    view = await group.start()
    before = dict(view)
    await group.managers["a"].stop()
    assert dict(view) == {"b": before["b"]}
    assert group.failures == {}
    assert isinstance(why_missing(view, "a"), NotConnectedError)
    assert group.state is OPEN
    again = await group.managers["a"].start()
    assert again is not before["a"]
    assert dict(view) == {"a": again, "b": before["b"]}
    assert group.connection is view
    await group.stop()
    await assert_over(group)


async def test_a_block_of_a_member_does_not_stop_it():
    group = ConnectionGroup(members("a"))
    view = await group.start()
    async with group.managers["a"] as connection:
        assert connection is view["a"]
    assert view["a"] is connection
    await group.stop()


async def test_start_does_not_wait_for_a_member_that_is_stopped_while_it_opens(caplog):
    stage = Stage()
    group = ConnectionGroup({"a": Member("a"), "b": Member("b", stage)})
    async with anyio.create_task_group() as tg:
        start = Call(tg, group.start)
        await stage.reached.wait()
        await group.managers["b"].stop()
    assert list(start.result) == ["a"]
    assert group.failures == {}
    assert group.managers["b"].state is CLOSED
    assert warnings_in(caplog) == []
    await group.stop()


async def test_a_member_can_be_restarted_while_the_group_opens():
    first, second = Stage(), Stage()
    group = ConnectionGroup({"slow": Member("slow", first), "a": Member("a")})
    async with anyio.create_task_group() as tg:
        start = Call(tg, group.start)
        await first.reached.wait()
        old = await group.managers["a"].wait_open()
        await group.managers["a"].stop()
        new = await group.managers["a"].start()
        first.let_go.set()
    assert new is not old
    assert start.result["a"] is new
    second.let_go.set()
    await group.stop()
    await assert_over(group)


async def test_the_view_is_a_live_read_only_mapping_of_the_open_members():
    opening = Stage()
    lost = Member("lost")
    group = ConnectionGroup(
        {"a": Member("a"), "failed": Member("failed", raises(OSError("x"))), "lost": lost}
    )
    view = await group.start()
    assert isinstance(view, Mapping)
    assert not isinstance(view, MutableMapping)
    for change in (lambda: view.__setitem__("a", 1), lambda: view.__delitem__("a")):
        with pytest.raises((TypeError, AttributeError)):
            change()
    assert list(view) == list(view.keys()) == ["a", "lost"]
    assert list(view.items()) == list(zip(["a", "lost"], view.values(), strict=True))
    assert len(view) == 2
    lost.opening = opening
    lost.connection_lost(OSError("gone"))
    assert list(view) == ["a"]
    await settle()
    lost_error = what_connection_raises(lost)
    assert isinstance(lost_error, ConnectionLostError)
    async with anyio.create_task_group() as tg:
        for key, state in (("failed", FAILED), ("lost", FAILED), ("lost", OPENING), ("lost", CLOSED)):
            if state is OPENING:
                again = Call(tg, lost.start)
                await opening.reached.wait()
            elif state is CLOSED:
                await lost.stop()
            assert group.managers[key].state is state
            assert is_same(why_missing(view, key), what_connection_raises(group.managers[key]))
            assert len(view) == 1
    assert again.error is not None
    assert why_missing(view, "unknown") is None
    with pytest.raises(KeyError) as caught:
        view["unknown"]
    assert caught.value.args == ("unknown",)
    lost.opening = checkpoint
    assert await lost.start() is view["lost"]
    assert list(view) == ["a", "lost"]
    await group.stop()


async def test_the_view_of_a_closed_group_is_empty_and_follows_the_next_run():
    group = ConnectionGroup(members("a"))
    view = await group.start()
    await group.stop()
    assert dict(view) == {}
    assert isinstance(why_missing(view, "a"), NotConnectedError)
    again = await group.start()
    assert again["a"] is group.managers["a"].connection
    await group.stop()


async def test_current_follows_the_group_and_its_members():
    group = ConnectionGroup(members("a"))
    current = group.current
    for _ in range(2):
        async with group as view:
            assert current["a"] is view["a"]
            assert "a" in current
            assert len(current) == 1
    with pytest.raises(NotConnectedError):
        current["a"]


async def test_managers_is_a_live_read_only_mapping_of_all_members():
    given = members("a", "b")
    group = ConnectionGroup(given)
    managers = group.managers
    expected = dict(given)
    assert isinstance(managers, Mapping)
    assert not isinstance(managers, MutableMapping)
    for change in (lambda: managers.__setitem__("a", 1), lambda: managers.__delitem__("a")):
        with pytest.raises((TypeError, AttributeError)):
            change()
    given["c"] = Member("c")  # the caller's mapping is not the group's
    assert dict(managers) == expected
    assert managers["a"] is expected["a"]
    await group.start()
    await group.remove("a")
    await group.add("d", added := Member("d"))
    assert dict(managers) == {"b": expected["b"], "d": added}
    await group.stop()
    assert dict(managers) == {"b": expected["b"], "d": added}
    with pytest.raises(KeyError):
        managers["a"]


# Failures.


async def test_failures_follow_the_members():
    stage = Stage()
    slow, member = Member("slow", stage), Member("member", raises(OSError("first")))
    group = ConnectionGroup({"slow": slow, "member": member})
    assert group.failures == {}
    async with anyio.create_task_group() as tg:
        Call(tg, group.start)
        await stage.reached.wait()
        await settle()
        assert [str(error) for error in group.failures.values()] == ["first"]  # while others open
        stage.let_go.set()
    member.opening = checkpoint
    await member.start()
    assert group.failures == {}
    member.connection_lost(OSError("second"))
    with pytest.raises(ConnectionLostError):
        await member.wait_closed()
    failures = group.failures
    assert isinstance(failures, Mapping)
    assert failures["member"] is member.exception
    assert isinstance(failures["member"].__cause__, OSError)
    assert "slow" not in failures
    await member.start()
    assert group.failures == {}
    await member.stop()
    assert group.failures == {}
    await group.stop()
    assert group.failures == {}


async def test_a_member_that_fails_again_after_a_restart_is_in_failures_with_the_new_error():
    group = ConnectionGroup({"a": Member("a", raises(OSError("first")))})
    await group.start()
    group.managers["a"].opening = raises(OSError("second"))
    with pytest.raises(OSError, match="second"):
        await group.managers["a"].start()
    assert str(group.failures["a"]) == "second"
    await group.stop()
    group.managers["a"].opening = checkpoint
    await group.start()
    assert group.failures == {}
    await group.stop()


@in_virtual_time
async def test_the_timeout_of_a_member_is_forgotten_when_it_opens():
    stage = Stage()
    group = ConnectionGroup({"a": Member("a", stage)}, member_timeout=5)
    view = await group.start()
    assert isinstance(group.failures["a"], StartTimeoutError)
    stage.let_go.set()
    connection = await group.managers["a"].start()
    assert group.failures == {}
    assert dict(view) == {"a": connection}
    await group.stop()


# Members with a policy.


@in_virtual_time
async def test_a_member_with_a_policy_goes_on_trying_after_its_timeout(caplog):
    policy = ReconnectPolicy(initial_delay=20, max_delay=20, jitter=0)
    member = Member("member", raises(OSError("refused")), policy=policy)
    group = ConnectionGroup({"a": member}, member_timeout=10)
    began = anyio.current_time()
    view = await group.start()
    assert anyio.current_time() - began == pytest.approx(10, abs=0.3)
    assert dict(view) == {}
    assert member.state is OPENING
    assert group.failures == {"a": member.reconnecting.exception}
    assert isinstance(why_missing(view, "a"), NotConnectedError)
    member.opening = checkpoint
    await member.wait_open()
    assert anyio.current_time() - began == pytest.approx(20, abs=0.3)
    assert dict(view) == {"a": member.connection}
    assert group.failures == {}
    assert len(warnings_in(caplog)) == 1  # the member's own
    await group.stop()
    await assert_over(group)


@in_virtual_time
async def test_the_attempt_of_a_mute_member_with_a_policy_goes_on_after_its_timeout():
    stage = Stage()
    member = Member("mute", stage, policy=NOT_YET)
    group = ConnectionGroup({"a": member}, member_timeout=10)
    view = await group.start()
    assert member.state is OPENING
    assert isinstance(group.failures["a"], StartTimeoutError)
    assert group.failures["a"].name == "mute"
    stage.let_go.set()
    await member.wait_open()
    assert list(view) == ["a"]
    assert group.failures == {}
    await group.stop()
    await assert_over(group)


@in_virtual_time
async def test_stop_ends_the_attempts_of_a_member_with_a_policy():
    for opening in (raises(OSError("refused")), anyio.sleep_forever):
        member = Member("member", opening, policy=ReconnectPolicy(initial_delay=7, jitter=0))
        group = ConnectionGroup({"a": member}, member_timeout=10)
        await group.start()
        assert member.state is OPENING
        await group.stop()
        attempts = len(member.entered)
        assert member.state in {CLOSED, FAILED}
        await anyio.sleep(HOUR)
        assert len(member.entered) == attempts
        await assert_over(group)


async def test_a_lost_member_with_a_policy_is_in_failures_until_it_opens_again():
    stage = Stage()
    member = Member("member", policy=ReconnectPolicy(initial_delay=0, jitter=0))
    group = ConnectionGroup({"a": member, "b": Member("b")})
    view = await group.start()
    other = view["b"]
    member.opening = stage
    member.connection_lost(OSError("gone"))
    await stage.reached.wait()
    assert list(view) == ["b"]
    assert isinstance(why_missing(view, "a"), ConnectionLostError)
    assert group.failures == {"a": member.reconnecting.exception}
    stage.let_go.set()
    assert await member.wait_open() is view["a"]
    assert view["b"] is other
    assert group.failures == {}
    await group.stop()


async def test_a_member_whose_policy_gives_up_has_failed():
    policy = ReconnectPolicy(initial_delay=0, jitter=0, max_retries=2)
    group = ConnectionGroup({"a": Member("a", raises(OSError("refused")), policy=policy)})
    assert dict(await group.start()) == {}
    assert len(group.managers["a"].entered) == 3
    assert group.managers["a"].state is FAILED
    assert str(group.failures["a"]) == "refused"
    await group.stop()


# max_concurrent_starts.


@in_virtual_time
async def test_max_concurrent_starts_bounds_the_attempts_at_the_same_time():
    opening, most, order = 0, 0, []

    def open_slowly(key):
        async def wait():
            nonlocal opening, most
            opening += 1
            most = max(most, opening)
            order.append(key)
            try:
                await anyio.sleep(1)
                if key % 3 == 0:
                    raise OSError("refused")  # a failure makes room, too
            finally:
                opening -= 1

        return wait

    managers = {key: Member(f"member {key}", open_slowly(key)) for key in range(7)}
    for limit, seconds in ((1, 7), (2, 4), (7, 1), (100, 1), (None, 1)):
        group = ConnectionGroup(managers, max_concurrent_starts=limit)
        most, began = 0, anyio.current_time()
        view = await group.start()
        assert anyio.current_time() - began == pytest.approx(seconds, abs=0.3)
        assert most == min(limit or 7, 7)
        assert list(view) == [1, 2, 4, 5]
        if limit == 1:
            assert order == list(range(7))
        await group.stop()


@in_virtual_time
async def test_the_timeout_of_a_member_counts_from_its_own_turn():
    began = anyio.current_time()
    times = {}

    def open_in(key, seconds):
        async def wait():
            times[key] = anyio.current_time() - began
            await anyio.sleep(seconds)

        return wait

    durations = {"mute": HOUR, "slow": 9, "also mute": HOUR, "quick": 1}
    group = ConnectionGroup(
        {key: Member(key, open_in(key, seconds)) for key, seconds in durations.items()},
        member_timeout=10,
        max_concurrent_starts=1,
    )
    view = await group.start()
    assert times == pytest.approx({"mute": 0, "slow": 10, "also mute": 19, "quick": 29}, abs=0.5)
    assert list(view) == ["slow", "quick"]
    assert {key: error.timeout for key, error in group.failures.items()} == {"mute": 10, "also mute": 10}
    await group.stop()


@in_virtual_time
async def test_a_member_with_a_policy_makes_room_after_its_timeout_at_the_latest():
    failing = Member("failing", raises(OSError("refused")), policy=NOT_YET)
    mute = Member("mute", anyio.sleep_forever, policy=NOT_YET)
    group = ConnectionGroup(
        {"failing": failing, "mute": mute, "good": Member("good")},
        member_timeout=10,
        max_concurrent_starts=1,
    )
    began = anyio.current_time()
    assert list(await group.start()) == ["good"]
    assert anyio.current_time() - began < 20.5
    await group.stop()
    await assert_over(group)


async def test_a_member_can_be_used_before_its_turn():
    stage = Stage()
    first, second, third = Member("first", stage), Member("second"), Member("third")
    group = ConnectionGroup({"first": first, "second": second, "third": third}, max_concurrent_starts=1)
    async with anyio.create_task_group() as tg:
        start = Call(tg, group.start)
        await stage.reached.wait()
        await settle()
        assert (second.state, third.state) == (NEW, NEW)
        connection = await second.start()
        stage.let_go.set()
    assert start.result["second"] is connection
    assert list(start.result) == ["first", "second", "third"]
    assert len(second.entered) == 1
    await group.stop()


@pytest.mark.parametrize("end", ["cancel", "stop"])
async def test_members_that_wait_for_their_turn_never_open_if_the_group_ends(end):
    stage = Stage()
    first, second = Member("first", stage), Member("second")
    group = ConnectionGroup({"first": first, "second": second}, max_concurrent_starts=1)
    async with anyio.create_task_group() as tg:
        start = Call(tg, group.start)
        await stage.reached.wait()
        if end == "cancel":
            start.scope.cancel()
        else:
            await group.stop()
    assert start.result is None
    assert second.entered == []
    await assert_over(group)


# Members belong to one group while it is alive.


async def test_a_group_refuses_members_of_another_group_that_is_alive():
    opening, closing = Stage(), Stage()
    shared, own = Member("the shared member", opening, closing), Member("own")
    first = ConnectionGroup({"x": shared, "other": Member("other")}, name="the first group")
    second = ConnectionGroup({"own": own, "y": shared}, name="the second group")

    async def check():
        entered = len(shared.entered)
        with pytest.raises(ManagerInUseError, match="the shared member") as caught:
            await second.start()
        assert "the first group" in str(caught.value)
        assert own.entered == []  # nothing was opened
        assert own.state is NEW
        assert len(shared.entered) == entered
        third = ConnectionGroup({"own": Member("own")})  # and the other members are not claimed
        async with third:
            pass

    async with anyio.create_task_group() as tg:
        Call(tg, first.start)
        await opening.reached.wait()
        await check()
        opening.let_go.set()
        await first.wait_open()
        await check()
        closing.let_go.set()
        await shared.stop()
        await check()
        shared.close = closing = Stage()
        await shared.start()
        Call(tg, first.stop)
        await closing.reached.wait()
        await check()
        async with ConnectionGroup({"own": own}):  # a group that was refused claims nothing
            pass
        closing.let_go.set()
    assert len(await second.start()) == 2
    own.entered.clear(), own.exited.clear()
    with pytest.raises(ManagerInUseError, match="the second group"):
        await first.start()
    await second.stop()
    assert len(await first.start()) == 2
    await first.stop()


async def test_only_one_of_two_groups_that_start_at_the_same_time_gets_a_member():
    shared = Member("shared")
    groups = [ConnectionGroup({"a": shared, "b": Member("b")}, name=f"group {n}") for n in range(3)]
    async with anyio.create_task_group() as tg:
        calls = [Call(tg, group.start) for group in groups]
    assert len([call for call in calls if call.result is not None]) == 1
    assert len([call for call in calls if isinstance(call.error, ManagerInUseError)]) == 2
    assert len(shared.entered) == 1
    for group in groups:
        await group.stop()
    for group in groups:
        await assert_over(group)


@pytest.mark.parametrize("use", ["opening", "open", "closing", "lent"])
async def test_a_group_refuses_a_member_that_is_in_use_already(use):
    stage, end = Stage(), Stage()
    used, other = Member("the used member"), Member("other")
    if use in {"opening", "closing"}:
        setattr(used, {"opening": "opening", "closing": "close"}[use], stage)
    outer = Outer(used) if use == "lent" else used
    group = ConnectionGroup({"other": other, "used": used})
    async with anyio.create_task_group() as tg:
        start = Call(tg, outer.start)
        if use == "closing":
            await used.wait_open() if used.state is OPENING else await used.start()
            Call(tg, used.stop)
        await (stage.reached.wait() if use in {"opening", "closing"} else settle())
        with pytest.raises(ManagerInUseError, match="the used member"):
            await group.start()
        assert other.entered == []
        assert len(used.entered) == 1
        stage.let_go.set()
        end.let_go.set()
    assert start.error is None
    if use != "closing":
        assert outer.state is OPEN  # it was not disturbed
    await outer.stop()
    assert len(await group.start()) == 2
    await group.stop()
    await assert_over(group)


async def test_a_member_of_a_group_cannot_be_lent():
    group = ConnectionGroup(members("a"), name="the group")
    await group.start()
    outer = Outer(group.managers["a"])
    with pytest.raises(ManagerInUseError):
        await outer.start()
    await group.managers["a"].stop()
    with pytest.raises(ManagerInUseError, match="the group"):
        await outer.start()
    assert len(await group.start()) == 0
    await group.managers["a"].start()
    assert_consistent(group)
    await group.stop()
    async with outer:
        pass


async def test_members_refuse_to_start_while_the_group_closes():
    stage = Stage()
    slow, quick = Member("slow", closing=stage), Member("quick")
    group = ConnectionGroup({"slow": slow, "quick": quick}, name="the group")

    async def enter():
        async with quick:
            pass

    await group.start()
    async with anyio.create_task_group() as tg:
        stop = Call(tg, group.stop)
        await stage.reached.wait()
        await settle()
        assert (slow.state, quick.state) == (CLOSING, CLOSED)
        calls = [Call(tg, function) for function in (quick.start, quick.run, enter, slow.start)]
        await settle()
        assert not stop.is_over
        for call in calls[:3]:
            assert isinstance(call.error, ManagerInUseError)
            assert "the group" in str(call.error)
        stage.let_go.set()
    assert isinstance(calls[3].error, ManagerInUseError)
    assert (len(slow.entered), len(quick.entered)) == (1, 1)
    await assert_over(group)


async def test_a_start_that_waits_behind_the_stop_of_a_member_does_not_outlive_the_group():
    stage = Stage()
    member = Member("member", closing=stage)
    group = ConnectionGroup({"a": member})
    await group.start()
    async with anyio.create_task_group() as tg:
        Call(tg, member.stop)
        await stage.reached.wait()
        start = Call(tg, member.start)
        await settle()
        Call(tg, group.stop)
        await settle()
        stage.let_go.set()
    assert start.error is not None
    assert len(member.entered) == 1
    await assert_over(group)


# Logging, names and keys.


@in_virtual_time
async def test_each_failed_member_is_logged_once_and_a_stopped_one_is_not(caplog):
    stage = Stage()
    group = ConnectionGroup(
        {
            1: Member("the refused member", raises(OSError("connection refused"))),
            2: Member("the mute member", anyio.sleep_forever),
            3: Member("the stopped member", stage),
            4: Member("the good member"),
        },
        member_timeout=10,
        name="the group",
    )
    for _ in range(2):  # each run logs its own failures
        caplog.clear()
        async with anyio.create_task_group() as tg:
            Call(tg, group.start)
            await stage.reached.wait()
            await group.managers[3].stop()
        await settle()
        refused, mute = sorted(warnings_in(caplog), key=lambda text: "mute" in text)
        assert "the refused member" in refused
        assert "connection refused" in refused
        assert "the mute member" in mute
        assert "10 s" in mute
        for text in (refused, mute):
            assert "the group" in text
        await group.stop()
        assert len(warnings_in(caplog)) == 2
        group.managers[3].opening = stage = Stage()


@in_turn("end", ["cancel", "stop", "lose"])
async def test_members_whose_opening_ends_with_the_group_are_not_logged(end, caplog):
    caplog.clear()
    stage = Stage()
    group = ConnectionGroup({key: Member(key, stage) for key in "ab"}, name="the group")
    async with anyio.create_task_group() as tg:
        start = Call(tg, group.start)
        await stage.reached.wait()
        if end == "cancel":
            start.scope.cancel()
        elif end == "stop":
            await group.stop()
        else:
            group.connection_lost(OSError("gone"))
    assert len(warnings_in(caplog)) == (end == "lose")  # the loss of the group
    await assert_over(group)


async def test_a_member_that_is_lost_or_has_a_policy_is_logged_only_by_its_own_manager(caplog):
    lost = Member("lost")
    group = ConnectionGroup({"a": lost, "b": Member("b")}, name="the group")
    await group.start()
    lost.connection_lost(OSError("gone"))
    await settle()
    assert len(warnings_in(caplog)) == 1
    await group.stop()
    caplog.clear()
    stage = Stage()
    group = ConnectionGroup({"a": Member("a", stage)}, name="the group")
    async with anyio.create_task_group() as tg:
        Call(tg, group.start)
        await stage.reached.wait()
        group.managers["a"].connection_lost(OSError("gone"))
    assert warnings_in(caplog) == ["a: the connection was lost: gone"]
    await group.stop()
    caplog.clear()
    policy = ReconnectPolicy(initial_delay=0, jitter=0, max_retries=1)
    group = ConnectionGroup({"a": Member("a", raises(OSError("refused")), policy=policy)})
    await group.start()
    await group.stop()
    assert (
        len([text for text in warnings_in(caplog) if "refused" in text and "trying again" in text]) == 1
    )


@in_virtual_time
async def test_no_key_is_in_a_message(caplog):
    caplog.set_level(logging.DEBUG, "ownertask")
    shown = []
    refused = Member("refused", raises(OSError("x")))
    group = ConnectionGroup(
        {
            f"{SECRET} 1": refused,
            f"{SECRET} 2": Member("mute", anyio.sleep_forever),
            f"{SECRET} 3": Member("a"),
        }
    )
    shown.append(repr(group))
    view = await group.start()
    shown += [repr(group), group.name]
    shown += [f"{error!r} {getattr(error, '__notes__', '')}" for error in group.failures.values()]
    other = ConnectionGroup({f"{SECRET} 4": group.managers[f"{SECRET} 3"]})
    attempts = [
        partial(group.add, f"{SECRET} 3", Member("b")),
        partial(group.add, f"{SECRET} 5", object()),
        partial(group.add, f"{SECRET} 5", group.managers[f"{SECRET} 3"]),
        partial(group.add, f"{SECRET} 5", Member("refused", raises(OSError("x")))),
        other.start,
    ]
    for attempt in attempts:
        with pytest.raises(Exception) as caught:
            await attempt()
        shown.append(f"{caught.value!r} {getattr(caught.value, '__notes__', '')}")
    assert len(view) == 1
    await group.stop()
    strict = ConnectionGroup({f"{SECRET} 1": refused, f"{SECRET} 3": Member("a")}, strict=True)
    with pytest.raises(OSError, match="x") as caught:
        await strict.start()
    shown.append(f"{caught.value!r} {getattr(caught.value, '__notes__', '')}")
    assert SECRET not in "\n".join(shown)
    assert SECRET not in caplog.text


# Arguments and copies.


WRONG_ARGUMENTS = [
    (TypeError, "managers", lambda: ConnectionGroup([Member()])),
    (TypeError, "managers", lambda: ConnectionGroup(Member())),
    (TypeError, "managers", lambda: ConnectionGroup(None)),
    (TypeError, "managers", lambda: ConnectionGroup({SECRET: object()})),
    (TypeError, "managers", lambda: ConnectionGroup({SECRET: Member})),
    (TypeError, "managers", lambda: ConnectionGroup({"a": Member(), SECRET: None})),
    (ValueError, "managers", lambda: ConnectionGroup(dict.fromkeys(["a", SECRET], Member("twice")))),
    (TypeError, "strict", lambda: ConnectionGroup({}, strict=1)),
    (TypeError, "strict", lambda: ConnectionGroup({}, strict=None)),
    (TypeError, "member_timeout", lambda: ConnectionGroup({}, member_timeout="30")),
    (TypeError, "member_timeout", lambda: ConnectionGroup({}, member_timeout=True)),
    (ValueError, "member_timeout", lambda: ConnectionGroup({}, member_timeout=-0.1)),
    (ValueError, "member_timeout", lambda: ConnectionGroup({}, member_timeout=nan)),
    (TypeError, "max_concurrent_starts", lambda: ConnectionGroup({}, max_concurrent_starts=1.0)),
    (TypeError, "max_concurrent_starts", lambda: ConnectionGroup({}, max_concurrent_starts="1")),
    (TypeError, "max_concurrent_starts", lambda: ConnectionGroup({}, max_concurrent_starts=True)),
    (ValueError, "max_concurrent_starts", lambda: ConnectionGroup({}, max_concurrent_starts=0)),
    (ValueError, "max_concurrent_starts", lambda: ConnectionGroup({}, max_concurrent_starts=-1)),
    (TypeError, "name", lambda: ConnectionGroup({}, name=1)),
]


def test_wrong_arguments_are_refused_with_their_name():
    for number, (kind, argument, create) in enumerate(WRONG_ARGUMENTS):
        print("case:", number)
        with pytest.raises(kind, match=argument) as caught:
            create()
        assert type(caught.value) is kind
        assert SECRET not in str(caught.value)


def test_a_group_can_be_created_without_an_event_loop():
    group = ConnectionGroup(members("a"), name="the group")
    assert (group.state, group.name) == (NEW, "the group")
    assert group.failures == {}
    assert repr(group) == "<ConnectionGroup 'the group' new>"
    assert isinstance(group, ConnectionManager)
    assert isinstance(ConnectionGroup({}).name, str)
    with pytest.raises(NotConnectedError):
        group.connection  # noqa: B018


class Opened:
    """An async context manager, and its own connection."""

    async def __aenter__(self):
        await checkpoint()
        return self

    async def __aexit__(self, *_):
        await checkpoint()


class Refused(Opened):
    async def __aenter__(self):
        raise ConnectionRefusedError


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda group: pickle.loads(pickle.dumps(group)),
}


@in_turn("how", COPIES)
async def test_a_copy_of_an_open_group_is_new_and_has_copies_of_the_members(how):
    original = ConnectionGroup({"a": ConnectionManager.from_factory(Opened, name="a")}, name="the group")
    view = await original.start()
    await original.add("b", ConnectionManager.from_factory(Opened, name="b"))
    copied = COPIES[how](original)
    assert (copied.state, copied.name) == (NEW, "the group")
    assert list(copied.managers) == ["a", "b"]
    assert [manager.state for manager in copied.managers.values()] == [NEW, NEW]
    for key, manager in copied.managers.items():
        assert manager is not original.managers[key]
        assert manager.name == key
    async with copied as other:
        assert dict(view) != dict(other)
        await copied.remove("a")
        assert list(original.managers) == ["a", "b"]
        assert len(view) == 2
    assert len(view) == 2
    await original.stop()


@in_turn("how", COPIES)
async def test_a_copy_has_the_options_of_the_original(how):
    original = ConnectionGroup(
        {
            "a": ConnectionManager.from_factory(Opened),
            "b": ConnectionManager.from_factory(Refused),
        },
        strict=True,
        member_timeout=1,
        max_concurrent_starts=1,
    )
    copied = COPIES[how](original)
    with pytest.raises(ConnectionRefusedError):
        await copied.start()
    assert original.state is NEW
    assert original.failures == {}


# Threads.


@pytest.fixture
def _threads_change_places_often():
    """Otherwise, a thread that is always busy delays each step of the event loop by 5 ms."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_threads_change_places_often")
async def test_threads_can_read_the_members_the_view_and_the_failures():
    group = ConnectionGroup(members("a", "b", "c"), name="the group")
    view = await group.start()
    is_over, has_begun = Event(), Event()
    rounds = 0

    def read():
        nonlocal rounds
        while not is_over.is_set():
            for key in view:
                view.get(key)
            for error in group.failures.values():
                assert isinstance(error, Exception)
            for key in group.managers:
                group.managers.get(key)
            assert 0 <= len(view) <= 4
            assert group.connection is view
            rounds += 1
            has_begun.set()

    async with anyio.create_task_group() as tg:
        tg.start_soon(anyio.to_thread.run_sync, read)
        try:
            await anyio.to_thread.run_sync(has_begun.wait)
            for number in range(6):
                await group.add(f"new {number}", Member("new"))
                member = group.managers["abc"[number % 3]]
                member.connection_lost(OSError("gone"))
                await group.remove(f"new {number}")
                await member.start()
        finally:
            is_over.set()
    assert rounds
    await group.stop()
