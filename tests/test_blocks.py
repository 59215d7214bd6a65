"""Tests for `async with manager`: blocks are counted, and the last one to exit stops the manager.

Tests of many cases print each one, so the last line that a failed test printed names its case.
"""

import gc
import weakref
from contextlib import suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint
from probe import Probe, Stage, raises
from proof import clocks
from reopening import settle

from ownertask import ConnectionLostError, ConnectionState, ReconnectPolicy, StartTimeoutError

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


class Block:
    """An `async with` block in its own task, which exits when the test says so.

    Attributes:
        connection: The connection, once the task is inside the block.
        is_over: Whether the task has exited the block.
    """

    def __init__(self, probe):
        self.probe = probe
        self.connection = None
        self.is_over = False
        self.scope = anyio.CancelScope()
        self._leave = anyio.Event()

    async def __call__(self, *, task_status=anyio.TASK_STATUS_IGNORED):
        with self.scope:
            async with self.probe as self.connection:
                task_status.started()
                await self._leave.wait()
            self.is_over = True

    def leave(self):
        self._leave.set()

    async def exit(self):
        self.leave()
        await settle()
        assert self.is_over


async def enter(task_group, probe):
    """Enters a block in a new task, and returns the block."""
    block = Block(probe)
    await task_group.start(block)
    return block


async def begin_to_enter(task_group, probe):
    """Returns a block whose task waits for the connection."""
    block = Block(probe)
    task_group.start_soon(block)
    await settle()
    assert block.connection is None
    return block


async def exit_in_another_task(probe):
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.__aexit__, None, None, None)


async def lose(probe):
    probe.connection_lost()
    with pytest.raises(ConnectionLostError):
        await probe.wait_closed()


# Counting.


@pytest.mark.parametrize("depth", [2, 3, 10])
async def test_F10_blocks_can_be_nested_and_the_outermost_exit_stops(depth):
    probe = Probe()
    connections = [await probe.__aenter__() for _ in range(depth)]
    assert set(connections) == {probe.connection}
    for _ in range(depth - 1):
        await probe.__aexit__(None, None, None)
        assert probe.connection is connections[0]
    await probe.__aexit__(None, None, None)
    assert probe.state is CLOSED
    assert len(probe.entered) == len(probe.exited) == 1
    async with probe, probe as connection:  # in the next run, too
        assert connection is not connections[0]
    assert probe.state is CLOSED


async def test_F10_an_error_in_nested_blocks_propagates_and_stops_at_the_outermost_exit():
    probe = Probe()
    with pytest.raises(LookupError):
        async with probe:
            with pytest.raises(LookupError):
                async with probe:
                    raise LookupError
            assert probe.state is OPEN
            raise LookupError
    assert probe.state is CLOSED


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), "at once"], ids=str)
async def test_F10_blocks_of_several_tasks_share_a_connection_that_the_last_exit_closes(order):
    probe = Probe()
    async with anyio.create_task_group() as tg:
        blocks = [await enter(tg, probe) for _ in range(3)]
        assert {block.connection for block in blocks} == {probe.connection}
        if order == "at once":
            async with anyio.create_task_group() as exits:
                for block in blocks:
                    exits.start_soon(block.exit)
        else:
            for number in order[:-1]:
                await blocks[number].exit()
                assert probe.state is OPEN
            await blocks[order[-1]].exit()
        assert probe.state is CLOSED
    assert len(probe.entered) == len(probe.exited) == 1


async def test_F10_blocks_that_enter_at_the_same_time_share_an_attempt():
    opening = Stage()
    probe = Probe(opening)
    async with anyio.create_task_group() as tg:
        blocks = [await begin_to_enter(tg, probe) for _ in range(3)]
        opening.let_go.set()
        await settle()
        assert {block.connection for block in blocks} == {probe.connection}
        for block in blocks[:-1]:
            await block.exit()
            assert probe.state is OPEN
        await blocks[-1].exit()
    assert probe.state is CLOSED
    assert len(probe.entered) == 1


async def test_F10_a_block_may_enter_after_the_block_that_began_the_run_exited():
    probe = Probe()
    async with anyio.create_task_group() as tg:
        blocks = [await enter(tg, probe) for _ in range(2)]
        for _ in range(5):
            blocks.append(await enter(tg, probe))
            await blocks.pop(0).exit()
            assert probe.state is OPEN
        for block in blocks:
            assert probe.state is OPEN
            await block.exit()
    assert probe.state is CLOSED
    assert len(probe.entered) == 1


async def test_F10_the_last_exit_waits_until_the_owner_task_has_ended():
    closing = Stage()
    probe = Probe(closing=closing)
    async with anyio.create_task_group() as tg:
        first, last = [await enter(tg, probe) for _ in range(2)]
        await first.exit()
        assert not closing.reached.is_set()
        last.leave()
        await closing.reached.wait()
        assert not last.is_over
        closing.let_go.set()
    assert probe.state is CLOSED


# Runs that no block began.


@pytest.mark.parametrize("number", [1, 3])
async def test_F10_a_run_that_start_began_stays_open_after_its_blocks_until_stop(number):
    probe = Probe()
    connection = await probe.start()
    async with anyio.create_task_group() as tg:
        blocks = [await enter(tg, probe) for _ in range(number)]
        for block in blocks:
            assert block.connection is connection
            await block.exit()
            assert probe.connection is connection
    async with probe, probe:
        pass
    assert probe.connection is connection
    await probe.stop()
    assert probe.state is CLOSED
    async with probe:
        pass
    assert probe.state is CLOSED  # the next run was begun by a block


async def test_F10_a_run_that_run_began_stays_open_after_its_blocks_until_stop():
    probe = Probe()
    async with anyio.create_task_group() as tg:
        connection = await tg.start(probe.run)
        async with probe, probe:
            pass
        block = await enter(tg, probe)
        await block.exit()
        assert probe.connection is connection
        await probe.stop()
    assert probe.state is CLOSED
    async with probe:
        pass
    assert probe.state is CLOSED


async def test_F10_a_block_that_joins_an_attempt_of_start_leaves_the_connection_open():
    opening = Stage()
    probe = Probe(opening)
    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.start)
        await opening.reached.wait()
        block = await begin_to_enter(tg, probe)
        opening.let_go.set()
        await block.exit()
        assert probe.connection is block.connection
        await probe.stop()


async def test_F10_a_start_that_joins_an_attempt_of_a_block_does_not_keep_the_connection_open():
    opening = Stage()
    probe = Probe(opening)
    async with anyio.create_task_group() as tg:
        blocks = [await begin_to_enter(tg, probe) for _ in range(2)]
        tg.start_soon(probe.start)
        await settle()
        opening.let_go.set()
        await blocks[0].exit()
        assert await probe.start() is blocks[0].connection  # joins the open connection
        assert probe.state is OPEN
        await blocks[1].exit()
    assert probe.state is CLOSED


@pytest.mark.parametrize("method", ["start", "run"])
async def test_F10_if_the_call_that_began_the_attempt_is_cancelled_the_run_belongs_to_the_blocks(method):
    scope = anyio.CancelScope()

    async def begin(probe):
        with scope:
            await getattr(probe, method)()

    async def go_away():
        scope.cancel()

    await blocks_keep_the_run(begin, go_away)


@pytest.mark.parametrize("clock", [clock for clock in clocks.CLOCKS if clock != "uvloop"])
def test_F10_if_the_start_that_began_the_attempt_times_out_the_run_belongs_to_the_blocks(clock):
    async def main():
        expired = anyio.Event()

        async def begin(probe):
            with pytest.raises(StartTimeoutError):
                await probe.start(timeout=60)
            expired.set()

        with anyio.fail_after(90):
            await blocks_keep_the_run(begin, expired.wait)

    clocks.run(main, clock=clock)


async def blocks_keep_the_run(begin, go_away):
    opening = Stage()
    probe = Probe(opening)
    async with anyio.create_task_group() as tg:
        tg.start_soon(begin, probe)
        await opening.reached.wait()
        blocks = [await begin_to_enter(tg, probe) for _ in range(2)]
        await go_away()
        await settle()
        assert probe.state is OPENING
        opening.let_go.set()
        await blocks[0].exit()
        assert probe.connection is blocks[1].connection
        await blocks[1].exit()
        assert probe.state is CLOSED
    assert len(probe.entered) == 1


async def test_F10_a_start_that_only_joined_may_go_away_and_the_connection_stays_open():
    opening = Stage()
    probe = Probe(opening)
    scope = anyio.CancelScope()

    async def join():
        with scope:
            await probe.start()

    async with anyio.create_task_group() as tg:
        tg.start_soon(probe.start)
        await opening.reached.wait()
        block = await begin_to_enter(tg, probe)
        tg.start_soon(join)
        await settle()
        scope.cancel()
        await settle()
        opening.let_go.set()
        await block.exit()
        assert probe.connection is block.connection
    await probe.stop()


async def test_F10_a_start_that_began_the_attempt_may_go_away_in_the_tick_of_success():
    scope = anyio.CancelScope()
    probe = Probe()
    joined = anyio.Event()

    async def open_and_cancel():
        await joined.wait()
        scope.cancel()

    probe.opening = open_and_cancel

    async def begin():
        with scope:
            await probe.start()

    async with anyio.create_task_group() as tg:
        tg.start_soon(begin)
        await settle()
        blocks = [await begin_to_enter(tg, probe) for _ in range(2)]
        joined.set()
        await settle()
        assert scope.cancelled_caught
        await blocks[0].exit()
        assert probe.connection is blocks[1].connection
        await blocks[1].exit()
        assert probe.state is CLOSED


# Which entry an exit belongs to.


async def test_C9_F10_blocks_can_be_exited_in_other_tasks():
    probe = Probe()
    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(probe.__aenter__)
    for _ in range(2):
        await exit_in_another_task(probe)
        assert probe.state is OPEN
    await exit_in_another_task(probe)
    assert probe.state is CLOSED


async def test_F10_an_exit_belongs_to_the_newest_entry_of_its_task():
    probe = Probe()
    async with probe:
        await lose(probe)
        async with probe:
            assert probe.state is OPEN
        assert probe.state is CLOSED  # the newer entry was the only one of the second run
        connection = await probe.start()
    assert probe.connection is connection  # the older entry is of the first run
    await probe.stop()


async def test_F10_an_exit_belongs_to_an_entry_of_its_own_task_before_others():
    """Its own entry is of the run in use, and the other task's is of a run that is over."""
    probe = Probe()
    async with anyio.create_task_group() as tg:
        other = await enter(tg, probe)
        await lose(probe)
        async with probe, probe:
            connection = probe.connection
        assert probe.state is CLOSED
        assert other.connection is not connection
        await other.exit()


async def test_F10_an_exit_in_a_task_without_an_entry_belongs_to_a_run_that_is_over():
    probe = Probe()
    async with anyio.create_task_group() as tg:
        late = [await enter(tg, probe) for _ in range(2)]
        await lose(probe)
        users = [await enter(tg, probe) for _ in range(2)]
        for _ in late:
            await exit_in_another_task(probe)
            assert probe.connection is users[0].connection
        await exit_in_another_task(probe)
        assert probe.connection is users[0].connection  # one of two blocks of this run is left
        await exit_in_another_task(probe)
        assert probe.state is CLOSED
        for block in late + users:
            await block.exit()  # one exit too many, which does nothing


async def test_F10_a_surplus_exit_does_not_stop_what_no_block_began():
    probe = Probe()
    async with probe, probe:
        pass
    connection = await probe.start()
    for _ in range(3):
        await probe.__aexit__(None, None, None)
        await exit_in_another_task(probe)
    async with anyio.create_task_group() as tg:
        block = await enter(tg, probe)
        await exit_in_another_task(probe)
        await exit_in_another_task(probe)
        assert probe.connection is connection
        await block.exit()
    assert probe.connection is connection
    await probe.stop()


@pytest.mark.within(60)
async def test_F10_a_task_with_the_id_of_a_task_that_ended_does_not_exit_that_tasks_block():
    """The memory of a task that ended may be taken by something other than a task, so it tries again."""
    for _ in range(50):
        if await exited_with_the_id_of_a_user():
            return
    pytest.fail("no task got the id of the user's task; is that task still referenced?")


async def exited_with_the_id_of_a_user():
    """Returns `False` if no task got the id of a task that entered a block and ended."""
    probe = Probe()
    user_id = None
    imposters = []

    async def enter_and_end():
        nonlocal user_id
        await probe.__aenter__()
        user_id = anyio.get_current_task().id

    async def exit_if_the_id_is_the_same(done):
        if anyio.get_current_task().id == user_id:
            imposters.append(user_id)
            await probe.__aexit__(None, None, None)
        await done.wait()

    async with anyio.create_task_group() as tg:
        late = await enter(tg, probe)
        await probe.stop()
        async with anyio.create_task_group() as users:
            users.start_soon(enter_and_end)  # others use its connection, and exit its block
        connection = probe.connection
        await checkpoint()
        gc.collect()
        done = anyio.Event()
        async with anyio.create_task_group() as many:  # at once, so that each has another id
            for _ in range(300):
                many.start_soon(exit_if_the_id_is_the_same, done)
            await settle()
            done.set()
        # An imposter had no entry, so it exited the block of the run that is over.
        assert probe.connection is connection
        if not imposters:
            await exit_in_another_task(probe)
        await exit_in_another_task(probe)
        assert probe.state is CLOSED
        await late.exit()  # one exit too many, which does nothing
    return bool(imposters)


async def test_F10_the_task_of_a_block_is_referenced_weakly(anyio_backend_name):
    probe = Probe()
    references = []

    async def enter_and_end():
        await probe.__aenter__()
        await probe.__aenter__()
        if anyio_backend_name == "trio":
            import trio

            references.append(weakref.ref(trio.lowlevel.current_task()))
        else:
            import asyncio

            references.append(weakref.ref(asyncio.current_task()))

    async with anyio.create_task_group() as tg:
        tg.start_soon(enter_and_end)
    await checkpoint()
    gc.collect()
    assert references[0]() is None
    await exit_in_another_task(probe)
    assert probe.state is OPEN
    await exit_in_another_task(probe)
    assert probe.state is CLOSED


# Exits of earlier runs.


@pytest.mark.parametrize("end", ["stop", "loss", "failure to close"])
async def test_F10_a_late_exit_does_not_stop_a_later_run(end):
    for restart in ("start", "run", "block", "same task"):
        print("restart:", restart)
        await restart_and_exit_late(end, restart)


async def restart_and_exit_late(end, restart):
    probe = Probe()
    async with anyio.create_task_group() as tg:
        late = [await enter(tg, probe) for _ in range(2)]
        await probe.__aenter__()
        if end == "loss":
            await lose(probe)
        else:
            probe.closing = raises(OSError("closing")) if end == "failure to close" else checkpoint
            await probe.stop()
            probe.closing = checkpoint
        if restart == "block":
            user = await enter(tg, probe)
        elif restart == "run":
            await tg.start(probe.run)
        else:
            await (probe.start() if restart == "start" else probe.__aenter__())
        connection = probe.connection
        for block in late:
            await block.exit()
            assert probe.connection is connection
        if restart == "same task":
            await probe.__aexit__(None, None, None)
            assert probe.state is CLOSED
            connection = await probe.start()
        await probe.__aexit__(None, None, None)
        assert probe.connection is connection
        if restart == "block":
            await user.exit()
            assert probe.state is CLOSED
        else:
            await probe.stop()


async def test_F10_blocks_of_two_runs_exit_in_any_order():
    probe = Probe()
    async with anyio.create_task_group() as tg:
        first = [await enter(tg, probe) for _ in range(2)]
        await probe.stop()
        second = [await enter(tg, probe) for _ in range(2)]
        for block in (first[0], second[0], first[1]):
            await block.exit()
            assert probe.connection is second[1].connection
        await second[1].exit()
        assert probe.state is CLOSED


@pytest.mark.within(20)
@pytest.mark.parametrize("where", ["one task", "a task for each"])
async def test_F10_entries_without_exits_do_not_pile_up(where):
    probe = Probe()

    async def enter_and_stop():
        await probe.__aenter__()
        await probe.__aenter__()
        await probe.stop(timeout=None)  # trio remembers for a while when a timeout would have expired

    async def repeat(times):
        for _ in range(times):
            if where == "one task":
                await enter_and_stop()
            else:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(enter_and_stop)
        await checkpoint()
        gc.collect()
        return len(gc.get_objects())

    before = await repeat(20)
    after = await repeat(200)
    assert after - before < 100

    async with anyio.create_task_group() as tg:
        user = await enter(tg, probe)
        for _ in range(5):  # exits of entries of runs that are over, which are counted
            await exit_in_another_task(probe)
            await probe.__aexit__(None, None, None)
            assert probe.connection is user.connection
        await user.exit()
        assert probe.state is CLOSED


# Entries that fail or wait.


async def test_F10_a_block_that_is_cancelled_while_it_enters_is_not_counted():
    opening = Stage()
    probe = Probe(opening)
    async with anyio.create_task_group() as tg:
        blocks = [await begin_to_enter(tg, probe) for _ in range(4)]
        for number in (0, 2):  # the block that began the attempt, and one that joined it
            blocks[number].scope.cancel()
        await settle()
        assert probe.state is OPENING
        opening.let_go.set()
        await blocks[1].exit()
        assert probe.connection is blocks[3].connection
        await blocks[3].exit()
        assert probe.state is CLOSED


async def test_F10_a_block_that_is_cancelled_in_the_tick_of_success_is_not_counted():
    probe = Probe()
    entering = anyio.Event()

    async def open_and_cancel():
        await entering.wait()
        blocks[0].scope.cancel()

    probe.opening = open_and_cancel
    async with anyio.create_task_group() as tg:
        blocks = [await begin_to_enter(tg, probe) for _ in range(3)]
        entering.set()
        await settle()
        assert blocks[0].scope.cancelled_caught
        await blocks[1].exit()
        assert probe.connection is blocks[2].connection
        await blocks[2].exit()
        assert probe.state is CLOSED


@pytest.mark.parametrize("failure", ["raises", "times out", "cancelled", "stopped", "lost"])
async def test_F10_blocks_that_cannot_enter_are_not_counted(failure):
    probe = Probe({"raises": raises(OSError("no"))}.get(failure, anyio.sleep_forever))
    probe.start_timeout = 0.01 if failure == "times out" else None

    async def fail_to_enter():
        with suppress(Exception):
            await probe.__aenter__()

    with anyio.fail_after(3):
        async with anyio.create_task_group() as tg:
            for _ in range(3):
                tg.start_soon(fail_to_enter)
            await settle()
            if failure == "cancelled":
                tg.cancel_scope.cancel()
            elif failure == "stopped":
                await probe.stop()
            elif failure == "lost":
                probe.connection_lost()
    assert not probe.is_acquired

    probe.opening, probe.start_timeout = checkpoint, None
    async with probe, probe:
        pass
    assert probe.state is CLOSED
    async with anyio.create_task_group() as tg:
        blocks = [await enter(tg, probe) for _ in range(2)]
        await blocks[0].exit()
        assert probe.state is OPEN
        await blocks[1].exit()
    assert probe.state is CLOSED


async def test_F10_a_block_that_is_cancelled_behind_a_close_is_not_counted():
    closing = Stage()
    probe = Probe(closing=closing)
    async with anyio.create_task_group() as tg:
        first = await enter(tg, probe)
        tg.start_soon(probe.stop)
        await closing.reached.wait()
        cancelled, second = [await begin_to_enter(tg, probe) for _ in range(2)]
        cancelled.scope.cancel()
        await settle()
        closing.let_go.set()
        await settle()
        assert second.connection is probe.connection
        await first.exit()
        assert probe.connection is second.connection
        await second.exit()
        assert probe.state is CLOSED


async def test_F10_a_block_that_is_cancelled_behind_the_close_of_the_last_exit_does_not_force_it():
    closing = Stage()
    probe = Probe(closing=closing)
    async with anyio.create_task_group() as tg:
        first = await enter(tg, probe)
        first.leave()
        await closing.reached.wait()
        second = await begin_to_enter(tg, probe)
        second.scope.cancel()
        await settle()
        assert probe.state is CLOSING
        assert not first.is_over
        closing.let_go.set()
    assert first.is_over
    assert probe.state is CLOSED


async def test_F10_an_exit_in_the_tick_of_success_does_not_stop_a_block_that_waits_to_enter():
    opening = Stage()
    probe = Probe(opening)
    connections = []

    async def enter_and_exit():
        async with probe as connection:
            connections.append(connection)

    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(enter_and_exit)
        await opening.reached.wait()
        await settle()
        opening.let_go.set()
    assert len(connections) == 3
    assert len(set(connections)) == 1
    assert len(probe.entered) == 1
    assert probe.state is CLOSED


async def test_F10_an_exit_of_an_earlier_run_does_not_stop_blocks_that_wait_behind_its_close():
    closing = Stage()
    probe = Probe(closing=closing)
    async with anyio.create_task_group() as tg:
        first = [await enter(tg, probe) for _ in range(2)]
        tg.start_soon(probe.stop)
        await closing.reached.wait()
        waiting = [await begin_to_enter(tg, probe) for _ in range(2)]
        for block in first:
            block.leave()
        await settle()
        assert {block.connection for block in waiting} == {None}
        closing.let_go.set()
        await settle()
        assert all(block.is_over for block in first)
        assert {block.connection for block in waiting} == {probe.connection}
        await waiting[0].exit()
        assert probe.state is OPEN
        await waiting[1].exit()
    assert probe.state is CLOSED
    assert len(probe.entered) == 2


async def test_F10_blocks_can_enter_while_the_last_exit_closes_the_connection():
    closing = Stage()
    probe = Probe(closing=closing)
    async with anyio.create_task_group() as tg:
        first = await enter(tg, probe)
        first.leave()
        await closing.reached.wait()
        later = [await begin_to_enter(tg, probe) for _ in range(2)]
        closing.let_go.set()
        await settle()
        assert first.is_over
        assert {block.connection for block in later} == {probe.connection} != {first.connection}
        await later[0].exit()
        assert probe.state is OPEN
        await later[1].exit()
    assert probe.state is CLOSED


async def test_F10_a_surplus_exit_does_not_stop_blocks_that_wait_to_enter():
    opening = Stage()
    probe = Probe(opening)
    async with anyio.create_task_group() as tg:
        blocks = [await begin_to_enter(tg, probe) for _ in range(2)]
        await probe.__aexit__(None, None, None)
        await exit_in_another_task(probe)
        assert probe.state is OPENING
        opening.let_go.set()
        await blocks[0].exit()
        assert probe.connection is blocks[1].connection
        await blocks[1].exit()
        assert probe.state is CLOSED


async def test_F10_a_block_that_is_cancelled_while_reopening_ends_it_if_the_others_have_exited():
    attempt = Stage()
    probe = Probe()
    probe.reconnect = ReconnectPolicy(initial_delay=0, jitter=0)
    async with anyio.create_task_group() as tg:
        first = await enter(tg, probe)
        probe.opening = attempt
        probe.connection_lost()
        await attempt.reached.wait()
        second = await begin_to_enter(tg, probe)
        first.leave()
        await settle()
        assert first.is_over
        assert probe.state is OPENING
        second.scope.cancel()
        await settle()
        assert probe.state is CLOSED
        assert probe.reconnecting is None
