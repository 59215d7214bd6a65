"""Tests for `add()` and `remove()` of groups, and for the calls that they race with.

Tests of many cases print each one, so the last line that a failed test printed names its case.
"""

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
from proof.clocks import in_virtual_time
from reopening import AT_ONCE, NOT_YET, Call, in_turn, settle

from ownertask import (
    ConnectionGroup,
    ConnectionLostError,
    ConnectionManagerError,
    ConnectionState,
    ManagerInUseError,
    NotConnectedError,
    StartTimeoutError,
    StopTimeoutError,
    WrongEventLoopError,
)

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


# add().


async def test_an_added_member_is_open_and_stays_for_the_next_run():
    group = ConnectionGroup(members("a"))
    view = await group.start()
    added = Member("added")
    connection = await group.add("b", added)
    assert connection is added.connection is view["b"]
    assert list(view) == list(group.managers) == ["a", "b"]
    assert group.managers["b"] is added
    await group.stop()
    assert_ended(added)
    assert len(await group.start()) == 2
    await group.stop()
    await assert_over(group)


@in_turn("state", [NEW, OPENING, CLOSING, CLOSED, FAILED])
async def test_add_requires_an_open_group(state):
    stage = Stage()
    first, added = Member("first"), Member("added")
    group = ConnectionGroup({"a": first}, name="the group", strict=True)
    async with anyio.create_task_group() as tg:
        if state is OPENING:
            first.opening = stage
            Call(tg, group.start)
            await stage.reached.wait()
        elif state is FAILED:
            first.opening = raises(OSError("refused"))
            with pytest.raises(OSError, match="refused"):
                await group.start()
        elif state is not NEW:
            await group.start()
            first.close = stage if state is CLOSING else checkpoint
            Call(tg, group.stop)
            await settle()
        assert group.state is state
        with pytest.raises(NotConnectedError, match="the group"):
            await group.add("b", added)
        stage.let_go.set()
    assert (added.state, added.entered) == (NEW, [])
    assert list(group.managers) == ["a"]
    await group.stop()
    await assert_over(group, added)


async def test_add_refuses_a_key_that_is_in_use_and_a_manager_that_cannot_be_added():
    outer, elsewhere, alive = Outer(Member("lent")), ConnectionGroup(members("x")), Member("alive")
    group = ConnectionGroup({"a": Member("a"), "failed": Member("failed", raises(OSError("refused")))})
    for manager in (outer, elsewhere, alive, group):
        await manager.start()
    before = dict(group.managers)
    for key in ("a", "failed"):  # also if the member is not open
        with pytest.raises(ValueError, match="key"):
            await group.add(key, Member("new"))
    for manager in (None, object(), Member, "manager"):
        with pytest.raises(TypeError, match="manager"):
            await group.add("b", manager)
    in_use = [outer, outer.inner, elsewhere, elsewhere.managers["x"], alive, group, *before.values()]
    for manager in in_use:
        entered = list(getattr(manager, "entered", ()))
        with pytest.raises(ManagerInUseError) as caught:
            await group.add("b", manager)
        assert manager.name in str(caught.value)
        assert list(getattr(manager, "entered", ())) == entered
    await elsewhere.managers["x"].stop()
    with pytest.raises(ManagerInUseError):  # it is in the other group, although it is not open
        await group.add("b", elsewhere.managers["x"])
    await elsewhere.managers["x"].start()
    assert dict(group.managers) == before
    assert [manager.state for manager in (outer, elsewhere, alive, group)] == [OPEN] * 4
    assert_consistent(group)
    for manager in (outer, elsewhere, alive, group):
        await manager.stop()
    await assert_over(group, outer, elsewhere, alive)


@in_turn("strict", [False, True])
async def test_a_member_that_cannot_be_opened_is_not_added(strict):
    error = OSError("refused")
    group = ConnectionGroup(members("a"), strict=strict)
    view = await group.start()
    added = Member("added", raises(error))
    for _ in range(2):
        with pytest.raises(OSError, match="refused") as caught:
            await group.add("b", added)
        assert caught.value is error
        assert list(group.managers) == list(view) == ["a"]
        assert group.failures == {}
        assert group.state is OPEN
    async with ConnectionGroup({"elsewhere": added}) as other:  # it is free
        assert len(other) == 0
    added.opening = checkpoint
    async with added:
        pass
    assert await group.add("b", added) is view["b"]
    await group.stop()
    await assert_over(group)


async def test_add_raises_the_error_of_a_wrongly_configured_manager_and_keeps_nothing():
    group = ConnectionGroup(members("a"))
    await group.start()
    added = Member("added")
    added.start_timeout = -1
    with pytest.raises(ValueError, match="start_timeout"):
        await group.add("b", added)
    assert list(group.managers) == ["a"]
    added.start_timeout = None
    await group.add("b", added)
    await group.stop()


@in_virtual_time
async def test_a_member_that_is_not_open_within_member_timeout_is_not_added():
    for opening, policy in product(
        [anyio.sleep_forever, raises(OSError("refused"))], [None, AT_ONCE, NOT_YET]
    ):
        if policy is AT_ONCE and opening is not anyio.sleep_forever:
            continue  # it would never wait
        print(opening, policy)
        added = Member("added", opening, policy=policy)
        group = ConnectionGroup(members("a"), member_timeout=5)
        await group.start()
        began = anyio.current_time()
        with pytest.raises((StartTimeoutError, OSError)) as caught:
            await group.add("b", added)
        if opening is anyio.sleep_forever or policy is not None:
            assert isinstance(caught.value, StartTimeoutError)
            assert (caught.value.name, caught.value.timeout) == ("added", 5)
            assert anyio.current_time() - began == pytest.approx(5, abs=0.3)
        attempts = len(added.entered)
        assert_ended(added)
        await anyio.sleep(3 * HOUR)
        assert len(added.entered) == attempts
        assert list(group.managers) == ["a"]
        await group.stop()
        await assert_over(group, added)


async def test_a_key_and_a_manager_that_are_being_added_are_in_use():
    stage = Stage()
    added = Member("added", stage)
    group = ConnectionGroup(members("a"))
    await group.start()
    async with anyio.create_task_group() as tg:
        add = Call(tg, group.add, "b", added)
        await stage.reached.wait()
        with pytest.raises(ValueError, match="key"):
            await group.add("b", Member("another"))
        with pytest.raises(ManagerInUseError):
            await group.add("c", added)
        with pytest.raises(ManagerInUseError):
            await ConnectionGroup({"x": added}).start()
        assert "b" not in group.connection
        stage.let_go.set()
    assert add.result is group.connection["b"]
    assert list(group.managers) == ["a", "b"]
    await group.stop()
    await assert_over(group)


async def test_one_of_many_calls_of_add_with_the_same_key_or_manager_succeeds():
    group = ConnectionGroup({})
    view = await group.start()
    shared = Member("shared")
    async with anyio.create_task_group() as tg:
        same_key = [Call(tg, group.add, "same", Member(f"member {n}")) for n in range(5)]
        same_manager = [Call(tg, group.add, f"key {n}", shared) for n in range(5)]
    for calls, kind in ((same_key, ValueError), (same_manager, ManagerInUseError)):
        assert len([call for call in calls if call.error is None]) == 1
        assert len([call for call in calls if isinstance(call.error, kind)]) == 4
    assert len(view) == 2
    assert len(shared.entered) == 1
    await group.stop()
    await assert_over(group)


# remove().


@in_turn("how", ["open", "stopped", "failed", "lost", "reopening"])
async def test_a_removed_member_is_closed_forgotten_and_free(how):
    removed = Member("removed", raises(OSError("refused")) if how == "failed" else checkpoint)
    removed.reconnect = NOT_YET if how == "reopening" else None
    group = ConnectionGroup({"a": Member("a"), "b": removed})
    view = await group.start()
    other = view["a"]
    if how == "stopped":
        await removed.stop()
    elif how in {"lost", "reopening"}:
        removed.connection_lost(OSError("gone"))
        await settle()
        assert removed.state is (FAILED if how == "lost" else OPENING)
    await group.remove("b")
    assert_ended(removed)
    assert removed.graceful == (how != "failed")
    assert list(group.managers) == list(view) == ["a"]
    assert group.failures == {}
    assert view["a"] is other
    with pytest.raises(KeyError) as caught:
        view["b"]
    assert caught.value.__cause__ is None
    removed.opening, removed.reconnect = checkpoint, None
    async with ConnectionGroup({"x": removed}):
        pass
    assert await group.add("b", removed) is view["b"]
    await group.stop()
    await assert_over(group)


@in_turn("is_open", [True, False])
async def test_remove_raises_for_an_unknown_key(is_open):
    group = ConnectionGroup(members("a"))
    if is_open:
        await group.start()
    for _ in range(2):
        with pytest.raises(KeyError):
            await group.remove("b")
    assert list(group.managers) == ["a"]
    await group.stop()


async def test_remove_only_forgets_a_member_of_a_group_that_is_not_running():
    group = ConnectionGroup(members("a", "b", "c"))
    a, b = group.managers["a"], group.managers["b"]
    await a.start()
    await group.remove("a")  # the application's own run goes on
    assert a.state is OPEN
    assert list(await group.start()) == ["b", "c"]
    await group.stop()
    await group.remove("b")
    assert list(await group.start()) == ["c"]
    assert len(b.entered) == 1
    await group.stop()
    await a.stop()
    await assert_over(group, a, b)


async def test_a_member_that_is_being_removed_refuses_to_start():
    stage = Stage()
    removed = Member("removed", closing=stage)
    group = ConnectionGroup({"a": Member("a"), "b": removed})
    view = await group.start()
    async with anyio.create_task_group() as tg:
        remove = Call(tg, group.remove, "b")
        await stage.reached.wait()
        start = Call(tg, removed.start)
        again = Call(tg, group.remove, "b")
        add = Call(tg, group.add, "b", Member("another"))
        await settle()
        assert not remove.is_over
        assert list(view) in (["a"], ["a", "b"])
        stage.let_go.set()
    assert remove.error is None
    assert isinstance(start.error, ManagerInUseError)
    assert again.error is None or isinstance(again.error, KeyError)
    assert add.error is None or isinstance(add.error, ValueError)
    assert group.managers.get("b") is not removed
    assert len(removed.entered) == 1
    assert_consistent(group)
    await group.stop()
    await assert_over(group, removed)


async def test_members_can_be_removed_while_the_mappings_of_the_group_are_iterated():
    group = ConnectionGroup(members(*"abcdef"))
    view = await group.start()
    for key in view:
        if key in "ab":
            await group.remove(key)
    for key in group.managers:
        if key in "cd":
            await group.remove(key)
    assert list(view) == list(group.managers) == ["e", "f"]
    await group.stop()


async def test_start_does_not_wait_for_a_member_that_is_removed_while_it_opens(caplog):
    stage = Stage()
    group = ConnectionGroup({"a": Member("a"), "b": Member("b", stage)})
    removed = group.managers["b"]
    async with anyio.create_task_group() as tg:
        start = Call(tg, group.start)
        await stage.reached.wait()
        await group.remove("b")
        assert_ended(removed)
    assert list(start.result) == list(group.managers) == ["a"]
    assert group.failures == {}
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    await group.stop()
    await assert_over(group, removed)


async def test_a_member_that_is_removed_before_its_turn_never_opens():
    stage = Stage()
    group = ConnectionGroup(
        {"a": Member("a", stage), "b": Member("b"), "c": Member("c")}, max_concurrent_starts=1
    )
    removed = group.managers["b"]
    async with anyio.create_task_group() as tg:
        start = Call(tg, group.start)
        await stage.reached.wait()
        await group.remove("b")
        stage.let_go.set()
    assert list(start.result) == ["a", "c"]
    assert removed.entered == []
    await group.stop()
    await assert_over(group, removed)


@in_turn("strict", [False, True])
async def test_a_member_that_is_removed_at_any_step_of_start_never_opens_again(strict):
    async def remove(steps):
        group = ConnectionGroup(members("a", "b"), strict=strict)
        removed = group.managers["b"]
        async with anyio.create_task_group() as tg:
            start = Call(tg, group.start)
            await steps()
            is_starting = not start.is_over
            await group.remove("b")
            assert_ended(removed)
            await settle()
            assert_ended(removed)  # a task of the group may have been about to start it
        assert list(start.result) == ["a"]
        await group.stop()
        await assert_over(group, removed)
        return is_starting

    await at_each_step(remove)


@in_virtual_time
async def test_a_member_that_is_being_removed_does_not_end_a_strict_group_when_its_time_is_over():
    async with stuck() as stage:
        group = ConnectionGroup(
            {"a": Member("a"), "b": Member("b", stage)}, strict=True, member_timeout=1
        )
        async with anyio.create_task_group() as tg:
            start = Call(tg, group.start)
            await stage.reached.wait()
            tg.start_soon(group.remove, "b")
            await anyio.sleep(2)
            stage.let_go.set()
        assert start.error is None
        assert list(start.result) == ["a"]
        await group.stop()
        await assert_over(group)


@in_virtual_time
async def test_remove_raises_the_error_of_a_member_that_refuses_to_stop():
    async with stuck() as stage:
        removed = Member("stubborn", closing=stage)
        group = ConnectionGroup({"a": Member("a"), "b": removed})
        view = await group.start()
        other = view["a"]
        with pytest.raises(StopTimeoutError) as caught:
            await group.remove("b")
        assert caught.value.name == "stubborn"
        assert group.state is OPEN
        assert view["a"] is other
        stage.let_go.set()
        await settle()
        if "b" in group.managers:
            await group.remove("b")
        assert list(group.managers) == ["a"]
        await group.stop()
        await assert_over(group, removed)


@in_virtual_time
async def test_stop_tries_again_to_stop_a_removed_member_that_refused_to_stop():
    async with stuck() as stage:
        removed = Member("stubborn", closing=stage)
        group = ConnectionGroup({"a": Member("a"), "b": removed})
        await group.start()
        for end in (partial(group.remove, "b"), group.stop):
            with pytest.raises(StopTimeoutError) as caught:
                await end()
            assert caught.value.name == "stubborn"
        assert_ended(group.managers["a"])
        stage.let_go.set()
        await settle()
        await group.stop()
        await assert_over(group, removed)


@in_virtual_time
async def test_stop_reports_a_stubborn_manager_that_is_being_added():
    async with stuck() as stage, anyio.create_task_group() as tg:
        added = Member("stubborn", stage)
        group = ConnectionGroup(members("a"))
        await group.start()
        add = Call(tg, group.add, "b", added)
        await stage.reached.wait()
        with pytest.raises(StopTimeoutError) as caught:
            await group.stop()
        assert caught.value.name == "stubborn"
        await add.over.wait()
        assert isinstance(add.error, ConnectionManagerError)
        assert list(group.managers) == ["a"]
        assert_ended(group.managers["a"])
        stage.let_go.set()
        await settle()
        await assert_over(group, added)


@in_turn("when", ["while it is lost", "later"])
async def test_the_loss_of_a_removed_member_does_not_end_a_strict_group(when):
    closing = Stage()
    removed = Member("removed", closing=closing if when == "while it is lost" else checkpoint)
    group = ConnectionGroup({"a": Member("a"), "b": removed}, strict=True)
    view = await group.start()
    async with anyio.create_task_group() as tg:
        if when == "while it is lost":
            await lose(removed)
            await closing.reached.wait()
            Call(tg, partial(group.remove, "b"))
            await settle()
            closing.let_go.set()
        else:
            await group.remove("b")
            await removed.start()
            await lose(removed)
        await settle()
    assert removed.state is FAILED
    assert group.state is OPEN
    assert list(view) == ["a"]
    await group.stop()
    await assert_over(group, removed)


@in_virtual_time
async def test_a_removed_member_that_refuses_to_stop_is_free_after_its_end():
    async with stuck() as stage:
        removed = Member("stubborn", closing=stage)
        group = ConnectionGroup({"a": Member("a"), "b": removed})
        view = await group.start()
        with pytest.raises(StopTimeoutError):
            await group.remove("b")
        for _ in range(2):
            assert list(group.managers) == list(view) == ["a"]
            with pytest.raises((ManagerInUseError, StopTimeoutError)):
                await removed.start()
            for other in (group, ConnectionGroup({})):
                async with anyio.create_task_group() as tg:
                    await other.start()
                    add = Call(tg, other.add, "c", removed)
                assert isinstance(add.error, ManagerInUseError)
        assert len(removed.entered) == 1
        stage.let_go.set()
        await settle()
        assert_ended(removed)
        removed.close = checkpoint
        async with removed:
            assert group.state is OPEN
        async with ConnectionGroup({"x": removed}):
            pass
        assert await group.add("b", removed) is view["b"]
        await removed.stop()
        assert group.state is OPEN
        await group.stop()
        await assert_over(group)


@in_virtual_time
async def test_a_manager_that_refuses_to_end_its_attempt_is_not_added_and_free_after_its_end():
    for ends in ("while the group is open", "after the group tried to stop it"):
        print(ends)
        async with stuck() as stage:
            added = Member("stubborn", stage)
            group = ConnectionGroup(members("a"), member_timeout=5)
            view = await group.start()
            with pytest.raises(StartTimeoutError) as caught:
                await group.add("b", added)
            assert (caught.value.name, caught.value.timeout) == ("stubborn", 5)
            assert list(group.managers) == list(view) == ["a"]
            assert group.failures == {}
            assert added.state is CLOSING
            for call in (added.start, partial(group.add, "b", added), partial(group.add, "c", added)):
                with pytest.raises(ManagerInUseError, match="stubborn"):
                    await call()
            with pytest.raises(ManagerInUseError, match="stubborn"):
                await ConnectionGroup({"x": added}).start()
            if ends == "after the group tried to stop it":
                with pytest.raises(StopTimeoutError) as caught:
                    await group.stop()
                assert caught.value.name == "stubborn"
                assert_ended(group.managers["a"])
            stage.let_go.set()
            await settle()
            assert_ended(added)
            assert len(added.entered) == 1
            added.opening = checkpoint
            async with added:
                pass
            if group.state is OPEN:
                assert await group.add("b", added) is view["b"]
            await group.stop()
            await assert_over(group, added)


@in_turn("name", ["add", "remove"])
async def test_add_and_remove_raise_in_another_event_loop(name):
    group = ConnectionGroup(members("a"))
    view = await group.start()
    added = Member("added")
    arguments = ("b", added) if name == "add" else ("a",)
    backend = "trio" if type(anyio.get_current_task()).__module__ == "trio" else "asyncio"
    call = partial(anyio.run, getattr(group, name), *arguments, backend=backend)
    with pytest.raises(WrongEventLoopError):
        await anyio.to_thread.run_sync(call)
    assert list(view) == list(group.managers) == ["a"]
    assert added.entered == []
    await group.stop()
    await assert_over(group, added)


# G4: members change while others work.


async def test_G4_members_are_lost_restarted_removed_and_added_while_others_work():
    group = ConnectionGroup(
        {**members("worker 1", "worker 2", "a", "b"), "policy": Member("p", policy=AT_ONCE)}
    )
    view = await group.start()
    workers = {key: view[key] for key in ("worker 1", "worker 2")}
    uses = 0

    async def work(key):
        nonlocal uses
        while not is_over:
            assert view[key] is workers[key]
            assert group.managers[key].connection is workers[key]
            uses += 1
            await checkpoint()

    is_over = False
    async with anyio.create_task_group() as tg:
        calls = [Call(tg, work, key) for key in workers]
        for number in range(10):
            for key in ("a", "policy"):
                group.managers[key].connection_lost(OSError("gone"))
            await group.managers["a"].start()
            await group.managers["policy"].wait_open()
            await group.managers["b"].stop()
            await group.managers["b"].start()
            await group.add(number, Member(f"added {number}"))
            with pytest.raises(OSError, match="refused"):
                await group.add("refused", Member("refused", raises(OSError("refused"))))
            assert_consistent(group)
            await group.remove(number)
        is_over = True
    assert uses > 20
    for call in calls:
        assert call.error is None
    for key in workers:
        assert len(group.managers[key].entered) == 1
        assert group.managers[key].graceful == 0
    assert set(view) == {*workers, "a", "b", "policy"}
    await group.stop()
    await assert_over(group)


# Interrupted and raced calls.


@in_virtual_time
@in_turn("case", product(["at once", "stage", "refused"], ["scope", "native"]))
async def test_nothing_is_kept_if_add_is_cancelled_at_any_step(case):
    opening, kind = case

    async def scenario(steps):
        group = ConnectionGroup(members("a"))
        await group.start()
        how = {"at once": checkpoint, "stage": Stage(), "refused": raises(OSError("refused"))}
        added = Member("added", how[opening])
        async with anyio.create_task_group() as tg:
            add = Call(tg, partial(group.add, "b", added))
            await steps()
            was_waiting = add.ended is None
            add.cancel(kind)
        assert group.state is OPEN
        assert_consistent(group)
        if add.ended != "returned":
            assert list(group.managers) == ["a"]
            assert_ended(added)
            await settle()
            assert_ended(added)
            added.opening = checkpoint
            await group.add("b", added)
        await group.stop()
        await assert_over(group)
        return was_waiting

    await at_each_step(scenario, at_most=12 if opening == "stage" else 500)


@in_virtual_time
@in_turn("case", product(["open", "stage", "reopening"], ["scope", "native"]))
async def test_the_member_is_closed_if_remove_is_cancelled_at_any_step(case):
    how, kind = case

    async def scenario(steps):
        removed = Member("removed", closing=Stage() if how == "stage" else checkpoint)
        removed.reconnect = NOT_YET if how == "reopening" else None
        group = ConnectionGroup({"a": Member("a"), "b": removed})
        view = await group.start()
        if how == "reopening":
            removed.connection_lost(OSError("gone"))
            await settle()
        async with anyio.create_task_group() as tg:
            remove = Call(tg, partial(group.remove, "b"))
            await steps()
            was_waiting = remove.ended is None
            remove.cancel(kind)
        assert list(view) in (["a"], ["a", "b"])
        if remove.ended == "returned":
            assert "b" not in group.managers
        if "b" not in view:
            assert_ended(removed)
        assert_consistent(group)
        if "b" in group.managers:  # it was cancelled, and can be repeated
            removed.close = checkpoint
            await group.remove("b")
        assert_ended(removed)
        assert list(group.managers) == ["a"]
        await group.stop()
        await assert_over(group, removed)
        return was_waiting

    await at_each_step(scenario, at_most=12 if how == "stage" else 500)


CALLS = {
    "add": lambda group, member: group.add("b", member),
    "add it with another key": lambda group, member: group.add("c", member),
    "add another": lambda group, member: group.add("b", Member("another")),
    "remove": lambda group, member: group.remove("b"),
    "start it": lambda group, member: member.start(),
    "stop it": lambda group, member: member.stop(),
    "stop it at once": lambda group, member: member.stop(0),
    "start the group": lambda group, member: group.start(),
    "stop the group": lambda group, member: group.stop(),
    "stop the group at once": lambda group, member: group.stop(0),
}


async def lose(manager):
    manager.connection_lost(OSError("gone"))


INTERRUPTIONS = CALLS | {
    "lose it": lambda group, member: lose(member),
    "lose the group": lambda group, member: lose(group),
    "cancel": None,
    "cancel natively": None,
}

REFUSALS = (ConnectionManagerError, ValueError, KeyError)


async def check_race(first, second, when, strict, policy):
    """Makes a call that waits at a stage of the member, makes another call, and checks the group."""
    print(first, "and", second, when, "strict" if strict else "", "reconnecting" if policy else "")
    stage = Stage()
    member = Member("member", policy=policy)
    is_added = first.startswith("add")
    group = ConnectionGroup(
        {"a": Member("a")} if is_added else {"a": Member("a"), "b": member}, strict=strict
    )
    if first != "start the group":
        await group.start()
    if first == "start it":
        await member.stop()
    if is_added or "start" in first:
        member.opening = stage
    else:
        member.close = stage
    async with anyio.create_task_group() as tg:
        call = Call(tg, lambda: CALLS[first](group, member))
        await settle() if "at once" in first else await stage.reached.wait()
        if second == "cancel":
            call.cancel()
        elif second == "cancel natively":
            call.cancel("native")
        else:
            other = Call(tg, lambda: INTERRUPTIONS[second](group, member))
        if when == "later":
            await settle()
        stage.let_go.set()
    for ended in (call, call if "cancel" in second else other):
        assert ended.error is None or isinstance(ended.error, REFUSALS)
    await settle()
    if group.state is OPEN:
        assert_consistent(group)
    if member not in group.managers.values():
        assert_ended(member)
    if "stop the group" in (first, second) and "start the group" not in (first, second):
        assert_ended(group, member, *group.managers.values())
    await group.stop()
    if first == "stop the group at once" and second == "start it":
        await member.stop()  # the group was over, so the member was free
    await assert_over(group, member)


@in_virtual_time
@in_turn("first", [call for call in CALLS if call not in {"add another", "add it with another key"}])
async def test_G4_a_call_and_each_other_call_leave_a_consistent_group(first):
    for number, (second, when) in enumerate(product(INTERRUPTIONS, ["immediately", "later"])):
        await check_race(
            first, second, when, strict=number % 3 == 1, policy=AT_ONCE if number % 2 else None
        )


@in_virtual_time
@in_turn(
    "pair",
    product(["add", "remove", "start it"], ["stop the group", "remove", "add another", "stop it"]),
)
async def test_G4_two_calls_leave_a_consistent_group_whenever_the_second_is_made(pair):
    first, second = pair

    async def scenario(steps):
        member = Member("member")
        group = ConnectionGroup(
            {"a": Member("a")} if first == "add" else {"a": Member("a"), "b": member}
        )
        view = await group.start()
        if first == "start it":
            await member.stop()
        async with anyio.create_task_group() as tg:
            call = Call(tg, lambda: CALLS[first](group, member))
            await steps()
            was_waiting = call.ended is None
            other = Call(tg, lambda: CALLS[second](group, member))
        for ended in (call, other):
            assert ended.error is None or isinstance(ended.error, REFUSALS)
        if second == "stop the group":
            assert_ended(group, member, *group.managers.values())
            assert dict(view) == {}
        else:
            assert_consistent(group)
            assert "a" in view
        if member not in group.managers.values():
            assert_ended(member)
        await group.stop()
        await assert_over(group, member)
        return was_waiting

    await at_each_step(scenario)


async def test_calls_of_add_and_remove_end_when_the_group_is_lost():
    opening, closing = Stage(), Stage()
    added, removed = Member("added", opening), Member("removed", closing=closing)
    group = ConnectionGroup({"a": Member("a"), "b": removed})
    await group.start()
    async with anyio.create_task_group() as tg:
        add, remove = Call(tg, group.add, "c", added), Call(tg, group.remove, "b")
        await opening.reached.wait()
        await closing.reached.wait()
        group.connection_lost(OSError("gone"))
        await settle()
        closing.let_go.set()
    assert isinstance(add.error, ConnectionManagerError)
    assert remove.error is None
    with pytest.raises(ConnectionLostError):
        await group.wait_closed()
    assert "c" not in group.managers
    await assert_over(group, added, removed)
